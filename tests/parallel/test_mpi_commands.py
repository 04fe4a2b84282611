"""``kjko`` under a real mpirun: runs, restarts on another number of ranks, mistakes, doctor."""

import numpy as np
import pytest

from hpc_kjko.checkpoint import latest, load
from hpc_kjko.comm import Communicator
from hpc_kjko.series import read_series

#: Columns that time things, which no two runs share.
CLOCKS = {"seconds"}


def assert_same_series(a, b, tolerance):
    assert list(a) == list(b)
    for name in a.keys() - CLOCKS:
        assert np.allclose(a[name], b[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize(("ranks", "other_ranks"), [(2, 3), (3, 1), (1, 2)])
def test_a_restart_on_another_rank_count_equals_the_uninterrupted_run(ranks, other_ranks, kjko, small_case, tmp_path):
    whole = kjko("run", small_case, "--out", "whole", ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    half = kjko("run", small_case, "--out", "half", "--set", "time.end=0.5", ranks=ranks)
    assert half.returncode == 0, half.stderr
    rest = kjko("restart", "half", "--set", "time.end=1.0", ranks=other_ranks)
    assert rest.returncode == 0, rest.stderr
    series = [read_series(tmp_path / name / "series.h5") for name in ("whole", "half")]
    assert len(series[0]["time"]) == 11
    assert_same_series(*series, tolerance=1e-9)
    states = [load(latest(tmp_path / name / "checkpoints"), Communicator()) for name in ("whole", "half")]
    for kind in ("particles", "state"):
        first, second = (getattr(state, kind) for state in states)
        assert first.keys() == second.keys()
        for name in first:
            assert np.abs(first[name] - second[name]).max() < 1e-9, name
    assert {path.name for path in (tmp_path / "whole" / "snapshots").iterdir()} == {
        path.name for path in (tmp_path / "half" / "snapshots").iterdir()
    }


def test_a_restart_on_the_same_rank_count_repeats_the_bits(kjko, small_case, tmp_path):
    kjko("run", small_case, "--out", "whole", ranks=2)
    kjko("run", small_case, "--out", "half", "--set", "time.end=0.5", ranks=2)
    kjko("restart", "half", "--set", "time.end=1.0", ranks=2)
    whole, half = (read_series(tmp_path / name / "series.h5") for name in ("whole", "half"))
    assert all(np.array_equal(whole[name], half[name]) for name in whole.keys() - CLOCKS)


def test_replicated_and_root_field_solves_agree(kjko, small_case, tmp_path):
    for solver in ("root", "replicated"):
        assert kjko("run", small_case, "--out", solver, "--set", f"grid.solver={solver}", ranks=2).returncode == 0
    assert_same_series(*(read_series(tmp_path / s / "series.h5") for s in ("root", "replicated")), tolerance=1e-12)


def test_a_mistake_is_said_once_and_nothing_is_written(kjko, small_case, tmp_path):
    wrong = kjko("run", small_case, "--out", "out", "--set", "time.stpe=0.1", ranks=3)
    assert wrong.returncode == 2
    assert wrong.stderr.count("time.stpe is not a known key: did you mean step?") == 1
    assert "Traceback" not in wrong.stderr and not (tmp_path / "out").exists()
    unparsed = kjko("run", small_case, "--speed", "fast", ranks=2)
    assert unparsed.returncode == 2 and unparsed.stderr.count("--speed") == 1


def test_doctor_tries_the_collectives(kjko):
    result = kjko("doctor", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "allreduce and DistributedDataParallel work" in result.stdout
    assert "rank 1: " in result.stdout
