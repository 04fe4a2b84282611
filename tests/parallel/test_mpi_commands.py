"""``kjko`` under a real mpirun: runs, restarts on another number of ranks, mistakes, doctor."""

import numpy as np
import pytest
from conftest import SMALL_CASE, quick, run_command

from hpc_kjko.files.checkpoint import latest, load
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.species import ONLY

#: Columns that time things, which no two runs share.
CLOCKS = {"seconds", "seconds_push", "seconds_collide"}


def assert_same_series(a, b, tolerance):
    assert list(a) == list(b)
    for name in a.keys() - CLOCKS:
        assert np.allclose(a[name], b[name], rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the small case without interruption, on two ranks, by each solver."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.toml").write_text(SMALL_CASE)
    for solver in ("adam", "varpro", "regression"):
        line = ("run", "small.toml", "--out", solver, "--set", f"method.solver={solver}")
        result = run_command(quick("-m", "hpc_kjko", *line, ranks=2), folder)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    ("ranks", "other_ranks", "solver"),
    [(2, 2, "adam"), (2, 2, "varpro"), (3, 1, "varpro"), (2, 2, "regression"), (3, 1, "regression")],
)
def test_a_restart_on_any_rank_count_equals_the_uninterrupted_run(
    ranks, other_ranks, solver, whole, kjko, small_case, tmp_path
):
    """To the bit on the same rank count, to 1e-9 on another."""
    whole = whole / solver
    change = ("--set", f"method.solver={solver}", "--set", "time.end=0.5")
    half = kjko("run", small_case, "--out", "half", *change, ranks=ranks)
    assert half.returncode == 0, half.stderr
    rest = kjko("restart", "half", "--set", "time.end=1.0", ranks=other_ranks)
    assert rest.returncode == 0, rest.stderr
    tolerance = 0.0 if ranks == other_ranks == 2 else 1e-9
    series = [read_series(folder / "series.h5") for folder in (whole, tmp_path / "half")]
    assert len(series[0]["time"]) == 11
    assert_same_series(*series, tolerance)
    states = [load(latest(folder / "checkpoints"), Communicator()) for folder in (whole, tmp_path / "half")]
    for first, second in ([state.species[ONLY].arrays for state in states], [state.state for state in states]):
        assert first.keys() == second.keys()
        for name in first:
            assert np.abs(first[name] - second[name]).max() <= tolerance, name
    snapshots = [{path.name for path in (folder / "snapshots").iterdir()} for folder in (whole, tmp_path / "half")]
    assert snapshots[0] == snapshots[1]


def test_a_mistake_is_said_once_and_nothing_is_written(kjko, small_case, tmp_path):
    wrong = kjko("run", small_case, "--out", "out", "--set", "time.stpe=0.1", ranks=3)
    assert wrong.returncode == 2
    assert wrong.stderr.count("time.stpe is not a known key: did you mean step?") == 1
    assert "Traceback" not in wrong.stderr and not (tmp_path / "out").exists()
    unparsed = kjko("run", small_case, "--speed", "fast", ranks=2)
    assert unparsed.returncode == 2 and unparsed.stderr.count("--speed") == 1


def test_verbs_that_read_files_print_once_and_the_log_is_that_of_one_rank(whole, kjko):
    shown = kjko("series", whole / "adam", ranks=2)
    assert shown.returncode == 0 and shown.stderr == ""
    assert kjko("series", whole / "adam").stdout == shown.stdout
    wrong = kjko("plot", whole / "adam", "--column", "lk", ranks=2)
    assert wrong.returncode == 2 and wrong.stderr.count("--column lk: the run has no such column") == 1
    log = (whole / "adam" / "log.txt").read_text()
    assert "3000 particles, 1024 to 1976 on each rank" in log


def test_doctor_tries_the_collectives(kjko):
    result = kjko("doctor", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "allreduce and DistributedDataParallel work" in result.stdout
    assert "rank 1: " in result.stdout
    assert "CUDA-aware" in result.stdout and "GPU kernels" in result.stdout


@pytest.mark.parametrize(("count", "weights"), [(1025, "equal"), (1000, "density"), (1025, "density")])
def test_a_rank_with_one_particle_or_none_writes_and_restarts_like_any_other(count, weights, kjko, small_case):
    """Whether weights are equal is a fact of the ensemble: one particle always looks as if they were."""
    settings = ["--set", f"particles.count={count}", "--set", f"particles.weights={weights}"]
    result = kjko("run", small_case, "--out", "out", "--set", "time.end=0.5", *settings, ranks=2)
    assert result.returncode == 0, result.stderr
    result = kjko("restart", "out", "--set", "time.end=1.0", ranks=2)
    assert result.returncode == 0, result.stderr
    series = read_series(small_case.parent / "out" / "series.h5")
    assert len(series["time"]) == 11 and np.abs(series["mass"] / series["mass"][0] - 1).max() < 1e-12


def test_a_potential_that_fails_on_one_rank_in_the_middle_of_a_run_ends_all_with_a_checkpoint(kjko, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def phi(x):\n"
        "    if len(x) > 100 and x.max() > 3.08:\n"
        "        raise RuntimeError('too far out')\n"
        "    return -x[:, 0]\n"
    )
    (tmp_path / "case.toml").write_text(
        '[problem]\nkind = "confined"\npotential = "mine:phi"\nmean_x = [0.0]\nstd_x = [0.5]\n'
        "[particles]\ncount = 2048\n[time]\nstep = 0.1\nend = 3.0\n[method]\ncollision = 'none'\n"
    )
    result = kjko("run", "case.toml", "--out", "out", ranks=2)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("it raised RuntimeError: too far out, in line 4 of mine.py (last good step:") == 1
    assert load(latest(tmp_path / "out" / "checkpoints"), Communicator()).header["step"] > 0
