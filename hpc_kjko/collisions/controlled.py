"""What collision steps that move particles along a control field have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, StepStart
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control import ControlField, smallest_eigenvalue
from hpc_kjko.errors import SolverFailure
from hpc_kjko.objective import linear_part, tracked_log_det
from hpc_kjko.particles import Particles, passes

#: A step is split at most this often (into 2^6 pieces) before the run gives up.
MAX_SPLITS = 6

#: u [n, dv] and ∂u_k/∂ṽ_j [n, dv, dv] at some rows of the particles.
Field = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]


class ControlledCollision(Collision):
    """v ← ṽ + h u, log f ← log f̃ − log det(I + h ∇v u), with a u that the method determines.

    Two forms of the step (``method.form``):

    * ``split`` (paper's eqs. 30-31): u is a function of the pushed state (x̃, ṽ);
    * ``nonsplit`` (eq. 18): u is a function ū of the state (x, v) before the push. For symplectic Euler, x̃ = x + h v
      and ṽ = v + h a(x̃), a change of ṽ at fixed x̃ changes (x, v) by (−h, 1), so the map's determinant is that of
      I + h (∇v − h ∇x) ū. ``nonsplit_naive`` takes I + h ∇v ū instead, as the paper's text reads; its entropy is off by
      O(h²) in each step.

    A step in which I + h sym ∇v u is not positive definite at every particle is fitted again, then split in two; what
    was done is in the report. The non-split form cannot be split: its push is already made.
    """

    def __init__(self, case: Case, comm: Communicator):
        method, problem = case.method, case.problem
        self.comm, self.problem, self.chunk = comm, problem, method.chunk
        self.order, self.logdet, self.form = method.order, method.logdet, method.form
        self.collision_strength, self.temperature = case.physics.collision_strength, case.physics.temperature
        self.dtype = getattr(torch, method.precision)

    def control_field(self, case: Case, parameters: int = 0) -> ControlField:
        """A network for this case's phase space, in the precision of the inner solve."""
        problem, method = case.problem, case.method
        return ControlField(
            problem.periods,
            problem.space_dims,
            problem.velocity_dims,
            hidden=method.hidden,
            activation=method.activation,
            seed=case.particles.seed,
            dtype=self.dtype,
            device=self.comm.device,
            parameters=parameters,
        )

    @abstractmethod
    def fit(self, particles: Particles, duration: float, start: StepStart) -> int:
        """Determine u for the pushed particles; returns the number of iterations. Collective.

        Raises:
            SolverFailure: on every rank.
        """

    @abstractmethod
    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        """The u that :meth:`fit` found, in the particles' own precision."""

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        return self._solve(particles, duration, start, splits=0)

    def _solve(
        self, particles: Particles, duration: float, start: StepStart, splits: int
    ) -> tuple[Particles, CollisionReport]:
        iterations = 0
        for _attempt in range(2):
            iterations += self.fit(particles, duration, start)
            moved, report = self._move(particles, duration, start, iterations)
            if report.min_eigenvalue > 0:
                return moved, report
            if not np.isfinite(report.min_eigenvalue):
                raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        if self.form != "split":
            raise SolverFailure(
                f"the collision map is not invertible (smallest eigenvalue {report.min_eigenvalue:.3g}), and the "
                'non-split form cannot be split: reduce time.step, or use method.form = "split"'
            )
        if splits == MAX_SPLITS:
            raise SolverFailure(
                f"the collision map is not invertible (smallest eigenvalue {report.min_eigenvalue:.3g}) even in "
                f"{2**MAX_SPLITS} pieces: reduce time.step or method.learning_rate, or raise particles.count"
            )
        first, one = self._solve(particles, duration / 2, start, splits + 1)
        later = replace(start, time=start.time + duration / 2)
        second, two = self._solve(first, duration / 2, later, splits + 1)
        return second, CollisionReport(
            dissipation=0.5 * (one.dissipation + two.dissipation),
            min_eigenvalue=min(one.min_eigenvalue, two.min_eigenvalue),
            objective=two.objective,
            inner_iterations=iterations + one.inner_iterations + two.inner_iterations,
            substeps=one.substeps + two.substeps,
            drift_error=0.5 * (one.drift_error + two.drift_error),
        )

    # -- where the network is evaluated --------------------------------------------------------------------------

    def inputs(
        self, control: ControlField, particles: Particles, duration: float, start: StepStart, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's inputs z [n, inputs] at some rows, and ∂z/∂ṽ [n, dv, inputs] unless ṽ is simply among them."""
        if self.form == "split":
            return control.features(particles.x[rows], particles.v[rows]), None
        before = start.particles
        z = control.features(before.x[rows], before.v[rows])
        if self.form == "nonsplit_naive":
            return z, None
        dims, dv = before.x.shape[1], before.v.shape[1]
        tangents = torch.zeros(len(z), dv, z.shape[1], dtype=z.dtype, device=z.device)
        axes = torch.arange(dv)
        tangents[:, axes, z.shape[1] - dv + axes] = 1.0
        tangents[:, :dims] -= duration * control.position_derivatives(before.x[rows])
        return z, tangents

    def training_data(
        self, control: ControlField, particles: Particles, duration: float, start: StepStart
    ) -> tuple[torch.Tensor, ...]:
        """Inputs z, pushed velocities ṽ, shares (and tangents) of all particles of this rank, for the inner solve.

        Kept for all iterations of a step: it saves their cosines and sines in each.
        """
        count, tangents = len(particles.x), []
        z = torch.empty(count, control.layers[0].in_features, dtype=self.dtype, device=particles.x.device)
        for rows in passes(count, self.chunk):
            z[rows], along = self.inputs(control, particles, duration, start, rows)
            if along is not None:
                tangents = tangents or [torch.empty(count, *along.shape[1:], dtype=self.dtype, device=z.device)]
                tangents[0][rows] = along
        v = z[:, -particles.v.shape[1] :] if self.form == "split" else particles.v.to(self.dtype)
        return z, v, particles.shares(self.dtype), *tangents

    # -- the move ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _move(
        self, particles: Particles, duration: float, start: StepStart, iterations: int
    ) -> tuple[Particles, CollisionReport]:
        """The particles carried along h u, in the particles' own precision, with the determinant of that very map."""
        field = self.field(particles, duration, start)
        v, log_f, share = torch.empty_like(particles.v), torch.empty_like(particles.log_f), particles.shares()
        fitted = duration / self.order
        exact = self.problem.exact(start.time + fitted, self.collision_strength, self.temperature)
        smallest, square, objective, drift_error = np.inf, 0.0, 0.0, 0.0
        for rows in passes(len(particles.x), self.chunk):
            u, jacobian = field(rows)
            log_det = tracked_log_det(jacobian, duration, self.logdet)
            v[rows] = particles.v[rows] + duration * u
            log_f[rows] = particles.log_f[rows] - log_det
            if len(u):
                eigenvalues = smallest_eigenvalue(linear_part(jacobian, duration))
                smallest = float(np.minimum(smallest, float(eigenvalues.min())))  # keeps a NaN, as min() would not
            square += float((share[rows] * (u.double() ** 2).sum(1)).sum())
            seen = log_det if self.order == 1 else tracked_log_det(jacobian, fitted, self.logdet)
            reached = particles.v[rows] + fitted * u
            kinetic = 0.5 * (reached.double() ** 2).sum(1)
            objective += float((share[rows] * (kinetic - self.temperature * seen.double())).sum())
            if exact is not None:
                score = exact.score_v(particles.x[rows], reached)
                wanted = -self.collision_strength * (reached + self.temperature * score)
                drift_error += float((share[rows] * ((u - wanted).double() ** 2).sum(1)).sum())
        mean_square, mean_rest, drift_error = self.comm.sum(np.array([square, objective, drift_error]))
        report = CollisionReport(
            dissipation=particles.mass * float(mean_square) / self.collision_strength,
            min_eigenvalue=self.comm.min(smallest),
            objective=float(fitted / (2 * self.collision_strength) * mean_square + mean_rest),
            inner_iterations=iterations,
            substeps=1,
            drift_error=float(drift_error) if exact is not None else float("nan"),
        )
        return particles.move(v, log_f), report
