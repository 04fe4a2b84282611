"""Batches of an inner solve, and how the rows of a batch are dealt to all ranks.

A batch is a few runs of contiguous rows, and so lies on a few ranks: with many ranks all others would wait. So each
rank is sent some of its rows, in pieces that are added up before they are rounded (:mod:`~hpc_kjko.particles.exact`).
The sums over all ranks then have the same bits. Who sends what to whom follows from the numbers of the rows: nothing
is asked, and ranks that have no part in a batch send nothing.
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
    """Which particles of an ensemble each batch has: BATCH and somewhat more, by their global rows alone.

    Attributes:
        total: particles of the ensemble.
        fitted: the folds that take part.
        groups: as many batches have rows of the same part of these: fewer than folds where those are smaller.
    """

    total: int
    fitted: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, total: int, fitted: tuple[int, ...]) -> Batching:
        """Of some folds of an ensemble."""
        return cls(total, fitted, max(1, min(len(fitted), len(fitted) * total // (FOLDS * BATCH))))

    def __len__(self) -> int:
        return self.groups * batches(Shard(0, 0, self.total))[1]

    def of_rows(self, shard: Shard, device: torch.device) -> torch.Tensor:
        """Which batch each particle of a rank is in [n]; −1 in none."""
        group = torch.full((FOLDS,), -1, device=device)
        group[list(self.fitted)] = torch.from_numpy(self._groups).to(device)
        own = group[folds(shard, device)]
        return torch.where(own < 0, own, own + self.groups * batches(shard, device)[0])

    def rows(self, number: int) -> np.ndarray:
        """The global rows of a batch, in their order."""
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
        together: rows that are added up before they are rounded. Each block of particles has whole multiples of so many
            rows of a batch, so a rank has whole pieces before and after.
    """

    def __init__(self, batching: Batching, comm: Communicator, together: int):
        self.batching, self.comm, self.together = batching, comm, together
        shards = (Shard.of(batching.total, rank, comm.size) for rank in range(comm.size))
        self._starts = np.array([shard.start for shard in shards])

    def plan(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the pieces of a batch: the rank that has it, the rank that works on it, and its number of rows."""
        rows = self.batching.rows(number)
        source = np.searchsorted(self._starts, rows[:: self.together], side="right") - 1
        pieces, ranks = len(source), self.comm.size
        # Neighbouring pieces on one rank: two ranks keep what they have. Of more ranks than pieces, others in each
        # batch.
        target = np.arange(pieces) * ranks // pieces + number % max(1, ranks // pieces)
        return source, target, np.diff(np.append(np.arange(pieces) * self.together, len(rows)))

    def __call__(self, number: int, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The rows of a batch that this rank works on, of those that it has: tensors [n, ...] of a row each.
        Collective."""
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
    """[n, bytes of a row]; in the memory of the tensor where it is contiguous."""
    return part.reshape(len(part), math.prod(part.shape[1:])).contiguous().view(torch.uint8).numpy()
