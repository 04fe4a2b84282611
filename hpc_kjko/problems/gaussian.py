"""A Gaussian in a harmonic potential (the paper's Example 1), whose exact solution stays Gaussian."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from hpc_kjko.problems.base import Problem
from hpc_kjko.problems.density import GaussianDensity
from hpc_kjko.problems.quantile import normal
from hpc_kjko.reference.gaussian import gaussian_equilibrium, gaussian_moments
from hpc_kjko.schema import Dimension, Matrix, Vector


class Gaussian(Problem):
    """`φ = ½ xᵀΛx` and `f0 = N(mean, covariance)` over `z = (x, v)`, unbounded, dv = dx.

    The exact mean and covariance are those of :mod:`hpc_kjko.reference.gaussian`.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "external"

    kind: Literal["gaussian"]
    space_dims: Dimension = 1
    velocity_dims: Dimension = Field(default_factory=lambda data: data.get("space_dims", 1))
    stiffness: Matrix = ((1.0,),)
    """Λ of the potential, symmetric positive definite; one number λ means λ I."""
    mean: Vector = (1.5, -0.5)
    """Mean of (x, v) at the start."""
    covariance: Matrix = ((0.5, 0.1), (0.1, 0.3))
    """Covariance of (x, v) at the start."""

    @model_validator(mode="before")
    @classmethod
    def _scalar_stiffness(cls, data: Any) -> Any:
        stiffness, dims = data.get("stiffness"), data.get("space_dims", 1)
        if type(stiffness) in (int, float) and type(dims) is int and 1 <= dims <= 3:
            data = {**data, "stiffness": [[stiffness if i == j else 0.0 for j in range(dims)] for i in range(dims)]}
        return data

    @model_validator(mode="after")
    def _shapes_fit(self) -> Gaussian:
        d = self.space_dims
        if self.velocity_dims != d:
            raise ValueError(f"problem.velocity_dims = {self.velocity_dims} must equal problem.space_dims = {d}")
        if len(self.mean) != 2 * d:
            raise ValueError(f"problem.mean must have 2·space_dims = {2 * d} numbers, of (x, v)")
        for name, size in (("stiffness", d), ("covariance", 2 * d)):
            rows = getattr(self, name)
            if len(rows) != size or any(len(row) != size for row in rows):
                raise ValueError(f"problem.{name} must be a {size} × {size} matrix for space_dims = {d}")
            matrix = np.array(rows)
            if not np.array_equal(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
                raise ValueError(f"problem.{name} must be symmetric and positive definite")
        return self

    @property
    def periods(self) -> None:
        return None

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        z = np.array(self.mean) + normal(points) @ np.linalg.cholesky(np.array(self.covariance)).T
        return z[:, : self.space_dims], z[:, self.space_dims :]

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        return GaussianDensity(np.array(self.mean), np.array(self.covariance)).log_density(x, v)

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        stiffness = torch.tensor(self.stiffness, dtype=x.dtype, device=x.device)
        return 0.5 * ((x @ stiffness) * x).sum(1)

    def equilibrium(self, temperature: float) -> GaussianDensity:
        return GaussianDensity(*gaussian_equilibrium(np.array(self.stiffness), temperature))

    def exact(self, time: float, collision_strength: float, temperature: float) -> GaussianDensity:
        means, covariances = gaussian_moments(
            np.array(self.mean),
            np.array(self.covariance),
            np.array(self.stiffness),
            collision_strength,
            temperature,
            np.array([time]),
        )
        return GaussianDensity(means[0], covariances[0])

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        # The mean oscillates with the amplitude |mean|. The width relaxes from its initial value to that of the
        # equilibrium.
        widths = np.sqrt(np.diag(self.covariance))
        reach = float(np.abs(self.mean).max() + 4 * max(widths.max(), 1.0))
        return ((-reach, reach),) * self.space_dims, ((-reach, reach),) * self.velocity_dims
