"""Initial densities of a periodic plasma: a wave in the density, and one of several velocity distributions.

The ``temperature`` that a start gets is T/m, the variance of a velocity component of particles in equilibrium. The mass
m is 1 if there is one species.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used
import torch
from pydantic import Field, model_validator

from hpc_kjko.problems.beams import SMALLEST
from hpc_kjko.problems.perturbed import LOG_2PI, Amplitude, PerturbedWave, log_maxwellian
from hpc_kjko.problems.quantile import normal
from hpc_kjko.schema import Lengths, NonNegative, Positive, Vector, one_or_each

#: A window shows a Gaussian up to this many thermal speeds from its mean.
_WIDTHS = 4.5
#: The fraction of the particles, on both sides together, that lies outside the window of a distribution with tails.
_OUTSIDE = 1e-4


class PerturbedStart(PerturbedWave):
    """f0 = (1 + α cos k·x) · g(v − u): the common part of the starts of a plasma.

    A subclass defines g, a density of the peculiar velocity w = v − u [n, dv] whose integral is 1.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    length: Lengths = (4 * math.pi,)
    amplitude: Amplitude = 0.01
    mean_velocity: Vector = (0.0,)
    """u, the shift of all velocities: one number for the direction x_1, or one per velocity dimension.

    A bath stays at rest, so u decays at the rate κ."""

    @model_validator(mode="after")
    def _mean_velocity_fits(self) -> PerturbedStart:
        if len(self.mean_velocity) not in (1, self.velocity_dims):
            raise ValueError(
                f"problem.mean_velocity has {len(self.mean_velocity)} entries: "
                f"{one_or_each(self.velocity_dims, 'velocity')}"
            )
        return self

    @abstractmethod
    def peculiar(self, points: np.ndarray, temperature: float) -> np.ndarray:
        """Map uniform points [n, dv], inside (0, 1), to peculiar velocities w [n, dv] of density g."""

    @abstractmethod
    def log_peculiar(self, w: torch.Tensor, temperature: float) -> torch.Tensor:
        """log g at w [n, dv]: [n]. Differentiable."""

    @abstractmethod
    def reach(self, temperature: float) -> float:
        """The largest component of w that figures need to show."""

    def velocities(self, points: np.ndarray, temperature: float) -> np.ndarray:
        return self.peculiar(points, temperature) + self._shift

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.log_profile(x) + self.log_peculiar(v - torch.from_numpy(self._shift).to(v), temperature)

    def first_direction(self) -> PerturbedWave:
        changes = {"velocity_dims": 1, "mean_velocity": self.mean_velocity[:1], **self._first_of_own()}
        return self.model_copy(update=changes)

    @property
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        # The temperature of the species' bath, or 1, because the window is requested without a temperature.
        thermal = self._temperature / self._particle_mass
        reach = max(self.reach(thermal), _WIDTHS * math.sqrt(thermal))
        ends = [reach + abs(float(shift)) for shift in self._shift]
        return tuple((0.0, length) for length in self.periods), tuple((-end, end) for end in ends)

    @property
    def _shift(self) -> np.ndarray:
        """u [dv]."""
        shift = np.zeros(self.velocity_dims)
        shift[: len(self.mean_velocity)] = self.mean_velocity
        return shift

    def _first_of_own(self) -> dict[str, Any]:
        """The keys of this kind that are different in :meth:`first_direction`."""
        return {}


class Stream(NamedTuple):
    """A fraction of the particles: N(mean, width²) along the wave. The fractions of all streams add up to 1."""

    fraction: float
    mean: float
    width: float


class Streams(PerturbedStart):
    """g is a sum of Gaussians along the wave, and Maxwellian at the temperature of the bath across it."""

    @abstractmethod
    def streams(self, temperature: float) -> list[Stream]:
        """The Gaussians along the wave."""

    def peculiar(self, points: np.ndarray, temperature: float) -> np.ndarray:
        fraction, mean, width = np.array(self.streams(temperature)).T
        first = np.append(0.0, np.cumsum(fraction)[:-1])  # of the uniform numbers that belong to each stream
        chosen = np.searchsorted(first[1:], points[:, 0], side="right")
        # One coordinate both chooses the stream and places the particle in it. So the points keep their low
        # discrepancy.
        within = points.copy(order="K")
        within[:, 0] = np.clip((points[:, 0] - first[chosen]) / fraction[chosen], SMALLEST, 1 - 2**-53)
        w = normal(within)
        w[:, 0] = mean[chosen] + width[chosen] * w[:, 0]
        w[:, 1:] *= math.sqrt(temperature)
        return self.from_wave(w)

    def log_peculiar(self, w: torch.Tensor, temperature: float) -> torch.Tensor:
        w = self.to_wave(w)
        logs = [
            math.log(stream.fraction / stream.width) - 0.5 * ((w[:, 0] - stream.mean) / stream.width) ** 2
            for stream in self.streams(temperature)
        ]
        return functools.reduce(torch.logaddexp, logs) - 0.5 * LOG_2PI + log_maxwellian(w[:, 1:], temperature)

    def variances(self, temperature: float) -> np.ndarray:
        fraction, mean, width = np.array(self.streams(temperature)).T
        along = fraction @ (width**2 + mean**2) - (fraction @ mean) ** 2
        return np.array([along] + [temperature] * (self.velocity_dims - 1))

    def coldest(self, temperature: float) -> float:
        across = [math.sqrt(temperature)] * (self.velocity_dims - 1)
        return min([stream.width for stream in self.streams(temperature)] + across)

    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        return [(float(shift), temperature) for shift in self._shift[1:]]

    def reach(self, temperature: float) -> float:
        return max(abs(stream.mean) + _WIDTHS * stream.width for stream in self.streams(temperature))


class Maxwellian(Streams):
    """A Maxwellian at the temperature of the bath, with a wave in the density: a plasma at rest, or one that streams.

    f0 = (1 + α cos k·x) · N(u, T).
    """

    kind: Literal["maxwellian"]

    def streams(self, temperature: float) -> list[Stream]:
        return [Stream(1.0, 0.0, math.sqrt(temperature))]


class Beams(Streams):
    """Two beams of equal density along the wave, as in `two_stream`.

    f0 = (1 + α cos k·x) · ½[N(u + v_b, σ²) + N(u − v_b, σ²)] along the wave. Across it f0 is Maxwellian at T.
    """

    kind: Literal["beams"]
    beam_velocity: NonNegative = 2.4
    """v_b, the drift ±v_b of the two beams."""
    thermal_speed: Positive = 1.0
    """σ, the thermal speed of a beam."""

    def streams(self, temperature: float) -> list[Stream]:
        drift, width = self.beam_velocity, self.thermal_speed
        return [Stream(0.5, drift, width), Stream(0.5, -drift, width)]


class BumpOnTail(Streams):
    """A Maxwellian at the temperature of the bath with a bump on its tail: the bump-on-tail instability.

    f0 = (1 + α cos k·x) · [(1 − b) N(u, T) + b N(u + v_b, σ²)] along the wave. Across it f0 is Maxwellian at T. The
    mean velocity of all particles is u + b v_b k/|k|.
    """

    kind: Literal["bump_on_tail"]
    bump_density: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """b, the fraction of the particles in the bump; the others are in the bulk."""
    bump_velocity: float = 4.5
    """v_b, the mean velocity of the bump along the wave, relative to that of the bulk."""
    bump_thermal_speed: Positive = 0.5
    """σ, the thermal speed of the bump along the wave."""

    def streams(self, temperature: float) -> list[Stream]:
        bulk = Stream(1 - self.bump_density, 0.0, math.sqrt(temperature))
        return [bulk, Stream(self.bump_density, self.bump_velocity, self.bump_thermal_speed)]


