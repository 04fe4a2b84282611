"""What is measured along a run: which columns its time series has, and how they are measured.

A diagnostic adds up this rank's share; all shares travel in one allreduce a step. A new one is a class with
``columns``, ``local`` and ``finish``, and one line in :func:`series_diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpc_kjko.case.config import Case
from hpc_kjko.collisions import Collision, CollisionReport, PairCollision
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.fields.ampere import AmpereSolver
from hpc_kjko.fields.base import ExternalField, FieldSolver
from hpc_kjko.fields.external import ExternalSolver
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import summed
from hpc_kjko.particles.state import Particles, passes_over
from hpc_kjko.problems import PeriodicWave
from hpc_kjko.problems.density import GaussianDensity
from hpc_kjko.running.assembly import SpeciesPlan
from hpc_kjko.running.columns import (
    CollisionStep,
    Diagnostic,
    DriveEnergy,
    Energies,
    GaussLaw,
    Invariants,
    MarginalErrors,
    MomentErrors,
    OfSpecies,
    RelativeEntropy,
    SpeciesEnergies,
    WaveEnergy,
    WeightNoise,
)
from hpc_kjko.running.state import State
from hpc_kjko.species import Plasma

#: Columns of a step that is certified, and of one that fits a density to log f.
_CERTIFICATE = (
    "certificate",
    *(f"collision_free_energy{of}" for of in ("", "_error", "_total", "_total_error")),
)
_FITTED_LOG_F = ("log_f_residual", "log_f_moved", "entropy_moved_total")


def series_diagnostics(
    case: Case, plans: Sequence[SpeciesPlan], steps: Sequence[Collision], field_solver: FieldSolver[Any]
) -> list[Diagnostic]:
    """The diagnostics of the time series, in the order of its columns.

    Columns that a run cannot have are left out: those of log f where the collisions do not track it, those of a known
    density where none is known. With several species there are totals first, then the columns of each species.

    Args:
        plans, steps: of each species, and its collision step.
    """
    problem = case.problem
    in_baths = all(plan.collision.operator.frame == "bath" for plan in plans)
    diagnostics: list[Diagnostic] = [
        Invariants(problem.velocity_dims, of_one=len(plans) == 1),
        Energies(
            problem,
            [plan.mass * plan.collision.operator.temperature for plan in plans] if in_baths else None,
            all(step.tracks_log_f for step in steps),
        ),
    ]
    of_field: list[Diagnostic] = []
    waves = [plan.start for plan in plans if isinstance(plan.start, PeriodicWave)]
    if len(plans) > 1:  # of those that start with one, the first
        waves = [start for start in waves if not start.is_homogeneous]
    if isinstance(field_solver, PoissonSolver | AmpereSolver) and waves:
        of_field.append(WaveEnergy(field_solver.grid, waves[0].wave_vector))
    if isinstance(field_solver, AmpereSolver):
        of_field.append(GaussLaw(field_solver))
    if case.physics.drive is not None:
        of_field.append(DriveEnergy())
    if len(plans) == 1:
        return diagnostics + _of_species(plans[0], steps[0], field_solver, of_field, certified=True)
    diagnostics += [*of_field, *_of_all_collisions(plans, steps)]
    for number, (plan, step) in enumerate(zip(plans, steps, strict=True)):
        own: list[Diagnostic] = [Invariants(problem.velocity_dims, of_one=True), SpeciesEnergies(step.tracks_log_f)]
        # of particles that meet all others, what one species loses another may gain
        own += _of_species(plan, step, field_solver, [], certified=not isinstance(step, PairCollision))
        diagnostics += [OfSpecies(number, plan.name, diagnostic) for diagnostic in own]
    return diagnostics


def _of_all_collisions(plans: Sequence[SpeciesPlan], steps: Sequence[Collision]) -> list[Diagnostic]:
    """What the collisions of several species did together, under the names that one species has for it."""
    found: list[Diagnostic] = [CollisionStep("collision_energy", "collision_energy_total")]
    if any(step.has_control for step in steps):
        found.append(CollisionStep("min_eigenvalue", "inner_iterations", "substeps", "retries"))
    elif any(step.fits_log_f for step in steps):
        found.append(CollisionStep("inner_iterations", "substeps"))
    if any(step.fits_log_f for step in steps):
        found.append(CollisionStep(*_FITTED_LOG_F))
    if _one_falls(plans) and any(step.held_out for step in steps):
        found.append(CollisionStep(*_CERTIFICATE))
    if any(step.sees_wave for step in steps):
        found.append(CollisionStep("wave_error"))
    return found


def _one_falls(plans: Sequence[SpeciesPlan]) -> bool:
    """Whether there is one quantity of all species that collisions lower: free energy, or ∫f log f where all collide
    with all."""
    operators = [plan.collision.operator for plan in plans]
    return all(one.frame == "bath" for one in operators) or all(one.sums_pairs for one in operators)


def _of_species(
    plan: SpeciesPlan,
    step: Collision,
    field_solver: FieldSolver[Any],
    of_field: list[Diagnostic],
    *,
    certified: bool,
) -> list[Diagnostic]:
    """What is measured of one species.

    Args:
        of_field: what is measured of the field, and stands among it.
        certified: whether its own collisions lower what held-out particles certify.
    """
    problem, settings = plan.start, plan.collision
    conserving, exact = settings.operator.frame == "local", settings.exact
    equilibrium = None if conserving else problem.equilibrium(plan.temperature)
    diagnostics: list[Diagnostic] = []
    if step.tracks_log_f and equilibrium is not None:
        diagnostics.append(RelativeEntropy(equilibrium))
    if exact is not None:
        diagnostics.append(MarginalErrors(problem, exact))
        if isinstance(exact(0.0), GaussianDensity):
            diagnostics.append(MomentErrors(exact))
    elif equilibrium is not None:
        diagnostics.append(MarginalErrors(problem, lambda time: equilibrium))
    diagnostics += of_field
    if isinstance(field_solver, PoissonSolver) and field_solver.variate:
        diagnostics += [WeightNoise(field_solver.variate), CollisionStep("collision_field_energy")]
    if step.has_control:
        diagnostics.append(CollisionStep("dissipation", *(["drift_error"] if exact else [])))
        diagnostics.append(CollisionStep("min_eigenvalue", "objective", "inner_iterations", "substeps", "retries"))
    elif step.fits_log_f:
        diagnostics.append(CollisionStep("inner_iterations", "substeps"))
    diagnostics.append(CollisionStep("collision_energy", "collision_energy_total"))
    if conserving:
        diagnostics.append(CollisionStep("sparse_nodes"))
    if step.fits_log_f:
        diagnostics.append(CollisionStep(*_FITTED_LOG_F))
        if step.held_out:
            diagnostics.append(CollisionStep("disagreement", "disagreement_error"))
    if step.held_out and certified:
        diagnostics.append(CollisionStep(*_CERTIFICATE))
    if step.sees_wave:
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
    particles: Particles, plan: SpeciesPlan, collision: Collision, comm: Communicator
) -> CollisionReport:
    """The collision columns of a species at t = 0, where no step has been made: exact, from the initial density.

    The dissipation is (m/κ) ∫∫ |u*|² f with u* = −κ (v + Θ ∇v log f0), in the rest frame of the collisions; the
    objective is J(u ≡ 0) = mean ½|v|² there. Both are 0 where the operator is a sum over pairs of particles.
    """
    velocity, unit = collision.rest_frame(particles)
    square, kinetic = 0.0, 0.0
    operator, share = plan.collision.operator, particles.shares()
    with comm.together():
        for rows in passes_over(particles.x):
            x, v = particles.x[rows], particles.v[rows].detach().requires_grad_()
            with torch.enable_grad():
                log_density = plan.start.log_density(x, v, plan.temperature)
                (score,) = torch.autograd.grad(log_density.sum(), v)
            mean, scale = (part[rows] if isinstance(part, torch.Tensor) else part for part in (velocity, unit))
            at_rest = (v.detach() - mean) / scale
            drag = at_rest + operator.temperature * scale * score
            square += float(summed(share[rows] * (drag.double() ** 2).sum(1)))
            kinetic += 0.5 * float(summed(share[rows] * (at_rest.double() ** 2).sum(1)))
    mean_square, mean_kinetic = map(float, comm.sum(np.array([square, kinetic])))
    strength = operator.collision_strength if plan.collision.method.collision != "none" else 0.0
    dissipation = strength * plan.mass * particles.total_weight * mean_square
    if operator.frame == "local":
        dissipation /= plan.mass * operator.temperature
    if operator.sums_pairs:
        dissipation, mean_kinetic = 0.0, 0.0
    return CollisionReport(dissipation, 1.0, mean_kinetic, 0, 0, drift_error=0.0)


def require_finite_potential(field_solver: FieldSolver, plasma: Plasma, comm: Communicator) -> None:
    """Check an external potential at every particle. Collective.

    Raises:
        UserError: on every rank, with the first position at which it is not finite.
    """
    if not isinstance(field_solver, ExternalSolver):
        return
    with comm.together():
        particles = plasma[0].particles
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
    if column.endswith("_dissipation"):
        column = "dissipation"  # of a species
    is_energy = "energy" in column or column.endswith("objective") or "temperature" in column
    normalised = "normalised energy" if is_energy else "1"
    return _UNITS.get(column.partition("_")[0] if column.startswith("seconds") else column, normalised)
