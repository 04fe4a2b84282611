"""Collisions that conserve: against moment and grid solutions, by what they keep, and by sabotage."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.files.checkpoint import load
from hpc_kjko.inner.solvers import RegressionSolver, VarproSolver
from hpc_kjko.reference.grid_1d1v import solve
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of

QUICK = {"hidden": [16, 16]}
HOMOGENEOUS = {"kind": "landau_damping", "amplitude": 0.0, "thermal_speed": 1.6}
BEAMS = {"kind": "two_stream", "amplitude": 0.0}


def case_of(problem, strength, count=8192, step=0.1, field="external", method=QUICK, **sections):
    table = {
        "problem": problem,
        "physics": {"collision_operator": "dougherty", "collision_strength": strength, "field": field},
        "particles": {"count": count},
        "time": {"step": step, "end": 100 * step, **sections.pop("time", {})},
        "method": method,
    }
    return from_table({**table, **sections})


def advanced(case, comm, steps):
    """The simulation after so many steps, and its time series."""
    simulation = Simulation.start(case, comm)
    rows = [measure(simulation.diagnostics, simulation.state, comm)]
    for _ in range(steps):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    return simulation, {name: np.array([row[name] for row in rows]) for name in rows[0]}


TRAINED = {"iterations": 20, "first_iterations": 200, "learning_rate": 1e-2, **QUICK}
METHODS = {
    "varpro": (QUICK, 0.01),
    "varpro, order 1": ({**QUICK, "order": 1}, 0.06),
    "regression": ({**QUICK, "solver": "regression"}, 0.01),
    "adam": ({**TRAINED, "solver": "adam"}, 0.01),
    "score matching": ({**TRAINED, "collision": "score_matching"}, 0.07),
    "langevin": ({"collision": "langevin"}, 0.12),
}


@pytest.mark.parametrize("method", METHODS)
def test_temperatures_become_equal_at_twice_the_collision_strength(method, alone):
    """d(T_1 − T_2)/dt = −2κ (T_1 − T_2) whatever f is; a bi-Maxwellian stays one, so its entropy is known as well.

    First-order methods have an error of κh = 0.05 in the rate, Langevin particles their noise.
    """
    settings, tolerance = METHODS[method]
    steps = 20 if method == "langevin" else 10  # of 0.1: noise is less of a longer decay
    case = case_of({**HOMOGENEOUS, "velocity_dims": 3}, 0.5, method=settings)
    start = Simulation.start(case, alone).state.particles.v.var(0, unbiased=False)
    simulation, series = advanced(case, alone, steps)
    temperatures = simulation.state.particles.v.var(0, unbiased=False).numpy()
    left = (temperatures[0] - temperatures[1:].mean()) / float(start[0] - start[1:].mean())
    assert -math.log(left) / (0.1 * steps) == pytest.approx(1.0, abs=tolerance)
    assert abs(series["kinetic_energy"] - series["kinetic_energy"][0]).max() < 1e-13 * series["kinetic_energy"][0]
    assert abs(series["momentum_2"] - series["momentum_2"][0]).max() < 1e-12
    if "entropy" in series:
        exact = -0.5 * case.problem.mass * np.log(2 * math.pi * math.e * temperatures).sum()
        assert series["entropy"][-1] == pytest.approx(exact, abs=0.015)  # of a fall by 1.7
    if "certificate" in series:
        assert (series["certificate"][1:] >= 0).all()


def test_counter_streams_against_the_grid_solver(alone):
    def density(x, v):
        return 0 * x + sum(np.exp(-0.5 * (v - u) ** 2) for u in (2.4, -2.4)) / (2 * math.sqrt(2 * math.pi))

    simulation, series = advanced(case_of(BEAMS, 0.2), alone, 30)
    reference = solve(
        density,
        *(31.4159265, 0.2, 1.0, 3.0, 0.1),
        **{"cells": (4, 512), "velocity_max": 16.0, "acceleration": np.zeros_like, "collision_operator": "dougherty"},
    )
    assert series["entropy"] == pytest.approx(reference.entropy, abs=0.12)  # of a fall by 8.9
    rate = -np.gradient(reference.entropy, 0.1)[10]
    assert series["dissipation"][10] == pytest.approx(rate, rel=0.15)
    fourth = (reference.final.mean(0) * reference.v**4).sum() * (reference.v[1] - reference.v[0])
    assert float((simulation.state.particles.v**4).mean()) == pytest.approx(fourth, rel=0.005)
    change, error = series["collision_free_energy_total"][-1], series["collision_free_energy_total_error"][-1]
    assert (series["certificate"][1:11] == 1).all()
    assert change == pytest.approx(reference.entropy[-1] - reference.entropy[0], abs=error)


def test_the_reference_with_unit_temperature_at_rest_is_the_bath():
    def density(x, v):
        return 0 * x + sum(np.exp(-0.5 * (v - u) ** 2 / 0.64) for u in (0.6, -0.6)) / (
            2 * math.sqrt(0.64 * 2 * math.pi)
        )

    settings = {"cells": (4, 512), "velocity_max": 10.0, "acceleration": np.zeros_like}
    bath, own = (
        solve(density, 1.0, 0.5, 1.0, 2.0, 0.1, collision_operator=operator, **settings)
        for operator in ("bath", "dougherty")
    )
    assert np.abs(bath.final - own.final).max() < 2e-6


def test_a_drifting_hot_maxwellian_stays_put(alone):
    """No bath pulls it to rest or cools it: what moves particles is what the fit takes for structure."""
    simulation = Simulation.start(case_of(HOMOGENEOUS, 1.0, count=16384), alone)
    particles = simulation.state.particles
    simulation.state = replace(simulation.state, species=plasma_of(replace(particles, v=particles.v + 3.0)))
    start, entropy = simulation.state.particles.v.clone(), float(particles.log_f.mean())
    for _ in range(30):
        simulation.state = simulation.advance()
        simulation.step_index += 1
    moved = simulation.state.particles
    assert float((moved.v - start).square().mean().sqrt()) < 0.03 * 1.6
    assert float(moved.v.mean()) == pytest.approx(float(start.mean()), abs=1e-13)
    assert float(moved.v.var()) == pytest.approx(float(start.var()), rel=1e-13)
    assert float(moved.log_f.mean()) == pytest.approx(entropy, abs=1e-3)


def test_collisional_two_stream_against_the_grid_solver(alone):
    """Self-consistent, local moments; exact energy by Ampère's law. A small ``scripts/validate.py dougherty``."""
    problem = {"kind": "two_stream", "amplitude": 0.03}
    sections = {"grid": {"cells": 32, "shape_order": 2}, "time": {"energy_conserving": True}}
    case = case_of(problem, 0.002, count=16384, field="ampere", method={**QUICK, "iterations": 10}, **sections)
    _, series = advanced(case, alone, 100)

    def density(x, v):
        beams = sum(np.exp(-0.5 * (v - u) ** 2) for u in (2.4, -2.4)) / (2 * math.sqrt(2 * math.pi))
        return (1 + 0.03 * np.cos(2 * math.pi * x / 31.4159265)) * beams

    settings = {"cells": (32, 256), "velocity_max": 16.0, "collision_operator": "dougherty"}
    reference = solve(density, 31.4159265, 0.002, 1.0, 10.0, 0.1, **settings)
    difference = series["field_energy"] - reference.field_energy
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(reference.field_energy)
    assert series["entropy"] == pytest.approx(reference.entropy, rel=5e-4)
    energy = series["kinetic_energy"] + series["field_energy"]
    assert abs(energy - energy[0]).max() < 1e-12 * energy[0]
    assert abs(series["collision_energy"]).max() < 1e-14 * energy[0]
    assert (series["certificate"][1:] == 1).all() and (series["sparse_nodes"] == 0).all()
    assert "free_energy" not in series and "kl" not in series


