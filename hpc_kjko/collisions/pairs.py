"""Sums over pairs of particles: Landau's operator on blocks in which every particle meets every other.

    V_i = −Σ_j w_j A(z) (s_i − s_j),    d log f_i/dt = Σ_j w_j [ A(z) : ∇s_i − (d − 1) |z|^γ z·(s_i − s_j) ],
    A(z) = |z|^γ (|z|² I − z zᵀ),    z = v_i − v_j,    s = ∇v log f

Whatever s is, Σ w V vanishes by antisymmetry and Σ w v·V because A z = 0; Σ w s·V = −½ Σ w w Δsᵀ A Δs ≤ 0. The
divergence of V is exact. J. A. Carrillo, J. Hu, L. Wang, J. Wu, doi:10.1016/j.jcpx.2020.100066; V. Ilin, J. Hu,
Z. Wang, arXiv:2405.10392.
"""

from __future__ import annotations

import torch

#: Pairs of a pass, and the numbers that each of them takes.
PAIRS, NUMBERS = 2**18, 16


def pair_sums(
    v: torch.Tensor, score: torch.Tensor, hessian: torch.Tensor, weight: torch.Tensor, exponent: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """V and −∇·V of the particles of blocks, for C = 1.

    Args:
        v, score: velocities and s [blocks, B, d]; hessian: ∇s [blocks, B, d, d].
        weight: w [blocks, B], which add up to the density in each block; 0 for a place without a particle.
        exponent: γ.

    Returns:
        [blocks, B, d] and [blocks, B], in the precision of v.
    """
    blocks, size, dims = v.shape
    velocity, growth = torch.empty_like(v), torch.empty_like(weight)
    some = max(1, PAIRS // max(1, size))
    for block in range(blocks):
        for first in range(0, size, some):
            rows = slice(first, first + some)
            z = [v[block, rows, None, k] - v[block, None, :, k] for k in range(dims)]
            change = [score[block, rows, None, k] - score[block, None, :, k] for k in range(dims)]
            square = sum(one * one for one in z)
            assert isinstance(square, torch.Tensor)
            bare = torch.where(square > 0, square, 1.0) ** (0.5 * exponent) * (square > 0) * weight[block, None, :]
            along = sum(one * other for one, other in zip(z, change, strict=True))
            bent = hessian[block, rows]
            found = (bare * square).sum(1) * bent.diagonal(dim1=1, dim2=2).sum(1) - (dims - 1) * (bare * along).sum(1)
            for k in range(dims):
                velocity[block, rows, k] = -(bare * (square * change[k] - z[k] * along)).sum(1)
                weighted = bare * z[k]
                for m in range(k + 1):
                    found -= (1 if m == k else 2) * (weighted * z[m]).sum(1) * bent[:, k, m]
            growth[block, rows] = found
    return velocity, growth


def maxwell_sums(
    v: torch.Tensor, score: torch.Tensor, hessian: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for γ = 0, where the sums over pairs are made of moments of each block: O(B)."""
    w = weight[..., None]
    number = weight.sum(1)[:, None, None]
    first, of_score = (w * v).sum(1, keepdim=True), (w * score).sum(1, keepdim=True)
    second = (w * v).mT @ v
    mixed = (w * score).mT @ v
    square, own = (v * v).sum(2, keepdim=True), (v * score).sum(2, keepdim=True)
    third = (w * (square * score - v * own)).sum(1, keepdim=True)
    spread = second.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    inner = mixed.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    to_first = (v * first).sum(2, keepdim=True)
    distance = number * square - 2 * to_first + spread  # Σ w |z|²
    score_first = (score * first).sum(2, keepdim=True)
    along = number * v * own - v * score_first - first * own + score @ second  # Σ w z (z·s_i)
    of_others = square * of_score - 2 * v @ mixed.mT - v * (v * of_score).sum(2, keepdim=True) + v * inner
    of_others = of_others + v @ mixed + third
    velocity = -(distance * score - along - of_others)
    dims = v.shape[2]
    trace = hessian.diagonal(dim1=2, dim2=3).sum(2, keepdim=True)
    bent = (hessian @ v[..., None])[..., 0]
    quadratic = number * (v * bent).sum(2, keepdim=True) - 2 * (first * bent).sum(2, keepdim=True)
    quadratic = quadratic + torch.einsum("bkm,bikm->bi", second, hessian)[..., None]
    crossed = number * own - score_first - (v * of_score).sum(2, keepdim=True) + inner
    return velocity, (distance * trace - quadratic - (dims - 1) * crossed)[..., 0]
