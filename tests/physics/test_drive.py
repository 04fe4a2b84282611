"""A driven field: linear response, order in the step, the energy that it gives, and trapped particles."""

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.fields.drive import WaveField
from hpc_kjko.running.simulation import Simulation

DRIVE = {"amplitude": 0.05, "frequency": 1.2, "rise": 2.0, "until": 8.0}


def run(comm, drive=None, **changes):
    """The simulation at its end, and its rows."""
    problem = {"kind": "landau_damping", "amplitude": 0.05, **changes.pop("problem", {})}
    table = {
        "problem": problem,
        "physics": {"drive": DRIVE if drive is None else drive, **changes.pop("physics", {})},
        "particles": {"count": 4096, **changes.pop("particles", {})},
        "grid": {"cells": 16, "shape_order": 2, **changes.pop("grid", {})},
        "time": {"step": 0.1, "end": 4.0, **changes.pop("time", {})},
        "method": {"collision": "none", **changes.pop("method", {})},
        **changes,
    }
    if table["physics"].get("field") == "external":
        del table["grid"]
    simulation = Simulation.start(from_table(table), comm)
    return simulation, rows_to_the_end(simulation)


def test_drive_field_and_kinetic_energy_close(alone):
    """With Ampère's law and exact energy, to round-off at a long step, while the drive does work and after it."""
    _, rows = run(
        alone,
        {**DRIVE, "amplitude": 0.5},
        physics={"field": "ampere"},
        time={"step": 0.25, "end": 10.0, "energy_conserving": True},
    )
    balance = rows["kinetic_energy"] + rows["field_energy"] - rows["drive_energy"]
    assert np.abs(rows["drive_energy"]).max() > 0.1
    assert np.ptp(balance) < 1e-11 * balance[0]
    assert np.ptp(rows["drive_energy"][-8:]) == 0  # it ended at t = 8


def test_energy_closes_to_second_order_with_poissons_field(alone):
    errors = []
    for step in (0.2, 0.1):
        _, rows = run(alone, {**DRIVE, "amplitude": 0.3}, time={"step": step, "end": 8.0}, grid={"cells": 32})
        errors.append(np.ptp(rows["kinetic_energy"] + rows["field_energy"] - rows["drive_energy"]))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.35)
    assert errors[1] < 0.02


@pytest.mark.parametrize(("integrator", "order"), [("verlet", 2), ("forest_ruth", 4)])
def test_kicks_are_at_the_times_that_the_drifts_have_reached(integrator, order, alone):
    """Particles without a field of their own, against themselves at half the step."""
    wave = {"amplitude": 0.3, "frequency": 1.7}
    ends = []
    for step in (0.2, 0.1, 0.05):
        simulation, _ = run(
            alone,
            wave,
            problem={"kind": "periodic", "potential_amplitude": 0.0, "length": 4 * np.pi},
            physics={"field": "external"},
            particles={"count": 128},
            time={"step": step, "end": 4.0, "integrator": integrator},
        )
        ends.append(simulation.state.particles.v)
    first, second = (float((one - other).abs().max()) for one, other in zip(ends, ends[1:], strict=False))
    assert np.log2(first / second) == pytest.approx(order, abs=0.35)


def test_a_cold_plasma_responds_to_a_weak_drive_at_resonance(alone):
    """E'' + E = −E_d for E_d = E₀ cos(kx − t), from rest: its amplitude grows as ½ E₀ t."""
    amplitude = 1e-3
    _, rows = run(
        alone,
        {"amplitude": amplitude, "frequency": 1.0},
        problem={"amplitude": 0.0, "thermal_speed": 1e-3},
        physics={"temperature": 1e-6},
        time={"step": 0.05, "end": 20.0},
        grid={"cells": 64, "shape_order": 2},
    )
    t = 0.05 * np.arange(401)
    # cos(kx) and sin(kx) parts: C'' + C = −E₀ cos t and S'' + S = −E₀ sin t from C = S = C' = S' = 0
    cosine, sine = -0.5 * amplitude * t * np.sin(t), 0.5 * amplitude * (t * np.cos(t) - np.sin(t))
    energy = 4 * np.pi * (cosine**2 + sine**2) / 4
    assert np.linalg.norm(rows["wave_energy"] - energy) < 0.02 * np.linalg.norm(energy)


