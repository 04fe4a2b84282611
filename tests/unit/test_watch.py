"""``kjko watch``: a run that has not begun, goes on, has ended, seen through its files only."""

import fcntl
import json
import os
import pty
import select
import subprocess
import threading
import time

import numpy as np
import pytest
from conftest import command, environment

from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.post.watch import braille


def say(folder, status):
    (folder / "run.json").write_text(json.dumps({"status": status, "software": "hpc_kjko"}))


@pytest.fixture
def running(finished):
    """The run half way, with its writer at work and its lock held: the folder and the rows to come."""
    columns = read_series(finished / "series.h5")
    writer = SeriesWriter(finished / "series.h5", list(columns), dict.fromkeys(columns, "1"))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows[:6]:
        writer.append(row | {"seconds": 0.25})
    writer.flush()
    say(finished, "running")
    with open(finished / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield finished, writer, rows[6:]
    writer.close()


def test_a_run_at_work_is_seen(running, kjko_here):
    folder, writer, rows = running
    seen = kjko_here("watch", folder, "--once")
    assert seen.returncode == 0 and seen.stderr == ""
    for text in ("running", "step 5/10", "50 %", "t = 0.5 of 1", "4 steps/s", "left", "5 certified", "kinetic energy"):
        assert text in seen.stdout
    assert "⠉" in seen.stdout and "still running" not in seen.stdout
    writer.append(rows[0])
    writer.flush()  # the writer is none the worse for it
    assert "step 6/10" in kjko_here("watch", folder, "--once").stdout
    os.utime(folder / "series.h5", (0, time.time() - 3600))
    assert "check whether the job is still running" in kjko_here("watch", folder, "--once").stdout


def test_what_is_not_whole_yet_is_waited_for(running, kjko_here, tmp_path):
    """From nothing to the end of a run, of which every file comes late and the series is broken for a while."""
    folder, writer, _ = running
    later, series = tmp_path / "later", (folder / "series.h5").read_bytes()

    def go_on():
        time.sleep(0.2)
        (later / "input").mkdir(parents=True)
        say(later, "new")
        time.sleep(0.2)
        (later / "case.toml").write_bytes((folder / "case.toml").read_bytes())
        for content in (b"", series[:3000], series):
            time.sleep(0.2)
            (later / "series.h5").write_bytes(content)
            say(later, "running")
        (later / "run.json").write_text("{")
        time.sleep(0.2)
        say(later, "failed")

    thread = threading.Thread(target=go_on)
    thread.start()
    began = time.monotonic()
    seen = kjko_here("watch", later, "--interval", "0.03")
    thread.join()
    assert seen.returncode == 0 and time.monotonic() - began > 1
    assert "failed" in seen.stdout and "step 5/10" in seen.stdout


def test_before_and_after(finished, kjko_here, tmp_path):
    assert "no run has begun" in kjko_here("watch", "nowhere", "--once").stdout
    assert "step 10/10" in kjko_here("watch", finished).stdout  # ends by itself
    (finished / "series.h5").unlink()
    assert "the first step is not done yet" in kjko_here("watch", finished).stdout
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    for arguments, says in ((["thesis"], "not a run folder"), (["thesis", "--interval", "0"], "0 must be more than 0")):
        result = kjko_here("watch", *arguments)
        assert result.returncode == 2 and says in result.stderr and result.stderr.count("\n") == 1


def test_ctrl_c_leaves_the_terminal_with_0_and_the_folder_as_it_was(running):
    folder, *_ = running
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    master, slave = pty.openpty()
    line = command("-m", "hpc_kjko", "watch", folder, "--interval", "0.1")
    env = {**environment(), "TERM": "xterm", "COLUMNS": "90", "LINES": "40"}
    process = subprocess.Popen(
        line, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_take_terminal
    )
    os.close(slave)
    text, deadline = b"", time.monotonic() + 60
    while text.count(b"step 5/10") < 2:  # drawn twice
        assert select.select([master], [], [], deadline - time.monotonic())[0], text
        text += os.read(master, 1 << 16)
    os.write(master, b"\x03")
    while select.select([master], [], [], 20)[0]:
        try:
            text += os.read(master, 1 << 16)
        except OSError:
            break
    assert process.wait(timeout=20) == 0
    assert b"Traceback" not in text and text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")  # the cursor is back
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    os.close(master)


def _take_terminal():
    fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY


def test_plots_in_braille():
    assert braille(np.arange(8.0), 4, 2) == ["⠀⠀⡠⠊", "⡠⠊⠀⠀"]
    assert braille(np.array([0.0, 1.0]), 1, 2) == ["⢸", "⡸"]  # a closed line
    assert braille(np.full(5, 3.0), 2, 1) == ["⠒⠒"]
    assert braille(np.array([0.0, np.nan, np.nan, 1.0]), 2, 1) == ["⡀⠈"]
    assert braille(np.full(3, np.nan), 2, 1) == ["⠀⠀"]
