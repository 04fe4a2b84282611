"""The diagnostics of a run: the columns of its time series, and how they are measured.

Each diagnostic adds up a sum on each rank. One allreduce per step adds the sums of all diagnostics over the ranks. To
add a diagnostic, write a class with ``columns``, ``local`` and ``finish``, and one line in :func:`series_diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from hpc_kjko.case.config import Case
from hpc_kjko.collisions import Collision, CollisionReport, PairCollision
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.fields.ampere import AmpereSolver
from hpc_kjko.fields.base import FieldSolver
from hpc_kjko.fields.external import ExternalSolver
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.files.column_units import unit_of
from hpc_kjko.operators import OPERATORS
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

#: Columns of certified steps, and columns of steps that fit a density to log f.
_CERTIFICATE = (
    "certificate",
    *(f"collision_free_energy{of}" for of in ("", "_error", "_total", "_total_error")),
)
_FITTED_LOG_F = ("log_f_residual", "log_f_moved", "entropy_moved_total")


def series_diagnostics(
    case: Case, plans: Sequence[SpeciesPlan], steps: Sequence[Collision], field_solver: FieldSolver[Any]
) -> list[Diagnostic]:
    """The diagnostics of the time series, in the order of its columns.

    Columns that need log f are left out if the collisions do not carry it. Columns that need a known density are left
    out if none is known. With several species the totals come first, then the columns of each species.

    Args:
        case: the case.
        plans: the species.
        steps: the collision step of each species.
        field_solver: the field solver of the run.
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
    if len(plans) > 1:  # the wave is that of the first species that starts with one
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
        # with collisions between species, one species may gain what another loses, so a certificate of one means
        # nothing
        own += _of_species(plan, step, field_solver, [], certified=not isinstance(step, PairCollision))
        diagnostics += [OfSpecies(number, plan.name, diagnostic) for diagnostic in own]
    return diagnostics


def _of_all_collisions(plans: Sequence[SpeciesPlan], steps: Sequence[Collision]) -> list[Diagnostic]:
    """The collision columns of all species together, with the same names as for one species."""
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
    """Whether the collisions of all species lower one common quantity.

    It is the free energy, or ∫f log f if one operator acts between all species."""
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
    """The diagnostics of one species.

    Args:
        plan: the species.
        step: its collision step.
        field_solver: the field solver of the run.
        of_field: diagnostics of the field, which stand between the columns of the species.
        certified: whether held-out particles certify the steps of this species alone.
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
    """One row of the time series, equal on every rank, with one allreduce. Collective."""
    with comm.together():  # a potential of the user's may raise an error on one rank only
        shares = [diagnostic.local(state) for diagnostic in diagnostics]
    sums = np.split(comm.sum(np.concatenate(shares)), np.cumsum([len(share) for share in shares])[:-1])
    row: dict[str, float] = {}
    for diagnostic, total in zip(diagnostics, sums, strict=True):
        row |= dict(zip(diagnostic.columns, diagnostic.finish(total, state), strict=True))
    return row


def require_finite(row: dict[str, float]) -> None:
    """Stop if a value is not finite. A row is equal on every rank, so all ranks stop together.

    Raises:
        SolverFailure: the message names the column.
    """
    for name, value in row.items():
        if not math.isfinite(value):
            raise SolverFailure(f"{name} is no longer finite: reduce time.step or method.learning_rate")


def initial_report(
    particles: Particles, plan: SpeciesPlan, collision: Collision, comm: Communicator
) -> CollisionReport:
    """The collision columns of a species at t = 0, before any step. They follow exactly from the initial density.

    The dissipation is (m/κ) ∫∫ |u*|² f with u* = −κ (v + Θ ∇v log f0), in the rest frame of the collisions. The
    objective is J(u ≡ 0) = mean ½|v|² in that frame. Both are 0 if the operator is a sum over pairs of particles.
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
    """Check that an external potential is finite at every particle. Collective.

    Raises:
        UserError: on every rank. The message has the first position at which the potential is not finite.
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


def units_of(columns: Iterable[str], case: Case) -> dict[str, str]:
    """The units of the columns of a run, in symbols."""
    dims, units = len(case.problem.periods or ()), {}
    of_all = case.collision_operators[0]
    for column in columns:
        of = next((name for name in case.species if column.startswith(f"{name}_")), "")
        alone = of and len(case.collision_operators) == len(case.species)
        operator = case.species[of].collision_operator if alone else of_all
        units[column] = unit_of(column.removeprefix(f"{of}_"), dims, OPERATORS[operator].frame == "bath")
    return units
