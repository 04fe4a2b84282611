"""No collisions: particles stay unchanged."""

from __future__ import annotations

import math

import numpy as np

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles


class NoCollision(Collision):
    """u ≡ 0: the Vlasov equation. It is also used if κ = 0."""

    has_control = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        pass

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        return particles, CollisionReport(0.0, 1.0, math.nan, 0, 0)

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass
