"""The Stein control variate: no bias, far less noise, not ruined by particles whose log f went wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpc_kjko.case import config
from hpc_kjko.fields.ampere import AmpereSolver
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.files.checkpoint import load
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.operators import Bath
from hpc_kjko.particles.control_variate import NEAR, NODES, WINDOW, ControlVariate
from hpc_kjko.particles.state import Shard, draw
from hpc_kjko.problems import KINDS
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of

TEMPERATURE = 1.3
AMPLITUDE = 0.1


def ensemble(count, seed, dims=1, velocity_dims=1, weights="equal", thermal_speed=1.2):
    """Independent particles of (1 + α cos kx) times a Gaussian that is not the bath's, with their exact log f."""
    settings = {"space_dims": dims, "velocity_dims": velocity_dims, "length": 8.0, "thermal_speed": thermal_speed}
    problem = KINDS["landau_damping"](kind="landau_damping", amplitude=AMPLITUDE, **settings)
    return draw(
        problem,
        Shard(0, count, count),
        start="random",
        weights=weights,
        seed=seed,
        temperature=TEMPERATURE,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )


def spoilt(particles, count, by, slower=math.inf, faster=0.0):
    """The particles, with log f too low by ``by`` at ``count`` of those with a speed in between, in units of √T."""
    speed = particles.v.norm(dim=1) / math.sqrt(TEMPERATURE)
    rows = torch.nonzero((speed > faster) & (speed < slower))[:count, 0]
    assert len(rows) == count
    log_f = particles.log_f.clone()
    log_f[rows] -= by
    return replace(particles, log_f=log_f)


def beta_of(particles, alone, which="least_noise"):
    variate = ControlVariate(TEMPERATURE, alone)
    return getattr(variate, which)(variate.moments(particles))


@pytest.mark.parametrize("weights", ["equal", "density"])
@pytest.mark.parametrize(("dims", "velocity_dims"), [(1, 1), (2, 3)])
def test_the_density_keeps_its_mean_and_loses_its_noise(dims, velocity_dims, weights, alone):
    """The first mode and another, over many ensembles, against the exact density seen through the shape function."""
    grid = Grid((16,) * dims, (8.0,) * dims, 2)
    plain, controlled = (PoissonSolver(grid, alone, variate=v) for v in (None, ControlVariate(TEMPERATURE, alone)))
    modes = []
    for seed in range(60):
        particles = ensemble(8192, seed, dims, velocity_dims, weights)
        fields = [solver.start(plasma_of(particles)) for solver in (plain, controlled)]
        spectra = [np.fft.fftn(field.charge_density) / 16**dims for field in fields]
        modes.append([[s[(1,) + (0,) * (dims - 1)], s[(2,) + (1,) * (dims - 1)], s.flat[0]] for s in spectra])
    modes = np.array(modes)  # [seed, solver, mode]
    seen = np.exp(1j * np.pi / 16) * np.sinc(1 / 16) ** 3  # the first node is at half a cell
    exact = np.array([0.5 * AMPLITUDE * seen, 0.0])
    error = np.abs(modes[:, 1, :2].mean(0) - exact)
    variance = modes[..., :2].var(0)
    assert (variance[1] < 0.1 * variance[0]).all()
    assert (error < 4 * np.sqrt(variance[1] / 60) + 1e-4).all()  # β is found from the same particles: 1e-4 of bias
    assert np.abs(modes[:, 1, 2] - 1).max() < 1e-12  # and the mass is exact


def test_beta_is_the_least_squares_solution_and_is_near_one_at_equilibrium(alone):
    particles = ensemble(4000, 0, thermal_speed=1.2)
    beta = beta_of(particles, alone)
    speed = particles.v[:, 0].abs().numpy() / math.sqrt(TEMPERATURE)
    log_maxwellian = -0.5 * speed**2 - 0.5 * math.log(2 * math.pi * TEMPERATURE)
    ratio = np.exp(log_maxwellian - particles.log_f.numpy())
    hats = np.maximum(0, 1 - np.abs(speed[:, None] - NODES) / (NODES[1] - NODES[0]))
    values = np.linalg.lstsq(hats * ratio[:, None], np.ones(4000), rcond=1e-9)[0]
    w = beta.weights(particles, slice(None)).numpy()
    assert np.allclose(w, 1 - ratio * (hats @ values), atol=1e-6)
    assert beta.weight_variance == pytest.approx(np.mean(w**2), rel=1e-6)
    for dims in (1, 3):
        equilibrium = beta_of(ensemble(4000, 0, 1, dims, thermal_speed=math.sqrt(TEMPERATURE)), alone)
        assert equilibrium.mean(dims) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("by", [5.0, 50.0, 5000.0])
