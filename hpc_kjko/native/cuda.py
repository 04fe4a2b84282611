"""The kernels of GPUs, compiled when first launched and launched on torch's tensors and in torch's stream.

Their texts are the headers `device_*.hpp` beside this file; CuPy compiles them with NVRTC, so no nvcc is needed.
Tensors on the CPU go through the same arguments and the same text in the native module, thread after thread: for tests.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.native import cuda_wanted, require

FOLDER = Path(__file__).parent
#: Widths of hidden layers that there are kernels for, and the most inputs.
WIDTHS, MOST_INPUTS = (16, 32, 48, 64), 15
#: Rows of a sum that inputs have: with one that is 1.
INPUT_ROWS = MOST_INPUTS + 1
#: The most particles to a single-precision sum, and the most sums: a block of threads each. (H100: 132 × 3 at once.)
CHUNK, MOST_SUMS, MOST_MOMENTS_SUMS = 1024, 2048, 512
#: Threads of a block that are a particle each, and the most blocks of them.
PARTICLE_THREADS, MOST_BLOCKS = 128, 8192
#: Numbers that a deposit is summed in, in copies of the mesh, so that atomic additions seldom meet.
MOST_COPIES, COPIED = 64, 2**16


@functools.cache
def available() -> bool:
    """Whether CuPy is installed and sees a GPU."""
    return torch.cuda.is_available() and importlib.util.find_spec("cupy") is not None


def take(*tensors: torch.Tensor) -> bool:
    """Whether these are on a GPU and kernels for it are in use: unless KJKO_KERNELS=torch, where CuPy is installed.

    Raises:
        ImportError: KJKO_KERNELS=native asks for them, and there is no CuPy.
    """
    return all(tensor.is_cuda for tensor in tensors) and cuda_wanted(available())


def has_network(widths: Sequence[int]) -> bool:
    """Whether there are kernels, of GPUs and for the objective also of the CPU, for a network of such widths (inputs,
    hidden layers, dv)."""
    if len(widths) != 4:
        return False
    inputs, first, second, dv = widths
    return first == second and first in WIDTHS and inputs <= MOST_INPUTS and dv <= 3


def describe() -> str:
    """One phrase for logs: what a GPU here runs."""
    if not torch.cuda.is_available():
        return "no GPU"
    if not available():
        return "torch, for there is no CuPy: pip install 'hpc_kjko[cuda13]' or [cuda12]"
    if not cuda_wanted(True):
        return "torch, chosen by KJKO_KERNELS"
    import cupy

    return f"kernels compiled by CuPy {cupy.__version__}"


# -- compiling and launching -------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """A kernel in ``file``, with the constants that it is compiled for, in the order of their names there."""

    file: str
    name: str
    constants: tuple[tuple[str, str], ...]
    fused: bool = True  # multiply-adds

    @property
    def source(self) -> str:
        """CUDA C++, with a digest of all headers: CuPy's cache on disk knows a kernel by this text."""
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.hpp"))))
        return (FOLDER / self.file).read_text(encoding="utf-8") + f"// {digest.hexdigest()}\n"

    @property
    def options(self) -> tuple[str, ...]:
        """What NVRTC is told."""
        constants = ("KJKO_LEVEL", "device"), *self.constants
        defined = (f"-D{name}={value}" for name, value in constants)
        return "-std=c++17", "-default-device", f"-fmad={str(self.fused).lower()}", f"-I{FOLDER}", *defined

    def launch(self, blocks: int, threads: int, call: ctypes.Structure, device: torch.device, groups: int = 1) -> None:
        """Run it on a GPU, asynchronously: ``blocks`` of ``threads`` for each of the ``groups``.

        Raises:
            UserError: it does not compile for this GPU.
        """
        import cupy

        stream = torch.cuda.current_stream(device)
        with cupy.cuda.Device(device.index), _stream(stream):
            function, shared_bytes = _compiled(self, device.index)
            arguments = np.frombuffer(bytes(call), np.dtype((np.void, ctypes.sizeof(call))))  # one struct, by value
            function((blocks, groups), (threads,), (arguments,), shared_mem=shared_bytes)


