"""The particles of a rank, and how an ensemble is drawn that does not depend on the number of ranks."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from hpc_kjko.kernels import particles as kernels
from hpc_kjko.problems import PeriodicProblem, Problem
from hpc_kjko.problems.quasirandom import Sobol
from hpc_kjko.walls import Walls

#: Particles in a row block. Row blocks are the unit in which particles are dealt to ranks and checksummed in files.
BLOCK = 1024
#: Particles drawn at a time.
DRAWN = 16 * BLOCK
#: Parts of the ensemble in an inner solve: one chooses between fits, one certifies, and the rest are fitted.
FOLDS, SELECT, CERTIFY = 8, 3, 7
#: Particles in a batch: enough for the shape of a log-density without noise. Most batches have slightly more, and those
#: of small ensembles fewer.
BATCH = 2048
#: The smallest and largest number strictly inside (0, 1).
_SMALLEST, _LARGEST = 2.0**-64, 1 - 2.0**-53
#: Particles handled at a time by full passes, so that temporary arrays stay in the cache and memory stays bounded; and
#: the factor for a GPU, which needs more particles to be busy.
PASS, ON_GPU = 65536, 64


@dataclass(frozen=True)
class Shard:
    """The contiguous rows [start, stop) of ``total`` global particles that one rank holds: whole row blocks."""

    start: int
    stop: int
    total: int

    @classmethod
    def of(cls, total: int, rank: int, size: int) -> Shard:
        """Deal whole row blocks to ranks as evenly as possible. A rank may get no particles."""
        blocks = -(-total // BLOCK)
        first, last = blocks * rank // size, blocks * (rank + 1) // size
        return cls(min(first * BLOCK, total), min(last * BLOCK, total), total)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Particles:
    """The particles of one rank. Moving them makes a new object, so the state of the last good step survives a failure.

    Attributes:
        x: positions [n, dx]; v: velocities [n, dv]; log_f: log-density at the particles [n].
        weight: the part of ∫f that each particle carries [n], float64. Over all ranks they add up to ``total_weight``.
            With weights by density the particles are a weighted sample of f. Equal weights are one number in memory
            that appears n times (:func:`equal_weights`).
        shard: the global rows of these particles.
        total_weight: ∫f of the whole ensemble.
        periods: of the torus on which they live [dx], or None in unbounded space.
        walls: of their box, or None.
        has_equal_weights: whether all particles of all ranks carry ``total_weight / shard.total``.
    """

    x: torch.Tensor
    v: torch.Tensor
    log_f: torch.Tensor
    weight: torch.Tensor
    shard: Shard
    total_weight: float
    periods: tuple[float, ...] | None
    has_equal_weights: bool = True
    walls: Walls | None = None

    def shares(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The fraction of ∫f that each particle carries: [n]. An ensemble mean is the sum of share · quantity."""
        if self.has_equal_weights:
            return equal_weights(1.0, self.shard, self.weight.device, dtype)
        return (self.weight / self.total_weight).to(dtype)

    def drift(self, duration: float) -> Particles:
        """x ← x + duration · v, wrapped into the periodic box or reflected by its walls."""
        return self.arrived(drifted(self.x, self.v, duration, self.periods), self.v)

    def arrived(self, x: torch.Tensor, v: torch.Tensor) -> Particles:
        """The particles at x on the torus [n, dx] with velocities v [n, dv]. Particles beyond a wall are reflected."""
        if self.walls and self.periods:
            x, v = self.walls.reflected(x, v, self.periods)
        return replace(self, x=x, v=v)

    def kick(self, duration: float, acceleration: torch.Tensor) -> Particles:
        """v ← v + duration · acceleration [n, dx], for the first dx velocity components."""
        v = self.v.clone()
        v[:, : self.x.shape[1]].add_(acceleration, alpha=duration)
        return replace(self, v=v)

    def move(self, v: torch.Tensor, log_f: torch.Tensor) -> Particles:
        """The particles with the velocities and log-density after a collision step."""
        return replace(self, v=v, log_f=log_f)


