"""What is measured along a run: the columns of the time series.

A diagnostic adds up this rank's share; all shares travel in one allreduce a step. A new one is a class with
``columns``, ``local`` and ``finish``, and one line in :func:`series_diagnostics`.

Normalisation: mean density 1 in a periodic box (∫f = V), ∫f = 1 in unbounded space. Units ω_p = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hpc_kjko.collisions import Collision, CollisionReport
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control_variate import ControlVariate
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.exact import counts, summed, summed_finely
from hpc_kjko.fields import AmpereSolver, ExternalField, ExternalSolver, FieldSolver, MeshField, PoissonSolver
from hpc_kjko.histograms import MARGINAL_BINS, coordinates, local_marginals, marginal_errors
from hpc_kjko.mesh import Grid
from hpc_kjko.operators import OPERATORS, Operator
from hpc_kjko.particles import Particles, passes_over
from hpc_kjko.problems import PeriodicWave, Problem
from hpc_kjko.problems.density import Density, GaussianDensity


@dataclass(frozen=True)
class State:
    """Everything known at one time level t^n: particles, the field of those very positions, the last collision."""

    time: float
    particles: Particles
    field: MeshField | ExternalField
    collision: CollisionReport


class Diagnostic(Protocol):
    """Some columns of the time series."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        ...

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
        particles, share = state.particles, state.particles.shares()
        number, momentum = 0.0, np.zeros((2, particles.v.shape[1]))
        for rows in passes_over(particles.v):
            weight = share[rows]
            number += float(counts(weight, particles.shard.total).sum())
            momentum += summed_finely(weight[:, None] * particles.v[rows].double()).cpu().numpy()
        return np.append(number, momentum)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        field = state.field
        particles = state.particles
        if isinstance(field, MeshField):
            mass = float(field.density.sum()) * field.grid.cell_volume
        else:
            mass = particles.mass * float(sums[0]) / particles.shard.total
        momentum = sums[1:].reshape(2, -1).sum(0)
        return mass, *map(float, particles.mass * momentum)


class Energies:
    """Kinetic ∫½|v|² f, field ½∫|E|² dx, potential ∫φ f of an external φ; where log f is tracked, entropy ∫ f log f
    and, in a bath, the free energy F = kinetic + field + potential + T · entropy (the paper's discrete energy, eq. 39).

    Args:
        temperature: T of the bath; None without one.
    """

    def __init__(self, problem: Problem, temperature: float | None, tracks_log_f: bool):
        self.problem, self.temperature = problem, temperature
        self.columns: tuple[str, ...] = ("kinetic_energy", "field_energy", "potential_energy")
        if tracks_log_f:
            self.columns += ("entropy",) if temperature is None else ("entropy", "free_energy")

    def local(self, state: State) -> np.ndarray:
        particles, share, sums = state.particles, state.particles.shares(), np.zeros(3)
        external = isinstance(state.field, ExternalField)
        for rows in passes_over(particles.x):
            weight = share[rows]
            sums[0] += 0.5 * float(summed(weight * (particles.v[rows].double() ** 2).sum(1)))
            if external:
                sums[1] += float(summed(weight * self.problem.potential(particles.x[rows]).double()))
            sums[2] += float(summed(weight * particles.log_f[rows].double()))
        return sums

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        kinetic, potential, entropy = map(float, state.particles.mass * sums)
        energies = (kinetic, state.field.energy, potential)
        free_energy = sum(energies) + (self.temperature or 0.0) * entropy
        return (*energies, entropy, free_energy)[: len(self.columns)]


class RelativeEntropy:
    """KL divergence from the equilibrium: the ensemble mean of log f − log f∞, by the tracked log-density."""

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
    """L¹ distance of each coordinate's marginal from that of the known density: the exact one at this time where the
    problem has it, else the equilibrium's. Histograms of MARGINAL_BINS bins over the window, and what lies outside."""

    def __init__(self, problem: Problem, known: Callable[[float], Density]):
        self.problem, self.known = problem, known
        self.columns = tuple(f"marginal_l1_{kind}_{axis + 1}" for kind, axis in coordinates(problem))

    def local(self, state: State) -> np.ndarray:
        return local_marginals(state.particles, self.problem).ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        parts = sums.reshape(-1, MARGINAL_BINS) / state.particles.shard.total
        return marginal_errors(parts, self.problem, self.known(state.time))


