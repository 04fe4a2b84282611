"""What an inner solver is given, and what it does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import Objective
from hpc_kjko.parallel.comm import Communicator

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
    """Minimises an objective over the control field; what it has learnt carries over from step to step."""

    comm: Communicator
    _own: Objective[Any]  # this rank's part
    _objective: torch.nn.Module  # as :meth:`Communicator.distribute` wraps it
    _parameters: dict[str, torch.nn.Parameter]
    _optimizer: torch.optim.Adam

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

    def _backward(self, samples: Sequence[Rows], step: float, factor: float = 1.0) -> list[torch.Tensor]:
        """Leave the gradient of ``factor`` times the objective with the parameters; returns this rank's parts of it.

        Args:
            samples: what the objective takes of each.
        """
        if self._objective is self._own:  # nothing is to be summed over ranks: without automatic differentiation
            found = [self._own.evaluate(step, *sample, with_gradient=True) for sample in samples]
            self._own.leave(factor * torch.stack([gradient for _, gradient in found if gradient is not None]).sum(0))
            return [factor * value for value, _ in found]
        self._optimizer.zero_grad()
        self._own.forget()
        *others, last = samples
        losses = []
        with self.comm.no_sync(self._objective):
            for sample in others:
                losses.append(factor * self._objective(step, *sample))
                losses[-1].backward()
        losses.append(factor * self._objective(step, *last))
        losses[-1].backward()
        return losses

    @torch.no_grad()
    def _value(self, samples: list[Sample], step: float) -> float:
        return self._total([self._own(step, *sample.rows()) for sample in samples])

    @torch.no_grad()
    def _restore(self, kept: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), kept, strict=True):
            parameter.copy_(value)

    def _total(self, losses: list[torch.Tensor]) -> float:
        """The objective over all ranks, the same on each, from the parts of this rank."""
        local = float(torch.stack(losses).detach().sum())
        total = float(self.comm.sum(np.array([local]))[0])
        if not math.isfinite(total):
            raise SolverFailure("the objective is no longer finite: reduce method.learning_rate or time.step")
        return total

    def _copy(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters.values()]

    @property
    def steps_made(self) -> int:
        """Adam's steps since the start of the run."""
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    @property
    def is_cold(self) -> bool:
        """True until the first of Adam's steps has been made."""
        return not self._optimizer.state

    def state(self) -> dict[str, np.ndarray]:
        """Network and optimiser as named arrays: everything that the next step depends on."""
        arrays = {f"network/{name}": _array(parameter) for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                arrays[f"optimizer/{name}/{key}"] = _array(value)
        return arrays

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state made by :meth:`state`.

        Raises:
            KeyError, RuntimeError: the arrays belong to another network.
        """
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"network/{name}"]))
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            prefix = f"optimizer/{name}/"
            for key in (key for key in arrays if key.startswith(prefix)):
                value = torch.from_numpy(np.array(arrays[key])).to(parameter.device)
                self._optimizer.state[parameter][key.removeprefix(prefix)] = value


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
