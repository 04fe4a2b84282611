"""The times that a run reports: the parts add up to the wall-clock time, also after a restart. The ETA is steady."""

import json
import re
import time

import numpy as np
import pytest

from hpc_kjko import Case, restart, run, terminal
from hpc_kjko.collisions import base
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.post import summary
from hpc_kjko.running import clock, driver, simulation
from hpc_kjko.running.recorder import Recorder
from hpc_kjko.running.simulation import Simulation

CASE = {
    "problem": {"kind": "landau_damping"},
    "physics": {"collision_strength": 0.0},
    "particles": {"count": 1000},
    "grid": {"cells": 16},
    "time": {"step": 0.1, "end": 0.5},
    "output": {"every": 0, "particles_every": 0, "histogram_every": 0, "checkpoint_every": 4},
}
#: The time that each row takes in the diagnostics and in the files, in seconds.
MEASURING, WRITING = 0.02, 0.05


@pytest.fixture
def slow(monkeypatch):
    """Diagnostics and files that take a known time."""
    measure, record = simulation.diagnostics.measure, Recorder.record

    def measuring(*arguments):
        time.sleep(MEASURING)
        return measure(*arguments)

    def writing(*arguments):
        time.sleep(WRITING)
        record(*arguments)

    monkeypatch.setattr(simulation.diagnostics, "measure", measuring)
    monkeypatch.setattr(Recorder, "record", writing)


def test_the_parts_of_the_time_of_a_run_add_up(slow, tmp_path, kjko_here):
    """They are compared with a clock outside. The restart adds its own time, and also that of the rows it replaces."""
    began, folder = time.monotonic(), RunFolder(tmp_path / "out")
    run(Case.from_table(CASE), folder.path)
    outside = time.monotonic() - began
    status = folder.status()
    parts = status["seconds"]
    assert sum(parts.values()) == summary.wall_clock(status) == pytest.approx(outside, abs=0.15 * outside)
    assert 6 * WRITING < parts["files"] < outside and 6 * MEASURING < parts["diagnostics"] < parts["files"]
    assert parts["start"] >= MEASURING and parts["other"] < 0.1 * outside  # the start measures a row, too
    series = read_series(folder.series)
    assert series["seconds"].sum() == pytest.approx(parts["push"], abs=0.01) and parts["collisions"] == 0
    assert not series["seconds_collide"].any() and series["seconds_push"][1:].all()
    last, whole = folder.log.read_text().splitlines()[-1], terminal.duration(sum(parts.values()))
    assert f"wall-clock time {whole}: start " in last and "collisions" not in last

    began = time.monotonic()
    restart(folder.path, {"time.end": 0.8})
    outside += time.monotonic() - began
    status = folder.status()
    assert summary.wall_clock(status) == pytest.approx(outside, abs=0.15 * outside) and status["restarts"] == 1
    assert status["seconds"]["files"] > (6 + 3) * WRITING
    said = " ".join(kjko_here("inspect", folder.path).stdout.split())
    whole = terminal.duration(summary.wall_clock(status))
    assert f"wall-clock time {whole}, with 1 restart: start " in said and "push and field" in said
    assert "1000 particles, no collisions" in said and "collisions 0" not in said
    assert kjko_here("report", folder.path).returncode == 0
    page = (folder.path / "report.html").read_text()
    rows = dict(re.findall(r'<th scope="row"[^>]*>([^<]*)(?:<i [^>]*></i>)?</th><td>([\d.e-]+)</td><td>[\d.]+ %', page))
    assert {"start", "push and field", "diagnostics", "files"} <= set(rows) and "collisions" not in rows
    total = float(rows.pop("the run from start to end"))
    assert sum(map(float, rows.values())) == pytest.approx(total, rel=0.02) == pytest.approx(outside, rel=0.15)
    assert f"8 of 8 steps; wall clock: {whole}" in page and "restarted 1 time." in page


