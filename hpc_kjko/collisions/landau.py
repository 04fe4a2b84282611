"""Coulomb collisions: the Landau operator as a deterministic sum over pairs, with the score of the fitted density.

    ∂t f_a = Σ_b C_ab/m_a ∇v·∫ A(v − v') (f_b' ∇v f_a / m_a − f_a ∇v' f_b' / m_b) dv',    A(z) = |z|^γ (|z|² I − z zᵀ)

local in x, over all species b. γ = −3 are Coulomb collisions, 0 Maxwell molecules. Particles of a cell are dealt to
blocks, anew in each step, and every particle of a block meets every other (:mod:`~hpc_kjko.collisions.pairs`). The
score is ∇v ψ̄ of the density that is fitted to the carried log f (:mod:`~hpc_kjko.inner.solvers.density`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, PairCollision, StepStart
from hpc_kjko.collisions.blocks import Blocks, blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.pairs import Members, pair_sums
from hpc_kjko.errors import SolverFailure
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order
from hpc_kjko.particles.state import Particles

#: A step that would widen a block's velocities by more than a tenth is no longer a small one.
SHRINKING = 0.9
#: The part of its energy that the spread of a block's velocities has at least, but for rounding.
ROUNDING = 1e-24


class LandauCollision(PairCollision):
    """v ← ṽ + h V, log f ← log f̃ − h ∇v·V, then each block's momentum and energy are restored to round-off.

    With ``method.order = 2`` V is that of the midpoint, where the densities are fitted again.
    """

    has_control = False
    fits_log_f = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.settings, self.comm, self.operator = settings, comm, settings.operator
        #: Fits the density; its control field is not made.
        self.fit = JKOCollision(settings, comm)
        self.held_out = self.fit.held_out

    @classmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        first, relaxed, reports = steps[0], [], []
        for step, particles, start in zip(steps, pushed, starts, strict=True):
            iterations = step.fit.fit_density(particles, duration, start)
            after, of_log_f = step.fit.relaxed(particles, duration, agreed=True)
            step.log_f_moved = after.log_f - particles.log_f
            relaxed.append(after)
            reports.append(
                replace(CollisionReport(math.nan, math.nan, math.nan, iterations, 1), **dict[str, Any](of_log_f))
            )
        seeds = [step.settings.seed for step in steps]
        operator, grid = first.operator, first.settings.grid
        blocks = blocks_of_cells(relaxed, grid, operator.block, seeds, starts[0].index, first.comm)
        if first.fit.order == 1:
            collided = _moved(steps, relaxed, relaxed, blocks, duration)
        else:
            half = _moved(steps, relaxed, relaxed, blocks, 0.5 * duration)
            for number, (step, particles, start) in enumerate(zip(steps, half, starts, strict=True)):
                made = reports[number].inner_iterations + step.fit.fit_density(particles, duration, start, again=True)
                reports[number] = replace(reports[number], inner_iterations=made)
            collided = _moved(steps, relaxed, half, blocks, duration)
        return [
            (after, step._certified(report, before, after, blocks.sparse))
            for step, report, before, after in zip(steps, reports, relaxed, collided, strict=True)
        ]

    def _certified(
        self, report: CollisionReport, before: Particles, after: Particles, sparse: float
    ) -> CollisionReport:
        """The report with what log f of held-out particles gained. Collective."""
        change, mass = (after.log_f - before.log_f).double(), before.total_weight
        mean, error = over_certifying(change, before, self.comm) if self.held_out else (0.0, 0.0)
        return replace(
            report,
            collision_free_energy=mass * mean,
            collision_free_energy_error=mass * error,
            sparse_nodes=sparse,
        )

    def state(self) -> dict[str, np.ndarray]:
        return self.fit.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.fit.load(arrays)


@torch.no_grad()
def _moved(
    steps: Sequence[LandauCollision],
    plasma: Sequence[Particles],
    at: Sequence[Particles],
    blocks: Blocks,
    duration: float,
) -> list[Particles]:
    """The particles of all species moved by the V that others, or themselves, have. Collective."""
    comm, dims, masses = steps[0].comm, plasma[0].v.shape[1], [step.settings.mass for step in steps]
    gathered = []
    for step, particles, there, dealt, mass in zip(steps, plasma, at, blocks.species, masses, strict=True):
        score, hessian = step.fit.score(there)
        whole = [there.v, score / mass, hessian.flatten(1) / mass, particles.weight[:, None], particles.v]
        gathered.append(dealt.gathered(torch.cat([part.double() for part in whole], dim=1).cpu().numpy()))
    numbers = [dealt.block for dealt in blocks.species]
    columns = np.cumsum([dims, dims, dims**2, 1])
    of_species = [np.split(rows, columns, axis=1) for rows in gathered]
    weights = [parts[3][:, 0] for parts in of_species]
    device = plasma[0].v.device
    members = [
        Members(
            v=torch.from_numpy(v).to(device),
            score=torch.from_numpy(score).to(device),
            hessian=torch.from_numpy(hessian.reshape(-1, dims, dims)).to(device),
            weight=torch.from_numpy(weight * blocks.per_volume[number]).to(device),
            mass=mass,
            edges=dealt.edges,
        )
        for (v, score, hessian, _, _), weight, number, mass, dealt in zip(
            of_species, weights, numbers, masses, blocks.species, strict=True
        )
    ]
    changes = []
    for step, own, weight, number, density in zip(steps, members, weights, numbers, blocks.density, strict=True):
        change = np.zeros((len(weight), dims + 1))
        for other, met in zip(steps, members, strict=True):
            factor = step.operator.factors[other.settings.number] * duration / own.mass
            if factor == 0:
                continue
            with in_order(step.fit.together):
                velocity, growth = pair_sums(own, met, step.operator.exponent)
            part = factor * torch.cat([velocity, growth[:, None]], dim=1).cpu().numpy()
            if met is own:
                part *= among_likes(weight, number, density / blocks.per_volume)[:, None]
            change += part
        changes.append(change)
    before = [parts[4] for parts in of_species]
    smallest = restore(before, changes, weights, numbers, masses)
    if comm.any(not all(np.isfinite(change).all() for change in changes)):
        raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
    if (smallest := comm.min(smallest)) < SHRINKING:
        raise SolverFailure(
            "a step of the pairs is too long: velocities of a block must be scaled by "
            f"{smallest:.3g} to keep its energy: reduce time.step or physics.collision_strength"
        )
    moved = []
    for particles, dealt, change in zip(plasma, blocks.species, changes, strict=True):
        back = torch.from_numpy(dealt.returned(change)).to(device)
        log_f = particles.log_f + back[:, dims].to(particles.log_f)
        moved.append(particles.move((particles.v.double() + back[:, :dims]).to(particles.v), log_f))
    return moved


def among_likes(weight: np.ndarray, number: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the sums over like pairs are to be multiplied with [n]: a particle meets all of its block but itself, and
    these stand, on average, for the mean mass that a block of its cell has [blocks]."""
    total, square = (np.bincount(number, one, len(mean)) for one in (weight, weight**2))
    others = total**2 - square
    return np.divide(mean * total, others, out=np.zeros_like(total), where=others > 0)[number]


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as whole multiples of a unit, of which 2¹⁷ add up without rounding, and what these leave."""
    largest = np.abs(values).max(initial=0.0)
    unit = 2.0 ** (np.ceil(np.log2(largest)) - 35) if largest > 0 and np.isfinite(largest) else 1.0
    whole = unit * np.rint(values / unit)
    return whole, values - whole


def restore(
    before: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    numbers: Sequence[np.ndarray],
    masses: Sequence[float],
) -> float:
    """Correct the changes [n, d + 1] of v and log f of all species such that the momentum and the energy of every
    block are those of before; returns the smallest factor that velocities were scaled with.

    The velocities of a block are shifted, and scaled about their mean.
    """
    count = max((int(number[-1]) + 1 for number in numbers if len(number)), default=0)
    shares = [mass * weight for mass, weight in zip(masses, weights, strict=True)]

    def over_blocks(values: Sequence[np.ndarray]) -> np.ndarray:
        """Sums [blocks, k] of values [n, k] of all species, exact but for one rounding."""
        total = np.zeros((count, values[0].shape[1]))
        for part in zip(*(_halves(value) for value in values), strict=True):
            for number, value in zip(numbers, part, strict=True):
                total += np.stack([np.bincount(number, column, count) for column in value.T], axis=1)
        return total

    def means(values: Sequence[np.ndarray]) -> np.ndarray:
        sums = over_blocks([share[:, None] * value for share, value in zip(shares, values, strict=True)])
        return np.divide(sums, mass, out=np.zeros_like(sums), where=mass > 0)

    def spread(values: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
        return means(
            [((value - mean[number]) ** 2).sum(1, keepdims=True) for value, number in zip(values, numbers, strict=True)]
        )

    mass = over_blocks([share[:, None] for share in shares])
    moved = [v + change[:, :-1] for v, change in zip(before, changes, strict=True)]
    mean, middle = means(before), means(moved)
    old, new = spread(before, mean), spread(moved, middle)
    alike = old <= ROUNDING * spread(before, 0 * mean)  # velocities that differ by rounding have no width to restore
    # √(old/new) − 1: the root of a number just below 1 is rounded down more often than up, and 10⁴ steps would show it
    gain = np.divide(old - new, new + np.sqrt(old * new), out=np.zeros_like(old), where=~alike & (new > 0))
    for v, after, change, number in zip(before, moved, changes, numbers, strict=True):
        apart = after - middle[number]
        change[:, :-1] = mean[number] + (apart + gain[number] * apart) - v
        change[:, -1] -= v.shape[1] * np.log1p(gain[number, 0])
    return 1 + float(gain.min(initial=0.0))
