"""Particles of unequal weight, and the paper's start from the mesh."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from hpc_kjko.case.config import from_table
from hpc_kjko.files.histograms import marginals, phase_space_histograms
from hpc_kjko.particles.state import Shard, equal_weights
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of


def case_of(count, **sections):
    table = {
        "problem": {"kind": "two_stream", "amplitude": 0.4, "velocity_dims": 2},
        "physics": {"collision_strength": 0.5},
        "particles": {"count": count},
        "grid": {"cells": 16},
        "time": {"step": 0.1, "end": 1.0},
        "method": {"hidden": [8, 8], "precision": "float64", "first_iterations": 6, "iterations": 3, "chunk": 500},
    }
    return from_table({**table, **sections})


@pytest.mark.parametrize(
    ("collision", "solver"), [("jko", "adam"), ("jko", "varpro"), ("jko", "regression"), ("score_matching", "adam")]
)
def test_a_weighted_ensemble_is_the_one_with_its_particles_duplicated(collision, solver, alone):
    """Weights 1, 2, 3 against that many copies: field, objective, every diagnostic, through two whole steps."""
    base = case_of(600)
    method = {**base.method.model_dump(mode="json"), "collision": collision, "solver": solver, "order": 1}
    method["held_out"] = False
    if solver != "adam":
        method |= {"iterations": 0, "first_iterations": 0}  # its hidden steps take folds, which go by rows
    weighted = Simulation.start(case_of(600, method=method), alone)
    copies = 1 + torch.arange(600) % 3
    total = int(copies.sum())
    duplicated = Simulation.start(case_of(total, method=method), alone)
    one, shard = weighted.state.particles, Shard(0, total, total)
    many = {name: getattr(one, name).repeat_interleave(copies, dim=0) for name in ("x", "v", "log_f")}
    weight = copies.double() * (one.total_weight / total)
    for simulation, particles in (
        (weighted, dataclasses.replace(one, has_equal_weights=False, weight=weight)),
        (duplicated, dataclasses.replace(one, **many, weight=equal_weights(one.total_weight, shard), shard=shard)),
    ):
        plasma = plasma_of(particles)
        field = simulation.field_solver.start(plasma)
        simulation.state = dataclasses.replace(simulation.state, species=plasma, field=field)
    for _ in range(2):
        for simulation in (weighted, duplicated):
            simulation.state = simulation.advance()
            simulation.step_index += 1
    first, second = weighted.state, duplicated.state
    assert np.allclose(first.field.electric, second.field.electric, rtol=0, atol=1e-9)  # sums are rounded
    assert torch.allclose(first.particles.v.repeat_interleave(copies, dim=0), second.particles.v, atol=1e-8)
    rows = [measure(simulation.diagnostics, simulation.state, alone) for simulation in (weighted, duplicated)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-8, abs=1e-8)
    assert rows[0]["kl"] > 0.1 and rows[0]["dissipation"] > 0.1
    problem = base.problem
    for pictures in (phase_space_histograms, marginals):
        for a, b in zip(*(pictures(s.particles, problem, alone) for s in (first, second)), strict=True):
            assert np.allclose(a.values, b.values, atol=1e-12)


@pytest.mark.parametrize("start", ["quiet", "random"])
def test_density_weights_carry_the_density_on_uniform_positions(start, alone):
    equal, density = (
        Simulation.start(case_of(2**14, particles={"count": 2**14, "start": start, "weights": weights}), alone).state
        for weights in ("equal", "density")
    )
    particles, length = density.particles, 31.4159265
    assert stats.kstest(particles.x[:, 0].numpy() / length, "uniform").pvalue > 1e-3
    assert float(particles.weight.sum()) == pytest.approx(length, rel=1e-2 if start == "random" else 1e-4)
    mode = [2 * abs(np.fft.rfft(state.field.charge_density)[1]) / 16 for state in (equal, density)]
    smoothing = np.sinc(1 / 16) ** 2  # the shape function's share of the first mode
    assert mode == pytest.approx([0.4 * smoothing] * 2, abs=0.03 if start == "random" else 2e-3)
    # ∫ g over a test function g by importance: Σ w g/f, with log f the density that the weighted particles sample
    g = torch.exp(-0.5 * ((particles.x[:, 0] - 10) ** 2 + particles.v[:, 0] ** 2 + particles.v[:, 1] ** 2))
    estimate = (particles.weight * g / particles.log_f.exp()).sum()
    assert float(estimate) == pytest.approx((2 * np.pi) ** 1.5, rel=0.1)


def test_the_grid_start_fills_cells_by_their_mass_and_evenly(alone):
    """The paper's start: cells by inverse transform of the mesh's mass function, uniform jitter inside each."""
    problem = {"kind": "two_stream", "amplitude": 0.4, "space_dims": 2, "velocity_dims": 2, "length": [8.0, 4.0]}
    case = case_of(40_000, problem=problem, particles={"count": 40_000, "start": "grid"}, grid={"cells": [8, 4]})
    particles = Simulation.start(case, alone).state.particles
    x = particles.x.numpy()
    found = np.histogram2d(x[:, 0], x[:, 1], bins=[8, 4], range=[[0, 8], [0, 4]])[0].ravel()
    centres = np.stack(np.meshgrid(np.arange(8) + 0.5, np.arange(4) + 0.5, indexing="ij"), -1).reshape(-1, 2)
    mass = case.problem.spatial_density(centres)
    assert stats.chisquare(found, 40_000 * mass / mass.sum()).pvalue > 1e-3
    inside = np.modf(x)[0]
    for axis in range(2):
        assert stats.kstest(inside[:, axis], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(inside.T)[0, 1]) < 0.02
    assert abs(np.corrcoef(x[:, 0], particles.v[:, 0].numpy())[0, 1]) < 0.02
    expected = case.problem.log_density(particles.x, particles.v, 1.0)
    assert torch.equal(particles.log_f, expected)
