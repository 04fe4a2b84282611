"""Full-batch Adam, warm-started from the previous step (the paper's section 3.1), keeping its best iterate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpc_kjko.comm import Communicator
from hpc_kjko.errors import SolverFailure
from hpc_kjko.particles import passes


class AdamSolver:
    """Minimises the objective over the network's parameters, gradients summed over ranks.

    The objective is a module whose ``forward`` takes the step and rows of the data, and returns a local sum; its
    ``control`` is what is trained. Parameters and Adam's moments carry over from step to step. A cold start takes
    ``first_iterations``.

    Adam overshoots now and then, and a single bad last iterate would be a bad time step for good: the iterate with the
    lowest objective is kept. (Measured on the two-stream case: without this, one step in some hundred dissipated
    several times too much.)
    """

    def __init__(
        self,
        objective: torch.nn.Module,
        comm: Communicator,
        *,
        iterations: int,
        first_iterations: int,
        learning_rate: float,
        chunk: int,
    ):
        self.comm, self.chunk = comm, chunk
        self.iterations, self.first_iterations = iterations, first_iterations
        self._parameters = dict(objective.control.named_parameters())
        self._local, self._objective = objective, comm.distribute(objective)
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=learning_rate, fused=True)

    @property
    def is_cold(self) -> bool:
        """True until the first iteration has been made."""
        return not self._optimizer.state

    def minimise(self, data: Sequence[torch.Tensor], step: float) -> int:
        """Train on this rank's data, tensors with a row for each particle, for a step of size ``step``. Collective.

        Returns:
            The number of iterations made.

        Raises:
            SolverFailure: the objective is not finite (on every rank).
        """
        iterations = self.first_iterations if self.is_cold else self.iterations
        *pieces, last = passes(len(data[0]), self.chunk)

        def pick(rows: slice) -> tuple[Any, ...]:
            return step, *(tensor[rows] for tensor in data)

        lowest, best = float("inf"), self._copy()
        for _ in range(iterations):
            self._optimizer.zero_grad()
            losses = []
            with self.comm.no_sync(self._objective):
                for rows in pieces:
                    losses.append(self._objective(*pick(rows)))
                    losses[-1].backward()
            losses.append(self._objective(*pick(last)))
            losses[-1].backward()
            value = self._total(losses)
            if value < lowest:
                lowest, best = value, self._copy()
            self._optimizer.step()
        with torch.no_grad():
            if not self._total([self._local(*pick(rows)) for rows in (*pieces, last)]) < lowest:
                for parameter, kept in zip(self._parameters.values(), best, strict=True):
                    parameter.copy_(kept)
        return iterations

    def _total(self, losses: list[torch.Tensor]) -> float:
        """The objective over all ranks, the same on each, from the sums of this rank's chunks."""
        local = float(torch.stack(losses).detach().double().sum())
        total = float(self.comm.sum(np.array([local]))[0])
        if not math.isfinite(total):
            raise SolverFailure("the objective is no longer finite: reduce method.learning_rate or time.step")
        return total

    def _copy(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters.values()]

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
