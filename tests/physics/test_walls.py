"""Walls that reflect: the mirrored periodic run has the same particles, standing waves, images of charges."""

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.reference.grid_1d1v import GridSpecies, solve_species
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of
from hpc_kjko.walls import Walls


def table_of(**sections):
    problem = {"kind": "landau_damping", "amplitude": 0.2, "boundary": "insulating", **sections.pop("problem", {})}
    return {
        "problem": problem,
        "particles": {"count": 4096, **sections.pop("particles", {})},
        "grid": {"cells": 16, **sections.pop("grid", {})},
        "time": {"step": 0.1, "end": 10.0, **sections.pop("time", {})},
        "method": {"collision": "none", **sections.pop("method", {})},
        **sections,
    }


def density_of(problem):
    """f0(x, v) of a problem in 1D1V, as the grid solver takes it."""

    def density(x, v):
        x, v = np.broadcast_arrays(x, v)
        columns = (torch.from_numpy(np.ascontiguousarray(part).reshape(-1, 1)) for part in (x, v))
        return np.exp(problem.log_density(*columns, 1.0).numpy()).reshape(x.shape)

    return density


def mirrored(particles, lengths, axes):
    """The particles and their images about the walls of some axes, in a box twice as long along these."""
    for axis in axes:
        x, v = particles.x.clone(), particles.v.clone()
        x[:, axis], v[:, axis] = 2 * lengths[axis] - x[:, axis], -v[:, axis]
        shard = Shard(0, 2 * particles.shard.total, 2 * particles.shard.total)
        total = 2 * particles.total_weight
        periods = tuple(2 * length if i == axis else length for i, length in enumerate(particles.periods))
        particles = Particles(
            torch.cat([particles.x, x]),
            torch.cat([particles.v, v]),
            torch.cat([particles.log_f] * 2),
            equal_weights(total, shard),
            shard,
            total,
            periods,
        )
    return particles


@pytest.mark.parametrize(
    ("dims", "boundary", "axes"),
    [(1, ["insulating"], [0]), (2, ["insulating", "periodic"], [0]), (2, ["insulating"], [0, 1])],
)
def test_the_mirrored_periodic_run_has_the_same_particles(dims, boundary, axes, alone):
    """100 steps without collisions, to round-off; particles have turned back many times."""
    lengths = (6.0, 5.0)[:dims]
    walls = table_of(
        problem={"space_dims": dims, "velocity_dims": dims, "length": list(lengths), "boundary": boundary},
        grid={"cells": 8},
        run={"reproducible": False},
    )
    box = Simulation.start(from_table(walls), alone)
    doubled = [2 * length if axis in axes else length for axis, length in enumerate(lengths)]
    cells = [16 if axis in axes else 8 for axis in range(dims)]
    torus_table = table_of(
        problem={"space_dims": dims, "velocity_dims": dims, "length": doubled, "boundary": "periodic"},
        grid={"cells": cells},
        run={"reproducible": False},
    )
    torus = Simulation.start(from_table(torus_table), alone)
    start = box.state.particles
    plain = Particles(start.x, start.v, start.log_f, start.weight, start.shard, start.total_weight, tuple(lengths))
    plasma = plasma_of(mirrored(plain, lengths, axes))
    torus.state = type(torus.state)(0.0, plasma, torus.field_solver.start(plasma), torus.state.collisions)
    for _ in range(100):
        box.state, torus.state = box.advance(), torus.advance()
        box.step_index, torus.step_index = box.step_index + 1, torus.step_index + 1
    ours, theirs = box.state.particles, torus.state.particles
    count = start.shard.total
    x, v = theirs.x[:count].clone(), theirs.v[:count].clone()
    turned = torch.zeros(count, dtype=torch.bool)
    for axis in axes:
        beyond = x[:, axis] > lengths[axis]
        x[:, axis] = torch.where(beyond, 2 * lengths[axis] - x[:, axis], x[:, axis])
        v[:, axis] = torch.where(beyond, -v[:, axis], v[:, axis])
        turned |= beyond
    assert 0.2 < turned.double().mean() < 0.9
    assert float((ours.x - x).abs().max()) < 1e-10 and float((ours.v - v).abs().max()) < 1e-10
    assert torch.equal(ours.log_f, start.log_f)
    assert box.state.field.energy == pytest.approx(torus.state.field.energy / 2 ** len(axes), rel=1e-10)


