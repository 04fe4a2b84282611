"""No collisions: particles stay unchanged."""

from __future__ import annotations

import numpy as np

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import summed
from hpc_kjko.particles.state import Particles, passes_over


class NoCollision(Collision):
    """u ≡ 0: the Vlasov equation. It is also used if κ = 0."""

    has_control = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        self.comm = comm

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        return particles, CollisionReport(0.0, 1.0, mean_kinetic_energy(particles, self.comm), 0, 0)

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass


def mean_kinetic_energy(particles: Particles, comm: Communicator) -> float:
    """Ensemble mean of ½|v|², which is J(u ≡ 0). Collective."""
    share = particles.shares()
    local = sum(0.5 * float(summed(share[p] * (particles.v[p].double() ** 2).sum(1))) for p in passes_over(particles.v))
    return float(comm.sum(np.array([local]))[0])
