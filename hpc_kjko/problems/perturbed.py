"""What the starts with a cosine in space share, whatever their velocities are."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from hpc_kjko.problems.base import PeriodicProblem, PeriodicWave
from hpc_kjko.problems.density import Equilibrium

LOG_2PI = math.log(2 * math.pi)

Amplitude = Annotated[float, Field(gt=-1, lt=1)]


class PerturbedWave(PeriodicWave, PeriodicProblem):
    """f0 = (1 + α cos k·x) · g(v).

    g may know the direction of the wave: v_∥ is the velocity along k, whose first component is positive. Oblique waves
    are those along x_1, turned.
    """

    amplitude: Amplitude
    """α of the density, between −1 and 1.

    With 0 the start is homogeneous."""

    @abstractmethod
    def variances(self, temperature: float) -> np.ndarray:
        """Variance of the velocity [dv]: along the wave and across it, or along x_1, … where g knows no wave."""

    @abstractmethod
    def coldest(self, temperature: float) -> float:
        """The smallest thermal speed: of a beam, of a direction, or of the core of a g with tails."""

    @abstractmethod
    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        """Mean and variance of v_2, … with a wave along x_1, where each is normal and independent of all else.

        None where they are not.
        """

    def first_direction(self) -> PerturbedWave:
        """The start of x_1 and v_1 alone, all other velocities integrated out, with a wave along x_1 in 1DvV."""
        return self.model_copy(update={"velocity_dims": 1})

    @property
    def is_homogeneous(self) -> bool:
        return self.amplitude == 0

    def spatial_density(self, x: np.ndarray) -> np.ndarray:
        return 1 + self.amplitude * np.cos(x @ self.wave_vector)

    def log_profile(self, x: torch.Tensor) -> torch.Tensor:
        """The logarithm of the density in space at x [n, dx]: [n]."""
        phase = x @ torch.from_numpy(self.wave_vector).to(x)
        return torch.log1p(self.amplitude * torch.cos(phase))

    def positions(self, points: np.ndarray) -> np.ndarray:
        x, (first, *others) = points * np.asarray(self.periods), self.wave_vector
        along = _perturbed_position(points[:, 0], self.periods[0], first, self.amplitude)
        x[:, 0] = np.mod(along - x[:, 1:] @ np.array(others) / first, self.periods[0])
        x[:, 0][x[:, 0] >= self.periods[0]] = 0.0  # the remainder of -1e-20 rounds up to the length itself
        return x

    def equilibrium(self, temperature: float) -> Equilibrium | None:
        return self.maxwellian(temperature)

    def from_wave(self, v: np.ndarray) -> np.ndarray:
        """Velocities (v_∥, across) [n, dv] as (v_1, v_2, …)."""
        turn = self._turn()
        return v if turn is None else v @ turn

    def to_wave(self, v: torch.Tensor) -> torch.Tensor:
        """Velocities (v_1, v_2, …) [n, dv] as (v_∥, across)."""
        turn = self._turn()
        return v if turn is None else v @ torch.from_numpy(turn).to(v)

    def _turn(self) -> np.ndarray | None:
        """The reflection [dv, dv] between v_1 and v_∥, if they differ."""
        difference = -np.append(self.wave_vector, np.zeros(self.velocity_dims - self.space_dims)) / self.wavenumber
        difference[0] += 1
        square = difference @ difference
        return np.eye(self.velocity_dims) - 2 * np.outer(difference, difference) / square if square > 0 else None


def log_maxwellian(v: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logarithm of the Maxwellian at v [n, d], d ≥ 0: [n]. Its integral over v is 1."""
    exponent = -0.5 * (v**2).sum(1) / temperature
    return exponent - 0.5 * v.shape[1] * (LOG_2PI + math.log(temperature))


def _perturbed_position(uniform: np.ndarray, length: float, wavenumber: float, amplitude: float) -> np.ndarray:
    """Invert the cumulative density (x + (α/k) sin kx) / L by Newton's method, kept inside a shrinking bracket."""
    target = uniform * length
    slack = abs(amplitude) / wavenumber
    low, high = target - slack, target + slack
    x = target.copy()
    for _ in range(60):
        excess = x + amplitude / wavenumber * np.sin(wavenumber * x) - target
        low, high = np.where(excess > 0, low, x), np.where(excess > 0, x, high)
        newton = x - excess / (1 + amplitude * np.cos(wavenumber * x))
        newton = np.where((newton < low) | (newton > high), 0.5 * (low + high), newton)
        change, x = np.abs(newton - x).max(initial=0.0), newton
        if change < 1e-15 * length:
            break
    return np.clip(x, 0.0, np.nextafter(length, 0.0))
