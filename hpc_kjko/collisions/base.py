"""The interface of a collision step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.particles import Particles


@dataclass(frozen=True)
class CollisionReport:
    """What a collision step did, over all ranks; each is a column of the time series.

    Attributes:
        dissipation: (1/κ) ∫∫ |u|² f, the rate at which the free energy falls.
        min_eigenvalue: smallest eigenvalue of I + h sym ∇v u over all particles (of the smallest substep).
        objective: the JKO functional of the step that was taken, with the determinant that ``logdet`` asks for.
        inner_iterations: iterations of the inner solver.
        substeps: pieces the step was split into because it was not invertible in one (1: it was; 0: no step).
    """

    dissipation: float
    min_eigenvalue: float
    objective: float
    inner_iterations: int
    substeps: int


class Collision(ABC):
    """Moves velocities and log-densities through one collision step."""

    @abstractmethod
    def __init__(self, case: Case, comm: Communicator):
        """The method as the case sets it up. Collective."""

    @abstractmethod
    def step(self, particles: Particles, duration: float) -> tuple[Particles, CollisionReport]:
        """The particles after colliding for ``duration``. Collective.

        Raises:
            SolverFailure: on every rank, with the setting to change. The particles are as before; :meth:`state` need
                not be: the caller goes back to the one it took before the step.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything the next step depends on, as named arrays, the same on every rank."""

    @abstractmethod
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state made by :meth:`state`."""
