"""The problem's own potential as the field."""

from __future__ import annotations

from dataclasses import replace

from hpc_kjko.fields.base import ExternalField, FieldSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import Problem
from hpc_kjko.species import Plasma, moved


class ExternalSolver(FieldSolver[ExternalField]):
    """The problem's own potential, which does not depend on the particles."""

    def __init__(self, problem: Problem, comm: Communicator):
        self.problem, self.comm = problem, comm

    def start(self, plasma: Plasma) -> ExternalField:
        field = ExternalField(self.problem)
        with self.comm.together():  # the user's potential may fail on one rank only
            return replace(field, accelerations=tuple(field.acceleration(one.particles.x) for one in plasma))

    def drift(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        arrived = moved(plasma, [self.drifted(one, duration) for one in plasma])
        return self.start(arrived), arrived

    def kick(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        return field, moved(
            plasma,
            [
                one.particles.kick(duration * one.charge_to_mass, acceleration)
                for one, acceleration in zip(plasma, field.accelerations, strict=True)
            ],
        )
