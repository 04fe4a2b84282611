"""Time series of scalars: one HDF5 dataset per column, appended while the run goes on.

The file is written in HDF5's single-writer multiple-reader mode (SWMR): another process can watch it grow,
and a run that is killed loses its last second of rows at most.
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
#: Attributes of the file that hold the marginals of the equilibrium, for figures to show without the case's own code.
_EQUILIBRIUM = "equilibrium_"


class SeriesWriter:
    """Appends rows of numbers to ``series.h5``; for one rank.

    Attributes:
        rows: how many have been appended, those still in memory included.

    Raises:
        UserError: here and in every method, naming the file, when it cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[str],
        units: Mapping[str, str],
        start: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ):
        """Begin a series, in place of one that may be there.

        Args:
            path: the file, in a folder that exists.
            columns: names, in the order in which :func:`read_series` returns them.
            units: the unit of each column in words ("1/omega_p"; "1" for a pure number).
            start: values [rows] of each column to begin with.
            attributes: what the run says of itself (strings and numbers): attributes of the file.
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
                    column.attrs["unit"] = np.bytes_(units[name])
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
        self._flushed = -math.inf  # the first row goes to the file at once: there is something to see

    @classmethod
    def resume(
        cls, path: Path | str, step: int, attributes: Mapping[str, Any] | None = None
    ) -> tuple[SeriesWriter, int]:
        """Go on with the series of an earlier run after the row of a step; rows of later steps are dropped.

        It keeps its equilibrium, and the theory of its wave.

        Returns:
            The writer, and the last step of which the series holds a row; -1 if it holds none.

        Raises:
            DamagedFile: there is no such series, or it cannot be read.
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
        """Add one row, with a value for every column; once a second the rows in memory go to the file.

        Raises:
            UserError: the row has other columns, as after an update in the middle of a run.
        """
        if row.keys() != self._columns.keys():
            other = ", ".join(sorted(row.keys() ^ self._columns.keys()))
            raise UserError(
                f"{self._path} has other columns than this version of hpc_kjko writes ({other}): go on with the "
                "version that began the run, or start a new run"
            )
        self._pending.append(dict(row))
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring the rows in memory to the file, where readers see them."""
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
        """Write what is left and close the file."""
        self.flush()
        with writing(self._path):
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            trim(self._path, size)


def read_series(path: Path | str) -> dict[str, np.ndarray]:
    """The columns of a series in their order, float64 [rows] each; the run may have ended or still go on.

    Raises:
        UserError: the file is missing or is no series.
    """
    return read_series_and_units(path)[0]


def read_series_and_units(
    path: Path | str, advice: str = "give the series.h5 of a run folder, or let 'kjko restart' begin a new one"
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The columns as :func:`read_series`, and the unit of each in words.

    Args:
        advice: what an error says that is to be done.
    """
    with reading(Path(path), "time series", advice, swmr=True) as file:
        names = [name.decode() for name in file.attrs["columns"]]
        units = {name: file[name].attrs["unit"].decode() for name in names}
        rows = min(file[name].shape[0] for name in names)  # the writer may be between two columns
        return {name: file[name][:rows] for name in names}, units


def equilibrium_attributes(marginals: Sequence[Marginal]) -> dict[str, np.ndarray]:
    """Attributes of a series that hold these marginals of the equilibrium."""
    return {
        f"{_EQUILIBRIUM}{marginal.kind}_{marginal.axis + 1}": np.append(marginal.range, marginal.values)
        for marginal in marginals
    }


def read_equilibrium(path: Path | str) -> list[Marginal]:
    """The marginals of the equilibrium, each of mass 1; none where it is not known.

    Raises:
        UserError: the file is missing or is no series.
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
    """More bytes than a file takes for ``rows`` more rows: whole chunks, and HDF5's index of them."""
    return METADATA_BYTES + columns * (rows // _CHUNK_ROWS + 2) * 2 * 8 * _CHUNK_ROWS
