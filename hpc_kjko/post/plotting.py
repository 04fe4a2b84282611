"""``kjko plot``: figures as files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from hpc_kjko.errors import UserError, one_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series_and_units
from hpc_kjko.files.storage import writing
from hpc_kjko.post import draw, figures
from hpc_kjko.post.figures import energies
from hpc_kjko.post.figures.runfiles import FROM_THE_START, RunFiles, Window
from hpc_kjko.post.panels import Picture

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
    run = RunFiles.of(folder, window)
    pictures = energies.columns(run, columns, units) if columns else figures.pictures_of(run)
    yield from save_all(pictures, out or folder.figures, file_format, run.title)


def save_all(pictures: Iterable[Picture], out: Path, file_format: Format, subtitle: str) -> Iterator[Path]:
    """Draw pictures into files of a folder, which is made if missing.

    Yields:
        Each file, once it is written.

    Raises:
        UserError: a figure cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        path = out / f"{picture.name}.{file_format}"
        draw.save(picture, path, subtitle)
        yield path
