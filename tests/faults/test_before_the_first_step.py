"""Before the first step: a signal ends the run, a full disk says how to go on, and no half of a folder is left."""

import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import SMALL_CASE, command, environment, quick

from hpc_kjko import Case, UserError, restart, run
from hpc_kjko.cli.main import main
from hpc_kjko.errors import DiskFailure
from hpc_kjko.files.series import read_series

#: Code that hangs when it is imported, or when particles are drawn; in Python, or in MPI on the rank that waits.
HANGING = """
import os, time, torch
from pathlib import Path
def hang():
    Path(f"hanging-{os.getpid()}").touch()
    time.sleep(100)
if Path("on-import").exists():
    hang()
class Start:
    def sample(self, points, temperature):
        if len(points) > 4:
            hang()
        return points[:, :1], points[:, 1:]
    def log_density(self, x, v, temperature):
        return -v[:, 0] ** 2
start = Start()
"""
CASE = """
[problem]
kind = "confined"
initial_density = "hanging:start"
[particles]
count = 4096
"""


def is_alive(process):
    """Whether a process runs; one that has ended may wait long for somebody to ask for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("where", "ranks", "name", "code"),
    [
        ("import", 1, "SIGTERM", 143),
        ("draw", 1, "SIGINT", 130),
        ("draw", 2, "SIGUSR2", 140),
        ("import", 3, "SIGTERM", None),
    ],
)
def test_a_signal_before_the_first_step_ends_all_ranks_and_leaves_no_folder(where, ranks, name, code, tmp_path):
    """On import rank 0 hangs and the others wait for it in MPI; mpirun has words and a code of its own for SIGTERM."""
    (tmp_path / "hanging.py").write_text(HANGING)
    (tmp_path / "case.toml").write_text(CASE)
    if where == "import":
        (tmp_path / "on-import").touch()
    start = command if ranks == 1 else quick
    line = start("-m", "hpc_kjko", "run", "case.toml", "--out", "out", ranks=ranks)
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (hanging := list(tmp_path.glob("hanging-*"))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=20)
    assert process.returncode == code if code else process.returncode != 0
    if code:
        assert err.count("kjko: ") == 1 and f"kjko: ended by {name} before the first step" in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()
    while any(is_alive(path.name.partition("-")[2]) for path in hanging):
        assert time.monotonic() < deadline + 20
        time.sleep(0.05)


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL_CASE)
    return Case.load(tmp_path / "small.toml")


def until(case, end):
    return case.model_copy(update={"time": case.time.model_copy(update={"end": end})})


@pytest.fixture
def handlers():
    """Those of the test's own process, which a command leaves behind."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


class FullDisk:
    """No file may grow beyond so many bytes, as on a disk that is full."""

    def __init__(self, nbytes):
        self._nbytes = nbytes

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._nbytes, self._before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize("nbytes", [0, 10, 700, 20_000])
def test_a_disk_that_is_full_at_once_leaves_no_folder(nbytes, small, tmp_path):
    """Not even the case, the status or an HDF5 file fits."""
    with FullDisk(nbytes), pytest.raises(DiskFailure) as failure:
        run(small, tmp_path / "out", progress=False)
    assert str(tmp_path / "out") in str(failure.value)
    left = (tmp_path / "out").exists()
    assert left == (nbytes == 20_000)
    if not left:
        assert run(until(small, 0.1), tmp_path / "out", progress=False).status == "finished"


def test_a_disk_that_is_full_before_the_first_checkpoint_says_how_to_start_anew(tmp_path, capsys, handlers):
    case, out = tmp_path / "small.toml", tmp_path / "out"
    case.write_text(SMALL_CASE)
    with FullDisk(300_000):  # the series fits, a snapshot does not
        code = main(["run", str(case), "--out", str(out), "--set", "particles.count=20000"])
    err = capsys.readouterr().err
    anew = f"'kjko run {out}/case.toml --out {out} --force' starts the run from the beginning"
    assert code == 1 and err.count("kjko: ") == 1 and "no checkpoint has been written" in err and anew in err, err
    assert main(["restart", str(out)]) == 2
    assert "so there is nothing to restart from: 'kjko run" in capsys.readouterr().err
    assert main(["run", str(case), "--out", str(out)]) == 2
    assert "it has no checkpoint to restart from, so --force overwrites it" in capsys.readouterr().err
    assert main(["inspect", str(out)]) == 0
    assert main(["run", f"{out}/case.toml", "--out", str(out), "--force", "--set", "time.end=0.1"]) == 0
    assert read_series(out / "series.h5")["step"].tolist() == [0, 1]


def test_a_disk_that_is_full_later_says_that_a_restart_goes_on(small, tmp_path):
    out = tmp_path / "out"
    short = until(small, 0.4)
    run(short, out, progress=False)
    with FullDisk(50_000), pytest.raises(DiskFailure, match=f"'kjko restart {out}' continues from the last checkpoint"):
        restart(out, ["time.end=0.8"], progress=False)
    assert restart(out, ["time.end=0.8"], progress=False).status == "finished"


def test_what_a_killed_start_leaves_is_no_obstacle(small, tmp_path):
    out = tmp_path / "out"
    short = until(small, 0.1)
    run(short, out, progress=False)
    for name in ("case.toml", "series.h5"):  # killed before it had a case
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint to restart from, so --force overwrites it"):
        run(short, out, progress=False)
    assert run(short, out, force=True, progress=False).status == "finished"
    for path in out.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(short, out, progress=False).status == "finished"
