"""Without collisions: energy over ten thousand steps, momentum, charge, log f; on one rank, in float64."""

import numpy as np
import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.push.integrators import SymplecticMap, composition
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

PLASMA = {
    "problem": {"kind": "landau_damping", "amplitude": 0.2},
    "particles": {"count": 1024},
    "grid": {"cells": 16, "shape_order": 2},
}
OSCILLATOR = {"problem": {"kind": "gaussian", "stiffness": 1.0}, "particles": {"count": 64}}


def series(case_table, comm, steps, every=1, **sections):
    """Measured rows of a collisionless run, after every so many steps."""
    case = from_table({**case_table, "method": {"collision": "none"}, **sections})
    simulation = Simulation.start(case, comm)
    if every > 1:  # many steps: without the stage of collisions, which only measures, and what is on both sides as one
        push = SymplecticMap(1, tuple(stage for stage in simulation.stages if stage.action != "collide"))
        simulation.stages = composition(push, (1.0,), 1).stages
    rows = [measure(simulation.diagnostics, simulation.state, comm)]
    for step in range(steps):
        simulation.state = simulation.advance()
        if (step + 1) % every == 0:
            rows.append(measure(simulation.diagnostics, simulation.state, comm))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def total_energy(rows):
    return rows["kinetic_energy"] + rows["field_energy"] + rows["potential_energy"]


@pytest.mark.parametrize(("integrator", "bound"), [("euler", 0.12), ("verlet", 0.008)])
def test_the_energy_error_of_an_oscillator_stays_bounded_over_ten_thousand_steps(integrator, bound, alone):
    rows = series(OSCILLATOR, alone, 10_000, every=25, time={"step": 0.2, "end": 2.0, "integrator": integrator})
    error = np.abs(total_energy(rows) / total_energy(rows)[0] - 1)
    assert error[:40].max() > 0.1 * bound  # there is an error to be bounded
    assert error.max() < bound
    assert error[-40:].max() < 1.02 * error[:40].max()


@pytest.mark.parametrize(("integrator", "bound"), [("euler", 6e-3), ("verlet", 6e-3)])
def test_the_energy_error_of_a_plasma_stays_bounded_over_ten_thousand_steps(integrator, bound, alone):
    rows = series(PLASMA, alone, 10_000, every=25, time={"step": 0.1, "end": 1.0, "integrator": integrator})
    error = np.abs(total_energy(rows) / total_energy(rows)[0] - 1)
    assert error.max() < bound
    # 1024 particles are chaotic: how far the error wanders differs from one rounding to the next
    assert error[-40:].max() < 4 * error[:40].max()


@pytest.mark.parametrize(("integrator", "order", "expected"), [("euler", 1, 1), ("verlet", 1, 2), ("euler", 2, 2)])
def test_the_energy_error_has_the_order_of_the_map(integrator, order, expected, alone):
    """The largest error over a fixed time, halving the step: in the plasma's own field, on a mesh that resolves it."""
    table = {**PLASMA, "particles": {"count": 4096}, "grid": {"cells": 32, "shape_order": 2}}
    errors = []
    for step in (0.2, 0.1, 0.05):
        rows = series(
            table,
            alone,
            round(8 / step),
            time={"step": step, "end": 8.0, "integrator": integrator},
            method={"collision": "none", "order": order},
        )
        errors.append(np.abs(total_energy(rows) - total_energy(rows)[0]).max())
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert slopes == pytest.approx([expected] * 2, abs=0.15)


@pytest.mark.parametrize("shape_order", [1, 2])
def test_momentum_charge_and_entropy_are_conserved(shape_order, alone):
    table = {
        **PLASMA,
        "grid": {"cells": 16, "shape_order": shape_order},
        "particles": {"count": 2000, "start": "random"},
    }
    rows = series(table, alone, 300, time={"step": 0.1, "end": 30.0})
    assert np.abs(rows["momentum_1"] - rows["momentum_1"][0]).max() < 1e-10
    assert np.abs(rows["mass"] / rows["mass"][0] - 1).max() < 1e-12
    assert (rows["entropy"] == rows["entropy"][0]).all()  # the push does not touch log f
    assert rows["field_energy"].std() > 1e-3 * rows["kinetic_energy"][0]  # something happened


def test_three_dimensions_conserve_as_one_does(alone):
    table = {
        "problem": {"kind": "two_stream", "space_dims": 3, "velocity_dims": 3, "amplitude": 0.2},
        "particles": {"count": 4000},
        "grid": {"cells": [8, 6, 5]},
    }
    rows = series(table, alone, 30, time={"step": 0.1, "end": 3.0})
    for axis in "123":
        drift = np.abs(rows[f"momentum_{axis}"] - rows[f"momentum_{axis}"][0]).max()
        assert drift < 1e-10 * rows["mass"][0]
    assert np.abs(rows["mass"] / rows["mass"][0] - 1).max() < 1e-12
    energy = total_energy(rows)
    assert np.abs(energy / energy[0] - 1).max() < 2e-3
