"""A uniform magnetic field: exact gyration, the E × B drift, orders of the maps, and what collisions do in it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.push.gyration import Gyration
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.running.simulation import Simulation

CLOUD = {
    **{"kind": "gaussian", "space_dims": 2, "velocity_dims": 2, "stiffness": 1.0, "mean": [1.0, 0.0, -0.5, 0.8]},
    "covariance": (0.3 * np.eye(4) + 0.05).tolist(),
}


def run_case(**changes):
    wave = {"kind": "landau_damping", "velocity_dims": 2, "amplitude": 0.1}
    problem = changes.pop("problem", {})
    table = {
        "problem": problem if "kind" in problem else wave | problem,
        "physics": {"magnetic_field": [0.0, 0.0, 0.8], **changes.pop("physics", {})},
        "particles": {"count": 4096, **changes.pop("particles", {})},
        "time": {"step": 0.1, "end": 2.0, **changes.pop("time", {})},
        "method": {"collision": "none", **changes.pop("method", {})},
        **changes,
    }
    return from_table(table)


def run(comm, *columns, **changes):
    """The simulation at its end, and its rows: all columns, or those asked for."""
    simulation = Simulation.start(run_case(**changes), comm)
    return simulation, rows_to_the_end(simulation, *columns)


@pytest.mark.parametrize(
    ("rate", "turns"), [((0.0, 0.0, 1.3), 1000), ((0.3, -0.7, 0.5), 10_000), ((0.0, 0.0, -0.4), 1000)]
)
def test_thousands_of_turns_keep_phase_speed_and_radius(rate, turns):
    """Three drifts a turn. A positive charge in B along x_3 turns from x_1 towards −x_2."""
    frequency = np.linalg.norm(rate)
    gyration = Gyration.of(rate, 2 * np.pi / frequency / 3, 3)
    start = torch.tensor([[0.9, -0.4, 0.2]], dtype=torch.float64)
    v, means = start, []
    along = torch.tensor(rate, dtype=torch.float64) / frequency
    across = start - (start @ along) * along
    centre = torch.linalg.cross(across, along[None]) / frequency  # from the particle to the centre of its circle
    for _ in range(3 * turns):
        mean, v = gyration.velocities(v)
        means.append(mean)
    mean = torch.cat(means)
    x = (2 * np.pi / frequency / 3 * (mean - (mean @ along)[:, None] * along)).cumsum(0)
    assert torch.allclose(v, start, atol=1e-14 * turns)
    radii = torch.linalg.vector_norm(x - centre, dim=1)
    assert np.allclose(radii, float(torch.linalg.vector_norm(across)) / frequency, rtol=1e-14 * turns)
    speed = float(torch.linalg.vector_norm(start))
    assert float(torch.linalg.vector_norm(v)) == pytest.approx(speed, rel=1e-15 * turns)
    if rate == (0.0, 0.0, 1.3):
        quarter = Gyration.of(rate, 0.5 * np.pi / 1.3, 3).velocities(torch.tensor([[1.0, 0, 0]], dtype=torch.float64))
        assert torch.allclose(quarter[1], torch.tensor([[0.0, -1, 0]], dtype=torch.float64), atol=1e-15)


def test_a_gyration_is_that_of_the_equations_of_motion():
    """The matrix exponential of d(x, v)/dt = (v, v × Ω), forwards and backwards, for small and large angles."""
    rate = np.array([0.4, -0.2, 0.9])
    cross = np.array([[0, rate[2], -rate[1]], [-rate[2], 0, rate[0]], [rate[1], -rate[0], 0]])
    generator = np.block([[np.zeros((3, 3)), np.eye(3)], [np.zeros((3, 3)), cross]])
    for duration in (1e-7, 0.3, -0.3, 40.0):
        flow = scipy.linalg.expm(duration * generator)
        gyration = Gyration.of(rate, duration, 3)
        assert np.allclose(gyration.turn, flow[3:, 3:], atol=1e-13)
        assert np.allclose(duration * gyration.mean, flow[:3, 3:], rtol=1e-13, atol=1e-13)
        assert np.linalg.det(gyration.turn) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("integrator", ["verlet", "forest_ruth"])
def test_the_e_cross_b_drift_is_exact(integrator):
    """Kicks by a uniform E, drifts by the gyration: after whole turns only E × B / B² is left, at any step."""
    electric, rate, turn = np.array([0.3, -0.2, 0.0]), (0.0, 0.0, 0.9), 2 * np.pi / 0.9
    for steps in (5, 16):
        x, v = np.zeros((1, 3)), torch.tensor([[0.5, 0.1, 0.0]], dtype=torch.float64)
        start = v
        for _ in range(3 * steps):
            for stage in MAPS[integrator].stages:
                duration = stage.fraction * turn / steps
                if stage.action == "kick":
                    v = v + duration * torch.from_numpy(electric)
                else:
                    mean, v = Gyration.of(rate, duration, 3).velocities(v)
                    x = x + duration * mean.numpy()
        drift = np.cross(electric, rate) / 0.81
        if integrator == "verlet":
            # The composition's own gyrocentre: its velocity is exact on average over a turn.
            assert np.allclose(x / (3 * turn), drift, atol=1e-12)
        assert torch.allclose(v, start, atol=1e-12)


@pytest.mark.parametrize(("integrator", "order"), [("verlet", 2), ("forest_ruth", 4)])
def test_maps_keep_their_orders_in_a_magnetic_field(integrator, order, alone):
    """Particles in a harmonic potential, against the exact flow of the linear equations of motion."""
    generator = np.block([[np.zeros((2, 2)), np.eye(2)], [-np.eye(2), np.array([[0.0, 0.8], [-0.8, 0.0]])]])
    errors = []
    for step in (0.2, 0.1):
        changes = {"problem": CLOUD, "particles": {"count": 64}, "method": {"collision": "none", "order": 1}}
        start, _ = run(alone, "mass", time={"step": step, "end": step}, **changes)
        start = Simulation.start(start.case, alone).state.particles
        simulation, _ = run(alone, "mass", time={"step": step, "end": 2.0, "integrator": integrator}, **changes)
        end = simulation.state.particles
        wanted = torch.cat([start.x, start.v], dim=1).numpy() @ scipy.linalg.expm(2.0 * generator).T
        errors.append(np.abs(torch.cat([end.x, end.v], dim=1).numpy() - wanted).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < 0.02


def test_energy_stays_exact_with_amperes_law(alone):
    """Kinetic + field energy to round-off, at a step that resolves neither frequency well."""
    _, rows = run(
        alone,
        "kinetic_energy",
        "field_energy",
        physics={"field": "ampere", "magnetic_field": [0.0, 0.0, 1.5]},
        time={"step": 0.5, "end": 20.0, "energy_conserving": True},
        grid={"cells": 16},
    )
    total = rows["kinetic_energy"] + rows["field_energy"]
    assert np.ptp(rows["field_energy"]) > 1e-3
    assert np.ptp(total) < 1e-12 * total[0]


def test_amperes_current_is_that_of_the_gyration(alone):
    """E by Ampère's law is Poisson's to second order in the step, in the one mode that there is."""

    def modes(field, step):
        table = {
            "problem": {"kind": "landau_damping", "velocity_dims": 2, "amplitude": 0.3},
            "physics": {"field": field, "magnetic_field": [0.0, 0.0, 1.0]},
            "particles": {"count": 4096},
            "grid": {"cells": 16, "shape_order": 2},
            "time": {"step": step, "end": 4.0},
            "method": {"collision": "none"},
        }
        simulation, found = Simulation.start(from_table(table), alone), []
        for _ in range(simulation.case.time.steps):
            simulation.state, simulation.step_index = simulation.advance(), simulation.step_index + 1
            found.append(np.fft.rfft(simulation.state.field.electric[:, 0])[1] / 8)
        return np.array(found)

    differences = [np.abs(modes("poisson", step) - modes("ampere", step)).max() for step in (0.4, 0.2)]
    assert differences[0] / differences[1] == pytest.approx(4, rel=0.1)
    assert differences[1] < 1e-3 < 0.1 < np.abs(modes("poisson", 0.4)).max()


def test_the_upper_hybrid_frequency(alone):
    """A cold plasma in B across the wave oscillates at √(ω_p² + Ω²)."""
    rate = 0.8
    _, rows = run(
        alone,
        "wave_energy",
        problem={"thermal_speed": 0.05, "amplitude": 0.01, "length": 12.566370614359172},
        physics={"temperature": 0.0025, "magnetic_field": [0.0, 0.0, rate]},
        time={"step": 0.05, "end": 60.0, "integrator": "verlet"},
        particles={"count": 8192},
        grid={"cells": 32},
    )
    energy = rows["wave_energy"]
    time = 0.05 * np.arange(len(energy))
    # E ∝ cos ωt: its energy has its minima at the zeros of E, half a period apart
    lows = [i for i in range(1, len(energy) - 1) if energy[i - 1] > energy[i] < energy[i + 1]]
    zeros = []
    for i in lows:
        a, b, c = np.sqrt(energy[i - 1 : i + 2])
        signs = [(-a, -b, c), (-a, b, c)]
        chosen = min(signs, key=lambda s: abs(s[0] - 2 * s[1] + s[2]))
        zeros.append(np.interp(0.0, chosen, time[i - 1 : i + 2]))
    frequency = np.pi / np.polyfit(np.arange(len(zeros)), zeros, 1)[0]
    assert frequency == pytest.approx(np.hypot(1.0, rate), rel=0.005)


def test_a_gaussian_in_a_bath_and_a_field_follows_its_exact_moments(alone):
    """d(x, v)/dt = (v, −Λx + v × Ω − κ v) with noise of the bath: a linear system; KL falls, every step certified."""
    rate, kappa, covariance = 1.2, 1.0, np.array(CLOUD["covariance"])
    simulation, rows = run(
        alone,
        problem=CLOUD,
        physics={"collision_strength": kappa, "magnetic_field": [0.0, 0.0, rate]},
        particles={"count": 8192},
        time={"step": 0.05, "end": 1.5},
        method={"collision": "jko"},
    )
    assert "mean_error" not in rows  # what is exact without B is not taken for exact with it
    drift = np.block(
        [
            [np.zeros((2, 2)), np.eye(2)],
            [-np.eye(2), np.array([[0, rate], [-rate, 0]]) - kappa * np.eye(2)],
        ]
    )
    noise = np.diag([0, 0, 2 * kappa, 2 * kappa])
    flow = scipy.linalg.expm(1.5 * drift)
    block = scipy.linalg.expm(1.5 * np.block([[-drift, noise], [np.zeros((4, 4)), drift.T]]))
    wanted = flow @ covariance @ flow.T + block[4:, 4:].T @ block[:4, 4:]
    z = torch.cat([simulation.state.particles.x, simulation.state.particles.v], dim=1).numpy()
    assert np.abs(z.mean(0) - flow @ np.array([1.0, 0.0, -0.5, 0.8])).max() < 0.01
    assert np.abs(np.cov(z.T, bias=True) - wanted).max() < 0.02
    assert (np.diff(rows["kl"]) < 0).all()
    assert (rows["certificate"][1:] == 1).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"problem": {"velocity_dims": 1}}, "physics.magnetic_field .* problem.velocity_dims = 1: use 3, or 2"),
        ({"physics": {"magnetic_field": [0.1, 0.0, 0.5]}}, "problem.velocity_dims = 2: use 3, or a field along x_3"),
        ({"physics": {"magnetic_field": [0.5]}}, "physics.magnetic_field"),
        (
            {"time": {"integrator": "euler"}, "method": {"collision": "jko", "form": "nonsplit", "order": 1}},
            'physics.magnetic_field needs method.form = "split"',
        ),
    ],
)
def test_a_field_that_cannot_be_is_refused(changes, says, alone):
    with pytest.raises(UserError, match=says):
        run(alone, **changes)


#: A uniform electric field, as a drive of the user's own, in a box without any other field.
UNIFORM = """
import torch