def drifted(x: torch.Tensor, v: torch.Tensor, duration: float, periods: tuple[float, ...] | None) -> torch.Tensor:
    """x + duration · v [n, dx], wrapped into the periodic box."""
    if periods and kernels.take(x):
        return kernels.drift(x, v, duration, periods)
    x = torch.add(x, v[:, : x.shape[1]], alpha=duration)
    if periods:
        box = torch.tensor(periods, dtype=x.dtype, device=x.device)
        x = torch.remainder(x, box)
        x = torch.where(x >= box, torch.zeros_like(x), x)  # the remainder of -1e-20 rounds up to the length itself
    return x


def equal_weights(
    total_weight: float, shard: Shard, device: torch.device | None = None, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """``total_weight / shard.total`` for each particle of a rank: [n], in the memory of one number."""
    return torch.full((1,), total_weight / shard.total, dtype=dtype, device=device).expand(len(shard))


def folds(shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """The fold, from 0 to FOLDS − 1, of each particle of a rank: [n]. It depends on the global row alone.

    A fold consists of contiguous, aligned segments of rows, whose length is a power of two. Segments are dealt to the
    folds in turn. Each segment of a Sobol sequence is itself evenly spread. (A stride of 8 through the sequence would
    confine x to part of the box.)
    """
    return torch.arange(shard.start, shard.stop, device=device) // fold_rows(shard.total) % FOLDS


def batches(shard: Shard, device: torch.device | None = None) -> tuple[torch.Tensor, int]:
    """The batch within its fold of each particle of a rank [n], which depends on its global row alone; and the number
    of batches of a fold.
    """
    parts = max(1, shard.total // (FOLDS * BATCH))
    return torch.arange(shard.start, shard.stop, device=device) // (fold_rows(shard.total) * FOLDS) % parts, parts


def fold_rows(total: int) -> int:
    """The length of a segment of a fold (:func:`folds`) for ``total`` particles: at most BLOCK rows, and so short that
    each fold has at least two segments.
    """
    return min(BLOCK, 2 ** max(0, (total // (2 * FOLDS)).bit_length() - 1))


def passes(count: int, size: int = PASS) -> list[slice]:
    """Slices of at most ``size`` that cover ``count`` particles; one empty slice if there are none."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def passes_over(rows: torch.Tensor) -> list[slice]:
    """Slices that cover the rows of a tensor, of a size that suits its device: see :func:`passes`."""
    return passes(len(rows), at_once(PASS, rows.device))


def at_once(count: int, device: torch.device) -> int:
    """How many particles to handle at a time on a device: ``count``, or ON_GPU times as many on a GPU."""
    return ON_GPU * count if device.type == "cuda" else count


def uniform_points(
    start: Literal["quiet", "random", "grid"], seed: int, first: int, count: int, dims: int
) -> np.ndarray:
    """Rows [first, first + count) of the global sequence of uniform points, the same on any rank.

    ``quiet`` is one scrambled Sobol sequence. The other starts use the counter-based Philox generator, advanced by a
    fixed number of counters per particle.

    Returns:
        [count, dims] float64, strictly inside (0, 1). The numbers of each axis are contiguous in memory.
    """
    if start == "quiet":
        return np.clip(_sobol(dims, seed).points(first, count), _SMALLEST, _LARGEST)
    return random_points(seed, 0, first, count, dims)


def random_points(seed: int, stream: int, first: int, count: int, dims: int) -> np.ndarray:
    """Rows [first, first + count) of a sequence of independent uniform points. Each (seed, stream) has its own
    sequence.

    Returns:
        [count, dims] float64, strictly inside (0, 1).
    """
    counters = -(-dims // 4)  # a Philox counter gives four doubles
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64))
    generator.advance(counters * first)
    points = np.random.Generator(generator).random((count, 4 * counters))
    return np.clip(points.T[:dims], _SMALLEST, _LARGEST, out=np.empty((dims, count))).T


_sobol = functools.cache(Sobol)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context with torch on one thread. With more threads torch may add in another order, and divides arrays at other
    places.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def draw(
    problem: Problem,
    shard: Shard,
    *,
    start: Literal["quiet", "random", "grid"],
    weights: Literal["equal", "density"] = "equal",
    cells: tuple[int, ...] | None = None,
    seed: int,
    temperature: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Particles:
    """Draw the part of the ensemble that belongs to a rank from the initial density of a problem, including log f.

    Always the same DRAWN rows are drawn at a time, on one thread. They may include rows of another rank. This is
    necessary because vectorised functions may round differently at another place in an array, and the ensemble must
    have the same bits on any number of ranks. For every start, log f is the analytic log f0 at the particles.

    Args:
        start: "quiet" (Sobol) or "random" (Philox) points mapped to phase space. "grid" is the start of the paper:
            random, with positions by inverse transform of the mass in each of the ``cells`` and a uniform jitter inside
            the cell.
        weights: "equal", or "density": positions are uniform over the box, and weights are proportional to the density.
        cells: mesh of the grid start [dx].
    """
    dx, dv = problem.space_dims, problem.velocity_dims
    x = torch.empty(len(shard), dx, dtype=dtype, device=device)
    v = torch.empty(len(shard), dv, dtype=dtype, device=device)
    log_f = torch.empty(len(shard), dtype=dtype, device=device)
    weight = equal_weights(problem.mass, shard, device)
    if weights == "density":
        weight = weight.clone()
    place: Callable[[np.ndarray], np.ndarray] | None = None
    if start == "grid":
        assert isinstance(problem, PeriodicProblem) and cells is not None
        place = CellSampler(problem, cells)
    elif weights == "density":
        place = functools.partial(np.multiply, np.asarray(problem.periods))
    for first in range(shard.start // DRAWN * DRAWN, shard.stop, DRAWN):
        last = min(first + DRAWN, shard.total)
        points = uniform_points(start, seed, first, last - first, dx + dv)
        if place is None:
            x_drawn, v_drawn = problem.sample(points, temperature)
        else:
            assert isinstance(problem, PeriodicProblem)
            x_drawn, v_drawn = place(points[:, :dx]), problem.velocities(points[:, dx:], temperature)
        x_rows, v_rows = torch.from_numpy(x_drawn), torch.from_numpy(v_drawn)
        with torch.no_grad():  # a user's density may have trainable parameters
            own = problem.log_density(x_rows, v_rows, temperature) + math.log(problem.mean_density)
        begin, end = max(first, shard.start), min(last, shard.stop)
        mine, rows = slice(begin - first, end - first), slice(begin - shard.start, end - shard.start)
        x[rows], v[rows], log_f[rows] = x_rows[mine], v_rows[mine], own[mine]
        if weights == "density":
            assert isinstance(problem, PeriodicProblem)
            density = torch.from_numpy(problem.spatial_density(x_drawn))
            weight[rows] = (problem.mass / shard.total) * density[mine]
    equal, walls = weights == "equal", problem.walls
    return Particles(x, v, log_f, weight, shard, problem.mass, problem.torus, has_equal_weights=equal, walls=walls)


class CellSampler:
    """The start of the paper: a cell by inverse transform of the mass function of the mesh, then a uniform position
    inside the cell.

    The mass of a cell is its volume times the density at its centre. The remainder of the uniform number that chose the
    cell is itself uniform. It is the jitter along the last axis, so n uniform numbers give n coordinates.
    """

    def __init__(self, problem: PeriodicProblem, cells: tuple[int, ...]):
        self.cells = cells
        self.spacing = np.asarray(problem.periods) / cells
        index = np.stack(np.unravel_index(np.arange(math.prod(cells)), cells), axis=-1)
        cumulative = np.cumsum(problem.spatial_density((index + 0.5) * self.spacing))
        self.edges = np.append(0.0, cumulative / cumulative[-1])

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Positions [n, dx] of uniform points [n, dx] strictly inside (0, 1)."""
        cell = np.searchsorted(self.edges[1:], points[:, -1], side="right")
        below, above = self.edges[cell], self.edges[cell + 1]
        jitter = points.copy(order="K")
        jitter[:, -1] = (points[:, -1] - below) / (above - below)
        index = np.stack(np.unravel_index(cell, self.cells), axis=-1)
        return np.minimum((index + jitter) * self.spacing, np.nextafter(self.spacing * self.cells, 0))
