"""Native kernels of functions that are linear in coefficients. Their torch twins are hpc_kjko/inner/potential.py and
the solvers that fit with them.

The particles are summed in pieces, and the sum of each piece is rounded to units (:mod:`hpc_kjko.particles.exact`). So
the bits depend neither on the threads nor on the ranks. cpu/potential.hpp lists the entries of each sum, in order. The
kernels for a GPU are in :mod:`hpc_kjko.kernels.cuda.potential`.
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
    """How sums are added.

    Attributes:
        share: of each particle [n], float64.
        together: size of a piece: the number of particles that are added before their sum is rounded to ``unit``. A
            kernel takes at most CHUNK.
        unit: 0 for no rounding.
        finer: for sums that are two numbers, the fraction of the unit to which the remainder is rounded.
        samples: the number of particles of each of several samples, which are stored one after the other. Pieces do not
            cross samples. Empty: there is one sample.
    """

    share: torch.Tensor
    together: int
    unit: float
    finer: float = 0.0
    samples: tuple[int, ...] = ()

    def given(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The terms in the form that the module takes."""
        pieces = self.pieces
        return pieces.share.contiguous(), pieces.edges(self.share.device), self.unit

    @property
    def pieces(self) -> cuda_potential.Pieces:
        """The pieces of the samples."""
        samples = self.samples or (len(self.share),)
        return cuda_potential.Pieces(self.share, samples, min(self.together, CHUNK), self.unit, self.finer)


