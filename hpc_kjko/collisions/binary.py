"""Binary collisions by Monte Carlo: the method for Coulomb collisions that particle-in-cell codes commonly use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, PairCollision, StepStart
from hpc_kjko.collisions.blocks import blocks_of_cells
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, passes, random_points
from hpc_kjko.problems.quantile import normal


class BinaryCollision(PairCollision):
    """The particles of a cell collide in random pairs. The relative velocity u of a pair turns by a random angle θ.

    tan(θ/2) is normal with the variance C n h |u|^γ / μ² (half of that in two dimensions), with the reduced mass μ.
    This gives the Landau operator as h → 0. If the number of like particles is odd, three of them collide with each
    other, each pair for half the time. Of two species, each particle of the more numerous one collides once, and n is
    the density of the other species in the collision block. Momentum and energy of every pair are conserved. Random
    numbers are keyed by (seed, step, global particle), so a run has the same bits on any number of ranks. After such a
    step the density at the particles is not known: log f becomes NaN.

    T. Takizuka, H. Abe, doi:10.1016/0021-9991(77)90099-7.
    """

    tracks_log_f = False
    has_control = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.comm, self.settings, self.operator = comm, settings, settings.operator

    @classmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        comm, index, dims = steps[0].comm, starts[0].index, pushed[0].v.shape[1]
        settings = [step.settings for step in steps]
        seeds = [one.seed for one in settings]
        blocks = blocks_of_cells(pushed, settings[0].grid, steps[0].operator.block, seeds, index, comm)
        columns = dims + 2  # random numbers for the collisions with each species
        found = []
        for particles, dealt, seed in zip(pushed, blocks.species, seeds, strict=True):
            rows = np.empty((len(particles.v), dims + columns * len(steps)))
            rows[:, :dims] = particles.v.cpu().numpy()
            for part in passes(len(rows), BLOCK):
                # stream 0 of the seed has drawn the particles
                first, count = particles.shard.start + part.start, part.stop - part.start
                rows[part, dims:] = random_points(seed, 1 + index, first, count, rows.shape[1] - dims)
            found.append(dealt.gathered(rows))
        before = [rows[:, :dims].copy() for rows in found]
        edges = [dealt.edges for dealt in blocks.species]
        weights = [
            particles.total_weight / particles.shard.total for particles in pushed
        ]  # all particles of a species have the same weight
        for number, (density, per_volume) in enumerate(zip(blocks.density.T, blocks.per_volume, strict=True)):
            block = [rows[edge[number] : edge[number + 1]] for rows, edge in zip(found, edges, strict=True)]
            for b in range(len(steps)):
                for a in range(b + 1):
                    strength = steps[a].operator.factors[settings[b].number] * duration
                    meeting = _Meeting(dims, strength, steps[a].operator.exponent)
                    one = _Met(block[a], dims, settings[a].mass, columns * b)
                    if a == b:
                        meeting.of_like(one, density[a])
                    else:
                        other = _Met(block[b], dims, settings[b].mass, columns * a)
                        meeting.of_unlike(one, other, weights[b] * per_volume)
        reports = []
        for particles, dealt, rows, old in zip(pushed, blocks.species, found, before, strict=True):
            change = torch.from_numpy(dealt.returned(rows[:, :dims] - old)).to(particles.v.device)
            v = (particles.v.double() + change).to(particles.v)
            moved = particles.move(v, torch.full_like(particles.log_f, math.nan))
            reports.append((moved, CollisionReport(math.nan, 1.0, math.nan, 0, 1, sparse_nodes=blocks.sparse)))
        return reports

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass


class _Met:
    """The particles of a species in a collision block: velocities, which change, and random numbers."""

    def __init__(self, rows: np.ndarray, dims: int, mass: float, column: int):
        self.v, self.random, self.mass = rows[:, :dims], rows[:, dims + column : 2 * dims + column + 2], mass

    @property
    def shuffled(self) -> np.ndarray:
        """The indices of the particles in random order [n]."""
        return np.argsort(self.random[:, -1], kind="stable")


@dataclass(frozen=True)
class _Meeting:
    """The collisions of two species in a step, in dims dimensions. The factor C of their collisions is multiplied by
    the duration.
    """

    dims: int
    strength: float
    exponent: float

    def of_like(self, met: _Met, density: float) -> None:
        """Turn the relative velocities of like particles that collide in pairs."""
        order = met.shuffled
        three = order[-3:] if len(order) % 2 and len(order) > 1 else order[:0]
        first, second = order[: len(order) - (len(three) or len(order) % 2)].reshape(-1, 2).T
        self._turn(met, first, met, second, density)
        for one, other in pairwise([*three, *three[:1]]):
            self._turn(met, np.array([one]), met, np.array([other]), 0.5 * density)

    def of_unlike(self, one: _Met, other: _Met, density_of_one: float) -> None:
        """Turn the relative velocities of two species. Each particle of the more numerous one collides once.

        Args:
            density_of_one: the density that one particle stands for in the collision block, the same for both species.
        """
        many, few = (one, other) if len(one.v) >= len(other.v) else (other, one)
        first, second = many.shuffled, few.shuffled
        for begin in range(0, len(first), len(second)) if len(second) else ():
            some = first[begin : begin + len(second)]  # a particle takes part in only one collision at a time
            self._turn(many, some, few, second[: len(some)], density_of_one * len(second))

    def _turn(self, one: _Met, first: np.ndarray, other: _Met, second: np.ndarray, density: float) -> None:
        """Turn the relative velocities of pairs: particles ``first`` of one species and ``second`` of the other. Each
        particle occurs at most once. The random numbers are those of the first.
        """
        dims, random = self.dims, one.random[first]
        u = one.v[first] - other.v[second]
        speed = np.linalg.norm(u, axis=1, keepdims=True)
        met = speed[:, 0] > 0
        first, second, u, speed, random = first[met], second[met], u[met], speed[met], random[met]
        reduced = one.mass * other.mass / (one.mass + other.mass)
        variance = (1.0 if dims == 3 else 0.5) * self.strength * density / reduced**2 * speed**self.exponent
        angle = 2 * np.arctan(np.sqrt(variance) * normal(random[:, dims : dims + 1]))
        across = normal(random[:, :dims])
        across -= u * ((across * u).sum(1, keepdims=True) / speed**2)
        across *= speed / np.linalg.norm(across, axis=1, keepdims=True)
        change = reduced * (np.cos(angle) * u + np.sin(angle) * across - u)
        one.v[first] += change / one.mass
        other.v[second] -= change / other.mass
