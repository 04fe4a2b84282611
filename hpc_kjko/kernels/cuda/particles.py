"""Drift, deposit, gather and kick on a GPU (cuda/particles.hpp). For tests the same source text runs on the CPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

from hpc_kjko.kernels.constants import PARTICLE_THREADS
from hpc_kjko.kernels.cuda import Kernel, name_of, pointer

#: The largest number of thread blocks.
MOST_BLOCKS = 8192
#: Numbers in which a deposit is summed, as copies of the mesh, so that atomic additions rarely conflict.
MOST_COPIES, COPIED = 64, 2**16


class _Mesh(ctypes.Structure):
    """``Mesh`` of math/particles.hpp."""

    _fields_ = [
        ("dims", ctypes.c_int),
        ("order", ctypes.c_int),
        ("cells", ctypes.c_int * 3),
        ("lengths", ctypes.c_double * 3),
    ]


class _Particles(ctypes.Structure):
    """``Particles`` of math/particles.hpp."""

    _fields_ = [
        ("is_double", ctypes.c_bool),
        ("count", ctypes.c_longlong),
        ("x", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("velocity_dims", ctypes.c_int),
    ]


class _Carried(ctypes.Structure):
    """``Carried`` of math/particles.hpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("quantities", ctypes.c_int),
        ("quantity_stride", ctypes.c_longlong),
        ("particle_stride", ctypes.c_longlong),
        ("unit", ctypes.c_double),
    ]


class _DepositCall(ctypes.Structure):
    """``DepositCall`` of cuda/particles.hpp."""

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
    """``GatherCall`` of cuda/particles.hpp."""

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
    """Densities [m, *cells] of quantities [m, n], after a drift to ``moved`` if it is given.

    Terms are rounded to ``unit`` (:mod:`hpc_kjko.particles.exact`). So the order of the atomic additions does not
    change the result. It is NaN at all nodes if a position is not finite.
    """
    assert quantities.shape[1] == len(x)
    x, v, quantities = x.contiguous(), None if v is None else v.contiguous(), quantities.double()
    nodes = math.prod(mesh[0])
    copies = max(1, min(MOST_COPIES, COPIED // max(1, len(quantities) * nodes)))
    sums = torch.zeros(copies, len(quantities), nodes, dtype=torch.float64, device=x.device)
    lost = torch.zeros((), dtype=torch.float64, device=x.device)
    call = _DepositCall(_mesh(mesh), _particles(x, v), duration, pointer(moved))
    call.carried = _Carried(pointer(quantities), len(quantities), *quantities.stride(), unit)
    call.sums, call.copies, call.lost = pointer(sums), copies, pointer(lost)
    particle_kernel("deposit", x.dtype, mesh).launch(_blocks(x), call, x.device, backwards=backwards)
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
    call = _GatherCall(_mesh(mesh), _particles(x, v), pointer(table), table.shape[1], v is not None, duration)
    call.result = pointer(result)
    particle_kernel("gather", x.dtype, mesh).launch(_blocks(x), call, x.device, backwards=backwards)
    return result


def particle_kernel(name: str, dtype: torch.dtype, mesh: Mesh) -> Kernel:
    """The kernel for particles of this precision on this mesh."""
    constants = {"KJKO_REAL": name_of(dtype), "KJKO_DIMS": str(len(mesh[0])), "KJKO_ORDER": str(mesh[2])}
    return Kernel("cuda/particles.cu", name, tuple(constants.items()), fused=False)


def _blocks(x: torch.Tensor) -> int:
    return max(1, min(-(-len(x) // PARTICLE_THREADS), MOST_BLOCKS))


def _mesh(mesh: Mesh) -> _Mesh:
    cells, lengths, order = mesh
    ones = [1] * (3 - len(cells))
    return _Mesh(len(cells), order, (ctypes.c_int * 3)(*cells, *ones), (ctypes.c_double * 3)(*lengths, *ones))


def _particles(x: torch.Tensor, v: torch.Tensor | None) -> _Particles:
    dims = 0 if v is None else v.shape[1]
    return _Particles(x.dtype == torch.float64, len(x), pointer(x), pointer(v), dims)
