"""Native kernels of functions that are linear in coefficients; hpc_kjko/inner/potential.py and the solvers that fit
with them are their twins.

Sums are of pieces of particles, each rounded to units (:mod:`hpc_kjko.particles.exact`): bits depend neither on the
threads nor on the ranks. What each sum holds, and in which order, is in cpu/potential.hpp. Those of a GPU are in
:mod:`hpc_kjko.kernels.cuda.potential`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.kernels import Backend, backend, cuda, require
from hpc_kjko.kernels.constants import CHUNK, MOST_FIELD_WIDTH, MOST_INPUTS, MOST_VELOCITY_DIMS
from hpc_kjko.kernels.cuda import potential as cuda_potential


@dataclass(frozen=True)
class Terms:
    """How sums add up.

    Attributes:
        share: of each particle [n], float64.
        together: particles that are added up before their sum is rounded to ``unit``; a kernel takes CHUNK at most.
        finer: part of the unit that what this leaves is rounded to, of sums that are two numbers.
        samples: how many particles each of several samples has that lie one after the other, on a GPU; sums are rounded
            within each. Empty: there is one.
    """

    share: torch.Tensor
    together: int
    unit: float
    finer: float = 0.0
    samples: tuple[int, ...] = ()

    def given(self) -> tuple[torch.Tensor, int, float]:
        """As the module takes them."""
        assert len(self.samples) < 2
        return self.share.contiguous(), min(self.together, CHUNK), self.unit

    @property
    def pieces(self) -> cuda_potential.Pieces:
        """As a GPU's kernels take them."""
        samples = self.samples or (len(self.share),)
        return cuda_potential.Pieces(self.share, samples, min(self.together, CHUNK), self.unit, self.finer)


@dataclass(frozen=True)
class Carry:
    """A step of particles along u = ∇v Φ.

    Attributes:
        step: h; fitted: what the functional saw of it.
        temperature: T.
        exact: whether log f falls by log det(I + h ∇v u); else by h ∇v·u.
        periods: in which positions enter as cosines and sines; none if they enter as they are.
        wave_vector: k of the wave that is watched (hpc_kjko/collisions/witness.py), or none.
        strength: κ.
    """

    step: float
    fitted: float
    temperature: float
    exact: bool
    periods: tuple[float, ...]
    wave_vector: tuple[float, ...]
    strength: float


