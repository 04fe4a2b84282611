"""Figures of a run, from its files only.

Units on the axes are those of the normalisation: time in 1/ω_p, lengths in v_th/ω_p, velocities in v_th (the thermal
speed of a bath at T = 1), densities in the mean density n̄, energies in n̄ m v_th² (v_th/ω_p)^dx.

A panel draws into one axes. ``plot_run`` puts panels together into files, ``pictures`` makes of each a small picture.
Figures are made without pyplot, so the backend of a notebook, or of MPLBACKEND, neither matters nor changes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile, UserError, one_of
from hpc_kjko.files.binned import Marginal
from hpc_kjko.files.output import Snapshot, list_contents, read_snapshots
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_equilibrium, read_series
from hpc_kjko.files.storage import writing

#: Panels of the phase-space figure.
PANELS = 6
#: Pictures of phase space in a report.
FRAMES = 24
#: Times of the marginals and of the spectrum.
TIMES = 4

_STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
#: Half-tones on nothing: to be read on a white page and on a dark one.
_GREY = "#757f8f"
_HALF_TONES = {
    **_STYLE,
    "figure.dpi": 200,
    "font.size": 11,
    "savefig.transparent": True,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=["#3b82c4", "#d97a1c", "#3f9a57", "#d4504d", "#9a6fc4", "#a0765b"]),
    **{f"{name}.color": _GREY for name in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{name}color": _GREY for name in ("edge", "label", "title")},
}

#: The percentage of the filled bins of phase space that the colours are made for.
_BRIGHT = 99.5
#: Columns that fall or grow over orders of magnitude.
_LOGARITHMIC = ("field_energy", "wave_energy", "kl")
_FROM_THE_START = (-math.inf, math.inf)

Panel = Callable[[Axes], None]
Columns = dict[str, np.ndarray]
Format = Literal["png", "pdf", "svg"]
Window = tuple[float, float]


def plot_run(
    folder: RunFolder,
    *,
    columns: Sequence[str] = (),
    window: Window = _FROM_THE_START,
    file_format: Format = "png",
    out: Path | None = None,
) -> Iterator[Path]:
    """Draw the figures that the run has data for.

    Args:
        columns: of the time series, to draw a figure of each instead of all figures.
        window: the first and the last time shown.
        out: the folder for the figures, made if missing (default ``figures/`` in the run folder).

    Yields:
        Each file, once it is written.

    Raises:
        UserError: the folder holds no readable time series, or none of the columns or times that are asked for, or a
            figure cannot be written.
    """
    case, series, out = RunCase(folder.case), read_series(folder.series), out or folder.figures
    for name in columns:
        if name not in series:
            raise UserError(f"--column {name}: the run has no such column: {one_of(name, series)}")
    series = _within(series, window)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawings = _of_columns(case, series, columns) if columns else _of_run(case, series, folder, window)
    for name, draw in drawings.items():
        path = out / f"{name}.{file_format}"
        with matplotlib.rc_context(_STYLE):
            figure = draw()
            if figure is not None:
                with writing(path):
                    figure.savefig(path)
        if figure is not None:
            yield path


def _within(series: Columns, window: Window) -> Columns:
    """The rows of a series at the times of a window."""
    time = series["time"]
    slack = 1e-9 * abs(time[-1])
    inside = (time >= window[0] - slack) & (time <= window[1] + slack)
    if not inside.any():
        raise UserError(
            f"--from {window[0]:g} --to {window[1]:g}: the run has no row there; it has t = {time[0]:g} to {time[-1]:g}"
        )
    return {name: values[inside] for name, values in series.items()}


def _of_run(
    case: RunCase, series: Columns, folder: RunFolder, window: Window
) -> dict[str, Callable[[], Figure | None]]:
    """What draws each figure of a run, by the name of its file; field energy first."""
    panels = series_panels(case, series)
    energies: list[str] = [name for name in ("energies", "free_energy") if name in panels]
    has_walls = set(case.value("problem.boundary", ["periodic"])) != {"periodic"}
    drawings: dict[str, Callable[[], Figure | None]] = {
        "field_energy": lambda: _row(case, panels, ["field_energy"]),
        "energies": lambda: _row(case, panels, energies),
        "relative_entropy": lambda: _row(case, panels, ["relative_entropy"]),
    }
    for species in _each_species(case):
        name = f"_{species}" if species else ""
        drawings[f"marginals{name}"] = functools.partial(marginals, case, folder, series, window, species)
        drawings[f"phase_space{name}"] = functools.partial(phase_space, case, folder, window, species)
    # the waves of the spectrum are those of a periodic box
    return drawings if has_walls else drawings | {"spectrum": lambda: spectrum(case, folder, window)}


def _each_species(case: RunCase) -> Sequence[str | None]:
    """The names of a case's species; None where it names none."""
    return case.species or [None]


def _of_columns(case: RunCase, series: Columns, names: Sequence[str]) -> dict[str, Callable[[], Figure | None]]:
    """What draws each of some columns against time, by the name of its file."""

    def panel(name: str) -> Panel:
        def draw(axes: Axes) -> None:
            axes.plot(series["time"], series[name], color="C0")
            if name in _LOGARITHMIC and (series[name] > 0).any():
                axes.set_yscale("log")
            axes.set(xlabel="time  [1/ω$_p$]", ylabel=name.replace("_", " "))

        return draw

    panels = {name: panel(name) for name in names}
    return {name: lambda name=name: _row(case, panels, [name]) for name in names}  # type: ignore[misc]


@dataclass(frozen=True)
class Picture:
    """A small picture for a page: PNG on a transparent background, what it shows, and when (None: at all times)."""

    png: bytes
    text: str
    time: float | None = None


def pictures(folder: RunFolder, case: RunCase, series: Columns) -> Iterator[tuple[str, Picture]]:
    """Every panel that the run has data for, by the name of its figure; of phase space as many times as FRAMES.

    Args:
        series: two rows at least, or none.

    Raises:
        UserError: a snapshot is damaged.
    """
    seconds = {"seconds": lambda axes: _seconds(axes, series)} if series else {}
    for name, panel in (series_panels(case, series) | seconds).items():
        no_bath = name == "free_energy" and "free_energy" not in series
        yield name, Picture(_png(panel), "∫ f log f against time" if no_bath else TEXTS[name])
    steps = _steps_with(folder, "histograms")
    for species in _each_species(case):
        of = f" of {species}" if species else ""
        for label, panel in marginal_panels(folder, series, species=species):
            yield "marginals", Picture(_png(panel), f"Distribution of {label}{of}")
    frames = _snapshots(folder, _spread(steps, FRAMES))
    frames = [frame for frame in frames if frame.histograms]
    brightest, of = _brightest(frames), f" of {case.species[0]}" if case.species else ""
    for frame in frames:
        png = _png(_phase_space_panel(frame, brightest, with_bar=True))
        yield "phase_space", Picture(png, f"Phase space{of} at t = {frame.time:g}", frame.time)
    fields = _snapshots(folder, _spread(_steps_with(folder, "fields"), TIMES), fields=True)
    if fields:
        yield "spectrum", Picture(_png(_spectrum_panel(fields)), TEXTS["spectrum"])


TEXTS = {
    "field_energy": "Energy of the electric field against time",
    "energies": "Energies against time",
    "free_energy": "Free energy and entropy against time",
    "relative_entropy": "Relative entropy (KL divergence) against time",
    "spectrum": "Field energy by wavenumber, at several times",
    "seconds": "Seconds of each step",
}


def _png(panel: Panel) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(_HALF_TONES):
        figure, grid = _axes(1, 1, (4.8, 3.3))
        panel(grid[0, 0])
        figure.savefig(file, format="png")
    return file.getvalue()


def _row(case: RunCase, panels: Mapping[str, Panel], names: list[str]) -> Figure | None:
    """Panels beside each other; None if there are none."""
    names = [name for name in names if name in panels]
    if not names:
        return None
    width = 6.4 if len(names) == 1 else 5.0 * len(names)
    figure, grid = _axes(1, len(names), (width, 4.2))
    for name, axes in zip(names, grid[0], strict=True):
        panels[name](axes)
    figure.suptitle(_title(case))
    return figure


