"""Coulomb collisions: the Landau operator as a deterministic sum over pairs, with the score of the fitted density.

    ∂t f_a = Σ_b C_ab/m_a ∇v·∫ A(v − v') (f_b' ∇v f_a / m_a − f_a ∇v' f_b' / m_b) dv',    A(z) = |z|^γ (|z|² I − z zᵀ)

The operator is local in x, and b runs over all species. γ = −3 are Coulomb collisions, γ = 0 Maxwell molecules. The
particles of a cell are divided into new collision blocks in each step. Every particle of a block collides with every
other one (:mod:`~hpc_kjko.collisions.pairs`). The score is ∇v ψ̄ of the density that is fitted to the carried log f
(:mod:`~hpc_kjko.inner.solvers.density`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, StepStart
from hpc_kjko.collisions.blocks import Blocks, blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.meeting import Meeting, Score
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.collisions.split_pairs import Attempt, SplitPairCollision
from hpc_kjko.particles.exact import in_order, summed_finely
from hpc_kjko.particles.state import Particles

#: A step is too long if it would widen the velocities of a collision block by more than a tenth.
SHRINKING = 0.9
#: A step is also too long if the V of its start moves particles by more than the first fraction of the width of their
#: velocities, or changes log f by more than the second number, root mean square. A midpoint step of C h = 1 is just
#: below both limits, for temperatures 2, ½, ½. It leaves 8 % of the relaxation undone.
FARTHEST, LARGEST = 0.25, 0.4


class LandauCollision(SplitPairCollision):
    """v ← ṽ + h V, log f ← log f̃ − h ∇v·V. Then the momentum and energy of each collision block are restored to
    round-off.

    With ``method.order = 2`` V is that of the midpoint, where the densities are fitted again.
    """

    has_control = False

    @classmethod
    def promises_decay(cls, steps: Sequence[Self]) -> bool:
        """False with several species, because log f of a particle has the noise of the unlike particles that it met."""
        return len(steps) == 1

    @property
    def advice(self) -> str:
        long_steps = 'take long steps with method.collision = "jko"'
        return f"reduce time.step, raise particles.count or physics.landau.block, or {long_steps}"

    @classmethod
    def attempt(
        cls, steps: Sequence[Self], plasma: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> Attempt:
        first, made, there = steps[0], [0] * len(steps), plasma
        seeds = [step.settings.seed for step in steps]
        grid, size = first.settings.grid, first.operator.block
        blocks = blocks_of_cells(plasma, grid, size, seeds, starts[0].drawn, first.comm)
        smallest = math.inf
        scores = [step.density.score(particles) for step, particles in zip(steps, plasma, strict=True)]
        if first.order == 2:
            there, smallest = _moved(steps, plasma, plasma, scores, blocks, 0.5 * duration)
            if trouble := _too_long(steps, plasma, there, 2.0):
                return Attempt(made, trouble)
            made = [
                step.fit(particles, duration, start, again=True)
                for step, particles, start in zip(steps, there, starts, strict=True)
            ]
            scores = [step.density.score(particles) for step, particles in zip(steps, there, strict=True)]
        collided, last = _moved(steps, plasma, there, scores, blocks, duration)
        if first.order == 1 and (trouble := _too_long(steps, plasma, collided, 1.0)):
            return Attempt(made, trouble)
        if (smallest := min(smallest, last)) < SHRINKING:
            return Attempt(made, f"velocities of a block must be scaled by {smallest:.3g} to keep its energy")
        found = [
            (after, step._report(before, score, after, blocks.sparse))
            for step, before, (score, _), after in zip(steps, plasma, scores, collided, strict=True)
        ]
        return Attempt(made, found=found)

    def _report(self, before: Particles, score: torch.Tensor, after: Particles, sparse: float) -> CollisionReport:
        """The report of a step whose V was made with these scores [n, d]. Collective."""
        mass, mean, error, wrong, wrong_error = before.total_weight, 0.0, 0.0, 0.0, 0.0
        if self.held_out:
            gained = (after.log_f - before.log_f).double()
            mean, error = over_certifying(gained, before, self.comm)
            work = ((after.v - before.v).double() * score.double()).sum(1)
            wrong, wrong_error = over_certifying(work - gained, before, self.comm)
        return CollisionReport(
            dissipation=math.nan,
            min_eigenvalue=math.nan,
            objective=math.nan,
            inner_iterations=0,
            substeps=1,
            collision_free_energy=mass * mean,
            collision_free_energy_error=mass * error,
            disagreement=mass * wrong,
            disagreement_error=mass * wrong_error,
            sparse_nodes=sparse,
        )


def _too_long(
    steps: Sequence[LandauCollision], before: Sequence[Particles], there: Sequence[Particles], times: float
) -> str:
    """The reason to reject the step if particles of some species would move too far, or an empty string. They move
    ``times`` as far as from ``before`` to ``there``. Collective.
    """
    for step, old, new in zip(steps, before, there, strict=True):
        v, moved, gained = old.v.double(), (new.v - old.v).double(), (new.log_f - old.log_f).double()
        squares = [(v**2).sum(1), (moved**2).sum(1), gained**2]
        terms = torch.cat([v, torch.stack(squares, dim=1)], dim=1)
        *mean, square, far, change = step.comm.sum(summed_finely(old.shares()[:, None] * terms).cpu().numpy()).sum(0)
        width = square - np.square(mean).sum()
        part = times * math.sqrt(far / width) if width != 0 else 0.0
        if not part <= FARTHEST:
            return f"particles move by {part:.2g} of the width of their velocities in a collision step"
        part = times * math.sqrt(change)
        if not part <= LARGEST:
            return f"log f changes by {part:.2g} in a collision step"
    return ""


@torch.no_grad()
def _moved(
    steps: Sequence[LandauCollision],
    plasma: Sequence[Particles],
    at: Sequence[Particles],
    scores: Sequence[Score],
    blocks: Blocks,
    duration: float,
) -> tuple[list[Particles], float]:
    """The particles of all species, moved by the V at the places ``at``, where they have these ``scores``; and the
    smallest factor with which velocities of a collision block were scaled to conserve its energy. Collective.
    """
    comm, dims = steps[0].comm, plasma[0].v.shape[1]
    meeting = Meeting.of(plasma, [step.settings.mass for step in steps], blocks)
    members = meeting.members(at, scores)
    changes = []
    for species, (step, own) in enumerate(zip(steps, members, strict=True)):
        change = np.zeros((len(own.v), dims + 1))
        for other, met in zip(steps, members, strict=True):
            factor = step.operator.factors[other.settings.number] * duration / own.mass
            if factor == 0:
                continue
            with in_order(step.density.together):
                velocity, growth = pair_sums(own, met, step.operator.exponent)
            part = factor * torch.cat([velocity, growth[:, None]], dim=1).cpu().numpy()
            if met is own:
                part *= meeting.among_likes(species)[:, None]
            change += part
        changes.append(change)
    return meeting.moved(changes, comm)
