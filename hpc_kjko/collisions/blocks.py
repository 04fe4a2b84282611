"""Collision blocks: groups of particles that collide with each other, new in each step, the same on any number of
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_kjko.fields.mesh import Grid
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import counts
from hpc_kjko.particles.state import Particles

#: An odd number near 2⁶⁴ divided by the golden ratio, and the multipliers of SplitMix64 (doi:10.1145/2714064.2660195).
_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashed(numbers: np.ndarray) -> np.ndarray:
    """Pseudo-random numbers [n], uint64, one for each of the given numbers."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Dealt:
    """The particles of a species in collision blocks, and the transfer to the rank of their block and back.

    Attributes:
        order: the particles of this rank, sorted by the rank of their block, then by their rows [n].
        sent, received: number of particles that go to each rank, and that come from each rank.
        sorted_by_block: the order of the received particles by blocks and rows.
        edges: where each block of this rank begins in that order, and where the last one ends.
    """

    comm: Communicator
    order: np.ndarray
    sent: np.ndarray
    received: np.ndarray
    sorted_by_block: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, block: np.ndarray, rank: np.ndarray, comm: Communicator) -> Dealt:
        """Distribute particles, from the block of each [n] and the rank of each block. The ranks must not decrease with
        the block number. Collective.
        """
        to = rank[block]
        order = np.argsort(to, kind="stable")
        sent = np.bincount(to, minlength=comm.size)
        received = np.array(comm.allgather(sent))[:, comm.rank]
        there = _exchanged(comm, block[order], sent, received)
        own = np.searchsorted(rank, [comm.rank, comm.rank + 1])
        sizes = np.bincount(there - own[0], minlength=own[1] - own[0])
        return cls(comm, order, sent, received, np.argsort(there, kind="stable"), np.cumsum([0, *sizes]))

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, …] of the particles of this rank, as rows of the particles in the blocks of this rank, sorted by
        block. Collective.
        """
        if self.comm.size == 1:
            return rows[self.sorted_by_block]
        return _exchanged(self.comm, rows[self.order], self.sent, self.received)[self.sorted_by_block]

    def returned(self, rows: np.ndarray) -> np.ndarray:
        """Rows [n, …] of the particles in the blocks of this rank, as rows of this rank. Collective."""
        there = np.empty_like(rows)
        there[self.sorted_by_block] = rows
        if self.comm.size == 1:
            return there
        found = np.empty((len(self.order), *rows.shape[1:]), rows.dtype)
        found[self.order] = _exchanged(self.comm, there, self.received, self.sent)
        return found

    @property
    def block(self) -> np.ndarray:
        """The block of this rank to which each received particle belongs."""
        return np.repeat(np.arange(len(self.edges) - 1), np.diff(self.edges))


@dataclass(frozen=True)
class Blocks:
    """Which particles collide with each other in a step.

    The collision block of a particle follows from its cell, its global row, the seed of its species and the step. Each
    block is on one rank as a whole. Its particles are in the order of their rows.

    Attributes:
        species: the distribution of each species over the blocks.
        density: for each species, the mean density in the cell of each block of this rank [species, blocks].
        per_volume: 1 / (the part of the volume that a block stands for), for each block of this rank [blocks].
        sparse: the fraction of the cells that have fewer than two particles.
    """

    species: tuple[Dealt, ...]
    density: np.ndarray
    per_volume: np.ndarray
    sparse: float

    @classmethod
    def drawn(
        cls,
        plasma: Sequence[Particles],
        cells: Sequence[np.ndarray],
        number: int,
        volume: float,
        size: int,
        seeds: Sequence[int],
        step: int,
        comm: Communicator,
    ) -> Blocks:
        """Draw blocks of about ``size`` particles of a species. Collective.

        Args:
            plasma: the particles of each species.
            cells: the cell of each particle, for each species [n].
            number: number of cells.
            volume: of a cell.
            size: ``physics.landau.block``.
            seeds: of the species, below 2⁶⁴.
            step: number of the step in the run, below 2⁶⁴.
        """
        found = []
        for particles, cell in zip(plasma, cells, strict=True):
            weight = counts(particles.shares(), particles.shard.total).cpu().numpy()  # in units of the mean weight
            found += [np.bincount(cell, minlength=number).astype(float)]
            found += [np.bincount(cell, weights=weight, minlength=number)]
        sums = comm.sum(np.stack(found))
        count = sums[::2].sum(0)
        unit = [[particles.total_weight / (particles.shard.total * volume)] for particles in plasma]
        density = sums[1::2] * np.array(unit)
        blocks = np.maximum(1, np.rint(count / (len(plasma) * size))).astype(np.int64)
        first, total = np.cumsum(blocks) - blocks, int(blocks.sum())
        rank = np.arange(total) * comm.size // total  # neighbouring blocks are on the same rank
        dealt = []
        for particles, cell, seed in zip(plasma, cells, seeds, strict=True):
            rows = np.arange(particles.shard.start, particles.shard.stop, dtype=np.uint64)
            run, now = (np.array([part], dtype=np.uint64) for part in (seed, step))
            drawn = hashed(rows ^ hashed(hashed(run) ^ now))
            block = first[cell] + (drawn % blocks[cell].astype(np.uint64)).astype(np.int64)
            dealt.append(Dealt.of(block, rank, comm))
        of_cell = np.searchsorted(first, np.flatnonzero(rank == comm.rank), side="right") - 1
        return cls(tuple(dealt), density[:, of_cell], blocks[of_cell] / volume, float((count < 2).mean()))


def blocks_of_cells(
    plasma: Sequence[Particles], grid: Grid | None, size: int, seeds: Sequence[int], step: int, comm: Communicator
) -> Blocks:
    """Collision blocks in the cells of a mesh. Without a mesh the whole box is one cell. For the arguments see
    :meth:`Blocks.drawn`.
    """
    if grid is None:
        whole = [np.zeros(len(particles.x), np.int64) for particles in plasma]
        volume = math.prod(plasma[0].periods or ())
        return Blocks.drawn(plasma, whole, 1, volume, size, seeds, step, comm)
    shape, cells = np.array(grid.cells), []
    for particles in plasma:
        places = np.floor(particles.x.cpu().numpy() / np.array(grid.spacing)).astype(np.int64) % shape
        cells.append(np.ravel_multi_index(tuple(places.T), grid.cells))
    return Blocks.drawn(plasma, cells, int(np.prod(shape)), grid.cell_volume, size, seeds, step, comm)


def _exchanged(comm: Communicator, rows: np.ndarray, sent: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Send rows, sorted by destination rank, and return the received rows, sorted by source rank."""
    parts = np.split(rows, np.cumsum(sent)[:-1])
    return np.concatenate(comm.exchange(parts, [(int(number), *rows.shape[1:]) for number in received]))