def test_trapped_particles_bounce_at_their_frequency(alone):
    """√(k E₀) near the trough of a large wave, whose phase velocity is theirs."""
    k, amplitude = 0.5, 0.4
    bounce = np.sqrt(k * amplitude)
    field = WaveField(amplitude, (k,), 0.0, 0.0, np.inf)
    trough = torch.tensor([[np.pi / 2 / k]], dtype=torch.float64)  # E = E₀ cos kx falls through zero: it pulls back
    assert float(field(trough, 0.0)) == pytest.approx(0.0, abs=1e-15)
    x, v, path = trough + 0.05, torch.zeros(1, 1, dtype=torch.float64), []
    step = 0.02
    for n in range(4000):
        v = v + 0.5 * step * field(x, n * step)
        x = x + step * v
        v = v + 0.5 * step * field(x, (n + 1) * step)
        path.append(float(x - trough))
    turns = np.flatnonzero(np.diff(np.sign(path)))
    assert np.pi / (np.diff(turns).mean() * step) == pytest.approx(bounce, rel=0.001)


def test_a_ramp_rises_and_falls():
    field = WaveField(1.0, (1.0,), 0.5, rise=2.0, until=10.0)
    assert [field.ramp(t) for t in (0.0, 1.0, 2.0, 5.0, 9.0, 10.0, 11.0)] == pytest.approx([0, 0.5, 1, 1, 0.5, 0, 0])
    assert WaveField(1.0, (1.0,), 0.5, rise=0.0, until=np.inf).ramp(-0.01) == 1.0
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    oblique = WaveField(2.0, (3.0, 4.0), 0.7, 0.0, np.inf)(x, 1.1)
    wanted = 2.0 * np.cos(3 * 0.3 + 4 * 0.4 - 0.77) * np.array([[0.6, 0.8]])
    assert np.allclose(oblique.numpy(), wanted)


def test_a_field_of_the_users_own_drives_too(alone, tmp_path, monkeypatch):
    """The same wave as a function gives the same bits; one that fails ends in a sentence."""
    module = tmp_path / "fields_of_mine.py"
    module.write_text(
        "import torch\n\n\ndef wave(x, t):\n    return 0.05 * torch.cos(x * 0.5 - 1.2 * t)\n\n\n"
        "def flat(x, t):\n    return torch.zeros(3)\n\n\ndef wrong(x, t):\n    raise ValueError('no')\n\n\n"
        "def moves(x, t):\n    x += 1\n    return 0 * x\n\n\ndef complex_one(x, t):\n    return x * 1j\n\n\nnone = 3\n"
        "def leaves(x, t):\n    raise SystemExit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own, _ = run(alone, "fields_of_mine:wave")
    ours, _ = run(alone, {"amplitude": 0.05, "frequency": 1.2})
    assert torch.allclose(own.state.particles.v, ours.state.particles.v, atol=1e-12)
    still, _ = run(alone, "fields_of_mine:moves", time={"step": 0.1, "end": 0.1})
    free, _ = run(alone, {"amplitude": 0.0, "frequency": 1.0}, time={"step": 0.1, "end": 0.1})
    assert torch.equal(still.state.particles.x, free.state.particles.x)
    for name, says in (
        ("flat", "of the shape of x"),
        ("wrong", "ValueError: no"),
        ("missing", "missing"),
        ("complex_one", "real numbers"),
        ("none", "must be a function"),
        ("leaves", "it raised SystemExit: 3"),  # one rank that leaves alone would let the others wait
    ):
        with pytest.raises(UserError, match=says):
            run(alone, f"fields_of_mine:{name}")


@pytest.mark.parametrize(
    ("drive", "changes", "says"),
    [
        ({"amplitude": 0.1}, {}, "physics.drive.*frequency"),
        ({**DRIVE, "until": 3.0}, {}, "physics.drive.until = 3.0 leaves no time"),
        ({**DRIVE, "mode": [1, 1]}, {}, "physics.drive.mode has 2 numbers"),
        ({**DRIVE, "mode": 0}, {}, "physics.drive.mode is zero"),
        ({**DRIVE, "phase": 1.0}, {}, "phase is not a known key"),
        ("nonsense", {}, 'physics.drive = "nonsense": give a table'),
        (DRIVE, {"problem": {"kind": "gaussian"}}, "needs a periodic box"),
    ],
)
def test_a_drive_that_cannot_be_is_refused(drive, changes, says, alone):
    if "problem" in changes:
        with pytest.raises(UserError, match=says):
            from_table({"problem": {"kind": "gaussian"}, "physics": {"drive": drive}})
        return
    with pytest.raises(UserError, match=says):
        run(alone, drive, **changes)