def test_a_killed_run_knows_its_time_and_an_old_one_does_not_invent_one(slow, tmp_path, monkeypatch):
    """``run.json`` is updated while a run is running. A run of a version without clock gets no times later."""
    monkeypatch.setattr(driver, "NOTE_EVERY", 0.0)
    folder, noted = RunFolder(tmp_path / "out"), []
    set_status = RunFolder.set_status
    monkeypatch.setattr(
        RunFolder, "set_status", lambda *given, **more: (noted.append((given[1], more)), set_status(*given, **more))
    )
    run(Case.from_table(CASE), folder.path)
    running = [more for status, more in noted if status == "running"]
    assert [more["step"] for more in running] == [0, 1, 2, 3, 4, 5]
    assert np.diff([sum(more["seconds"].values()) for more in running[1:]]).min() > WRITING + MEASURING
    old = json.loads((folder.path / "run.json").read_text())
    del old["seconds"]
    (folder.path / "run.json").write_text(json.dumps(old))
    assert summary.wall_clock(folder.status()) is None
    restart(folder.path, {"time.end": 0.8})
    assert summary.wall_clock(folder.status()) is None and "restarts" not in folder.status()
    (folder.path / "run.json").write_text(json.dumps(old | {"seconds": {"start": "long"}}))
    assert "seconds" not in folder.status()


def test_without_collisions_nothing_is_summed_for_them(monkeypatch):
    """The sums over all particles took as long as the push. The state is that of the push, and the report is zero."""
    monkeypatch.setattr(base, "summed_finely", lambda values: pytest.fail("it sums over the particles"))
    made = Simulation.start(Case.from_table(CASE), Communicator())
    after = made.advance()
    assert after.collision.collision_energy_total == 0 and after.collision.substeps == 0
    assert made.seconds["seconds_collide"] == 0 < made.seconds["seconds_push"]


def test_a_clock_gives_each_moment_to_one_part(monkeypatch):
    now = iter([10.0, 13.0, 20.0, 21.0, 21.0])
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(now))
    mine = clock.Clock(began=4.0, earlier={"start": 1.0, "files": 2.0})
    mine.lap("start")
    mine.lap("push", collisions=2.5)
    mine.lap("files")
    found = mine.seconds()
    assert found == {"start": 7.0, "push": 0.5, "collisions": 2.5, "diagnostics": 0.0, "files": 9.0, "other": 1.0}
    assert sum(found.values()) == 3.0 + 21.0 - 4.0
    words = "20 s, with 2 restarts: start 7 s, push and field 0.5 s, collisions 2.5 s, files 9 s, other 1 s"
    assert clock.in_words(found, 2) == words
    assert [terminal.duration(s) for s in (0.12345, 155.4, 7500.0)] == ["0.123 s", "2 min 35 s", "2 h 05 min"]


def test_the_eta_is_steady_though_steps_cost_unequally(monkeypatch, capsys):
    """The first step takes long, and each tenth one writes files. The mean cost of the others is 0.29 s."""
    steps, now = 300, [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "LINE_EVERY", -1.0)
    costs = np.full(steps, 0.1)
    costs[9::10], costs[0] = 2.0, 60.0
    shown = terminal.Progress(steps, 0, terminal=False)
    for number, cost in enumerate(costs, 1):
        now[0] += cost
        shown({"step": number, "time": 0.1 * number, "field_energy": 1.0, "seconds": 0.1})
    pattern = r"ETA (?:(\d+) min )?(\d+) s"
    told = np.array([60 * int(minutes or 0) + int(s) for minutes, s in re.findall(pattern, capsys.readouterr().out)])
    left = (costs.sum() - np.cumsum(costs))[1:]
    assert len(told) == steps - 1 and told[-1] == 0  # the first one is in hours
    assert np.abs(told[50:] - left[50:]).max() < 0.15 * left[50]
    assert np.abs(np.diff(told[20:])).max() <= 4  # the cost of the last step would move it by minutes


def test_the_eta_follows_steps_that_become_slower(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    pace = terminal.Pace()
    for cost in [0.1] * 100 + [0.4] * 200:
        now[0] += cost
        pace.step()
    assert 0.33 < pace.mean < 0.4  # the plain mean is 0.3
