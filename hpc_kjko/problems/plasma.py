"""Periodic plasmas with a perturbed density: the two-stream instability and Landau damping."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.special import ndtri

from hpc_kjko.problems.base import Problem
from hpc_kjko.schema import Count, Dimension, Lengths, NonNegative, Positive

_LOG_2PI = math.log(2 * math.pi)


class _PerturbedPlasma(Problem):
    """f0 = (1 + α cos k x_1) · ½[N(v_b, σ²) + N(−v_b, σ²)](v_1) · Maxwellian(T) in the other velocity directions."""

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    space_dims: Dimension = 1
    velocity_dims: Dimension = 1
    length: Lengths
    thermal_speed: Positive = 1.0
    amplitude: Annotated[float, Field(gt=-1, lt=1)]
    mode: Count = 1

    @model_validator(mode="after")
    def _dimensions_fit(self) -> _PerturbedPlasma:
        if self.velocity_dims < self.space_dims:
            raise ValueError(
                f"problem.velocity_dims = {self.velocity_dims} is less than problem.space_dims = {self.space_dims}: "
                "every space direction needs its velocity"
            )
        if len(self.length) not in (1, self.space_dims):
            raise ValueError(
                f"problem.length has {len(self.length)} entries: give one number, or one for each of the "
                f"{self.space_dims} space dimension(s)"
            )
        return self

    @property
    def beam_speed(self) -> float:
        """Drift ±v_b of the two halves of the plasma."""
        return 0.0

    @property
    def periods(self) -> tuple[float, ...]:
        return self.length * self.space_dims if len(self.length) == 1 else self.length

    @property
    def wavenumber(self) -> float:
        """k of the perturbation, along x_1."""
        return 2 * math.pi * self.mode / self.periods[0]

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        uniform_x, uniform_v = points[:, : self.space_dims], points[:, self.space_dims :]
        x = uniform_x * np.asarray(self.periods)
        x[:, 0] = _perturbed_position(uniform_x[:, 0], self.periods[0], self.wavenumber, self.amplitude)
        v = math.sqrt(temperature) * ndtri(uniform_v)
        # One coordinate serves both to choose the beam and to place the particle in it: low discrepancy survives.
        second = uniform_v[:, 0] >= 0.5
        within = np.clip(2 * uniform_v[:, 0] - second, _SMALLEST, 1 - 2**-53)
        v[:, 0] = np.where(second, -self.beam_speed, self.beam_speed) + self.thermal_speed * ndtri(within)
        return x, v

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        log_profile = torch.log1p(self.amplitude * torch.cos(self.wavenumber * x[:, 0]))
        drifts = torch.tensor([self.beam_speed, -self.beam_speed], dtype=v.dtype, device=v.device)
        squares = ((v[:, :1] - drifts) / self.thermal_speed) ** 2
        log_beams = torch.logsumexp(-0.5 * squares, dim=1) - math.log(2 * self.thermal_speed) - 0.5 * _LOG_2PI
        transverse = v[:, 1:]
        log_maxwellian = -0.5 * (transverse**2).sum(1) / temperature
        log_maxwellian = log_maxwellian - 0.5 * transverse.shape[1] * (_LOG_2PI + math.log(temperature))
        return log_profile + log_beams + log_maxwellian

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        reach = self.beam_speed + 4.5 * self.thermal_speed
        return tuple((0.0, length) for length in self.periods), ((-reach, reach),) * self.velocity_dims


class TwoStream(_PerturbedPlasma):
    """Two counter-streaming beams: the two-stream instability (paper's section 4.2)."""

    kind: Literal["two_stream"]
    length: Lengths = (31.4159265,)
    beam_velocity: NonNegative = 2.4
    amplitude: Annotated[float, Field(gt=-1, lt=1)] = 0.005

    @property
    def beam_speed(self) -> float:
        return self.beam_velocity


class LandauDamping(_PerturbedPlasma):
    """A perturbed Maxwellian: Landau damping of a Langmuir wave."""

    kind: Literal["landau_damping"]
    length: Lengths = (4 * math.pi,)
    amplitude: Annotated[float, Field(gt=-1, lt=1)] = 0.01


_SMALLEST = 2.0**-64


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
