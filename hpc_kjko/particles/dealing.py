"""Batches of an inner solve, and how the rows of a batch are dealt to all ranks.

A batch consists of a few segments of contiguous rows, which are stored on a few ranks. If only these worked on it, all
others would wait. So the rows are sent to all ranks, in whole pieces. A piece is added up before it is rounded
(:mod:`~hpc_kjko.particles.exact`), so the sums over all ranks have the same bits as without dealing. The numbers of the
rows determine which rank sends what to which rank. So ranks need not ask each other, and a rank that has no part in a
batch sends no message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BATCH, FOLDS, Shard, batches, fold_rows, folds


@dataclass(frozen=True)
class Batching:
    """The particles of each batch: about BATCH particles, fewer in small ensembles. Global rows alone determine them.

    Attributes:
        total: number of particles of all ranks.
        fitted: the folds whose particles are in batches.
        groups: number of groups of these folds. A batch has rows of one group. There are fewer groups than folds if the
            folds are smaller than a batch.
    """

    total: int
    fitted: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, total: int, fitted: tuple[int, ...]) -> Batching:
        """The batches of the folds ``fitted`` of ``total`` particles."""
        return cls(total, fitted, max(1, min(len(fitted), len(fitted) * total // (FOLDS * BATCH))))

    def __len__(self) -> int:
        return self.groups * batches(Shard(0, 0, self.total))[1]

    def scale(self, number: int) -> int:
        """The largest power of two by which shares of the total mass can be multiplied so that those of ``number``
        batches add up to at most about 1.

        Sums are rounded to a fixed unit (:mod:`~hpc_kjko.particles.exact`), and a batch of a large ensemble has only a
        small share. With this factor the sums over a batch are as accurate in any ensemble. A power of two does not
        round.
        """
        return 1 << max(0, (len(self) // number).bit_length() - 1)

    def of_rows(self, shard: Shard, device: torch.device) -> torch.Tensor:
        """The number of the batch of each particle of a rank [n]; −1 if it is in no batch."""
        group = torch.full((FOLDS,), -1, device=device)
        group[list(self.fitted)] = torch.from_numpy(self._groups).to(device)
        own = group[folds(shard, device)]
        return torch.where(own < 0, own, own + self.groups * batches(shard, device)[0])

    def rows(self, number: int) -> np.ndarray:
        """The global rows of a batch, in ascending order."""
        each, (_, parts) = fold_rows(self.total), batches(Shard(0, 0, self.total))
        own = np.sort(np.array(self.fitted)[self._groups == number % self.groups])
        starts = np.arange(FOLDS * each * (number // self.groups), self.total, FOLDS * each * parts)
        rows = (starts[:, None, None] + each * own[:, None] + np.arange(each)).reshape(-1)
        return rows[rows < self.total]

    @property
    def _groups(self) -> np.ndarray:
        return np.arange(len(self.fitted)) * self.groups // len(self.fitted)


class Dealing:
    """Deals the rows of batches to all ranks.

    Args:
        together: the size of a piece: the number of rows that are added before they are rounded. Each row block has
            whole pieces of a batch. So every rank has whole pieces, before and after the rows are dealt.
    """

    def __init__(self, batching: Batching, comm: Communicator, together: int):
        self.batching, self.comm, self.together = batching, comm, together
        shards = (Shard.of(batching.total, rank, comm.size) for rank in range(comm.size))
        self._starts = np.array([shard.start for shard in shards])

    def plan(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each piece of a batch: the rank that stores it, the rank that works on it, and its number of rows."""
        rows = self.batching.rows(number)
        source = np.searchsorted(self._starts, rows[:: self.together], side="right") - 1
        pieces, ranks = len(source), self.comm.size
        length = np.diff(np.append(np.arange(pieces) * self.together, len(rows)))
        if ranks <= pieces and np.bincount(source).max() <= -(-pieces // ranks):
            return source, source, length  # the ranks that store the rows share them evenly
        # Neighbouring pieces go to the same rank. If there are more ranks than pieces, each batch goes to other ranks.
        target = np.arange(pieces) * ranks // pieces + number % max(1, ranks // pieces)
        return source, target, length

    def __call__(self, number: int, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Send the rows of a batch to the ranks that work on them, and return the rows of this rank. Collective.

        Args:
            parts: tensors [n, ...] with the rows of the batch that this rank stores.
        """
        source, target, length = self.plan(number)
        if np.array_equal(source, target):
            return parts
        rank = self.comm.rank
        leaving = np.repeat(target, np.where(source == rank, length, 0))
        coming = np.repeat(source, np.where(target == rank, length, 0))
        packed = np.concatenate([_bytes_of(part) for part in parts.values()], axis=1)
        outgoing = {int(other): packed[leaving == other] for other in np.unique(leaving)}
        shapes = {int(other): (int((coming == other).sum()), packed.shape[1]) for other in np.unique(coming)}
        found = np.concatenate([packed[:0], *self.comm.exchange(outgoing, shapes, packed.dtype)])
        dealt = {name: part.new_empty(len(found), *part.shape[1:]) for name, part in parts.items()}
        widths = np.cumsum([_bytes_of(part).shape[1] for part in dealt.values()])
        for part, column in zip(dealt.values(), np.split(found, widths[:-1], axis=1), strict=True):
            _bytes_of(part)[...] = column
        return dealt


def _bytes_of(part: torch.Tensor) -> np.ndarray:
    """The bytes of each row [n, bytes]. They share the memory of the tensor if it is contiguous."""
    return part.reshape(len(part), math.prod(part.shape[1:])).contiguous().view(torch.uint8).numpy()
