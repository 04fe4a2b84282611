"""The collision step in whole runs: the exact Gaussian solution, the grid solver, and steps that fail."""

import math

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.solvers.adam import AdamSolver
from hpc_kjko.reference.gaussian import gaussian_moments
from hpc_kjko.reference.grid_1d1v import solve
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation


def moments(state):
    z = torch.cat([state.particles.x, state.particles.v], dim=1).numpy()
    return z.mean(0), np.cov(z.T, bias=True)


@pytest.mark.parametrize(("order", "integrator"), [(1, "euler"), (1, "verlet"), (2, "euler"), (2, "verlet")])
def test_order_of_a_whole_step_on_the_gaussian(order, integrator, alone):
    """E1 with the affine minimiser in closed form, fitted to all particles. Their moments obey the moment equations
    from their own start: no sampling error. Slope 1 for Lie with backward Euler, 2 for Strang with midpoint."""
    errors = []
    for step in (0.2, 0.1, 0.05):
        case = from_table(
            {
                "problem": {"kind": "gaussian"},
                "physics": {"collision_strength": 1.0},
                "particles": {"count": 512},
                "time": {"step": step, "end": 2.0, "integrator": integrator},
                "method": {
                    **{"solver": "varpro", "hidden": [], "order": order},
                    **{"held_out": False, "precision": "float64"},
                },
            }
        )
        simulation = Simulation.start(case, alone)
        mean, covariance = moments(simulation.state)
        for _ in range(case.time.steps):
            simulation.state = simulation.advance()
        exact_mean, exact_covariance = gaussian_moments(mean, covariance, [[1.0]], 1.0, 1.0, [2.0])
        mean, covariance = moments(simulation.state)
        errors.append(max(np.abs(mean - exact_mean[-1]).max(), np.abs(covariance - exact_covariance[-1]).max()))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert slopes == pytest.approx([order] * 2, abs=0.25)


def test_gaussian_in_three_dimensions_follows_its_exact_moments_and_entropy(alone):
    """Adam, tanh-free affine field, non-diagonal stiffness: moments and tracked entropy to the first-order error."""
    covariance = 0.5 * np.eye(6) + 0.05
    table = {
        "problem": {
            "kind": "gaussian",
            "space_dims": 3,
            "stiffness": [[1.0, 0.2, 0.0], [0.2, 1.5, 0.1], [0.0, 0.1, 0.8]],
            "mean": [0.5, 0.0, -0.5, 0.2, 0.0, 0.0],
            "covariance": covariance.tolist(),
        },
        "physics": {"collision_strength": 1.0},
        "particles": {"count": 4096},
        "time": {"step": 0.05, "end": 1.0},
        "method": {"hidden": [], "first_iterations": 300, "iterations": 60, "order": 2},
    }
    case = from_table(table)
    simulation = Simulation.start(case, alone)
    for _ in range(case.time.steps):
        simulation.state = simulation.advance()
    means, covariances = gaussian_moments(case.problem.mean, covariance, case.problem.stiffness, 1.0, 1.0, [0.0, 1.0])
    mean, sample_covariance = moments(simulation.state)
    assert np.abs(mean - means[-1]).max() < 0.02
    assert np.abs(sample_covariance - covariances[-1]).max() < 0.03
    row = measure(simulation.diagnostics, simulation.state, alone)
    exact_entropy = -0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariances[-1])[1]
    assert row["entropy"] == pytest.approx(exact_entropy, abs=0.02)
    assert row["mass"] == 1.0


def two_stream_density(x, v):
    beams = sum(np.exp(-0.5 * (v - drift) ** 2) for drift in (2.4, -2.4)) / (2 * math.sqrt(2 * math.pi))
    return (1 + 0.005 * np.cos(2 * np.pi * x / 31.4159265)) * beams


