"""``kjko plot``: the figures of a run as files, and those of ``kjko compare`` and the report."""

from __future__ import annotations

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


def plot_run(
    folder: RunFolder,
    *,
    columns: Sequence[str] = (),
    window: Window = FROM_THE_START,
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
    series, units = read_series_and_units(folder.series)
    for name in columns:
        if name not in series:
            raise UserError(f"--column {name}: the run has no such column: {one_of(name, series)}")
    run, out = RunFiles.of(folder, window), out or folder.figures
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for picture in energies.columns(run, columns, units) if columns else figures.pictures_of(run):
        path = out / f"{picture.name}.{file_format}"
        draw.save(picture, path, run.title)
        yield path


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
    for found in waves.spectrum(run):
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
