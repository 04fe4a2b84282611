"""The control field from the log-density that the particles carry: a regression, then the functional in closed form.

ψ is fitted to the carried log f. Then Stein's identity E[∇v·u] = −E[u·∇v log f] removes the noise of the positions from
the linear part of the functional. For every u that is a gradient of the functions g,

    J(u)/h = mean[ ½ a |u|² + (v + T ∇v ψ̄)·u − (T/h) log det(I + h ∇v u) + T ∇v·u ],    a = 1/κ + h

has the expectation of the JKO functional if ∇v ψ̄ = ∇v log f. The remaining sampling noise is of order h |∇v u|².

ψ̄ is ψ tied to the sample (:mod:`~hpc_kjko.inner.solvers.density`).
"""

from __future__ import annotations

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.solvers.base import Sample, Solver, TrainingData
from hpc_kjko.inner.solvers.density import FittedDensity
from hpc_kjko.inner.solvers.least_squares import ROUNDING, LeastSquares
from hpc_kjko.inner.solvers.potential_sums import FieldAverages, PotentialSums
from hpc_kjko.inner.solvers.trainer import arrays_of
from hpc_kjko.parallel.comm import Communicator

#: Newton's method ends with the step that changes u by less than this fraction, in mean square.
CONVERGED = 1e-3
MAX_NEWTON = 20
#: The weight of E|∇v∇v (ψ + ½|v|²/T)|² beside the squared residuals is T² times the smaller of two numbers: the first
#: number times (κ h')², where h' is the step of the functional, and the second number. For the field u along that
#: gradient, the penalty is this fraction of E|h' ∇v u|². Diffusion removes all structure of log f that is narrower than
#: √(κh'T). Narrower structure is roughness, and would grow. The fit keeps the fraction 1/(1 + 0.1 (κh'T p²)²) of a mode
#: p, which is an error of the order of the error of the step.
BENT, MOST_BENT = 0.1, 0.004
#: c and k use at most this many batches, and other batches in every step. That is enough, because log f has no noise.
#: The averages that tie ψ̄ to the sample use all particles.
FITTED_BATCHES = 16


class RegressionSolver(Solver):
    """Fits ψ to the carried log f. Then finds the minimiser of the functional among the gradients of the functions of
    ψ.

    The hidden layers are trained by some Adam steps on the mean of (ψ − log f)². Each step uses another batch of the
    particles, with the c that is best for this batch. A batch is enough, because log f is exact at every particle. Then
    c is solved for on all fitted particles, with a small weight for outliers. Last, Newton's method finds k, the
    coefficients of Φ.
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
        self.operator = objective.operator
        self.iterations, self.first_iterations = iterations, first_iterations
        self.sums = LeastSquares(comm, objective.together, objective.trained[0].device)
        self.of_potential = PotentialSums(self.control, self.sums)
        self.fitted = FittedDensity(objective, comm, self.sums, learning_rate)
        #: The number of fits made so far. It determines on which batches c and k are solved for.
        self._turn = 0

    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        made, samples, averages = self.fit_density(data, step, stiffer)
        return made + self._fit_field(samples, averages, step)

    def fit_density(
        self, data: TrainingData, step: float, stiffer: int = 0, again: bool = False
    ) -> tuple[int, list[Sample], FieldAverages]:
        """Fit ψ and tie ψ̄ to the sample, as :meth:`minimise` does before it finds the field. Collective.

        Args:
            data, step, stiffer: as in :meth:`minimise`.
            again: whether this is a further fit in the same step. It uses the batches of the first fit.

        Returns:
            The number of iterations, the samples on which c was solved for, and averages over them.

        Raises:
            SolverFailure: as in :meth:`minimise`.
        """
        made, self.fitted.trusted = 0, not stiffer
        self._turn += self.fitted.trusted and not again
        if self.fitted.trusted:
            iterations = self.first_iterations if self.fitted.trainer.is_cold else self.iterations
            made = self.fitted.train(data, iterations)
        chosen = self.chosen(len(data.folds))
        samples = [data.folds[k] for k in chosen]
        averages = self.of_potential.derivatives([(sample.z, sample.share) for sample in samples])
        if self.fitted.trusted:
            bent = min(BENT * (self.operator.collision_strength * step) ** 2, MOST_BENT)
            of_v = slice(0, self.control.shared)
            penalty = bent * self.operator.temperature**2 * averages.bending[of_v, of_v]
            self.fitted.solve(samples, penalty)
        self.fitted.tie(data.everything)
        return made, samples, averages

    def chosen(self, number: int) -> list[int]:
        """The batches on which c and k are solved for in this step: the next ones in turn."""
        return [(self._turn * FITTED_BATCHES + k) % number for k in range(min(number, FITTED_BATCHES))]

    def state(self) -> dict[str, np.ndarray]:
        found = {"regression/density": self.fitted.coefficients, "regression/field": self.control.coefficients}
        arrays = arrays_of({**self.fitted.trainer.tensors(), **found})
        return {**arrays, "regression/turn": np.array(self._turn)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.fitted.trainer.load(arrays)
        self._turn = int(arrays["regression/turn"])
        density = torch.from_numpy(np.array(arrays["regression/density"]))
        self.fitted.coefficients = density.to(self.control.coefficients)
        self.control.coefficients.copy_(torch.from_numpy(np.array(arrays["regression/field"])))

    @torch.no_grad()
    def _fit_field(self, samples: list[Sample], sums: FieldAverages, step: float) -> int:
        """Set k, the coefficients of Φ, to the minimiser; returns the number of passes over the particles.

        If ψ is not trusted, u is a gradient of monomials of v alone.
        """
        mass, corrected = sums.mass, self.fitted.corrected.cpu().numpy()
        rows = [(sample.z, sample.share) for sample in samples]
        a = 1 / self.operator.collision_strength + step
        force = self.operator.temperature * (sums.gram @ corrected + sums.laplacian)
        hessian = a * sums.gram + step * self.operator.temperature * sums.bending
        free = np.full(len(corrected), self.fitted.trusted)
        free[self.control.of_velocity] = True

        def newton(gradient: np.ndarray) -> np.ndarray:
            change = np.zeros_like(gradient)
            change[free] = -self.sums.solved(hessian[np.ix_(free, free)], gradient[free])
            return change

        # Start from u ≡ 0: J is 0 there, and its gradient needs no pass over the particles.
        k, lowest, made = np.zeros_like(corrected), 0.0, 1
        change = newton(force - self.operator.temperature * sums.laplacian)
        for _ in range(MAX_NEWTON):
            if not np.isfinite(change).all():
                raise SolverFailure("the objective is no longer finite: reduce time.step or method.learning_rate")
            trial = k + change
            if self.comm.bcast(bool(change @ sums.gram @ change <= CONVERGED**2 * (k @ sums.gram @ k))):
                k = trial  # the remaining error is smaller than this step by a factor h |∇v u|
                break
            pull, log_det = (part / mass for part in self.of_potential.barrier(rows, trial, step))
            made += 1
            value = 0.5 * a * trial @ sums.gram @ trial + trial @ force - self.operator.temperature / step * log_det
            if not self.comm.bcast(bool(value <= lowest + ROUNDING * self.operator.temperature / step)):
                change = 0.5 * change
                continue
            k, lowest = trial, value
            change = newton(a * sums.gram @ k + force - self.operator.temperature * pull)
        self.comm.bcast_array(k)
        self.control.coefficients.copy_(torch.from_numpy(k))
        return made
