"""Adam on the parameters of an objective, for the solvers that train hidden layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.adam import adam

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers.base import Rows, Sample
from hpc_kjko.parallel.comm import Communicator


class Trainer:
    """Makes Adam steps along gradients that DistributedDataParallel sums over ranks. Parameters and moments carry over.

    Args:
        objective: of the particles of this rank. Its control field has the parameters.
        rates: the learning rate of all parameters, or those of groups of parameters, as the optimisers of torch take
            them.

    Attributes:
        steps_made: Adam steps since the start of the run.
        parameters: of the control field, by their names.
        groups: of parameters, each with its learning rate: dictionaries of "params" and "lr".
    """

    def __init__(self, objective: Objective[Any], comm: Communicator, rates: float | list[dict[str, Any]]):
        self.objective, self.comm = objective, comm
        self.parameters: dict[str, torch.nn.Parameter] = dict(objective.control.named_parameters())
        self._wrapped = comm.distribute(objective)
        of_all: list[dict[str, Any]] = [{"params": list(self.parameters.values()), "lr": rates}]
        self.groups = of_all if isinstance(rates, float) else rates
        self.steps_made = 0
        #: Of each parameter, once a step was made.
        self._moments: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}

    def backward(self, samples: Sequence[Rows], step: float, factor: float = 1.0) -> list[torch.Tensor]:
        """Store the gradient of ``factor`` times the objective in the parameters; returns this product on this rank for
        each sample.

        Args:
            samples: of each sample the arguments of the objective.
        """
        if self._wrapped is self.objective:  # There is no sum over ranks, so no automatic differentiation is needed.
            found = [self.objective.evaluate(step, *sample, with_gradient=True) for sample in samples]
            self.objective.set_gradient(
                factor * torch.stack([gradient for _, gradient in found if gradient is not None]).sum(0)
            )
            return [factor * value for value, _ in found]
        for parameter in self.parameters.values():
            parameter.grad = None
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
        """Restore the parameters that :meth:`kept` returned."""
        for parameter, value in zip(self.parameters.values(), kept, strict=True):
            parameter.copy_(value)

    def total(self, losses: list[torch.Tensor]) -> float:
        """The objective over all ranks, the same on each, from the values of this rank."""
        local = float(torch.stack(losses).detach().sum())
        total = float(self.comm.sum(np.array([local]))[0])
        if not math.isfinite(total):
            raise SolverFailure("the objective is no longer finite: reduce method.learning_rate or time.step")
        return total

    def kept(self) -> list[torch.Tensor]:
        """A copy of the present parameters."""
        return [parameter.detach().clone() for parameter in self.parameters.values()]

    @torch.no_grad()
    def descend(self) -> None:
        """Make one Adam step, along the gradient that :meth:`backward` has stored.

        This is our own code because ``torch.optim.Adam`` loads the compiler of torch, which takes as long as torch
        itself.
        """
        self.steps_made += 1  # counted here too, because the step count of torch may be on a GPU
        for group in self.groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                if parameter not in self._moments:
                    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    zero = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    self._moments[parameter] = {"step": step, "exp_avg": zero, "exp_avg_sq": zero.clone()}
            states = [self._moments[parameter] for parameter in moved]
            adam(
                list(moved),
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

    @property
    def is_cold(self) -> bool:
        """True until the first Adam step has been made."""
        return not self._moments

    def state(self) -> dict[str, np.ndarray]:
        """Network and optimiser as named arrays: everything that the next step depends on."""
        return arrays_of(self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of which :meth:`state` returns copies."""
        found: dict[str, torch.Tensor] = {f"network/{name}": part for name, part in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self._moments.get(parameter, {}).items():
                found[f"optimizer/{name}/{key}"] = value
        return found

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Set the state to one that :meth:`state` returned; raises the errors of :meth:`Solver.load`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(arrays[f"network/{name}"]))
        self._moments.clear()
        for name, parameter in self.parameters.items():
            prefix = f"optimizer/{name}/"
            found = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            if found:
                moments = {key: torch.from_numpy(np.array(value)).to(parameter.device) for key, value in found.items()}
                self._moments[parameter] = moments
        self.steps_made = max((int(state["step"]) for state in self._moments.values()), default=0)


def arrays_of(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors on the host, by the same names. The tensors of one precision are copied from a GPU together."""
    arrays: dict[str, np.ndarray] = {}
    for kind in {(tensor.dtype, tensor.device) for tensor in tensors.values()}:
        some = {name: part.detach() for name, part in tensors.items() if (part.dtype, part.device) == kind}
        flat = torch.cat([part.flatten() for part in some.values()]).cpu().numpy()
        pieces = np.split(flat, np.cumsum([part.numel() for part in some.values()])[:-1])
        arrays |= {name: piece.reshape(some[name].shape) for name, piece in zip(some, pieces, strict=True)}
    return {name: arrays[name] for name in tensors}
