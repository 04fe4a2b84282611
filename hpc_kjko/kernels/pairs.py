"""Native sums over pairs of particles in blocks; hpc_kjko/collisions/pairs.py is their twin.

Pairs are computed in float32, in units of their block, and added up in float64; those that are too near for it
(math/pair.hpp) in float64.
"""

from __future__ import annotations

import torch

from hpc_kjko.kernels import Backend, backend, cuda, require
from hpc_kjko.kernels.cuda import pairs as cuda_pairs
from hpc_kjko.kernels.cuda.pairs import Given


def take(v: torch.Tensor, exponent: float) -> bool:
    """Whether the kernel is in use and made for particles with these velocities [n, d] and such an exponent."""
    if v.shape[1] not in (2, 3) or exponent == 0:
        return False
    return cuda.take(v) or (v.device.type == "cpu" and backend() is Backend.NATIVE)


def pair_sums(
    members: Given, others: Given | None, *, mass: float, exponent: float, single_precision: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """V [n, d] and G [n] of the members of blocks, in the precision of v. Bits do not depend on the threads.

    Args:
        members: v [n, d], score [n, d], hessian [n, d, d], weight [n], and the edges of the blocks [blocks + 1]; what
            is in no block has no result.
        others: those of another species in as many blocks; None: the members themselves.
        mass: of the others.
        single_precision: whether pairs are computed in float32.
    """
    dtype = members[0].dtype
    mine, theirs = _contiguous(members), None if others is None else _contiguous(others)
    if mine[0].is_cuda:
        velocity, growth = cuda_pairs.pair_sums(
            mine, theirs, mass=mass, exponent=exponent, single_precision=single_precision
        )
    else:
        velocity, growth = torch.empty_like(mine[0]), torch.empty_like(mine[3])
        require().pair_sums(
            mine,
            theirs,
            mass=mass,
            exponent=exponent,
            single_precision=single_precision,
            velocity=velocity,
            growth=growth,
        )
    return velocity.to(dtype), growth.to(dtype)


def take_fields(v: torch.Tensor, exponent: float) -> bool:
    """Whether :func:`pair_fields` is made for these, as :func:`take`; not on a GPU."""
    return take(v, exponent) and not v.is_cuda


def pair_fields(
    members: Given, others: Given | None, *, mass: float, exponent: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D [n, d, d], V [n, d] and ∂V/∂v [n, d, d] of the members of blocks, in the precision of v, computed in float64.
    Arguments as of :func:`pair_sums`; ∇σ is symmetric."""
    dtype = members[0].dtype
    mine, theirs = _contiguous(members), None if others is None else _contiguous(others)
    metric, velocity, slope = torch.zeros_like(mine[2]), torch.zeros_like(mine[0]), torch.zeros_like(mine[2])
    require().pair_fields(mine, theirs, mass=mass, exponent=exponent, metric=metric, velocity=velocity, slope=slope)
    return metric.to(dtype), velocity.to(dtype), slope.to(dtype)


def _contiguous(given: Given) -> Given:
    v, score, hessian, weight = (tensor.detach().double().contiguous() for tensor in given[:4])
    return v, score, hessian, weight, given[4].astype("int64")
