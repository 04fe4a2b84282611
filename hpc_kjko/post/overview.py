"""Compares several runs: the keys in which their cases differ, their results, and their curves in common figures."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile, UserError, one_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series_and_units
from hpc_kjko.files.wavetheory import WaveTheory, read_theory
from hpc_kjko.post import page, rates, summary
from hpc_kjko.post.figures.energies import MANY_TIMES, is_work, top_of_work
from hpc_kjko.post.figures.names import axis_of, of_unit
from hpc_kjko.post.figures.runfiles import FROM_THE_START, PANELS, TIME, Window, within
from hpc_kjko.post.interactive import axis_layout, figure, html_of, numbers, thinned
from hpc_kjko.post.panels import Axis, Curve, Look, Panel, Picture, verbatim

#: The file name of the page about the runs in a folder.
INDEX = "index.html"
#: Name of the page of several runs, in the folder of the first one.
COMPARISON = "comparison.html"
#: Number of differing keys that are columns of the table; the others are named below it.
_KEYS = 6
#: The columns that are shown for every run that has them. Others can be chosen on the page.
SHOWN = ("wave_energy", *summary.COMPARED)
#: Sections of a case in the order of their keys on the page. Sections that concern only output and run are left out.
_SECTIONS = ("physics", "particles", "time", "method", "grid", "species", "problem")
#: Keys that the table shows in its column "case".
_OF_CASE = ("problem.kind", "problem.space_dims", "problem.velocity_dims")
#: Axes of keys whose names are not clear enough: the label in words, and the unit.
_KEY_WORDS = {
    "particles.count": Axis("number of particles"),
    "particles.seed": Axis("seed of the particles"),
    "grid.cells": Axis("number of cells"),
    "time.step": Axis("time step", "1/ω_p"),
    "time.end": Axis("end of the run", "1/ω_p"),
    "problem.length": Axis("length of the box", "v_th/ω_p"),
    "problem.amplitude": Axis("amplitude of the wave"),
    "problem.mode": Axis("number of waves in the box"),
    "method.order": Axis("order of the collision step"),
    "method.iterations": Axis("iterations of the inner solver"),
    "output.every": Axis("steps between snapshots"),
}
#: The axis of the rate of a wave.
_RATE = Axis("γ of the wave", "ω_p")
#: Up to this number of differing keys the legend shows their values; with more keys it shows the names of the runs.
_FEW = 3
#: Rates of theory that differ by less than this fraction are the same. Those of beams in a bath depend on the window.
_SAME = 0.02


#: The columns of numbers in the table. Columns that no run has are left out.
_NUMBERS = (
    "time reached",
    "γ of the wave",
    "γ of theory",
    "ω of the wave",
    "ω of theory",
    "energy and its change",
    "field energy",
    "KL to equilibrium",
    "wall clock, s",
)


@dataclass(frozen=True)
class Number:
    """A cell of the table: a number, by which the table is sorted, or None; the text after it; a note about it."""

    value: float | None
    after: str = ""
    note: str = ""


@dataclass(frozen=True)
class Run:
    """A run in a comparison.

    Attributes:
        keys: the values of its case, by ``section.key``.
        series: the columns of its time series that have a meaning for its case [rows]; empty if there is no row.
        units: units of the columns.
        theory: the linear theory of its wave; None if the run has none.
        trouble: the reason why the series could not be read; empty if it could.
    """

    name: str
    folder: RunFolder
    case: RunCase
    status: dict[str, Any]
    keys: dict[str, Any]
    series: summary.Columns
    units: dict[str, str]
    theory: WaveTheory | None = None
    trouble: str = ""

    @classmethod
    def of(cls, folder: RunFolder, name: str) -> Run:
        """The run in a folder. It may be running, or over for any reason.

        Raises:
            UserError: this is not a run folder, or its case cannot be read.
        """
        status, case, trouble = folder.status(), RunCase(folder.case), ""
        series: summary.Columns = {}
        units: dict[str, str] = {}
        theory: WaveTheory | None = None
        if not folder.series.exists():
            trouble = "it has not written a time series yet"
        else:
            try:
                series, units = read_series_and_units(folder.series)
                series, theory = summary.meaningful(series, case), read_theory(folder.series)
            except DamagedFile as failure:
                trouble = str(failure)
            if series and not len(series["step"]):
                series, trouble = {}, "its time series has no rows yet"
        return cls(name, folder, case, status, dict(_flat(case.table)), series, units, theory, trouble)


def holds_runs(path: Path) -> bool:
    """Whether a folder is not a run folder but contains run folders."""
    return not (path / "case.toml").exists() and any(path.glob("*/case.toml"))


def runs_in(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in some folders, and a sentence for each run that cannot be read.

    Args:
        paths: run folders, or folders that contain run folders.

    Raises:
        UserError: a folder is neither of these, or no run can be read.
    """
    folders: list[Path] = []
    for path in paths:
        if holds_runs(path):
            folders += sorted(case.parent for case in path.glob("*/case.toml"))
        else:
            RunFolder(path).status()
            folders.append(path)
    whole = [path.resolve() for path in folders]
    common = Path(os.path.commonpath([path.parent for path in whole]))
    runs, unreadable = [], []
    for path, end in zip(folders, whole, strict=True):
        try:
            runs.append(Run.of(RunFolder(path), str(end.relative_to(common))))
        except UserError as failure:
            unreadable.append(str(failure))
    if not runs:
        raise UserError(unreadable[0])
    return runs, unreadable


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The keys in which the cases differ. Keys that all cases have come first.

    For keys of the collision method only runs with collisions count.
    """
    found = {key: None for section in _SECTIONS for run in runs for key in run.keys if key.startswith(f"{section}.")}
    collide = [run for run in runs if run.case.collision_strength]
    differ = []
    for key in found:
        values = [run.keys.get(key) for run in (collide if key.startswith("method.") else runs)]
        if any(value != values[0] for value in values):
            differ.append(key)
    return sorted(differ, key=lambda key: not all(key in run.keys for run in runs))


def columns_of(runs: Sequence[Run]) -> dict[str, Axis]:
    """The columns that differ from zero in some run, with their axes. Usual ones come first.

    An axis has no unit if the runs have different ones, because they have different numbers of dimensions.
    """
    found: dict[str, Axis] = {}
    for run in runs:
        for name, values in run.series.items():
            if name not in ("step", "time") and name not in found and values.any():
                units = {other.units[name] for other in runs if name in other.units}
                found[name] = axis_of(name, run.units[name] if len(units) == 1 else "1", run.case.species)
    first = [name for name in SHOWN if name in found]
    return {name: found[name] for name in (*first, *(name for name in found if name not in first))}


def pictures(runs: Sequence[Run], columns: Sequence[str] = (), window: Window = FROM_THE_START) -> Iterator[Picture]:
    """Curves of all runs, and figures against each differing key that is a number, of the finished runs.

    These figures show the last values and, unless columns are chosen, the rates of the waves.

    Args:
        runs: the runs.
        columns: the columns to draw instead of the usual ones. Their names are part of those of the figures.
        window: the first and the last time shown.

    Raises:
        UserError: no run has such a column, or no run has rows at these times.
    """
    known, keys = columns_of(runs), differing_keys(runs)
    for name in columns:
        if name not in known:
            raise UserError(f"--column {name}: no run has such a column: {one_of(name, known)}")
    series = {}
    for run in runs:
        with contextlib.suppress(UserError):  # this run has no row at these times
            if run.series:
                series[run.name] = within(run.series, window)
    runs = sorted((run for run in runs if run.name in series), key=lambda run: _place(run, keys))
    if not runs:
        raise UserError(
            "no run has a row of its time series at these times: wait for the first step, or choose other times"
        )
    wanted = columns or [name for name in SHOWN if name in known]
    shown = [name for name in wanted if any(name in run.series for run in runs)]
    if not shown:
        raise UserError(f"--column {columns[0]}: no run with this column has rows at these times: choose other times")
    chosen = "".join(f"_{name}" for name in columns)
    yield Picture(
        f"curves{chosen}",
        "All runs in one figure",
        "Columns of all runs against time",
        tuple(
            _panel(
                TIME,
                known[name],
                [
                    Curve(series[run.name]["time"], series[run.name][name], label_of(run, keys))
                    for run in runs
                    if name in run.series
                ],
            )
            for name in shown
        ),
    )
    done = _finished(runs)
    for key in keys:
        values = [run.keys.get(key) for run in done]
        if all(map(_is_number, values)) and len(set(values)) > 1:
            yield Picture(
                f"final_values_{key.replace('.', '_')}{chosen}",
                f"Last values of the finished runs against the {key_axis(key).label}",
                f"Last values of the finished runs against the {key_axis(key).label}",
                tuple(
                    _against(key, known[name], done, series, name, keys)
                    for name in shown
                    if any(name in run.series for run in done)
                ),
            )
    if not columns:
        yield from rate_pictures(done, series)


def _finished(runs: Sequence[Run]) -> list[Run]:
    """The finished runs that have rows."""
    return [run for run in runs if run.status["status"] == "finished" and run.series]


def rate_pictures(runs: Sequence[Run], series: Mapping[str, summary.Columns]) -> Iterator[Picture]:
    """The rates of the waves of finished runs against each differing key that is a number, with those of theory.

    There is no figure for a key if fewer than two of its values have a rate.

    Args:
        runs: the runs.
        series: the columns of each run [rows] at the times shown, by its name.
    """
    keys = differing_keys(runs)
    with_field = {run.name: rates.measured(series[run.name], run.theory, run.status) for run in runs}
    found = {name: measured for name, measured in with_field.items() if measured}
    for key in keys:
        if not all(_is_number(run.keys.get(key)) for run in runs):
            continue
        rated = [run for run in runs if run.name in found and found[run.name].is_rate]
        if len({run.keys[key] for run in rated}) < 2:
            continue
        title = f"Rate of the wave against the {key_axis(key).label}"
        note = f"{len(runs) - len(rated)} of {len(runs)} runs have no rate." if len(rated) < len(runs) else ""
        x = _axis_of_key(key, runs)
        panels = [Panel(x, _RATE, of, curves) for of, curves in _rate_curves(key, keys, runs, found)]
        panels[0] = dataclasses.replace(panels[0], note=note)
        name = f"rate_{key.replace('.', '_')}"
        yield Picture(name, title, f"{title}, with that of theory", tuple(panels), shared=len(panels) > 1)


def _rate_curves(
    key: str, keys: Sequence[str], runs: Sequence[Run], found: Mapping[str, rates.Measured]
) -> list[tuple[str, tuple[Curve, ...]]]:
    """The measured rates with their errors and those of theory, for the panels of a figure, with titles.

    All combinations of the other keys are in one panel if theory is the same for all, or if there are many of them.
    Otherwise each has its own panel. If theory has several values for one number, it is not drawn there.
    """
    measured: dict[str, list[tuple[float, float, float]]] = {}
    expected: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if (one := found.get(run.name)) is None:
            continue
        of = _settings_of_others(run, key, keys)
        if one.rate and one.is_rate:
            measured.setdefault(of, []).append((run.keys[key], one.rate.rate, one.rate.error))
        if one.expected is not None:
            expected.setdefault(of, []).append((run.keys[key], one.expected))
    at: dict[float, list[float]] = {}
    for x, y in itertools.chain(*expected.values()):
        at.setdefault(x, []).append(y)
    is_same = all(max(of_one) - min(of_one) <= _SAME * abs(np.mean(of_one)) for of_one in at.values())
    if is_same and expected:
        expected = {"": [(x, float(np.mean(of_one))) for x, of_one in at.items()]}
    is_function = {of: len(dict(rows)) == len(rows) for of, rows in expected.items()}
    lines = {of: np.array(sorted(rows)).T for of, rows in expected.items() if is_function[of]}
    in_one = is_same or len(measured) > PANELS

    def curve(of: str, name: str, look: Look, x: np.ndarray, y: np.ndarray, error: np.ndarray | None = None) -> Curve:
        return Curve(x, y, f"{name}, {of}" if of and in_one else name, look, error)

    points = {of: curve(of, "measured", "points", *np.array(sorted(rows)).T) for of, rows in measured.items()}
    theory = {of: curve("" if is_same else of, "theory", "reference", *line) for of, line in lines.items()}
    if in_one:
        return [("", (*points.values(), *theory.values()))]
    return [(of, (one, *([theory[of]] if of in theory else []))) for of, one in points.items()]


def key_axis(key: str) -> Axis:
    """The axis of a key with numbers, labelled in words."""
    if key in _KEY_WORDS:
        return _KEY_WORDS[key]
    section, _, name = key.rpartition(".")
    of = f" of {section.removeprefix('species.')}" if section.startswith("species.") else ""
    return Axis(name.replace("_", " ") + of)


def _axis_of_key(key: str, runs: Sequence[Run]) -> Axis:
    """The axis of a key that is a number in all runs. It is logarithmic if the values span a decade."""
    values = [run.keys[key] for run in runs]
    return dataclasses.replace(key_axis(key), log=min(values) > 0 and max(values) >= 10 * min(values))


def _place(run: Run, keys: Sequence[str]) -> list[tuple[bool, float, str]]:
    """The sort key of a run: its values of the keys that differ. Numbers come first, by their size."""
    values: list[Any] = [run.keys.get(key) for key in keys]
    return [(False, value, "") if _is_number(value) else (True, 0.0, value_text(value)) for value in values]


def label_of(run: Run, keys: Sequence[str]) -> str:
    """The label of a run: its values of the differing keys, or its name if there are many such keys."""
    return verbatim(_settings(run, keys) if 0 < len(keys) <= _FEW else run.name)


def _settings(run: Run, keys: Sequence[str]) -> str:
    """The values of some keys in a run, as text."""
    return ", ".join(f"{key.partition('.')[2]} = {value_text(run.keys.get(key))}" for key in keys)


def _settings_of_others(run: Run, key: str, keys: Sequence[str]) -> str:
    """The values of the differing keys other than ``key``, as a label; empty if there are many such keys."""
    others = [other for other in keys if other != key]
    return verbatim(_settings(run, others)) if len(others) <= _FEW else ""


def value_text(value: Any) -> str:
    """A value of a case as a short text."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " × ".join(map(value_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _against(
    key: str, axis: Axis, runs: Sequence[Run], series: dict[str, summary.Columns], name: str, keys: Sequence[str]
) -> Panel:
    """The last values of a column against a key, with a curve for each combination of the other differing keys."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if name in run.series:
            of = _settings_of_others(run, key, keys)
            groups.setdefault(of, []).append((run.keys[key], series[run.name][name][-1]))
    x = _axis_of_key(key, runs)
    ordered = {of: np.array(sorted(points)) for of, points in groups.items()}
    return _panel(x, axis, [Curve(points[:, 0], points[:, 1], of, "points") for of, points in ordered.items()])


def _panel(x: Axis, y: Axis, curves: Sequence[Curve]) -> Panel:
    values = np.concatenate([curve.y[curve.y > 0] for curve in curves])
    if y.log and not (len(values) and values.max() > MANY_TIMES * values.min()):
        y = dataclasses.replace(y, log=False)
    return Panel(x, of_unit(y), y.label, tuple(curves))


def write_overview(paths: Sequence[Path], out: Path) -> Path:
    """Write a page with a table of the runs in some folders, and figures of the runs that the reader selects.

    Args:
        paths: as in :func:`runs_in`.
        out: the file.

    Raises:
        UserError: as in :func:`runs_in`, or the page cannot be written.
    """
    page.require_folder(out)
    runs, unreadable = runs_in(paths)
    keys, columns = differing_keys(runs), columns_of(runs)
    shown = [key for key in keys if key not in _OF_CASE][:_KEYS]
    axes = {key: _axis_of_key(key, runs) for key in keys if all(_is_number(run.keys.get(key)) for run in runs)}
    headings, rows = _numbers(runs)
    certified = {summary.certified_quantity(run.case) for run in runs if summary.tally(run.series)}
    notes = list(dict.fromkeys(cell.note for row in rows for cell in row if cell and cell.note))
    finished = _finished(runs)
    pictures_of_rates = rate_pictures(finished, {run.name: run.series for run in finished})
    return page.write(
        "runs.html",
        out,
        {
            f"{picture.name}-{number}": figure([picture], number)
            for picture in pictures_of_rates
            for number in range(len(picture.panels))
        },
        {
            "runs": [_for_page(run, keys, columns) for run in runs],
            "columns": {
                name: {
                    "label": axis.label,
                    "title": html_of(of_unit(axis).label),
                    "log": axis.log,
                    "top": _top(runs, name),
                }
                for name, axis in columns.items()
            },
            "keys": {
                key: {"label": axis.label, "title": axis_layout(axis)["title"]["text"], "log": axis.log}
                for key, axis in axes.items()
            },
            "few": len(keys) <= _FEW,
        },
        name=out.resolve().parent.name,
        runs=[_row(run, shown, out, numbers) for run, numbers in zip(runs, rows, strict=True)],
        case=_case_of(runs[0]) if len({_case_of(run) for run in runs}) == 1 else "",
        keys=[key.partition(".")[2].replace("_", " ") for key in shown],
        differ=", ".join(keys[:_KEYS]) + (f" and {len(keys) - _KEYS} more keys" if len(keys) > _KEYS else ""),
        more=[key for key in keys if key not in shown],
        has_certificates=any(summary.tally(run.series) for run in runs if run.series),
        headings=headings,
        verdicts=summary.verdict_meanings(" or ".join(sorted(certified))),
        notes=notes,
        missing=[*unreadable, *(f"{run.name}: {run.trouble}" for run in runs if run.trouble)],
    )


def _row(run: Run, keys: Sequence[str], out: Path, numbers: Sequence[Number | None]) -> dict[str, Any]:
    """The cells of a run in the table."""
    series, report = run.series, run.folder.path / "report.html"
    tally = summary.tally(series) if series else None
    return {
        "name": run.name,
        "link": Path(os.path.relpath(report.resolve(), out.resolve().parent)).as_posix() if report.exists() else "",
        "case": _case_of(run),
        "keys": [value_text(run.keys.get(key)) for key in keys],
        "status": run.status["status"],
        "tally": tally,
        "warnings": len(summary.remarks(run.status, series)),
        "numbers": numbers,
    }


def _numbers(runs: Sequence[Run]) -> tuple[list[str], list[list[Number | None]]]:
    """Headings of the columns of numbers in the table, and one row for each run, without columns that no run has."""
    found = [_numbers_of(run) if run.series else {} for run in runs]
    headings = [heading for heading in _NUMBERS if any(heading in numbers for numbers in found)]
    return headings, [[numbers.get(heading) for heading in headings] for numbers in found]


def _numbers_of(run: Run) -> dict[str, Number]:
    """The numbers of a run by their headings, each with a text in small letters. The run must have rows.

    If the wave has no rate, or a rate that differs from theory, the cell has a note.
    """
    series, energy = run.series, summary.total_energy(run.series)
    found: dict[str, Number] = {
        "time reached": Number(float(series["time"][-1]), f"of {run.case.number('time.end'):g}"),
        "energy and its change": Number(float(energy[-1]), f"{energy[-1] - energy[0]:+.2g}"),
    }
    if (seconds := summary.wall_clock(run.status)) is not None:
        found["wall clock, s"] = Number(seconds)
    if series["field_energy"].any():
        found["field energy"] = Number(float(series["field_energy"][-1]))
    if "kl" in series:
        found["KL to equilibrium"] = Number(float(series["kl"][-1]))
    if (measured := rates.measured(series, run.theory, run.status)) is None:
        return found
    rate = measured.rate
    if rate is None or measured.why_not:
        found["γ of the wave"] = Number(None, "none", measured.note)
    else:
        found["γ of the wave"] = Number(rate.rate, f"± {rate.error:.1g}", measured.note)
        if rate.frequency is not None:
            found["ω of the wave"] = Number(rate.frequency, f"± {rate.frequency_error:.1g}")
    if measured.expected is not None:
        found["γ of theory"] = Number(measured.expected)
    if measured.theory and measured.theory.frequency is not None:
        found["ω of theory"] = Number(measured.theory.frequency)
    return found


def _case_of(run: Run) -> str:
    return f"{run.case.word('problem.kind').replace('_', ' ')}, {run.case.dims}"


def _for_page(run: Run, keys: Sequence[str], columns: dict[str, Axis]) -> dict[str, Any]:
    """The data of a run for the script of the page. Columns have at most as many points as a screen shows."""
    found: dict[str, Any] = {}
    last: dict[str, float] = {}
    held = {key: run.keys.get(key) for key in keys}
    for name in (name for name in columns if name in run.series):
        kept = thinned(run.series["time"], run.series[name])
        found[name] = {"x": numbers(run.series["time"][kept]), "y": numbers(run.series[name][kept])}
        if np.isfinite(run.series[name][-1]):
            last[name] = float(run.series[name][-1])
    return {
        "name": run.name,
        "label": html_of(label_of(run, keys)),
        "keys": {key: value if _is_number(value) else value_text(value) for key, value in held.items()},
        "series": found,
        "last": last if run.status["status"] == "finished" else {},
    }


def _top(runs: Sequence[Run], column: str) -> float | None:
    """The top of the scale of a column if the first steps need far more work than the others; else None."""
    tops = [top_of_work(run.series[column]) for run in runs if column in run.series] if is_work(column) else []
    return max(tops) if tops and math.isfinite(max(tops)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables with their keys as ``section.key``. A list of one number becomes that
    number."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value[0] if isinstance(value, list) and len(value) == 1 else value
