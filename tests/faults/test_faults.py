"""Ranks that die, raise or hang on; signals; time limits; numbers that stop being numbers. No hang, a clear message."""

import json
import os
import shutil
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest
from conftest import SMALL_CASE, command, environment, quick, run_command

from hpc_kjko.cli.main import main
from hpc_kjko.files.checkpoint import latest, load
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running import driver

#: A job whose last rank misbehaves in step 6; checkpoints are every 4.
SABOTAGE = """
import os, signal, sys
from dataclasses import replace
from hpc_kjko.cli.main import main
from hpc_kjko.fields import poisson
from hpc_kjko.running import simulation
advance, drift, now = simulation.Simulation.advance, poisson.PoissonSolver.drift, []
def sabotaged(self):
    if self.step_index == 5 and self.comm.rank == self.comm.size - 1:
        now.append(True)
        {first}
    state = advance(self)
    if now:
        {then}
    return state
def lost(self, field, plasma, duration):
    if now and {x_too}:
        (one,) = plasma
        particles = replace(one.particles, x=one.particles.x.clone())
        particles.x[3] = float("inf")
        plasma = (one.moved(particles),)
    return drift(self, field, plasma, duration)
simulation.Simulation.advance, poisson.PoissonSolver.drift = sabotaged, lost
sys.exit(main(sys.argv[1:]))
"""
#: A job whose last rank is killed between the rows of x and those of v of the checkpoint at step 8.
KILLED_WRITER = """
import os, signal, sys
from hpc_kjko.cli.main import main
from hpc_kjko.files import storage
rows = storage.ShardedFile.rows
def killed(self, path, *arguments, **options):
    if path == "particles/markers/v" and "step00000008" in self.path.name and self._comm.rank == self._comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    rows(self, path, *arguments, **options)
storage.ShardedFile.rows = killed
sys.exit(main(sys.argv[1:]))
"""
#: A job whose objective overflows in the first step.
EXPLODES = """
import sys
from hpc_kjko.cli.main import main
from hpc_kjko.inner import objective
evaluate = objective.DensityObjective.evaluate
def exploded(self, *arguments, **options):
    value, gradient = evaluate(self, *arguments, **options)
    return value, gradient * float("inf")
objective.DensityObjective.evaluate = exploded
sys.exit(main(sys.argv[1:]))
"""
RAISE = {"first": "raise RuntimeError('rank 1 lost its way')"}
KILL = {"first": "os.kill(os.getpid(), signal.SIGKILL)"}
LOSE_V = {"then": "state.particles.v[3] = float('nan')"}
LOSE_F = {"then": "state.particles.log_f[3] = float('nan')"}
LOSE_X = {"x_too": "True"}
HARMLESS = {"first": "pass", "then": "pass", "x_too": "False"}


def sabotage(what, tmp_path, case, ranks, **options):
    script = tmp_path / "sabotage.py"
    script.write_text(SABOTAGE.format(**{**HARMLESS, **what}))
    return run_command(quick(script, "run", case, "--out", "out", ranks=ranks), tmp_path, timeout=60, **options)


def assert_loads(folder, step):
    state = load(latest(folder / "checkpoints"), Communicator())
    assert state.header["step"] == step
    assert all(np.isfinite(rows).all() for name, rows in state.species["markers"].arrays.items())


@pytest.mark.parametrize(("what", "says"), [(RAISE, "rank 1: RuntimeError: rank 1 lost its way"), (KILL, "signal 9")])
def test_a_rank_that_raises_or_is_killed_ends_the_job_and_the_checkpoint_loads(what, says, tmp_path, small_case, kjko):
    started = time.monotonic()
    result = sabotage(what, tmp_path, small_case, ranks=2)
    assert time.monotonic() - started < 30
    assert result.returncode not in (0, 2, 75)
    assert says in result.stderr
    assert_loads(tmp_path / "out", 4)
    if what is KILL:
        resumed = kjko("restart", "out")
        assert resumed.returncode == 0, resumed.stderr
        assert read_series(tmp_path / "out" / "series.h5")["step"].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("what", "says", "ranks"), [(LOSE_V, "momentum", 2), (LOSE_X, "position", 1), (LOSE_F, "entropy", 1)]
)
def test_numbers_that_are_lost_stop_all_ranks_with_one_message(what, says, ranks, tmp_path, small_case):
    result = sabotage(what, tmp_path, small_case, ranks)
    assert result.returncode == 1
    assert result.stderr.count("kjko: step 6: ") == 1 and says in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"
    assert_loads(tmp_path / "out", 5)


