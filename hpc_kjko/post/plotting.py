"""``kjko plot``: writes figures to files."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from hpc_kjko.errors import UserError, one_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series_and_units
from hpc_kjko.files.storage import writing
from hpc_kjko.post import draw, figures
from hpc_kjko.post.figures import energies, phase_space
from hpc_kjko.post.figures.planes import can_interpolate
from hpc_kjko.post.figures.runfiles import FROM_THE_START, RunFiles, Window, within
from hpc_kjko.post.panels import Picture

Format = Literal["png", "pdf", "svg"]
#: Number of pictures in a movie.
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
    """Draw all figures for which the run has data, or those that are asked for.

    A figure that depends on a choice has a name with this choice, so it does not replace the figure of the whole run.

    Args:
        folder: the run folder.
        columns: columns of the time series. If given, one figure for each is drawn instead of all figures.
        window: the first and the last time shown.
        file_format: "png", "pdf" or "svg".
        out: the folder for the figures, which is created if necessary (default ``figures/`` in the run folder).
        log: use logarithmic scales for f.
        places: x of the cuts through phase space.
        planes: pairs of coordinates. If given, the density of each pair is drawn instead of all figures.
        against: another run. If given, the difference of f from that of this run is drawn instead of all figures.
        movie: write movies over time instead of all figures.

    Yields:
        The path of each file, after it has been written.

    Raises:
        UserError: the folder has no readable time series, the run does not have the columns or times that are asked
            for, or a figure cannot be written.
    """
    series, units = read_series_and_units(folder.series)
    for name in columns:
        if name not in series:
            raise UserError(f"--column {name}: the run has no such column: {one_of(name, series)}")
    run, out = RunFiles.of(folder, window), out or folder.figures
    if places:
        _require_cuts(run, places)
    asked: list[Iterator[Picture]] = []
    if columns:
        asked.append(_columns(dataclasses.replace(run, series=within(series, window)), columns, units))
    for names in planes:
        asked += [phase_space.plane(run, names, species, log=log) for species in run.species]
    if against:
        asked.append(_differences(run, RunFiles.of(against, window)))
    if not asked and not movie:
        asked.append(figures.pictures_of(run, log=log, places=places))
    yield from save_all(itertools.chain(*asked), out, file_format, run.title, window)
    if movie:
        yield from _movies(run, out, log)


def save_all(
    pictures: Iterable[Picture], out: Path, file_format: Format, subtitle: str, window: Window = FROM_THE_START
) -> Iterator[Path]:
    """Draw pictures into files of a folder, which is created if necessary.

    Args:
        pictures: the pictures.
        out: the folder.
        file_format: "png", "pdf" or "svg".
        subtitle: a line below the titles.
        window: the first and the last time shown, which are part of the file names.

    Yields:
        The path of each file, after it has been written.

    Raises:
        UserError: a figure cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        path = out / f"{picture.name}{_times(window)}.{file_format}"
        draw.save(picture, path, subtitle)
        yield path


def _times(window: Window) -> str:
    """The end of a file name for the times shown: "_t10_to_t20", "_from_t10" or "_to_t20"; empty for all times."""
    first, last = (f"t{time:g}" if math.isfinite(time) else "" for time in window)
    if first and last:
        return f"_{first}_to_{last}"
    return f"_from_{first}" if first else f"_to_{last}" if last else ""


def _columns(run: RunFiles, columns: Sequence[str], units: Mapping[str, str]) -> Iterator[Picture]:
    """A picture of each column. Some figures of the whole run have the name of a column, such as "field_energy"."""
    for picture in energies.columns(run, columns, units):
        yield dataclasses.replace(picture, name=f"column_{picture.name}")


def _require_cuts(run: RunFiles, places: Sequence[float]) -> None:
    """Refuse cuts that the run cannot have."""
    if not run.steps_with("particles"):
        raise UserError("--at: the snapshots hold no particles: run with output.particles_every above 0")
    if not any(can_interpolate(run, species) for species in run.species):
        raise UserError("--at: cuts through phase space need log f and one dimension of x and of v")
    for place in places:
        if run.lengths and not 0 <= place <= run.lengths[0]:
            raise UserError(f"--at {place:g}: x goes from 0 to {run.lengths[0]:g}")


def _differences(run: RunFiles, other: RunFiles) -> Iterator[Picture]:
    found = 0
    for species in run.species:
        if species is None or species in other.species:
            for picture in phase_space.difference(run, other, species):
                found += 1
                yield picture
    if not found:
        raise UserError(
            f"--against {other.folder.path}: the runs have no two common times with phase space in the same box: run "
            "both with the same problem and output.particles_every or output.histogram_every"
        )


def _movies(run: RunFiles, out: Path, log: bool) -> Iterator[Path]:
    found = 0
    for frames in figures.frames_of(run, MOVIE_FRAMES, log=log):
        path = out / f"{frames[0].name.rsplit('_', 1)[0]}{_times(run.window)}.gif"
        draw.movie(frames, path, run.title)
        found += 1
        yield path
    if not found:
        raise UserError("--movie: needs two or more snapshots of phase space: run with output.histogram_every above 0")
