"""Columns of the time series. Each class computes a group of columns from sums over the particles of each rank.

Normalisation: ∫f = V (mean density 1) in a periodic box of volume V, and ∫f = 1 in unbounded space. ω_p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from hpc_kjko.fields.ampere import AmpereSolver
from hpc_kjko.fields.base import ExternalField, MeshField
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.files.histograms import MARGINAL_BINS, bins_of_density, coordinates, local_marginals, marginal_errors
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import counts, summed, summed_finely
from hpc_kjko.particles.state import Particles, passes_over
from hpc_kjko.problems import Problem
from hpc_kjko.problems.density import Density, GaussianDensity
from hpc_kjko.running.state import State


class Diagnostic(Protocol):
    """A group of columns of the time series."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        ...

    def local(self, state: State) -> np.ndarray:
        """The contribution of this rank to the sums: a float64 array whose length does not change."""
        ...

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        """The values of the columns, from the sums over all ranks."""
        ...


class Invariants:
    """Mass Σ m ∫f and momentum Σ m ∫ v f. With a mesh the mass is that of the deposited densities.

    A case with one species also has the temperatures m (⟨v_i²⟩ − ⟨v_i⟩²) of all particles, for each direction i.

    Args:
        velocity_dims: number of velocity dimensions.
        of_one: whether the case has one species.
    """

    def __init__(self, velocity_dims: int, of_one: bool):
        self.of_one = of_one
        self.columns: tuple[str, ...] = ("mass", *(f"momentum_{axis + 1}" for axis in range(velocity_dims)))
        if of_one:
            self.columns += tuple(f"temperature_{axis + 1}" for axis in range(velocity_dims))

    def local(self, state: State) -> np.ndarray:
        return np.concatenate([self._sums(one.particles) for one in state.species])

    def _sums(self, particles: Particles) -> np.ndarray:
        share = particles.shares()
        dims = particles.v.shape[1]
        number, momentum, squares = 0.0, np.zeros((2, dims)), np.zeros(dims * self.of_one)
        for rows in passes_over(particles.v):
            weight = share[rows]
            number += float(counts(weight, particles.shard.total).sum())
            carried = weight[:, None] * particles.v[rows].double()
            momentum += summed_finely(carried).cpu().numpy()
            if self.of_one:
                squares += summed(carried * particles.v[rows]).cpu().numpy()
        return np.concatenate([[number], momentum.ravel(), squares])

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        field, mass, momentum = state.field, 0.0, np.zeros(state.species[0].particles.v.shape[1])
        temperatures: list[float] = []
        for number, (one, (counted, *parts)) in enumerate(
            zip(state.species, sums.reshape(len(state.species), -1), strict=True)
        ):
            total = one.particles.total_weight
            if isinstance(field, MeshField):
                mass += one.mass * float(field.densities[number].sum()) * field.node_volume
            else:
                mass += one.mass * total * float(counted) / one.particles.shard.total
            dims = len(momentum)
            means = np.reshape(parts[: 2 * dims], (2, -1)).sum(0)
            momentum += one.mass * total * means
            if self.of_one:
                temperatures = list(map(float, one.mass * (parts[2 * dims :] - means**2)))
        return mass, *map(float, momentum), *temperatures