def test_a_few_lost_particles_in_the_tail_do_not_ruin_it(by, alone):
    """A single number β would fall to nothing; so would one whose window held them."""
    particles = ensemble(16384, 1)
    sound = beta_of(particles, alone)
    beta = beta_of(spoilt(particles, 5, by, faster=2.5), alone)
    assert sound.weight_variance < 0.01 and beta.weight_variance < 0.03
    w = beta.weights(spoilt(particles, 5, by, faster=2.5), slice(None))
    assert torch.isfinite(w).all() and w.abs().max() < 10
    assert beta.mean(1) == pytest.approx(sound.mean(1), abs=0.02)


def test_no_particles_with_speeds_below_the_last_node_are_deposited_as_they_are(alone):
    particles = ensemble(100, 2)
    fast = replace(particles, v=torch.full_like(particles.v, 20.0))
    assert torch.equal(ControlVariate(TEMPERATURE, alone).masses(fast), fast.weight)
    assert beta_of(fast, alone, "near_equilibrium").weight_variance == 1.0


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize(("dims", "velocity_dims"), [(1, 1), (2, 3)])
def test_the_objective_keeps_its_mean_and_loses_its_noise(dims, velocity_dims, logdet, alone):
    """Its gradient in the output layer, over independent batches of particles. Stein's identity with ∇β included."""
    torch.manual_seed(0)
    control = ControlField((8.0,) * dims, dims, velocity_dims, hidden=(6, 6), dtype=torch.float64)
    objective = JKOObjective(control, operator=Bath(1.0, TEMPERATURE), logdet=logdet)
    torch.nn.init.normal_(control.layers[0].weight)
    torch.nn.init.normal_(control.layers[2].weight, std=1e-2)
    gradients, window = [], 0.9 * WINDOW
    for seed in range(60):
        particles = ensemble(4000, seed, dims, velocity_dims)
        beta = replace(beta_of(particles, alone), values=window)  # fixed: no bias of its own
        drag, known = beta.drag(particles, slice(None))
        z = control.features(particles.x, particles.v)
        found = []
        for arguments in ((particles.v, particles.shares(), None, None), (drag, particles.shares(), None, known)):
            objective.zero_grad()
            objective(0.1, z, *arguments).backward()
            found.append(torch.cat([p.grad.flatten() for p in control.layers[2].parameters()]))
        gradients.append(torch.stack(found))
    gradients = torch.stack(gradients)  # [seed, with or without, parameter]
    difference = gradients[:, 1] - gradients[:, 0]
    assert (difference.mean(0).abs() < 4.5 * difference.std(0) / math.sqrt(60)).all()
    plain, controlled = gradients.var(0).sum(1)
    assert controlled < 0.3 * plain


def test_an_objectives_beta_enters_near_equilibrium_only(alone):
    particles = ensemble(16384, 1)
    near = beta_of(particles, alone, "near_equilibrium")
    assert near.weight_variance < NEAR and near.mean(1) > 0.9
    beyond = beta_of(spoilt(particles, 3, 20.0, faster=4.0), alone, "near_equilibrium")
    assert beyond.weight_variance == pytest.approx(near.weight_variance, abs=1e-3)
    for far in (spoilt(particles, 3, 20.0, slower=3.0), ensemble(16384, 1, thermal_speed=0.3)):
        drag, known = ControlVariate(TEMPERATURE, alone).drag(far, 5000)
        assert torch.equal(drag, far.v) and not known.any()


def strong(**changes):
    """The two-stream case of strong collisions, small."""
    table = {
        "problem": {"kind": "two_stream"},
        "physics": {"collision_strength": 1.0},
        "particles": {"count": 4096},
        "grid": {"cells": 32},
        "time": {"step": 0.1, "end": 8.0},
        "method": {"solver": "varpro", "order": 2, "iterations": 3, "first_iterations": 50, "hidden": [16, 16]},
    }
    return config.from_table({name: {**table.get(name, {}), **changes.get(name, {})} for name in table | changes})


