"""Sums over pairs of particles on a GPU (cuda/pairs.hpp). For tests the same source text runs on the CPU."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from hpc_kjko.kernels.constants import PARTICLE_THREADS
from hpc_kjko.kernels.cuda import Kernel, pointer

#: v [n, d], score [n, d], hessian [n, d, d] and weight [n] of particles, float64 and contiguous; the edges of their
#: collision blocks [blocks + 1].
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]
#: Exponents for which the kernel has special code.
CHEAP = (-3, -2, -1, 1)


class _PairMembers(ctypes.Structure):
    """``PairMembers`` of math/pairs.hpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("v", "score", "hessian", "weight", "edges")]


class _PairCall(ctypes.Structure):
    """``PairCall`` of math/pairs.hpp."""

    _fields_ = [
        ("dims", ctypes.c_int),
        ("alike", ctypes.c_bool),
        ("blocks", ctypes.c_longlong),
        *((name, ctypes.c_double) for name in ("exponent", "mass")),
        *((name, _PairMembers) for name in ("members", "others")),
        *((name, ctypes.c_void_p) for name in ("velocity", "growth")),
    ]


class _DevicePairCall(ctypes.Structure):
    """``DevicePairCall`` of cuda/pairs.hpp."""

    _fields_ = [
        ("pairs", _PairCall),
        ("single_precision", ctypes.c_bool),
        ("tiles", ctypes.c_longlong),
        ("begin", ctypes.c_void_p),
    ]


def pair_sums(
    members: Given,
    others: Given | None,
    *,
    mass: float,
    exponent: float,
    single_precision: bool,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of :func:`hpc_kjko.kernels.pairs.pair_sums`, on the device; same arguments.

    Args:
        backwards: as for :meth:`hpc_kjko.kernels.cuda.Kernel.launch`.
    """
    v, device = members[0], members[0].device
    velocity, growth = torch.empty_like(v), torch.empty_like(members[3])
    edges = [torch.as_tensor(given[4], dtype=torch.int64, device=device) for given in (members, others or members)]
    mine, theirs = (
        _PairMembers(*map(pointer, (*given[:4], ends)))
        for given, ends in zip((members, others or members), edges, strict=True)
    )
    pairs = _PairCall(v.shape[1], others is None, len(members[4]) - 1, exponent, mass, mine, theirs)
    pairs.velocity, pairs.growth = pointer(velocity), pointer(growth)
    begin = torch.from_numpy(_tiles(members[4])).to(device)
    if len(begin):
        call = _DevicePairCall(pairs, single_precision, len(begin), pointer(begin))
        kernel = pair_kernel(v.shape[1], others is None, exponent, single_precision)
        kernel.launch(len(begin), call, device, backwards=backwards)
    return velocity, growth


def pair_kernel(dims: int, alike: bool, exponent: float, single_precision: bool = True) -> Kernel:
    """The kernel for particles in this many dimensions and for this exponent."""
    constants = {
        "KJKO_REAL": "float" if single_precision else "double",
        "KJKO_DIMS": str(dims),
        "KJKO_ALIKE": str(alike).lower(),
        "KJKO_GAMMA": str(int(exponent) if exponent in CHEAP else 0),
    }
    return Kernel("cuda/pairs.cu", "pair_sums", tuple(constants.items()))


def _tiles(edges: np.ndarray) -> np.ndarray:
    """The collision block and the first member of each tile [tiles, 2]."""
    tiles = -(-np.diff(edges) // PARTICLE_THREADS)
    block = np.repeat(np.arange(len(tiles)), tiles)
    number = np.arange(len(block)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return np.stack([block, edges[block] + PARTICLE_THREADS * number], axis=1).astype(np.int64)
