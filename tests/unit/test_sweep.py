"""``kjko sweep``: a case over a grid of its keys, run here or written as a SLURM array job."""

import contextlib
import csv
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from hpc_kjko.errors import UserError
from hpc_kjko.files.series import read_series
from hpc_kjko.post import overview

#: The first is more than any machine of ours has memory for.
COUNTS = "particles.count=100000000000,3000,2048"


def rows_of(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_that_fails_stops_no_other_and_one_that_has_finished_is_not_run_again(
    a_run, kjko_here, small_case, tmp_path, quick_children
):
    out = tmp_path / "a sweep"
    mine = shutil.copytree(a_run, out / "count=3000,collision_strength=0.1")
    (out / "sweep.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}

    result = kjko_here("sweep", small_case, "--grid", COUNTS, "--grid", "physics.collision_strength=0.1", "--out", out)
    assert result.returncode == 1 and "1 of 3 runs failed: count=100000000000" in result.stderr
    assert "run 2 of 3: count=3000,collision_strength=0.1 has finished" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    failed, mine, other = rows_of(out)
    assert (failed["status"], failed["kl"], failed["seconds"]) == ("failed", "", "")
    series = read_series(a_run / "series.h5")
    assert mine["particles.count"] == "3000" and mine["status"] == other["status"] == "finished"
    assert float(mine["kl"]) == series["kl"][-1] and int(mine["certified"]) == (series["certificate"][1:] == 1).sum()
    assert float(other["energy"]) == pytest.approx(float(mine["energy"]), rel=0.05)
    (out / "sweep.csv").unlink()
    page = (out / "index.html").read_text()
    assert "count=3000,collision_strength=0.1" in page and "which differ in particles.count" in page
    table = kjko_here("sweep", out, "--table")
    assert table.returncode == 0 and rows_of(out)[1] == mine
    for text in ("count", "100000000000", "not begun", "10/0/0", "none [1]"):
        assert text in table.stdout
    why = "no rate of growth or damping: the series has 11 rows with energy in the wave, but a fit needs 12"
    assert f"[1] {why}" in " ".join(table.stdout.split()) and (mine["rate"], mine["rate_note"]) == ("", why)
    assert "strength" not in table.stdout  # the same in all

    curves, last = overview.pictures(overview.runs_in([out])[0], ["kl"])
    assert (curves.name, last.name) == ("curves_kl", "final_values_particles_count_kl")
    names = [picture.name for picture in overview.pictures(overview.runs_in([out])[0])]
    assert names == ["curves", "final_values_particles_count"]  # there are no rates
    assert [curve.label for curve in curves.panels[0].curves] == ["count = 2048", "count = 3000"]
    (points,) = last.panels[0].curves
    assert last.panels[0].x.label == "number of particles" and points.x.tolist() == [2048, 3000]
    assert last.title == "Last values of the finished runs against the number of particles"
    assert points.y[1] == series["kl"][-1]
    with pytest.raises(UserError, match="--column lk: no run has such a column: it may be one of"):
        list(overview.pictures(overview.runs_in([out])[0], ["lk"]))


def test_a_run_that_holds_another_is_still_shown_as_itself(a_run, tmp_path):
    outer = shutil.copytree(a_run, tmp_path / "outer")
    inner = shutil.copytree(a_run, outer / "inner")
    runs, unreadable = overview.runs_in([outer, inner])
    assert [run.name for run in runs] == ["outer", "outer/inner"] and not unreadable


def test_a_column_of_unfinished_runs_alone_has_no_last_values(a_run, tmp_path):
    outer = shutil.copytree(a_run, tmp_path / "outer")
    (one, other), _ = overview.runs_in([outer, shutil.copytree(a_run, outer / "inner")])
    without = {name: values for name, values in one.series.items() if name != "kl"}
    runs = [
        dataclasses.replace(one, name=f"h = {h}", series=without, keys=one.keys | {"time.step": h}) for h in (0.1, 0.2)
    ]
    runs.append(dataclasses.replace(other, status=other.status | {"status": "running"}))
    curves, last = overview.pictures(runs)
    assert [len(panel.curves[0].x) for panel in last.panels] == [2] * (len(curves.panels) - 1)
    begun = dataclasses.replace(other, series={name: values[:2] for name, values in other.series.items()})
    with pytest.raises(UserError, match="--column kl: no run with this column has rows at these times"):
        list(overview.pictures([*runs[:2], begun], ["kl"], (one.series["time"][3], math.inf)))


def test_a_signal_stops_the_sweep_with_a_checkpoint_and_the_same_command_goes_on(
    kjko_here, small_case, tmp_path, quick_children
):
    line = ("sweep", small_case, "--grid", "time.end=1000.0,2000.0", "--grid", "output.every=0", "--out", "out")
    folder = tmp_path / "out" / "end=1000.0,every=0"

    def interrupt_after(rows):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.05)
            with contextlib.suppress(UserError):  # not there yet, or being replaced by the restart
                if len(read_series(folder / "series.h5")["step"]) > rows:
                    break
        os.kill(os.getpid(), signal.SIGINT)

    reached, handler = 0, signal.getsignal(signal.SIGINT)
    for _ in range(2):
        thread = threading.Thread(target=interrupt_after, args=(reached,))
        thread.start()
        result = kjko_here(*line)
        thread.join()
        assert result.returncode == 75 and "the same command continues" in result.stderr, result
        steps, reached = reached, len(read_series(folder / "series.h5")["step"])
        assert reached > steps
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["stopped", "not begun"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_slurm_script_gives_each_job_its_run(kjko_here, small_case, tmp_path):
    (tmp_path / "mine.py").write_text("# beside the case")
    grids = ["--grid", "grid.cells=[16],[32]", "--grid", "particles.start=quiet,random"]
    of_all = ["--set", "time.end=0.5"]
    line = ["sweep", "small.toml", *grids, *of_all, "--out", "a sweep", "--ranks", "3", "--slurm", "sweep.sbatch"]
    result = kjko_here(*line)
    assert result.returncode == 0 and "sbatch sweep.sbatch" in result.stdout, result.stderr
    script = (tmp_path / "sweep.sbatch").read_text()
    assert "#SBATCH --array=0-3\n" in script and "#SBATCH --ntasks-per-node=3\n" in script
    small_case.write_text("")  # what is in the queue keeps what it was given
    assert (
        "kind" in (tmp_path / "a sweep/input/small.toml").read_text() and (tmp_path / "a sweep/input/mine.py").exists()
    )

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job.sh").write_text('start_or_continue() { printf "%s\\n" "$@"; }')

    def job(number):
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_NTASKS": "3"}
        return subprocess.run(["bash", "sweep.sbatch"], cwd=tmp_path, env=env, text=True, capture_output=True)

    out = tmp_path / "a sweep"
    settings = [*of_all, "--set", "grid.cells=[32]", "--set", "particles.start=quiet"]
    folder = out / "cells=32,start=quiet"
    assert job(2).stdout.splitlines() == ["3", str(out / "input/small.toml"), str(folder), *settings]
    assert job(4).returncode == 2
    folder.mkdir()
    (folder / "run.json").write_text('{"status": "finished"}')
    assert job(2).stdout == f"{folder} has finished\n"
    (folder / "run.json").unlink()
    table = kjko_here("sweep", "a sweep", "--table")
    assert table.returncode == 0 and table.stdout.count("not begun") == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["small.toml", "--out", "out"], "needs --grid section.key=v1,v2 and --out DIR"),
        (["small.toml", "--grid", "time.end=1.0"], "needs --grid section.key=v1,v2 and --out DIR"),
        (["small.toml", "--grid", "end=1.0", "--out", "out"], "write it as section.key=v1,v2"),
        (["small.toml", "--grid", "time.end=1.0,", "--out", "out"], "write it as section.key=v1,v2"),
        (["small.toml", "--grid", "time.end=1.0", "--grid", "time.end=2.0", "--out", "out"], "names a key twice"),
        (["small.toml", "--grid", "time.end=1.0,1.0", "--out", "out"], "the same folder end=1.0"),
        (["small.toml", "--grid", "time.end=1.0,1.05", "--out", "out"], "end=1.05: time.end = 1.05 is not a whole"),
        (["small.toml", "--grid", "time.ent=1.0", "--out", "out"], "time.ent is not a known key: did you mean end?"),
        (["nowhere.toml", "--grid", "time.end=1.0", "--out", "out"], "nowhere.toml: cannot read this case file"),
        (
            ["small.toml", "--grid", "time.end=1.0", "--out", "thesis"],
            "thesis: exists and is not the folder of a sweep",
        ),
        (
            ["small.toml", "--grid", "time.end=1.0", "--out", "out", "--ranks", "0"],
            "0 must be a whole number, 1 or more",
        ),
        (
            ["small.toml", "--grid", "time.end=1.0", "--out", "out", "--slurm", "small.toml"],
            "was not made by kjko sweep",
        ),
        (["small.toml", "--grid", "time.end=0.5", "--out", "swept"], "end=0.5: contains a run of another case"),
        (["small.toml", "--grid", "time.end=1.0", "--set", "time.end=2.0", "--out", "out"], "--grid sets this key"),
        (["small.toml", "--grid", "time.end=1.0", "--set", "time.stpe=2.0", "--out", "out"], "did you mean step?"),
        (["thesis", "--table"], "thesis: not a sweep's folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2_and_nothing_is_written(
    arguments, says, kjko_here, small_case, finished, tmp_path
):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    finished.rename((tmp_path / "swept").mkdir() or tmp_path / "swept/end=0.5")  # that of end = 1.0
    (tmp_path / "swept/sweep.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = kjko_here("sweep", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_ranks_are_started_by_the_launcher(kjko_here, small_case, tmp_path, monkeypatch):
    launcher = tmp_path / "launch.sh"
    launcher.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/launched\nexit 75\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("KJKO_LAUNCH", f"{launcher} --quiet")
    of_all = ("--set", "time.end=0.5")
    result = kjko_here("sweep", small_case, "--grid", "particles.seed=1,2", "--ranks", "2", "--out", "out", *of_all)
    assert result.returncode == 75
    first, second = (tmp_path / "launched").read_text().splitlines()
    assert first.startswith("--quiet -n 2 ") and first.endswith(
        f"run {small_case} --out out/seed=1 --set time.end=0.5 --set particles.seed=1"
    )
    assert second.endswith("--set particles.seed=2")
    monkeypatch.setenv("KJKO_LAUNCH", "no-such-launcher")
    result = kjko_here("sweep", small_case, "--grid", "particles.seed=1,2", "--ranks", "2", "--out", "out")
    assert result.returncode == 2 and "there is no no-such-launcher" in result.stderr
