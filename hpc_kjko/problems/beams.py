"""The common part of the starts with two beams: the two-stream instability, Landau damping and the paper's Example
3.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from hpc_kjko.problems.perturbed import LOG_2PI, PerturbedWave, log_maxwellian
from hpc_kjko.problems.quantile import normal
from hpc_kjko.schema import Positive

#: The smallest uniform number that is used as a probability.
SMALLEST = 2.0**-64


class PerturbedBeams(PerturbedWave):
    """f0 = (1 + α cos k·x) · ½[N(v_b, σ²) + N(−v_b, σ²)](v_∥) · Maxwellian(T) in the other velocity directions."""

    thermal_speed: Positive = 1.0
    """σ, the thermal speed; with two beams, that of each beam."""

    @property
    def beam_speed(self) -> float:
        """Drift ±v_b of the two halves of the plasma."""
        return 0.0

    def velocities(self, points: np.ndarray, temperature: float) -> np.ndarray:
        # One coordinate both chooses the beam and places the particle in it. So the points keep their low discrepancy.
        second, within = points[:, 0] >= 0.5, points.copy(order="K")
        within[:, 0] = np.clip(2 * points[:, 0] - second, SMALLEST, 1 - 2**-53)
        v = normal(within)
        v[:, 0] = np.where(second, -self.beam_speed, self.beam_speed) + self.thermal_speed * v[:, 0]
        v[:, 1:] *= math.sqrt(temperature)
        return self.from_wave(v)

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        v = self.to_wave(v)
        drifts = (self.beam_speed, -self.beam_speed)
        exponents = (-0.5 * ((v[:, 0] - drift) / self.thermal_speed) ** 2 for drift in drifts)
        log_beams = torch.logaddexp(*exponents) - math.log(2 * self.thermal_speed) - 0.5 * LOG_2PI
        return self.log_profile(x) + log_beams + log_maxwellian(v[:, 1:], temperature)

    def variances(self, temperature: float) -> np.ndarray:
        along = self.thermal_speed**2 + self.beam_speed**2
        return np.array([along] + [temperature] * (self.velocity_dims - 1))

    def coldest(self, temperature: float) -> float:
        across = [math.sqrt(temperature)] * (self.velocity_dims - 1)
        return min([self.thermal_speed, *across])

    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        return [(0.0, temperature)] * (self.velocity_dims - 1)

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        reach = self.beam_speed + 4.5 * self.thermal_speed
        return tuple((0.0, length) for length in self.periods), ((-reach, reach),) * self.velocity_dims
