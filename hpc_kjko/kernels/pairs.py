"""Native sums over pairs of particles in collision blocks; hpc_kjko/collisions/pairs.py is their torch twin.

Pairs are computed in float32, in units of their block, and added in float64. Pairs that are too close for float32
(math/pair.hpp) are computed in float64.
"""

from __future__ import annotations

import torch

from hpc_kjko.kernels import Backend, backend, cuda, require
from hpc_kjko.kernels.cuda import pairs as cuda_pairs
from hpc_kjko.kernels.cuda.pairs import Given


def take(v: torch.Tensor, exponent: float) -> bool:
    """Whether the kernel is used for particles with these velocities [n, d] and for this exponent."""
    if v.shape[1] not in (2, 3) or exponent == 0:
        return False
    return cuda.take(v) or (v.device.type == "cpu" and backend() is Backend.NATIVE)


def pair_sums(
    members: Given, others: Given | None, *, mass: float, exponent: float, single_precision: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """V [n, d] and G [n] of the members of collision blocks, in the precision of v. The bits do not depend on the
    threads.

    Args:
        members: v [n, d], score [n, d], hessian [n, d, d], weight [n], and the edges of the blocks [blocks + 1].
            Particles outside all blocks have no result.
        others: particles of another species in the same number of blocks. None: the members themselves.
        mass: of the others.
        exponent: γ.
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
    """Whether :func:`pair_fields` is used for these, as :func:`take`; not on a GPU."""
    return take(v, exponent) and not v.is_cuda


def pair_fields(
    members: Given, others: Given | None, *, mass: float, exponent: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D [n, d, d], V [n, d] and ∂V/∂v [n, d, d] of the members of collision blocks, computed in float64 and returned in
    the precision of v. For the arguments see :func:`pair_sums`; ∇σ must be symmetric.
    """
    dtype = members[0].dtype
    mine, theirs = _contiguous(members), None if others is None else _contiguous(others)
    metric, velocity, slope = torch.zeros_like(mine[2]), torch.zeros_like(mine[0]), torch.zeros_like(mine[2])
    require().pair_fields(mine, theirs, mass=mass, exponent=exponent, metric=metric, velocity=velocity, slope=slope)
    return metric.to(dtype), velocity.to(dtype), slope.to(dtype)


def _contiguous(given: Given) -> Given:
    v, score, hessian, weight = (tensor.detach().double().contiguous() for tensor in given[:4])
    return v, score, hessian, weight, given[4].astype("int64")
