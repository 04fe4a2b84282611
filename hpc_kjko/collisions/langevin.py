"""Langevin particles: the stochastic Ornstein-Uhlenbeck kick that particle-in-cell codes commonly use."""

from __future__ import annotations

import math

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, passes, random_points
from hpc_kjko.problems.quantile import normal


class LangevinCollision(Collision):
    """v ← e^{−κh} ṽ + √(T (1 − e^{−2κh})) ξ, ξ standard normal: exact in law for any step.

    The random numbers are counter-based, keyed by (seed, step, global particle), and drawn in row blocks of BLOCK
    particles. So they do not depend on the number of ranks, and a restarted run gets the same ones. The density at the
    particles is not known after such a kick. So log f becomes NaN, and the series has no entropy, free energy or KL
    divergence.

    D. T. Gillespie, doi:10.1103/PhysRevE.54.2084.
    """

    tracks_log_f = False
    has_control = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        self.seed = settings.seed
        self.operator = settings.operator

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        damping = math.exp(-self.operator.collision_strength * duration)
        spread = math.sqrt(self.operator.temperature * -math.expm1(-2 * self.operator.collision_strength * duration))
        v, dims = torch.empty_like(particles.v), particles.v.shape[1]
        for rows in passes(len(v), BLOCK):
            # stream 0 of the seed has drawn the particles
            points = random_points(
                self.seed, 1 + start.index, particles.shard.start + rows.start, rows.stop - rows.start, dims
            )
            noise = torch.from_numpy(normal(points)).to(v)
            v[rows] = damping * particles.v[rows] + spread * noise
        moved = particles.move(v, torch.full_like(particles.log_f, math.nan))
        return moved, CollisionReport(math.nan, 1.0, math.nan, 0, 1)

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass
