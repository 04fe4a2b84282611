"""What an inner solver is given, and what it does."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

#: Of some particles, what an objective takes: tensors [n, ...], or None.
Rows = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """Some particles as the objective sees them.

    Attributes:
        z: inputs of the control field [n, inputs].
        v: pushed velocities [n, dv]; with a control variate its drag.
        share: part of the sample's whole mass, over all ranks, that each particle is [n].
        tangents: ∂z/∂ṽ_j [n, dv, inputs] where it is not simply the velocity among the inputs.
        known: the part of ∇v·u at each particle that a control variate knows the average of [n].
        log_f: the carried log-density [n], float64, where the solver uses it.
    """

    z: torch.Tensor
    v: torch.Tensor
    share: torch.Tensor
    tangents: torch.Tensor | None = None
    known: torch.Tensor | None = None
    log_f: torch.Tensor | None = None

    def rows(
        self, rows: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Some rows, as arguments of the objective."""
        tangents, known = (part[rows] if part is not None else None for part in (self.tangents, self.known))
        return self.z[rows], self.v[rows], self.share[rows], tangents, known


class Batches:
    """Samples of a rank's particles, each gathered when it is first asked for: few of many are wanted in a step.

    One that is asked for by its number may be dealt to all ranks, so that each works on a part of it: this is
    collective then. Those that are gone through are the rank's own.

    Args:
        gather: some of the particles, by their rows; with the number of a batch it may be dealt.
        rows: of all samples, one after the other.
        edges: where each begins in these, and where the last ends.
    """

    def __init__(self, gather: Callable[[torch.Tensor, int | None], Sample], rows: torch.Tensor, edges: np.ndarray):
        self._gather, self._rows, self._edges = gather, rows, edges
        self._known: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, number: int) -> Sample:
        if number not in self._known:
            self._known[number] = self._gather(self._rows[self._edges[number] : self._edges[number + 1]], number)
        return self._known[number]

    def __iter__(self) -> Iterator[Sample]:
        """Each of them, which is not kept."""
        for begin, end in itertools.pairwise(self._edges):
            yield self._gather(self._rows[begin:end], None)

    def joined(self) -> tuple[Sample, tuple[int, ...]]:
        """All of them as one, one after the other, and how many particles each has."""
        return self._gather(self._rows[self._edges[0] : self._edges[-1]], None), tuple(np.diff(self._edges).tolist())


@dataclass(frozen=True)
class TrainingData:
    """This rank's particles for one inner solve.

    Attributes:
        folds: those that are fitted, in disjoint parts that are each spread over phase space and over ranks like the
            whole, with shares that add up to 1 over all of them and all ranks.
        select: particles that choose between fits; nowhere any if none are held out for that.
        held_out: whether some are, on some rank.
        everything: the folds and the particles that certify, where a solver takes some averages over all.
    """

    folds: Sequence[Sample] | Batches
    select: Sample
    held_out: bool
    everything: Sequence[Sample] | Batches

    @classmethod
    def choosing(cls, folds: Sequence[Sample], select: Sample) -> TrainingData:
        """Particles of which some choose."""
        return cls(folds, select, held_out=True, everything=folds)

    @classmethod
    def unheld(cls, *folds: Sample) -> TrainingData:
        """Particles of which none choose."""
        return cls.in_batches(folds, folds)

    @classmethod
    def in_batches(cls, folds: Sequence[Sample] | Batches, everything: Sequence[Sample] | Batches) -> TrainingData:
        """The same, with particles in averages that are not fitted."""
        first = next(iter(everything))
        none = replace(first, **{name: part[:0] for name, part in vars(first).items() if part is not None})
        return cls(folds, none, held_out=False, everything=everything)


class Solver(ABC):
    """Minimises a functional over the control field; what it has learnt carries over from step to step."""

    @abstractmethod
    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        """Fit the field for a step of size ``step``. Collective.

        Args:
            stiffer: 0, or how often the fit of this step has failed: then regularise more.

        Returns:
            The number of iterations made.

        Raises:
            SolverFailure: the objective is not finite (on every rank).
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on, as named arrays."""

    @abstractmethod
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state made by :meth:`state`.

        Raises:
            KeyError, RuntimeError: the arrays belong to another network.
        """
