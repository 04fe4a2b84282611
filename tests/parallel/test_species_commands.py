"""A run of two species in a magnetic field, with a drive and collisions, through the commands and its files."""

import warnings

import numpy as np
import pytest

from hpc_kjko import open_run
from hpc_kjko.files.checkpoint import latest, load
from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # regular expressions of the validator that newer Pythons dislike
    from openpmd_validator.check_h5 import check_file
    from openpmd_viewer import OpenPMDTimeSeries

CASE = """
[problem]
kind = "plasma"
length = 12.566370614359172
velocity_dims = 2

[species.electrons]
charge = -1.0
mass = 1.0
count = 3000
amplitude = 0.1
collision_strength = 0.2

[species.ions]
charge = 2.0
mass = 50.0
count = 1500
density = 0.4
temperature = 0.2
initial = "bi_maxwellian"
temperatures = [0.3, 0.1]
collision_strength = 0.1
collision_operator = "dougherty"

[physics]
magnetic_field = [0.0, 0.0, 0.5]

[physics.drive]
amplitude = 0.05
frequency = 1.2

[grid]
cells = 16

[time]
step = 0.1
end = 0.8

[method]
hidden = [8]
iterations = 2
first_iterations = 5

[output]
every = 4
particles_every = 4
histogram_every = 4
checkpoint_every = 4
"""

#: The same, of which all particles collide with all.
COULOMB = "".join(line for line in CASE.splitlines(True) if not line.startswith("collision_")).replace(
    "[physics]\n", '[physics]\ncollision_operator = "landau"\ncollision_strength = 0.05\nlandau = {block = 64}\n'
)


@pytest.fixture
def case(tmp_path):
    (tmp_path / "case.toml").write_text(CASE)
    return "case.toml"


@pytest.mark.parametrize("text", [CASE, COULOMB], ids=["bath and dougherty", "coulomb"])
def test_a_restart_on_another_number_of_ranks_has_the_same_bits(text, kjko, tmp_path):
    """Three ranks, of which some have no ions, then two, against one; every array of the state and every column."""
    case = "case.toml"
    (tmp_path / case).write_text(text)
    whole = kjko("run", case, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "a uniform background of charge density 0.2 makes the box neutral" in whole.stderr + whole.stdout
    half = kjko("run", case, "--out", "half", "--set", "time.end=0.4", ranks=3)
    assert half.returncode == 0, half.stderr
    rest = kjko("restart", "half", "--set", "time.end=0.8", ranks=2)
    assert rest.returncode == 0, rest.stderr
    states = [load(latest(tmp_path / name / "checkpoints"), Communicator()) for name in ("whole", "half")]
    for first, second in (
        [state.state for state in states],
        *([state.species[name].arrays for state in states] for name in ("electrons", "ions")),
    ):
        assert first.keys() == second.keys() and first
        for name in first:
            assert np.array_equal(first[name], second[name]), name
    first, second = (read_series(tmp_path / name / "series.h5") for name in ("whole", "half"))
    for name in first.keys() - {column for column in first if column.startswith("seconds")}:
        assert np.array_equal(first[name], second[name]), name
    certified = "electrons_certificate" if text is CASE else "certificate"
    assert {certified, "ions_sparse_nodes", "drive_energy", "ions_temperature_2"} < first.keys()
    for verb in ("inspect", "report") if text is COULOMB else ():
        shown = kjko(verb, "half")
        assert shown.returncode == 0, shown.stderr


def test_files_hold_each_species_for_other_readers_too(case, kjko, tmp_path):
    """openPMD, its viewer, and our own: physical momenta m v, charge and mass, histograms by species."""
    result = kjko("run", case, "--out", "out", ranks=2)
    assert result.returncode == 0, result.stderr
    snapshots = tmp_path / "out" / "snapshots"
    assert check_file(str(snapshots / "data00000008.h5"))[0] == 0
    viewer = OpenPMDTimeSeries(str(snapshots), backend="h5py")
    assert sorted(viewer.avail_species) == ["electrons", "ions"]
    assert set(viewer.avail_fields) == {"rho", "density_electrons", "density_ions", "potential", "E"}
    state = load(latest(tmp_path / "out" / "checkpoints"), Communicator())
    for name, mass, charge in (("electrons", 1.0, -1.0), ("ions", 50.0, 2.0)):
        v = state.species[name].arrays["v"]
        momentum, masses, charges = viewer.get_particle(["uy", "mass", "charge"], species=name, iteration=8)
        np.testing.assert_allclose(momentum * 299792458, v[:, 1], rtol=1e-12)  # it divides m v by m c
        assert np.all(masses == mass) and np.all(charges == charge)
        np.testing.assert_allclose(read_snapshot(snapshots, 8, slice(None), species=name).velocity, v, rtol=1e-15)
    run = open_run(tmp_path / "out")
    assert run.species == ["electrons", "ions"]
    assert run.particles.sizes["particle"] == 3000 and run.of("ions").particles.sizes["particle"] == 1500
    ions = run.of("ions").particles.isel(time=-1)
    np.testing.assert_allclose(ions.v_1, state.species["ions"].arrays["v"][:, 0], rtol=1e-15)
    fields = run.fields.isel(time=-1)
    np.testing.assert_allclose(fields.rho, 2 * fields.density_ions - fields.density_electrons, atol=1e-12)
    assert float(fields.density_ions.mean()) == pytest.approx(0.4)
    assert run.of("ions").histograms.f_x_1_v_1.isel(time=-1).sum() > 0
    analysed = kjko("analyze", "out", ranks=2)
    assert analysed.returncode == 0, analysed.stderr
    series = read_series(tmp_path / "out" / "series.h5")
    for name in ("electrons", "ions"):
        moments = read_series(tmp_path / "out" / "analysis" / name / "moments.h5")
        assert list(moments["step"]) == [0, 4, 8]
        for column in ("mass", "kinetic_energy", "entropy"):
            np.testing.assert_allclose(moments[column], series[f"{name}_{column}"][::4], rtol=1e-9)
    for verb in (("inspect", "out"), ("plot", "out"), ("series", "out"), ("report", "out")):
        shown = kjko(*verb)
        assert shown.returncode == 0, shown.stderr
