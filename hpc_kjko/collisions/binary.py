"""Binary collisions by Monte Carlo: what a particle-in-cell user would run today for Coulomb collisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from scipy.special import ndtri

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, PairCollision, StepStart
from hpc_kjko.collisions.blocks import blocks_of_cells
from hpc_kjko.collisions.none import mean_kinetic_energy
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Particles, passes, random_points


class BinaryCollision(PairCollision):
    """Particles of a cell meet in random pairs; the relative velocity u of a pair turns by an angle θ at random.

    tan(θ/2) is normal with the variance C n h |u|^γ / μ² (half of that in two dimensions), μ the reduced mass, which
    gives the Landau operator as h → 0. Of an odd number of like particles three meet each other for half the time. Of
    unlike particles those of the larger number meet once each, n being the density of the others. Momentum and energy
    of every pair stay. Random numbers are keyed by (seed, step, global particle): a run has the same bits on any number
    of ranks. The density at the particles is not known after such a step: log f becomes NaN.

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
        meetings = [(a, b) for b in range(len(steps)) for a in range(b + 1)]
        columns = dims + 2  # of random numbers for each meeting
        found = []
        for particles, dealt, seed in zip(pushed, blocks.species, seeds, strict=True):
            rows = np.empty((len(particles.v), dims + columns * len(meetings)))
            rows[:, :dims] = particles.v.cpu().numpy()
            for part in passes(len(rows), BLOCK):
                # stream 0 of the seed drew the particles
                first, count = particles.shard.start + part.start, part.stop - part.start
                rows[part, dims:] = random_points(seed, 1 + index, first, count, rows.shape[1] - dims)
            found.append(dealt.gathered(rows))
        before = [rows[:, :dims].copy() for rows in found]
        edges = [dealt.edges for dealt in blocks.species]
        for number, density in enumerate(blocks.density.T):
            block = [rows[edge[number] : edge[number + 1]] for rows, edge in zip(found, edges, strict=True)]
            for turn, (a, b) in enumerate(meetings):
                own, other = block[a], block[b]
                random = slice(dims + columns * turn, dims + columns * (turn + 1))
                meeting = _Meeting(
                    dims,
                    steps[a].operator.factors[settings[b].number] * duration,
                    (settings[a].mass, settings[b].mass),
                    steps[a].operator.exponent,
                )
                if a == b:
                    meeting.of_like(own[:, :dims], own[:, random], density[a])
                else:
                    many, few = (own, other) if len(own) >= len(other) else (other, own)
                    turned = meeting if many is own else replace(meeting, masses=meeting.masses[::-1])
                    turned.of_unlike(many[:, :dims], few[:, :dims], many[:, random], density[b if many is own else a])
        reports = []
        for particles, dealt, rows, old in zip(pushed, blocks.species, found, before, strict=True):
            change = torch.from_numpy(dealt.returned(rows[:, :dims] - old)).to(particles.v.device)
            v = (particles.v.double() + change).to(particles.v)
            moved = particles.move(v, torch.full_like(particles.log_f, math.nan))
            kinetic = mean_kinetic_energy(moved, comm)
            reports.append((moved, CollisionReport(math.nan, 1.0, kinetic, 0, 1, sparse_nodes=blocks.sparse)))
        return reports

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass


@dataclass(frozen=True)
class _Meeting:
    """How two species collide in a step, in dims dimensions: the factor C of their collisions times the duration."""

    dims: int
    strength: float
    masses: tuple[float, float]
    exponent: float

    def of_like(self, v: np.ndarray, random: np.ndarray, density: float) -> None:
        """Turn the velocities [n, dims] of particles that meet in pairs, by random numbers [n, dims + 2]."""
        order = np.argsort(random[:, -1], kind="stable")
        three = order[-3:] if len(order) % 2 and len(order) > 1 else order[:0]
        first, second = order[: len(order) - (len(three) or len(order) % 2)].reshape(-1, 2).T
        self._turn(v, first, v, second, random[first], density)
        for k, (one, other) in enumerate(pairwise([*three, *three[:1]])):
            self._turn(v, np.array([one]), v, np.array([other]), random[three[k : k + 1]], 0.5 * density)

    def of_unlike(self, many: np.ndarray, few: np.ndarray, random: np.ndarray, density: float) -> None:
        """Turn the velocities of two species that meet, the first in larger number, by its random numbers.

        Args:
            density: of the species that is met.
        """
        order = np.argsort(random[:, -1], kind="stable")
        for begin in range(0, len(many), len(few)) if len(few) else ():
            some = order[begin : begin + len(few)]  # a particle takes part in one collision at a time
            self._turn(many, some, few, np.arange(len(some)), random[some], density)

    def _turn(
        self,
        v: np.ndarray,
        first: np.ndarray,
        other: np.ndarray,
        second: np.ndarray,
        random: np.ndarray,
        density: float,
    ) -> None:
        """Turn the relative velocities of pairs: particles ``first`` of v, ``second`` of other, each at most once."""
        dims, (mass, mass_of_other) = self.dims, self.masses
        u = v[first] - other[second]
        speed = np.linalg.norm(u, axis=1, keepdims=True)
        met = speed[:, 0] > 0
        first, second, u, speed, random = first[met], second[met], u[met], speed[met], random[met]
        reduced = mass * mass_of_other / (mass + mass_of_other)
        variance = (1.0 if dims == 3 else 0.5) * self.strength * density / reduced**2 * speed**self.exponent
        angle = 2 * np.arctan(np.sqrt(variance) * ndtri(random[:, dims : dims + 1]))
        across = ndtri(random[:, :dims])
        across -= u * ((across * u).sum(1, keepdims=True) / speed**2)
        across *= speed / np.linalg.norm(across, axis=1, keepdims=True)
        change = reduced * (np.cos(angle) * u + np.sin(angle) * across - u)
        v[first] += change / mass
        other[second] -= change / mass_of_other