class BiMaxwellian(PerturbedStart):
    """A Maxwellian with its own temperature along each axis.

    f0 = (1 + α cos k·x) times a Gaussian of the velocities. The axes of the Gaussian do not turn with an oblique wave.
    """

    kind: Literal["bi_maxwellian"]
    temperatures: Lengths = Field(default_factory=lambda data: (2.0, 1.0, 1.0)[: data.get("velocity_dims", 1)])
    """The temperatures along x_1, x_2, …, one per velocity dimension, for any direction of the wave.

    Default: 2.0 along x_1 and 1.0 along the others."""

    @model_validator(mode="after")
    def _temperatures_fit(self) -> BiMaxwellian:
        if len(self.temperatures) != self.velocity_dims:
            raise ValueError(
                f"problem.temperatures has {len(self.temperatures)} entries: give {self.velocity_dims}, one for each "
                "velocity dimension"
            )
        return self

    def peculiar(self, points: np.ndarray, temperature: float) -> np.ndarray:
        return np.sqrt(self._variances) * normal(points)

    def log_peculiar(self, w: torch.Tensor, temperature: float) -> torch.Tensor:
        widths = torch.tensor(self._variances, dtype=w.dtype, device=w.device).sqrt()
        return log_maxwellian(w / widths, 1.0) - torch.log(widths).sum()

    def variances(self, temperature: float) -> np.ndarray:
        return np.array(self._variances)

    def coldest(self, temperature: float) -> float:
        return math.sqrt(min(self._variances))

    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        return [(float(shift), own) for shift, own in zip(self._shift[1:], self._variances[1:], strict=True)]

    def reach(self, temperature: float) -> float:
        return _WIDTHS * math.sqrt(max(self._variances))

    def _first_of_own(self) -> dict[str, Any]:
        return {"temperatures": self.temperatures[:1]}

    @property
    def _variances(self) -> tuple[float, ...]:
        """T/m along each axis."""
        return tuple(temperature / self._particle_mass for temperature in self.temperatures)


class Kappa(PerturbedStart):
    """A kappa distribution: isotropic, of the temperature of the bath, with tails that fall as a power of the velocity.

    g ∝ (1 + |w|²/((2κ − 3) T))^(−κ − (d − 1)/2) in d dimensions. This is a multivariate Student t with ν = 2κ − 1
    degrees of freedom and the variance T in each direction, for any κ. Its marginals are of the same form with the same
    κ.
    """

    kind: Literal["kappa"]
    kappa_index: Annotated[float, Field(gt=1.5, le=1e6)] = 3.0
    """κ of the tails. The smaller it is, the more particles are fast. For large κ the distribution is Maxwellian.

    It is more than 1.5. Up to 2.5 the mean of v⁴ is infinite, so the kinetic energy of a sample depends on its few
    fastest particles."""

    def peculiar(self, points: np.ndarray, temperature: float) -> np.ndarray:
        """The directions are drawn one after the other. Given the components before it, a component is again a Student
        t.

        With n known components, it has ν + n degrees of freedom and the scale² (ν s² + w_1² + … + w_n²)/(ν + n).
        """
        w, freedom = np.empty_like(points), self._freedom
        square = np.full(len(points), self._square(temperature))
        for axis in range(self.velocity_dims):
            w[:, axis] = np.sqrt(square / (freedom + axis)) * scipy.special.stdtrit(freedom + axis, points[:, axis])
            square += w[:, axis] ** 2
        return w

    def log_peculiar(self, w: torch.Tensor, temperature: float) -> torch.Tensor:
        dims, freedom, square = w.shape[1], self._freedom, self._square(temperature)
        # The beta function gives Γ((ν + d)/2)/Γ(ν/2) directly: for large ν both are far larger than their ratio.
        log_ratio = float(scipy.special.gammaln(0.5 * dims) - scipy.special.betaln(0.5 * freedom, 0.5 * dims))
        log_peak = log_ratio - 0.5 * dims * math.log(math.pi * square)
        return log_peak - 0.5 * (freedom + dims) * torch.log1p((w**2).sum(1) / square)

    def variances(self, temperature: float) -> np.ndarray:
        return np.full(self.velocity_dims, temperature)

    def coldest(self, temperature: float) -> float:
        # The core is a Gaussian with the curvature that log g has at its maximum.
        return math.sqrt(self._square(temperature) / (self._freedom + self.velocity_dims))

    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        return [] if self.velocity_dims == 1 else None

    def reach(self, temperature: float) -> float:
        scale = math.sqrt(self._square(temperature) / self._freedom)
        return scale * float(scipy.special.stdtrit(self._freedom, 1 - 0.5 * _OUTSIDE))

    @property
    def _freedom(self) -> float:
        """ν = 2κ − 1."""
        return 2 * self.kappa_index - 1

    def _square(self, temperature: float) -> float:
        """ν s² = (2κ − 3) T, where s is the scale of the Student t."""
        return (2 * self.kappa_index - 3) * temperature
