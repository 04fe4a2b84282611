"""The objects of a run, made from its case. What is built here knows nothing of a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hpc_kjko.collisions import CollisionSettings
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control_variate import ControlVariate
from hpc_kjko.errors import UserError
from hpc_kjko.exact import UNIT
from hpc_kjko.fields import AmpereSolver, ConservingAmpereSolver, ExternalSolver, FieldSolver, PoissonSolver
from hpc_kjko.mesh import Grid
from hpc_kjko.operators import OPERATORS
from hpc_kjko.particles import BLOCK, Particles, Shard, draw, uniform_points
from hpc_kjko.problems import PeriodicWave, Problem
from hpc_kjko.problems.density import Density
from hpc_kjko.species import ONLY, Species


@dataclass(frozen=True)
class SpeciesPlan:
    """What a case has for one species.

    Attributes:
        name, charge, mass: as in :class:`~hpc_kjko.species.Species`.
        start: its initial density.
        temperature: T/m at which the velocity directions without a structure of their own start.
        count: particles of all ranks; seed: of their positions and velocities.
        collision: what its collision step is made from.
    """

    name: str
    charge: float
    mass: float
    start: Problem
    temperature: float
    count: int
    seed: int
    collision: CollisionSettings

    def species(self, particles: Particles) -> Species:
        """The species with these particles."""
        return Species(self.name, self.charge, self.mass, particles)

    def drawn(self, case: Case, comm: Communicator) -> Species:
        """The species as it starts, on this rank."""
        settings = case.particles
        particles = draw(
            self.start,
            Shard.of(self.count, comm.rank, comm.size),
            start=settings.start,
            weights=settings.weights,
            cells=case.grid.cells if case.grid else None,
            seed=self.seed,
            temperature=self.temperature,
            dtype=getattr(torch, settings.precision),
            device=comm.device,
        )
        return self.species(particles)


def plans_of(case: Case, grid: Grid | None, comm: Communicator) -> tuple[SpeciesPlan, ...]:
    """The species of a case, on its mesh. Collective.

    Raises:
        UserError: on all ranks, where an operator needs a temperature that the start does not have.
    """
    settings = collision_settings(case, grid, comm)
    temperature, particles = case.physics.temperature, case.particles
    only = SpeciesPlan(ONLY, 1.0, 1.0, case.problem, temperature, particles.count, particles.seed, settings)
    return (only,)


def collision_strength(case: Case) -> float:
    """κ; 0 in a run without collisions."""
    return case.physics.collision_strength if case.method.collision != "none" else 0.0


def exact_solution(case: Case) -> Callable[[float], Density] | None:
    """The exact density at a time, where it is known."""

    def exact(time: float) -> Density:
        density = case.problem.exact(time, collision_strength(case), case.physics.temperature)
        assert density is not None  # known at one time, known at all
        return density

    if any(case.physics.magnetic_field):
        return None
    if case.physics.field != "external" or case.problem.exact(0.0, 0.0, case.physics.temperature) is None:
        return None
    return exact


def collision_settings(case: Case, grid: Grid | None, comm: Communicator) -> CollisionSettings:
    """What a case has for its collision step, on its mesh. Collective.

    Raises:
        UserError: on all ranks, where the operator needs a temperature that the start does not have.
    """
    physics, problem = case.physics, case.problem
    kind, temperature = OPERATORS[physics.collision_operator], physics.temperature
    if kind.frame == "local":
        with comm.together():
            temperature = _initial_temperature(case)
    wave_vector: tuple[float, ...] | None = None
    if isinstance(problem, PeriodicWave) and case.particles.start == "quiet" and kind.frame == "bath":
        # a random start is too noisy for a wave, and in the local frame collisions exchange nothing with one
        wave_vector = tuple(float(k) for k in problem.wave_vector)
    return CollisionSettings(
        operator=kind(physics.collision_strength, temperature),
        problem=problem,
        exact=exact_solution(case),
        mass=1.0,
        method=case.method,
        velocity_matching=case.velocity_matching,
        count=case.particles.count,
        seed=case.particles.seed,
        control_variate=case.particles.control_variate,
        wave_vector=wave_vector,
        grid=grid,
        end=case.time.end,
        steps=case.time.steps,
        reproducible=case.run.reproducible,
    )


def _initial_temperature(case: Case) -> float:
    """|v − U|²/dv of the initial density, from some of its quiet points: a unit, the same in every part of a run."""
    problem = case.problem
    points = uniform_points("quiet", 0, 0, BLOCK, problem.space_dims + problem.velocity_dims)
    temperature = float(problem.sample(points, case.physics.temperature)[1].var(axis=0).mean())
    if not temperature > 0:
        raise UserError(
            f'physics.collision_operator = "{case.physics.collision_operator}" needs a plasma with a temperature, and '
            "all velocities of this problem's start are alike"
        )
    return temperature


def grid_of(case: Case) -> Grid | None:
    """The mesh of a case, if it has one."""
    mesh, periods = case.grid, case.problem.periods
    return Grid(mesh.cells, periods, mesh.shape_order) if mesh and periods else None


def field_solver_of(case: Case, grid: Grid | None, comm: Communicator) -> FieldSolver[Any]:
    """The field solver that a case asks for, on its mesh."""
    solver = _field_solver(case, grid, comm)
    solver.magnetic_field = case.physics.magnetic_field if any(case.physics.magnetic_field) else None
    return solver


def _field_solver(case: Case, grid: Grid | None, comm: Communicator) -> FieldSolver[Any]:
    physics = case.physics
    if physics.field == "external":
        return ExternalSolver(case.problem, comm)
    assert grid is not None and case.grid is not None  # config has seen to it
    variate = ControlVariate(physics.temperature, comm) if case.particles.control_variate else None
    unit = UNIT if case.run.reproducible else 0.0
    if physics.field == "poisson":
        return PoissonSolver(grid, comm, case.grid.solver, variate, unit)
    assert case.grid.solver != "distributed"
    ampere = ConservingAmpereSolver if case.time.energy_conserving else AmpereSolver
    return ampere(grid, comm, case.grid.solver, physics.initial_field, variate, unit)