def profiles(count=16384, strength=10.0, **method):
    """Two warm beams with U = ½ sin kx and Θ ∝ (1 + 0.3 cos kx)²: the simulation, its particles, U and Θ."""
    sections = {"grid": {"cells": 32, "shape_order": 2}}
    case = case_of(
        {"kind": "two_stream", "length": 10.0}, strength, count=count, method={**QUICK, **method}, **sections
    )
    return case


def with_profiles(simulation):
    particles = simulation.state.particles
    phase = 2 * math.pi * particles.x / 10.0
    scale = (1 + 0.3 * torch.cos(phase)) / 2.6
    log_f = particles.log_f - torch.log(scale[:, 0])
    return replace(particles, v=particles.v * scale + 0.5 * torch.sin(phase), log_f=log_f)


@pytest.mark.parametrize("stiffness", [10.0, 100.0])
def test_stiff_collisions_lead_to_the_local_maxwellian(stiffness, alone):
    """κh ≫ 1: the fluid limit, at fixed profiles of U and Θ."""
    sections = {"grid": {"cells": 32, "shape_order": 2}, "method": {"order": 1}}
    case = case_of({"kind": "two_stream", "length": 10.0}, stiffness / 0.1, count=16384, **sections)
    simulation = Simulation.start(case, alone)
    collision, particles = simulation.collisions[0], with_profiles(simulation)
    wanted = collision._moments(particles, collision._totals(particles))
    for index in range(5):
        particles, report = collision.step(particles, 0.1, StepStart(index, 0.1 * index, particles))
        assert report.certificate >= 0 and report.substeps <= 2
    found = collision._moments(particles, collision._totals(particles))
    assert np.abs(found.velocity - wanted.velocity).max() < 2e-3
    assert np.abs(found.temperature / wanted.temperature - 1).max() < 5e-3
    velocity, unit = collision._at(found, particles)
    thermal = unit * collision.temperature**0.5
    peculiar = (particles.v - velocity) / thermal
    assert float((peculiar**4).mean()) == pytest.approx(3.0, abs=0.05)
    log_density = torch.log1p(0.005 * torch.cos(2 * math.pi * particles.x / 10.0)) - torch.log(thermal)
    log_maxwellian = log_density - 0.5 * peculiar**2 - 0.5 * math.log(2 * math.pi)
    assert abs(float((particles.log_f - log_maxwellian[:, 0]).mean())) < 0.01


