"""Self-consistent velocity matching: one control field for the whole time span (paper's eqs. 32-34)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.controlled import ControlledCollision, Field
from hpc_kjko.errors import UserError
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers.adam import AdamSolver
from hpc_kjko.inner.solvers.base import Sample, TrainingData
from hpc_kjko.operators import Operator
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles


class VelocityObjective(Objective[ControlField]):
    """The part of E[½|u|² + κ v·u − κT ∇v·u] that belongs to this rank. The minimum is at u = −κ (v + T ∇v log f).

    The functional is ½|u − u*|² after integration by parts, which removes the score, and without the terms that do not
    depend on u. It is the limit of J κ/h as h → 0, with J the linear functional of
    :class:`~hpc_kjko.inner.objective.JKOObjective`.
    """

    def __init__(self, control: ControlField, together: int, operator: Operator):
        super().__init__(control, together)
        self.operator = operator

    def part(self, step: float, *rows: Any) -> torch.Tensor:
        z, v, share, *_ = rows
        u, divergence = self.control.with_divergence(z)
        drag = (v * u).sum(1) - self.operator.temperature * divergence
        return (share * (0.5 * (u * u).sum(1) + self.operator.collision_strength * drag)).sum()


class VelocityMatchingCollision(ControlledCollision):
    """u(t, x, v), one network for all t in [0, t_end]. A fixed-point iteration finds it before the first step.

    Each outer iteration makes all steps of the run with the present u and stores the pushed states (x̃, ṽ) before the
    collisions. Then it trains u on these states, at all times together. The next iteration computes new states with the
    new u. After the iteration the run steps with v ← ṽ + h u(t^n, x̃, ṽ). Training stores the trajectories of all
    particles, so memory must hold the ensemble ``steps`` times.

    L. Li, S. Hurault, J. Solomon, arXiv:2301.13737.
    """

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        super().__init__(settings, comm)
        self.held_out = False  # a particle held out at one time would have been fitted at another time
        matching = settings.velocity_matching
        assert matching is not None  # the case file was checked for this
        self.end, self.steps, self.outer_iterations = settings.end, settings.steps, matching.outer_iterations
        self.control = self.control_field(parameters=1)
        objective = VelocityObjective(self.control, self.together, self.operator)
        self._solver = AdamSolver(
            objective,
            comm,
            iterations=matching.iterations,
            first_iterations=matching.iterations,
            learning_rate=matching.learning_rate,
        )
        self._trained_until = 0.0
        self._rehearsing = False
        self._pushed: torch.Tensor  # inputs of the network at all times [steps, n, inputs]
        self._share: torch.Tensor

    def prepare(self, rehearse: Callable[[], bool]) -> bool:
        if self._trained_until == self.end:
            return True
        for _ in range(self.outer_iterations):
            self._rehearsing = True
            went_through = rehearse()
            self._rehearsing = False
            if not went_through:
                return False
            share = self._share / self.steps
            times = [Sample(z, z[:, -self.problem.velocity_dims :], share) for z in self._pushed]
            self._solver.minimise(TrainingData.unheld(*times), self.end / self.steps)
        del self._pushed
        self._trained_until = self.end
        return True

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        if self._rehearsing:
            z = self._inputs(self.control, particles, start, slice(None)).to(self.dtype)
            if start.index == 0:
                self._pushed = torch.empty(self.steps, *z.shape, dtype=self.dtype, device=z.device)
                self._share = particles.shares(self.dtype)
            self._pushed[start.index] = z
        return super().step(particles, duration, start)

    def fit(self, particles: Particles, duration: float, start: StepStart, stiffer: int) -> int:
        return 0  # everything was done in :meth:`prepare`

    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        control = copy.deepcopy(self.control).to(particles.v.dtype)
        return lambda rows: (*control.with_jacobian(self._inputs(control, particles, start, rows)), None)

    def _inputs(self, control: ControlField, particles: Particles, start: StepStart, rows: slice) -> torch.Tensor:
        """Time, scaled to [−1, 1], and the features of the pushed state [n, inputs]."""
        features = control.features(particles.x[rows], particles.v[rows])
        time = torch.full_like(features[:, :1], 2 * start.time / self.end - 1)
        return torch.cat([time, features], dim=1)

    def state(self) -> dict[str, np.ndarray]:
        return {**self._solver.state(), "trained_until": np.array(self._trained_until)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        trained_until = float(arrays["trained_until"])
        if trained_until not in (0.0, self.end):
            raise UserError(
                f"time.end = {self.end:g}: velocity matching has trained its field up to t = {trained_until:g} and "
                "cannot go on from there: start a new run"
            )
        self._solver.load(arrays)
        self._trained_until = trained_until
