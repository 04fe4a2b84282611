"""Figures of the time series: energies, free energy, relative entropy, wall-clock time, any column."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hpc_kjko.files.column_units import unit_of
from hpc_kjko.post.figures import names
from hpc_kjko.post.figures.names import axis_of
from hpc_kjko.post.figures.runfiles import TIME, Columns, RunFiles
from hpc_kjko.post.panels import Axis, Curve, Panel, Picture

#: An axis is logarithmic if its values change by this factor or more.
MANY_TIMES = 3.0
#: Directions have the same temperature if none differs from the mean by more than this fraction.
_ALIKE = 0.02
#: Changes of an energy by less than this fraction are rounding errors.
_ROUNDING = 1e-10
#: Label of an axis that shows a change.
_SINCE = "change since t = {:g}"


def energy_unit(run: RunFiles) -> str:
    """The unit of an energy of a run."""
    return unit_of("kinetic_energy", run.case.box_dims)


def energies(run: RunFiles) -> Iterator[Picture]:
    """The changes of the energies, and of the free energy and its parts: at most two pictures."""
    if run.series:
        yield Picture(
            "energies",
            "Energies",
            "Energies against time",
            (energy_panel(run.series, energy_unit(run)),),
        )
        in_bath = "free_energy" in run.series
        unit = energy_unit(run) if in_bath else unit_of("entropy", run.case.box_dims)
        if panel := free_energy_panel(run.series, unit):
            title = "Free energy and entropy" if in_bath else "∫ f log f, the negative of the entropy"
            text = "Free energy and entropy against time" if in_bath else "∫ f log f against time"
            yield Picture("free_energy", title, text, (panel,))


def temperatures(run: RunFiles) -> Iterator[Picture]:
    """The temperatures of all species in all directions; nothing if there is only one.

    Directions of a species whose temperatures are alike at all times are one curve, their mean.
    """
    found: dict[str, list[str]] = {}
    for name in run.series:
        if re.fullmatch(r"(.+_)?temperature_\d", name):
            found.setdefault(name.rpartition("temperature_")[0].removesuffix("_"), []).append(name)
    if sum(map(len, found.values())) < 2:
        return
    curves, time = [], run.series["time"]
    for species, columns in found.items():
        values = np.array([run.series[name] for name in columns])
        mean = values.mean(axis=0)
        if (np.abs(values - mean) <= _ALIKE * mean).all():
            curves.append(Curve(time, mean, species or "all directions"))
        else:
            labels = [", ".join(filter(None, (species, f"v_{number + 1}"))) for number in range(len(columns))]
            curves += [Curve(time, one, label) for one, label in zip(values, labels, strict=True)]
    panel = Panel(TIME, Axis("temperature", unit_of("temperature_1", 0)), curves=tuple(curves))
    yield Picture("temperatures", "Temperatures", "Temperatures against time", (panel,))


def energy_panel(series: Columns, unit: str) -> Panel:
    """The changes of the energies. The energies themselves would be flat lines if the wave is small."""
    total = series["kinetic_energy"] + series["field_energy"] + series["potential_energy"]
    curves = [
        _change(series, series[f"{name}_energy"], name)
        for name in ("kinetic", "field", "potential")
        if series[f"{name}_energy"].any()
    ]
    curves.append(_change(series, total, "total", "reference"))
    is_constant = len(total) > 1 and all(np.abs(curve.y).max() <= _ROUNDING * abs(total[0]) for curve in curves)
    note = "The energies are constant: what is shown are rounding errors." if is_constant else ""
    return Panel(TIME, Axis(_SINCE.format(series["time"][0]), unit), curves=tuple(curves), note=note)


def free_energy_panel(series: Columns, unit: str) -> Panel | None:
    """The changes of free energy and entropy and the integrated dissipation; without a bath ∫ f log f alone.

    None if log f is not carried.
    """
    if "entropy" not in series:
        return None
    curves, in_bath = [], "free_energy" in series
    if in_bath:
        curves.append(_change(series, series["free_energy"], "free energy F"))
        energies = sum(series[f"{kind}_energy"] for kind in ("kinetic", "field", "potential"))
        with np.errstate(invalid="ignore"):  # the energy of a run that has become unstable may be infinite
            curves.append(_change(series, series["free_energy"] - energies, "T ∫ f log f"))
    else:
        curves.append(_change(series, series["entropy"], "∫ f log f"))
    if "dissipation" in series:
        curves.append(Curve(series["time"], -dissipated(series), "−∫ dissipation dt", "reference"))
    return Panel(TIME, Axis(_SINCE.format(series["time"][0]), unit), curves=tuple(curves))


def _change(series: Columns, values: np.ndarray, label: str, look: str = "line") -> Curve:
    return Curve(series["time"], values - values[0], f"{label}, from {values[0]:.4g}", look)  # type: ignore[arg-type]


def dissipated(series: Columns) -> np.ndarray:
    """∫ dissipation dt up to each row. The free energy should decrease by it (with the Dougherty operator, ∫f log
    f)."""
    return np.concatenate([[0.0], np.cumsum(series["dissipation"][1:] * np.diff(series["time"]))])


def relative_entropy(run: RunFiles) -> Iterator[Picture]:
    """KL divergence from the equilibrium, on a logarithmic axis if it changes by much; nothing if it is not known."""
    if "kl" in run.series:
        kl = run.series["kl"]
        positive = kl[(kl > 0) & np.isfinite(kl)]
        of_decades = bool(len(positive)) and bool(positive.max() > MANY_TIMES * positive.min())
        note = "KL is an average over the particles, which may be negative near equilibrium." if (kl <= 0).any() else ""
        panel = Panel(TIME, Axis("KL(f | f_∞)", log=of_decades), curves=(Curve(run.series["time"], kl),), note=note)
        text = "Relative entropy (KL divergence) against time"
        yield Picture("relative_entropy", "Relative entropy: how far f is from equilibrium", text, (panel,))


def seconds(run: RunFiles) -> Iterator[Picture]:
    """Wall-clock time of each step. The row at t = 0 has none."""
    series = run.series
    if series and len(series["step"]) > 1:
        step = series["step"][1:]
        parts = [name for name in names.PARTS_OF_A_STEP if name in series and series[name][1:].any()]
        whole = " and ".join(names.PARTS_OF_A_STEP[name] for name in parts).replace(" and ", ", ", len(parts) - 1)
        curves = [Curve(step, series["seconds"][1:], whole)]
        if len(parts) > 1:
            curves += [Curve(step, series[name][1:], names.PARTS_OF_A_STEP[name]) for name in parts]
        top, note = _scale_of_work(series, "seconds", "s")
        panel = Panel(Axis("step"), Axis("wall clock", "s", limits=(0.0, top or 1.0)), curves=tuple(curves), note=note)
        title = "Wall-clock time of each step, without diagnostics and files"
        yield Picture("seconds", title, "Seconds of each step", (panel,))


def is_work(column: str) -> bool:
    """Whether a column measures the work of a step. The first step has more, because some work is done only once."""
    return column.startswith("seconds") or column.endswith("inner_iterations")


def top_of_work(values: np.ndarray) -> float:
    """The top of a scale for the work of the steps after the first one, or infinity if the first has similar work.

    Args:
        values: the work [rows]. The first row is that of t = 0, without work.
    """
    if len(values) < 4:
        return math.inf
    top = 1.05 * float(np.percentile(values[2:], 99))
    return top if 0 < 1.5 * top < values[1] else math.inf


def _scale_of_work(series: Columns, name: str, unit: str) -> tuple[float, str]:
    """The top of the scale for the work of steps, and a sentence if the first step of the run lies above it."""
    values = series[name]
    top = top_of_work(values)
    if series["step"][0] == 0 and math.isfinite(top):
        first = f"{values[1]:.3g} {unit}".rstrip()
        return top, f"The first step, with {first}, is beyond the scale: it includes work that is done only once."
    return 1.05 * float(np.percentile(values[1:], 99)), ""


def columns(run: RunFiles, names: Sequence[str], units: Mapping[str, str]) -> Iterator[Picture]:
    """A picture of each given column against time.

    Args:
        run: the files of the run.
        names: the columns.
        units: the units of the columns.
    """
    for name in names:
        axis, values, note = axis_of(name, units[name], run.case.species), run.series[name], ""
        if axis.log and not (values > 0).any():
            axis = Axis(axis.label, axis.unit)
        if is_work(name) and len(values) > 1:
            top, note = _scale_of_work(run.series, name, axis.unit)
            axis = dataclasses.replace(axis, limits=(0.0, top) if note else None)
        panel = Panel(TIME, axis, curves=(Curve(run.series["time"], values),), note=note)
        yield Picture(name, axis.label[0].upper() + axis.label[1:], f"{axis.label} against time", (panel,))