def test_a_network_that_explodes_leaves_a_checkpoint_of_the_last_good_step(kjko, small_case, tmp_path):
    script = tmp_path / "explodes.py"
    script.write_text(EXPLODES)
    result = run_command(quick(script, "run", small_case, "--out", "out", ranks=2), tmp_path, timeout=60)
    assert result.returncode == 1
    assert "step 1: " in result.stderr and "learning_rate" in result.stderr
    assert_loads(tmp_path / "out", 0)
    mended = kjko("restart", "out", "--set", "method.learning_rate=0.005")
    assert mended.returncode == 0, mended.stderr
    assert read_series(tmp_path / "out" / "series.h5")["step"].tolist() == list(range(11))
    (tmp_path / "out" / "series.h5").unlink()
    (tmp_path / "out" / "series.h5").mkdir()
    (tmp_path / "out" / "series-before-step00000010.h5").touch()  # where a folder cannot be put
    lost = kjko("restart", "out", "--set", "time.end=2.0", ranks=2)  # a failure of rank 0 alone is everybody's
    assert lost.returncode == 2 and lost.stderr.count("kjko: out: cannot use this folder") == 1


def test_a_rank_killed_in_the_middle_of_writing_leaves_the_checkpoint_before(tmp_path, small_case, kjko, kjko_here):
    """Of the checkpoint at step 8 some rows are written. Also run with an h5py for MPI (scripts/test.sh)."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WRITER)
    result = run_command(quick(script, "run", small_case, "--out", "out", ranks=2), tmp_path, timeout=60)
    assert result.returncode not in (0, 2, 75) and "signal 9" in result.stderr
    writer = "MPI-IO by all ranks" if h5py.get_config().mpi else "rank 0 gathers"
    assert writer in (tmp_path / "out/log.txt").read_text()
    partial = tmp_path / "out/checkpoints/.step00000008.h5.partial"
    assert partial.stat().st_size > 3000 * 8
    assert_loads(tmp_path / "out", 4)
    assert "checkpoints/.step00000008.h5.partial" in kjko_here("inspect", "out").stdout
    resumed = kjko("restart", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert ".step00000008.h5.partial is incomplete" in resumed.stdout
    assert read_series(tmp_path / "out/series.h5")["step"].tolist() == list(range(11)) and not partial.exists()


def test_an_error_that_did_not_reach_every_rank_ends_them_all(tmp_path, small_case):
    result = sabotage(
        {"first": "from hpc_kjko.errors import UserError; raise UserError('known to one rank')"},
        tmp_path,
        small_case,
        2,
    )
    assert result.returncode not in (0, 75)
    assert_loads(tmp_path / "out", 4)


def start_endless(start, tmp_path, case, ranks):
    """A run that would go on for hours, once it is past its first steps."""
    line = start("-m", "hpc_kjko", "run", case, "--out", "out", "--set", "time.end=100000.0", ranks=ranks)
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "checkpoints").is_dir() or not any((tmp_path / "out" / "checkpoints").glob("step*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("name", "ranks", "start"), [("SIGTERM", 1, command), ("SIGUSR2", 2, command), ("SIGINT", 1, quick)]
)
def test_a_signal_stops_with_a_checkpoint_and_exit_75(name, ranks, start, tmp_path, small_case, kjko):
    """Also with nothing but mpirun and Python between the shell and the run (tests/forkserver.py)."""
    process = start_endless(start, tmp_path, small_case, ranks)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "kjko restart out" in out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "stopped"
    series = read_series(tmp_path / "out" / "series.h5")
    last = int(series["step"][-1])
    assert_loads(tmp_path / "out", last)
    if ranks == 2:
        more = kjko("restart", "out", "--set", f"time.end={0.1 * (last + 2):.1f}")
        assert more.returncode == 0, more.stderr
        assert len(read_series(tmp_path / "out" / "series.h5")["step"]) == last + 3


def test_a_signal_after_the_last_step_does_not_undo_it(tmp_path, small_case):
    """A batch system's early signal may come while the process already ends."""
    script = tmp_path / "late.py"
    late = "code = main(sys.argv[1:])\nos.kill(os.getpid(), signal.SIGUSR2)\nsys.exit(code)\n"
    script.write_text(f"import os, signal, sys\nfrom hpc_kjko.cli.main import main\n{late}")
    result = run_command(quick(script, "run", small_case, "--set", "time.end=0.1"), tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_wall_time_stops_with_a_checkpoint_and_exit_75(tmp_path, small_case, kjko):
    result = kjko("run", small_case, "--out", "out", "--set", "time.end=1e5", "--set", "run.wall_time=2", ranks=2)
    assert result.returncode == 75
    assert_loads(tmp_path / "out", int(read_series(tmp_path / "out" / "series.h5")["step"][-1]))


def test_the_wall_time_counts_from_the_start_of_the_process(tmp_path, small_case, monkeypatch):
    monkeypatch.setattr(driver, "process_began", lambda: time.monotonic() - 3600)
    assert main(["run", str(small_case), "--out", str(tmp_path / "out"), "--set", "run.wall_time=3600"]) == 75
    assert read_series(tmp_path / "out" / "series.h5")["step"][-1] == 1
    hour_more = ["--set", "run.wall_time=7200"]
    assert main(["restart", str(tmp_path / "out"), *hour_more]) == 0


def test_the_start_of_the_process_is_what_the_system_says():
    forked = time.monotonic()
    child = os.fork()
    if child == 0:
        time.sleep(0.3)
        os._exit(0 if forked - 0.05 < driver.process_began() < time.monotonic() - 0.2 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(SMALL_CASE)
    result = run_command(quick("-m", "hpc_kjko", "run", "small.toml", "--out", "out"), folder)
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_a_damaged_newest_checkpoint_is_passed_over(finished, kjko, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    newest = latest(tmp_path / "out" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-2000])
    result = kjko("restart", "out")
    assert result.returncode == 0
    assert newest.name in result.stdout + result.stderr
    assert_loads(tmp_path / "out", 10)


def test_a_checkpoint_of_another_case_is_refused(finished, kjko, tmp_path):
    """Also a case.toml that was edited: a restart continues a state, and would not do what the file says."""
    shutil.copytree(finished, tmp_path / "other")
    text = (tmp_path / "other/case.toml").read_text()
    (tmp_path / "other/case.toml").write_text(text.replace("collision_strength = 0.1", "collision_strength = 0.2"))
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*.h5")}
    result = kjko("restart", "other", "--set", "time.end=2.0")
    assert result.returncode == 2 and result.stderr.count("kjko: ") == 1 and "Traceback" not in result.stderr
    assert "physics.collision_strength = 0.2, but the checkpoint of step 10 was written with 0.1" in result.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "other").rglob("*.h5")}
    (tmp_path / "other/case.toml").write_text("no case")
    result = kjko("restart", "other", "--set", "time.end=2.0")
    assert result.returncode == 2 and "other/case.toml: not a TOML file" in result.stderr