def test_energy_and_number_are_kept_and_momentum_is_not(alone):
    box = Simulation.start(from_table(table_of(problem={"kind": "maxwellian", "mean_velocity": 0.5})), alone)
    rows = rows_to_the_end(box)
    assert np.ptp(rows["mass"]) < 1e-9 * rows["mass"][0] and rows["mass"][0] == pytest.approx(4 * np.pi)
    total = rows["kinetic_energy"] + rows["field_energy"]
    assert np.ptp(total) < 2e-3 * total[0]
    assert np.ptp(rows["momentum_1"]) > 0.5  # walls take it
    x = box.state.particles.x
    assert float(x.min()) >= 0 and float(x.max()) <= 4 * np.pi


@pytest.mark.parametrize("boundary", ["insulating", "conducting"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_uniform_plasma_makes_no_field_and_a_charge_sees_its_images(boundary, order, alone):
    """φ = 0 on conductors, no normal field on insulators; the field of a sheet of charge is the exact one."""
    length, cells = 4.0, 32
    walls = Walls((True,), boundary == "conducting")
    grid = Grid((2 * cells,), (2 * length,), order)
    solver = PoissonSolver(grid, alone, walls=walls)

    def field_of(x):
        count = len(x)
        shard = Shard(0, count, count)
        rows = torch.zeros(count, 1, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        particles = Particles(
            torch.as_tensor(x)[:, None], *rows, equal_weights(length, shard), shard, length, (2 * length,), walls=walls
        )
        return solver.start(plasma_of(particles))

    even = (np.arange(4096) + 0.5) * length / 4096
    assert np.abs(field_of(even).electric).max() < 1e-6
    at = 1.3
    electric = walls.inside(field_of(np.full(64, at)).electric)[:, 0]
    nodes = (np.arange(cells) + 0.5) * length / cells
    away = np.abs(nodes - at) > 3 * length / cells
    away[[0, -1]] = False
    # E' = ρ − 1 for a sheet of charge L: insulators E(0) = 0; conductors ∫E dx = 0
    jump = np.where(nodes > at, length, 0.0) - nodes
    offset = 0.0 if boundary == "insulating" else -(length * (length - at) - 0.5 * length**2) / length
    assert np.abs(electric - jump - offset)[away].max() < 0.04 * length  # the spectral derivative rings at a jump


def test_collisions_between_walls_reach_the_thermal_state(alone):
    """From beams, with a bath, as on the grid, every step certified: so log f stays what it is in a reflection."""
    table = table_of(
        problem={"kind": "two_stream", "length": 6.0, "beam_velocity": 1.5, "thermal_speed": 0.6, "amplitude": 0.1},
        physics={"collision_strength": 0.5},
        time={"step": 0.1, "end": 6.0},
        particles={"count": 8192},
    )
    table["method"] = {}
    case = from_table(table)
    rows = rows_to_the_end(Simulation.start(case, alone))
    assert abs(rows["kl"][-1]) < 0.02 < 0.5 < rows["kl"][0]
    assert (rows["kl"] > -0.001).all()
    beams = GridSpecies(density_of(case.problem), collision_strength=0.5, velocity_cells=256)
    grid = solve_species([beams], 6.0, 6.0, 0.05, cells_x=32, walls=True)
    for name, wanted, error in (
        ("field_energy", grid.field_energy, 0.01),
        ("kinetic_energy", grid.kinetic_energy[0], 0.001),
        ("entropy", grid.entropy[0], 0.001),
    ):
        assert np.linalg.norm(rows[name] - wanted[::2]) < error * np.linalg.norm(wanted[::2]), name
    assert (rows["certificate"][1:] >= 0).all() and (rows["certificate"][1:20] == 1).all()
    assert rows["temperature_1"][-1] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"physics": {"field": "ampere"}}, 'walls needs physics.field = "poisson"'),
        ({"physics": {"collision_operator": "dougherty"}}, 'walls needs collision_operator = "bath"'),
        ({"problem": {"boundary": ["insulating", "periodic"]}}, "problem.boundary has 2 entries"),
        ({"problem": {"boundary": "open"}}, "problem.boundary"),
        (
            {"problem": {"boundary": ["insulating", "conducting"], "space_dims": 2, "velocity_dims": 2}},
            'walls are all "insulating" or all "conducting"',
        ),
        (
            {"problem": {"velocity_dims": 2}, "physics": {"magnetic_field": [0.0, 0.0, 1.0]}},
            "walls needs no physics.magnetic_field",
        ),
    ],
)
def test_walls_that_cannot_be_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        from_table(table_of(**changes))
