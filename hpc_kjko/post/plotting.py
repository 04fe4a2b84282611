"""``kjko plot``: the figures of a run as files, and those of ``kjko compare`` and the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError, one_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series_and_units
from hpc_kjko.files.storage import writing
from hpc_kjko.post import draw, figures
from hpc_kjko.post.figures import distributions, energies, waves
from hpc_kjko.post.figures.names import axis_of
from hpc_kjko.post.figures.runfiles import FROM_THE_START, TIME, Columns, RunFiles, Window
from hpc_kjko.post.panels import Curve, Panel
from hpc_kjko.post.panels import Picture as Figures

Format = Literal["png", "pdf", "svg"]
#: Pictures of a movie.
MOVIE_FRAMES = 60


def plot_run(
    folder: RunFolder,
    *,
    columns: Sequence[str] = (),
    window: Window = FROM_THE_START,
    file_format: Format = "png",
    out: Path | None = None,
    log: bool = False,
    places: Sequence[float] = (),
    planes: Sequence[tuple[str, str]] = (),
    against: RunFolder | None = None,
    movie: bool = False,
) -> Iterator[Path]:
    """Draw the figures that the run has data for, or those that are asked for.

    Args:
        columns: of the time series, to draw a figure of each instead of all figures.
        window: the first and the last time shown.
        out: the folder for the figures, made if missing (default ``figures/`` in the run folder).
        log: logarithmic scales of f.
        places: x of the cuts through phase space.
        planes: pairs of coordinates, to draw the density of each pair instead of all figures.
        against: another run, to draw the difference of f from it instead of all figures.
        movie: write movies over time instead of all figures.

    Yields:
        Each file, once it is written.

    Raises:
        UserError: the folder holds no readable time series, or none of the columns or times that are asked for, or a
            figure cannot be written.
    """
    series, units = read_series_and_units(folder.series)
    for name in columns:
        if name not in series:
            raise UserError(f"--column {name}: the run has no such column: {one_of(name, series)}")
    run, out = RunFiles.of(folder, window), out or folder.figures
    if places:
        _require_cuts(run, places)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    asked: list[Iterator[Figures]] = []
    if columns:
        asked.append(energies.columns(run, columns, units))
    for names in planes:
        asked += [distributions.plane(run, names, species, log=log) for species in run.species]
    if against:
        asked.append(_differences(run, RunFiles.of(against, window)))
    if not asked and not movie:
        asked.append(figures.pictures_of(run, log=log, places=places))
    for picture in itertools.chain(*asked):
        path = out / f"{picture.name}.{file_format}"
        draw.save(picture, path, run.title)
        yield path
    if movie:
        yield from _movies(run, out, log)


def _require_cuts(run: RunFiles, places: Sequence[float]) -> None:
    """Refuse cuts that cannot be had."""
    if not any(distributions.can_interpolate(run, species) for species in run.species):
        raise UserError("--at: cuts through phase space need log f and one dimension of x and of v")
    if not run.steps_with("particles"):
        raise UserError("--at: the snapshots hold no particles: run with output.particles_every above 0")
    for place in places:
        if run.lengths and not 0 <= place <= run.lengths[0]:
            raise UserError(f"--at {place:g}: x goes from 0 to {run.lengths[0]:g}")


def _differences(run: RunFiles, other: RunFiles) -> Iterator[Figures]:
    found = 0
    for species in run.species:
        if species is None or species in other.species:
            for picture in distributions.difference(run, other, species):
                found += 1
                yield picture
    if not found:
        raise UserError(
            f"--against {other.folder.path}: the runs have no two times of phase space of the same box in common: run "
            "both with the same problem and output.particles_every or output.histogram_every"
        )


def _movies(run: RunFiles, out: Path, log: bool) -> Iterator[Path]:
    found = 0
    for frames in figures.frames_of(run, MOVIE_FRAMES, log=log):
        path = out / f"{frames[0].name.rsplit('_', 1)[0]}.gif"
        draw.movie(frames, path, run.title)
        found += 1
        yield path
    if not found:
        raise UserError("--movie: the run has no two snapshots of phase space: run with output.histogram_every above 0")


@dataclass(frozen=True)
class Picture:
    """A small picture for a page: PNG on a transparent background, what it shows, and when (None: at all times)."""

    png: bytes
    text: str
    time: float | None = None


def pictures(folder: RunFolder, case: RunCase, series: Columns) -> Iterator[tuple[str, Picture]]:
    """Every panel that the run has data for, by the name of its figure; of phase space at up to 24 times.

    Args:
        series: two rows at least, or none.

    Raises:
        UserError: a snapshot is damaged.
    """
    run = RunFiles(folder, case, series)
    of_series = (waves.field_energy, energies.energies, energies.relative_entropy, energies.seconds)
    for found in (picture for make in of_series for picture in make(run)):
        yield found.name, Picture(draw.png(found), found.text)
    for species in run.species:
        for found in distributions.marginals(run, species):
            for panel in found.panels:
                text = f"Distribution of {panel.x.label.replace('_', '')}{f' of {species}' if species else ''}"
                yield "marginals", Picture(draw.png(Figures(found.name, "", text, (panel,))), text)
    for found in distributions.phase_space_frames(run, case.species[0] if case.species else None):
        yield "phase_space", Picture(draw.png(found), found.text, found.time)
    for found in waves.field(run):
        yield "spectrum", Picture(draw.png(found), found.text)


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
    panels = []
    for name, (time, values, reference) in curves.items():
        axis, lines = axis_of(name, units[name]), (Curve(time, reference, labels[1], "reference"),)
        panels.append(Panel(TIME, axis, curves=(*lines, Curve(time, values, labels[0]))))
    draw.save(Figures("comparison", f"{labels[0]} against {labels[1]}", "", tuple(panels)), out)
