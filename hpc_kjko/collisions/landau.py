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
from hpc_kjko.collisions.meeting import Meeting
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.errors import SolverFailure
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order
from hpc_kjko.particles.state import Particles

#: A step that would widen a block's velocities by more than a tenth is no longer a small one.
SHRINKING = 0.9


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
    comm, dims = steps[0].comm, plasma[0].v.shape[1]
    meeting = Meeting.of(plasma, [step.settings.mass for step in steps], blocks)
    members = meeting.members(at, [step.fit.score(there) for step, there in zip(steps, at, strict=True)])
    changes = []
    for species, (step, own) in enumerate(zip(steps, members, strict=True)):
        change = np.zeros((len(own.v), dims + 1))
        for other, met in zip(steps, members, strict=True):
            factor = step.operator.factors[other.settings.number] * duration / own.mass
            if factor == 0:
                continue
            with in_order(step.fit.together):
                velocity, growth = pair_sums(own, met, step.operator.exponent)
            part = factor * torch.cat([velocity, growth[:, None]], dim=1).cpu().numpy()
            if met is own:
                part *= meeting.among_likes(species)[:, None]
            change += part
        changes.append(change)
    moved, smallest = meeting.moved(changes, comm)
    if smallest < SHRINKING:
        raise SolverFailure(
            "a step of the pairs is too long: velocities of a block must be scaled by "
            f"{smallest:.3g} to keep its energy: reduce time.step or physics.collision_strength"
        )
    return moved
