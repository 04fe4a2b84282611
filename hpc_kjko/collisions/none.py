"""No collisions: particles pass through unchanged."""

from __future__ import annotations

import numpy as np

from hpc_kjko.collisions.base import Collision, CollisionReport
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.particles import Particles, passes


class NoCollision(Collision):
    """u ≡ 0: the Vlasov equation. Also what κ = 0 means."""

    def __init__(self, case: Case, comm: Communicator):
        self.comm = comm

    def step(self, particles: Particles, duration: float) -> tuple[Particles, CollisionReport]:
        kinetic = sum(0.5 * float((particles.v[p].double() ** 2).sum()) for p in passes(len(particles.v)))
        mean_kinetic = float(self.comm.sum(np.array([kinetic]))[0]) / particles.shard.total
        return particles, CollisionReport(0.0, 1.0, mean_kinetic, 0, 0)

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass
