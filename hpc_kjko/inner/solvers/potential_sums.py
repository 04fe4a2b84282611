"""Sums over the particles of all ranks of products of a potential's functions and their derivatives.

Native kernels make them where there are any, else torch. Either way pieces of particles are rounded before they are
added up, so the bits do not depend on the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

#: Inputs z [n, inputs] of some particles, then what belongs to each [n], the share last.
Rows = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class FieldAverages:
    """What the functional is made of, of the functions that depend on v: averages over some particles.

    Attributes:
        gram: E[∇g·∇g] [M, M]; bending: E[∇∇g : ∇∇g] [M, M].
        laplacian: E[Δg] [M].
        mass: the part of the whole mass that these particles have.
    """

    gram: np.ndarray
    bending: np.ndarray
    laplacian: np.ndarray
    mass: float


@dataclass(frozen=True)
class VelocitySums:
    """What ties ψ to a sample: sums over its particles, of Φ's L functions m of v alone.

    Attributes:
        gram: Σ ∇m·∇m [L, L]; drag: Σ ∇m·v [L]; along: Σ ∇m·∇Φ [L].
        laplacian: Σ Δm [L].
        mean: Σ m [L]; mass: Σ 1.
        moments: Σ y yᵀ [Y, Y], where y is x outside a box, v, and 1.
    """

    gram: np.ndarray
    drag: np.ndarray
    along: np.ndarray
    laplacian: np.ndarray
    mean: np.ndarray
    mass: float
    moments: np.ndarray


class PotentialSums:
    """All of these are collective.

    Args:
        sums: what adds up over ranks.
    """

    def __init__(self, control: PotentialField, sums: LeastSquares):
        self.control, self.sums = control, sums

    def normal(self, samples: Sequence[Rows]) -> np.ndarray:
        """Σ g gᵀ, and beside it Σ g w [M, M + 1], of ψ's functions and what is wanted.

        Args:
            samples: z, w [n], shares [n] of each.
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
        """By how much ψ with coefficients c misses what is wanted, at the particles of each sample [n]; Σ of its
        square; how many particles of all ranks it misses by more than a limit.

        Args:
            samples: as of :meth:`normal`.
        """

        def sums(missed: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            square = self.sums.products((share * missed)[:, None], missed[:, None])
            return [square[0, 0], (missed > limit).sum().double()]

        network = self.control.network
        if network.joins:
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
            samples: z, shares [n] of each.
        """
        axes, number = self.control.velocity_dims, len(self.control.coefficients)

        def native(network: Network, terms: Terms, z: torch.Tensor) -> np.ndarray:
            return network.derivatives(z, terms)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            first, second = (part.double() for part in self.control.derivatives(z))
            share = share.double()[:, None, None]
            twice = torch.tensor([1.0] * axes + [2.0] * (second.shape[1] - axes), device=z.device)  # the mixed ones
            bending = self.sums.products(share * twice[:, None] * second, second)
            laplacian = self.sums.products(share, second[:, :axes].sum(1, keepdim=True))
            gram = self.sums.products(share * first, first)
            return [gram, bending, laplacian[0], self.sums.products(share, torch.ones_like(share))[0]]

        shapes = [(number, number), (number, number), (number,), (1,)]
        gram, bending, laplacian, (mass,) = self._summed(native, sums, samples, shapes)
        return FieldAverages(gram / mass, bending / mass, laplacian / mass, float(mass))

    def barrier(self, samples: Sequence[Rows], k: np.ndarray, step: float) -> tuple[np.ndarray, float]:
        """Σ tr (I + h ∇v u)⁻¹∇∇g [M] and Σ log det(I + h ∇v u) of the field of k: the latter −∞ where the map turns
        orientation at some particle.

        Args:
            samples: z, shares [n] of each.
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

    def of_velocity(
        self, samples: Sequence[Rows], coefficients: np.ndarray, parts: tuple[int, ...] = ()
    ) -> VelocitySums:
        """What ties ψ to a sample.

        Args:
            samples: z, shares [n] of each.
            coefficients: of Φ.
            parts: where the one sample is several that were joined, how many particles each has.
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
        products, laplacian, (*mean, mass), moments = self._summed(native, sums, samples, shapes, parts)
        gram, drag, along = products[:, :-2], products[:, -2], products[:, -1]
        return VelocitySums(gram, drag, along, laplacian, np.array(mean), float(mass), moments)

    def _summed(
        self,
        native: Callable[..., np.ndarray],
        function: Callable[..., list[torch.Tensor]],
        samples: Sequence[Rows],
        shapes: Sequence[tuple[int, ...]],
        parts: tuple[int, ...] = (),
    ) -> list[np.ndarray]:
        """Sums of such shapes: by ``native``, flat, or as tensors by ``function``, of each sample or of some rows of
        it. A GPU sums all samples at once."""
        network = self.control.network
        if not all(network.takes(z) for z, *_ in samples):
            return self.sums.summed(function, samples)
        if len(samples) > 1 and network.joins:
            parts = tuple(len(z) for z, *_ in samples)
            samples = [tuple(torch.cat(part) for part in zip(*samples, strict=True))]
        given: Any = (native(network, self._terms(share, parts), *sample) for *sample, share in samples)
        return self.sums.over_ranks(sum(given), shapes)