def _stream(stream: torch.cuda.Stream) -> Any:
    """torch's stream as CuPy's: by the protocol that both have, where they do."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)


@functools.cache
def _compiled(kernel: Kernel, device: int) -> tuple[Any, int]:
    """The kernel on a device, which is the current one, and the bytes of shared memory that its blocks need."""
    import cupy

    try:
        module = cupy.RawModule(code=kernel.source, options=kernel.options)
        function = module.get_function(kernel.name)
        shared_bytes = int(cupy.ndarray((1,), np.int32, module.get_global("shared_bytes")).get()[0])
        function.max_dynamic_shared_size_bytes = shared_bytes
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError) as failure:
        raise UserError(
            f"CuPy cannot compile the kernels for this GPU ({str(failure).strip().splitlines()[-1]}): install the CuPy "
            "that fits torch's CUDA (hpc_kjko[cuda12] or [cuda13]), or set KJKO_KERNELS=torch"
        ) from failure
    return function, shared_bytes


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# -- the objective -----------------------------------------------------------------------------------------------------


class _Network(ctypes.Structure):
    """``NetworkOf`` of network.hpp."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("inputs", "width", "velocity_dims", "skipped")),
        ("tanh", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2", "w3", "b3", "skip")),
    ]

    @classmethod
    def of(cls, layers: Sequence[torch.Tensor], tanh: bool) -> _Network:
        """Of weights and biases of three layers, then the skip if there is one; contiguous, and kept by the caller."""
        (width, inputs), dv, skip = layers[0].shape, len(layers[4]), layers[6:]
        skipped = skip[0].shape[1] if skip else 0
        return cls(inputs, width, dv, skipped, tanh, *map(_pointer, layers), *([] if skip else [None]))


