"""The interface of an inner solver, and the data that it is given."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

#: The arguments of an objective for some particles: tensors [n, ...], or None.
Rows = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """Some particles in the form that the objective takes.

    Attributes:
        z: inputs of the control field [n, inputs].
        v: pushed velocities [n, dv]; with a control variate its drag.
        share: the fraction of the total mass of the sample, over all ranks, that each particle has [n].
        tangents: ∂z/∂ṽ_j [n, dv, inputs], or None if the last inputs are simply the velocity.
        known: the part of ∇v·u at each particle whose average a control variate knows [n].
        log_f: the carried log-density [n], float64, if the solver uses it.
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
    """Samples of the particles of a rank. Each is gathered when it is first used, because a step needs only a few of
    many.

    A sample that is taken by its number may be dealt to all ranks, so that each rank works on a part of it. Taking it
    is then collective. Iteration and :meth:`joined` give the particles of this rank only. They skip samples without
    particles on this rank, because an ensemble of 10⁹ particles has 4·10⁵ batches, and a rank has rows of a few. If all
    are empty, they give one of them.

    Args:
        gather: returns the sample of the given rows of the particles. If it is given the number of a batch, it may deal
            this batch to all ranks, and multiply its shares by a factor.
        rows: the rows of all samples, one sample after the other.
        edges: where each sample begins in ``rows``, and where the last one ends.
    """

    def __init__(self, gather: Callable[[torch.Tensor, int | None], Sample], rows: torch.Tensor, edges: np.ndarray):
        self._gather, self._rows, self._edges = gather, rows, edges
        self._known: dict[int, Sample] = {}
        filled = np.unique(edges).tolist()
        self._filled: list[int] = filled if len(filled) > 1 else 2 * filled

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __getitem__(self, number: int) -> Sample:
        if number not in self._known:
            self._known[number] = self._gather(self._rows[self._edges[number] : self._edges[number + 1]], number)
        return self._known[number]

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples without keeping them in memory."""
        for begin, end in itertools.pairwise(self._filled):
            yield self._gather(self._rows[begin:end], None)

    def none(self) -> Sample:
        """A sample without particles."""
        return self._gather(self._rows[:0], None)

    def joined(self, most: float) -> Iterator[tuple[Sample, tuple[int, ...]]]:
        """Consecutive samples joined into one, and the number of particles of each of them.

        Args:
            most: particles that are joined, unless a single sample has more.
        """
        first, edges = 0, self._filled
        for last in range(1, len(edges)):
            if last + 1 == len(edges) or edges[last + 1] - edges[first] > most:
                some = edges[first : last + 1]
                yield self._gather(self._rows[some[0] : some[-1]], None), tuple(np.diff(some).tolist())
                first = last


@dataclass(frozen=True)
class TrainingData:
    """The particles of this rank for one inner solve.

    Attributes:
        folds: the particles that are fitted, in disjoint parts. Each part is spread over phase space and over ranks
            like the whole. The shares add up to 1 over all folds and all ranks, when one iterates over them.
        select: the particles that choose between fits. Empty on every rank if nothing is held out for this.
        held_out: whether some particles are held out, on any rank.
        everything: the folds and the certifying particles, for solvers that take some averages over all particles.
        scale: the factor of the shares of a fold that is taken by its number: a power of two. With many folds it keeps
            the rounding of sums small beside these shares.
    """

    folds: Sequence[Sample] | Batches
    select: Sample
    held_out: bool
    everything: Sequence[Sample] | Batches
    scale: int = 1

    @property
    def factor(self) -> int:
        """The whole number by which sums over a fold are multiplied to get means over its particles, up to 6 %."""
        return len(self.folds) // self.scale

    @classmethod
    def choosing(cls, folds: Sequence[Sample], select: Sample) -> TrainingData:
        """Training data in which some particles are held out to choose between fits."""
        return cls(folds, select, held_out=True, everything=folds)

    @classmethod
    def unheld(cls, *folds: Sample) -> TrainingData:
        """Training data without held-out particles."""
        return cls.in_batches(folds, folds)

    @classmethod
    def in_batches(
        cls, folds: Sequence[Sample] | Batches, everything: Sequence[Sample] | Batches, scale: int = 1
    ) -> TrainingData:
        """Training data without held-out particles, whose averages over ``everything`` include particles that are not
        fitted.
        """
        if isinstance(everything, Batches):
            none = everything.none()
        else:
            none = replace(folds[0], **{name: part[:0] for name, part in vars(folds[0]).items() if part is not None})
        return cls(folds, none, held_out=False, everything=everything, scale=scale)


class Solver(ABC):
    """Minimises a functional over the control field. Network and optimiser carry over from step to step."""

    @abstractmethod
    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        """Fit the field for a step of size ``step``. Collective.

        Args:
            stiffer: how often the fit of this step has failed (0 at first). The larger it is, the stronger the
                regularisation.

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
        """Set the state to one that :meth:`state` returned.

        Raises:
            KeyError, RuntimeError: the arrays belong to another network.
        """
