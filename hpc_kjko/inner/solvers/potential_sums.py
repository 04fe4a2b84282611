"""Sums over the particles of all ranks. The terms are products of the functions of a potential and of their
derivatives.

Native kernels compute the sums if there are any, otherwise torch does. In both cases the particles are summed in
pieces, and the sum of each piece is rounded before it is added. So the bits of the result do not depend on the number
of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpc_kjko.inner.control import determinant
from hpc_kjko.inner.objective import linear_part
from hpc_kjko.inner.potential import PotentialField, combined
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.kernels.potential import Network, Terms
from hpc_kjko.particles.exact import MOMENTS_UNIT
from hpc_kjko.particles.state import passes

#: Inputs z [n, inputs] of some particles, then further columns [n] of these particles. The last one is the share.
Rows = tuple[torch.Tensor, ...]

#: On a CPU, samples are joined until they have so many particles: all threads then have enough to do, in little memory.
JOINED = 1 << 15


@dataclass(frozen=True)
class Joined:
    """Several samples, which are stored one after the other.

    Attributes:
        rows: of all samples.
        counts: the number of particles of each sample.
    """

    rows: Rows
    counts: tuple[int, ...]


@dataclass(frozen=True)
class FieldAverages:
    """Averages over some particles from which the functional is computed. The functions g are those that depend on v.

    Attributes:
        gram: E[∇g·∇g] [M, M]; bending: E[∇∇g : ∇∇g] [M, M].
        laplacian: E[Δg] [M].
        mass: the fraction of the total mass that these particles have.
    """

    gram: np.ndarray
    bending: np.ndarray
    laplacian: np.ndarray
    mass: float


@dataclass(frozen=True)
class VelocitySums:
    """Sums over the particles of a sample that tie ψ to this sample. m are the L functions of Φ that depend on v alone.

    Attributes:
        gram: Σ ∇m·∇m [L, L]; drag: Σ ∇m·v [L]; along: Σ ∇m·∇Φ [L].
        laplacian: Σ Δm [L].
        mean: Σ m [L]; mass: Σ 1.
        moments: Σ y yᵀ [Y, Y]. y contains x (in unbounded space only), v, and 1.
    """

    gram: np.ndarray
    drag: np.ndarray
    along: np.ndarray
    laplacian: np.ndarray
    mean: np.ndarray
    mass: float
    moments: np.ndarray


class PotentialSums:
    """Sums of the functions of a potential. All methods are collective.

    Args:
        sums: adds up over ranks.
    """

    def __init__(self, control: PotentialField, sums: LeastSquares):
        self.control, self.sums = control, sums

    @property
    def at_once(self) -> float:
        """The most particles of joined samples that a native kernel is given at a time. A GPU is given all of them."""
        return math.inf if self.control.network.on_gpu else JOINED

    def normal(self, samples: Sequence[Rows]) -> np.ndarray:
        """Σ g gᵀ, with Σ g w as one more column: [M, M + 1]. g are the functions of ψ, and w are the target values.

        Args:
            samples: of each sample z, w [n] and shares [n].
        """
        number = self.control.of_density

        def native(network: Network, terms: Terms, z: torch.Tensor, wanted: torch.Tensor) -> np.ndarray:
            return network.normal(z, terms, wanted)

        def sums(z: torch.Tensor, wanted: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            g = self.control.functions(z).double()
            return [self.sums.products(share.double()[:, None] * g, torch.cat([g, wanted[:, None]], dim=1))]

        (found,) = self._summed(native, sums, samples, [(number, number + 1)])
        return found

    def missed(self, samples: Sequence[Rows], c: torch.Tensor, limit: float) -> tuple[list[torch.Tensor], float, float]:
        """The residuals |ψ − w| of ψ with coefficients c at the particles of each sample [n]; the sum of their squares;
        and the number of particles of all ranks whose residual is larger than ``limit``.

        Args:
            samples: as in :meth:`normal`.
        """

        def sums(missed: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            square = self.sums.products((share * missed)[:, None], missed[:, None])
            return [square[0, 0], (missed > limit).sum().double()]

        network = self.control.network
        if network.on_gpu and network.in_use:
            parts = tuple(len(z) for z, *_ in samples)
            z, wanted, share = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*samples, strict=True))
            found, local = network.missed(z, self._terms(share, parts), wanted, c, limit)
            square, far = self.sums.over_ranks(local, [(), ()])
            return list(found.split(parts)), float(square), float(far)
        of_each = []
        for z, wanted, _ in samples:
            pieces = passes(len(wanted), self.sums.at_once)
            of_each.append(
                torch.cat([(self.control.values(z[rows], c[None])[0] - wanted[rows]).abs() for rows in pieces])
            )
        shares = [share.double() for *_, share in samples]
        square, far = self.sums.summed(sums, list(zip(of_each, shares, strict=True)))
        return of_each, float(square), float(far)

    def _terms(self, share: torch.Tensor, parts: tuple[int, ...]) -> Terms:
        return Terms(share.double(), self.sums.together, MOMENTS_UNIT, samples=parts)

    def derivatives(self, samples: Sequence[Rows]) -> FieldAverages:
        """Averages over some particles.

        Args:
            samples: of each sample z and shares [n].
        """
        axes, number = self.control.velocity_dims, len(self.control.coefficients)

        def native(network: Network, terms: Terms, z: torch.Tensor) -> np.ndarray:
            return network.derivatives(z, terms)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            first, second = (part.double() for part in self.control.derivatives(z))
            share = share.double()[:, None, None]
            # the mixed derivatives
            twice = torch.tensor([1.0] * axes + [2.0] * (second.shape[1] - axes), device=z.device)
            bending = self.sums.products(share * twice[:, None] * second, second)
            laplacian = self.sums.products(share, second[:, :axes].sum(1, keepdim=True))
            gram = self.sums.products(share * first, first)
            return [gram, bending, laplacian[0], self.sums.products(share, torch.ones_like(share))[0]]

        shapes = [(number, number), (number, number), (number,), (1,)]
        gram, bending, laplacian, (mass,) = self._summed(native, sums, samples, shapes)
        return FieldAverages(gram / mass, bending / mass, laplacian / mass, float(mass))

    def barrier(self, samples: Sequence[Rows], k: np.ndarray, step: float) -> tuple[np.ndarray, float]:
        """Σ tr (I + h ∇v u)⁻¹∇∇g [M] and Σ log det(I + h ∇v u), for the field u with coefficients k. The log det is −∞
        if the map reverses orientation at some particle.

        Args:
            samples: of each sample z and shares [n].
        """
        coefficients = torch.from_numpy(k).to(self.control.coefficients)

        def native(network: Network, terms: Terms, z: torch.Tensor) -> np.ndarray:
            return network.barrier(z, terms, coefficients, step)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            second, share = self.control.derivatives(z)[1].double(), share.double()
            matrix = linear_part(self.control.matrix(combined(second, coefficients)), step)
            det = determinant(matrix)
            turned = ~(det > 0)
            matrix[turned] = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
            log_det = torch.log(torch.where(turned, 1.0, det))
            inverse = 1 / matrix if matrix.shape[1] == 1 else torch.linalg.inv(matrix)
            later, earlier = self.control.pairs.to(z.device)
            weights = torch.where(later == earlier, 1.0, 2.0) * inverse[:, later, earlier]
            pull = self.sums.products((share[:, None] * weights)[:, :, None], second)
            total = self.sums.products(share[:, None, None], log_det[:, None, None])
            return [pull[0], total[0], turned.sum()[None].double()]

        pull, (log_det,), (turned,) = self._summed(native, sums, samples, [(len(k),), (1,), (1,)])
        return pull, -np.inf if turned > 0 else float(log_det)

    def of_velocity(self, samples: Sequence[Rows] | Iterator[Joined], coefficients: np.ndarray) -> VelocitySums:
        """The sums that tie ψ to a sample.

        Args:
            samples: of each sample z and shares [n]. Native kernels also take joined samples.
            coefficients: of Φ.
        """
        axes, of_box = self.control.velocity_dims, 2 * len(self.control.periods or ())  # inputs of a periodic x
        at = torch.from_numpy(self.control.of_velocity - self.control.width).to(self.control.coefficients.device)
        c = torch.from_numpy(coefficients).to(self.control.coefficients)
        number, places = len(at), self.control.layers[0].in_features - of_box + 1

        def native(network: Network, terms: Terms, z: torch.Tensor) -> np.ndarray:
            return network.tied(z, terms, c)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            first, second = (part[..., at] for part in self.control.monomial_derivatives(z.double()))
            share, v = share.double()[:, None, None], z[:, -axes:].double()
            others = [v[..., None], self.control.slopes(z, c[None])[0][0].double()[..., None]]
            gram = self.sums.products(share * first, torch.cat([first, *others], dim=2))
            laplacian = self.sums.products(share, second[:, :axes].sum(1, keepdim=True))[0]
            one = torch.ones_like(share[:, 0])
            own = torch.cat([self.control.velocity_monomials(z.double()), one], dim=1)
            y = torch.cat([z.double()[:, of_box:], one], dim=1)
            moments = self.sums.products(share[:, 0] * y, y)
            return [gram, laplacian, self.sums.products(share[:, 0], own)[0], moments]

        shapes = [(number, number + 2), (number,), (number + 1,), (places, places)]
        products, laplacian, (*mean, mass), moments = self._summed(native, sums, samples, shapes)
        gram, drag, along = products[:, :-2], products[:, -2], products[:, -1]
        return VelocitySums(gram, drag, along, laplacian, np.array(mean), float(mass), moments)

    def _summed(
        self,
        native: Callable[..., np.ndarray],
        function: Callable[..., list[torch.Tensor]],
        samples: Sequence[Rows] | Iterator[Joined],
        shapes: Sequence[tuple[int, ...]],
    ) -> list[np.ndarray]:
        """Sums of the given shapes. ``native`` returns them as flat arrays for joined samples, and ``function`` as
        tensors for some rows of a sample.
        """
        network = self.control.network
        if not isinstance(samples, Iterator):
            if not network.in_use:
                return self.sums.summed(function, samples)
            samples = self._joined(samples)
        total: Any = 0.0
        for group in samples:
            *columns, share = group.rows
            total = total + native(network, self._terms(share, group.counts), *columns)
        return self.sums.over_ranks(total, shapes)

    def _joined(self, samples: Sequence[Rows]) -> Iterator[Joined]:
        """Consecutive samples, joined as far as a kernel takes them at once."""
        counts = [len(share) for *_, share in samples]
        first = 0
        for last in range(1, len(samples) + 1):
            if last == len(samples) or sum(counts[first : last + 1]) > self.at_once:
                some = samples[first:last]
                rows = some[0] if len(some) == 1 else tuple(torch.cat(part) for part in zip(*some, strict=True))
                yield Joined(rows, tuple(counts[first:last]))
                first = last