def _axes(rows: int, columns: int, size: tuple[float, float], shared: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure that pyplot knows nothing of, and its axes [rows, columns], which may share their scales."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)


def _ink() -> str:
    return matplotlib.rcParams["text.color"]


def comparison(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    units: Mapping[str, str],
    labels: tuple[str, str],
    out: Path,
) -> None:
    """Draw a run over its reference: a panel for each column, by its name, of times, values and the reference's.

    Args:
        units: in words, by column.
        labels: what the run and the reference are called.
        out: the file.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(_STYLE):
        figure, grid = _axes(rows, columns, (4.4 * columns, 3.2 * rows + 0.4))
        for axes, (name, (time, values, reference)) in zip(grid.flat, curves.items(), strict=False):
            axes.plot(time, reference, color=_ink(), lw=2.4, alpha=0.35, label=labels[1])
            axes.plot(time, values, color="C3", lw=1, label=labels[0])
            if name in _LOGARITHMIC and min(values.min(), reference.min()) > 0:
                axes.set_yscale("log")
            unit = "" if units[name] == "1" else f"\n[{units[name]}]"
            axes.set(xlabel="time  [1/ω$_p$]", ylabel=f"{name.replace('_', ' ')}{unit}")
        for axes in grid.flat[len(curves) :]:
            axes.set_visible(False)
        grid[0, 0].legend()
        figure.savefig(out)


# -- panels of the time series ---------------------------------------------------------------------------------------


def series_panels(case: RunCase, series: Columns) -> dict[str, Panel]:
    """The panels that a time series has columns for; none without a series."""
    if not series:
        return {}
    panels: dict[str, Panel] = {}
    if series["field_energy"].any():
        panels["field_energy"] = lambda axes: _field_energy(axes, series)
    panels["energies"] = lambda axes: _energies(axes, series)
    if "entropy" in series:
        panels["free_energy"] = lambda axes: _free_energy(axes, case, series)
    if "kl" in series:
        panels["relative_entropy"] = lambda axes: _relative_entropy(axes, series)
    return panels


def _field_energy(axes: Axes, series: Columns) -> None:
    """½ ∫ |E|² dx against time, logarithmic."""
    axes.semilogy(series["time"], series["field_energy"], color="C3")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="field energy  ½∫|E|²dx  [normalised]")


def _energies(axes: Axes, series: Columns) -> None:
    """How the energies change: a small wave beside a plasma's thermal energy would be a flat line."""
    total = series["kinetic_energy"] + series["field_energy"] + series["potential_energy"]
    for name in ("kinetic", "field", "potential"):
        if series[f"{name}_energy"].any():
            _change(axes, series["time"], series[f"{name}_energy"], name)
    _change(axes, series["time"], total, "total", color=_ink(), lw=1, ls="--")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel=f"{_SINCE.format(series['time'][0])}  [normalised]")
    axes.legend()


#: What an axis of changes shows.
_SINCE = "change since t = {:g}"


def _change(axes: Axes, time: np.ndarray, values: np.ndarray, label: str, **look: Any) -> None:
    axes.plot(time, values - values[0], label=f"{label}, from {values[0]:.4g}", **look)


def _free_energy(axes: Axes, case: RunCase, series: Columns) -> None:
    """Changes of free energy and entropy, or of ∫ f log f alone without a bath, and the dissipation identity."""
    time, in_bath = series["time"], "free_energy" in series
    if in_bath:
        _change(axes, time, series["free_energy"], "free energy F", color="C2")
        energies = sum(series[f"{kind}_energy"] for kind in ("kinetic", "field", "potential"))
        _change(axes, time, series["free_energy"] - energies, "T ∫ f log f", color="C4")
    else:
        _change(axes, time, series["entropy"], "∫ f log f", color="C4")
    if "dissipation" in series:
        axes.plot(time, -dissipated(series), color=_ink(), lw=1, ls="--", label="−∫ dissipation dt")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel=_SINCE.format(time[0]) + ("  [normalised]" if in_bath else ""))
    axes.legend()


def dissipated(series: Columns) -> np.ndarray:
    """∫ dissipation dt up to each row, by the step that each row reports: what the free energy should have lost, or
    with the Dougherty operator ∫f log f."""
    return np.concatenate([[0.0], np.cumsum(series["dissipation"][1:] * np.diff(series["time"]))])


def _relative_entropy(axes: Axes, series: Columns) -> None:
    """KL divergence from the equilibrium, logarithmic."""
    axes.semilogy(series["time"], np.where(series["kl"] > 0, series["kl"], np.nan), color="C0")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="KL(f | f$_∞$)")