class _ObjectiveCall(ctypes.Structure):
    """``ObjectiveCall`` of objective.hpp."""

    _fields_ = [
        ("network", _Network),
        ("exact", ctypes.c_bool),
        *((name, ctypes.c_float) for name in ("step", "collision_strength", "temperature")),
        ("count", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("z", "v")),
        ("v_stride", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("share", "known")),
        ("together", ctypes.c_int),
        ("unit", ctypes.c_double),
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

    They stay on the device. The arguments are those of :func:`hpc_kjko.native.objective.objective`.

    Args:
        backwards: on the CPU, whether the threads run from the last one to the first: nothing may depend on it.
    """
    call, tensors = _call(particles, parameters, tanh, exact, step, collision_strength, temperature, together, unit)
    z, w1, w3 = tensors[0], tensors[4], tensors[8]
    (width, inputs), dv = w1.shape, len(w3)
    closed = not exact and dv > 1
    blocks = max(1, min(-(-len(z) // call.together), MOST_SUMS))
    sizes = _sum_sizes(width)
    sums = torch.empty(blocks, sum(sizes.values()), dtype=torch.float64, device=z.device)
    call.sums, call.gradient = _pointer(sums), _pointer(sums) if with_gradient else None
    if z.is_cuda:
        kernel = objective_kernel(width, tanh, dv, closed)
        kernel.launch(blocks, 4 * width, call, z.device)
    else:
        require().device_objective(bytes(call), closed, blocks, backwards)
    totals = dict(zip(sizes, sums.sum(0).split(list(sizes.values())), strict=True))
    loss = totals["loss"].sum()
    if not with_gradient:
        return loss, None
    gradient = _gradient(totals, width, inputs, dv, call.network.skipped if len(parameters) == 7 else None)
    return loss, gradient + (loss - loss)  # NaN where the loss is


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
    if v.stride(1) != 1:
        v = v.contiguous()
    call = _ObjectiveCall(_Network.of(layers, tanh), exact, step, collision_strength, temperature, len(z))
    call.z, call.v, call.v_stride, call.share, call.known = (
        *map(_pointer, (z, v)),
        v.stride(0),
        *map(_pointer, (share, known)),
    )
    call.together, call.unit = min(together, CHUNK), unit
    return call, [z, v, share, known, *layers]


def objective_kernel(width: int, tanh: bool, velocity_dims: int, closed: bool) -> Kernel:
    """The kernel for such a network, by the Jacobian or by the closed form of the divergence."""
    constants = {
        "KJKO_WIDTH": width,
        "KJKO_ACTIVATION": "Tanh" if tanh else "LeakyRelu",
        "KJKO_VELOCITY_DIMS": velocity_dims,
        "KJKO_CLOSED": str(closed).lower(),
    }
    named = tuple((name, str(value)) for name, value in constants.items())
    return Kernel("device_objective.cu", "evaluate_objective", named)


def _sum_sizes(width: int) -> dict[str, int]:
    """``DeviceLayout`` of device_objective.hpp."""
    return {
        "w1": INPUT_ROWS * width,
        "w2": width * width,
        "b2": width,
        "w3": 3 * width,
        "seed": 3 * width,
        "skip": 3 * INPUT_ROWS,
        "loss": 4 * width,
    }


def _gradient(totals: dict[str, torch.Tensor], width: int, inputs: int, dv: int, skipped: int | None) -> torch.Tensor:
    """The gradient in w1, b1, w2, b2, w3, b3 and, unless ``skipped`` is None, the skip from the kernel's sums."""
    to_w1, to_skip = totals["w1"].view(INPUT_ROWS, width), totals["skip"].view(3, INPUT_ROWS)[:dv]
    to_w1[inputs - dv : inputs] += totals["seed"].view(3, width)[:dv]
    parts = [
        to_w1[:inputs].T,
        to_w1[inputs],
        totals["w2"],
        totals["b2"],
        totals["w3"][: dv * width],
        to_skip[:, inputs],
    ]
    if skipped is not None:
        parts.append(to_skip[:, inputs - skipped : inputs])
    return torch.cat([part.reshape(-1) for part in parts])


# -- moments -----------------------------------------------------------------------------------------------------------


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
    whole: bool,
    backwards: bool = False,
) -> torch.Tensor:
    """What :func:`hpc_kjko.native.objective.moments` returns, on the device.

    Args:
        backwards: as for :func:`objective`.
    """
    call, tensors = _call(particles, parameters, tanh, exact, step, 1.0, temperature, together, unit)
    z, (width, dv) = tensors[0], (call.network.width, call.network.velocity_dims)
    rows = _MomentsRows(width, dv)
    blocks = max(1, min(-(-len(z) // call.together), MOST_MOMENTS_SUMS))
    sums = torch.empty(blocks, rows.numbers, dtype=torch.float64, device=z.device)
    call.sums, call.gradient = _pointer(sums), _pointer(sums) if whole else None
    groups = -(-rows.pairs // (4 * width)) if whole else 1
    if not whole:
        sums[:, : rows.pull].zero_()
    if z.is_cuda:
        moments_kernel(width, tanh, dv).launch(blocks, 4 * width, call, z.device, groups)
    else:
        require().device_moments(bytes(call), blocks, groups, backwards)
    totals = torch.cat([sums.sum(0), sums.new_zeros(1)])
    turned, log_det = totals[rows.turned : rows.numbers].view(2, -1).sum(1)
    places, more, first_load = _moments_places(width, dv, call.network.skipped, z.device)
    found = torch.cat([totals[places[: first_load[0]]], log_det[None], turned[None], totals[places[first_load[0] :]]])
    if not whole:
        found = found[: first_load[0] + 2]
    else:
        found[first_load[1] : first_load[1] + len(more)] += totals[more]
    return found + (log_det - log_det)


def moments_kernel(width: int, tanh: bool, velocity_dims: int) -> Kernel:
    """The kernel for such a network."""
    constants = {
        "KJKO_WIDTH": str(width),
        "KJKO_ACTIVATION": "Tanh" if tanh else "LeakyRelu",
        "KJKO_VELOCITY_DIMS": str(velocity_dims),
    }
    return Kernel("device_moments.cu", "sum_moments", tuple(constants.items()))


class _MomentsRows:
    """``MomentsRows`` of device_moments.hpp."""

    def __init__(self, width: int, velocity_dims: int):
        q = velocity_dims * (width + velocity_dims)
        self.q_blocks, self.g_blocks = -(-q // 8), width // 8 + 1
        self.vg = self.g_blocks * (self.g_blocks + 1) // 2
        self.qq = self.vg + self.g_blocks
        self.pairs = self.qq + self.q_blocks * (self.q_blocks + 1) // 2
        self.pull = 64 * self.pairs
        self.known = self.pull + q
        self.turned = self.known + 1 + velocity_dims * width
        self.numbers = self.turned + 2 * 4 * width

    def of_one_kind(self, blocks: int, first: int, row: int, column: int) -> int:
        """Where the product of two rows is, of ``blocks`` blocks whose pairs begin with the ``first``."""
        (i, a), (j, b) = divmod(row, blocks), divmod(column, blocks)
        if a > b:
            (i, a), (j, b) = (j, b), (i, a)
        return (i * 8 + j) * self.pairs + first + b * (b + 1) // 2 + a

    def of_v(self, k: int, row: int) -> int:
        """Where the product of v_k and a row of the basis is."""
        j, b = divmod(row, self.g_blocks)
        return (k * 8 + j) * self.pairs + self.vg + b


@functools.cache
def _moments_places(
    width: int, dv: int, skipped: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Where pull, gram, load and outer are among a sum's numbers, with one that is 0 after the last of these.

    Then where what is to be added to load is; and where among the results gram and, with the two counts, load begin.
    """
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
    more = [
        nothing
        if m is None
        else rows.known + 1 + k * width + m
        if m < width
        else rows.known
        if m == width + k
        else nothing
        for k in range(dv)
        for m in own
    ]
    places = torch.tensor([*pull, *gram, *load, *outer], device=device)
    return places, torch.tensor(more, device=device), (len(pull), len(pull) + 2 + len(gram))


# -- the field ---------------------------------------------------------------------------------------------------------


class _FieldCall(ctypes.Structure):
    """``DeviceFieldCall`` of device_field.hpp."""

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
    call = _FieldCall(_Network.of(layers, tanh), len(z), *map(_pointer, (z, u, jacobian)))
    if z.is_cuda:
        blocks = max(1, min(-(-len(z) // 16), MOST_SUMS))
        field_kernel(z.dtype, width, tanh, dv).launch(blocks, 4 * width, call, z.device)
    else:
        require().device_field(bytes(call), z.dtype == torch.float64, 2, backwards)
    return u, jacobian


def field_kernel(dtype: torch.dtype, width: int, tanh: bool, velocity_dims: int) -> Kernel:
    """The kernel for such a network in such a precision."""
    constants = {
        "KJKO_REAL": _real(dtype),
        "KJKO_WIDTH": str(width),
        "KJKO_ACTIVATION": "Tanh" if tanh else "LeakyRelu",
        "KJKO_VELOCITY_DIMS": str(velocity_dims),
    }
    return Kernel("device_field.cu", "evaluate_field", tuple(constants.items()))


# -- particles ---------------------------------------------------------------------------------------------------------


class _Mesh(ctypes.Structure):
    """``Mesh`` of particles.hpp."""

    _fields_ = [
        ("dims", ctypes.c_int),
        ("order", ctypes.c_int),
        ("cells", ctypes.c_int * 3),
        ("lengths", ctypes.c_double * 3),
    ]


class _Particles(ctypes.Structure):
    """``Particles`` of particles.hpp."""

    _fields_ = [
        ("is_double", ctypes.c_bool),
        ("count", ctypes.c_longlong),
        ("x", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("velocity_dims", ctypes.c_int),
    ]


class _Carried(ctypes.Structure):
    """``Carried`` of particles.hpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("quantities", ctypes.c_int),
        ("quantity_stride", ctypes.c_longlong),
        ("particle_stride", ctypes.c_longlong),
        ("unit", ctypes.c_double),
    ]


class _DepositCall(ctypes.Structure):
    """``DepositCall`` of device_particles.hpp."""

    _fields_ = [
        ("mesh", _Mesh),
        ("particles", _Particles),
        ("duration", ctypes.c_double),
        ("moved", ctypes.c_void_p),
        ("carried", _Carried),
        ("sums", ctypes.c_void_p),
        ("copies", ctypes.c_int),
        ("lost", ctypes.c_void_p),
    ]


class _GatherCall(ctypes.Structure):
    """``GatherCall`` of device_particles.hpp."""

    _fields_ = [
        ("mesh", _Mesh),
        ("particles", _Particles),
        ("values", ctypes.c_void_p),
        ("components", ctypes.c_int),
        ("kick", ctypes.c_bool),
        ("duration", ctypes.c_double),
        ("result", ctypes.c_void_p),
    ]


#: Cells, lengths, order of the shape functions.
Mesh = tuple[Sequence[int], Sequence[float], int]


def drift(x: torch.Tensor, v: torch.Tensor, duration: float, lengths: Sequence[float]) -> torch.Tensor:
    """x + duration · v, wrapped into the box: [n, dx]."""
    nothing = torch.empty(0, len(x), dtype=torch.float64, device=x.device)
    moved = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    deposit(([1] * len(lengths), lengths, 1), x, nothing, 0.0, v, duration, moved)
    return moved


def deposit(
    mesh: Mesh,
    x: torch.Tensor,
    quantities: torch.Tensor,
    unit: float,
    v: torch.Tensor | None = None,
    duration: float = 0.0,
    moved: torch.Tensor | None = None,
    backwards: bool = False,
) -> torch.Tensor:
    """Densities [m, *cells] of quantities [m, n], after a drift to ``moved`` if there is one.

    Terms are rounded to ``unit`` (:mod:`hpc_kjko.exact`): then they may be added in any order, as atomic additions are.
    NaN everywhere if a position is not finite.
    """
    assert quantities.shape[1] == len(x)
    x, v, quantities = x.contiguous(), None if v is None else v.contiguous(), quantities.double()
    nodes = math.prod(mesh[0])
    copies = max(1, min(MOST_COPIES, COPIED // max(1, len(quantities) * nodes)))
    sums = torch.zeros(copies, len(quantities), nodes, dtype=torch.float64, device=x.device)
    lost = torch.zeros((), dtype=torch.float64, device=x.device)
    call = _DepositCall(_mesh(mesh), _particles(x, v), duration, _pointer(moved))
    call.carried = _Carried(_pointer(quantities), len(quantities), *quantities.stride(), unit)
    call.sums, call.copies, call.lost = _pointer(sums), copies, _pointer(lost)
    if x.is_cuda:
        particle_kernel("deposit", x.dtype, mesh).launch(_blocks(x), PARTICLE_THREADS, call, x.device)
    else:
        require().device_deposit(bytes(call), backwards)
    return sums.sum(0).masked_fill_(lost > 0, math.nan).reshape(-1, *mesh[0])


def gather(
    mesh: Mesh,
    values: torch.Tensor,
    x: torch.Tensor,
    v: torch.Tensor | None = None,
    duration: float = 0.0,
    backwards: bool = False,
) -> torch.Tensor:
    """Mesh values [*cells, m] at the particles [n, m]; with ``v``, the velocities after a kick of ``duration``."""
    x, v = x.contiguous(), None if v is None else v.contiguous()
    table = values.double().reshape(-1, values.shape[-1]).contiguous()
    assert len(table) == math.prod(mesh[0]) and (v is None or table.shape[1] == x.shape[1] <= v.shape[1])
    result = torch.empty(len(x), table.shape[1], dtype=x.dtype, device=x.device) if v is None else torch.empty_like(v)
    call = _GatherCall(_mesh(mesh), _particles(x, v), _pointer(table), table.shape[1], v is not None, duration)
    call.result = _pointer(result)
    if x.is_cuda:
        particle_kernel("gather", x.dtype, mesh).launch(_blocks(x), PARTICLE_THREADS, call, x.device)
    else:
        require().device_gather(bytes(call), backwards)
    return result


def particle_kernel(name: str, dtype: torch.dtype, mesh: Mesh) -> Kernel:
    """The kernel for particles of such a precision on such a mesh."""
    constants = {"KJKO_REAL": _real(dtype), "KJKO_DIMS": str(len(mesh[0])), "KJKO_ORDER": str(mesh[2])}
    return Kernel("device_particles.cu", name, tuple(constants.items()), fused=False)


def _real(dtype: torch.dtype) -> str:
    return "float" if dtype == torch.float32 else "double"


def _blocks(x: torch.Tensor) -> int:
    return max(1, min(-(-len(x) // PARTICLE_THREADS), MOST_BLOCKS))


def _mesh(mesh: Mesh) -> _Mesh:
    cells, lengths, order = mesh
    ones = [1] * (3 - len(cells))
    return _Mesh(len(cells), order, (ctypes.c_int * 3)(*cells, *ones), (ctypes.c_double * 3)(*lengths, *ones))


def _particles(x: torch.Tensor, v: torch.Tensor | None) -> _Particles:
    dims = 0 if v is None else v.shape[1]
    return _Particles(x.dtype == torch.float64, len(x), _pointer(x), _pointer(v), dims)
