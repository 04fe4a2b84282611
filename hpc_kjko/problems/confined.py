"""Particles in a confining potential with bumps (the paper's Examples 2 and 4)."""

from __future__ import annotations

import functools
import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from hpc_kjko.problems.custom import CustomProblem
from hpc_kjko.problems.density import GaussianDensity
from hpc_kjko.problems.quantile import normal
from hpc_kjko.schema import Dimension, Vector, Widths, one_or_each


class Confined(CustomProblem):
    """`φ = Σ_j [½ x_j² + A cos(q x_j)]` ("bumpy"), or `½|x|²` ("harmonic"), and a Gaussian f0; unbounded, dv = dx.

    The coordinates are independent at the start. With your own f0, their means and standard deviations only determine
    which part of phase space histograms show.
    """

    named_potentials: ClassVar[tuple[str, ...]] = ("bumpy", "harmonic")
    named_densities: ClassVar[tuple[str, ...]] = ("gaussian",)

    kind: Literal["confined"]
    space_dims: Dimension = 1
    velocity_dims: Dimension = Field(default_factory=lambda data: data.get("space_dims", 1))
    potential_name: str = Field("bumpy", alias="potential")
    """The potential: `bumpy`, `harmonic`, or `module:name`.

    `bumpy`: Σ_j [½x_j² + A cos q x_j].

    `harmonic`: ½|x|².

    `module:name`: a function of your own."""
    initial_density: str = "gaussian"
    """f0: `gaussian`, or `module:name`."""
    bump_amplitude: float = 0.3
    """A of the bumps."""
    bump_wavenumber: float = math.pi
    """q of the bumps."""
    mean_x: Vector = (1.0,)
    """Mean of x at the start: one number, or one per dimension."""
    mean_v: Vector = (0.0,)
    """Mean of v at the start: one number, or one per dimension."""
    std_x: Widths = (0.6,)
    """Standard deviation of x at the start: one number, or one per dimension."""
    std_v: Widths = (0.7,)
    """Standard deviation of v at the start: one number, or one per dimension."""

    @model_validator(mode="after")
    def _consistent(self) -> Confined:
        d = self.space_dims
        if self.velocity_dims != d:
            raise ValueError(f"problem.velocity_dims = {self.velocity_dims} must equal problem.space_dims = {d}")
        for name in ("mean_x", "mean_v", "std_x", "std_v"):
            if len(getattr(self, name)) not in (1, d):
                raise ValueError(f"problem.{name} has {len(getattr(self, name))} entries: {one_or_each(d, 'space')}")
        return self

    @property
    def periods(self) -> None:
        return None

    def own_potential(self, x: torch.Tensor) -> torch.Tensor:
        harmonic = 0.5 * _over_axes(x**2)
        if self.potential_name == "harmonic":
            return harmonic
        return harmonic + self.bump_amplitude * _over_axes(torch.cos(self.bump_wavenumber * x))

    def own_sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        mean, std = self._moments()
        z = mean + std * normal(points)
        return z[:, : self.space_dims], z[:, self.space_dims :]

    def own_log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        mean, std = self._moments()
        return GaussianDensity(mean, np.diag(std**2)).log_density(x, v)

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        # The mean oscillates between x and v. The widths relax from their initial values to about 1, those of the
        # equilibrium.
        mean, std = self._moments()
        reach = float(np.abs(mean).max() + 4 * max(std.max(), 1.0))
        return ((-reach, reach),) * self.space_dims, ((-reach, reach),) * self.velocity_dims

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of z = (x, v): [2d] each."""
        mean = [np.full(self.space_dims, part) for part in (self.mean_x, self.mean_v)]
        std = [np.full(self.space_dims, part) for part in (self.std_x, self.std_v)]
        return np.concatenate(mean), np.concatenate(std)


def _over_axes(values: torch.Tensor) -> torch.Tensor:
    """Σ_j values_j of [n, d]: [n]. Added column by column, because torch is five times slower along such short rows."""
    return functools.reduce(torch.add, values.unbind(1))
