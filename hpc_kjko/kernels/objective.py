"""The JKO functional with its gradient from one fused pass over the particles; hpc_kjko/inner/objective.py is its torch
twin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpc_kjko.kernels import Backend, backend, cuda, has_network, require
from hpc_kjko.kernels.constants import CHUNK, MOMENTS_CHUNK
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda.network import Particles
from hpc_kjko.kernels.settings import Settings


def fused(widths: Sequence[int], *tensors: torch.Tensor) -> bool:
    """Whether a kernel is used for a network of these widths (inputs, hidden layers, dv) and for such tensors."""
    if any(tensor.dtype != torch.float32 for tensor in tensors) or not has_network(widths):
        return False
    return cuda.take(*tensors) or (_on_cpu(*tensors) and backend() is Backend.NATIVE)


def _on_cpu(*tensors: torch.Tensor) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _arguments(particles: Particles, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Particles and parameters in the form that the module takes: weights and biases of three layers, then a skip or
    None.
    """
    z, v, share, known = particles
    skip = [None] if len(parameters) == 6 else []
    # equal shares are stored as one number
    return [z, v, share.contiguous(), known, *(p.detach() for p in parameters), *skip]


def moments(
    particles: Particles, parameters: Sequence[torch.Tensor], settings: Settings, *, whole: bool
) -> torch.Tensor:
    """The sums over some particles that :class:`hpc_kjko.inner.solvers.varpro.VarproSolver` needs, flat, in its order;
    float64.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
        whole: whether gram, load and curvature are wanted.
    """
    settings = settings.within(MOMENTS_CHUNK)
    if particles[0].is_cuda:
        return cuda_network.moments(particles, parameters, settings, whole=whole)
    arguments = _arguments(particles, parameters)
    return torch.from_numpy(require().objective_moments(*arguments, settings=settings, whole=whole))


def objective(
    particles: Particles, parameters: Sequence[torch.Tensor], settings: Settings, *, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The part of J from some particles and, if wanted, its gradient with respect to all parameters, one after the
    other; float64.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
    """
    settings = settings.within(CHUNK)
    if particles[0].is_cuda:
        return cuda_network.objective(particles, parameters, settings, with_gradient=with_gradient)
    arguments = _arguments(particles, parameters)
    value, gradient = require().evaluate_objective(*arguments, settings=settings, with_gradient=with_gradient)
    return torch.tensor(value, dtype=torch.float64), None if gradient is None else torch.from_numpy(gradient)