@pytest.mark.parametrize("problem", [BEAMS, {"kind": "two_stream", "amplitude": 0.3}], ids=["global", "local"])
def test_what_a_step_does_to_momentum_and_energy_is_undone_with_its_determinant(problem, alone, monkeypatch):
    """A method that only shifts and scales the peculiar velocities has done nothing, once they are restored."""
    simulation = Simulation.start(case_of(problem, 1.0, **({} if problem is BEAMS else {"grid": {"cells": 16}})), alone)
    collision, particles = simulation.collisions[0], simulation.state.particles
    inner = collision.method.step

    def shift_and_scale(at_rest, duration, start):
        _, report = inner(at_rest, duration, start)
        return at_rest.move(1.2 * at_rest.v + 0.3, at_rest.log_f - math.log(1.2)), report

    monkeypatch.setattr(collision.method, "step", shift_and_scale)
    moved, report = collision.step(particles, 0.1, StepStart(0, 0.0, particles))
    accuracy = 1e-12 if problem is BEAMS else 0.01
    assert torch.allclose(moved.v, particles.v, atol=accuracy, rtol=0)
    assert torch.allclose(moved.log_f, particles.log_f, atol=accuracy, rtol=0)
    for power in (1, 2):
        assert float((moved.v**power).mean()) == pytest.approx(float((particles.v**power).mean()), abs=1e-13)


@pytest.mark.parametrize(("solver", "kind"), [("varpro", VarproSolver), ("regression", RegressionSolver)])
def test_a_field_of_the_wrong_sign_stops_the_run(solver, kind, alone, monkeypatch):
    """Energy is kept all the same: only ∫f log f can tell."""
    fit = kind.minimise

    def backwards(solver, *arguments):
        made = fit(solver, *arguments)
        solver.control.coefficients = -solver.control.coefficients
        return made

    monkeypatch.setattr(kind, "minimise", backwards)
    simulation = Simulation.start(case_of(BEAMS, 0.2, method={**QUICK, "solver": solver}), alone)
    with pytest.raises(SolverFailure, match="of held-out particles rises"):
        simulation.advance()


def test_a_restart_has_the_same_bits(alone, tmp_path):
    case = case_of({"kind": "two_stream"}, 0.05, count=3000, field="poisson", grid={"cells": 16})
    simulation, _ = advanced(case, alone, 2)
    resumed = Simulation.resume(case, alone, load(simulation.save(tmp_path, {}), alone))
    for each in (simulation, resumed):
        for _ in range(2):
            each.state = each.advance()
            each.step_index += 1
    for name in ("x", "v", "log_f"):
        assert torch.equal(getattr(simulation.state.particles, name), getattr(resumed.state.particles, name))


def test_cells_without_particles_take_the_moments_of_the_whole_box(alone):
    case = case_of({"kind": "two_stream"}, 0.5, count=100, field="poisson", grid={"cells": 64})
    simulation, series = advanced(case, alone, 5)
    assert series["sparse_nodes"][-1] > 0.9
    energy = series["kinetic_energy"]
    collided = series["collision_energy"]
    assert bool(torch.isfinite(simulation.state.particles.v).all()) and abs(collided).max() < 1e-13 * energy[0]


def test_three_dimensions_keep_what_they_must(alone):
    problem = {"kind": "two_stream", "space_dims": 3, "velocity_dims": 3, "amplitude": 0.1}
    case = case_of(problem, 0.1, count=8192, field="poisson", grid={"cells": 4}, method={**QUICK, "iterations": 10})
    _, series = advanced(case, alone, 3)
    assert abs(series["collision_energy"]).max() < 1e-13 * series["kinetic_energy"][0]
    for axis in (1, 2, 3):
        momentum = series[f"momentum_{axis}"]
        assert abs(momentum - momentum[0]).max() < 1e-12 * series["mass"][0]
    assert (np.diff(series["entropy"]) < 0).all()


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"problem": {"kind": "gaussian"}}, 'periodic box, and problem.kind = "gaussian" is unbounded'),
        ({"method": {"form": "nonsplit"}, "time": {"integrator": "euler"}}, 'method.form = "split", not "nonsplit"'),
        ({"particles": {"control_variate": True}}, 'control_variate = true needs physics.collision_operator = "bath"'),
        ({"physics": {"collision_operator": "landau"}}, "physics.collision_operator"),
    ],
)
def test_what_it_cannot_do_is_refused_in_a_sentence(change, advice):
    table = {"problem": {"kind": "two_stream"}, "physics": {"collision_operator": "dougherty"}, **change}
    with pytest.raises(UserError, match=advice):
        from_table(table)


def test_moments_are_local_unless_the_plasma_is_homogeneous():
    dougherty = {"collision_operator": "dougherty", "field": "external"}
    local, whole = (
        from_table({"problem": {"kind": "two_stream", "amplitude": amplitude}, "physics": dougherty}).grid
        for amplitude in (0.1, 0.0)
    )
    assert local.cells == (128,) and whole is None
