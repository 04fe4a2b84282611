"""Shared functions of the verbs that read files: open run folders and time series, and import the plotting module."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from hpc_kjko.errors import UserError
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series

#: Exit codes.
DONE, DIFFERENT, FAILED, STOPPED = 0, 1, 1, 75


def existing(path: Path) -> RunFolder:
    """The run folder at a path.

    Raises:
        UserError: this is not a run folder.
    """
    folder = RunFolder(path)
    folder.status()
    return folder


def rows_of(folder: RunFolder) -> dict[str, np.ndarray]:
    """The time series of a run folder, with at least one row."""
    columns = read_series(folder.series)
    if not len(columns["step"]):
        raise UserError(f"{folder.series}: has no rows yet: wait for the first step of the run")
    return columns


def plotting_module() -> ModuleType:
    """Import the module that draws figures."""
    with any_backend():
        try:
            from hpc_kjko.post import plotting
        except ImportError:
            raise UserError("figures need matplotlib: pip install 'hpc_kjko[plot]'") from None
    return plotting


@contextlib.contextmanager
def any_backend() -> Iterator[None]:
    """Import matplotlib inside this block without the backend that MPLBACKEND names.

    Figures in files do not need that backend, and it may not be installed here. Afterwards matplotlib gets the backend,
    for a notebook that called this.
    """
    is_new, named = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named and is_new and "matplotlib" in sys.modules:
        import matplotlib

        with contextlib.suppress(ValueError):  # the backend does not exist
            matplotlib.rcParams["backend"] = named