class MomentErrors:
    """Distance of the particles' mean and covariance of (x, v) from the exact ones, in the max norm."""

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
    """½∫|E|² dx of the wave that the problem is about, cos(k·x) and sin(k·x): without the noise of other modes."""

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
        return (self.volume * float(np.sum(np.abs(amplitude) ** 2)),)


class GaussLaw:
    """max |∇·E − (n − n̄)| of a field that is carried along in time."""

    columns = ("gauss_residual",)

    def __init__(self, solver: AmpereSolver):
        self.solver = solver

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        assert isinstance(state.field, MeshField)
        return (self.solver.gauss_residual(state.field),)


class WeightNoise:
    """The control variate of the particles as they are: the part of the density that it knows, ∫ β f_M dv / n̄, and the
    mean square of the weights, which is what it leaves of the field energy of independent particles' noise."""

    columns = ("control_variate_beta", "weight_variance")

    def __init__(self, variate: ControlVariate):
        self.variate = variate

    def local(self, state: State) -> np.ndarray:
        return self.variate.moments(state.particles).ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        beta = self.variate.least_noise(sums.reshape(4, -1))
        return beta.mean(state.particles.v.shape[1]), beta.weight_variance


class CollisionStep:
    """What the collision step reports of itself."""

    def __init__(self, *columns: str):
        self.columns = columns

    def local(self, state: State) -> np.ndarray:
        return np.zeros(0)

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        return tuple(float(getattr(state.collision, name)) for name in self.columns)


def collision_strength(case: Case) -> float:
    """κ; 0 in a run without collisions."""
    return case.physics.collision_strength if case.method.collision != "none" else 0.0


def exact_solution(case: Case) -> Callable[[float], Density] | None:
    """The exact density at a time, where it is known."""

    def exact(time: float) -> Density:
        density = case.problem.exact(time, collision_strength(case), case.physics.temperature)
        assert density is not None  # known at one time, known at all
        return density

    if case.physics.field != "external" or case.problem.exact(0.0, 0.0, case.physics.temperature) is None:
        return None
    return exact


def series_diagnostics(case: Case, collision: Collision, field_solver: FieldSolver[Any]) -> list[Diagnostic]:
    """The diagnostics of the time series, in the order of its columns.

    Columns that a run cannot have are left out: those of log f where the collisions do not track it, those of a known
    density where none is known.
    """
    problem, strength = case.problem, collision_strength(case)
    conserving = OPERATORS[case.physics.collision_operator].frame == "local"
    exact = exact_solution(case)
    equilibrium = case.equilibrium()
    diagnostics: list[Diagnostic] = [
        Invariants(problem.velocity_dims),
        Energies(problem, None if conserving else case.physics.temperature, collision.tracks_log_f),
    ]
    if collision.tracks_log_f and equilibrium is not None:
        diagnostics.append(RelativeEntropy(equilibrium))
    if exact is not None:
        diagnostics.append(MarginalErrors(problem, exact))
        if isinstance(exact(0.0), GaussianDensity):
            diagnostics.append(MomentErrors(exact))
    elif equilibrium is not None:
        diagnostics.append(MarginalErrors(problem, lambda time: equilibrium))
    if isinstance(field_solver, PoissonSolver) and isinstance(problem, PeriodicWave):
        diagnostics.append(WaveEnergy(field_solver.grid, problem.wave_vector))
    if isinstance(field_solver, AmpereSolver):
        diagnostics.append(GaussLaw(field_solver))
    if isinstance(field_solver, PoissonSolver) and field_solver.variate:
        diagnostics += [WeightNoise(field_solver.variate), CollisionStep("collision_field_energy")]
    if collision.has_control:
        diagnostics.append(CollisionStep("dissipation", *(["drift_error"] if exact and strength else [])))
        diagnostics.append(CollisionStep("min_eigenvalue", "objective", "inner_iterations", "substeps", "retries"))
    diagnostics.append(CollisionStep("collision_energy", "collision_energy_total"))
    if conserving:
        diagnostics.append(CollisionStep("sparse_nodes"))
    if collision.fits_log_f:
        diagnostics.append(CollisionStep("log_f_residual", "log_f_moved", "entropy_moved_total"))
        if collision.held_out:
            diagnostics.append(CollisionStep("disagreement", "disagreement_error"))
    if collision.held_out:
        free_energy = "collision_free_energy"
        totals = (f"{free_energy}_total", f"{free_energy}_total_error")
        diagnostics.append(CollisionStep("certificate", free_energy, f"{free_energy}_error", *totals))
    if collision.sees_wave:
        diagnostics.append(CollisionStep("wave_error"))
    return diagnostics


