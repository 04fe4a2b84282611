"""The start that the periodic problems share: a cosine in space, two beams in velocity."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.special import ndtri

from hpc_kjko.problems.base import PeriodicProblem
from hpc_kjko.problems.density import Equilibrium
from hpc_kjko.schema import Count, Positive

_LOG_2PI = math.log(2 * math.pi)
_SMALLEST = 2.0**-64

Amplitude = Annotated[float, Field(gt=-1, lt=1)]


class PerturbedBeams(PeriodicProblem):
    """f0 = (1 + α cos k x_1) · ½[N(v_b, σ²) + N(−v_b, σ²)](v_1) · Maxwellian(T) in the other velocity directions."""

    thermal_speed: Positive = 1.0
    amplitude: Amplitude
    mode: Count = 1

    @property
    def beam_speed(self) -> float:
        """Drift ±v_b of the two halves of the plasma."""
        return 0.0

    @property
    def wavenumber(self) -> float:
        """k of the perturbation, along x_1."""
        return 2 * math.pi * self.mode / self.periods[0]

    def spatial_density(self, x: np.ndarray) -> np.ndarray:
        return 1 + self.amplitude * np.cos(self.wavenumber * x[:, 0])

    def positions(self, points: np.ndarray) -> np.ndarray:
        x = points * np.asarray(self.periods)
        x[:, 0] = _perturbed_position(points[:, 0], self.periods[0], self.wavenumber, self.amplitude)
        return x

    def velocities(self, points: np.ndarray, temperature: float) -> np.ndarray:
        v = math.sqrt(temperature) * ndtri(points)
        # One coordinate serves both to choose the beam and to place the particle in it: low discrepancy survives.
        second = points[:, 0] >= 0.5
        within = np.clip(2 * points[:, 0] - second, _SMALLEST, 1 - 2**-53)
        v[:, 0] = np.where(second, -self.beam_speed, self.beam_speed) + self.thermal_speed * ndtri(within)
        return v

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        log_profile = torch.log1p(self.amplitude * torch.cos(self.wavenumber * x[:, 0]))
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