@dataclass(frozen=True)
class Network:
    """What the functions are made of: hidden layers (weights, bias), then monomials.

    Attributes:
        periodic: whether positions enter as cosines and sines of a box.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    velocity_dims: int
    periodic: bool

    def takes(self, z: torch.Tensor) -> bool:
        """Whether the kernels are in use, and made for such a network at inputs z [n, inputs]."""
        weight, widths = self.layers[0][0], [len(bias) for _, bias in self.layers]
        if z.is_cuda:
            known = cuda_potential.has_functions(widths, weight.shape[1], self.velocity_dims)
            return known and z.dtype == weight.dtype and cuda.take(z) and cuda_potential.fit_on(z.device)
        if z.device.type != "cpu" or backend() is not Backend.NATIVE or len(self.layers) > 2:
            return False
        sizes = max(widths) <= MOST_FIELD_WIDTH and weight.shape[1] < MOST_INPUTS
        return sizes and self.velocity_dims <= MOST_VELOCITY_DIMS and z.dtype == weight.dtype

    @property
    def joins(self) -> bool:
        """Whether several samples are to be summed at once: by the kernels of a GPU."""
        weight = self.layers[0][0]
        return weight.is_cuda and self.takes(weight)

    def values(self, z: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Σ c_m g_m [sets, n] of ψ's functions, then v_k³/6 and v_k⁴/24, for each set of coefficients [sets, M + 2 dv];
        float64."""
        if z.is_cuda:
            return cuda_potential.values(self._functions, z, coefficients)
        values = torch.empty(len(coefficients), len(z), dtype=torch.float64)
        require().potential_values(self._given(), z.contiguous(), coefficients.double().contiguous(), values=values)
        return values

    def slopes(self, z: torch.Tensor, coefficients: torch.Tensor, bent: int) -> tuple[torch.Tensor, torch.Tensor]:
        """∇v Σ c_m g_m [sets, n, dv] of Φ's functions, for each set of coefficients [sets, N], and the second
        derivatives [bent, n, dv, dv] of the first ``bent`` of them; in the precision of z."""
        if z.is_cuda:
            return cuda_potential.slopes(self._functions, z, coefficients, bent)
        dv = self.velocity_dims
        gradients, hessians = z.new_empty(len(coefficients), len(z), dv), z.new_empty(bent, len(z), dv, dv)
        require().potential_slopes(
            self._given(), z.contiguous(), coefficients.to(z).contiguous(), gradients=gradients, hessians=hessians
        )
        return gradients, hessians

    def normal(self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor) -> np.ndarray:
        """Σ share g gᵀ, and beside it Σ share g wanted, of ψ's functions: [M (M + 1)]."""
        if z.is_cuda:
            return cuda_potential.normal(self._functions, z, terms.pieces, wanted).cpu().numpy()
        return require().potential_normal(self._given(), z.contiguous(), terms.given(), wanted.contiguous())

    def missed(
        self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor, c: torch.Tensor, limit: float
    ) -> tuple[torch.Tensor, np.ndarray]:
        """By how much ψ with coefficients c [M] misses what is wanted [n], float64; Σ share times its square, and how
        many particles miss it by more than a limit. On a GPU alone: elsewhere :meth:`values` will do."""
        found, sums = cuda_potential.missed(self._functions, z, terms.pieces, wanted, c, limit)
        return found, sums.cpu().numpy()

    def derivatives(self, z: torch.Tensor, terms: Terms) -> np.ndarray:
        """Σ share ∇g·∇g [N, N], Σ share ∇∇g : ∇∇g [N, N], Σ share Δg [N] and Σ share, of Φ's functions, flat."""
        if z.is_cuda:
            return cuda_potential.derivatives(self._functions, z, terms.pieces).cpu().numpy()
        return require().potential_derivatives(self._given(), z.contiguous(), terms.given())

    def barrier(self, z: torch.Tensor, terms: Terms, k: torch.Tensor, step: float) -> np.ndarray:
        """Σ share tr (I + h ∇∇Φ)⁻¹∇∇g [N], Σ share log det(I + h ∇∇Φ) of Φ with coefficients k [N], and how many
        particles have no positive determinant, which are left out of the sums; flat."""
        if z.is_cuda:
            return cuda_potential.barrier(self._functions, z, terms.pieces, k, step).cpu().numpy()
        return require().potential_barrier(self._given(), z.contiguous(), terms.given(), k.contiguous(), step=step)

    def tied(self, z: torch.Tensor, terms: Terms, coefficients: torch.Tensor) -> np.ndarray:
        """Of Φ's L functions m of v alone: Σ share ∇m·(∇m, v, ∇Φ) [L, L + 2] of Φ with coefficients [N],
        Σ share Δm [L], Σ share (m, 1) [L + 1] and Σ share y yᵀ of y = (x outside a box, v, 1); flat."""
        if z.is_cuda:
            return cuda_potential.tied(self._functions, z, terms.pieces, coefficients).cpu().numpy()
        return require().potential_tied(self._given(), z.contiguous(), terms.given(), coefficients.contiguous())

    def training(
        self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """½ Σ share (ψ − wanted)² of ψ with coefficients c [M], and its gradient in weights and biases, layer by
        layer; float64."""
        if z.is_cuda:
            return cuda_potential.training(self._functions, z, terms.pieces, wanted, c)
        found = torch.from_numpy(
            require().potential_training(
                self._given(), z.contiguous(), terms.given(), wanted.contiguous(), c.contiguous()
            )
        )
        return found[0], found[1:]

    def carry(
        self, x: torch.Tensor, v: torch.Tensor, terms: Terms, coefficients: torch.Tensor, how: Carry
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray, float]:
        """A step along u = ∇v Φ, and what is known of it, as hpc_kjko/collisions/controlled.py says of ``Carried``.

        Args:
            x, v: positions [n, dx] and velocities [n, dv], of which the network may have another precision.
            coefficients: of Φ and of ψ̄ + ½|v|²/T [2, N].

        Returns:
            The velocities, log det of the map [n], the change [n], the disagreement [n]; sums [2, 17], the smallest
            eigenvalue.
        """
        given = tuple(list(part) if isinstance(part, tuple) else part for part in vars(how).values())
        if v.is_cuda:
            *of_each, total, least = cuda_potential.carry(
                self._functions, x, v, terms.pieces, coefficients, given
            )
            moved, log_det, change, disagreement = of_each
            found = torch.cat([total, least[None]]).cpu().numpy()
            return moved, log_det, change, disagreement, found[:-1].reshape(2, -1), float(found[-1])
        weight, moved = self.layers[0][0], torch.empty_like(v, memory_format=torch.contiguous_format)
        log_det, change, disagreement = torch.empty(3, len(v), dtype=torch.float64)
        sums, smallest = require().potential_carry(
            self._given(),
            weight.new_empty(0, weight.shape[1]),
            terms.given(),
            terms.finer,
            given,
            x.contiguous(),
            v.contiguous(),
            coefficients.to(weight).contiguous(),
            moved=moved,
            log_det=log_det,
            change=change,
            disagreement=disagreement,
        )
        return moved, log_det, change, disagreement, sums.reshape(2, -1), smallest

    @property
    def _functions(self) -> cuda_potential.Functions:
        """As a GPU's kernels take it."""
        w1, b1, w2, b2 = (part.detach().contiguous() for layer in self.layers for part in layer)
        return cuda_potential.Functions(w1, b1, w2, b2, self.velocity_dims, self.periodic)

    def _given(self) -> tuple[list[torch.Tensor], list[torch.Tensor], int, bool]:
        """As the module takes it."""
        weights, biases = ([part.detach() for part in parts] for parts in zip(*self.layers, strict=True))
        return weights, biases, self.velocity_dims, self.periodic
