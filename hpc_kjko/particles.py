"""The particles of a rank, and how an ensemble is drawn that does not depend on the number of ranks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from hpc_kjko.problems import Problem
from hpc_kjko.quasirandom import Sobol

#: Particles per global block: the unit in which particles are dealt to ranks and checksummed in files.
BLOCK = 1024
#: Particles handled at a time by full passes, so that temporaries stay in cache and memory stays flat.
PASS = 65536


@dataclass(frozen=True)
class Shard:
    """The contiguous rows [start, stop) of ``total`` global particles that one rank holds: whole blocks."""

    start: int
    stop: int
    total: int

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> Shard:
        """Deal whole blocks to ranks as evenly as they go; a rank may be left without particles."""
        blocks = -(-total // BLOCK)
        first, last = blocks * rank // size, blocks * (rank + 1) // size
        return cls(min(first * BLOCK, total), min(last * BLOCK, total), total)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Particles:
    """One rank's particles. Moving them makes a new object: the state of the last good step survives a failure.

    Attributes:
        x: positions [n, dx]; v: velocities [n, dv]; log_f: log-density at the particles [n].
        shard: which global rows these are.
        mass: ∫f of the whole ensemble; every particle carries ``mass / shard.total`` of it.
        periods: box lengths [dx], or None in unbounded space.
    """

    x: torch.Tensor
    v: torch.Tensor
    log_f: torch.Tensor
    shard: Shard
    mass: float
    periods: tuple[float, ...] | None

    @property
    def weighting(self) -> float:
        """The mass one particle carries."""
        return self.mass / self.shard.total

    def drift(self, duration: float) -> Particles:
        """x ← x + duration · v, wrapped into the periodic box."""
        x = torch.add(self.x, self.v[:, : self.x.shape[1]], alpha=duration)
        if self.periods:
            box = torch.tensor(self.periods, dtype=x.dtype, device=x.device)
            x = torch.remainder(x, box)
            x = torch.where(x >= box, torch.zeros_like(x), x)  # remainder of -1e-20 rounds up to the length itself
        return replace(self, x=x)

    def kick(self, duration: float, acceleration: torch.Tensor) -> Particles:
        """v ← v + duration · acceleration [n, dx], on the first dx velocity components."""
        v = self.v.clone()
        v[:, : self.x.shape[1]].add_(acceleration, alpha=duration)
        return replace(self, v=v)

    def move(self, v: torch.Tensor, log_f: torch.Tensor) -> Particles:
        """Velocities and log-density after a collision step."""
        return replace(self, v=v, log_f=log_f)


def passes(count: int, size: int = PASS) -> list[slice]:
    """Slices that cover ``count`` particles in pieces of ``size``; one empty slice for an empty shard."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def uniform_points(start: Literal["quiet", "random"], seed: int, first: int, count: int, dims: int) -> np.ndarray:
    """Rows [first, first + count) of the global sequence of uniform points, whoever asks for them.

    ``quiet`` is one scrambled Sobol sequence; ``random`` is the counter-based Philox generator, advanced by a fixed
    number of counters per particle.

    Returns:
        [count, dims] float64, strictly inside (0, 1).
    """
    if start == "quiet":
        points = _sobol(dims, seed).points(first, count)
    else:
        counters = -(-dims // 4)  # a Philox counter gives four doubles
        generator = np.random.Philox(key=seed)
        generator.advance(counters * first)
        points = np.random.Generator(generator).random((count, 4 * counters))[:, :dims]
    return np.clip(points, 2.0**-64, 1 - 2.0**-53)


_sobol = functools.cache(Sobol)


def draw(
    problem: Problem,
    shard: Shard,
    *,
    start: Literal["quiet", "random"],
    seed: int,
    temperature: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Particles:
    """Draw a rank's part of the ensemble from a problem's initial density, log-density included.

    Block by block: vectorised functions may round differently at another place in an array, and the ensemble must
    have the same bits on any number of ranks.
    """
    dx, dv = problem.space_dims, problem.velocity_dims
    x = torch.empty(len(shard), dx, dtype=dtype, device=device)
    v = torch.empty(len(shard), dv, dtype=dtype, device=device)
    log_f = torch.empty(len(shard), dtype=dtype, device=device)
    for rows in passes(len(shard), BLOCK):
        points = uniform_points(start, seed, shard.start + rows.start, rows.stop - rows.start, dx + dv)
        x_rows, v_rows = (torch.from_numpy(array) for array in problem.sample(points, temperature))
        x[rows], v[rows] = x_rows.to(device, dtype), v_rows.to(device, dtype)
        log_f[rows] = problem.log_density(x_rows, v_rows, temperature).to(device, dtype)
    return Particles(x, v, log_f, shard, problem.mass, problem.periods)
