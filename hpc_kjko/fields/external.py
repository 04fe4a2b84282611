"""The problem's own potential as the field."""

from __future__ import annotations

from hpc_kjko.fields.base import ExternalField, FieldSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import Problem
from hpc_kjko.species import Plasma, moved


class ExternalSolver(FieldSolver[ExternalField]):
    """The problem's own potential, whatever the particles do."""

    def __init__(self, problem: Problem, comm: Communicator):
        self.problem, self.comm = problem, comm

    def start(self, plasma: Plasma) -> ExternalField:
        return ExternalField(self.problem)

    def drift(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        return field, moved(plasma, [self.drifted(one, duration) for one in plasma])

    def kick(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        with self.comm.together():  # a potential of the user's may fail on one rank only
            return super().kick(field, plasma, duration)
