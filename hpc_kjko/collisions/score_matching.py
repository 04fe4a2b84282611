"""Score matching: learn ∇v log f at the particles, then take an explicit step along −κ (v + T ∇v log f)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionSettings, StepStart
from hpc_kjko.collisions.controlled import ControlledCollision, Field
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers import solver_of
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles


class ScoreObjective(Objective[ControlField]):
    """The part of the implicit score-matching loss E[½|s|² + ∇v·s] that belongs to this rank. The minimum is at s = ∇v
    log f.

    A. Hyvärinen, J. Mach. Learn. Res. 6 (2005) 695.
    """

    def part(self, step: float, *rows: Any) -> torch.Tensor:
        z, _, share, *_ = rows
        score, divergence = self.control.with_divergence(z)
        return (share * (0.5 * (score * score).sum(1) + divergence)).sum()


class ScoreMatchingCollision(ControlledCollision):
    """u = −κ (v + T s), where s is the score learnt at the particles. The step is explicit, so it is first order, and
    stable for about κh < 1.

    ``method.form = "split"`` is sequential score matching: s is learnt and used at the pushed state (x̃, ṽ). It is the
    explicit counterpart of the JKO step. ``"nonsplit"`` is score-based transport: s is learnt and used at the state (x,
    v) before the push. Position and velocity follow the probability flow ẋ = v, v̇ = a − κ (v + T s) together (our
    reading of the paper's eq. 35; N. M. Boffi, E. Vanden-Eijnden, arXiv:2206.04642).
    """

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        super().__init__(settings, comm)
        self.control = self.control_field()
        self._solver = solver_of(settings.method, ScoreObjective(self.control, self.together), comm)

    def fit(self, particles: Particles, duration: float, start: StepStart, stiffer: int) -> int:
        return self._solver.minimise(self.training_data(self.control, particles, duration, start), duration, stiffer)

    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        score_field = copy.deepcopy(self.control).to(particles.v.dtype)
        velocities = particles.v if self.form == "split" else start.particles.v
        identity = torch.eye(velocities.shape[1], dtype=velocities.dtype, device=velocities.device)

        def u_and_jacobian(rows: slice) -> tuple[torch.Tensor, torch.Tensor, None]:
            score, jacobian = score_field.with_jacobian(*self.inputs(score_field, particles, duration, start, rows))
            return self.operator.control(velocities[rows], score), self.operator.control(identity, jacobian), None

        return u_and_jacobian

    def state(self) -> dict[str, np.ndarray]:
        return self._solver.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self._solver.load(arrays)
