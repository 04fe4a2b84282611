"""Binary collisions by Monte Carlo: what a particle-in-cell user would run today for Coulomb collisions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.special import ndtri

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.blocks import blocks_of_cells
from hpc_kjko.collisions.none import mean_kinetic_energy
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, passes, random_points


class BinaryCollision(Collision):
    """Particles of a cell meet in random pairs; the relative velocity u of a pair turns by an angle θ at random.

    tan(θ/2) is normal with the variance 4 C n h |u|^γ (half of that in two dimensions), which gives the Landau operator
    as h → 0; of an odd number three meet each other for half the time. Momentum and energy of every pair stay. Random
    numbers are keyed by (seed, step, global particle): a run has the same bits on any number of ranks. The density at
    the particles is not known after such a step: log f becomes NaN.

    T. Takizuka, H. Abe, doi:10.1016/0021-9991(77)90099-7.
    """

    tracks_log_f = False
    has_control = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.comm, self.seed, self.operator = comm, settings.seed, settings.operator
        self.grid = settings.grid

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        dims = particles.v.shape[1]
        blocks = blocks_of_cells(particles, self.grid, self.operator.block, (self.seed, start.index), self.comm)
        rows = np.empty((len(particles.v), 2 * dims + 2))
        rows[:, :dims] = particles.v.cpu().numpy()
        for part in passes(len(rows), BLOCK):
            # stream 0 of the seed drew the particles
            rows[part, dims:] = random_points(
                self.seed, 1 + start.index, particles.shard.start + part.start, part.stop - part.start, dims + 2
            )
        found = [
            self._met(block, dims, density * duration)
            for block, density in zip(blocks.gathered(rows), blocks.density, strict=True)
        ]
        change = torch.from_numpy(blocks.returned(found, dims)).to(particles.v.device)
        v = (particles.v.double() + change).to(particles.v)
        moved = particles.move(v, torch.full_like(particles.log_f, math.nan))
        return moved, CollisionReport(
            math.nan, 1.0, mean_kinetic_energy(moved, self.comm), 0, 1, sparse_nodes=blocks.sparse
        )

    def _met(self, block: np.ndarray, dims: int, column: float) -> np.ndarray:
        """v' − v [B, dv] of the particles of a block, which meet in pairs.

        Args:
            block: v, then random numbers [B, 2 dv + 2].
            column: the density times the duration.
        """
        v, random = block[:, :dims].copy(), block[:, dims:]
        order = np.argsort(random[:, -1], kind="stable")
        three = order[-3:] if len(order) % 2 and len(order) > 1 else order[:0]
        pairs = order[: len(order) - (len(three) or len(order) % 2)].reshape(-1, 2)
        self._turn(v, pairs, random[pairs[:, 0]], dims, column)
        for k, (one, other) in enumerate(pairwise([*three, *three[:1]])):
            self._turn(v, np.array([[one, other]]), random[three[k : k + 1]], dims, 0.5 * column)
        return v - block[:, :dims]

    def _turn(self, v: np.ndarray, pairs: np.ndarray, random: np.ndarray, dims: int, column: float) -> None:
        """Turn the relative velocities of pairs [n, 2], each at most once in it, by random numbers [n, dv + 2]."""
        first, second = pairs.T
        u = v[first] - v[second]
        speed = np.linalg.norm(u, axis=1, keepdims=True)
        met = speed[:, 0] > 0
        first, second, u, speed, random = first[met], second[met], u[met], speed[met], random[met]
        variance = (4 if dims == 3 else 2) * self.operator.collision_strength * column * speed**self.operator.exponent
        angle = 2 * np.arctan(np.sqrt(variance) * ndtri(random[:, dims : dims + 1]))
        across = ndtri(random[:, :dims])
        across -= u * ((across * u).sum(1, keepdims=True) / speed**2)
        across *= speed / np.linalg.norm(across, axis=1, keepdims=True)
        half = 0.5 * (np.cos(angle) * u + np.sin(angle) * across - u)
        v[first] += half
        v[second] -= half

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass
