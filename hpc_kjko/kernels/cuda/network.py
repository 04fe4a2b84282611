"""The objective, varpro's moments and the control field on a GPU, and in the same text on the CPU for tests.

The texts are cuda/network.hpp and what builds on it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch

from hpc_kjko.kernels import require
from hpc_kjko.kernels.constants import CHUNK, MOMENTS_CHUNK, MOST_INPUTS
from hpc_kjko.kernels.cuda import Kernel, name_of, pointer

#: Rows of a sum that inputs have: with one that is 1.
INPUT_ROWS = MOST_INPUTS + 1
#: Blocks of threads of the text on the CPU.
BLOCKS_OF_CPU = 100


def _kernel(file: str, name: str, resident: int, width: int, tanh: bool, velocity_dims: int, **more: str) -> Kernel:
    """A kernel of a network; ``resident`` is for how many threads at a time of a multiprocessor it leaves registers."""
    constants = {
        "KJKO_WIDTH": str(width),
        "KJKO_ACTIVATION": "Tanh" if tanh else "LeakyRelu",
        "KJKO_VELOCITY_DIMS": str(velocity_dims),
        "KJKO_RESIDENT": str(max(1, resident // (4 * width))),
        **more,
    }
    return Kernel(file, name, tuple(constants.items()))


def _blocks(kernel: Kernel, pieces: int, device: torch.device) -> int:
    """How many blocks of threads share so many pieces: as many as have registers at once. No bits depend on it."""
    most = BLOCKS_OF_CPU
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).multi_processor_count * kernel.resident
    return max(1, min(pieces, most))


class _Network(ctypes.Structure):
    """``NetworkOf`` of math/network.hpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("inputs", "width", "velocity_dims", "skipped")),
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2", "w3", "b3", "skip")),
    ]

    @classmethod
    def of(cls, layers: Sequence[torch.Tensor]) -> _Network:
        """Of weights and biases of three layers, then the skip if there is one; contiguous, and kept by the caller."""
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


def objective(
    particles: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
    parameters: Sequence[torch.Tensor],
    *,
    tanh: bool,
    exact: bool,
    step: float,
    collision_strength: float,
    temperature: float,
    together: int,
    unit: float,
    with_gradient: bool,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """J's part of some particles, a scalar, and its gradient in all parameters, one after the other; float64.

    They stay on the device. The arguments are those of :func:`hpc_kjko.kernels.objective.objective`.

    Args:
        backwards: on the CPU, whether the threads run from the last one to the first: nothing may depend on it.
    """
    call, tensors = _call(particles, parameters, tanh, exact, step, collision_strength, temperature, together, unit)
    z, w1, w3 = tensors[0], tensors[4], tensors[8]
    (width, inputs), dv = w1.shape, len(w3)
    closed = not exact and dv > 1
    kernel = objective_kernel(width, tanh, dv, closed)
    blocks = _blocks(kernel, -(-len(z) // call.settings.together), z.device)
    layout = _Layout(width)
    sums = torch.empty(blocks, layout.size, dtype=torch.float64, device=z.device)
    call.sums, call.gradient = pointer(sums), pointer(sums) if with_gradient else None
    if z.is_cuda:
        kernel.launch(blocks, 4 * width, call, z.device)
    else:
        require().device_objective(bytes(call), closed, blocks, backwards)
    totals = torch.cat([sums.sum(0), sums.new_zeros(1)])
    loss = totals[layout.loss : -1].sum()
    if not with_gradient:
        return loss, None
    places, more = _gradient_places(width, inputs, dv, call.network.skipped, z.device)
    return loss, totals[places] + totals[more] + (loss - loss)  # NaN where the loss is


def _call(
    particles: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
    parameters: Sequence[torch.Tensor],
    tanh: bool,
    exact: bool,
    step: float,
    collision_strength: float,
    temperature: float,
    together: int,
    unit: float,
) -> tuple[_ObjectiveCall, list[Any]]:
    """Arguments without the place of the sums, and the tensors that they point into: z, v, share, known, parameters."""
    z, v, share, known = particles
    z, share, *layers = (tensor.detach().contiguous() for tensor in (z, share, *parameters))
    known = None if known is None else known.contiguous()
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in (z, v, share, known, *layers))
    if v.stride(1) != 1:
        v = v.contiguous()
    settings = _Settings(tanh, exact, step, collision_strength, temperature, min(together, CHUNK), unit)
    call = _ObjectiveCall(_Network.of(layers), settings, len(z))
    call.z, call.v, call.v_stride = pointer(z), pointer(v), v.stride(0)
    call.share, call.known = pointer(share), pointer(known)
    return call, [z, v, share, known, *layers]


def objective_kernel(width: int, tanh: bool, velocity_dims: int, closed: bool) -> Kernel:
    """The kernel for such a network, by the Jacobian or by the closed form of the divergence."""
    resident = 384 if closed else 512  # here and below: what was fastest on an H200 (docs/results.md)
    constants = resident, width, tanh, velocity_dims
    return _kernel("cuda/objective.cu", "evaluate_objective", *constants, KJKO_CLOSED=str(closed).lower())


class _Layout:
    """``DeviceLayout`` of cuda/objective.hpp."""

    def __init__(self, width: int):
        self.w2 = INPUT_ROWS * width
        self.b2 = self.w2 + width * width
        self.w3 = self.b2 + width
        self.seed = self.w3 + 3 * width
        self.skip = self.seed + 3 * width
        self.loss = self.skip + 3 * INPUT_ROWS
        self.size = self.loss + 4 * width


@functools.cache
def _gradient_places(
    width: int, inputs: int, dv: int, skipped: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the gradient in w1, b1, w2, b2, w3, b3 and the skip is among a sum's numbers, with one that is 0 after the
    last; and where what is to be added to each."""
    at, nothing = _Layout(width), _Layout(width).size
    w1 = [i * width + c for c in range(width) for i in range(inputs)]
    b1 = [inputs * width + c for c in range(width)]
    w2, b2, w3 = range(at.w2, at.b2), range(at.b2, at.w3), range(at.w3, at.w3 + dv * width)
    b3 = [at.skip + k * INPUT_ROWS + inputs for k in range(dv)]
    skip = [at.skip + k * INPUT_ROWS + i for k in range(dv) for i in range(inputs - skipped, inputs)]
    places = [*w1, *b1, *w2, *b2, *w3, *b3, *skip]
    first_v = inputs - dv
    seeds = [
        at.seed + (i - first_v) * width + c if i >= first_v else nothing for c in range(width) for i in range(inputs)
    ]
    more = seeds + [nothing] * (len(places) - len(seeds))
    return torch.tensor(places, device=device), torch.tensor(more, device=device)


def moments(
    particles: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
    parameters: Sequence[torch.Tensor],
    *,
    tanh: bool,
    exact: bool,
    step: float,
    temperature: float,
    together: int,
    unit: float,
    finer: float,
    whole: bool,
    backwards: bool = False,
) -> torch.Tensor:
    """What :func:`hpc_kjko.kernels.objective.moments` returns, on the device.

    Args:
        backwards: as for :func:`objective`.
    """
    call, tensors = _call(particles, parameters, tanh, exact, step, 1.0, temperature, together, unit)
    call.settings.together, call.settings.finer = min(together, MOMENTS_CHUNK), finer
    z, (width, dv, skipped) = tensors[0], (call.network.width, call.network.velocity_dims, call.network.skipped)
    assert skipped < 8  # with 1 there is room for eight rows beside the hidden features'
    rows, kernel = _MomentsRows(width, dv), moments_kernel(width, tanh, dv)
    pairs = rows.pairs if exact else rows.qq
    groups = -(-pairs // (4 * width)) if whole else 1
    blocks = _blocks(kernel, -(-len(z) // call.settings.together), z.device)
    sums = torch.empty(blocks, rows.numbers, dtype=torch.float64, device=z.device)
    if whole and not exact:
        sums[:, : rows.pull].zero_()  # which the kernel does for pairs that it sums
    call.sums, call.gradient = pointer(sums), pointer(sums) if whole else None
    if z.is_cuda:
        kernel.launch(blocks, 4 * width, call, z.device, groups)
    else:
        require().device_moments(bytes(call), blocks, groups, backwards)
    first = 0 if whole else rows.pull
    totals = torch.cat([sums[:, first:].sum(0), sums.new_zeros(1)])
    pull, rest, more = _moments_places(width, dv, skipped, z.device)
    found = [totals[pull - first], totals[rows.counts - first : rows.finite - first]]
    if whole:
        found.append(totals[rest] + totals[more])
    return torch.cat(found) + totals[rows.finite - first : -1].sum()  # 0, or NaN


def moments_kernel(width: int, tanh: bool, velocity_dims: int) -> Kernel:
    """The kernel for such a network."""
    return _kernel("cuda/moments.cu", "sum_moments", 384, width, tanh, velocity_dims)


class _MomentsRows:
    """``MomentsRows`` of cuda/moments.hpp."""

    def __init__(self, width: int, velocity_dims: int):
        self.width, q = width, velocity_dims * (width + velocity_dims)
        self.q_blocks, self.g_blocks = -(-q // 8), width // 8 + 1
        self.vg = self.g_blocks * (self.g_blocks + 1) // 2
        self.qq = self.vg + self.g_blocks
        self.pairs = self.qq + self.q_blocks * (self.q_blocks + 1) // 2
        self.pull = 64 * self.pairs
        self.known = self.pull + q
        self.counts = self.known + 1 + velocity_dims * width
        self.finite = self.counts + 3
        self.numbers = self.finite + 4 * width

    def of_one_kind(self, blocks: int, first: int, row: int, column: int) -> int:
        """Where the product of two rows is, of ``blocks`` blocks whose pairs begin with the ``first``."""
        (i, a), (j, b) = divmod(row, blocks), divmod(column, blocks)
        if a > b:
            (i, a), (j, b) = (j, b), (i, a)
        return (i * 8 + j) * self.pairs + first + b * (b + 1) // 2 + a

    def of_known(self, k: int, row: int | None) -> int | None:
        """Where what is known of a row of q_k is, if there is such a thing."""
        if row is None or row >= self.width and row != self.width + k:
            return None
        return self.known + (1 + k * self.width + row if row < self.width else 0)

    def of_v(self, k: int, row: int) -> int:
        """Where the product of v_k and a row of the basis is."""
        j, b = divmod(row, self.g_blocks)
        return (k * 8 + j) * self.pairs + self.vg + b


@functools.cache
def _moments_places(
    width: int, dv: int, skipped: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where pull, and where gram, load and outer are among a sum's numbers, with one that is 0 after the last of these;
    and where what is to be added to the latter."""
    rows, basis = _MomentsRows(width, dv), width + skipped + 1
    nothing = rows.numbers
    # The row of q_k for each of the basis: none of positions and 1, whose derivatives are zero.
    own = [*range(width), *[None] * (skipped - dv), *(width + j for j in range(dv if skipped else 0)), None]
    q = [None if m is None else k * (width + dv) + m for k in range(dv) for m in own]
    pull = [nothing if row is None else rows.pull + row for row in q]
    gram = [rows.of_one_kind(rows.g_blocks, 0, m, n) for m in range(basis) for n in range(basis)]
    load = [rows.of_v(k, m) for k in range(dv) for m in range(basis)]
    outer = [
        nothing if m is None or n is None else rows.of_one_kind(rows.q_blocks, rows.qq, m, n) for m in q for n in q
    ]
    known = [rows.of_known(k, m) for k in range(dv) for m in own]
    more = [*[nothing] * len(gram), *(nothing if at is None else at for at in known), *[nothing] * len(outer)]
    return (
        torch.tensor(pull, device=device),
        torch.tensor([*gram, *load, *outer], device=device),
        torch.tensor(more, device=device),
    )


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
    """u [n, dv] and ∇v u [n, dv, dv] at inputs z [n, inputs], in their precision.

    Args:
        parameters: weights and biases of the three layers, then the skip if there is one.
        backwards: as for :func:`objective`.
    """
    z, *layers = (tensor.detach().contiguous() for tensor in (z, *parameters))
    width, dv = len(layers[0]), len(layers[4])
    u, jacobian = z.new_empty(len(z), dv), z.new_empty(len(z), dv, dv)
    call = _FieldCall(_Network.of(layers), len(z), *map(pointer, (z, u, jacobian)))
    if z.is_cuda:
        kernel = field_kernel(z.dtype, width, tanh, dv)
        kernel.launch(_blocks(kernel, -(-len(z) // 16), z.device), 4 * width, call, z.device)
    else:
        require().device_field(bytes(call), z.dtype == torch.float64, tanh, 2, backwards)
    return u, jacobian


def field_kernel(dtype: torch.dtype, width: int, tanh: bool, velocity_dims: int) -> Kernel:
    """The kernel for such a network in such a precision."""
    return _kernel("cuda/field.cu", "evaluate_field", 256, width, tanh, velocity_dims, KJKO_REAL=name_of(dtype))
