"""The objective, the moments for varpro and the control field on a GPU. For tests the same source text runs on the CPU.

The source texts are cuda/network.hpp and the headers that include it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from hpc_kjko.kernels.cuda import Kernel, name_of, pointer, tensor_constants
from hpc_kjko.kernels.settings import Settings

#: Number of thread blocks when the source text runs on the CPU.
BLOCKS_OF_CPU = 100


def _kernel(file: str, name: str, resident: int, width: int, tanh: bool, velocity_dims: int, **more: str) -> Kernel:
    """A kernel of a network. It leaves registers for ``resident`` threads at a time on a multiprocessor."""
    constants = {
        "KJKO_WIDTH": str(width),
        "KJKO_ACTIVATION": "Tanh" if tanh else "LeakyRelu",
        "KJKO_VELOCITY_DIMS": str(velocity_dims),
        "KJKO_RESIDENT_THREADS": str(resident),
        **tensor_constants(name),
        **more,
    }
    return Kernel(file, name, tuple(constants.items()))


def _blocks(kernel: Kernel, pieces: int, device: torch.device) -> int:
    """The number of thread blocks that share these pieces: as many as have registers at the same time. The bits of the
    result do not depend on it.
    """
    most = BLOCKS_OF_CPU
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).multi_processor_count * kernel.shape(device).resident
    return max(1, min(pieces, most))


class _Network(ctypes.Structure):
    """``NetworkOf`` of math/network.hpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("inputs", "width", "velocity_dims", "skipped")),
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2", "w3", "b3", "skip")),
    ]

    @classmethod
    def of(cls, layers: Sequence[torch.Tensor]) -> _Network:
        """From weights and biases of three layers, then the skip if there is one. They must be contiguous, and the
        caller keeps them alive.
        """
        (width, inputs), dv, skip = layers[0].shape, len(layers[4]), layers[6:]
        skipped = skip[0].shape[1] if skip else 0
        return cls(inputs, width, dv, skipped, *map(pointer, layers), *([] if skip else [None]))


class _Settings(ctypes.Structure):
    """``Settings`` of math/settings.hpp."""

    _fields_ = [
        *((name, ctypes.c_bool) for name in ("tanh", "exact")),
        *((name, ctypes.c_float) for name in ("step", "collision_strength", "temperature")),
        ("together", ctypes.c_int),
        *((name, ctypes.c_double) for name in ("unit", "finer")),
    ]

    @classmethod
    def of(cls, settings: Settings) -> _Settings:
        return cls(*(getattr(settings, field[0]) for field in cls._fields_))


class _ObjectiveCall(ctypes.Structure):
    """``ObjectiveCall`` of math/objective.hpp."""

    _fields_ = [
        ("network", _Network),
        ("settings", _Settings),
        ("count", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("z", "v")),
        ("v_stride", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("share", "known")),
        *((name, ctypes.c_void_p) for name in ("sums", "loss", "gradient")),
    ]


