"""The field that acts on particles, as a value; and the interface of a field solver: drift, kick, change after
collisions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.fields.mesh import Grid, MassMatrix
from hpc_kjko.particles.state import Particles, drifted, passes_over
from hpc_kjko.problems import Problem
from hpc_kjko.push.gyration import Gyration
from hpc_kjko.species import Plasma, Species
from hpc_kjko.walls import Walls


@dataclass(frozen=True)
class MeshField:
    """A self-consistent field.

    Attributes:
        densities: n_a of each species [species, *cells].
        charge_density: Σ q_a n_a [*cells].
        potential: φ [*cells]; electric: E [*cells, dx].
        walls: of the box, or None. With walls the mesh is that of the torus, which contains the mirror images.
    """

    grid: Grid
    densities: np.ndarray
    charge_density: np.ndarray
    potential: np.ndarray
    electric: np.ndarray
    walls: Walls | None = field(default=None, kw_only=True)

    @property
    def energy(self) -> float:
        """Field energy ½ ∫ |E|² dx."""
        return 0.5 * float(np.sum(self.electric**2)) * self.node_volume

    @property
    def node_volume(self) -> float:
        """The volume inside the box that belongs to a node of the mesh."""
        return self.grid.cell_volume * (self.walls.part if self.walls else 1.0)

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """E at x [n, dx]: [n, dx]. This is the acceleration of a particle with q/m = 1."""
        return self.grid.gather(torch.from_numpy(self.electric).to(x.device), x)

    def kick(self, particles: Particles, duration: float) -> Particles:
        """v ← v + duration · E."""
        electric = torch.from_numpy(self.electric).to(particles.x.device)
        return replace(particles, v=self.grid.kick(electric, particles.x, particles.v, duration))


@dataclass(frozen=True)
class CoupledField(MeshField):
    """A field that changes in the kicks, with the mass matrix of the present positions of the particles."""

    mass_matrix: MassMatrix


@dataclass(frozen=True)
class ExternalField:
    """The given potential of a problem.

    Attributes:
        accelerations: −∇φ at the present positions of the particles of each species, [n, dx] each. Kicks before and
            after a collision use them, so the potential is evaluated only once.
    """

    problem: Problem
    accelerations: tuple[torch.Tensor, ...] = ()
    energy: float = 0.0

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """−∇φ at the particles: [n, dx], by automatic differentiation of the potential.

        Raises:
            UserError: it is not finite at a particle, or autograd cannot differentiate the potential.
        """
        acceleration = torch.empty_like(x)
        for rows in passes_over(x):
            position = x[rows].detach().requires_grad_()
            with torch.enable_grad():
                potential = self.problem.potential(position).sum()
            if potential.requires_grad:
                try:
                    (gradient,) = torch.autograd.grad(potential, position)
                except RuntimeError as failure:
                    raise UserError(f"problem.potential: autograd finds no gradient ({failure})") from failure
                torch.neg(gradient, out=acceleration[rows])
            else:
                acceleration[rows] = 0.0
            if math.isfinite(float(acceleration[rows].sum())):  # then all of them are finite
                continue
            lost = torch.isfinite(x[rows]).all(1) & ~torch.isfinite(acceleration[rows]).all(1)
            if lost.any():
                where = ", ".join(f"{coordinate:.6g}" for coordinate in x[rows][lost][0].tolist())
                raise UserError(
                    f"problem.potential has no finite gradient at the particle at x = ({where}): give a potential that "
                    "is smooth and finite wherever particles go"
                )
        return acceleration


#: The type of field of a solver.
F = TypeVar("F", MeshField, ExternalField)


class FieldSolver(ABC, Generic[F]):
    """Computes the field that acts on the particles.

    Attributes:
        magnetic_field: a uniform B [3] in which particles drift, or None.
    """

    magnetic_field: tuple[float, ...] | None = None

    @abstractmethod
    def start(self, plasma: Plasma) -> F:
        """The field of these particles at t = 0. Collective."""

    @abstractmethod
    def drift(self, field: F, plasma: Plasma, duration: float) -> tuple[F, Plasma]:
        """The field and the particles after the particles have drifted for ``duration``. Collective."""

    @abstractmethod
    def kick(self, field: F, plasma: Plasma, duration: float) -> tuple[F, Plasma]:
        """The field and the particles after a kick for ``duration`` at fixed x. Collective.

        Most fields depend on x alone and do not change: v ← v + duration · (q/m) a(x).
        """

    def free_motion(self, species: Species, duration: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean velocities during a drift, and the velocities after it, [n, dv] each. Both are v without a magnetic
        field.
        """
        v = species.particles.v
        if self.magnetic_field is None or duration == 0:
            return v, v
        rate = [species.charge_to_mass * component for component in self.magnetic_field]
        if not any(component**2 for component in rate):  # neutral
            return v, v
        return Gyration.of(rate, duration, v.shape[1]).velocities(v)

    def drifted(self, species: Species, duration: float) -> Particles:
        """The particles of a species after a drift."""
        velocity, after = self.free_motion(species, duration)
        particles = species.particles
        return particles.arrived(drifted(particles.x, velocity, duration, particles.periods), after)

    def after_collision(self, field: F, before: Plasma, after: Plasma) -> tuple[F, float]:
        """The field after velocities and log f have changed, and the change of its energy. Collective.

        Both change only with a control variate, whose weights depend on v and log f.
        """
        return field, 0.0

    def state(self, field: F) -> dict[str, np.ndarray]:
        """The part of a field that a checkpoint must store because positions alone do not determine it; the same on
        every rank.
        """
        return {}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> F:
        """The field of a run that continues from :meth:`state`. Collective."""
        return self.start(plasma)


def charge_density(densities: np.ndarray, plasma: Plasma) -> np.ndarray:
    """Σ q_a n_a of densities, or of fluxes [species, ...]: [...]."""
    return np.add.reduce([one.charge * density for one, density in zip(plasma, densities, strict=True)])


def require_finite(density: np.ndarray) -> None:
    """Check that a deposited density is finite.

    Raises:
        SolverFailure: it is not.
    """
    if not np.isfinite(density).all():
        raise SolverFailure(
            "the deposited density is no longer finite, because a position, a velocity or log f is not finite: reduce "
            "time.step, or look at the last checkpoint"
        )
