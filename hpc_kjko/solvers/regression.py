"""The control field from the log-density that the particles carry: a regression, then the functional in closed form.

With ψ fitted to the carried log f, Stein's identity E[∇v·u] = −E[u·∇v log f] takes the noise of positions out of the
linear part of the functional: for every u that is a gradient of the functions g,

    J(u)/h = mean[ ½ a |u|² + (v + T ∇v ψ̄)·u − (T/h) log det(I + h ∇v u) + T ∇v·u ],    a = 1/κ + h

has the expectation of the JKO functional if ∇v ψ̄ = ∇v log f. What is left of sampling noise is of the order h |∇v u|².

ψ̄ is ψ corrected by monomials of v alone so that on their gradients the functional is the plain one, of the sample
itself (implicit score matching, A. Hyvärinen, J. Mach. Learn. Res. 6 (2005) 695): nothing else ties the
sample's moments to ψ, and temperature would drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.comm import Communicator
from hpc_kjko.control import determinant
from hpc_kjko.errors import SolverFailure
from hpc_kjko.exact import MOMENTS_UNIT, in_order, rounded
from hpc_kjko.objective import DensityObjective, linear_part
from hpc_kjko.particles import passes
from hpc_kjko.potential import combined
from hpc_kjko.solvers.base import Sample, Solver, TrainingData

#: For the conditioning of normal equations, in units of their diagonal: the data have no noise. And what rounding may
#: leave in sums.
RIDGE, ROUNDING = 1e-8, 1e-10
#: A log f that a fit misses by more than this is an outlier to it. Its weight falls with the square of the distance.
OUTLYING = 0.5
#: Newton's method has converged when a step changes u by less than this part of it, in mean square.
CONVERGED = 1e-4
MAX_NEWTON, MAX_REWEIGHTED = 20, 4


@dataclass(frozen=True)
class Sums:
    """What the functional is made of, of the functions that depend on v: sums over the sample.

    Attributes:
        gram: E[∇g·∇g] [M, M]; bending: E[∇∇g : ∇∇g] [M, M].
        drag: E[v·∇g] [M]; laplacian: E[Δg] [M].
    """

    gram: np.ndarray
    bending: np.ndarray
    drag: np.ndarray
    laplacian: np.ndarray


class RegressionSolver(Solver):
    """Fits ψ to the carried log f, then finds the minimiser of the functional among the gradients of ψ's functions.

    The hidden layers take some of Adam's steps on the mean of (ψ − log f)², each on another batch of the particles, at
    the c that is best for that batch: log f is exact at every particle, so a part of them tells as much as all do.
    Then c is solved for on all fitted particles, with little weight for those whose log f is far off, and k, the
    coefficients of Φ, by Newton's method.
    """

    def __init__(
        self,
        objective: DensityObjective,
        comm: Communicator,
        *,
        iterations: int,
        first_iterations: int,
        learning_rate: float,
    ):
        self.comm, self.control = comm, objective.control
        self.temperature, self.collision_strength = objective.temperature, objective.collision_strength
        self.iterations, self.first_iterations = iterations, first_iterations
        self._own, self._density = objective, objective
        self._objective = comm.distribute(objective)
        self._parameters = dict(self.control.named_parameters())
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=learning_rate, fused=True)
        #: Whether the last step used ψ.
        self.trusted = True
        #: c of ψ + ½|v|²/T, which is what is fitted: near equilibrium it is a constant. And that of ψ̄, of the functions
        #: of v.
        self.density, self.corrected = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)

    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        made, self.trusted = 0, not stiffer
        if self.trusted:
            wanted = [self._wanted(fold) for fold in data.folds]
            made = self.first_iterations if self.is_cold else self.iterations
            self._train(data, wanted, made)
            self.density, *_ = self._best_density(
                [(fold.z, log_f, fold.share) for fold, log_f in zip(data.folds, wanted, strict=True)]
            )
        return made + self._fit_field(data.folds, step, low_order_only=not self.trusted)

    @torch.no_grad()
    def log_density(self, z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """ψ [n] at inputs z and velocities v; float64."""
        return combined(self.control.functions(z).double(), self.density) - self._energy(v)

    @torch.no_grad()
    def score(self, z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """∇v ψ̄ [n, dv] at inputs z and velocities v; float64."""
        return combined(self.control.derivatives(z)[0].double(), self.corrected) - v.double() / self.temperature

    def _energy(self, v: torch.Tensor) -> torch.Tensor:
        """½|v|²/T [n], float64."""
        return 0.5 * (v.double() ** 2).sum(1) / self.temperature

    def state(self) -> dict[str, np.ndarray]:
        found = {"density": self.density, "field": self.control.coefficients}
        return {**super().state(), **{name: tensor.cpu().numpy().copy() for name, tensor in found.items()}}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        super().load(arrays)
        self.density = torch.from_numpy(np.array(arrays["density"])).to(self.control.coefficients)
        self.control.coefficients.copy_(torch.from_numpy(np.array(arrays["field"])))

    # -- the density -------------------------------------------------------------------------------------------------

    def _wanted(self, sample: Sample) -> torch.Tensor:
        """log f + ½|v|²/T [n], float64."""
        assert sample.log_f is not None
        return sample.log_f + self._energy(sample.v)

    def _train(self, data: TrainingData, wanted: list[torch.Tensor], iterations: int) -> None:
        """Adam's steps on the hidden layers, each on a batch."""
        before, width = self.steps_made, self.control.width
        for k in range(before, before + iterations):
            number = k % len(data.folds)
            z, log_f = data.folds[number].z, wanted[number]
            c, (share,), mass = self._best_density([(z, log_f, data.folds[number].share)])
            if not mass > 0:  # a batch of few particles, all elsewhere
                continue
            self._density.coefficients = c[:width]
            left = log_f - combined(self.control.monomials(z).double(), c[width:])
            # by a whole number: the gradient stays a multiple of the unit that sums are rounded to
            self._backward([Sample(z, left.to(z)[:, None], share)], 0.0, factor=len(data.folds))
            self._optimizer.step()

    @torch.no_grad()
    def _best_density(
        self, samples: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[torch.Tensor], float]:
        """The c of least squares over some particles, again and again while outliers pull at it.

        Args:
            samples: z, what is wanted [n], and shares [n].

        Returns:
            c; the shares that it was found with, smaller where an earlier one missed by more than OUTLYING; their sum
            over all ranks.
        """
        trusted = [share for *_, share in samples]
        for attempt in range(MAX_REWEIGHTED):
            gram, load = self._summed(
                self._density_sums, [(z, wanted, share) for (z, wanted, _), share in zip(samples, trusted, strict=True)]
            )
            c = torch.from_numpy(self._solved(gram, load)).to(self.control.coefficients)
            missed = [self._missed(c, z, wanted) for z, wanted, _ in samples]
            outliers = any(bool((part > OUTLYING).any()) for part in missed)
            if not self.comm.any(outliers) or attempt == MAX_REWEIGHTED - 1:
                break
            trusted = [
                share * (OUTLYING / part.clamp(min=OUTLYING)).square().to(share)
                for (*_, share), part in zip(samples, missed, strict=True)
            ]
        return c, trusted, float(gram[-1, -1])

    def _missed(self, c: torch.Tensor, z: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        pieces = passes(len(z), self._own.together)
        with in_order(self._own.together):
            fitted = [combined(self.control.functions(z[rows]).double(), c) for rows in pieces]
        return (torch.cat(fitted) - wanted).abs()

    def _density_sums(self, z: torch.Tensor, log_f: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        g = self.control.functions(z).double()
        weighted = share.double()[:, None] * g
        return [weighted.T @ g, weighted.T @ log_f]

    # -- the field ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fit_field(self, samples: list[Sample], step: float, low_order_only: bool) -> int:
        """Set k, the coefficients of Φ, to the minimiser; returns the number of passes over the particles.

        Args:
            low_order_only: leave ψ out, so that the functional is that of the sample alone, on gradients of monomials.
        """
        sums = Sums(*self._summed(self._field_sums, [(sample.z, sample.v, sample.share) for sample in samples]))
        corrected = self._corrected(sums, low_order_only)
        self.corrected = torch.from_numpy(corrected).to(self.control.coefficients)
        a = 1 / self.collision_strength + step
        force = self.temperature * (sums.gram @ corrected + sums.laplacian)
        hessian = a * sums.gram + step * self.temperature * sums.bending
        free = np.full(len(corrected), not low_order_only)
        free[self.control.of_velocity] = True
        k, lowest, made = np.zeros_like(corrected), 0.0, 1  # u ≡ 0, where J is 0
        change = -self.temperature / a * corrected  # to the minimiser of J without what is of order h in it
        for _ in range(MAX_NEWTON):
            pull, log_det = self._pull(samples, k + change, step)
            made += 1
            trial = k + change
            value = 0.5 * a * trial @ sums.gram @ trial + trial @ force - self.temperature / step * log_det
            if not np.isfinite(trial).all():
                raise SolverFailure("the objective is no longer finite: reduce time.step or method.learning_rate")
            if not self.comm.bcast(bool(value <= lowest + ROUNDING * self.temperature / step)):
                change = 0.5 * change
                continue
            k, lowest = trial, value
            gradient = a * sums.gram @ k + force - self.temperature * pull
            change = np.zeros_like(k)
            change[free] = -self._solved(hessian[np.ix_(free, free)], gradient[free])
            if self.comm.bcast(bool(change @ sums.gram @ change <= CONVERGED**2 * (k @ sums.gram @ k))):
                break
        self.comm.bcast_array(k)
        self.control.coefficients.copy_(torch.from_numpy(k))
        return made

    def _corrected(self, sums: Sums, low_order_only: bool) -> np.ndarray:
        """The coefficients of ψ̄ + ½|v|²/T: E[∇m·∇ψ̄] = −E[Δm] for every monomial m of v alone."""
        known = self.density[: self.control.with_velocity].cpu().numpy().copy()
        if low_order_only:
            known[:] = 0.0
        low = self.control.of_velocity
        missed = sums.drag[low] / self.temperature - sums.laplacian[low] - sums.gram[low] @ known
        known[low] += self._solved(sums.gram[low, low], missed)
        return known

    def _field_sums(self, z: torch.Tensor, v: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        first, second = (part.double() for part in self.control.derivatives(z))
        share = share.double()
        along, bent = first.flatten(0, 1), second.flatten(0, 2)
        dv = self.control.velocity_dims
        weighted = share.repeat_interleave(dv)[:, None] * along
        bending = (share.repeat_interleave(dv * dv)[:, None] * bent).T @ bent
        laplacian = share @ second.diagonal(dim1=1, dim2=2).sum(2)
        return [weighted.T @ along, bending, weighted.T @ v.double().flatten(), laplacian]

    def _pull(self, samples: list[Sample], k: np.ndarray, step: float) -> tuple[np.ndarray, float]:
        """E[tr (I + h ∇v u)⁻¹ ∇∇g] [M] and E[log det(I + h ∇v u)] at the field of k: the latter −∞ where the map turns
        orientation at some particle."""
        coefficients = torch.from_numpy(k).to(self.control.coefficients)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            second, share = self.control.derivatives(z)[1].double(), share.double()
            matrix = linear_part(combined(second, coefficients), step)
            det = determinant(matrix)
            turned = ~(det > 0)
            matrix[turned] = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=z.device)
            log_det = (share * torch.log(torch.where(turned, 1.0, det))).sum()
            if matrix.shape[1] == 1:
                pull = (share / matrix[:, 0, 0]) @ second[:, 0, 0]
            else:
                pull = (share[:, None, None] * torch.linalg.inv(matrix)).flatten() @ second.flatten(0, 2)
            return [pull, log_det[None], turned.sum()[None].double()]

        pull, log_det, turned = self._summed(sums, [(sample.z, sample.share) for sample in samples])
        return pull, -np.inf if turned[0] > 0 else float(log_det[0])

    # -- sums --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _summed(
        self, function: Callable[..., list[torch.Tensor]], samples: Sequence[tuple[torch.Tensor, ...]]
    ) -> list[np.ndarray]:
        """Sums over the particles of all ranks, of what ``function`` returns for some of the rows. Collective."""
        total: list[torch.Tensor] = []
        with in_order(self._own.together):
            for sample in samples:
                for rows in passes(len(sample[0]), self._own.together):
                    found = [rounded(part, MOMENTS_UNIT) for part in function(*(tensor[rows] for tensor in sample))]
                    total = [one + other for one, other in zip(total, found, strict=True)] if total else found
        summed = self.comm.sum(torch.cat([part.flatten() for part in total]).cpu().numpy())
        edges = np.cumsum([part.numel() for part in total])[:-1]
        return [part.reshape(like.shape) for part, like in zip(np.split(summed, edges), total, strict=True)]

    def _solved(self, matrix: np.ndarray, load: np.ndarray) -> np.ndarray:
        """The solution of normal equations, the same on all ranks. Collective."""
        unit = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
        scaled = matrix / unit[:, None] / unit + np.diag(RIDGE + ROUNDING / unit**2)
        if not np.isfinite(scaled).all():
            raise SolverFailure("log f or a velocity is no longer finite: reduce time.step")
        solution = np.linalg.solve(scaled, load / unit) / unit
        self.comm.bcast_array(solution)  # last bits may differ between machines
        return solution
