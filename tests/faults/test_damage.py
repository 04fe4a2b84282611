"""One damaged file in a run folder: each verb that reads it goes on without it, or names it in one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import SMALL_CASE, environment, quick, run_command

from hpc_kjko import UserError, open_run, restart
from hpc_kjko.cli.main import main
from hpc_kjko.files.checkpoint import latest
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.files.storage import hdf5_problem, warn_once

FILES = {
    "series": "series.h5",
    "snapshot": "snapshots/data00000005.h5",
    "checkpoint": "checkpoints/step00000010.h5",
    "case": "case.toml",
    "run": "run.json",
    "lock": ".lock",
    "log": "log.txt",
}
#: The exit code of each verb with each of the files that it reads. 0: it goes on, and names the file unless SILENT.
CODES = {
    "series": {"series": 2},
    "inspect": {"series": 0, "snapshot": 0, "checkpoint": 0, "run": 0},
    "plot": {"series": 2, "snapshot": 0, "case": 2},
    "report": {"series": 0, "snapshot": 0},
    "compare": {"series": 2},
    "watch": {"series": 0, "run": 0, "case": 2},
    "analyze": {"snapshot": 0, "case": 2},
    "restart": {"series": 0, "checkpoint": 0, "case": 2, "run": 0, "lock": 0, "log": 0},
}
#: Files that say no more than how a run stands, and are written anew.
SILENT = ("run", "lock", "log")
CASES = [(verb, file, how) for verb in CODES for file in CODES[verb] for how in ("truncated", "deleted", "garbage")]
CASES = [case for case in CASES if case[1:] != ("snapshot", "deleted")]  # which is none of the run's then


def damage(path, how):
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: content.index(b"= ") + 2 if path.suffix == ".toml" else len(content) // 2])
    else:
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))


@pytest.fixture
def damaged(a_run, tmp_path):
    """A copy of a finished run, with the function that damages a file of it."""
    folder = shutil.copytree(a_run, tmp_path / "out")
    warn_once.cache_clear()

    def make(file, how):
        damage(folder / FILES[file], how)
        return folder

    return make


@pytest.mark.parametrize(("verb", "file", "how"), CASES)
def test_a_damaged_file_costs_only_itself_and_is_named(verb, file, how, damaged, a_run, capfd, caplog):
    folder, code = damaged(file, how), 0
    more = {"compare": [str(a_run)], "watch": ["--once"]}.get(verb, [])
    try:
        if verb == "restart":  # from Python, where signals mean afterwards what they meant before
            assert restart(folder, ["time.end=1.1"], progress=False).status == "finished"
        else:
            code = main([verb, str(folder), *more])
    except UserError as mistake:
        code = mistake.exit_code
        caplog.records.clear()
        print(f"kjko: {mistake}", file=sys.stderr)
    out, err = capfd.readouterr()
    said = "".join((out + err + caplog.text).split("\n"))
    assert code == CODES[verb][file], said
    assert "Traceback" not in said and err.count("kjko: ") == (code != 0)
    unseen = (file, how) == ("checkpoint", "deleted")
    if file not in SILENT and not unseen and verb not in ("report", "watch"):
        name = FILES[file].rpartition("/")[2]
        assert name in said.replace("│", "").replace(" ", ""), said
    if verb == "report":
        page = (folder / "report.html").read_text()
        assert "Phase space, from the particles' log f" in page and ("Time series: " in page or file == "snapshot")
    if verb == "restart" and code == 0:
        steps = read_series(folder / "series.h5")["step"].tolist()
        assert steps == ([11] if file == "series" else list(range(12)))
        assert (folder / "series-before-step00000010.h5").exists() == (file == "series" and how != "deleted")
        assert latest(folder / "checkpoints").name == "step00000011.h5"


def test_rows_that_an_older_series_lacks_are_said_and_the_others_stay(damaged, a_run, capsys, caplog, tmp_path):
    folder = damaged("checkpoint", "deleted")  # the restart begins at step 8
    shutil.copytree(folder, tmp_path / "older")
    (tmp_path / "older/checkpoints/step00000008.h5").unlink()
    SeriesWriter.resume(folder / "series.h5", 3)[0].close()
    longer = restart(folder, progress=False)
    assert "series.h5 ends at step 3: the rows of steps 4 to 8 are lost" in caplog.text
    assert longer.series.step.values.tolist() == [0, 1, 2, 3, 9, 10]
    assert main(["inspect", str(folder)]) == 0
    assert "rows missing in series.h5" in (said := capsys.readouterr().out) and "4 to 8" in said
    with pytest.raises(UserError, match=r"wrote no checkpoint.*'kjko run .*older/case.toml --out .*older --force'"):
        restart(tmp_path / "older", progress=False)


def test_the_newest_checkpoint_that_is_sound_is_named(damaged, caplog):
    folder = damaged("checkpoint", "truncated")
    restart(folder, progress=False)
    assert "step00000010.h5 is not a complete checkpoint" in caplog.text and "using step 8 instead" in caplog.text
    for path in (folder / "checkpoints").iterdir():
        damage(path, "garbage")
    with pytest.raises(UserError, match="step00000008.h5.*no other checkpoint is left, so start the run anew"):
        restart(folder, ["time.end=1.2"], progress=False)


def test_labelled_data_leave_a_damaged_snapshot_out(damaged, caplog):
    run = open_run(damaged("snapshot", "truncated"))
    assert run.particles.step.values.tolist() == [0, 10] == run.fields.step.values.tolist()
    assert run.particles.x_1.isel(time=-1).shape == (3000,)
    assert caplog.text.count("data00000005.h5") == 1


def test_a_snapshot_that_breaks_while_it_is_read_is_skipped(damaged, caplog):
    """It opens; what it holds of particles and histograms is another thing than was written."""
    folder = damaged("log", "deleted")
    with h5py.File(folder / FILES["snapshot"], "r+") as file:
        del file["data/5/particles/markers/log_f"], file["data/5/histograms/markers/marginal_x"].attrs["gridSpacing"]
    assert main(["plot", str(folder)]) == 0 and main(["analyze", str(folder)]) == 0
    assert caplog.text.count("skipped: ") == 2  # once for each thing that is wrong
    assert read_series(folder / "analysis/moments.h5")["step"].tolist() == [0, 10]


# -- a process that is gone ------------------------------------------------------------------------------------------


def test_a_killed_run_is_said_to_be_gone(damaged, capsys):
    """The lock tells, on this host; elsewhere a run is what its files say."""
    folder = RunFolder(damaged("log", "deleted"))
    details = folder.status()
    folder.claim()
    try:
        folder.set_status("running", **{name: value for name, value in details.items() if name != "status"})
        assert folder.status()["status"] == "running"
    finally:
        folder.release()
    for verb in ("inspect", "watch"):
        assert main([verb, str(folder.path)]) == 0
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"process {os.getpid()} on" in said and "no longer exists and did not finish the run" in said
        assert "'kjko restart" in said
    assert open_run(folder.path).status == "gone"
    (folder.path / ".lock").write_text("process 1 on some other host\n")
    assert folder.status()["status"] == "running"


def test_a_run_that_is_killed_is_gone_and_goes_on(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(SMALL_CASE)
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\nfrom hpc_kjko.cli.main import main\nfrom hpc_kjko.running import simulation\n"
        "advance = simulation.Simulation.advance\n"
        "def last(self):\n"
        "    if self.step_index == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return advance(self)\n"
        "simulation.Simulation.advance = last\nmain(sys.argv[1:])\n"
    )
    result = run_command(quick(script, "run", "small.toml", "--out", "out"), tmp_path)
    assert result.returncode == -signal.SIGKILL
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "gone: process" in capsys.readouterr().out
    assert restart(tmp_path / "out", progress=False).status == "finished"


# -- file systems without locks --------------------------------------------------------------------------------------


FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
#: Commands in a process whose flock fails; prints what each gave.
COMMANDS = """
import contextlib, io, json, os, sys
from hpc_kjko.cli.main import main
run, numbers = sys.argv[1], sys.argv[2:]
for number in numbers:
    os.environ["FLOCK_ERRNO"] = number
    start = ["run", "small.toml", "--out", "out", "--set", "time.end=0.1", "--force"]
    for verb in (start, ["inspect", run], ["doctor"]):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(verb)
        print(json.dumps([verb[0], code, number, err.getvalue()]))
