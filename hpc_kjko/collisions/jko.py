"""The deep kinetic JKO step: train the control field on the discrete JKO functional."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionSettings, StepStart
from hpc_kjko.collisions.controlled import Carried, ControlledCollision, Field
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import DensityObjective, JKOObjective
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers import RegressionSolver, solver_of
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.kernels.potential import Carry, Terms
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import FINE, UNIT, summed_finely
from hpc_kjko.particles.state import BLOCK, Particles, passes


class JKOCollision(ControlledCollision):
    """u is the minimiser of the JKO functional J (paper's eq. 18; arXiv:2603.23901).

    With ``method.order = 2`` the functional has h/2 and the particles move by h. This is the implicit midpoint rule,
    which may overshoot if the step is too long.

    With ``method.solver = "regression"`` u is a gradient, and J uses the log-density that the particles carry
    (:mod:`~hpc_kjko.inner.solvers.regression`). Structure of log f that is finer than the fitted ψ does not contribute
    to u. Nor do differences between the moments of ψ and those of ψ̄, which is tied to the sample. Without relaxation
    nothing would damp these parts of log f, as diffusion does. So log f relaxes towards ψ̄, by 1 − exp(−rκh) of the
    difference in a step.
    """

    promises_decay = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        super().__init__(settings, comm)
        problem, method = settings.problem, settings.method
        # the carried log f has already removed that noise
        if settings.control_variate and method.solver != "regression":
            self.variate = ControlVariate(self.temperature, comm)
        self.control: ControlField | PotentialField
        if method.solver == "regression":
            self.control = PotentialField(
                problem.torus,
                problem.space_dims,
                problem.velocity_dims,
                hidden=method.hidden,
                seed=settings.seed,
                dtype=self.dtype,
                device=comm.device,
            )
            self.chunk = min(self.chunk, self.control.at_once)
            density = DensityObjective(
                self.control,
                operator=self.operator,
                mass=problem.mass,
                lengths=problem.periods,
                together=self.together,
            )
            self._solver = solver_of(method, density, comm)
        else:
            self.control = self.control_field()
            objective = JKOObjective(self.control, operator=self.operator, logdet=self.logdet, together=self.together)
            self._solver = solver_of(method, objective, comm)
        self.fits_log_f, self.relaxation = isinstance(self._solver, RegressionSolver), method.relaxation

    def fit(self, particles: Particles, duration: float, start: StepStart, stiffer: int) -> int:
        data = self.training_data(self.control, particles, duration, start)
        return self._solver.minimise(data, duration / self.order, stiffer)

    def fit_density(self, particles: Particles, duration: float, start: StepStart, again: bool = False) -> int:
        """Fit ψ̄ to the log f of particles, without a control field; returns the number of iterations. Collective.

        Args:
            again: whether this is a further fit in the same step. It uses the batches of the first fit.
        """
        assert isinstance(self._solver, RegressionSolver)
        data = self.training_data(self.control, particles, duration, start)
        return self._solver.fit_density(data, duration / self.order, again=again)[0]

    def solved_on(self) -> list[torch.Tensor]:
        """The rows of the particles, by batches, on which the last fitted density was solved for."""
        assert isinstance(self._solver, RegressionSolver) and self._folds is not None
        order, edges, masses = self._folds
        if self.held_out and not masses[-1] > 0:
            return [torch.arange(len(order), device=order.device)]
        batches = len(masses) - self.held_out
        return [order[edges[number] : edges[number + 1]] for number in self._solver.chosen(batches)]

    @property
    def sums(self) -> LeastSquares:
        """Adds up over the particles of all ranks."""
        assert isinstance(self._solver, RegressionSolver)
        return self._solver.sums

    @torch.no_grad()
    def score(self, particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
        """s = ∇v ψ̄ [n, dv] and ∇v s [n, dv, dv] at particles."""
        assert isinstance(self._solver, RegressionSolver) and isinstance(self.control, PotentialField)
        corrected, dims = self._solver.fitted.corrected, particles.v.shape[1]
        score = torch.empty_like(particles.v)
        hessian = particles.v.new_empty(len(score), dims, dims)
        eye = torch.eye(dims, dtype=score.dtype, device=score.device) / self.temperature
        for rows in passes(len(score), self.chunk):
            z = self.control.features(particles.x[rows], particles.v[rows]).to(self.dtype)
            (slope,), (bend,) = self.control.slopes(z, corrected[None], bent=1)
            score[rows] = slope.to(score) - particles.v[rows] / self.temperature
            hessian[rows] = bend.to(score) - eye
        return score, hessian

    @torch.no_grad()
    def log_densities(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """ψ and ψ̄ [2, n] of the last fit at points x [n, dx] and v [n, dv]; float64."""
        assert isinstance(self._solver, RegressionSolver)
        return self._solver.fitted.log_densities(self.control.features(x, v).to(self.dtype))

    @torch.no_grad()
    def relaxed(self, particles: Particles, duration: float, agreed: bool) -> tuple[Particles, dict[str, float]]:
        if not isinstance(self._solver, RegressionSolver):
            return particles, {}
        assert isinstance(self.control, PotentialField)
        part = -math.expm1(-self.relaxation * self.operator.collision_strength * duration) if agreed else 0.0
        log_f, share = particles.log_f.clone(), particles.shares()
        sums = torch.zeros(2, 3, dtype=torch.float64, device=log_f.device)
        of_both = self._solver.fitted.of_both
        for rows in passes(len(log_f), self.chunk):
            z = self.control.features(particles.x[rows], particles.v[rows]).to(self.dtype)
            own = particles.log_f[rows].double()
            fitted, tied = self.control.values(z, of_both)
            change = part * (tied - own)
            log_f[rows] += change.to(log_f)
            terms = torch.stack([(fitted - own) ** 2, change**2, change], dim=1)
            sums += summed_finely(share[rows, None] * terms)
        missed, moved, mean = self.comm.sum(sums.cpu().numpy()).sum(0)
        report = {"log_f_residual": math.sqrt(missed), "log_f_moved": math.sqrt(moved)}
        return particles.move(particles.v, log_f), {**report, "entropy_moved": particles.total_weight * float(mean)}

    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        if not isinstance(self.control, PotentialField):
            control = copy.deepcopy(self.control).to(particles.v.dtype)
            return lambda rows: (*control.with_jacobian(*self.inputs(control, particles, duration, start, rows)), None)
        assert isinstance(self._solver, RegressionSolver)
        both = torch.stack([self.control.coefficients, self._solver.fitted.corrected])
        return _OfPotential(self.control, particles, both, self.temperature)

    def carried(self, particles: Particles, duration: float, start: StepStart) -> Carried:
        """The particles of this rank along h u, by one native pass if there is a kernel for this field."""
        field = self.field(particles, duration, start)
        if not isinstance(field, _OfPotential) or self.settings.exact is not None:
            return super().carried(particles, duration, start)
        network = field.control.network
        if not network.in_use:
            return super().carried(particles, duration, start)
        how = Carry(
            duration,
            duration / self.order,
            self.temperature,
            self.logdet == "exact",
            field.control.periods or (),
            self.wave.wave_vector if self.wave else (),
            self.operator.collision_strength,
        )
        terms, both = Terms(particles.shares(), BLOCK, UNIT, FINE), field.coefficients
        v, log_det, change, disagreement, sums, smallest = network.carry(particles.x, particles.v, terms, both, how)
        columns = 5 + (self.wave.TERMS if self.wave else 0)
        log_f = particles.log_f - log_det.to(particles.log_f)
        return Carried(v, log_f, change, disagreement, sums[:, :columns], smallest)

    def state(self) -> dict[str, np.ndarray]:
        return self._solver.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self._solver.load(arrays)


@dataclass(frozen=True)
class _OfPotential:
    """The field of a potential at particles.

    Attributes:
        control: the functions, in the precision of the inner solver. Its rounding changes u by about 1e-7 of |u|.
        coefficients: of Φ, and of ψ̄ + ½|v|²/T [2, N].
        temperature: T.
    """

    control: PotentialField
    particles: Particles
    coefficients: torch.Tensor
    temperature: float

    def __call__(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, v = self.particles.x[rows], self.particles.v[rows]
        z = self.control.features(x, v).to(self.control.layers[0].weight)
        (u, slope), (jacobian,) = (part.to(v) for part in self.control.slopes(z, self.coefficients, bent=1))
        return u, jacobian, slope - v / self.temperature
