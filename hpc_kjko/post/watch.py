"""Follows a running job in the terminal, from its files only. Some of the files may not exist yet.

This module writes nothing and does not use the lock of the run. HDF5 locks a file for the moment of reading; this does
not disturb the run, because a new series is begun under another name.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.post import summary
from hpc_kjko.running.clock import PARTS, in_words
from hpc_kjko.terminal import duration, show, width

#: Statuses of a run that is over.
ENDED = ("finished", "stopped", "failed", "gone")
#: Number of last rows from which the time per step is computed.
RECENT = 50
#: If no row has come for so many seconds, and for so many times the time per step, the job may no longer exist.
QUIET_SECONDS, QUIET_STEPS = 60.0, 20

#: Smallest width of the output in characters, even on a narrower terminal. No number is longer.
NARROWEST = 20

_STYLES = {
    "finished": "bold green",
    "failed": "bold red",
    "gone": "bold red",
    "stopped": "bold yellow",
    "running": "bold cyan",
}
#: The plots: column, label, and whether the scale is logarithmic.
_PLOTS = {
    "kinetic_energy": ("kinetic energy", False),
    "field_energy": ("field energy, log", True),
    "potential_energy": ("potential energy", False),
    "free_energy": ("free energy", False),
    "entropy": ("∫ f log f", False),
    "kl": ("KL to equilibrium, log", True),
}
#: Codes of the dots in a braille character: its left and right column, from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def watch(path: Path, *, once: bool, interval: float) -> None:
    """Show a run until it is over, or until Ctrl-C. A terminal is updated; other outputs get the last state only.

    Args:
        path: the run folder, which may not exist yet.
        once: show the present state only.
        interval: seconds between updates.

    Raises:
        UserError: the folder is not a run folder, or its case is damaged.
    """
    watched = Watched(path)
    try:
        if once:
            watched.look()
        elif sys.stdout.isatty():
            console = rich.console.Console(highlight=False)
            with rich.live.Live(console=console, auto_refresh=False) as live:
                while watched.look() not in ENDED:
                    live.update(watched.view(console.width), refresh=True)
                    time.sleep(interval)
                live.update(watched.view(console.width), refresh=True)
            return
        else:
            while watched.look() not in ENDED:
                time.sleep(interval)
    except KeyboardInterrupt:
        return
    columns = max(width(), NARROWEST)
    show(watched.view(columns), columns)


class Watched:
    """A run folder, and its state at the last update."""

    def __init__(self, path: Path):
        self.folder = RunFolder(path)
        self.case: RunCase | None = None
        self.status: dict[str, Any] = {"status": "not begun"}
        self.columns: summary.Columns = {}
        self._age = 0.0
        self._unreadable = ""

    def look(self) -> str:
        """Read the files again.

        Returns:
            The status of the run; "not begun" if there is no run yet.
        """
        folder = self.folder
        if not folder.case.exists():
            self._require_hope()
            self.case, self.status, self.columns = None, {"status": "not begun"}, {}
            return "not begun"
        self.status, self.case = folder.status(), RunCase(folder.case)
        self._unreadable = ""
        try:
            self._age = max(0.0, time.time() - folder.series.stat().st_mtime)
            self.columns = summary.meaningful(read_series(folder.series), self.case)
        except FileNotFoundError:
            self.columns = {}
        except UserError as failure:  # a file is just being replaced: keep the last state until the next update
            self._unreadable = str(failure)
        return self.status["status"]

    def _require_hope(self) -> None:
        """Check that a run can still begin in a folder without a case."""
        path = self.folder.path
        found = {file.name for file in path.iterdir()} if path.is_dir() else set()
        may_begin = not found or (found & {"input", ".lock", "run.json"} and "series.h5" not in found)
        if not may_begin or path.is_file():
            self.folder.status()
            raise UserError(f"{path}: not a run folder: give the folder that a run makes")

    def view(self, columns: int) -> rich.console.RenderableType:
        """The present state, for a terminal of the given width in characters."""
        status = self.status["status"]
        title = rich.text.Text.assemble((str(self.folder.path), "bold"), "  ", (status, _STYLES.get(status, "bold")))
        if status == "gone":
            title.append(f"\n{self.folder.what_now()}", "yellow")
        if self.case is None:
            return rich.console.Group(title, "no run has begun in this folder yet")
        if not self.columns or not len(self.columns["step"]):
            return rich.console.Group(title, self._unreadable or "the first step is not done yet")
        parts = [title, *self._progress(self.case), self._plots(columns), *self._numbers()]
        return rich.console.Group(*parts)

    def _progress(self, case: RunCase) -> list[rich.console.RenderableType]:
        steps, done = case.steps, int(self.columns["step"][-1])
        seconds = self.columns["seconds"][1:][-RECENT:]
        pace = "-"
        if len(seconds) and seconds.mean() > 0:
            mean = float(seconds.mean()) * self._whole_step()
            pace = f"{1 / mean:.3g} steps/s" if mean < 1 else f"{mean:.3g} s/step"
            if done < steps:
                pace += f", {duration(round((steps - done) * mean))} left"
        age = duration(round(self._age))
        bar = rich.table.Table.grid()  # a grid, so that the line ends after the bar
        bar.add_row(rich.progress_bar.ProgressBar(total=steps, completed=done, width=NARROWEST))
        parts: list[rich.console.RenderableType] = [
            bar,
            rich.text.Text(f"{100 * done / steps:.0f} %  step {done}/{steps}  {pace}"),
            f"t = {self.columns['time'][-1]:g} of {case.number('time.end'):g}, last row {age} ago",
        ]
        slow = QUIET_STEPS * float(seconds.mean()) if len(seconds) else 0.0
        if self.status["status"] == "running" and self._age > max(QUIET_SECONDS, slow):
            parts.append(rich.text.Text("no new row for a while: check whether the job is still running", "yellow"))
        if self._unreadable:
            parts.append(rich.text.Text(self._unreadable, "yellow"))
        return parts

    def _whole_step(self) -> float:
        """The mean time from step to step, with diagnostics and files, divided by that in the column ``seconds``."""
        spent = summary.seconds_by_part(self.status)
        inside = sum(spent.get(PARTS[part], 0.0) for part in ("push", "collisions"))
        return (sum(spent.values()) - spent.get(PARTS["start"], 0.0)) / inside if inside else 1.0

    def _plots(self, width: int) -> rich.table.Table:
        """Small plots, two in a row if there is room."""
        beside = 2 if width >= 72 else 1
        inside = max(NARROWEST, min(48, width // beside)) - 3
        plots = []
        for name, (label, is_log) in _PLOTS.items():
            values = self.columns.get(name, np.zeros(0))
            if name == "entropy" and "free_energy" in self.columns:  # the free energy contains it
                continue
            if values.any():
                head = rich.text.Text(f"{label}  {values[0]:.4g} → {values[-1]:.4g}", "bold")
                lines = braille(_log(values) if is_log else values, inside, 3)
                plots.append(rich.console.Group(head, rich.text.Text("\n".join(lines), "cyan")))
        grid = rich.table.Table.grid(padding=(0, 3, 1, 0))
        for _ in range(beside):
            grid.add_column(width=inside)
        for i in range(0, len(plots), beside):
            grid.add_row(*plots[i : i + beside])
        return grid

    def _numbers(self) -> list[rich.console.RenderableType]:
        columns = self.columns
        lines: list[rich.console.RenderableType] = []
        tally = summary.tally(columns)
        if tally is not None:
            styles = {"certified": "green", "inconclusive": "yellow", "violated": "red"}
            text = rich.text.Text(", ").join(
                rich.text.Text(f"{number} {name}", styles[name] if number else "dim") for name, number in tally.items()
            )
            lines.append(rich.text.Text.assemble("certificates: ", text))
        if "seconds" in self.status:
            lines.append(f"wall-clock time {in_words(self.status['seconds'], self.status.get('restarts', 0))}")
        return lines


def braille(values: np.ndarray, width: int, height: int) -> list[str]:
    """A plot of values [n] against their index, in braille characters.

    Values that are not finite leave gaps. Finite neighbours are connected by a line.

    Args:
        values: the values [n].
        width, height: size in characters; each has 2 × 4 dots.
    """
    columns, levels = 2 * width, 4 * height
    points = values[np.linspace(0, len(values) - 1, min(columns, len(values))).round().astype(int)]
    if len(points) < columns and len(points) > 1:  # few values: connect them by straight lines
        points = np.interp(np.linspace(0, len(points) - 1, columns), np.arange(len(points)), points)
    finite = points[np.isfinite(points)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    scaled = (points - low) / (high - low) if high > low else np.where(np.isfinite(points), 0.5, np.nan)
    cells = np.zeros((height, width), int)
    before = None
    for column, share in enumerate(scaled):
        if not np.isfinite(share):
            before = None
            continue
        row = levels - 1 - round(share * (levels - 1))
        ends = sorted((row, row if before is None else before + (row > before) - (row < before)))
        for dot in range(ends[0], ends[1] + 1):
            cells[dot // 4, column // 2] |= _DOTS[column % 2][dot % 4]
        before = row
    return ["".join(chr(0x2800 + cell) for cell in line) for line in cells.tolist()]


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))
