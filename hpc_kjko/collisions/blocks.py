"""Blocks of particles that collide with each other: drawn anew in each step, the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_kjko.fields.mesh import Grid
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import counts
from hpc_kjko.particles.state import Particles

#: An odd number near 2⁶⁴ divided by the golden ratio, and the multipliers of SplitMix64 (doi:10.1145/2714064.2660195).
_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashed(numbers: np.ndarray) -> np.ndarray:
    """Pseudo-random numbers [n], uint64, one for each of these."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Blocks:
    """Which particles collide with each other in a step, and the way to the rank that sums over their pairs and back.

    A particle's block follows from its cell, its global row, the seed and the step. Every block is on one rank whole,
    its particles in the order of their rows.

    Attributes:
        order: this rank's particles, sorted by the rank of their block, then by their rows [n].
        sent, received: how many particles go to each rank, and how many come from there.
        sorted_by_block: of those that came, the order by blocks and rows; sizes: of this rank's blocks.
        density: the mean density in the cell of each of this rank's blocks.
        sparse: the part of the cells that have fewer than two particles.
    """

    comm: Communicator
    order: np.ndarray
    sent: np.ndarray
    received: np.ndarray
    sorted_by_block: np.ndarray
    sizes: np.ndarray
    density: np.ndarray
    sparse: float

    @classmethod
    def drawn(
        cls,
        particles: Particles,
        cell: np.ndarray,
        cells: int,
        volume: float,
        size: int,
        seed: tuple[int, int],
        comm: Communicator,
    ) -> Blocks:
        """Blocks of about ``size`` particles. Collective.

        Args:
            cell: of each particle [n]; cells: how many there are; volume: of one of them.
            seed: that of the run, and the step: below 2⁶⁴ each.
        """
        weight = counts(particles.shares(), particles.shard.total).cpu().numpy()  # in units of the mean
        count = np.bincount(cell, minlength=cells).astype(float)
        mass = np.bincount(cell, weights=weight, minlength=cells)
        count, mass = comm.sum(np.stack([count, mass]))
        density = mass * (particles.total_weight / (particles.shard.total * volume))
        sparse = float((count < 2).mean())
        blocks = np.maximum(1, np.rint(count / size)).astype(np.int64)
        first = np.cumsum(blocks) - blocks
        rows = np.arange(particles.shard.start, particles.shard.stop, dtype=np.uint64)
        run, step = (np.array([number], dtype=np.uint64) for number in seed)
        drawn = hashed(rows ^ hashed(hashed(run) ^ step))
        block = first[cell] + (drawn % blocks[cell].astype(np.uint64)).astype(np.int64)
        to = block * comm.size // int(blocks.sum())  # neighbouring blocks on one rank
        order = np.argsort(to, kind="stable")
        sent = np.bincount(to, minlength=comm.size)
        received = np.array(comm.allgather(sent))[:, comm.rank]
        there = _exchanged(comm, block[order], sent, received)
        sorted_by_block = np.argsort(there, kind="stable")
        own, sizes = np.unique(there, return_counts=True)
        of_cell = np.searchsorted(first, own, side="right") - 1
        return cls(comm, order, sent, received, sorted_by_block, sizes, density[of_cell], sparse)

    def gathered(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows [n, k] of this rank's particles, as rows of the blocks that are summed here [size, k]. Collective."""
        there = _exchanged(self.comm, rows[self.order], self.sent, self.received)
        return np.split(there[self.sorted_by_block], np.cumsum(self.sizes)[:-1]) if len(self.sizes) else []

    def returned(self, blocks: list[np.ndarray], columns: int) -> np.ndarray:
        """What was found for the particles of the blocks here, as rows [n, columns] of this rank's own. Collective."""
        there = np.empty((int(self.received.sum()), columns))
        if blocks:
            there[self.sorted_by_block] = np.concatenate(blocks)
        found = np.empty((len(self.order), columns))
        found[self.order] = _exchanged(self.comm, there, self.received, self.sent)
        return found


def blocks_of_cells(
    particles: Particles, grid: Grid | None, size: int, seed: tuple[int, int], comm: Communicator
) -> Blocks:
    """Blocks of the cells of a mesh; without one the whole box is a cell. Arguments as of :meth:`Blocks.drawn`."""
    if grid is None:
        return Blocks.drawn(
            particles, np.zeros(len(particles.x), np.int64), 1, particles.total_weight, size, seed, comm
        )
    shape = np.array(grid.cells)
    places = np.floor(particles.x.cpu().numpy() / np.array(grid.spacing)).astype(np.int64) % shape
    cell = np.ravel_multi_index(tuple(places.T), grid.cells)
    return Blocks.drawn(particles, cell, int(np.prod(shape)), grid.cell_volume, size, seed, comm)


def _exchanged(comm: Communicator, rows: np.ndarray, sent: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Rows that are sorted by the rank that they go to, as those that come, sorted by the rank that they come from."""
    parts = np.split(rows, np.cumsum(sent)[:-1])
    return np.concatenate(comm.exchange(parts, [(int(number), *rows.shape[1:]) for number in received]))