def uniform(x, t):
    return torch.zeros_like(x) + torch.tensor([0.3, -0.2], dtype=x.dtype)
"""
FREE = {"kind": "periodic", "space_dims": 2, "length": [8.0, 8.0], "amplitude": 0.0, "potential_amplitude": 0.0}
ELECTRIC = np.array([0.3, -0.2])


@pytest.fixture
def uniform(tmp_path, monkeypatch):
    (tmp_path / "uniform_field.py").write_text(UNIFORM)
    monkeypatch.syspath_prepend(tmp_path)
    return {"field": "external", "drive": "uniform_field:uniform"}


def test_particles_of_a_run_drift_by_e_cross_b(alone, uniform):
    """Each of them, whatever its velocity: after three whole turns in 15 steps only E × B / B² is left."""
    rate, end = 0.9, 3 * 2 * np.pi / 0.9
    changes = {
        "problem": FREE,
        "physics": {**uniform, "magnetic_field": [0.0, 0.0, rate]},
        "particles": {"count": 256},
    }
    before = Simulation.start(run_case(time={"step": end / 15, "end": end}, **changes), alone).state.particles
    simulation, _ = run(alone, time={"step": end / 15, "end": end}, **changes)
    after = simulation.state.particles
    drift = np.array([ELECTRIC[1] * rate, -ELECTRIC[0] * rate]) / rate**2
    moved = (after.x - before.x).numpy() - end * drift
    assert np.abs(moved - 8.0 * np.round(moved / 8.0)).max() < 1e-12 * end
    assert torch.allclose(after.v, before.v, atol=1e-12)


def test_collisions_with_a_bath_make_a_drift_resistive(alone, uniform):
    """d⟨v⟩/dt = E + ⟨v⟩ × Ω − κ⟨v⟩ and the covariance goes to T: linear, so exact for any f."""
    rate, kappa, end = 0.8, 0.5, 2.0
    simulation, rows = run(
        alone,
        problem={**FREE, "beam_velocity": 0.0, "thermal_speed": 0.5},
        physics={**uniform, "magnetic_field": [0.0, 0.0, rate], "collision_strength": kappa},
        particles={"count": 4096},
        time={"step": 0.1, "end": end},
        method={"collision": "jko"},
    )
    drift = np.array([[-kappa, rate], [-rate, -kappa]])
    resistive = -np.linalg.solve(drift, ELECTRIC)
    v = simulation.state.particles.v.numpy()
    start = Simulation.start(simulation.case, alone).state.particles.v.numpy()
    flow = scipy.linalg.expm(end * drift)
    mean = resistive + flow @ (start.mean(0) - resistive)
    covariance = np.eye(2) + flow @ (np.cov(start.T, bias=True) - np.eye(2)) @ flow.T
    assert np.abs(v.mean(0) - mean).max() < 2e-3 < 0.1 < np.abs(mean - start.mean(0)).max()
    assert np.abs(np.cov(v.T, bias=True) - covariance).max() < 5e-3 < 0.1 < np.abs(covariance - np.eye(2)).max()
    assert (rows["certificate"][1:] >= 0).all()
