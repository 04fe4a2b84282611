"""Time series of scalars: one HDF5 dataset per column. Rows are appended while the run is running.

The file uses the single-writer multiple-reader mode of HDF5 (SWMR), so another process can read it while it grows.
A run that is killed loses at most the rows of its last second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.binned import Marginal
from hpc_kjko.files.storage import LIBVER, METADATA_BYTES, partial_name, reading, reserve, trim, writing
from hpc_kjko.files.wavetheory import read_theory, theory_attributes

_CHUNK_ROWS = 1024
_FLUSH_SECONDS = 1.0
#: Prefix of the file attributes with the marginals of the equilibrium. Figures then do not need the user's own code.
_EQUILIBRIUM = "equilibrium_"


class SeriesWriter:
    """Appends rows of numbers to ``series.h5``. Only one rank uses it.

    Attributes:
        rows: number of rows that have been appended, including those still in memory.

    Raises:
        UserError: the file cannot be written. The constructor and every method raise it, and the message names the
            file.
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[str],
        units: Mapping[str, str],
        start: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ):
        """Begin a new series. An existing file is replaced.

        Args:
            path: the file, in an existing folder.
            columns: column names, in the order in which :func:`read_series` returns them.
            units: the unit of each column in symbols ("1/ω_p"; "1" for a pure number).
            start: values [rows] of each column to begin with.
            attributes: texts and numbers about the run, as attributes of the file.
        """
        start = start or {name: np.empty(0) for name in columns}
        self._path, partial = Path(path), partial_name(Path(path))
        self._pending: list[Mapping[str, float]] = []
        self._columns: dict[str, h5py.Dataset] = {}
        try:
            with writing(self._path):
                self._file = h5py.File(partial, "w", libver=LIBVER)
                reserve(partial, 0, _space(len(columns), len(start[columns[0]])))
                for name in columns:
                    values = np.asarray(start[name], np.float64)
                    chunks = {"maxshape": (None,), "chunks": (_CHUNK_ROWS,)}
                    column = self._file.create_dataset(name, data=values, **chunks)
                    column.attrs["unit"] = np.bytes_(units[name].encode())
                    self._columns[name] = column
                self._file.attrs["columns"] = np.array(columns, np.bytes_)
                for name, value in (attributes or {}).items():
                    self._file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
                self._file.flush()
                partial.replace(self._path)
                self._file.swmr_mode = True
        except UserError:
            partial.unlink(missing_ok=True)
            raise
        self._written = len(values)
        self._flushed = -math.inf  # so the first row is written at once and can be seen

    @classmethod
    def resume(
        cls, path: Path | str, step: int, attributes: Mapping[str, Any] | None = None
    ) -> tuple[SeriesWriter, int]:
        """Continue the series of an earlier run after the row of a step. Rows of later steps are removed.

        The marginals of the equilibrium and the theory of the wave are kept.

        Returns:
            The writer, and the last step in the series; -1 if the series has no row.

        Raises:
            DamagedFile: the series does not exist or cannot be read.
        """
        advice = f"the rows up to step {step} are lost, and a new series begins"
        columns, units = read_series_and_units(path, advice)
        if "step" not in columns:
            raise DamagedFile(f"{path} is not the time series of a run (it has no column step): {advice}")
        kept = columns["step"] <= step
        start = {name: values[kept] for name, values in columns.items()}
        last = int(start["step"][-1]) if kept.any() else -1
        known: dict[str, Any] = equilibrium_attributes(read_equilibrium(path))
        if (theory := read_theory(path)) is not None:
            known |= theory_attributes(theory)
        return cls(path, list(columns), units, start, {**known, **(attributes or {})}), last

    @property
    def rows(self) -> int:
        return self._written + len(self._pending)

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row, with a value for every column. The rows in memory are written to the file once per second.

        Raises:
            UserError: the row has other columns than the file, for example after an update of hpc_kjko.
        """
        if row.keys() != self._columns.keys():
            other = ", ".join(sorted(row.keys() ^ self._columns.keys()))
            raise UserError(
                f"{self._path} has other columns than this version of hpc_kjko writes ({other}): continue with the "
                "version that began the run, or start a new run"
            )
        self._pending.append(dict(row))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows in memory to the file, so that readers see them."""
        with writing(self._path):
            reserve(self._path, self._file.id.get_filesize(), _space(len(self._columns), len(self._pending)))
            for name, column in self._columns.items():
                column.resize((self.rows,))
                column[self._written :] = [row[name] for row in self._pending]
                column.flush()
        self._written += len(self._pending)
        self._pending.clear()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        self.flush()
        with writing(self._path):
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            trim(self._path, size)


def read_series(path: Path | str) -> dict[str, np.ndarray]:
    """The columns of a series in their order, float64 [rows] each. The run may be over or still running.

    Raises:
        UserError: the file is missing or is not a time series.
    """
    return read_series_and_units(path)[0]


def read_series_and_units(
    path: Path | str, advice: str = "give the series.h5 of a run folder, or let 'kjko restart' begin a new one"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The columns as in :func:`read_series`, and the unit of each in symbols.

    Args:
        advice: the end of an error message, which says what to do.
    """
    with reading(Path(path), "time series", advice, swmr=True) as file:
        names = [name.decode() for name in file.attrs["columns"]]
        units = {name: file[name].attrs["unit"].decode() for name in names}
        rows = min(file[name].shape[0] for name in names)  # the writer may not yet have extended all columns
        return {name: file[name][:rows] for name in names}, units


def equilibrium_attributes(marginals: Sequence[Marginal]) -> dict[str, np.ndarray]:
    """Attributes that store the marginals of the equilibrium in a series."""
    return {
        f"{_EQUILIBRIUM}{marginal.kind}_{marginal.axis + 1}": np.append(marginal.range, marginal.values)
        for marginal in marginals
    }


def read_equilibrium(path: Path | str) -> list[Marginal]:
    """The marginals of the equilibrium, each with mass 1; empty if the equilibrium is not known.

    Raises:
        UserError: the file is missing or is not a time series.
    """
    found = []
    with reading(Path(path), "time series", "give the series.h5 of a run folder", swmr=True) as file:
        for name, numbers in file.attrs.items():
            if name.startswith(_EQUILIBRIUM):
                kind, axis = name.removeprefix(_EQUILIBRIUM).split("_")
                low, high, *values = numbers.tolist()
                found.append(Marginal(kind, int(axis) - 1, np.array(values), (low, high)))
    return found


def _space(columns: int, rows: int) -> int:
    """An upper limit of the bytes for ``rows`` more rows: whole chunks, and HDF5's index of them."""
    return METADATA_BYTES + columns * (rows // _CHUNK_ROWS + 2) * 2 * 8 * _CHUNK_ROWS
