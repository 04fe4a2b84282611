"""The deep kinetic JKO step: train the control field, check that it is invertible, move the particles along it."""

from __future__ import annotations

import copy

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control import ControlField, smallest_eigenvalue
from hpc_kjko.errors import SolverFailure
from hpc_kjko.objective import JKOObjective, linear_part, tracked_log_det
from hpc_kjko.particles import Particles, passes
from hpc_kjko.solvers import SOLVERS

#: A step is split at most this often (into 2^6 pieces) before the run gives up.
MAX_SPLITS = 6


class JKOCollision(Collision):
    """v ← ṽ + h u(x̃, ṽ), log f ← log f̃ − log det(I + h ∇v u), u the minimiser of J (paper's eqs. 30–31).

    With ``method.order = 2`` the functional sees h/2 and the particles move by h: the implicit midpoint rule.
    A step in which I + h sym ∇v u is not positive definite at every particle is trained on (its objective pushes
    such particles back), then split in two; what was done is in the report.
    """

    def __init__(self, case: Case, comm: Communicator):
        method, problem = case.method, case.problem
        self.comm, self.chunk = comm, method.chunk
        self.order, self.logdet = method.order, method.logdet
        self.collision_strength, self.temperature = case.physics.collision_strength, case.physics.temperature
        self._dtype = getattr(torch, method.precision)
        self.control = ControlField(
            problem.periods,
            problem.space_dims,
            problem.velocity_dims,
            hidden=method.hidden,
            activation=method.activation,
            seed=case.particles.seed,
            dtype=self._dtype,
            device=comm.device,
        )
        objective = JKOObjective(
            self.control,
            collision_strength=self.collision_strength,
            temperature=self.temperature,
            logdet=method.logdet,
            count=case.particles.count,
        )
        self._solver = SOLVERS[method.solver](
            objective,
            comm,
            iterations=method.iterations,
            first_iterations=method.first_iterations,
            learning_rate=method.learning_rate,
            chunk=method.chunk,
        )

    def step(self, particles: Particles, duration: float) -> tuple[Particles, CollisionReport]:
        return self._solve(particles, duration, splits=0)

    def state(self) -> dict[str, np.ndarray]:
        return self._solver.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self._solver.load(arrays)

    def _solve(self, particles: Particles, duration: float, splits: int) -> tuple[Particles, CollisionReport]:
        iterations = 0
        z = self._features(particles)
        for _attempt in range(2):
            iterations += self._solver.minimise(z, duration / self.order)
            moved, report = self._move(particles, duration, iterations)
            if report.min_eigenvalue > 0:
                return moved, report
            if not np.isfinite(report.min_eigenvalue):
                raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        del z
        if splits == MAX_SPLITS:
            raise SolverFailure(
                f"the collision map is not invertible (smallest eigenvalue {report.min_eigenvalue:.3g}) even in "
                f"{2**MAX_SPLITS} pieces: reduce time.step or method.learning_rate, or raise particles.count"
            )
        first, one = self._solve(particles, duration / 2, splits + 1)
        second, two = self._solve(first, duration / 2, splits + 1)
        return second, CollisionReport(
            dissipation=0.5 * (one.dissipation + two.dissipation),
            min_eigenvalue=min(one.min_eigenvalue, two.min_eigenvalue),
            objective=two.objective,
            inner_iterations=iterations + one.inner_iterations + two.inner_iterations,
            substeps=one.substeps + two.substeps,
        )

    def _features(self, particles: Particles) -> torch.Tensor:
        """Network inputs of all particles of this rank, in the precision of the inner solve."""
        inputs = self.control.layers[0].in_features
        z = torch.empty(len(particles.x), inputs, dtype=self._dtype, device=particles.x.device)
        for rows in passes(len(particles.x), self.chunk):
            z[rows] = self.control.features(particles.x[rows], particles.v[rows]).to(self._dtype)
        return z

    @torch.no_grad()
    def _move(self, particles: Particles, duration: float, iterations: int) -> tuple[Particles, CollisionReport]:
        """The particles carried along h u, in the particles' own precision, with the determinant of that very map."""
        control = copy.deepcopy(self.control).to(particles.v.dtype)
        v, log_f = torch.empty_like(particles.v), torch.empty_like(particles.log_f)
        fitted = duration / self.order
        smallest, square, objective = np.inf, 0.0, 0.0
        for rows in passes(len(particles.x), self.chunk):
            u, jacobian = control.with_jacobian(control.features(particles.x[rows], particles.v[rows]))
            log_det = tracked_log_det(jacobian, duration, self.logdet)
            v[rows] = particles.v[rows] + duration * u
            log_f[rows] = particles.log_f[rows] - log_det
            if len(u):
                eigenvalues = smallest_eigenvalue(linear_part(jacobian, duration))
                smallest = float(np.minimum(smallest, float(eigenvalues.min())))  # keeps a NaN, as min() would not
            square += float((u.double() ** 2).sum())
            seen = log_det if self.order == 1 else tracked_log_det(jacobian, fitted, self.logdet)
            kinetic = 0.5 * ((particles.v[rows] + fitted * u).double() ** 2).sum()
            objective += float(kinetic - self.temperature * seen.double().sum())
        mean_square, mean_rest = self.comm.sum(np.array([square, objective])) / particles.shard.total
        report = CollisionReport(
            dissipation=particles.mass * float(mean_square) / self.collision_strength,
            min_eigenvalue=self.comm.min(smallest),
            objective=float(fitted / (2 * self.collision_strength) * mean_square + mean_rest),
            inner_iterations=iterations,
            substeps=1,
        )
        return particles.move(v, log_f), report
