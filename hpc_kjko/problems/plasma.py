"""Periodic plasmas: the two-stream instability, Landau damping, and any start of the user's own."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch

from hpc_kjko.problems.base import PeriodicWave
from hpc_kjko.problems.beams import PerturbedBeams
from hpc_kjko.problems.custom import UserStart
from hpc_kjko.problems.density import Equilibrium
from hpc_kjko.problems.perturbed import Amplitude
from hpc_kjko.problems.quantile import normal
from hpc_kjko.problems.quasirandom import Sobol
from hpc_kjko.problems.tabulated import TabulatedDensity
from hpc_kjko.schema import Lengths, NonNegative, Positive


class TwoStream(PerturbedBeams):
    """Two counter-streaming beams: the two-stream instability (section 4.2 of the paper, arXiv:2603.23901).

    f0 = (1 + α cos k·x) · ½[N(v_b, σ²) + N(−v_b, σ²)] along the wave. The other velocity components start Maxwellian at
    T.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    kind: Literal["two_stream"]
    length: Lengths = (31.4159265,)
    beam_velocity: NonNegative = 2.4
    """v_b, the drift ±v_b of the two beams."""
    amplitude: Amplitude = 0.005

    @property
    def beam_speed(self) -> float:
        return self.beam_velocity


class LandauDamping(PerturbedBeams):
    """A perturbed Maxwellian: Landau damping of a Langmuir wave.

    f0 = (1 + α cos k·x) · N(0, σ²) along the wave. The other velocity components start Maxwellian at T.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    kind: Literal["landau_damping"]
    length: Lengths = (4 * math.pi,)
    amplitude: Amplitude = 0.01


class Plasma(PeriodicWave, UserStart):
    """A plasma that starts from your own initial density f0(x, v), or from the Maxwellian at T.

    With several species it is the box that they share.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"
    named_densities: ClassVar[tuple[str, ...]] = ("maxwellian",)

    kind: Literal["plasma"]
    length: Lengths = (4 * math.pi,)
    initial_density: str = "maxwellian"
    """The start: `maxwellian`, homogeneous at the temperature of the bath, or `module:name` of your own f0."""
    velocity_max: Positive | None = None
    """The largest velocity that histograms and figures show.

    Default: found from f0."""

    def checked(self) -> Plasma:
        super().checked()
        return self.model_copy(update={"velocity_max": self._reach()})

    @property
    def is_homogeneous(self) -> bool:
        return not self.starts_from_user_code

    def own_sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        x = points[:, : self.space_dims] * np.asarray(self.periods)
        return x, math.sqrt(temperature) * normal(points[:, self.space_dims :])

    def own_log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.maxwellian(temperature).log_density(x, v)

    def equilibrium(self, temperature: float) -> Equilibrium | None:
        return self.maxwellian(temperature)

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        reach = self._reach()
        return tuple((0.0, length) for length in self.periods), ((-reach, reach),) * self.velocity_dims

    def _reach(self) -> float:
        """The largest speed that figures show: the given one, or the largest with a visible f0."""
        if self.velocity_max is not None:
            return self.velocity_max
        thermal = self._temperature / self._particle_mass
        if not self.starts_from_user_code:
            return 5.0 * math.sqrt(thermal)
        if isinstance(self.user_density, TabulatedDensity):
            return float(f"{self.user_density.reach:.3g}")
        _, v = self.sample(Sobol(self.space_dims + self.velocity_dims, seed=0).points(1, 4096), thermal)
        return float(f"{1.2 * np.abs(v).max():.3g}")