#: z, v, share, and the part of ∇v·u that a control variate knows, of each particle.
Particles = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def objective(
    particles: Particles,
    parameters: Sequence[torch.Tensor],
    settings: Settings,
    *,
    with_gradient: bool,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The part of J from some particles, a scalar, and its gradient with respect to all parameters, one after the
    other; float64.

    Both stay on the device. The arguments are those of :func:`hpc_kjko.kernels.objective.objective`.

    Args:
        backwards: as for :meth:`hpc_kjko.kernels.cuda.Kernel.launch`.
    """
    call, tensors = _call(particles, parameters, settings)
    z, w3 = tensors[0], tensors[8]
    closed = not settings.exact and len(w3) > 1
    kernel = objective_kernel(w3.shape[1], settings.tanh, len(w3), closed)
    blocks = _blocks(kernel, -(-len(z) // settings.together), z.device)
    size = sum(parameter.numel() for parameter in parameters)
    sums = torch.empty(blocks, size + kernel.shape(z.device).sum_numbers, dtype=torch.float64, device=z.device)
    call.sums, call.gradient = pointer(sums), pointer(sums) if with_gradient else None
    kernel.launch(blocks, call, z.device, backwards=backwards)
    loss = sums[:, size:].sum()
    if not with_gradient:
        return loss, None
    return loss, sums[:, :size].sum(0) + (loss - loss)  # NaN if the loss is NaN


def _call(
    particles: Particles, parameters: Sequence[torch.Tensor], settings: Settings
) -> tuple[_ObjectiveCall, list[Any]]:
    """The arguments without the address of the sums, and the tensors to which they point: z, v, share, known,
    parameters.
    """
    z, v, share, known = particles
    z, share, *layers = (tensor.detach().contiguous() for tensor in (z, share, *parameters))
    known = None if known is None else known.contiguous()
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in (z, v, share, known, *layers))
    if v.stride(1) != 1:
        v = v.contiguous()
    call = _ObjectiveCall(_Network.of(layers), _Settings.of(settings), len(z))
    call.z, call.v, call.v_stride = pointer(z), pointer(v), v.stride(0)
    call.share, call.known = pointer(share), pointer(known)
    return call, [z, v, share, known, *layers]


def objective_kernel(width: int, tanh: bool, velocity_dims: int, closed: bool) -> Kernel:
    """The kernel for this network, with the Jacobian or with the closed form of the divergence."""
    # here and below: the fastest values on an H200 (docs/benchmarks/2026-11-26-gpu.md)
    resident = 384 if closed else 512
    constants = resident, width, tanh, velocity_dims
    return _kernel("cuda/objective.cu", "evaluate_objective", *constants, KJKO_CLOSED=str(closed).lower())


def moments(
    particles: Particles,
    parameters: Sequence[torch.Tensor],
    settings: Settings,
    *,
    whole: bool,
    backwards: bool = False,
) -> torch.Tensor:
    """The result of :func:`hpc_kjko.kernels.objective.moments`, on the device.

    Args:
        backwards: as for :func:`objective`.
    """
    call, tensors = _call(particles, parameters, settings)
    z, network = tensors[0], call.network
    width, dv, skipped = network.width, network.velocity_dims, network.skipped
    assert skipped < 8  # together with 1 there is room for eight rows beside those of the hidden features
    kernel, order = moments_kernels(width, settings.tanh, dv)
    shape, blocks = kernel.shape(z.device), _blocks(kernel, -(-len(z) // settings.together), z.device)
    numbers, groups = shape.sum_numbers, 1
    if whole:
        numbers, groups = numbers + shape.more_numbers, shape.groups if settings.exact else shape.linear_groups
    sums = torch.empty(blocks, numbers, dtype=torch.float64, device=z.device)
    call.sums, call.gradient = pointer(sums), pointer(sums) if whole else None
    kernel.launch(blocks, call, z.device, groups, backwards)
    total, basis = sums.sum(0), width + skipped + 1
    rows = dv * basis
    count = rows + 3 + (basis**2 + rows + rows**2 if whole else 0)
    found = torch.empty(count, dtype=torch.float64, device=z.device)
    ordering = _MomentsOrderCall(network, settings.exact, whole, count, pointer(total), pointer(found))
    order.launch(-(-count // shape.threads), ordering, z.device)
    return found


def moments_kernels(width: int, tanh: bool, velocity_dims: int) -> tuple[Kernel, Kernel]:
    """The kernel for this network, and the kernel that puts its moments in order."""
    kernel = _kernel("cuda/moments.cu", "sum_moments", 384, width, tanh, velocity_dims)
    return kernel, kernel._replace(name="order_moments")


class _MomentsOrderCall(ctypes.Structure):
    """``MomentsOrderCall`` of cuda/moments.hpp."""

    _fields_ = [
        ("network", _Network),
        *((name, ctypes.c_bool) for name in ("exact", "whole")),
        ("count", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("total", "moments")),
    ]


class _FieldCall(ctypes.Structure):
    """``DeviceFieldCall`` of cuda/field.hpp."""

    _fields_ = [
        ("network", _Network),
        ("count", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("z", "u", "jacobian")),
    ]


def field(
    z: torch.Tensor, parameters: Sequence[torch.Tensor], *, tanh: bool, backwards: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """u [n, dv] and ∇v u [n, dv, dv] at inputs z [n, inputs], in the precision of z.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
        backwards: as for :func:`objective`.
    """
    z, *layers = (tensor.detach().contiguous() for tensor in (z, *parameters))
    width, dv = len(layers[0]), len(layers[4])
    u, jacobian = z.new_empty(len(z), dv), z.new_empty(len(z), dv, dv)
    call = _FieldCall(_Network.of(layers), len(z), *map(pointer, (z, u, jacobian)))
    kernel = field_kernel(z.dtype, width, tanh, dv)
    tiles = -(-len(z) // kernel.shape(z.device).tile)
    kernel.launch(_blocks(kernel, tiles, z.device), call, z.device, backwards=backwards)
    return u, jacobian


def field_kernel(dtype: torch.dtype, width: int, tanh: bool, velocity_dims: int) -> Kernel:
    """The kernel for this network in this precision."""
    return _kernel("cuda/field.cu", "evaluate_field", 256, width, tanh, velocity_dims, KJKO_REAL=name_of(dtype))
