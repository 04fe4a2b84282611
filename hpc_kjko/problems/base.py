"""The interface of a physical problem."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from hpc_kjko.problems.density import Density, Equilibrium
from hpc_kjko.schema import Dimension, Lengths, Section, Whole, as_tuple, one_or_each
from hpc_kjko.walls import Walls


class Problem(Section):
    """An initial density f0(x, v), a potential, and the domain.

    Positions are periodic with ``periods`` (one length per dimension) or unbounded (``periods`` is None). Densities
    follow the normalisation of the whole code. In a periodic box of volume V the mean density is 1 and ∫f = V. In
    unbounded space ∫f = 1.
    """

    #: The default of ``physics.field``.
    default_field: ClassVar[Literal["poisson", "external"]]

    kind: str
    """The problem: one of the built-in kinds, or `module:name` of a class of your own."""
    space_dims: int
    """Dimensions of space, 1 to 3."""
    velocity_dims: int
    """Dimensions of velocity, at least `space_dims` and at most 3.

    `gaussian` and `confined` need the same number as `space_dims`. This is the default of both and of `periodic`."""

    #: Mean density, temperature and particle mass of a species, in the units of the code. All are 1 if there is one
    #: species.
    _density: float = PrivateAttr(1.0)
    _temperature: float = PrivateAttr(1.0)
    _particle_mass: float = PrivateAttr(1.0)

    def of_species(self, density: float, temperature: float, particle_mass: float) -> Problem:
        """The same start for a species of this mean density. Its windows fit its thermal speed.

        ``log_density`` stays that of mean density 1: :func:`~hpc_kjko.particles.state.draw` adds the logarithm of
        :attr:`mean_density`.
        """
        changed = self.model_copy()
        changed._density, changed._temperature, changed._particle_mass = density, temperature, particle_mass
        return changed

    @property
    def mean_density(self) -> float:
        """The mean density of the species."""
        return self._density

    @property
    @abstractmethod
    def periods(self) -> tuple[float, ...] | None:
        """Box lengths [dx], or None in unbounded space."""

    @property
    def walls(self) -> Walls | None:
        """The walls of the box, or None."""
        return None

    @property
    def torus(self) -> tuple[float, ...] | None:
        """The periods of x [dx], or None. Between walls these are the periods of the box together with its mirror
        image.
        """
        if self.periods is None or self.walls is None:
            return self.periods
        return tuple(2 * length if wall else length for length, wall in zip(self.periods, self.walls.axes, strict=True))

    @property
    def is_homogeneous(self) -> bool:
        """Whether f0 does not depend on x, and no potential would make f depend on x."""
        return False

    @property
    def mass(self) -> float:
        """Total mass ∫f: the box volume times the mean density, or 1 in unbounded space."""
        return self._density * float(np.prod(self.periods)) if self.periods else 1.0

    @abstractmethod
    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Map uniform points of the unit cube to phase space, so that their image has density f0 / mass.

        Args:
            points: [n, dx + dv], strictly inside (0, 1).
            temperature: bath temperature T. Velocity directions without a structure of their own start at this
                temperature.

        Returns:
            x [n, dx] and v [n, dv], float64.
        """

    @abstractmethod
    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        """log f0 at x [n, dx], v [n, dv]: [n]. Differentiable in v."""

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """External potential φ at x [n, dx]: [n]. It is zero (free streaming) unless the problem has one."""
        return torch.zeros_like(x[:, 0])

    def equilibrium(self, temperature: float) -> Density | None:
        """The stationary density in the problem's own external potential, or None if there is none.

        It may take a second or two to find, so store the result.
        """
        return None

    def exact(self, time: float, collision_strength: float, temperature: float) -> Density | None:
        """The exact solution at a time, in the problem's own external potential, or None if it is not known."""
        return None

    @property
    @abstractmethod
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        """The part of phase space with particles, for histograms and figures: (low, high) per x dimension and per v
        dimension.
        """


#: The kind of the ends of each axis of a box.
Boundaries = Annotated[
    tuple[Literal["periodic", "insulating", "conducting"], ...], BeforeValidator(as_tuple), Field(min_length=1)
]


