"""The certificate of a collision step, by sabotage and where it must hold."""

import math

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import CollisionReport
from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.solvers import VarproSolver
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation


def gaussian(width=1.0, strength=1.0, step=0.1, count=4096, **method):
    """E1 at rest in the middle, velocities of a given width: only collisions change the free energy's velocity part."""
    return from_table(
        {
            "problem": {"kind": "gaussian", "mean": [0.0, 0.0], "covariance": [[1.0, 0.0], [0.0, width**2]]},
            "physics": {"collision_strength": strength},
            "particles": {"count": count},
            "time": {"step": step, "end": 10 * step},
            "method": {"solver": "varpro", "hidden": [], **method},
        }
    )


def test_a_step_is_certified_and_its_free_energy_is_the_exact_one(alone):
    """A Gaussian of variance s in v goes to s′ = (1 + h λ)² s, exactly: F changes by ½(s′ − s) − ½T log(s′/s)."""
    simulation = Simulation.start(gaussian(width=1.5), alone)
    pushed = simulation.state.particles.v
    report = simulation.advance().collision
    assert report.certificate == 1 and report.retries == 0 and report.substeps == 1
    assert report.collision_free_energy < -3 * report.collision_free_energy_error < 0
    growth = report.min_eigenvalue  # 1 + h λ, the same at every particle
    assert 0.8 < growth < 1.0
    certified = pushed[7 * 256 : 8 * 256], pushed[15 * 256 : 16 * 256]  # rows of the last fold
    square = float((torch.cat(certified) ** 2).mean())
    assert report.collision_free_energy == pytest.approx(0.5 * (growth**2 - 1) * square - np.log(growth), rel=0.05)


def test_totals_add_up_and_survive_as_columns(alone):
    simulation = Simulation.start(gaussian(width=2.0), alone)
    changes, errors = [], []
    for _ in range(4):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        changes.append(simulation.state.collision.collision_free_energy)
        errors.append(simulation.state.collision.collision_free_energy_error)
    row = measure(simulation.diagnostics, simulation.state, alone)
    assert row["collision_free_energy_total"] == pytest.approx(sum(changes))
    assert row["collision_free_energy_total_error"] == pytest.approx(sum(errors))
    assert row["certificate"] == 1.0


def test_verdicts():
    reports = [
        CollisionReport(0, 1, 0, 0, 1, collision_free_energy=change, collision_free_energy_error=0.1)
        for change in (-0.31, -0.29, 0.29, 0.31)
    ]
    assert [report.certificate for report in reports] == [1, 0, 0, -1]


def test_a_field_of_the_wrong_sign_stops_the_run(alone, monkeypatch):
    """u = +½ v heats what is hot already. The map is invertible: only the certificate can know."""

    def heat(solver, data, step, stiffer=0):
        coefficients = torch.zeros_like(solver.control.coefficients)
        coefficients[0, -2] = 0.5
        solver.control.coefficients = coefficients
        return 1

    simulation = Simulation.start(gaussian(width=1.5), alone)
    before = simulation.state.particles
    monkeypatch.setattr(VarproSolver, "minimise", heat)
    with pytest.raises(
        SolverFailure,
        match=r"free energy of held-out particles rises .* even in 64 pieces: use method.order = 1, .* reduce time",
    ):
        simulation.advance()
    assert simulation.state.particles is before


def test_a_midpoint_step_that_overshoots_is_split(alone):
    """κh = 4 and σ = 2.78: the midpoint map is invertible there but raises F, as from 2.7 on; halves lower it."""
    wide = {"width": 2.78, "strength": 40.0, "order": 2, "count": 2**16}
    report = Simulation.start(gaussian(**wide), alone).advance().collision
    assert report.substeps > 1 and report.retries >= 1 and report.certificate == 1
    first_order = Simulation.start(gaussian(**{**wide, "order": 1}), alone).advance().collision
    assert first_order.substeps == 1 and first_order.certificate == 1


def test_nothing_is_certified_where_nothing_is_held_out(alone):
    simulation = Simulation.start(gaussian(held_out=False), alone)
    assert "certificate" not in measure(simulation.diagnostics, simulation.advance(), alone)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_last_of_a_relaxation_is_not_lost_in_rounding(precision, alone):
    """Variance 1.003 in place of 1, κh = 0.01: the field changes velocities by 3e-5 of themselves, and falls."""
    case = gaussian(width=math.sqrt(1.003), strength=0.1, count=16384, hidden=[8, 8], precision=precision)
    simulation = Simulation.start(case, alone)
    dissipation = []
    for _ in range(6):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        dissipation.append(simulation.state.collision.dissipation)
    assert dissipation[0] == pytest.approx(0.1 * 0.003**2, rel=0.4)
    assert (np.diff(dissipation) < 0).all()


def test_cold_beams_in_three_dimensions(alone):
    """σ² = 0.01 T, κh = 10: −log det is far from convex there; a Newton step that takes its curvature as it is gets
    nowhere."""
    table = {
        "problem": {"kind": "confined", "space_dims": 3, "std_v": 0.1},
        "physics": {"collision_strength": 100.0},
        "particles": {"count": 8192},
        "time": {"step": 0.1, "end": 0.1},
        "method": {"solver": "varpro", "order": 1, "hidden": [16, 16]},
    }
    report = Simulation.start(from_table(table), alone).advance().collision
    assert report.certificate == 1 and report.retries == 0 and report.substeps == 1
    assert report.collision_free_energy < -4.5


@pytest.mark.parametrize(("errors", "refused"), [(2.0, (False, False)), (4.0, (True, False)), (6.0, (True, True))])
def test_a_rise_that_may_be_chance_is_fitted_anew_and_taken(errors, refused, alone):
    """Ten thousand steps near equilibrium have some beyond three standard errors; splitting asks the same particles."""
    collision = Simulation.start(gaussian(width=1.5), alone).collisions[0]
    report = CollisionReport(
        **{"dissipation": 0.0, "min_eigenvalue": 1.0, "objective": 0.0, "inner_iterations": 1, "substeps": 1},
        **{"drift_error": 0.0, "collision_free_energy": 1e-5 * errors, "collision_free_energy_error": 1e-5},
    )
    assert tuple(bool(collision._trouble(report, attempt)) for attempt in range(2)) == refused


def test_few_particles_have_no_certificate(alone):
    report = Simulation.start(gaussian(width=1.5, count=8), alone).advance().collision
    assert report.certificate == 0 and report.collision_free_energy_error == 0.0