def test_a_full_disk_ends_with_one_sentence_and_the_checkpoint_before(small_case, tmp_path, kjko):
    """A real one, of 3 MB; what a quota refuses instead is in tests/parallel/test_files_parallel.py."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        often = [f"--set=output.{name}={every}" for name, every in (("histogram_every", 1), ("checkpoint_every", 2))]
        result = kjko("run", small_case, "--out", disk / "out", *often, ranks=2)
        assert result.returncode == 1, result.stderr
        assert result.stderr.count("kjko: ") == 1 and "check the free space" in result.stderr
        assert f"'kjko restart {disk}/out' continues from the last checkpoint" in result.stderr
        assert "Traceback" not in result.stderr
        step = int(latest(disk / "out/checkpoints").stem.removeprefix("step"))
        assert 2 <= step < 10
        assert_loads(disk / "out", step)
        shutil.copytree(disk / "out", tmp_path / "more_space")
    finally:
        subprocess.run(["umount", disk], check=True)
    resumed = kjko("restart", "more_space", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert read_series(tmp_path / "more_space/series.h5")["step"].tolist() == list(range(11))


def test_ranks_of_another_mpirun_are_noticed(tmp_path, small_case):
    """What a foreign mpirun does: several processes that each believe to be alone."""
    line = command("-m", "hpc_kjko", "run", small_case, "--out", "out")
    env = {**environment(), "PMI_SIZE": "4"}
    result = subprocess.run(line, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "4 ranks" in result.stderr and "mpirun" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(small_case, kjko):
    """Below a file: refused to everybody, root included."""
    result = kjko("run", small_case, "--out", small_case / "out")
    assert result.returncode == 2 and "small.toml/out" in result.stderr and "Traceback" not in result.stderr
