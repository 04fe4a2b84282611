"""The start that the periodic problems share: a cosine in space, two beams in velocity."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from scipy.special import ndtri

from hpc_kjko.problems.base import PeriodicProblem
from hpc_kjko.problems.density import Equilibrium
from hpc_kjko.schema import Positive, Whole

_LOG_2PI = math.log(2 * math.pi)
_SMALLEST = 2.0**-64

Amplitude = Annotated[float, Field(gt=-1, lt=1)]


def _as_mode(value: Any) -> Any:
    if isinstance(value, int | float):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


#: Periods of a wave along each axis of the box; axes that are not given have none.
Mode = Annotated[
    tuple[Whole, ...],
    BeforeValidator(_as_mode),
]


class PerturbedBeams(PeriodicProblem):
    """f0 = (1 + α cos k·x) · ½[N(v_b, σ²) + N(−v_b, σ²)](v_∥) · Maxwellian(T) in the other velocity directions.

    v_∥ is the velocity along the wave vector k, whose first component is positive: oblique waves are those along x_1,
    turned.
    """

    thermal_speed: Positive = 1.0
    amplitude: Amplitude
    mode: Mode = (1,)

    @model_validator(mode="after")
    def _mode_fits(self) -> PerturbedBeams:
        if not self.mode or self.mode[0] < 1:
            raise ValueError(f"problem.mode = {list(self.mode)}: its first number must be at least 1")
        if len(self.mode) > self.space_dims:
            raise ValueError(
                f"problem.mode has {len(self.mode)} numbers for problem.space_dims = {self.space_dims}: "
                "give one for each axis, or one for the wave along x_1"
            )
        return self

    @property
    def beam_speed(self) -> float:
        """Drift ±v_b of the two halves of the plasma."""
        return 0.0

    @property
    def is_homogeneous(self) -> bool:
        return self.amplitude == 0

    @property
    def wave_vector(self) -> np.ndarray:
        """k of the perturbation [dx]."""
        mode = np.zeros(self.space_dims)
        mode[: len(self.mode)] = self.mode
        return 2 * math.pi * mode / np.asarray(self.periods)

    @property
    def wavenumber(self) -> float:
        """|k|."""
        return float(np.linalg.norm(self.wave_vector))

    def _turn(self) -> np.ndarray | None:
        """The reflection [dv, dv] between v_1 and v_∥, if they differ."""
        difference = -np.append(self.wave_vector, np.zeros(self.velocity_dims - self.space_dims)) / self.wavenumber
        difference[0] += 1
        square = difference @ difference
        return np.eye(self.velocity_dims) - 2 * np.outer(difference, difference) / square if square > 0 else None

    def spatial_density(self, x: np.ndarray) -> np.ndarray:
        return 1 + self.amplitude * np.cos(x @ self.wave_vector)

    def positions(self, points: np.ndarray) -> np.ndarray:
        x, (first, *others) = points * np.asarray(self.periods), self.wave_vector
        along = _perturbed_position(points[:, 0], self.periods[0], first, self.amplitude)
        x[:, 0] = np.mod(along - x[:, 1:] @ np.array(others) / first, self.periods[0])
        x[:, 0][x[:, 0] >= self.periods[0]] = 0.0  # the remainder of -1e-20 rounds up to the length itself
        return x

    def velocities(self, points: np.ndarray, temperature: float) -> np.ndarray:
        v = math.sqrt(temperature) * ndtri(points)
        # One coordinate serves both to choose the beam and to place the particle in it: low discrepancy survives.
        second = points[:, 0] >= 0.5
        within = np.clip(2 * points[:, 0] - second, _SMALLEST, 1 - 2**-53)
        v[:, 0] = np.where(second, -self.beam_speed, self.beam_speed) + self.thermal_speed * ndtri(within)
        turn = self._turn()
        return v if turn is None else v @ turn

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        turn = self._turn()
        if turn is not None:
            v = v @ torch.from_numpy(turn).to(v)
        phase = x @ torch.from_numpy(self.wave_vector).to(x)
        log_profile = torch.log1p(self.amplitude * torch.cos(phase))
        drifts = torch.tensor([self.beam_speed, -self.beam_speed], dtype=v.dtype, device=v.device)
        squares = ((v[:, :1] - drifts) / self.thermal_speed) ** 2
        log_beams = torch.logsumexp(-0.5 * squares, dim=1) - math.log(2 * self.thermal_speed) - 0.5 * _LOG_2PI
        transverse = v[:, 1:]
        log_maxwellian = -0.5 * (transverse**2).sum(1) / temperature
        log_maxwellian = log_maxwellian - 0.5 * transverse.shape[1] * (_LOG_2PI + math.log(temperature))
        return log_profile + log_beams + log_maxwellian

    def equilibrium(self, temperature: float) -> Equilibrium | None:
        """The homogeneous Maxwellian: stationary without a force, and in the field of a neutral plasma."""
        flat = (np.ones(2),) * self.space_dims
        box, log_volume = tuple((0.0, length) for length in self.periods), math.log(self.mass)
        return Equilibrium(self.potential, temperature, self.velocity_dims, self.mass, log_volume, box, flat)

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        reach = self.beam_speed + 4.5 * self.thermal_speed
        return tuple((0.0, length) for length in self.periods), ((-reach, reach),) * self.velocity_dims


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
