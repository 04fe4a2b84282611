"""The field of a step in which each particle has its own metric. The components have their own coefficients, so the
field is not a gradient.

The particles move by y = h u. With known metrics M_i and known forces F_i, u minimises

    J(u)/h = mean[ ½ uᵀ M u + F·u + ∇v·u − (1/h) log det(I + h S) ],    S = ½ (∇v u + (∇v u)ᵀ)

over all u_k = Σ_m c_km g_m(x, v) + α V_k(x, v). Here g are the functions of the fitted log-density, and V is a further
field that is known with its Jacobian. If F contains ∇v ψ̄ of the density before the step, Stein's identity E[∇v·u] =
−E[u·∇v ψ̄] has removed the sampling noise from the part that is linear in u.

If I + h S is positive definite, det(I + h ∇v u) ≥ det(I + h S) (A. M. Ostrowski, O. Taussky, Indag. Math. 13 (1951)
383). So J is an upper bound of the functional with the determinant of the map. Both are equal if ∇v u is symmetric. J
is convex and the other functional is not. So J has one minimum, and the other functional is also lower there than at u
= 0. The two differ by terms of second order in h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import linear_part
from hpc_kjko.inner.potential import PotentialField, combined
from hpc_kjko.inner.solvers.base import Rows
from hpc_kjko.inner.solvers.least_squares import ROUNDING, LeastSquares
from hpc_kjko.parallel.comm import Communicator

#: Newton's method ends with the step that changes u by less than this fraction, in mean square.
CONVERGED = 1e-3
MAX_NEWTON = 40


@dataclass(frozen=True)
class Steered:
    """Some particles with the metric and the force that act on them.

    Attributes:
        z: inputs of the functions g [n, inputs].
        metric: M [n, d, d]; force: F [n, d].
        known, slope: V [n, d] and ∂V_k/∂v_l [n, d, d].
        share: the fraction of the total mass of the sample that each particle has [n].
    """

    z: torch.Tensor
    metric: torch.Tensor
    force: torch.Tensor
    known: torch.Tensor
    slope: torch.Tensor
    share: torch.Tensor


class FreeField:
    """u with its coefficients.

    Attributes:
        coefficients: c of each component, then α [d M + 1], float64.
    """

    def __init__(self, control: PotentialField, comm: Communicator, sums: LeastSquares):
        self.control, self.comm, self.sums = control, comm, sums
        self.coefficients = np.zeros(0)

    @property
    def _dims(self) -> int:
        return self.control.velocity_dims

    def slopes(self, z: torch.Tensor) -> torch.Tensor:
        """∂g/∂v_j [n, d, M], float64. Functions of x alone come last; their derivatives are 0."""
        along = self.control.first_derivatives(z)[..., : self.control.shared].double()
        return nn.functional.pad(along, (0, self.control.of_density - self.control.shared))

    @torch.no_grad()
    def at(self, z: torch.Tensor, known: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u [n, d] and ∂u_k/∂v_l [n, d, d] at inputs z, from V and its Jacobian there; float64."""
        coefficients = torch.from_numpy(self.coefficients).to(z.device)
        c, alpha = coefficients[:-1].view(self._dims, -1), coefficients[-1]
        u = self.control.values(z, c).T
        of_potential = nn.functional.pad(c[:, : self.control.shared], (0, 2 * self._dims))
        jacobian = self.control.slopes(z, of_potential)[0].transpose(0, 1).double()
        return u + alpha * known, jacobian + alpha * slope

    @torch.no_grad()
    def minimise(self, samples: Sequence[Steered], step: float, unit: float) -> tuple[int, float]:
        """Set the coefficients to the minimiser. Returns the number of passes over the particles, and J. Collective.

        Args:
            step: h.
            unit: metrics and forces are multiplied by it, so that sums over particles are of order 1.

        Raises:
            SolverFailure: on every rank.
        """
        parts = [tuple(vars(sample).values()) for sample in samples]
        gram, force, mass = self._averages(parts, unit)
        c, lowest, made = np.zeros_like(force), 0.0, 2
        _, divergence, bent = self._barrier(parts, c, step, unit, mass)
        load = force + divergence
        change = -self.sums.solved(gram + bent, force)
        for _ in range(MAX_NEWTON):
            if not np.isfinite(change).all():
                raise SolverFailure("the objective is no longer finite: reduce time.step or method.learning_rate")
            trial = c + change
            if self.comm.bcast(bool(change @ gram @ change <= CONVERGED**2 * (c @ gram @ c))):
                c = trial  # the remaining error is smaller than this step by a factor h |∇v u|
                break
            log_det, pull, bent = self._barrier(parts, trial, step, unit, mass)
            made += 1
            value = 0.5 * trial @ gram @ trial + trial @ load - log_det
            if not self.comm.bcast(bool(value <= lowest + ROUNDING * unit / step)):
                change = 0.5 * change
                continue
            c, lowest = trial, float(value)
            change = -self.sums.solved(gram + bent, gram @ c + load - pull)
        self.comm.bcast_array(c)
        self.coefficients = c
        return made, step / unit * lowest

    def _assembled(self, blocks: np.ndarray, last: np.ndarray) -> np.ndarray:
        """A quadratic form [d M + 1, d M + 1] from its matrix blocks k ≤ m [pairs, M, M] and its last row."""
        dims, number = self._dims, blocks.shape[1]
        whole = np.zeros((dims, number, dims, number))
        for block, (k, m) in zip(blocks, _upper(dims), strict=True):
            whole[k, :, m], whole[m, :, k] = block, block.T
        form = np.zeros((dims * number + 1, dims * number + 1))
        form[:-1, :-1] = whole.reshape(dims * number, -1)
        form[-1], form[:, -1] = last, last
        return form

    def _averages(self, parts: Sequence[Rows], unit: float) -> tuple[np.ndarray, np.ndarray, float]:
        """E[u M u] as a quadratic form of the coefficients and E[F·u] as a linear form, both times ``unit``; and the
        mass of these particles.
        """

        def sums(*rows: torch.Tensor) -> list[torch.Tensor]:
            z, metric, force, known, _, share = rows
            functions, share = self.control.functions(z).double(), share.double()[:, None]
            weight, pulled = unit * share, (metric @ known[..., None])[..., 0]
            blocks = [
                self.sums.products(weight * metric[:, k, m, None] * functions, functions) for k, m in _upper(self._dims)
            ]
            rest = []
            for vector in (force, pulled):
                rest.append(self.sums.products(weight * vector, functions).flatten())
                rest.append(self._total(weight[:, 0] * (vector * known).sum(1)))
            return [torch.stack(blocks), torch.cat(rest[:2]), torch.cat(rest[2:]), self._total(share[:, 0])]

        blocks, force, last, (mass,) = self.sums.summed(sums, parts)
        return self._assembled(blocks, last) / mass, force / mass, float(mass)

    def _barrier(
        self, parts: Sequence[Rows], c: np.ndarray, step: float, unit: float, mass: float
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """(1/h) E log det(I + h S) at coefficients c, its gradient, and minus its second derivative, all times
        ``unit``. The value is −∞ if I + h S is not positive definite at some particle.

        With B = (I + h S)⁻¹ the second derivative along the fields e_k g_m and e_l g_n is −½ h E[(B∇g_m)_l (B∇g_n)_k +
        B_kl ∇g_m·B∇g_n].
        """
        coefficients, dims = torch.from_numpy(c).to(self.control.coefficients), self._dims

        def sums(*rows: torch.Tensor) -> list[torch.Tensor]:
            z, _, _, _, slope, share = rows
            along, share = self.slopes(z), share.double()
            jacobian = torch.stack([combined(along, row) for row in coefficients[:-1].view(dims, -1)], dim=1)
            matrix = linear_part(symmetric(jacobian + coefficients[-1] * slope), step)
            lower, failed = torch.linalg.cholesky_ex(matrix)
            turned = failed != 0
            lower[turned] = torch.eye(dims, dtype=lower.dtype, device=lower.device)
            half = torch.linalg.inv(lower)
            inverse = half.mT @ half
            weight, pulled, halved = share[:, None, None], inverse @ along, half @ along
            blocks = []
            for k, m in _upper(dims):
                crossed = self.sums.products(weight * pulled[:, m : m + 1], pulled[:, k : k + 1])
                blocks.append(crossed + self.sums.products(weight * inverse[:, k, m, None, None] * halved, halved))
            own = symmetric(slope)
            between = inverse @ own @ inverse
            last = [self.sums.products(weight * between[:, k, :, None], along).flatten() for k in range(dims)]
            last.append(self._total(share * (between * own).sum((1, 2))))
            pull = [self.sums.products(share[:, None], pulled[:, k]).flatten() for k in range(dims)]
            pull.append(self._total(share * (inverse * own).sum((1, 2))))
            log_det = self._total(2 * share * lower.diagonal(dim1=1, dim2=2).log().sum(1))
            return [0.5 * torch.stack(blocks), torch.cat(last), torch.cat(pull), log_det, turned.sum()[None].double()]

        blocks, last, pull, (log_det,), (turned,) = self.sums.summed(sums, parts)
        value = -np.inf if turned > 0 else unit / (step * mass) * log_det
        return value, unit / mass * pull, unit * step / mass * self._assembled(blocks, last)

    def _total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over particles of values [n]: [1]."""
        return self.sums.products(values[:, None], torch.ones_like(values)[:, None])[0]


def symmetric(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric part of matrices [n, d, d]."""
    return 0.5 * (matrix + matrix.mT)


def _upper(dims: int) -> list[tuple[int, int]]:
    """The index pairs k ≤ m."""
    return [(k, m) for k in range(dims) for m in range(k, dims)]
