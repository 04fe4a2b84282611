"""Vlasov-Ampère-Fokker-Planck: Poisson's solution when E starts with Gauss's law, and decay when it does not."""

import numpy as np
import pytest

from hpc_kjko.checkpoint import load
from hpc_kjko.config import from_table
from hpc_kjko.diagnostics import measure
from hpc_kjko.simulation import Simulation


def run(comm, field, step=0.1, end=4.0, **changes):
    """The simulation at the end, its E at every step [steps + 1, *cells, dx] and its rows."""
    table = {
        "problem": {"kind": "landau_damping", "amplitude": 0.3, **changes.pop("problem", {})},
        "physics": {"field": field, **changes.pop("physics", {})},
        "particles": {"count": 4096, **changes.pop("particles", {})},
        "grid": {"cells": 16, "shape_order": 2},
        "time": {"step": step, "end": end},
        "method": {"collision": "none", **changes.pop("method", {})},
    }
    simulation = Simulation.start(from_table(table), comm)
    electric = [simulation.state.field.electric]
    rows = [measure(simulation.diagnostics, simulation.state, comm)]
    for _ in range(simulation.case.time.steps):
        simulation.state = simulation.advance()
        simulation.step_index += 1
        electric.append(simulation.state.field.electric)
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    return simulation, np.array(electric), {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_the_wave_agrees_with_poissons_to_second_order_in_the_step(alone):
    """The amplitude of the mode that there is. (All modes together also hold the aliases of the particles' noise, which
    the spectral derivative does not continue exactly: they fall with the number of particles, not with the step.)"""
    differences, everything = [], []
    for step in (0.4, 0.2, 0.1):
        (_, poisson, _), (_, ampere, rows) = (run(alone, field, step) for field in ("poisson", "ampere"))
        mode = np.fft.rfft((poisson - ampere)[..., 0], axis=1)[:, 1] / 8
        differences.append(np.abs(mode).max())
        everything.append(rows["gauss_residual"].max())
        assert np.abs(poisson).max() > 0.5
    assert np.log2(np.array(differences[:-1]) / differences[1:]) == pytest.approx([2, 2], abs=0.1)
    assert differences[-1] < 2e-4 and everything[-1] < 0.02


@pytest.mark.parametrize(("dims", "count", "tolerance"), [(2, 4000, 0.04), (3, 10_000, 0.12)])
def test_in_more_dimensions_no_curl_grows_and_poisson_is_met(dims, count, tolerance, alone):
    changes = {"problem": {"space_dims": dims, "velocity_dims": 3}, "particles": {"count": count}}
    (_, poisson, _), (simulation, ampere, rows) = (
        run(alone, field, end=1.0, **dict(changes)) for field in ("poisson", "ampere")
    )
    spectrum, last = simulation.field_solver.spectrum, ampere[-1]
    hats = [np.fft.rfftn(last[..., axis]) for axis in range(dims)]
    curl = [spectrum.gradient[i] * hats[j] - spectrum.gradient[j] * hats[i] for i, j in ((0, 1), (0, dims - 1))]
    assert max(np.abs(spectrum.back(component)).max() for component in curl) < 1e-12
    assert np.linalg.norm(poisson - ampere) < tolerance * np.linalg.norm(poisson)
    assert rows["gauss_residual"][0] < 1e-12
    # and φ in the files is the one of this E
    phi_hat = np.fft.rfftn(simulation.state.field.potential)
    again = np.stack([spectrum.back(-gradient * phi_hat) for gradient in spectrum.gradient], axis=-1)
    assert np.allclose(again, last, atol=1e-12)


def test_free_energy_decays_whatever_field_it_starts_with(alone):
    """Proposition 3 of the paper: E(0) = 0, far from Gauss's law; what F loses is what the collisions dissipate."""
    _, electric, rows = run(
        alone,
        "ampere",
        step=0.05,
        end=2.0,
        problem={"kind": "two_stream", "amplitude": 0.3},
        physics={"collision_strength": 1.0, "initial_field": "zero"},
        method={"collision": "jko", "order": 2, "hidden": [12, 12], "iterations": 15, "first_iterations": 150},
    )
    assert not electric[0].any() and np.abs(electric[-1]).max() > 0.02
    assert rows["gauss_residual"][0] > 0.2
    energy, lost = rows["free_energy"], np.cumsum(rows["dissipation"][1:] * 0.05)
    assert (np.diff(energy) < 0).all()
    assert energy[0] - energy[-1] == pytest.approx(lost[-1], rel=0.02)


def test_a_checkpoint_carries_the_field(alone, tmp_path):
    simulation, _, _ = run(alone, "ampere", end=1.0, physics={"initial_field": "zero"})
    path = simulation.save(tmp_path, {})
    resumed = Simulation.resume(simulation.case, alone, load(path, alone))
    assert np.array_equal(resumed.state.field.electric, simulation.state.field.electric)
    onward = [s.advance() for s in (simulation, resumed)]
    assert np.array_equal(onward[0].field.electric, onward[1].field.electric)