def test_collisional_two_stream_against_the_grid_solver(alone):
    """κ = 0.01 to t = 10, a small version of scripts/validate.py: energies, entropy, dissipation."""
    table = {
        "problem": {"kind": "two_stream"},
        "particles": {"count": 2**15, "seed": 1},
        "grid": {"cells": 32, "shape_order": 2},
        "time": {"step": 0.1, "end": 10.0},
    }
    simulation = Simulation.start(from_table(table), alone)
    reference = solve(two_stream_density, 31.4159265, 0.01, 1.0, 10.0, 0.1, cells=(32, 256))
    rows = [measure(simulation.diagnostics, simulation.state, alone)]
    for _ in range(100):
        simulation.state = simulation.advance()
        rows.append(measure(simulation.diagnostics, simulation.state, alone))
    measured = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name, tolerance in [("kinetic_energy", 1e-3), ("entropy", 1e-3), ("free_energy", 2e-3)]:
        assert np.abs(measured[name] / getattr(reference, name) - 1).max() < tolerance, name
    difference = measured["field_energy"] - reference.field_energy
    assert np.linalg.norm(difference) < 0.10 * np.linalg.norm(reference.field_energy)
    assert measured["field_energy"][-1] == pytest.approx(reference.field_energy[-1], rel=0.15)
    rate = np.gradient(reference.free_energy, 0.1)  # the paper's dissipation identity: dF/dt = −dissipation
    assert np.abs(measured["dissipation"] + rate)[1:-1].mean() < 0.015 * measured["dissipation"].max()


def test_kappa_zero_is_no_collision_step(alone):
    simulation = Simulation.start(
        from_table(
            {"problem": {"kind": "two_stream"}, "physics": {"collision_strength": 0.0}, "particles": {"count": 100}}
        ),
        alone,
    )
    state = simulation.advance()
    assert torch.equal(state.particles.log_f, simulation.state.particles.log_f)
    row = measure(simulation.diagnostics, state, alone)
    assert row["collision_energy"] == 0.0
    assert row.keys().isdisjoint({"dissipation", "min_eigenvalue", "inner_iterations"})  # there is no map to speak of


def overshoot(factor):
    """A minimiser that answers u = −factor · v whatever is asked: I + h ∇v u = 1 − h · factor."""

    def minimise(solver, data, step, stiffer=0):
        with torch.no_grad():
            for parameter in solver.trainer.parameters.values():
                parameter.zero_()
            solver.trainer.parameters["layers.0.weight"][:, -1] = -factor(step)
        return 1

    return minimise


AFFINE = {
    "problem": {"kind": "gaussian"},
    "physics": {"collision_strength": 1.0},
    "particles": {"count": 64},
    "method": {"solver": "adam", "hidden": []},
}


def test_a_step_that_is_not_invertible_is_split_and_says_so(alone, monkeypatch):
    """u = −15 v: 1 − 15 h is −½ for the whole step of 0.1 and +¼ for each half."""
    simulation = Simulation.start(from_table(AFFINE), alone)
    monkeypatch.setattr(AdamSolver, "minimise", overshoot(lambda step: 15.0))
    state = simulation.advance()
    assert state.collision.substeps == 2 and state.collision.retries == 1
    assert state.collision.inner_iterations == 2 + 1 + 1  # twice in one piece, then once in each half
    assert state.collision.min_eigenvalue == pytest.approx(0.25)
    change = state.particles.log_f - simulation.state.particles.log_f
    assert torch.allclose(change, torch.full_like(change, 2 * math.log(4.0)), atol=1e-5)


def test_a_field_that_is_never_invertible_ends_in_advice_and_leaves_the_state(alone, monkeypatch):
    simulation = Simulation.start(from_table(AFFINE), alone)
    before = simulation.state.particles
    monkeypatch.setattr(AdamSolver, "minimise", overshoot(lambda step: 2.0 / step))
    with pytest.raises(SolverFailure, match=r"not invertible .* reduce time.step"):
        simulation.advance()
    assert simulation.state.particles is before


@pytest.mark.parametrize("strength", [2.0, 5.0])
def test_the_default_stays_at_equilibrium_with_stiff_collisions(strength, alone):
    """κh = 0.2 and 0.5: from 3/κ on no step is split, and log f stays smooth. A ψ that follows the roughness of log f
    makes more of it in every step, until all steps are in 64 pieces."""
    case = from_table(
        {
            "problem": {"kind": "two_stream", "length": 31.4159265, "beam_velocity": 2.4, "amplitude": 0.005},
            "physics": {"collision_strength": strength},
            "particles": {"count": 2048},
            "grid": {"cells": 64},
            "time": {"step": 0.1, "end": 2.5},
        }
    )
    simulation = Simulation.start(case, alone)
    for step in range(case.time.steps):
        simulation.state, simulation.step_index = simulation.advance(), step + 1
        report = simulation.state.collision
        if simulation.time > 3 / strength:
            assert report.substeps == 1 and report.log_f_residual < 0.02 and report.min_eigenvalue > 0.8
    row = simulation._row(simulation.state, case.time.steps, 0.0)
    assert abs(row["kl"]) < 0.02 * math.exp(-2 * strength * 2.5) + 1.5e-3
