"""The common parts of pair collision steps with a fitted density: when a step is rejected, and how it is then split."""

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
    """The result of a step of all species.

    Attributes:
        iterations: of each species.
        trouble: the reason to reject the step, or an empty string.
        found: the particles of each species and its report, or None if the step is rejected.
    """

    iterations: Sequence[int]
    trouble: str = ""
    found: Sequence[tuple[Particles, CollisionReport]] = ()


class SplitPairCollision(PairCollision):
    """A pair collision step that is split in two, for all species, if it is rejected.

    It is rejected if ∫f log f of held-out particles, summed over species, rises by more than chance explains.
    Collisions of particles with each other cannot raise it. Without enough particles in every species that collides
    there is no certificate, and this test is omitted. Networks keep what they learnt in a rejected step.
    """

    fits_log_f = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.settings, self.comm, self.operator = settings, comm, settings.operator
        #: Fits the density. Its own control field is not computed.
        self.density = JKOCollision(settings, comm)
        self.held_out, self.order = self.density.held_out, settings.method.order

    @classmethod
    def promises_decay(cls, steps: Sequence[Self]) -> bool:
        """Whether a step of these species that raises ∫f log f of held-out particles is rejected, or only reported."""
        return True

    @property
    @abstractmethod
    def advice(self) -> str:
        """Advice for a step that is rejected at any length, for the message."""

    @classmethod
    @abstractmethod
    def attempt(
        cls, steps: Sequence[Self], plasma: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> Attempt:
        """Try a step of all species. Collective.

        Args:
            plasma: the pushed particles of each species, with the log f after relaxation.

        Raises:
            SolverFailure: on every rank.
        """

    @classmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        for step, particles in zip(steps, pushed, strict=True):
            step.log_f_moved = torch.zeros_like(particles.log_f)
        return cls._in_pieces(steps, pushed, duration, starts)

    @classmethod
    def _in_pieces(
        cls, steps: Sequence[Self], plasma: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        first, fits, relaxed, columns = steps[0], [], [], []
        for step, particles, start in zip(steps, plasma, starts, strict=True):
            fits.append(step.fit(particles, duration, start))
            before, of_log_f = step.density.relaxed(particles, duration, agreed=True)
            relaxed.append(before)
            columns.append(dict[str, Any](of_log_f))
        tried = cls.attempt(steps, relaxed, duration, starts)
        made = [one + other for one, other in zip(fits, tried.iterations, strict=True)]
        found = _of_all_or_none(relaxed[: len(tried.found)], tried.found, first.comm)
        trouble = tried.trouble or (_rising([report for _, report in found]) if cls.promises_decay(steps) else "")
        if not trouble:
            for step, before, particles in zip(steps, relaxed, plasma, strict=True):
                step.log_f_moved = step.log_f_moved + (before.log_f - particles.log_f)
            return [
                (after, replace(report, inner_iterations=number, **of_log_f))
                for (after, report), number, of_log_f in zip(found, made, columns, strict=True)
            ]
        if starts[0].splits == MAX_SPLITS:
            raise SolverFailure(f"{trouble} even in {2**MAX_SPLITS} pieces: {first.advice}")
        halves = [start.halves(duration) for start in starts]
        one = cls._in_pieces(steps, plasma, duration / 2, [half for half, _ in halves])
        two = cls._in_pieces(steps, [particles for particles, _ in one], duration / 2, [half for _, half in halves])
        return [
            (after, CollisionReport.of_halves(before_it, report, iterations=number))
            for (_, before_it), (after, report), number in zip(one, two, made, strict=True)
        ]

    def fit(self, particles: Particles, duration: float, start: StepStart, again: bool = False) -> int:
        """Fit ψ̄ to the log f of the particles, with the smoothness for the whole step; returns the number of
        iterations. Collective.

        Args:
            again: whether this is a further fit in the same piece of the step. It uses the batches of the first fit.
        """
        return self.density.fit_density(particles, duration * 2**start.splits, start, again=again)

    def state(self) -> dict[str, np.ndarray]:
        return self.density.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.density.load(arrays)


def _of_all_or_none(
    before: Sequence[Particles], found: Sequence[tuple[Particles, CollisionReport]], comm: Communicator
) -> list[tuple[Particles, CollisionReport]]:
    """The certificates of a step if all species that it moved have one, otherwise none. One certificate alone proves
    nothing, because another species may gain what this one loses. Collective.
    """
    for old, (new, report) in zip(before, found, strict=True):
        if comm.any(not torch.equal(old.log_f, new.log_f)) and not report.collision_free_energy_error > 0:
            return [
                (after, replace(of_it, collision_free_energy=0.0, collision_free_energy_error=0.0))
                for after, of_it in found
            ]
    return list(found)


def _rising(reports: Sequence[CollisionReport]) -> str:
    """The reason to reject the step if ∫f log f of held-out particles of all species rises by more than chance
    explains, or an empty string.
    """
    if not reports:
        return ""
    of_all = CollisionReport.together(reports)
    change, error = of_all.collision_free_energy, of_all.collision_free_energy_error
    if change <= NO_CHANCE * error:
        return ""
    return f"the mean log f of held-out particles rises (by {change:.3g} ± {error:.2g} in a collision step)"
