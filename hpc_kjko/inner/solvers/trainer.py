"""Adam on the parameters of an objective, for the solvers that train hidden layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers.base import Rows, Sample
from hpc_kjko.parallel.comm import Communicator


class Trainer:
    """Adam's steps along gradients that DistributedDataParallel sums over ranks. Parameters and moments carry over.

    Args:
        objective: of this rank's particles; its control field has the parameters.
        rates: the learning rate of all parameters, or those of groups of them, as torch's optimisers take them.

    Attributes:
        parameters: of the control field, by their names.
    """

    def __init__(self, objective: Objective[Any], comm: Communicator, rates: float | list[dict[str, Any]]):
        self.objective, self.comm = objective, comm
        self.parameters: dict[str, torch.nn.Parameter] = dict(objective.control.named_parameters())
        self._wrapped = comm.distribute(objective)
        groups = [{"params": list(self.parameters.values()), "lr": rates}] if isinstance(rates, float) else rates
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def backward(self, samples: Sequence[Rows], step: float, factor: float = 1.0) -> list[torch.Tensor]:
        """Leave the gradient of ``factor`` times the objective with the parameters; returns this rank's parts of it.

        Args:
            samples: what the objective takes of each.
        """
        if self._wrapped is self.objective:  # nothing is to be summed over ranks: without automatic differentiation
            found = [self.objective.evaluate(step, *sample, with_gradient=True) for sample in samples]
            self.objective.set_gradient(
                factor * torch.stack([gradient for _, gradient in found if gradient is not None]).sum(0)
            )
            return [factor * value for value, _ in found]
        self.optimizer.zero_grad()
        self.objective.clear_gradient()
        *others, last = samples
        losses = []
        with self.comm.no_sync(self._wrapped):
            for sample in others:
                losses.append(factor * self._wrapped(step, *sample))
                losses[-1].backward()
        losses.append(factor * self._wrapped(step, *last))
        losses[-1].backward()
        return losses

    @torch.no_grad()
    def value(self, samples: list[Sample], step: float) -> float:
        """The objective over all ranks, without its gradient. Collective."""
        return self.total([self.objective(step, *sample.rows()) for sample in samples])

    @torch.no_grad()
    def restore(self, kept: list[torch.Tensor]) -> None:
        """Put back what :meth:`kept` returned."""
        for parameter, value in zip(self.parameters.values(), kept, strict=True):
            parameter.copy_(value)

    def total(self, losses: list[torch.Tensor]) -> float:
        """The objective over all ranks, the same on each, from the parts of this rank."""
        local = float(torch.stack(losses).detach().sum())
        total = float(self.comm.sum(np.array([local]))[0])
        if not math.isfinite(total):
            raise SolverFailure("the objective is no longer finite: reduce method.learning_rate or time.step")
        return total

    def kept(self) -> list[torch.Tensor]:
        """The parameters as they are now."""
        return [parameter.detach().clone() for parameter in self.parameters.values()]

    def descend(self) -> None:
        """One of Adam's steps, along the gradient that :meth:`backward` left."""
        self.optimizer.step()

    @property
    def steps_made(self) -> int:
        """Adam's steps since the start of the run."""
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)

    @property
    def is_cold(self) -> bool:
        """True until the first of Adam's steps has been made."""
        return not self.optimizer.state

    def state(self) -> dict[str, np.ndarray]:
        """Network and optimiser as named arrays: everything that the next step depends on."""
        arrays = {f"network/{name}": _array(parameter) for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                arrays[f"optimizer/{name}/{key}"] = _array(value)
        return arrays

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state made by :meth:`state`; errors as of :meth:`Solver.load`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"network/{name}"]))
        self.optimizer.state.clear()
        for name, parameter in self.parameters.items():
            prefix = f"optimizer/{name}/"
            for key in (key for key in arrays if key.startswith(prefix)):
                value = torch.from_numpy(np.array(arrays[key])).to(parameter.device)
                self.optimizer.state[parameter][key.removeprefix(prefix)] = value


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
