"""``kjko analyze``: the same bits on any number of ranks, the moments of an exact solution, mistakes."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from conftest import quick, run_command

from hpc_kjko.case.config import from_table
from hpc_kjko.casefile import parse
from hpc_kjko.files.output import list_particles, read_snapshot, write_snapshot
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Shard, draw
from hpc_kjko.post.analysis import analyse
from hpc_kjko.reference.gaussian import gaussian_moments
from hpc_kjko.species import ONLY, Species

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
def gaussian(tmp_path_factory):
    """The folder of a run with an exact solution."""
    folder = tmp_path_factory.mktemp("gaussian")
    (folder / "case.toml").write_text(GAUSSIAN)
    result = run_command(quick("-m", "hpc_kjko", "run", "case.toml", "--out", "run"), folder)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def scattered(count, weights):
    """A case, and particles of it that were never pushed: 1D2V, float32, all of them on this rank."""
    case = from_table(parse('problem = {kind = "two_stream", velocity_dims = 2}'))
    shard = Shard(0, count, count)
    drawn = {"start": "random", "weights": weights, "seed": 1, "temperature": 1.0}
    return case, draw(case.problem, shard, **drawn, dtype=torch.float32, device=torch.device("cpu"))


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


@pytest.mark.parallel(3)
@pytest.mark.parametrize("weights", ["equal", "density"])
def test_the_results_have_the_same_bits_on_any_number_of_ranks(weights, world, tmp_path, monkeypatch):
    """Several slabs a rank, a last block that is not full, and a rank without particles."""
    monkeypatch.setattr("hpc_kjko.post.analysis.PASS", 3 * BLOCK)
    groups = {size: Communicator(world.mpi.Split(world.rank < size, world.rank)) for size in (1, 2)} | {3: world}
    for count in (20 * BLOCK + 7, BLOCK + 1):
        folder, found = world.bcast(tmp_path / str(count)), []
        case, particles = scattered(count, weights)
        if world.is_root:
            run = RunFolder(folder)
            options = {"time": 0.0, "time_step": 0.1, "run_attributes": {}, "names": [ONLY]}
            options["species"] = [Species(ONLY, 1.0, 1.0, particles)]
            write_snapshot(run.snapshots, Communicator(), step=0, **options)
        world.barrier()
        for size, group in groups.items():
            if world.rank < size:
                files = analyse(RunFolder(folder), case, group, {"software": "test"})
                if world.is_root:
                    names = ["data00000000.h5", "moments.h5", "moments.csv", "marginals.csv"]
                    assert [path.name for path in files] == names
                    found.append(contents(folder / "analysis"))
                    shutil.rmtree(folder / "analysis")
            world.barrier()
        if world.is_root:
            assert len(found[0]) > 20
            assert found[0] == found[1] == found[2]


def test_moments_are_those_of_the_particles_and_close_to_the_exact_solution(gaussian, kjko):
    run = gaussian
    analysed = kjko("analyze", run, ranks=2)
    assert analysed.returncode == 0, analysed.stderr
    assert analysed.stdout.splitlines()[-1] == str(run / "analysis/marginals.csv")
    moments = read_series(run / "analysis/moments.h5")
    series = read_series(run / "series.h5")
    assert moments["step"].tolist() == list_particles(run / "snapshots") == [0, 10, 20]
    for row, step in enumerate([0, 10, 20]):
        snapshot = read_snapshot(run / "snapshots", step, particles=slice(None))
        z = np.concatenate([snapshot.position, snapshot.velocity], axis=1).astype(np.float64)
        mean, covariance = z.mean(0), np.cov(z.T, bias=True)
        np.testing.assert_allclose([moments["mean_x_1"][row], moments["mean_v_1"][row]], mean, atol=1e-11)
        for i, j, name in ((0, 0, "x_1_x_1"), (0, 1, "x_1_v_1"), (1, 1, "v_1_v_1")):
            np.testing.assert_allclose(moments[f"covariance_{name}"][row], covariance[i, j], atol=1e-11)
        for ours, theirs in (("kl_equilibrium", "kl"), ("entropy",) * 2, ("mean_error",) * 2, ("kinetic_energy",) * 2):
            np.testing.assert_allclose(moments[ours][row], series[theirs][step], atol=2e-7, err_msg=ours)
        np.testing.assert_allclose(moments["marginal_l1_v_1"][row], series["marginal_l1_v_1"][step], rtol=1e-9)
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


def test_the_grid_solver_serves_as_the_known_density(gaussian, kjko_here, tmp_path):
    """Here it can be told from the exact solution by its own error alone."""
    run = shutil.copytree(gaussian, tmp_path / "run")
    analysed = kjko_here("analyze", run, "--reference", "grid")
    assert analysed.returncode == 0, analysed.stderr
    moments = read_series(run / "analysis/moments.h5")
    np.testing.assert_allclose(moments["kl_reference"], moments["kl_exact"], atol=2e-4)


def test_mistakes_are_one_sentence_on_all_ranks(gaussian, kjko, kjko_here, tmp_path):
    shutil.copytree(gaussian, tmp_path / "run")
    snapshots = tmp_path / "run/snapshots"
    damaged = snapshots / "data00000010.h5"
    with h5py.File(damaged, "r+") as file:
        file["data/10/particles/markers/momentum/x"][8000] = np.nan  # in the last rank's rows
    results = [kjko("analyze", "run", ranks=2)]
    for path in snapshots.iterdir():
        path.write_bytes(path.read_bytes()[:-5000])
    results.append(kjko("analyze", "run", ranks=3))
    for path in snapshots.iterdir():
        path.unlink()
    results += [kjko_here("analyze", folder) for folder in ("run", "nowhere")]
    says = ["step 10 are not finite from row 7168", "holds no particles"]
    for result, sentence in zip(results, [*says, "output.particles_every", "not a run folder"], strict=True):
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("kjko: ") == 1 and sentence in result.stderr and "Traceback" not in result.stderr
