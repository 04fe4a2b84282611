"""Vlasov-Ampère-Fokker-Planck: Poisson's solution when E starts with Gauss's law, decay when it does not, and a form
that conserves energy to round-off."""

import numpy as np
import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.files.checkpoint import load
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation


def run(comm, field, step=0.1, end=4.0, **changes):
    """The simulation at the end, its E at every step [steps + 1, *cells, dx] and its rows."""
    table = {
        "problem": {"kind": "landau_damping", "amplitude": 0.3, **changes.pop("problem", {})},
        "physics": {"field": field, **changes.pop("physics", {})},
        "particles": {"count": 4096, **changes.pop("particles", {})},
        "grid": {"cells": 16, "shape_order": 2, **changes.pop("grid", {})},
        "time": {"step": step, "end": end, **changes.pop("time", {})},
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
    assert max(np.abs(spectrum.on_nodes(component)).max() for component in curl) < 1e-12
    assert np.linalg.norm(poisson - ampere) < tolerance * np.linalg.norm(poisson)
    assert rows["gauss_residual"][0] < 1e-12
    # and φ in the files is the one of this E
    phi_hat = np.fft.rfftn(simulation.state.field.potential)
    again = np.stack([spectrum.on_nodes(-gradient * phi_hat) for gradient in spectrum.gradient], axis=-1)
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


# -- energy to round-off ---------------------------------------------------------------------------------------------

CONSERVING = {"energy_conserving": True}
TWO_STREAM = {"kind": "two_stream", "amplitude": 0.05}


def unexplained(rows):
    """The energy that collisions do not account for, relative to what there was: at every step."""
    energy = rows["kinetic_energy"] + rows["field_energy"]
    return np.abs(energy - energy[0] - rows["collision_energy_total"]) / energy[0]


def test_total_energy_is_exact_over_a_thousand_steps_of_two_streams(alone):
    _, _, rows = run(alone, "ampere", end=100.0, problem=TWO_STREAM, time=CONSERVING, grid={"cells": 32})
    assert rows["field_energy"].max() > 10 * rows["field_energy"][0]  # the instability grew, and saturated
    assert rows["field_energy"][-1] < 0.9 * rows["field_energy"].max()
    assert unexplained(rows).max() < 1e-13
    _, _, plain = run(alone, "ampere", end=30.0, problem=TWO_STREAM, grid={"cells": 32})
    assert unexplained(plain).max() > 1e-5
    assert rows["gauss_residual"].max() < 1.5 * plain["gauss_residual"].max() < 0.3  # of a density around 1


@pytest.mark.parametrize("integrator", ["euler", "verlet", "forest_ruth"])
@pytest.mark.parametrize(
    ("dims", "shape_order", "order", "weights"), [(1, 1, 2, "equal"), (2, 2, 1, "density"), (3, 1, 1, "equal")]
)
def test_energy_is_exact_with_every_map_and_mesh(dims, shape_order, order, weights, integrator, alone):
    """The steps are large: exactness does not rest on their being small."""
    _, _, rows = run(
        alone,
        "ampere",
        step=0.5,
        end=3.0,
        problem={"space_dims": dims, "velocity_dims": 3},
        particles={"weights": weights},
        grid={"cells": [8, 6, 5][:dims], "shape_order": shape_order},
        time={**CONSERVING, "integrator": integrator},
        method={"order": order},
    )
    assert unexplained(rows).max() < 1e-13
    assert np.abs(rows["field_energy"] / rows["field_energy"][0] - 1).max() > 0.5


def test_particles_of_single_precision_conserve_energy_to_theirs(alone):
    changes = {"particles": {"precision": "float32"}, "time": CONSERVING}
    _, _, rows = run(alone, "ampere", end=10.0, **changes)
    assert 1e-12 < unexplained(rows).max() < 1e-6


@pytest.mark.parametrize(("integrator", "steps", "expected"), [("verlet", 8, 2), ("forest_ruth", 4, 3.5)])
def test_the_conserving_form_keeps_the_order_of_the_map(integrator, steps, expected, alone):
    """The field against that of a fine step of the highest order. (Fourth order would need shape functions with more
    derivatives: J sees the kinks in those of the particles, whose sum falls with their number.)"""
    at_the_end = []
    for count, by in ((80, "forest_ruth"), (steps, integrator), (2 * steps, integrator), (4 * steps, integrator)):
        time = {**CONSERVING, "integrator": by}
        sections = {"particles": {"count": 32768}, "grid": {"cells": 8}, "time": time}
        at_the_end.append(run(alone, "ampere", step=2 / count, end=2.0, **sections)[1][-1])
    errors = [np.abs(electric - at_the_end[0]).max() for electric in at_the_end[1:]]
    assert np.log2(errors[0] / errors[2]) / 2 == pytest.approx(expected, abs=0.2)


def test_the_conserving_wave_agrees_with_poissons_to_second_order(alone):
    """As for the other form: the mode that there is, from the noise of the particles set apart."""
    differences = []
    for step in (0.4, 0.2, 0.1):
        (_, poisson, _), (_, ampere, _) = (
            run(alone, field, step, time=time) for field, time in (("poisson", {}), ("ampere", CONSERVING))
        )
        differences.append(np.abs(np.fft.rfft((poisson - ampere)[..., 0], axis=1)[:, 1] / 8).max())
    assert np.log2(np.array(differences[:-1]) / differences[1:]) == pytest.approx([2, 2], abs=0.1)
    assert differences[-1] < 1e-3


@pytest.mark.parametrize(
    "method",
    [
        {"collision": "langevin"},
        {"collision": "jko", "hidden": [8, 8], "iterations": 5, "first_iterations": 50},
        {"collision": "jko", "solver": "varpro", "hidden": [8, 8], "order": 2},
        {"collision": "score_matching", "hidden": [8, 8], "iterations": 5, "first_iterations": 50},
    ],
    ids=lambda method: method.get("solver", method["collision"]),
)
def test_with_collisions_every_joule_is_accounted_for(method, alone):
    """And the fall of the free energy is that of the collisions alone: nothing of it is the push's."""
    physics = {"collision_strength": 1.0, "temperature": 0.5}
    _, _, rows = run(alone, "ampere", end=3.0, problem=TWO_STREAM, physics=physics, time=CONSERVING, method=method)
    assert unexplained(rows).max() < 1e-13
    assert rows["collision_energy_total"][-1] < -0.3 * rows["kinetic_energy"][0]  # a cold bath takes much of it
    assert np.allclose(np.cumsum(rows["collision_energy"]), rows["collision_energy_total"], rtol=1e-12)
    if "free_energy" in rows:
        change = rows["collision_energy"] + physics["temperature"] * np.diff(
            rows["entropy"], prepend=rows["entropy"][0]
        )
        assert np.allclose(np.diff(rows["free_energy"]), change[1:], atol=1e-10)


def test_a_conserving_run_restarts_to_the_bit(alone, tmp_path):
    sections = {"physics": {"initial_field": "zero"}, "time": CONSERVING, "method": {"collision": "langevin"}}
    simulation, _, _ = run(alone, "ampere", end=1.0, **sections)
    resumed = Simulation.resume(simulation.case, alone, load(simulation.save(tmp_path, {}), alone))
    for _ in range(2):
        rows = []
        for one in (simulation, resumed):
            one.state, one.step_index = one.advance(), one.step_index + 1
            rows.append(measure(one.diagnostics, one.state, alone))
        np.testing.assert_equal(*rows)
        assert np.array_equal(simulation.state.field.electric, resumed.state.field.electric)
        assert np.array_equal(simulation.state.particles.v, resumed.state.particles.v)


def test_only_ampere_conserves_energy(alone):
    with pytest.raises(
        UserError, match='time.energy_conserving = true does not work with physics.field = "poisson"'
    ) as caught:
        run(alone, "poisson", time=CONSERVING)
    assert "\n" not in str(caught.value)
