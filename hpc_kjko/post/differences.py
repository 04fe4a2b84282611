"""Compares a run with a reference, column by column: another run, the user's table, or the grid solver."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError, one_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.post.figures.names import axis_of, of_unit
from hpc_kjko.post.figures.runfiles import TIME
from hpc_kjko.post.panels import Axis, Curve, Panel, Picture, verbatim
from hpc_kjko.post.summary import COMPARED, NOISE_OF, Columns

#: The word for the grid solver as a reference.
GRID = "grid"


@dataclass(frozen=True)
class Difference:
    """A column of a run and of its reference at the same times.

    Attributes:
        time, values, reference: arrays [n].
        relative_l2: ‖values − reference‖ / ‖reference‖; infinite if only the reference is zero.
        largest: the largest |values − reference|.
        at: the time of the largest difference.
    """

    column: str
    time: np.ndarray
    values: np.ndarray
    reference: np.ndarray

    @property
    def relative_l2(self) -> float:
        distance, norm = np.linalg.norm(self.values - self.reference), np.linalg.norm(self.reference)
        return float(distance / norm) if norm else math.inf if distance else 0.0

    @property
    def largest(self) -> float:
        return float(np.abs(self.values - self.reference).max())

    @property
    def at(self) -> float:
        return float(self.time[np.abs(self.values - self.reference).argmax()])


def reference_of(folder: RunFolder, other: str) -> Columns:
    """The columns of a reference for the run in ``folder``.

    Args:
        other: a run folder, a CSV file with a column ``time``, or "grid" for the grid solver with the case of the run.

    Raises:
        UserError: the reference does not exist or is damaged, or the grid solver cannot solve the case.
    """
    if other == GRID:
        from hpc_kjko.post.compare import grid_columns  # imports torch, scipy and the models of a case

        return grid_columns(folder)
    path = Path(other)
    if path.is_dir():
        there = RunFolder(path)
        there.status()
        return read_series(there.series)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    raise UserError(f'{other}: give a run folder, a .csv file, or "{GRID}" for the grid solver')


def differences(
    ours: Columns, theirs: Columns, names: Sequence[str] = (), left_out: Collection[str] = ()
) -> list[Difference]:
    """Compare columns of a run and of its reference at common times, which are those of the series with fewer rows.

    The other series is interpolated linearly. Columns that are zero in both are left out, unless ``names`` asks for
    them.

    Args:
        ours: the columns of the run.
        theirs: the columns of the reference.
        names: the columns to compare instead of the usual ones.
        left_out: usual columns that are not compared, unless ``names`` asks for them.

    Raises:
        UserError: they have no such column in common, or no common times.
    """
    for name in names:
        for columns, whose in ((ours, "the run"), (theirs, "the reference")):
            if name not in columns:
                raise UserError(f"--column {name}: {whose} has no such column: {one_of(name, columns)}")
    shared = [
        name for name in ours if name in theirs and name not in ("step", "time") and not name.startswith("seconds")
    ]
    chosen = list(names) or [name for name in COMPARED if name in shared and name not in left_out]
    if not chosen:
        common = f"name one with --column: {', '.join(shared)}" if shared else "there is nothing to compare"
        meant = [name for name in COMPARED if name not in left_out]
        raise UserError(f"run and reference share none of the columns {', '.join(meant)}: {common}")
    time = _common_times(ours["time"], theirs["time"])
    found = [
        Difference(name, time, np.interp(time, ours["time"], ours[name]), np.interp(time, theirs["time"], theirs[name]))
        for name in chosen
    ]
    return [one for one in found if names or one.values.any() or one.reference.any()] or found


def picture(
    found: Sequence[Difference],
    units: Mapping[str, str],
    labels: tuple[str, str],
    floors: Mapping[str, np.ndarray],
    case: RunCase,
) -> Picture:
    """A picture of a run and its reference: a panel for each column, with their difference below.

    On a logarithmic axis the absolute difference is shown, together with the noise of the particles. A difference below
    the noise means nothing.

    Args:
        found: the differences.
        units: units of the columns.
        labels: the names of the run and of the reference.
        floors: noise of the particles [n] at the times of the differences, by column, if it is known.
        case: the case of the run.
    """
    panels, (ours, theirs) = [], map(verbatim, labels)
    for one in found:
        axis = axis_of(one.column, units[one.column], case.species)
        curves = [Curve(one.time, one.values, ours)]
        if axis.log and not (one.values > 0).any():
            axis = dataclasses.replace(axis, log=False)
        change = one.values - one.reference
        # equal values have no place on a logarithmic axis
        below = [Curve(one.time, np.where(change, np.abs(change), np.nan) if axis.log else change)]
        if (floor := floors.get(one.column)) is not None and axis.log:
            curves.append(Curve(one.time, floor, NOISE_OF[one.column], "noise"))
            below.append(Curve(one.time, floor, look="noise"))
        curves.append(Curve(one.time, one.reference, theirs, "reference"))
        name = "|difference|" if axis.log else "difference"
        lower = Panel(TIME, Axis(name, log=axis.log), curves=tuple(below))
        panels.append(Panel(TIME, of_unit(axis), axis.label, tuple(curves), below=lower))
    title = f"{ours} and {theirs}"
    return Picture("comparison", title, f"Columns of {title} against time, and their differences", tuple(panels))


def _common_times(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The times of the series with fewer rows, in the interval that both series cover."""
    if not (len(first) and len(second)):
        raise UserError("a series has no rows yet: wait for the first step of the run")
    slack = 1e-9 * max(abs(first[-1]), abs(second[-1]))
    low, high = max(first[0], second[0]) - slack, min(first[-1], second[-1]) + slack
    inside = [times[(times >= low) & (times <= high)] for times in (first, second)]
    coarser = min(inside, key=len)
    if not len(coarser):
        raise UserError(
            f"no time in common: the run has t = {first[0]:g} to {first[-1]:g}, the reference {second[0]:g} to "
            f"{second[-1]:g}"
        )
    return coarser


def _read_csv(path: Path) -> Columns:
    """The columns of a CSV table with a header line. One of them is ``time``, which increases."""
    try:
        lines = [line for line in csv.reader(_text_of_table(path.read_bytes()).splitlines()) if line]
    except OSError as failure:
        raise UserError(f"{path}: cannot read this table ({failure.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise UserError(f"{path}: is not a CSV table ({failure})") from None
    header = [name.strip() for name in lines[0]] if lines else []
    if "time" not in header or len(lines) < 2:
        raise UserError(f'{path}: needs a header line with a column "time", and rows of numbers below it')
    rows = []
    for number, line in enumerate(lines[1:], 1):
        try:
            row = [float(cell) for cell in line]
        except ValueError as failure:
            raise UserError(f"{path}: row {number}: {failure}: give numbers only") from None
        if len(row) != len(header) or not np.isfinite(row).all():
            raise UserError(f"{path}: row {number} must have a finite number for each of the {len(header)} columns")
        rows.append(row)
    columns = dict(zip(header, np.array(rows).T, strict=True))
    if not (np.diff(columns["time"]) > 0).all():
        raise UserError(f"{path}: the column time must increase from row to row")
    return columns


def _text_of_table(raw: bytes) -> str:
    """The text of a table in the encodings of spreadsheet programs: UTF-8, UTF-16 with a mark, or else Latin-1."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        # numbers are the same in any such encoding, and column names are usually plain letters
        return raw.decode("latin-1")