def steps_of(case, comm, steps=None):
    simulation = Simulation.start(case, comm)
    rows = []
    for _ in range(steps or case.time.steps):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    return simulation, {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_the_field_energy_floor_is_far_below_langevins(alone):
    """Strong collisions: there is no field left at t = 5, and what is seen is noise. (Adam, since varpro's few steps on
    so few particles leave floors 11 to 53 times below, depending on the seed.)"""
    floors, adam = {}, {"solver": "adam", "order": 1, "iterations": 8, "first_iterations": 120}
    for name, changes in {
        "langevin": {"method": {**adam, "collision": "langevin"}},
        "controlled": {"method": adam, "particles": {"control_variate": True}},
    }.items():
        _, rows = steps_of(strong(**changes), alone)
        floors[name] = rows["field_energy"][50:].mean()
    assert floors["controlled"] < floors["langevin"] / 30
    assert (rows["weight_variance"][50:] < 0.02).all()
    assert rows["control_variate_beta"][-1] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("field", ["poisson", "ampere"])
def test_a_restart_is_to_the_bit_and_the_collisions_jump_is_what_the_weights_do(field, order, alone, tmp_path):
    changes = {"count": 2048, "control_variate": True}
    case = strong(physics={"field": field}, particles=changes, method={"order": order, "iterations": 2})
    simulation, rows = steps_of(case, alone, 3)
    resumed = Simulation.resume(case, alone, load(simulation.save(tmp_path, {}), alone))
    for _ in range(2):
        for each in (simulation, resumed):
            each.state = each.advance()
            each.step_index += 1
    for name in ("x", "v", "log_f"):
        assert torch.equal(getattr(simulation.state.particles, name), getattr(resumed.state.particles, name))
    assert np.array_equal(simulation.state.field.electric, resumed.state.field.electric)

    state, solver = simulation.state, simulation.field_solver
    wave = torch.cos(0.2 * state.particles.x)
    pushed = state.particles.kick(1.0, wave)
    collided = replace(pushed, log_f=pushed.log_f - 0.3 * wave[:, 0])
    plasmas = [plasma_of(particles) for particles in (state.particles, pushed, collided)]
    after, jump = solver.after_collision(state.field, *plasmas[1:])
    energies = [solver.reweighted(state.field, plasma).energy for plasma in plasmas]
    assert jump == pytest.approx(energies[2] - energies[1]) and after.energy == pytest.approx(energies[2])
    assert abs(energies[1] - energies[0]) > 1e-3 and abs(jump) > 0.01
    assert "collision_field_energy" in rows and np.abs(rows["collision_field_energy"]).max() > 0


def test_gausss_law_holds_as_well_as_without(alone):
    """Ampère's E follows the weights as they change in kicks and collisions, by which no charge moves."""
    grid, variate = Grid((16,), (8.0,), 2), ControlVariate(TEMPERATURE, alone)
    poisson, ampere = (kind(grid, alone, variate=variate) for kind in (PoissonSolver, AmpereSolver))
    particles = ensemble(4000, 0)
    kicked = particles.kick(1.0, torch.cos(2 * np.pi / 8 * particles.x))
    drifted = kicked.drift(1e-3)
    found = ampere.drift(ampere.start(plasma_of(particles)), plasma_of(kicked), 1e-3)[0].electric
    wanted, before = (poisson.start(plasma_of(rows)).electric for rows in (drifted, particles))
    assert np.abs(found - wanted).max() < 1e-4 < 1e-3 < np.abs(wanted - before).max()

    residuals, energies = [], []
    for field, control in (("ampere", False), ("ampere", True), ("poisson", True)):
        changes = {"count": 8192, "control_variate": control}
        case = strong(physics={"field": field}, particles=changes, time={"step": 0.05}, grid={"shape_order": 2})
        _, rows = steps_of(case, alone, 10)
        residuals.append(rows["gauss_residual"][-1] if field == "ampere" else 0.0)
        energies.append(rows["field_energy"])
    assert residuals[1] < 2 * residuals[0]
    assert np.allclose(energies[1], energies[2], rtol=0.05, atol=0.02 * energies[2].max())