class Energies:
    """The energies, summed over all species.

    Kinetic energy Σ ∫½m|v|² f, field energy ½∫|E|² dx, and potential energy ∫φ f in an external potential φ. If log f
    is carried, also entropy Σ ∫ f log f. If all species have a bath, also the free energy (the paper's discrete energy,
    eq. 39): kinetic + field + potential + Σ T ∫ f log f.

    Args:
        problem: the problem of the case.
        temperatures: T of the bath of each species; None if a species has no bath.
        tracks_log_f: whether log f is carried.
    """

    def __init__(self, problem: Problem, temperatures: Sequence[float] | None, tracks_log_f: bool):
        self.problem, self.temperatures = problem, temperatures
        self.columns: tuple[str, ...] = ("kinetic_energy", "field_energy", "potential_energy")
        if tracks_log_f:
            self.columns += ("entropy",) if temperatures is None else ("entropy", "free_energy")

    def local(self, state: State) -> np.ndarray:
        external = isinstance(state.field, ExternalField)
        return np.concatenate([self._sums(one.particles, external) for one in state.species])

    def _sums(self, particles: Particles, external: bool) -> np.ndarray:
        share, sums = particles.shares(), np.zeros(3)
        for rows in passes_over(particles.x):
            weight = share[rows]
            sums[0] += 0.5 * float(summed(weight * (particles.v[rows].double() ** 2).sum(1)))
            if external:
                sums[1] += float(summed(weight * self.problem.potential(particles.x[rows]).double()))
            sums[2] += float(summed(weight * particles.log_f[rows].double()))
        return sums

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        kinetic, potential, entropy, heat = 0.0, 0.0, 0.0, 0.0
        for number, (one, parts) in enumerate(zip(state.species, sums.reshape(-1, 3), strict=True)):
            of_kinetic, of_potential, of_entropy = map(float, one.particles.total_weight * parts)
            kinetic, potential = kinetic + one.mass * of_kinetic, potential + of_potential
            entropy += of_entropy
            heat += self.temperatures[number] * of_entropy if self.temperatures else 0.0
        energies = (kinetic, state.field.energy, potential)
        return (*energies, entropy, sum(energies) + heat)[: len(self.columns)]


class SpeciesEnergies:
    """Kinetic energy ∫½m|v|² f of one species and, if log f is carried, its entropy ∫ f log f."""

    def __init__(self, tracks_log_f: bool):
        self.columns = ("kinetic_energy", "entropy")[: 1 + tracks_log_f]

    def local(self, state: State) -> np.ndarray:
        particles, share, sums = state.particles, state.particles.shares(), np.zeros(2)
        for rows in passes_over(particles.x):
            sums[0] += 0.5 * float(summed(share[rows] * (particles.v[rows].double() ** 2).sum(1)))
            sums[1] += float(summed(share[rows] * particles.log_f[rows].double()))
        return sums

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        (one,) = state.species
        kinetic, entropy = map(float, one.particles.total_weight * sums)
        return (one.mass * kinetic, entropy)[: len(self.columns)]


class OfSpecies:
    """A group of columns of one species among several. The column names begin with the name of the species.

    Args:
        number: index of the species.
        name: name of the species.
        diagnostic: the group of columns.
    """

    def __init__(self, number: int, name: str, diagnostic: Diagnostic):
        self.number, self.diagnostic = number, diagnostic
        self.columns = tuple(f"{name}_{column}" for column in diagnostic.columns)

    def local(self, state: State) -> np.ndarray:
        return self.diagnostic.local(state.of(self.number))

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return self.diagnostic.finish(sums, state.of(self.number))


class DriveEnergy:
    """The energy that the driven field has given to the particles since t = 0."""

    columns = ("drive_energy",)

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return (state.drive_energy,)


class RelativeEntropy:
    """KL divergence from the equilibrium f∞: the mean of log f − log f∞ over the particles, with the carried log f."""

    columns = ("kl",)

    def __init__(self, equilibrium: Density):
        self.equilibrium = equilibrium

    def local(self, state: State) -> np.ndarray:
        particles, total = state.particles, 0.0
        share = particles.shares()
        for rows in passes_over(particles.x):
            log_equilibrium = self.equilibrium.log_density(particles.x[rows], particles.v[rows])
            total += float(summed(share[rows] * (particles.log_f[rows] - log_equilibrium).double()))
        return np.array([total])

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return (float(sums[0]),)


