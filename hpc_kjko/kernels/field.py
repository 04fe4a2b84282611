"""The control field and its Jacobian from one fused pass over the particles; hpc_kjko/inner/control.py is its torch
twin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpc_kjko.kernels import Backend, backend, cuda, has_network, require
from hpc_kjko.kernels.constants import MOST_FIELD_LAYERS, MOST_FIELD_WIDTH, MOST_VELOCITY_DIMS
from hpc_kjko.kernels.cuda import network as cuda_network


def fused(widths: Sequence[int], z: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel is used for a network of these widths (inputs, hidden layers, dv) at inputs z.

    The kernel has no automatic differentiation.
    """
    if torch.is_grad_enabled() or z.dtype != weight.dtype or z.dtype not in (torch.float32, torch.float64):
        return False
    if cuda.take(z):
        return has_network(widths)
    if z.device.type != "cpu" or backend() is not Backend.NATIVE:
        return False
    sizes = len(widths) <= MOST_FIELD_LAYERS + 1 and max(widths) <= MOST_FIELD_WIDTH
    return sizes and widths[-1] <= MOST_VELOCITY_DIMS


def field(
    z: torch.Tensor,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    skip: torch.Tensor | None,
    *,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """u [n, dv] and its Jacobian [n, dv, dv] with respect to the last dv of the inputs z [n, inputs]. The bits of a
    particle do not depend on the others.

    Args:
        layers: weights and biases.
        skip: linear in the last inputs [dv, skipped].
    """
    if z.is_cuda:
        parameters = [parameter for layer in layers for parameter in layer]
        return cuda_network.field(z, [*parameters, *([] if skip is None else [skip])], tanh=activation == "tanh")
    weights, biases = zip(*((weight.detach(), bias.detach()) for weight, bias in layers), strict=True)
    dv = len(biases[-1])
    u, jacobian = torch.empty(len(z), dv, dtype=z.dtype), torch.empty(len(z), dv, dv, dtype=z.dtype)
    require().evaluate_field(
        z.contiguous(),
        weights,
        biases,
        skip.detach() if skip is not None else None,
        tanh=activation == "tanh",
        u=u,
        jacobian=jacobian,
    )
    return u, jacobian
