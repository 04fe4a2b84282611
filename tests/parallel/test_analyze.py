"""``kjko analyze``: the same bits on any number of ranks, and the moments of an exact solution."""

import shutil
from fractions import Fraction

import h5py
import numpy as np
import pytest
from conftest import SMALL_CASE, command, run_command

from hpc_kjko.analysis import ExactSum
from hpc_kjko.comm import Communicator
from hpc_kjko.output import list_particles, particle_file, read_snapshot
from hpc_kjko.reference.gaussian import gaussian_moments
from hpc_kjko.series import read_series

GAUSSIAN = """
[problem]
kind = "gaussian"
[physics]
collision_strength = 1.0
[particles]
count = 8192
[time]
step = 0.05
end = 1.0
[method]
hidden = []
[output]
particles_every = 10
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: particles of unequal weights, a last block that is not full; and one with an exact solution."""
    folder = tmp_path_factory.mktemp("runs")
    cases = {"small": SMALL_CASE, "gaussian": GAUSSIAN}
    settings = {"small": ["particles.weights=density", "particles.count=3500"], "gaussian": []}
    for name, text in cases.items():
        (folder / f"{name}.toml").write_text(text)
        changes = [word for setting in settings[name] for word in ("--set", setting)]
        result = run_command(command("-m", "hpc_kjko", "run", f"{name}.toml", "--out", name, *changes), folder)
        assert result.returncode == 0, result.stderr
    return folder


def contents(folder):
    """Every number in the files of a folder, as bytes."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    found.__setitem__(f"{path.name}/{name}", item[()].tobytes())
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return found


def test_the_results_have_the_same_bits_on_any_number_of_ranks(runs, kjko, kjko_here, tmp_path):
    found = []
    for ranks in (1, 2, 3):
        shutil.copytree(runs / "small", tmp_path / "run", dirs_exist_ok=True)
        result = (kjko_here if ranks == 1 else kjko)("analyze", "run", **({} if ranks == 1 else {"ranks": ranks}))
        assert result.returncode == 0, result.stderr
        assert [line.rpartition("/")[2] for line in result.stdout.split()] == [
            *(f"data{step:08d}.h5" for step in (0, 5, 10)),
            *("moments.h5", "moments.csv", "marginals.csv"),
        ]
        found.append(contents(tmp_path / "run/analysis"))
        shutil.rmtree(tmp_path / "run")
    assert len(found[0]) > 20
    assert found[0] == found[1] == found[2]


def test_moments_are_those_of_the_particles_and_close_to_the_exact_solution(runs, kjko_here):
    run = runs / "gaussian"
    assert kjko_here("analyze", run).returncode == 0
    moments = read_series(run / "analysis/moments.h5")
    series = read_series(run / "series.h5")
    assert moments["step"].tolist() == list_particles(run / "snapshots") == [0, 10, 20]
    for row, step in enumerate([0, 10, 20]):
        snapshot = read_snapshot(run / "snapshots", step, particles=slice(None))
        z = np.concatenate([snapshot.position, snapshot.velocity], axis=1).astype(np.float64)
        mean, covariance = z.mean(0), np.cov(z.T, bias=True)
        np.testing.assert_allclose([moments["mean_x_1"][row], moments["mean_v_1"][row]], mean, rtol=1e-13)
        for i, j, name in ((0, 0, "x_1_x_1"), (0, 1, "x_1_v_1"), (1, 1, "v_1_v_1")):
            np.testing.assert_allclose(moments[f"covariance_{name}"][row], covariance[i, j], atol=1e-13)
        for ours, theirs in (("kl_equilibrium", "kl"), ("entropy",) * 2, ("mean_error",) * 2, ("kinetic_energy",) * 2):
            np.testing.assert_allclose(moments[ours][row], series[theirs][step], atol=2e-7, err_msg=ours)
        np.testing.assert_allclose(moments["marginal_l1_v_1"][row], series["marginal_l1_v_1"][step], rtol=1e-12)
        recorded, analysed = snapshot, read_snapshot(run / "analysis", step)
        np.testing.assert_allclose(analysed.histograms[0].values, recorded.histograms[0].values, rtol=1e-13)
        for ours, theirs in zip(analysed.marginals, recorded.marginals, strict=True):
            np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-13)
    problem = {"mean": [1.5, -0.5], "covariance": [[0.5, 0.1], [0.1, 0.3]]}
    means, covariances = gaussian_moments(
        np.array(problem["mean"]), np.array(problem["covariance"]), np.eye(1), 1.0, 1.0, moments["time"]
    )
    assert np.abs(moments["mean_v_1"] - means[:, 1]).max() < 2e-3  # second order in h = 0.05, and 8192 particles
    assert np.abs(moments["covariance_x_1_v_1"] - covariances[:, 0, 1]).max() < 2e-3
    assert np.abs(moments["kl_exact"]).max() < 2e-3 < moments["kl_equilibrium"][0]


def test_mistakes_are_one_sentence_on_all_ranks(runs, kjko, kjko_here, tmp_path):
    shutil.copytree(runs / "small", tmp_path / "run")
    snapshots = tmp_path / "run/snapshots"
    damaged = snapshots / "data00000005.h5"
    with h5py.File(damaged, "r+") as file:
        file["data/5/particles/markers/momentum/x"][3200] = np.nan  # in the last rank's rows
    for says in ("step 5 are not finite from row 3072", f"{damaged.name} is not a complete snapshot"):
        result = kjko("analyze", "run", ranks=2)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("kjko: ") == 1 and says in result.stderr and "Traceback" not in result.stderr
        damaged.write_bytes(damaged.read_bytes()[:-5000])
    for path in snapshots.iterdir():
        path.unlink()
    for folder, says in (("run", "output.particles_every"), ("nowhere", "not a run folder")):
        result = kjko_here("analyze", folder)
        assert result.returncode == 2 and result.stderr.count("kjko: ") == 1 and says in result.stderr


def test_exact_sums_are_exact():
    rng = np.random.default_rng(0)
    terms = rng.standard_normal((500, 3)) * 10.0 ** rng.integers(-300, 300, (500, 3))
    terms[:4] = [[0.0, 5e-324, 1e308], [-0.0, -5e-324, -1e308], [1e16, 1.0, 1e300], [-1e16, 2.0**-1022, 7.0]]
    sums = ExactSum(3)
    for row in terms:
        sums.add(row)
    expected = [float(sum(map(Fraction, column))) for column in terms.T]
    assert sums.total(Communicator()).tolist() == expected


def test_a_file_is_read_in_pieces(runs):
    with particle_file(runs / "small/snapshots", 5) as file:
        assert (file.total, file.has_equal_weights) == (3500, False)
        whole, piece = file.rows(slice(None)), file.rows(slice(1000, 1007))
        np.testing.assert_array_equal(piece["velocity"], whole["velocity"][1000:1007])
