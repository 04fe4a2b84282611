"""Phase-space histograms and marginals of the particles, in the window of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from hpc_kjko.files.binned import BINS, MARGINAL_BINS, Histogram, Marginal
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import counts
from hpc_kjko.particles.state import Particles, passes_over
from hpc_kjko.problems import Problem
from hpc_kjko.problems.density import Density


def phase_space_histograms(particles: Particles, problem: Problem, comm: Communicator) -> list[Histogram]:
    """The (x_i, v_i) histograms of the particles of all ranks, one per space dimension. Collective."""
    numbers = comm.sum(local_histograms(particles, problem))
    return histograms_of(numbers * (particles.total_weight / particles.shard.total), problem)


def histograms_of(masses: np.ndarray, problem: Problem) -> list[Histogram]:
    """Histograms from the masses in their bins [dx, BINS, BINS]."""
    histograms = []
    for axis, (mass, *ranges) in enumerate(zip(masses, *problem.window, strict=False)):  # dv may be larger than dx
        bin_area = np.prod([(high - low) / BINS for low, high in ranges])
        histograms.append(Histogram(axis, mass / bin_area, *ranges))
    return histograms


def local_histograms(particles: Particles, problem: Problem) -> np.ndarray:
    """The weighted number of particles of this rank in each bin of (x_i, v_i): [dx, BINS, BINS]."""
    (x_ranges, v_ranges), shares = problem.window, particles.shares()
    found = torch.zeros(problem.space_dims, BINS * BINS, dtype=torch.float64, device=particles.x.device)
    for axis, part in enumerate(found):
        for rows in passes_over(particles.x):
            i, inside_x = _bin(particles.x[rows, axis], x_ranges[axis], BINS)
            j, inside_v = _bin(particles.v[rows, axis], v_ranges[axis], BINS)
            inside = inside_x & inside_v
            number = counts(shares[rows][inside], particles.shard.total)
            part += torch.bincount((i * BINS + j)[inside], weights=number, minlength=BINS * BINS)
    return found.cpu().numpy().reshape(-1, BINS, BINS)


def marginals(particles: Particles, problem: Problem, comm: Communicator) -> list[Marginal]:
    """The marginals of the particles of all ranks: x_1, … first, then v_1, …. Collective."""
    numbers = comm.sum(local_marginals(particles, problem))
    return marginals_of(numbers * (particles.total_weight / particles.shard.total), problem)


def marginals_of(masses: np.ndarray, problem: Problem) -> list[Marginal]:
    """Marginals from the masses in their bins [dx + dv, MARGINAL_BINS]."""
    found = []
    for (kind, axis), mass in zip(coordinates(problem), masses, strict=True):
        low, high = _window_of(problem, kind, axis)
        found.append(Marginal(kind, axis, mass * MARGINAL_BINS / (high - low), (low, high)))
    return found


def local_marginals(particles: Particles, problem: Problem) -> np.ndarray:
    """The weighted number of particles of this rank in each bin of each coordinate: [dx + dv, MARGINAL_BINS]."""
    shares = particles.shares()
    found = torch.zeros(
        problem.space_dims + problem.velocity_dims, MARGINAL_BINS, dtype=torch.float64, device=particles.x.device
    )
    for rows in passes_over(particles.x):
        number = counts(shares[rows], particles.shard.total)
        for part, (kind, axis) in zip(found, coordinates(problem), strict=True):
            bins, inside = _bin(getattr(particles, kind)[rows, axis], _window_of(problem, kind, axis), MARGINAL_BINS)
            part += torch.bincount(bins[inside], weights=number[inside], minlength=MARGINAL_BINS)
    return found.cpu().numpy()


def marginals_of_density(problem: Problem, known: Density) -> list[Marginal]:
    """The marginals of a known density as fractions of its mass. Each integrates to the fraction inside the window."""
    found = []
    for (kind, axis), wanted in zip(coordinates(problem), bins_of_density(problem, known), strict=True):
        low, high = _window_of(problem, kind, axis)
        edges = np.linspace(low, high, MARGINAL_BINS + 1)
        found.append(Marginal(kind, axis, wanted / np.diff(edges), (low, high)))
    return found


def bins_of_density(problem: Problem, known: Density) -> list[np.ndarray]:
    """The fraction of the mass of a known density in each bin of each marginal: dx + dv arrays [MARGINAL_BINS]."""
    return [
        known.marginal(kind, axis, np.linspace(*_window_of(problem, kind, axis), MARGINAL_BINS + 1))
        for kind, axis in coordinates(problem)
    ]


def marginal_errors(parts: np.ndarray, wanted: Sequence[np.ndarray]) -> tuple[float, ...]:
    """L¹ distance of each marginal from that of a known density, including the mass outside the window.

    Args:
        parts: the fraction of the mass in each bin [dx + dv, MARGINAL_BINS].
        wanted: the same of the known density, from :func:`bins_of_density`.
    """
    return tuple(
        float(np.abs(found - known).sum() + abs(found.sum() - known.sum()))
        for found, known in zip(parts, wanted, strict=True)
    )


def coordinates(problem: Problem) -> list[tuple[Literal["x", "v"], int]]:
    """Kind and axis of every coordinate: x_1, … first, then v_1, …."""
    return [("x", axis) for axis in range(problem.space_dims)] + [("v", axis) for axis in range(problem.velocity_dims)]


def _window_of(problem: Problem, kind: Literal["x", "v"], axis: int) -> tuple[float, float]:
    return problem.window["xv".index(kind)][axis]


def _bin(values: torch.Tensor, limits: tuple[float, float], bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = limits
    position = torch.floor((values - low) * (bins / (high - low)))
    return position.long(), (position >= 0) & (position < bins)
