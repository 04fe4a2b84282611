"""Builds the objects of a run from its case. The objects themselves do not know the case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpc_kjko import usercode
from hpc_kjko.case.config import Case
from hpc_kjko.case.sections import Physics
from hpc_kjko.collisions import CollisionSettings
from hpc_kjko.errors import UserError
from hpc_kjko.fields.ampere import AmpereSolver, ConservingAmpereSolver
from hpc_kjko.fields.base import FieldSolver
from hpc_kjko.fields.drive import Drive, UsersField, WaveField
from hpc_kjko.fields.external import ExternalSolver
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.operators import OPERATORS, Landau, Operator
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import BLOCK, Particles, Shard, draw, uniform_points
from hpc_kjko.problems import PeriodicWave, Problem
from hpc_kjko.problems.density import Density
from hpc_kjko.species import ONLY, Species


@dataclass(frozen=True)
class SpeciesPart:
    """A species and its start.

    Attributes:
        name, charge, mass: as in :class:`~hpc_kjko.species.Species`.
        start: the initial density.
        temperature: T/m of the velocity directions for which the start has no distribution of its own.
        count: number of particles of all ranks.
        seed: seed of their positions and velocities.
    """

    name: str
    charge: float
    mass: float
    start: Problem
    temperature: float
    count: int
    seed: int


@dataclass(frozen=True)
class SpeciesPlan(SpeciesPart):
    """A species with the settings of its collisions.

    Attributes:
        collision: the settings of the collision step.
    """

    collision: CollisionSettings

    def species(self, particles: Particles) -> Species:
        """The species with the given particles."""
        return Species(self.name, self.charge, self.mass, particles)

    def drawn(self, case: Case, comm: Communicator) -> Species:
        """The species at t = 0, with the particles of this rank."""
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
    """The species of a case, with their collisions. Collective.

    Raises:
        UserError: on all ranks, if an operator needs a temperature but the start has none.
    """
    with comm.together():
        plasma = species_of(case)
        return tuple(
            SpeciesPlan(**vars(one), collision=_collision_settings(case, grid, one, number, operator))
            for number, (one, operator) in enumerate(zip(plasma, operators_of(case, plasma), strict=True))
        )


def species_of(case: Case) -> list[SpeciesPart]:
    """The species of a case and their starts."""
    particles = case.particles
    if not case.species:
        one = case.problem, case.physics.temperature, particles.count, particles.seed
        return [SpeciesPart(ONLY, 1.0, 1.0, *one)]
    return [
        SpeciesPart(
            name, one.charge, one.mass, one.start, one.temperature / one.mass, one.count, seed_of(particles.seed, name)
        )
        for name, one in case.species.items()
    ]


def seed_of(seed: int, name: str) -> int:
    """The seed of one of several species. It depends only on the name of the species and on ``particles.seed``."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def collision_strength(case: Case) -> float:
    """κ, in ω_p; 0 in a run without collisions."""
    return case.physics.collision_strength if case.method.collision != "none" else 0.0


def exact_solution(case: Case) -> Callable[[float], Density] | None:
    """The exact density as a function of time; None if it is not known."""

    def exact(time: float) -> Density:
        density = case.problem.exact(time, collision_strength(case), case.physics.temperature)
        assert density is not None  # if it is known at one time, it is known at all times
        return density

    if any(case.physics.magnetic_field) or case.physics.drive is not None:
        return None
    if case.physics.field != "external" or case.problem.exact(0.0, 0.0, case.physics.temperature) is None:
        return None
    return exact


def _collision_settings(
    case: Case, grid: Grid | None, species: SpeciesPart, number: int, operator: Operator
) -> CollisionSettings:
    """The settings of the collision step of one species, on the mesh of the case."""
    wave_vector: tuple[float, ...] | None = None
    start = species.start
    if isinstance(start, PeriodicWave) and case.particles.start == "quiet" and operator.frame == "bath":
        # a random start is too noisy for this correction, and collisions in the local frame do not change a wave
        wave_vector = tuple(float(k) for k in start.wave_vector)
    return CollisionSettings(
        operator=operator,
        problem=start,
        exact=exact_solution(case),
        mass=species.mass,
        number=number,
        method=case.method,
        velocity_matching=case.velocity_matching,
        count=species.count,
        seed=species.seed,
        control_variate=case.particles.control_variate,
        wave_vector=wave_vector,
        grid=grid,
        end=case.time.end,
        steps=case.time.steps,
        reproducible=case.run.reproducible,
    )


def operators_of(case: Case, plasma: Sequence[SpeciesPart]) -> list[Operator]:
    """The collision operator of each species. In the local frame velocities are in units of the start's thermal speed.

    Raises:
        UserError: the velocities of a start are all equal.
    """
    physics = case.physics
    if OPERATORS[physics.collision_operator] is Landau:
        return _landau(physics, plasma)
    found = []
    for one in plasma:
        settings = case.species[one.name] if case.species else physics
        kind = OPERATORS[settings.collision_operator]
        local = kind.frame == "local"
        temperature = _own_temperature(one, settings.collision_operator) if local else one.temperature
        found.append(kind(settings.collision_strength, temperature))
    return found


def _landau(physics: Physics, plasma: Sequence[SpeciesPart]) -> list[Operator]:
    """Coulomb collisions between all species.

    The relaxation rate of species a is Σ_b C_ab n_b/m_a² z^(γ + 2)/Θ_a. Here z² = ½(Θ_a + Θ_b), and Θ is the variance
    of a velocity component. For one species with n = m = 1 the rate is C Θ^(γ/2).
    """
    settings, pairs = physics.landau, physics.landau.pairs or {}
    unit = [_own_temperature(one, physics.collision_operator) for one in plasma]
    density = [one.start.mass / math.prod(one.start.periods or (1.0,)) for one in plasma]
    found: list[Operator] = []
    for a, one in enumerate(plasma):
        factors, rate = [], 0.0
        for b, other in enumerate(plasma):
            given = [pairs.get(f"{x}-{y}") for x, y in ((one.name, other.name), (other.name, one.name))]
            own = next((strength for strength in given if strength is not None), None)
            of_charges = physics.collision_strength * one.charge**2 * other.charge**2
            factors.append(of_charges if own is None else own)
            speed = math.sqrt(0.5 * (unit[a] + unit[b]))
            rate += factors[b] * density[b] / one.mass**2 * speed ** (settings.exponent + 2) / unit[a]
        found.append(Landau(rate, unit[a], settings.exponent, settings.block, tuple(factors)))
    return found


def _own_temperature(species: SpeciesPart, operator: str) -> float:
    """The variance of a velocity component at the start, averaged over all directions.

    Raises:
        UserError: all velocities are equal.
    """
    start = species.start
    points = uniform_points("quiet", 0, 0, BLOCK, start.space_dims + start.velocity_dims)
    temperature = float(start.sample(points, species.temperature)[1].var(axis=0).mean())
    if not temperature > 0:
        raise UserError(
            f'physics.collision_operator = "{operator}" needs a start with a temperature, but all its velocities are '
            "equal: give a start whose velocities differ"
        )
    return temperature


def grid_of(case: Case) -> Grid | None:
    """The mesh of a case; None if the case has none."""
    mesh, torus, walls = case.grid, case.problem.torus, case.problem.walls
    if not mesh or not torus:
        return None
    doubled = walls.axes if walls else (False,) * len(torus)
    cells = tuple(2 * number if wall else number for number, wall in zip(mesh.cells, doubled, strict=True))
    return Grid(cells, torus, mesh.shape_order)


def drive_of(case: Case, comm: Communicator) -> Drive | None:
    """The driven field of a case; None if the case has none. Collective.

    Raises:
        UserError: on all ranks, if the user's own field cannot be loaded.
    """
    settings = case.physics.drive
    if settings is None:
        return None
    if isinstance(settings, str):
        with comm.together():
            given, function = f'physics.drive = "{settings}"', usercode.load(settings, "physics.drive")
            if not callable(function):
                raise UserError(f"{given}: it must be a function E(x, t), but it is a {type(function).__name__}")
            field = UsersField(function, given)
            field(torch.zeros(2, case.problem.space_dims, dtype=torch.float64), 0.0)  # fail before any file is written
            return Drive(field, comm)
    mode = (*settings.mode, *[0] * (case.problem.space_dims - len(settings.mode)))
    k = tuple(2 * math.pi * number / length for number, length in zip(mode, case.problem.torus or (), strict=True))
    until = math.inf if settings.until is None else settings.until
    return Drive(WaveField(settings.amplitude, k, settings.frequency, settings.rise, until), comm)


def field_solver_of(case: Case, grid: Grid | None, comm: Communicator) -> FieldSolver[Any]:
    """The field solver that the case asks for, on its mesh."""
    solver = _field_solver(case, grid, comm)
    solver.magnetic_field = case.physics.magnetic_field if any(case.physics.magnetic_field) else None
    return solver


def _field_solver(case: Case, grid: Grid | None, comm: Communicator) -> FieldSolver[Any]:
    physics = case.physics
    if physics.field == "external":
        return ExternalSolver(case.problem, comm)
    assert grid is not None and case.grid is not None  # ensured by hpc_kjko.case.config
    variate = ControlVariate(physics.temperature, comm) if case.particles.control_variate else None
    unit = UNIT if case.run.reproducible else 0.0
    if physics.field == "poisson":
        return PoissonSolver(grid, comm, case.grid.solver, variate, unit, case.problem.walls)
    assert case.grid.solver != "distributed"
    ampere = ConservingAmpereSolver if case.time.energy_conserving else AmpereSolver
    return ampere(grid, comm, case.grid.solver, physics.initial_field, variate, unit)
