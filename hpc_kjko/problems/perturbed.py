"""The common part of the starts with a cosine in space, for any velocity distribution."""

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

    g may depend on the direction of the wave: v_∥ is the velocity along k, and the first component of k is positive. An
    oblique wave is a wave along x_1, turned.
    """

    amplitude: Amplitude
    """α of the density, between −1 and 1.

    With 0 the start is homogeneous."""

    @abstractmethod
    def variances(self, temperature: float) -> np.ndarray:
        """Variances of the velocity components [dv]: along the wave and across it, or along x_1, x_2, … if g does not
        depend on the direction of the wave.
        """

    @abstractmethod
    def coldest(self, temperature: float) -> float:
        """The smallest thermal speed: of a beam, of a direction, or of the core of a g with tails."""

    @abstractmethod
    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        """Mean and variance of v_2, … for a wave along x_1, if each is normal and independent of all other coordinates.

        None if they are not.
        """

    def first_direction(self) -> PerturbedWave:
        """The start of x_1 and v_1 alone, integrated over all other velocities, for a wave along x_1 with one space
        dimension.
        """
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
        if any(others):
            along = np.mod(along - x[:, 1:] @ np.array(others) / first, self.periods[0])
            along[along >= self.periods[0]] = 0.0  # the remainder of -1e-20 rounds up to the length itself
        x[:, 0] = along
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
        first, *others = self.wave_vector
        if not any(others):
            return None
        across = self.velocity_dims - self.space_dims
        difference = np.array([self.wavenumber - first, *(-k for k in others), *[0.0] * across])
        return np.eye(self.velocity_dims) - 2 * np.outer(difference, difference) / (difference @ difference)


def log_maxwellian(v: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logarithm of the Maxwellian at v [n, d], d ≥ 0: [n]. Its integral over v is 1."""
    exponent = -0.5 * (v**2).sum(1) / temperature
    return exponent - 0.5 * v.shape[1] * (LOG_2PI + math.log(temperature))


def _perturbed_position(uniform: np.ndarray, length: float, wavenumber: float, amplitude: float) -> np.ndarray:
    """Invert the cumulative density (x + (α/k) sin kx) / L: θ + α sin θ = m by Newton's method, with θ = kx, m = kuL.

    θ and m are in the same half period, where the left side is convex or concave. So from the second step on Newton's
    method approaches the root from one side, and converges. After a step an error e becomes at most |α| e² / 2 (1 −
    |α|).
    """
    mean = torch.from_numpy(wavenumber * length * uniform)  # torch has vectorised sine and cosine, and numpy has not
    half_period = math.pi * torch.floor(mean / math.pi)
    low = torch.maximum(half_period, mean - abs(amplitude))
    high = torch.minimum(half_period + math.pi, mean + abs(amplitude))
    phase = mean
    for _ in range(60):
        excess = torch.add(phase, torch.sin(phase), alpha=amplitude).sub_(mean)
        newton = torch.sub(phase, excess.div_(torch.cos(phase).mul_(amplitude).add_(1.0)))
        newton = torch.minimum(torch.maximum(newton, low), high)
        change, phase = np.abs((newton - phase).numpy()).max(initial=0.0), newton
        if abs(amplitude) * change**2 / (2 * (1 - abs(amplitude))) < 1e-16:
            break
    return np.clip(phase.numpy() / wavenumber, 0.0, np.nextafter(length, 0.0))