class PeriodicBox(Problem):
    """A problem in a periodic box."""

    space_dims: Dimension = 1
    velocity_dims: Dimension = 1
    length: Lengths
    """Box length, in Debye lengths: one number, or one per space dimension."""
    boundary: Boundaries = ("periodic",)
    """The ends of the box: `periodic`, or walls that reflect particles, `insulating` or `conducting`. One value for
    all axes, or one per space dimension.

    Walls need `physics.field = "poisson"` or `"external"`, a bath and a built-in start. There is no magnetic field
    between walls."""

    @model_validator(mode="after")
    def _dimensions_fit(self) -> PeriodicBox:
        if self.velocity_dims < self.space_dims:
            raise ValueError(
                f"problem.velocity_dims = {self.velocity_dims} is less than problem.space_dims = {self.space_dims}: "
                "every space direction needs its velocity"
            )
        if len(self.length) not in (1, self.space_dims):
            raise ValueError(f"problem.length has {len(self.length)} entries: {one_or_each(self.space_dims, 'space')}")
        if len(self.boundary) not in (1, self.space_dims):
            raise ValueError(
                f"problem.boundary has {len(self.boundary)} entries: "
                + one_or_each(self.space_dims, "space").replace("number", "text")
            )
        if {"insulating", "conducting"} <= set(self.boundary):
            raise ValueError('problem.boundary: walls are all "insulating" or all "conducting", beside "periodic" axes')
        return self

    @property
    def walls(self) -> Walls | None:
        kinds = self.boundary * self.space_dims if len(self.boundary) == 1 else self.boundary
        axes = tuple(kind != "periodic" for kind in kinds)
        return Walls(axes, "conducting" in kinds) if any(axes) else None

    @property
    def periods(self) -> tuple[float, ...]:
        return self.length * self.space_dims if len(self.length) == 1 else self.length

    def maxwellian(self, temperature: float) -> Equilibrium:
        """The homogeneous Maxwellian with the mass of the problem. It is stationary without a force, and in the field
        of a neutral plasma.
        """
        flat = (np.ones(2),) * self.space_dims
        box, log_volume = tuple((0.0, length) for length in self.periods), math.log(self.mass / self._density)
        return Equilibrium(self.potential, temperature, self.velocity_dims, self.mass, log_volume, box, flat)


class PeriodicProblem(PeriodicBox):
    """A periodic box in which f0(x, v) = ρ0(x) · g(v): positions and velocities are drawn independently."""

    @abstractmethod
    def spatial_density(self, x: np.ndarray) -> np.ndarray:
        """ρ0 at x [n, dx]: [n], of mean 1 over the box."""

    @abstractmethod
    def positions(self, points: np.ndarray) -> np.ndarray:
        """Map uniform points [n, dx], inside (0, 1), to positions x [n, dx] of density ρ0 / V."""

    @abstractmethod
    def velocities(self, points: np.ndarray, temperature: float) -> np.ndarray:
        """Map uniform points [n, dv], inside (0, 1), to velocities v [n, dv] of density g at bath temperature T."""

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        return self.positions(points[:, : self.space_dims]), self.velocities(points[:, self.space_dims :], temperature)


#: Periods of a wave along each axis of the box. Axes that are not given have none.
Mode = Annotated[tuple[Whole, ...], BeforeValidator(as_tuple)]


class PeriodicWave(PeriodicBox):
    """A problem with one wave in a box, cos k·x, with k_j = 2π mode_j / length_j, or π mode_j / length_j between
    walls.
    """

    mode: Mode = (1,)
    """Periods of the wave in the box: one number for a wave along x_1, or one per space dimension.

    The first number is at least 1. Along an axis the wavenumber is 2π · `mode` / `length`, and between walls half of
    that. Each number is less than half the number of cells along its axis."""

    @model_validator(mode="after")
    def _mode_fits(self) -> PeriodicWave:
        if not self.mode or self.mode[0] < 1:
            raise ValueError(f"problem.mode = {list(self.mode)}: its first number must be at least 1")
        if len(self.mode) > self.space_dims:
            raise ValueError(
                f"problem.mode has {len(self.mode)} numbers for problem.space_dims = {self.space_dims}: "
                f"{one_or_each(self.space_dims, 'space')}"
            )
        return self

    @property
    def wave_vector(self) -> np.ndarray:
        """k of the wave [dx]."""
        mode = np.zeros(self.space_dims)
        mode[: len(self.mode)] = self.mode
        return 2 * math.pi * mode / np.asarray(self.torus)

    @property
    def wavenumber(self) -> float:
        """|k|."""
        return float(np.linalg.norm(self.wave_vector))