"""


def test_a_file_system_without_locks_is_named_and_does_without_them_when_told_to(a_run, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "flock.c").write_text(FLOCK)
    made = [compiler, "-shared", "-fPIC", "-o", tmp_path / "flock.so", tmp_path / "flock.c"]
    subprocess.run(made, check=True, capture_output=True)
    (tmp_path / "small.toml").write_text(SMALL_CASE)

    def found(*numbers, **more):
        line = [sys.executable, "-c", COMMANDS, str(a_run), *numbers]
        env = {**environment(), "LD_PRELOAD": str(tmp_path / "flock.so"), **more}
        said = subprocess.run(line, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=100, check=True)
        return [json.loads(line) for line in said.stdout.splitlines()]

    tried = found("37", "524")
    assert [verb for verb, *_ in tried] == ["run", "inspect", "doctor"] * 2
    for verb, code, number, err in tried:
        assert code == (1 if verb == "doctor" else 2) and err.count("kjko: ") == 1, err
        assert f"errno {number}" in err and "HDF5_USE_FILE_LOCKING=FALSE" in err
        assert "free space" not in err and "complete" not in err
    assert not (tmp_path / "out").exists()
    assert [code for _, code, _, _ in found("37", HDF5_USE_FILE_LOCKING="FALSE")] == [0, 0, 0]


def test_doctor_leaves_nothing_in_the_folder_that_it_tries(tmp_path):
    assert hdf5_problem(tmp_path) == "" and list(tmp_path.iterdir()) == []
    assert "cannot write" in hdf5_problem(tmp_path / "nowhere")