def _seconds(axes: Axes, series: Columns) -> None:
    """Wall clock of each step; the row of t = 0 has none."""
    axes.plot(series["step"][1:], series["seconds"][1:], color="C0", lw=1)
    axes.set(xlabel="step", ylabel="seconds")
    axes.set_ylim(bottom=0)


# -- panels of the snapshots -----------------------------------------------------------------------------------------


def marginals(
    case: RunCase, folder: RunFolder, series: Columns, window: Window, species: str | None = None
) -> Figure | None:
    """Marginals of every coordinate at several times, and the equilibrium's; None without snapshots of them."""
    panels = [panel for _, panel in marginal_panels(folder, series, window, species)]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = _axes(rows, columns, (4.2 * columns, 3.2 * rows + 0.4))
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
    for axes in grid.flat[1 : len(panels)]:
        axes.get_legend().remove()
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(_title(case, species))
    return figure


def marginal_panels(
    folder: RunFolder, series: Columns, window: Window = _FROM_THE_START, species: str | None = None
) -> list[tuple[str, Panel]]:
    """One of each coordinate, with its name; none without snapshots."""
    snapshots = _snapshots(folder, _spread(_steps_with(folder, "histograms", window), TIMES), species=species)
    if not snapshots:
        return []
    known: dict[tuple[str, int], Marginal] = {}
    with contextlib.suppress(DamagedFile):  # who reads the series says so
        known = {(marginal.kind, marginal.axis): marginal for marginal in read_equilibrium(folder.series)}

    def panel(number: int) -> Panel:
        def draw(axes: Axes) -> None:
            for snapshot in snapshots:
                found = snapshot.marginals[number]
                low, high = found.range
                edges = np.linspace(low, high, len(found.values) + 1)
                # the mass of a case's only species is ∫f; of one of several, what the window holds of it
                whole = (found.values * np.diff(edges)).sum()
                mass = series["mass"][0] if series and species is None else whole
                axes.plot(0.5 * (edges[1:] + edges[:-1]), found.values / mass, lw=1.2, label=f"t = {snapshot.time:g}")
            if (wanted := known.get((found.kind, found.axis))) is not None:
                edges = np.linspace(*wanted.range, len(wanted.values) + 1)
                centres = 0.5 * (edges[1:] + edges[:-1])
                axes.plot(centres, wanted.values, color=_ink(), lw=1, ls="--", label="equilibrium")
            unit = "v$_{th}$/ω$_p$" if found.kind == "x" else "v$_{th}$"
            axes.set(xlabel=f"{names[number]}  [{unit}]", ylabel="probability density")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8)

        return draw

    coordinates = [(marginal.kind, marginal.axis + 1) for marginal in snapshots[0].marginals]
    numbered = len(coordinates) > 2
    names = [f"{kind}$_{axis}$" if numbered else kind for kind, axis in coordinates]
    return [(f"{kind}{axis if numbered else ''}", panel(i)) for i, (kind, axis) in enumerate(coordinates)]


def phase_space(case: RunCase, folder: RunFolder, window: Window, species: str | None = None) -> Figure | None:
    """Phase-space density of (x, v_x) at several times; None without snapshots of it."""
    chosen = _snapshots(folder, _spread(_steps_with(folder, "histograms", window), PANELS), species=species)
    chosen = [snapshot for snapshot in chosen if snapshot.histograms]
    if not chosen:
        return None
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, grid = _axes(rows, columns, (3.6 * columns + 0.8, 3 * rows + 0.4), shared=True)
    brightest = _brightest(chosen)
    for axes, snapshot in zip(grid.flat, chosen, strict=False):
        _phase_space_panel(snapshot, brightest)(axes)
        axes.label_outer()
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    figure.colorbar(grid[0, 0].images[0], ax=grid, label="f(x, v$_x$)", shrink=0.9, extend="max")
    figure.suptitle(_title(case, species))
    return figure


def _brightest(snapshots: list[Snapshot]) -> float:
    """The top of the colours of all: a few bins that noise makes large are beyond it."""
    values = [snapshot.histograms[0].values for snapshot in snapshots]
    filled = [of_one[of_one > 0] for of_one in values if of_one.any()]
    return max((float(np.percentile(of_one, _BRIGHT)) for of_one in filled), default=0.0)


