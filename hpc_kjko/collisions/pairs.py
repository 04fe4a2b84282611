"""Sums over pairs of particles: the Landau operator in collision blocks. In a block every particle collides with every
other.

A particle i of species a collides with the particles j of species b. With σ = ∇v log f / m, its velocity is V_i / m_a,
and its log f changes at the rate G_i / m_a:

    V_i = −Σ_j w_j A(z) (σ_i − σ_j),    A(z) = |z|^γ (|z|² I − z zᵀ),    z = v_i − v_j,
    G_i = Σ_j w_j [ A(z) : ∇σ_i − (d − 1) |z|^γ z·(σ_i − σ_j) ] = −∇·V_i

For any σ, V over both species together conserves momentum, by antisymmetry, and energy, because A z = 0. Also Σ m w σ·V
= −½ Σ w w Δσᵀ A Δσ ≤ 0. Sources: J. A. Carrillo, J. Hu, L. Wang, J. Wu, doi:10.1016/j.jcpx.2020.100066; V. Ilin, J. Hu,
Z. Wang, arXiv:2405.10392.

Between unlike species σ_i − σ_j does not vanish where z does. Then some terms of the divergence may have infinite
variance over a sample. So for unlike species and all γ but 0, G is another average with the same mean. It follows by
integration by parts over v_j, and is bounded as A is:

    G_i = Σ_j w_j [ A(z) : (∇σ_i − ∇σ_j) + m_b (σ_i − σ_j)ᵀ A(z) σ_j ]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from hpc_kjko.kernels import pairs as kernel

#: The number of pairs in a pass in torch, and how many numbers each pair takes.
PAIRS, NUMBERS = 2**18, 24


@dataclass(frozen=True)
class Members:
    """The particles of a species in collision blocks. Particles of the same block follow one another.

    Attributes:
        v: velocities [n, d]; score: σ = ∇v log f / m [n, d]; hessian: ∇σ [n, d, d].
        weight: w [n]. In each block they add up to the density of the species.
        mass: m of a particle.
        edges: where each block begins, and where the last one ends [blocks + 1].
    """

    v: torch.Tensor
    score: torch.Tensor
    hessian: torch.Tensor
    weight: torch.Tensor
    mass: float
    edges: np.ndarray

    @property
    def arrays(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
        """All attributes but the mass."""
        return self.v, self.score, self.hessian, self.weight, self.edges

    def block(self, number: int) -> slice:
        """The rows of a block."""
        return slice(int(self.edges[number]), int(self.edges[number + 1]))


def pair_sums(members: Members, others: Members, exponent: float) -> tuple[torch.Tensor, torch.Tensor]:
    """V and G of the members of collision blocks, from collisions with the others in the same blocks.

    The native kernel computes them if there is one and γ is not 0 (:mod:`hpc_kjko.kernels.pairs`). It works in float32
    pair by pair, so momentum and energy are conserved to float32 rounding. Otherwise torch computes them in the
    precision of v.

    Args:
        members: the particles that are moved.
        others: the members themselves, or particles of another species in the same number of blocks.
        exponent: γ.

    Returns:
        V [n, d] and G [n], in the precision of v.
    """
    if kernel.take(members.v, exponent):
        met_by = None if others is members else others.arrays
        return kernel.pair_sums(members.arrays, met_by, mass=others.mass, exponent=exponent)
    velocity, growth = torch.empty_like(members.v), torch.empty_like(members.weight)
    for number in range(len(members.edges) - 1):
        block, met = members.block(number), others.block(number)
        if exponent == 0:
            velocity[block], growth[block] = _of_moments(members, block, others, met)
            continue
        some = max(1, PAIRS // max(1, met.stop - met.start))
        for first, last in pairwise([*range(block.start, block.stop, some), block.stop]):
            velocity[first:last], growth[first:last] = _of_pairs(members, slice(first, last), others, met, exponent)
    return velocity, growth


def _of_pairs(
    members: Members, rows: slice, others: Members, met: slice, exponent: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """V and G of some members, pair by pair."""
    dims, alike = members.v.shape[1], others is members
    v, score, bent = members.v[rows], members.score[rows], members.hessian[rows]
    z = [v[:, None, k] - others.v[None, met, k] for k in range(dims)]
    change = [score[:, None, k] - others.score[None, met, k] for k in range(dims)]
    square = sum(one * one for one in z)
    assert isinstance(square, torch.Tensor)
    bare = torch.where(square > 0, square, 1.0) ** (0.5 * exponent) * (square > 0) * others.weight[None, met]
    along = sum(one * other for one, other in zip(z, change, strict=True))
    pulled = [square * change[k] - z[k] * along for k in range(dims)]  # A Δσ, without the factor |z|^γ
    velocity = -torch.stack([(bare * one).sum(1) for one in pulled], 1)
    growth = (bare * square).sum(1) * bent.diagonal(dim1=1, dim2=2).sum(1)
    for k in range(dims):
        weighted = bare * z[k]
        for m in range(k + 1):
            growth -= (1 if m == k else 2) * (weighted * z[m]).sum(1) * bent[:, k, m]
    if alike:
        return velocity, growth - (dims - 1) * (bare * along).sum(1)
    theirs = others.hessian[met]
    of_others = square * theirs.diagonal(dim1=1, dim2=2).sum(1)
    for k in range(dims):
        of_others = of_others - others.mass * pulled[k] * others.score[None, met, k]
        for m in range(k + 1):
            of_others = of_others - (1 if m == k else 2) * z[k] * z[m] * theirs[:, k, m]
    return velocity, growth - (bare * of_others).sum(1)


def _of_moments(members: Members, rows: slice, others: Members, met: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """V and G = −∇·V of some members for γ = 0. The sums over pairs follow from moments of the others."""
    v, score, hessian = members.v[rows], members.score[rows], members.hessian[rows]
    w, at, of_at = others.weight[met, None], others.v[met], others.score[met]
    number, first, of_score = w.sum(), (w * at).sum(0), (w * of_at).sum(0)
    second, mixed = (w * at).T @ at, (w * of_at).T @ at
    third = (w * ((at * at).sum(1, keepdim=True) * of_at - at * (at * of_at).sum(1, keepdim=True))).sum(0)
    square, own = (v * v).sum(1, keepdim=True), (v * score).sum(1, keepdim=True)
    spread, inner = second.trace(), mixed.trace()
    distance = number * square - 2 * (v @ first)[:, None] + spread  # Σ w |z|²
    score_first = (score @ first)[:, None]
    along = number * v * own - v * score_first - first * own + score @ second  # Σ w z (z·σ_i)
    of_others = square * of_score - 2 * v @ mixed.T - v * (v @ of_score)[:, None] + v * inner
    of_others = of_others + v @ mixed + third
    velocity = -(distance * score - along - of_others)
    trace = hessian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    bent = (hessian @ v[..., None])[..., 0]
    quadratic = number * (v * bent).sum(1, keepdim=True) - 2 * (bent @ first)[:, None]
    quadratic = quadratic + torch.einsum("km,ikm->i", second, hessian)[:, None]
    crossed = number * own - score_first - (v @ of_score)[:, None] + inner
    return velocity, (distance * trace - quadratic - (v.shape[1] - 1) * crossed)[:, 0]


def pair_fields(members: Members, others: Members, exponent: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D_i = Σ_j w_j A(z) [n, d, d], V_i [n, d] and its Jacobian ∂V_k/∂v_l [n, d, d] for the members of collision
    blocks, from collisions with the others in the same blocks. The trace of the Jacobian is −G_i.

    The Jacobian is that of V_i with the others at fixed velocities. Between unlike species, for all γ but 0, it is
    another average with the same mean. This average is bounded as A is, like G_i there:

        ∂V_k/∂v_l = −Σ_j w_j [ A(z) (∇σ_i − ∇σ_j) + m_b A(z) (σ_i − σ_j) σ_jᵀ ]_kl

    The native kernel computes them if there is one and γ is not 0, otherwise torch. Both work at least in the precision
    of v.

    Args:
        members: the particles that are moved.
        others: the members themselves, or particles of another species in the same number of blocks.
        exponent: γ.
    """
    if kernel.take_fields(members.v, exponent):
        met_by = None if others is members else others.arrays
        return kernel.pair_fields(members.arrays, met_by, mass=others.mass, exponent=exponent)
    dims, exact = members.v.shape[1], others is members or exponent == 0
    metric, slope = torch.empty_like(members.hessian), torch.empty_like(members.hessian)
    velocity = torch.empty_like(members.v)
    for number in range(len(members.edges) - 1):
        block, met = members.block(number), others.block(number)
        some = max(1, PAIRS // max(1, met.stop - met.start))
        for first, last in pairwise([*range(block.start, block.stop, some), block.stop]):
            rows = slice(first, last)
            v, score = members.v[rows], members.score[rows]
            z = [v[:, None, k] - others.v[None, met, k] for k in range(dims)]
            change = [score[:, None, k] - others.score[None, met, k] for k in range(dims)]
            square = sum((one * one for one in z), torch.zeros(()).to(v))
            apart = torch.where(square > 0, square, 1.0)
            bare = apart ** (0.5 * exponent) * (square > 0) * others.weight[None, met]  # w |z|^γ
            along = sum((one * other for one, other in zip(z, change, strict=True)), torch.zeros(()).to(v))
            crossed, steep = bare * along, exponent * bare / apart
            trace = crossed.sum(1)
            whole = (bare * square).sum(1)
            theirs, of_score = others.hessian[met], others.mass * others.score[met]
            bending = [] if exact else [sum(z[m] * theirs[:, m, k] for m in range(dims)) for k in range(dims)]
            for k in range(dims):
                pulled = square * change[k] - z[k] * along  # A Δσ, without the factor |z|^γ
                velocity[rows, k] = -(bare * pulled).sum(1)
                for m in range(dims):
                    if m <= k:
                        metric[rows, k, m] = metric[rows, m, k] = -(bare * z[k] * z[m]).sum(1)
                    if exact:
                        bent = (steep * z[m] * pulled + bare * (2 * z[m] * change[k] - z[k] * change[m])).sum(1)
                    else:
                        bent = (bare * (pulled * of_score[:, m] - square * theirs[:, k, m] + z[k] * bending[m])).sum(1)
                    slope[rows, k, m] = -bent
                metric[rows, k, k] += whole
                if exact:
                    slope[rows, k, k] += trace
            slope[rows] -= metric[rows] @ members.hessian[rows]
    return metric, velocity, slope