def measure(diagnostics: list[Diagnostic], state: State, comm: Communicator) -> dict[str, float]:
    """One row of the time series, the same on every rank, by one allreduce."""
    with comm.together():  # a potential of the user's may fail on one rank only
        shares = [diagnostic.local(state) for diagnostic in diagnostics]
    sums = np.split(comm.sum(np.concatenate(shares)), np.cumsum([len(share) for share in shares])[:-1])
    row: dict[str, float] = {}
    for diagnostic, total in zip(diagnostics, sums, strict=True):
        row |= dict(zip(diagnostic.columns, diagnostic.finish(total, state), strict=True))
    return row


def require_finite(row: dict[str, float]) -> None:
    """Stop on a state that is not finite; a row is the same on every rank, so all of them stop.

    Raises:
        SolverFailure: naming the quantity.
    """
    for name, value in row.items():
        if not math.isfinite(value):
            raise SolverFailure(f"{name} is no longer finite: reduce time.step or method.learning_rate")


def initial_report(
    particles: Particles, case: Case, operator: Operator, collision: Collision, comm: Communicator
) -> CollisionReport:
    """The collision columns at t = 0, where no step has been made: exact, from the initial density.

    The dissipation is (1/κ) ∫∫ |u*|² f with u* = −κ (v + T ∇v log f0), in the rest frame of the collisions; the
    objective is J(u ≡ 0) = mean ½|v|² there.
    """
    velocity, unit = collision.rest_frame(particles)
    square, kinetic = 0.0, 0.0
    share = particles.shares()
    with comm.together():
        for rows in passes_over(particles.x):
            x, v = particles.x[rows], particles.v[rows].detach().requires_grad_()
            with torch.enable_grad():
                log_density = case.problem.log_density(x, v, case.physics.temperature)
                (score,) = torch.autograd.grad(log_density.sum(), v)
            mean, scale = (part[rows] if isinstance(part, torch.Tensor) else part for part in (velocity, unit))
            at_rest = (v.detach() - mean) / scale
            drag = at_rest + operator.temperature * scale * score
            square += float(summed(share[rows] * (drag.double() ** 2).sum(1)))
            kinetic += 0.5 * float(summed(share[rows] * (at_rest.double() ** 2).sum(1)))
    mean_square, mean_kinetic = map(float, comm.sum(np.array([square, kinetic])))
    dissipation = collision_strength(case) * particles.mass * mean_square
    if operator.frame == "local":
        dissipation /= operator.temperature
    return CollisionReport(dissipation, 1.0, mean_kinetic, 0, 0, drift_error=0.0)


def require_finite_potential(field_solver: FieldSolver, particles: Particles, comm: Communicator) -> None:
    """Check an external potential at every particle. Collective.

    Raises:
        UserError: on every rank, with the first position at which it is not finite.
    """
    if not isinstance(field_solver, ExternalSolver):
        return
    with comm.together():
        for rows in passes_over(particles.x):
            bad = ~torch.isfinite(field_solver.problem.potential(particles.x[rows]))
            if bad.any():
                where = ", ".join(f"{coordinate:.6g}" for coordinate in particles.x[rows][bad][0].tolist())
                raise UserError(
                    f"problem.potential is not finite at the particle at x = ({where}): give a potential that is "
                    "finite wherever particles start"
                )
        ExternalField(field_solver.problem).acceleration(particles.x)


_UNITS = {"time": "1/omega_p", "dissipation": "normalised energy * omega_p", "seconds": "s"}


def unit_of(column: str) -> str:
    """The unit of a column, in words. Energies are normalised by n̄ m v_th² (v_th/ω_p)^dx, with v_th at T = 1."""
    normalised = "normalised energy" if "energy" in column or column == "objective" else "1"
    return _UNITS.get(column.partition("_")[0] if column.startswith("seconds") else column, normalised)
