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

#: Particles per global block: the unit in which particles are dealt to ranks and checksummed in files.
BLOCK = 1024
#: Particles drawn at a time.
DRAWN = 16 * BLOCK
#: Parts of the ensemble in an inner solve: one to choose between fits, one to certify, the rest to fit.
FOLDS, SELECT, CERTIFY = 8, 3, 7
#: Particles of a batch, or somewhat more: enough for the shape of a log-density without noise.
BATCH = 2048
#: The ends of what is strictly inside (0, 1).
_SMALLEST, _LARGEST = 2.0**-64, 1 - 2.0**-53
#: Particles handled at a time by full passes, so that temporaries stay in cache and memory stays flat; and how many
#: times as many on a GPU, which would be idle with less.
PASS, ON_GPU = 65536, 64


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
        weight: the part of ∫f that each particle carries [n], float64; over all ranks they add up to ``total_weight``
            (weights by density as well as the positions sample it). Equal weights are one number seen n times,
            which takes no memory (:func:`equal_weights`).
        shard: which global rows these are.
        total_weight: ∫f of the whole ensemble.
        periods: of the torus that they live on [dx], or None in unbounded space.
        walls: of their box, if it has any.
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
        """The part of ∫f that each particle is: [n]. An ensemble mean is the sum of share · quantity."""
        if self.has_equal_weights:
            return equal_weights(1.0, self.shard, self.weight.device, dtype)
        return (self.weight / self.total_weight).to(dtype)

    def drift(self, duration: float) -> Particles:
        """x ← x + duration · v, wrapped into the periodic box or reflected by its walls."""
        return self.arrived(drifted(self.x, self.v, duration, self.periods), self.v)

    def arrived(self, x: torch.Tensor, v: torch.Tensor) -> Particles:
        """The particles at x on the torus [n, dx] with velocities v [n, dv], those beyond a wall turned back."""
        if self.walls and self.periods:
            x, v = self.walls.reflected(x, v, self.periods)
        return replace(self, x=x, v=v)

    def kick(self, duration: float, acceleration: torch.Tensor) -> Particles:
        """v ← v + duration · acceleration [n, dx], on the first dx velocity components."""
        v = self.v.clone()
        v[:, : self.x.shape[1]].add_(acceleration, alpha=duration)
        return replace(self, v=v)

    def move(self, v: torch.Tensor, log_f: torch.Tensor) -> Particles:
        """Velocities and log-density after a collision step."""
        return replace(self, v=v, log_f=log_f)


def drifted(x: torch.Tensor, v: torch.Tensor, duration: float, periods: tuple[float, ...] | None) -> torch.Tensor:
    """x + duration · v [n, dx], wrapped into the periodic box."""
    if periods and kernels.take(x):
        return kernels.drift(x, v, duration, periods)
    x = torch.add(x, v[:, : x.shape[1]], alpha=duration)
    if periods:
        box = torch.tensor(periods, dtype=x.dtype, device=x.device)
        x = torch.remainder(x, box)
        x = torch.where(x >= box, torch.zeros_like(x), x)  # remainder of -1e-20 rounds up to the length itself
    return x


def equal_weights(
    total_weight: float, shard: Shard, device: torch.device | None = None, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """``total_weight / shard.total`` for each particle of a rank: [n], in the memory of one number."""
    return torch.full((1,), total_weight / shard.total, dtype=dtype, device=device).expand(len(shard))


def folds(shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """Which of the FOLDS each particle of a rank is in: [n], by its global row alone.

    A fold is made of contiguous, aligned blocks of a power of two, dealt in turn: each such block of a Sobol sequence
    is itself evenly spread. (A stride of 8 through the sequence would confine x to part of the box.)
    """
    return torch.arange(shard.start, shard.stop, device=device) // fold_rows(shard.total) % FOLDS


def batches(shard: Shard, device: torch.device | None = None) -> tuple[torch.Tensor, int]:
    """Which batch of its fold each particle of a rank is in [n], by its global row alone, and how many a fold has."""
    parts = max(1, shard.total // (FOLDS * BATCH))
    return torch.arange(shard.start, shard.stop, device=device) // (fold_rows(shard.total) * FOLDS) % parts, parts


def fold_rows(total: int) -> int:
    """Rows of such a block, in an ensemble of ``total`` particles: at most a block, and at least two in each fold."""
    return min(BLOCK, 2 ** max(0, (total // (2 * FOLDS)).bit_length() - 1))


def passes(count: int, size: int = PASS) -> list[slice]:
    """Slices that cover ``count`` particles in pieces of ``size``; one empty slice for an empty shard."""
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def passes_over(rows: torch.Tensor) -> list[slice]:
    """Slices that cover the rows of a tensor, on its device: see :func:`passes`."""
    return passes(len(rows), at_once(PASS, rows.device))


def at_once(count: int, device: torch.device) -> int:
    """How many particles to handle at a time on a device: ``count``, on a GPU ON_GPU times as many."""
    return ON_GPU * count if device.type == "cuda" else count


def uniform_points(
    start: Literal["quiet", "random", "grid"], seed: int, first: int, count: int, dims: int
) -> np.ndarray:
    """Rows [first, first + count) of the global sequence of uniform points, whoever asks for them.

    ``quiet`` is one scrambled Sobol sequence; the others are the counter-based Philox generator, advanced by a fixed
    number of counters per particle.

    Returns:
        [count, dims] float64, strictly inside (0, 1); the numbers of each axis are contiguous in memory.
    """
    if start == "quiet":
        return np.clip(_sobol(dims, seed).points(first, count), _SMALLEST, _LARGEST)
    return random_points(seed, 0, first, count, dims)


def random_points(seed: int, stream: int, first: int, count: int, dims: int) -> np.ndarray:
    """Rows [first, first + count) of a sequence of independent uniform points, one sequence for each (seed, stream).

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
    """Torch on one thread: with more it may add in another order, and divides arrays at other places."""
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
    """Draw a rank's part of the ensemble from a problem's initial density, log-density included.

    Always the same DRAWN rows at a time, if need be with some of another rank, on one thread: vectorised functions may
    round differently at another place in an array, and the ensemble must have the same bits on any number of ranks.
    Whatever the start, log f is the analytic log f0 at the particles.

    Args:
        start: "quiet" (Sobol) or "random" (Philox) points mapped to phase space; "grid" is the paper's: random, with
            positions by inverse transform of the mass in each of the ``cells`` and uniform jitter inside the cell.
        weights: "equal", or "density": positions uniform over the box and weights in proportion to the density there.
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
        with torch.no_grad():  # a density of the user's may have parameters to train
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
    """The paper's start: a cell by inverse transform of the mesh's mass function, then uniform inside the cell.

    The mass of a cell is its volume times the density at its centre. What is left of the uniform number that chose the
    cell is itself uniform, and serves as the jitter along the last axis: n uniform numbers place n coordinates.
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
