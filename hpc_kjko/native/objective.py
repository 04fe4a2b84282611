"""The JKO functional with its gradient from one fused pass over the particles; hpc_kjko/objective.py is its twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from hpc_kjko.native import Backend, backend, require


def fused(widths: Sequence[int], *tensors: torch.Tensor) -> bool:
    """Whether the kernel is in use for a network of such widths (inputs, hidden layers, dv) and such tensors."""
    if len(widths) != 4 or backend() is not Backend.NATIVE:
        return False
    kernels, (inputs, first, second, dv) = require(), widths
    instantiated = first == second and first in kernels.WIDTHS and inputs <= kernels.MOST_INPUTS and dv <= 3
    return instantiated and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


class FusedObjective(torch.autograd.Function):
    """J's part of some particles as a function of the network's parameters alone, in double precision.

    The gradient is found along with the value, and kept.
    """

    @staticmethod
    def forward(ctx, particles, settings, *parameters):
        loss, ctx.gradient = require().evaluate_objective(*_arguments(particles, parameters), **settings)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return torch.tensor(loss, dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        whole = (torch.from_numpy(ctx.gradient) * outer).float()
        parts = whole.split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))


#: z, v, share and what a control variate knows of each particle.
Particles = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def _arguments(particles: Particles, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Particles and parameters as the module takes them: weights and biases of three layers, then a skip or None."""
    z, v, share, known = particles
    skip = [None] if len(parameters) == 6 else []
    return [z, v, share.contiguous(), known, *(p.detach() for p in parameters), *skip]  # equal shares are one number


def moments(
    particles: Particles,
    parameters: Sequence[torch.Tensor],
    *,
    activation: str,
    logdet: str,
    step: float,
    temperature: float,
    whole: bool,
) -> np.ndarray:
    """What :class:`hpc_kjko.solvers.varpro.VarproSolver` sums over some particles, flat, in its order.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
        whole: whether gram, load and curvature are wanted.
    """
    return require().objective_moments(
        *_arguments(particles, parameters),
        tanh=activation == "tanh",
        exact=logdet == "exact",
        step=step,
        collision_strength=1.0,  # has no part in them
        temperature=temperature,
        whole=whole,
    )


def objective(
    particles: Particles,
    parameters: Sequence[torch.Tensor],
    *,
    activation: str,
    logdet: str,
    step: float,
    collision_strength: float,
    temperature: float,
) -> torch.Tensor:
    """J's part of some particles; a scalar in double precision.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
    """
    settings = {
        "tanh": activation == "tanh",
        "exact": logdet == "exact",
        "step": step,
        "collision_strength": collision_strength,
        "temperature": temperature,
        "with_gradient": torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters),
    }
    return FusedObjective.apply(particles, settings, *parameters)
