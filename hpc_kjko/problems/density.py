"""Known phase-space densities, with which the particles are compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Potential = Callable[[torch.Tensor], torch.Tensor]
Box = tuple[tuple[float, float], ...]

#: Points per axis of the quadrature, by number of dimensions. The quadrature has spectral accuracy for a smooth
#: potential.
_POINTS = {1: 4096, 2: 512, 3: 128}
#: Points per axis in the search for the density.
_SCAN = {1: 4096, 2: 256, 3: 48}
#: Number of points at which the potential is evaluated at a time.
_CHUNK = 1 << 17
#: exp(−this) ≈ 1e-16. Where the potential is higher than its minimum by this many T, the density is neglected.
_DEPTH = -math.log(1e-16)
#: How often a box is shrunk, at most, to the region with particles.
_ROUNDS = 50


class Density(ABC):
    """A density f(x, v) in the normalisation of the code: ∫f = ``mass``."""

    mass: float

    @abstractmethod
    def log_density(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """log f at x [n, dx], v [n, dv]: [n]. It can be compared with ``log_f`` of the particles."""

    @abstractmethod
    def score_v(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """∇v log f at x [n, dx], v [n, dv]: [n, dv]."""

    @abstractmethod
    def marginal(self, kind: Literal["x", "v"], axis: int, edges: np.ndarray) -> np.ndarray:
        """Fraction of the mass in each bin of one coordinate, integrated over all others.

        Args:
            kind: position or velocity; axis: which of its components.
            edges: [m + 1] bin edges, increasing.

        Returns:
            [m] probabilities. Their sum is the fraction of the mass that the bins cover.
        """


@dataclass(frozen=True, eq=False)
class GaussianDensity(Density):
    """N(mean, covariance) over z = (x, v), dv = dx, ∫f = 1.

    Attributes:
        mean: [2d]; covariance: [2d, 2d].
    """

    mean: np.ndarray
    covariance: np.ndarray
    mass: float = 1.0

    def log_density(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        deviation, precision = self._deviation(x, v)
        log_normal = -0.5 * np.linalg.slogdet(2 * math.pi * self.covariance)[1]
        return log_normal - 0.5 * ((deviation @ precision) * deviation).sum(1)

    def score_v(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        deviation, precision = self._deviation(x, v)
        return -(deviation @ precision)[:, x.shape[1] :]

    def marginal(self, kind: Literal["x", "v"], axis: int, edges: np.ndarray) -> np.ndarray:
        coordinate = axis if kind == "x" else len(self.mean) // 2 + axis
        return normal_bins(edges, self.mean[coordinate], math.sqrt(self.covariance[coordinate, coordinate]))

    def _deviation(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision = torch.as_tensor(np.linalg.inv(self.covariance), dtype=v.dtype, device=v.device)
        return torch.cat([x, v], dim=1) - torch.as_tensor(self.mean, dtype=v.dtype, device=v.device), precision


@dataclass(frozen=True, eq=False)
class Equilibrium(Density):
    """f∞ = mass · exp(−(½|v|² + φ)/T) / Z, stationary in the potential φ at the bath temperature T.

    Create it with :func:`equilibrium_of`, which finds the normaliser.

    Attributes:
        log_integral: log ∫ exp(−φ/T) dx.
        box: (low, high) per axis. Outside the density is neglected.
        profiles: per axis, values at cell centres of ``box`` that are proportional to the x-marginal.
    """

    potential: Potential
    temperature: float
    velocity_dims: int
    mass: float
    log_integral: float
    box: Box
    profiles: tuple[np.ndarray, ...]

    def log_density(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        log_maxwellian = -0.5 * self.velocity_dims * math.log(2 * math.pi * self.temperature)
        log_scale = math.log(self.mass) - self.log_integral + log_maxwellian
        return log_scale - (0.5 * (v**2).sum(1) + self.potential(x)) / self.temperature

    def score_v(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return -v / self.temperature

    def marginal(self, kind: Literal["x", "v"], axis: int, edges: np.ndarray) -> np.ndarray:
        if kind == "v":
            return normal_bins(edges, 0.0, math.sqrt(self.temperature))
        return _fourier_bins(self.profiles[axis], *self.box[axis], edges)


def equilibrium_of(
    potential: Potential, box: Box, temperature: float, velocity_dims: int, mass: float, *, periodic: bool
) -> Equilibrium | None:
    """The equilibrium in a potential. Its normaliser comes from quadrature on a tensor grid.

    Args:
        potential: φ at x [n, dx], float64 on the CPU: [n]. NaN counts as infinite.
        box: (low, high) per axis: the whole periodic box, or in unbounded space roughly the region with particles.
        temperature: T > 0.
        velocity_dims: dv; mass: ∫f.
        periodic: whether ``box`` is periodic.

    Returns:
        The equilibrium, or None if there is none. Then φ does not confine the particles within |x_j| ≤ 1e3 √T (or
        within twice the box, if that is larger), or it jumps across the seam of a periodic box.
    """
    if periodic and not _closes(potential, box):
        return None
    if not periodic:
        reach = max(abs(end) for ends in box for end in ends)
        confining = _confining_box(potential, reach, temperature, len(box)) if math.isfinite(reach) else None
        if confining is None:
            return None
        box = confining
    phi = _on_grid(potential, box, _POINTS[len(box)])
    lowest = phi.min()
    if not math.isfinite(lowest):
        return None
    weight = np.exp((lowest - phi) / temperature)
    cell = math.prod((high - low) / _POINTS[len(box)] for low, high in box)
    log_integral = math.log(weight.sum() * cell) - float(lowest) / temperature
    others = [tuple(j for j in range(len(box)) if j != axis) for axis in range(len(box))]
    profiles = tuple(weight.sum(axis=axes) for axes in others)
    return Equilibrium(potential, temperature, velocity_dims, mass, log_integral, box, profiles)


def _confining_box(potential: Potential, reach: float, temperature: float, dims: int) -> Box | None:
    """A box, not much larger than necessary, outside which exp(−(φ − min φ)/T) < 1e-16; None if there is none."""
    depth, points = _DEPTH * temperature, _SCAN[dims]
    lowest, confined = math.inf, None
    limit = max(1e3 * math.sqrt(temperature), 2 * reach)
    radii = [reach * 2.0**k for k in range(math.ceil(math.log2(limit / reach)))]
    # Extend the box up to the limit, even if a smaller one seems enough: there may be another well behind the hill.
    for radius in [*radii, limit]:
        phi = _on_grid(potential, ((-radius, radius),) * dims, points)
        lowest = min(lowest, float(phi.min()))
        if lowest == -math.inf:
            return None
        occupied = np.argwhere(phi < lowest + depth)
        if occupied.size and (occupied.min() == 0 or occupied.max() == points - 1):
            confined = None
        else:
            farthest = np.abs((occupied + 0.5) * (2 * radius / points) - radius).max(initial=0.0)
            confined = radius if confined is None or farthest > confined else confined
    if confined is None or lowest == math.inf:
        return None
    # Shrink it again, because the quadrature needs a grid that is finer than the wells.
    box: Box = ((-confined, confined),) * dims
    for _ in range(_ROUNDS):
        phi = _on_grid(potential, box, points)
        occupied = np.argwhere(phi < phi.min() + depth)
        smaller = []
        for axis, (low, high) in enumerate(box):
            cell = (high - low) / points
            first, last = occupied[:, axis].min() - 2, occupied[:, axis].max() + 3
            smaller.append((max(low, low + cell * float(first)), min(high, low + cell * float(last))))
        shrinkage = max((b - a) / (high - low) for (a, b), (low, high) in zip(smaller, box, strict=True))
        box = tuple(smaller)
        if shrinkage > 0.8:
            break
    return box


def _closes(potential: Potential, box: Box) -> bool:
    """Whether the potential is continuous across the seam of a periodic box."""
    for axis, (low, high) in enumerate(box):
        sheet = tuple((low, low) if j == axis else ends for j, ends in enumerate(box))
        opposite = tuple((high, high) if j == axis else ends for j, ends in enumerate(box))
        # The last position inside the box: wrapped particles come no closer to its end.
        opposite = tuple((np.nextafter(b, a), np.nextafter(b, a)) if a == b else (a, b) for a, b in opposite)
        here, there = (_on_grid(potential, ends, 16) for ends in (sheet, opposite))
        if not np.allclose(here, there, rtol=1e-6, atol=1e-6, equal_nan=True):
            return False
    return True


def _on_grid(potential: Potential, box: Box, points: int) -> np.ndarray:
    """φ at the cell centres of a box: [points] * dx, infinite where it is NaN."""
    axes = [low + (high - low) / points * (np.arange(points) + 0.5) for low, high in box]
    values = np.empty((points,) * len(box))
    for start in range(0, values.size, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, values.size))
        index = np.unravel_index(rows, values.shape)
        x = torch.from_numpy(np.stack([axis[i] for axis, i in zip(axes, index, strict=True)], axis=1))
        with torch.no_grad():
            values.flat[start : start + len(rows)] = potential(x).numpy()
    return np.where(np.isnan(values), np.inf, values)


def normal_bins(edges: np.ndarray, mean: float, width: float) -> np.ndarray:
    """Probabilities of N(mean, width²) in bins: [m]."""
    scaled = torch.from_numpy((np.asarray(edges) - mean) / width)
    below, above = torch.special.ndtr(scaled), torch.special.ndtr(-scaled)
    # Differences of the smaller tail: far out on the right, the distribution function is 1 to rounding.
    return torch.where(scaled[1:] > 0, above[:-1] - above[1:], below[1:] - below[:-1]).numpy()


def _fourier_bins(profile: np.ndarray, low: float, high: float, edges: np.ndarray) -> np.ndarray:
    """Probabilities in bins [m] of a density that is known up to a factor at the cell centres of [low, high].

    The density is periodic there, or negligible at both ends. So its Fourier series gives the integrals to spectral
    accuracy.
    """
    n, width = len(profile), high - low
    modes = np.arange(1, (n + 1) // 2)
    series = np.fft.rfft(profile)[modes] / profile.sum()
    phase = 2j * np.pi * modes / width
    inside = np.clip(edges, low, high) - low
    oscillation = np.exp(np.multiply.outer(inside - 0.5 * width / n, phase)) @ (series / (phase * width))
    cumulative = inside / width + 2 * oscillation.real
    return np.maximum(np.diff(cumulative), 0.0)
