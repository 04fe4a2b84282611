"""What an inner solver is given, and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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


@dataclass(frozen=True)
class TrainingData:
    """This rank's particles for one inner solve.

    Attributes:
        folds: those that are fitted, in disjoint parts that are each spread over phase space and over ranks like the
            whole, with shares that add up to 1 over all of them and all ranks.
        select: particles that choose between fits; nowhere any if none are held out for that.
        held_out: whether some are, on some rank.
        certify: those that certify, where a solver takes some averages over all particles.
    """

    folds: list[Sample]
    select: Sample
    held_out: bool = True
    certify: Sequence[Sample] = ()

    @classmethod
    def unheld(cls, *folds: Sample, certify: Sequence[Sample] = ()) -> TrainingData:
        """Particles of which none choose."""
        none = replace(folds[0], **{name: part[:0] for name, part in vars(folds[0]).items() if part is not None})
        return cls(list(folds), none, held_out=False, certify=certify)


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
