"""What is measured along a run: the columns of the time series and the phase-space histograms.

A diagnostic adds up this rank's share; all shares travel in one allreduce a step. A new one is a class with
``columns``, ``local`` and ``finish``, and one line in :func:`series_diagnostics`.

Normalisation: mean density 1 in a periodic box (∫f = V), ∫f = 1 in unbounded space. Units ω_p = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hpc_kjko.collisions import CollisionReport
from hpc_kjko.comm import Communicator
from hpc_kjko.fields import ExternalField, MeshField
from hpc_kjko.particles import Particles, passes
from hpc_kjko.problems import Problem

#: Bins per axis of a phase-space histogram.
BINS = 128


@dataclass(frozen=True)
class State:
    """Everything known at one time level: particles at t^n, the field of those very positions, the last collision."""

    particles: Particles
    field: MeshField | ExternalField
    collision: CollisionReport


class Diagnostic(Protocol):
    """Some columns of the time series."""

    columns: tuple[str, ...]

    def local(self, state: State) -> np.ndarray:
        """This rank's share of the sums that the columns are made of: a fixed number of float64."""
        ...

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        """The columns' values from the sums over all ranks."""
        ...


class Invariants:
    """mass ∫f (of the deposited density where there is a mesh) and momentum ∫ v f."""

    def __init__(self, velocity_dims: int):
        self.columns = ("mass", *(f"momentum_{axis + 1}" for axis in range(velocity_dims)))

    def local(self, state: State) -> np.ndarray:
        particles = state.particles
        momentum = particles.weighting * particles.v.sum(0, dtype=torch.float64)
        return np.array([particles.weighting * len(particles.v), *momentum.tolist()])

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        field = state.field
        mass = float(field.density.sum()) * field.grid.cell_volume if isinstance(field, MeshField) else float(sums[0])
        return mass, *map(float, sums[1:])


class Energies:
    """Kinetic ∫½|v|² f, field ½∫|E|² dx, potential ∫φ f of an external φ, entropy ∫ f log f, and their sum with T.

    The free energy is F = kinetic + field + potential + T · entropy.
    """

    columns = ("kinetic_energy", "field_energy", "potential_energy", "entropy", "free_energy")

    def __init__(self, problem: Problem, temperature: float):
        self.problem, self.temperature = problem, temperature

    def local(self, state: State) -> np.ndarray:
        particles, sums = state.particles, np.zeros(3)
        external = isinstance(state.field, ExternalField)
        for rows in passes(len(particles.x)):
            sums[0] += 0.5 * float((particles.v[rows].double() ** 2).sum())
            sums[1] += float(self.problem.potential(particles.x[rows]).double().sum()) if external else 0.0
            sums[2] += float(particles.log_f[rows].double().sum())
        return particles.weighting * sums

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        kinetic, potential, entropy = map(float, sums)
        field = state.field.energy
        return kinetic, field, potential, entropy, kinetic + field + potential + self.temperature * entropy


class CollisionStep:
    """What the collision step reports of itself."""

    columns = ("dissipation", "min_eigenvalue", "objective", "inner_iterations", "substeps")

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return tuple(float(getattr(state.collision, name)) for name in self.columns)


def series_diagnostics(problem: Problem, temperature: float) -> list[Diagnostic]:
    """The diagnostics of the time series, in the order of its columns."""
    return [Invariants(problem.velocity_dims), Energies(problem, temperature), CollisionStep()]


def measure(diagnostics: list[Diagnostic], state: State, comm: Communicator) -> dict[str, float]:
    """One row of the time series, the same on every rank, by one allreduce."""
    shares = [diagnostic.local(state) for diagnostic in diagnostics]
    sums = np.split(comm.sum(np.concatenate(shares)), np.cumsum([len(share) for share in shares])[:-1])
    row: dict[str, float] = {}
    for diagnostic, total in zip(diagnostics, sums, strict=True):
        row |= dict(zip(diagnostic.columns, diagnostic.finish(total, state), strict=True))
    return row


def initial_report(
    particles: Particles, problem: Problem, collision_strength: float, temperature: float, comm: Communicator
) -> CollisionReport:
    """The collision columns at t = 0, where no step has been made: exact, from the initial density.

    The dissipation is (1/κ) ∫∫ |u*|² f with u* = −κ (v + T ∇v log f0); the objective is J(u ≡ 0) = mean ½|v|².
    """
    square, kinetic = 0.0, 0.0
    for rows in passes(len(particles.x)):
        x, v = particles.x[rows], particles.v[rows].detach().requires_grad_()
        with torch.enable_grad():
            (score,) = torch.autograd.grad(problem.log_density(x, v, temperature).sum(), v)
        square += float(((v + temperature * score).detach().double() ** 2).sum())
        kinetic += 0.5 * float((v.detach().double() ** 2).sum())
    mean_square, mean_kinetic = map(float, comm.sum(np.array([square, kinetic])) / particles.shard.total)
    return CollisionReport(collision_strength * particles.mass * mean_square, 1.0, mean_kinetic, 0, 0)


_UNITS = {"time": "1/omega_p", "dissipation": "normalised energy * omega_p", "seconds": "s"}


def unit_of(column: str) -> str:
    """The unit of a column, in words. Energies are normalised by n̄ m v_th² (v_th/ω_p)^dx, with v_th at T = 1."""
    normalised = "normalised energy" if column.endswith("energy") or column == "objective" else "1"
    return _UNITS.get(column, normalised)


@dataclass(frozen=True)
class Histogram:
    """Phase-space density of (x_i, v_i) over a window, all other coordinates integrated out.

    ``values`` [BINS, BINS] integrates to the mass inside the window; ``x_range`` and ``v_range`` are (low, high).
    """

    axis: int
    values: np.ndarray
    x_range: tuple[float, float]
    v_range: tuple[float, float]


def phase_space_histograms(particles: Particles, problem: Problem, comm: Communicator) -> list[Histogram]:
    """The (x_i, v_i) histograms of all ranks' particles, one per space dimension. Collective."""
    x_ranges, v_ranges = problem.window
    histograms = []
    for axis in range(problem.space_dims):
        counts = torch.zeros(BINS * BINS, dtype=torch.int64, device=particles.x.device)
        for rows in passes(len(particles.x)):
            i, inside_x = _bin(particles.x[rows, axis], x_ranges[axis])
            j, inside_v = _bin(particles.v[rows, axis], v_ranges[axis])
            counts += torch.bincount((i * BINS + j)[inside_x & inside_v], minlength=BINS * BINS)
        total = comm.sum(counts.cpu().numpy()).reshape(BINS, BINS)
        bin_area = np.prod([(high - low) / BINS for low, high in (x_ranges[axis], v_ranges[axis])])
        histograms.append(Histogram(axis, total * particles.weighting / bin_area, x_ranges[axis], v_ranges[axis]))
    return histograms


def _bin(values: torch.Tensor, limits: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = limits
    position = torch.floor((values - low) * (BINS / (high - low)))
    return position.long(), (position >= 0) & (position < BINS)