def _phase_space_panel(snapshot: Snapshot, brightest: float, with_bar: bool = False) -> Panel:
    histogram = snapshot.histograms[0]

    def draw(axes: Axes) -> None:
        image = axes.imshow(
            histogram.values.T,
            origin="lower",
            extent=(*histogram.x_range, *histogram.v_range),
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=brightest,
        )
        axes.set_title(f"t = {snapshot.time:g}", fontsize=10)
        axes.set(xlabel="x  [v$_{th}$/ω$_p$]", ylabel="v$_x$  [v$_{th}$]")
        axes.grid(False)
        if with_bar:
            axes.figure.colorbar(image, ax=axes, label="f(x, v$_x$)", extend="max")

    return draw


def spectrum(case: RunCase, folder: RunFolder, window: Window) -> Figure | None:
    """Field energy by wavenumber at several times; None without snapshots of the field."""
    snapshots = _snapshots(folder, _spread(_steps_with(folder, "fields", window), TIMES), fields=True)
    if not snapshots:
        return None
    figure, grid = _axes(1, 1, (6.4, 4.2))
    _spectrum_panel(snapshots)(grid[0, 0])
    figure.suptitle(_title(case))
    return figure


def field_spectrum(electric: np.ndarray, periods: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers, and the field energy ½∫|E|²dx of the waves of each; in more dimensions than one of whole shells.

    Args:
        electric: E [*cells, dx].
        periods: lengths of the box [dx].

    Returns:
        |k| [n], from the smallest on, and the energies [n], which add up to the field energy without the mean field's.
    """
    cells = electric.shape[:-1]
    waves = np.fft.fftn(electric, axes=range(len(cells)), norm="forward")
    energy = 0.5 * np.prod(periods) * (np.abs(waves) ** 2).sum(-1)
    axes = [2 * np.pi * np.fft.fftfreq(n, length / n) for n, length in zip(cells, periods, strict=True)]
    wavenumber = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))
    smallest = 2 * np.pi / max(periods)
    shell = np.rint(wavenumber / smallest).astype(int).ravel()
    return smallest * np.arange(1, shell.max() + 1), np.bincount(shell, energy.ravel())[1:]


def _spectrum_panel(snapshots: list[Snapshot]) -> Panel:
    def draw(axes: Axes) -> None:
        for snapshot in snapshots:
            assert snapshot.electric is not None and snapshot.spacing is not None
            periods = tuple(snapshot.spacing * snapshot.electric.shape[:-1])
            wavenumber, energy = field_spectrum(snapshot.electric, periods)
            energy = np.where(energy > 1e-30, energy, np.nan)
            axes.semilogy(wavenumber, energy, marker=".", ms=4, lw=1, label=f"t = {snapshot.time:g}")
        axes.set(xlabel="k  [ω$_p$/v$_{th}$]", ylabel="field energy  [normalised]")
        axes.legend(fontsize=8)

    return draw


def _steps_with(folder: RunFolder, what: str, window: Window = _FROM_THE_START) -> list[int]:
    """Steps of the snapshots that hold something, at the times of a window."""
    steps = [step for step, contents in list_contents(folder.snapshots).items() if what in contents]
    if window == _FROM_THE_START:
        return steps
    step_length = RunCase(folder.case).number("time.step")
    slack = 1e-9 * step_length
    return [step for step in steps if window[0] - slack <= step * step_length <= window[1] + slack]


def _spread(steps: list[int], most: int) -> list[int]:
    """Not more than ``most`` of the steps, the first and the last among them."""
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def _snapshots(folder: RunFolder, steps: list[int], fields: bool = False, species: str | None = None) -> list[Snapshot]:
    return read_snapshots(folder.snapshots, steps, fields=fields, species=species)


def _title(case: RunCase, species: str | None = None) -> str:
    """What a figure is of: the whole run, or one of its species with its own κ and N."""
    kind, strength = case.word("problem.kind").replace("_", " "), case.collision_strength
    particles = case.particle_count
    if species:
        kind, particles = f"{species}: {kind}", int(case.number(f"species.{species}.count"))
        if strength and not case.collide_together:
            strength = case.number(f"species.{species}.collision_strength")
    return f"{kind}, {case.dims}, κ = {strength:g}, N = {particles}, h = {case.number('time.step'):g}"
