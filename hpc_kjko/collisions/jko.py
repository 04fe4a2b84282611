"""The deep kinetic JKO step: train the control field on the discrete JKO functional."""

from __future__ import annotations

import copy

import numpy as np

from hpc_kjko.collisions.base import StepStart
from hpc_kjko.collisions.controlled import ControlledCollision, Field
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control_variate import ControlVariate
from hpc_kjko.objective import JKOObjective
from hpc_kjko.particles import Particles
from hpc_kjko.solvers import solver_of


class JKOCollision(ControlledCollision):
    """u is the minimiser of the JKO functional J (paper's eq. 18; arXiv:2603.23901).

    With ``method.order = 2`` the functional sees h/2 and the particles move by h: the implicit midpoint rule, which may
    overshoot where the step is too long for it.
    """

    promises_decay = True

    def __init__(self, case: Case, comm: Communicator):
        super().__init__(case, comm)
        self.control = self.control_field(case)
        if case.particles.control_variate:
            self.variate = ControlVariate(self.temperature, comm)
        objective = JKOObjective(
            self.control,
            collision_strength=self.collision_strength,
            temperature=self.temperature,
            logdet=self.logdet,
            together=self.together,
        )
        self._solver = solver_of(case.method, objective, comm)

    def fit(self, particles: Particles, duration: float, start: StepStart, stiffer: int) -> int:
        data = self.training_data(self.control, particles, duration, start)
        return self._solver.minimise(data, duration / self.order, stiffer)

    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        control = copy.deepcopy(self.control).to(particles.v.dtype)
        return lambda rows: control.with_jacobian(*self.inputs(control, particles, duration, start, rows))

    def state(self) -> dict[str, np.ndarray]:
        return self._solver.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self._solver.load(arrays)