@dataclass(frozen=True)
class Carry:
    """A step of particles along u = ∇v Φ.

    Attributes:
        step: h; fitted: the step in the functional.
        temperature: T.
        exact: whether log f falls by log det(I + h ∇v u), or by h ∇v·u.
        periods: of positions that enter as cosines and sines; empty if they enter unchanged.
        wave_vector: k of the wave that is checked (hpc_kjko/collisions/witness.py), or empty.
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
    """The network of the functions: hidden layers (weights, bias), then monomials.

    Attributes:
        periodic: whether positions enter as cosines and sines of a box.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    velocity_dims: int
    periodic: bool

    def takes(self, z: torch.Tensor) -> bool:
        """Whether the kernels are used for this network at inputs z [n, inputs]."""
        weight, widths = self.layers[0][0], [len(bias) for _, bias in self.layers]
        if z.is_cuda:
            known = cuda_potential.has_functions(widths, weight.shape[1], self.velocity_dims)
            return known and z.dtype == weight.dtype and cuda.take(z) and cuda_potential.fit_on(z.device)
        if z.device.type != "cpu" or backend() is not Backend.NATIVE or len(self.layers) > 2:
            return False
        sizes = max(widths) <= MOST_FIELD_WIDTH and weight.shape[1] < MOST_INPUTS
        return sizes and self.velocity_dims <= MOST_VELOCITY_DIMS and z.dtype == weight.dtype

    @property
    def on_gpu(self) -> bool:
        return self.layers[0][0].is_cuda

    @property
    def in_use(self) -> bool:
        """Whether the kernels are in use, and take this network."""
        return self.takes(self.layers[0][0])

    def values(self, z: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Σ c_m g_m [sets, n] of the functions of ψ, then v_k³/6 and v_k⁴/24, for each set of coefficients [sets, M + 2
        dv]; float64.
        """
        if z.is_cuda:
            return cuda_potential.values(self._functions, z, coefficients)
        values = torch.empty(len(coefficients), len(z), dtype=torch.float64)
        require().potential_values(self._given(), z.contiguous(), coefficients.double().contiguous(), values=values)
        return values

    def slopes(self, z: torch.Tensor, coefficients: torch.Tensor, bent: int) -> tuple[torch.Tensor, torch.Tensor]:
        """∇v Σ c_m g_m [sets, n, dv] of the functions of Φ, for each set of coefficients [sets, N], and the second
        derivatives [bent, n, dv, dv] of the first ``bent`` sets; in the precision of z.
        """
        if z.is_cuda:
            return cuda_potential.slopes(self._functions, z, coefficients, bent)
        dv = self.velocity_dims
        gradients, hessians = z.new_empty(len(coefficients), len(z), dv), z.new_empty(bent, len(z), dv, dv)
        require().potential_slopes(
            self._given(), z.contiguous(), coefficients.to(z).contiguous(), gradients=gradients, hessians=hessians
        )
        return gradients, hessians

    def normal(self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor) -> np.ndarray:
        """Σ share g gᵀ, with Σ share g wanted as one more column, for the functions g of ψ: [M (M + 1)]."""
        if z.is_cuda:
            return cuda_potential.normal(self._functions, z, terms.pieces, wanted).cpu().numpy()
        return require().potential_normal(self._given(), z.contiguous(), terms.given(), wanted.contiguous())

    def missed(
        self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor, c: torch.Tensor, limit: float
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The residuals |ψ − wanted| of ψ with coefficients c [M] at the particles [n], float64; Σ share times their
        squares; and the number of particles whose residual is larger than ``limit``. On a GPU only: on the CPU
        :meth:`values` is enough.
        """
        found, sums = cuda_potential.missed(self._functions, z, terms.pieces, wanted, c, limit)
        return found, sums.cpu().numpy()

    def derivatives(self, z: torch.Tensor, terms: Terms) -> np.ndarray:
        """Σ share ∇g·∇g [N, N], Σ share ∇∇g : ∇∇g [N, N], Σ share Δg [N] and Σ share, for the functions g of Φ,
        flat.
        """
        if z.is_cuda:
            return cuda_potential.derivatives(self._functions, z, terms.pieces).cpu().numpy()
        return require().potential_derivatives(self._given(), z.contiguous(), terms.given())

    def barrier(self, z: torch.Tensor, terms: Terms, k: torch.Tensor, step: float) -> np.ndarray:
        """Σ share tr (I + h ∇∇Φ)⁻¹∇∇g [N], Σ share log det(I + h ∇∇Φ) for Φ with coefficients k [N], and the number of
        particles whose determinant is not positive, flat. These particles are left out of the sums.
        """
        if z.is_cuda:
            return cuda_potential.barrier(self._functions, z, terms.pieces, k, step).cpu().numpy()
        return require().potential_barrier(self._given(), z.contiguous(), terms.given(), k.contiguous(), step=step)

    def tied(self, z: torch.Tensor, terms: Terms, coefficients: torch.Tensor) -> np.ndarray:
        """For the L functions m of Φ that depend on v alone: Σ share ∇m·(∇m, v, ∇Φ) [L, L + 2] for Φ with coefficients
        [N], Σ share Δm [L], Σ share (m, 1) [L + 1] and Σ share y yᵀ with y = (x in unbounded space, v, 1); flat.
        """
        if z.is_cuda:
            return cuda_potential.tied(self._functions, z, terms.pieces, coefficients).cpu().numpy()
        return require().potential_tied(self._given(), z.contiguous(), terms.given(), coefficients.contiguous())

    def training(
        self, z: torch.Tensor, terms: Terms, wanted: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """½ Σ share (ψ − wanted)² of ψ with coefficients c [M], and its gradient with respect to weights and biases,
        layer by layer; float64.
        """
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
        """A step along u = ∇v Φ, and its diagnostics, as described for ``Carried`` in
        hpc_kjko/collisions/controlled.py.

        Args:
            x, v: positions [n, dx] and velocities [n, dv], of which the network may have another precision.
            coefficients: of Φ and of ψ̄ + ½|v|²/T [2, N].

        Returns:
            The velocities [n, dv]; log det of the map [n]; the change [n]; the disagreement [n]; the sums [2, 17]; the
            smallest eigenvalue.
        """
        given = tuple(list(part) if isinstance(part, tuple) else part for part in vars(how).values())
        if v.is_cuda:
            *of_each, total, least = cuda_potential.carry(self._functions, x, v, terms.pieces, coefficients, given)
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
        """The network in the form that GPU kernels take."""
        w1, b1, w2, b2 = (part.detach().contiguous() for layer in self.layers for part in layer)
        return cuda_potential.Functions(w1, b1, w2, b2, self.velocity_dims, self.periodic)

    def _given(self) -> tuple[list[torch.Tensor], list[torch.Tensor], int, bool]:
        """The network in the form that the module takes."""
        weights, biases = ([part.detach() for part in parts] for parts in zip(*self.layers, strict=True))
        return weights, biases, self.velocity_dims, self.periodic