class MarginalErrors:
    """L¹ distance between the marginal of each coordinate and that of a known density.

    The known density is the exact solution at this time, or else the equilibrium. The distance is computed from
    histograms of MARGINAL_BINS bins over the window, and includes the mass outside the window."""

    def __init__(self, problem: Problem, known: Callable[[float], Density]):
        self.problem, self.known = problem, known
        self.columns = tuple(f"marginal_l1_{kind}_{axis + 1}" for kind, axis in coordinates(problem))
        self._latest: tuple[Density, list[np.ndarray]] | None = None

    def local(self, state: State) -> np.ndarray:
        return local_marginals(state.particles, self.problem).ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        parts = sums.reshape(-1, MARGINAL_BINS) / state.particles.shard.total
        known = self.known(state.time)
        if self._latest is None or self._latest[0] is not known:  # the equilibrium is the same in all rows
            self._latest = known, bins_of_density(self.problem, known)
        return marginal_errors(parts, self._latest[1])


class MomentErrors:
    """Error of the mean and of the covariance of (x, v), in the max norm. The exact moments are known."""

    columns = ("mean_error", "covariance_error")

    def __init__(self, exact: Callable[[float], Density]):
        self.exact = exact

    def local(self, state: State) -> np.ndarray:
        particles = state.particles
        dims = particles.x.shape[1] + particles.v.shape[1]
        first, second = np.zeros(dims), np.zeros((dims, dims))
        share = particles.shares()
        for rows in passes_over(particles.x):
            z = torch.cat([particles.x[rows], particles.v[rows]], dim=1).double()
            weighted = share[rows, None] * z
            first += summed(weighted).cpu().numpy()
            second += summed((weighted[:, :, None] * z[:, None, :]).flatten(1)).view(dims, dims).cpu().numpy()
        return np.concatenate([first, second.ravel()])

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        exact = self.exact(state.time)
        assert isinstance(exact, GaussianDensity)
        dims = len(exact.mean)
        mean = sums[:dims]
        covariance = sums[dims:].reshape(dims, dims) - np.outer(mean, mean)
        return float(np.abs(mean - exact.mean).max()), float(np.abs(covariance - exact.covariance).max())


class WaveEnergy:
    """Field energy ½∫|E|² dx of the wave of the problem, cos(k·x) and sin(k·x), without the noise of other modes."""

    columns = ("wave_energy",)

    def __init__(self, grid: Grid, wave_vector: np.ndarray):
        centres = [(np.arange(cells) + 0.5) * spacing for cells, spacing in zip(grid.cells, grid.spacing, strict=True)]
        phase = sum(k * x for k, x in zip(wave_vector, np.meshgrid(*centres, indexing="ij"), strict=True))
        self.wave = np.exp(-1j * phase)[..., None] / phase.size
        self.volume = math.prod(grid.lengths)

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        assert isinstance(state.field, MeshField)
        amplitude = (self.wave * state.field.electric).reshape(-1, state.field.electric.shape[-1]).sum(0)
        part = state.field.walls.part if state.field.walls else 1.0
        return (part * self.volume * float(np.sum(np.abs(amplitude) ** 2)),)


class GaussLaw:
    """max |∇·E − (ρ − ρ̄)| for a field that Ampère's law advances in time."""

    columns = ("gauss_residual",)

    def __init__(self, solver: AmpereSolver):
        self.solver = solver

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        assert isinstance(state.field, MeshField)
        return (self.solver.gauss_residual(state.field),)


class WeightNoise:
    """The quality of the control variate: ∫ β f_M dv / n̄, the known fraction of n, and the mean square weight.

    The mean square weight is the factor by which the control variate multiplies the noise of the field energy of
    independent particles."""

    columns = ("control_variate_beta", "weight_variance")

    def __init__(self, variate: ControlVariate):
        self.variate = variate

    def local(self, state: State) -> np.ndarray:
        return self.variate.moments(state.particles).ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        beta = self.variate.least_noise(sums.reshape(4, -1))
        return beta.mean(state.particles.v.shape[1]), beta.weight_variance


class CollisionStep:
    """The quantities that the collision step reports."""

    def __init__(self, *columns: str):
        self.columns = columns

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return tuple(float(getattr(state.collision, name)) for name in self.columns)
