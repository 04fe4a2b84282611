"""What steps of pairs with a fitted density have in common: when a step is refused, and that it is then split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, PairCollision, StepStart
from hpc_kjko.collisions.controlled import MAX_SPLITS, NO_CHANCE
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.errors import SolverFailure
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles


@dataclass(frozen=True)
class Attempt:
    """A step of all species, as it came out.

    Attributes:
        iterations: that each species took.
        trouble: what forbids to take the step, in words; nothing if it may be taken.
        found: the particles of each species and its report, unless there is trouble.
    """

    iterations: Sequence[int]
    trouble: str = ""
    found: Sequence[tuple[Particles, CollisionReport]] = ()


class SplitPairCollision(PairCollision):
    """A step of the pairs that is split in two, for all species, where it may not be taken as a whole.

    It may not where ∫f log f of held-out particles, summed over species, rises by more than chance has it: collisions
    of particles with each other do not do that.
    """

    fits_log_f = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.settings, self.comm, self.operator = settings, comm, settings.operator
        #: Fits the density; its own control field is not made.
        self.density = JKOCollision(settings, comm)
        self.held_out, self.order = self.density.held_out, settings.method.order

    @classmethod
    @abstractmethod
    def attempt(
        cls, steps: Sequence[Self], plasma: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> Attempt:
        """A step of all species. Collective.

        Args:
            plasma: the pushed particles of each species, with the log f that relaxation leaves.

        Raises:
            SolverFailure: on every rank.
        """

    @classmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        for step, particles in zip(steps, pushed, strict=True):
            step.log_f_moved = torch.zeros_like(particles.log_f)
        return cls._in_pieces(steps, pushed, duration, starts, splits=0)

    @classmethod
    def _in_pieces(
        cls,
        steps: Sequence[Self],
        plasma: Sequence[Particles],
        duration: float,
        starts: Sequence[StepStart],
        splits: int,
    ) -> list[tuple[Particles, CollisionReport]]:
        fits, relaxed, columns = [], [], []
        for step, particles, start in zip(steps, plasma, starts, strict=True):
            fits.append(step.density.fit_density(particles, duration, start))
            before, of_log_f = step.density.relaxed(particles, duration, agreed=True)
            relaxed.append(before)
            columns.append(dict[str, Any](of_log_f))
        tried = cls.attempt(steps, relaxed, duration, starts)
        made = [one + other for one, other in zip(fits, tried.iterations, strict=True)]
        trouble = tried.trouble or rising([report for _, report in tried.found])
        if not trouble:
            for step, before, particles in zip(steps, relaxed, plasma, strict=True):
                step.log_f_moved = step.log_f_moved + (before.log_f - particles.log_f)
            return [
                (after, replace(report, inner_iterations=number, **of_log_f))
                for (after, report), number, of_log_f in zip(tried.found, made, columns, strict=True)
            ]
        if splits == MAX_SPLITS:
            raise SolverFailure(
                f"{trouble} even in {2**MAX_SPLITS} pieces: reduce time.step, or raise particles.count or "
                "physics.landau.block"
            )
        half = duration / 2
        one = cls._in_pieces(steps, plasma, half, starts, splits + 1)
        later = [replace(start, time=start.time + half) for start in starts]
        two = cls._in_pieces(steps, [particles for particles, _ in one], half, later, splits + 1)
        return [
            (after, CollisionReport.of_halves(before_it, report, iterations=number))
            for (_, before_it), (after, report), number in zip(one, two, made, strict=True)
        ]

    def state(self) -> dict[str, np.ndarray]:
        return self.density.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.density.load(arrays)


def rising(reports: Sequence[CollisionReport]) -> str:
    """That ∫f log f of held-out particles of all species rises by more than chance has it, in words; nothing if not."""
    if not reports:
        return ""
    of_all = CollisionReport.together(reports)
    change, error = of_all.collision_free_energy, of_all.collision_free_energy_error
    if change <= NO_CHANCE * error:
        return ""
    return f"the mean log f of held-out particles rises (by {change:.3g} ± {error:.2g} in a collision step)"
