"""A run folder as labelled arrays of xarray. Data are read from the files when they are used.

Names are those of the time series: the coordinates are x_1, …, v_1, …. The attribute ``units`` has the unit in the
symbols of docs/reference/units.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hpc_kjko import usercode
from hpc_kjko.case import config
from hpc_kjko.casefile import ONLY, RunCase
from hpc_kjko.errors import UserError
from hpc_kjko.files.column_meanings import meaning_of
from hpc_kjko.files.column_units import density_unit
from hpc_kjko.files.output import HISTOGRAMS, list_snapshots, open_snapshot, skipping_damaged
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series, read_series_and_units
from hpc_kjko.files.wavetheory import read_theory
from hpc_kjko.post.rates import Measured, measured

if TYPE_CHECKING:
    import xarray

_AXES = "xyz"
_UNITS = {
    "time": "1/ω_p",
    "x": "v_th/ω_p",
    "v": "v_th",
    "density": "n̄",
    "rho": "q n̄",
    "potential": "m v_th²/q",
    "E": "m v_th ω_p/q",
}


def open_run(folder: Path | str) -> Run:
    """Open a run folder for reading. The run may still be running.

    Args:
        folder: the run folder.

    Returns:
        The run.

    Raises:
        UserError: this is not a run folder.
    """
    return Run(folder)


class Run:
    """A run that is read from its folder.

    Large data are read only when their values are needed, and then only the selected part. So select first
    (``run.particles.x_1.isel(time=-1, particle=slice(None, None, 101))``) and compute afterwards. Open a running run
    again to see its new data. A damaged snapshot is left out, and a warning names it.

    Attributes:
        path: the run folder.

    Raises:
        UserError: the run does not have the data, its time series is damaged, or xarray is not installed. Every
            attribute below may raise it.
    """

    def __init__(self, folder: Path | str, species: str | None = None):
        self._chosen = species
        self._folder = RunFolder(Path(folder))
        self._folder.status()  # refuses what is not a run folder
        self.path = self._folder.path

    def __repr__(self) -> str:
        return f"<hpc_kjko run {str(self.path)!r}: {self.status}>"

    @property
    def status(self) -> str:
        """ "finished", "stopped", "running", "failed", "gone" or "unknown": the status at the moment.

        A run is "gone" if its process on this host has ended without writing a status, for example because it was
        killed.
        """
        return self._folder.status()["status"]

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance of the run: versions, git revision, ranks, host, date, and the step and time that it has
        reached."""
        return self._folder.status()

    @functools.cached_property
    def case(self) -> config.Case:
        """The resolved case.

        If the problem is a class of the user's own, this imports it, if necessary from the copy in the run folder. No
        other attribute needs this class.
        """
        usercode.look_in(self._folder.code)
        return config.load(self._folder.case, of_a_run=True)

    @functools.cached_property
    def species(self) -> list[str]:
        """The names of the species, in the order of the case."""
        return RunCase(self._folder.case).species or [ONLY]

    def of(self, species: str) -> Run:
        """The same run with ``particles``, ``histograms`` and ``marginals`` of the given species instead of the first
        one.

        Raises:
            UserError: the run has no species with this name.
        """
        if species not in self.species:
            raise UserError(f'the run has no species "{species}": it has {", ".join(self.species)}')
        return Run(self.path, species)

    @property
    def _name(self) -> str:
        return self._chosen or self.species[0]

    @property
    def series(self) -> xarray.Dataset:
        """The time series in memory: every column over ``time``, with ``step`` as a second coordinate.

        A column has the attributes ``units`` and ``description``; columns of your own diagnostics have no description.
        """
        xr = _xarray()
        columns, units = read_series_and_units(self._folder.series)
        variables: dict[str, Any] = {}
        for name, values in columns.items():
            said = meaning_of(name, tuple(self.species))
            variables[name] = ("time", values, {"units": units[name]} | ({"description": said} if said else {}))
        steps = columns["step"].astype(np.int64)
        coordinates = {"time": variables.pop("time"), "step": ("time", steps)}
        del variables["step"]
        return xr.Dataset(variables, coordinates, self._attributes())

    @property
    def rate(self) -> Measured | None:
        """The fitted growth or damping rate of the wave with its error, and that of theory. ``kjko inspect`` prints the
        same numbers. None if the run has no field.

        Returns:
            The result, in ω_p. Its attribute ``rate`` is the fit, with its own ``rate``, ``error`` and ``window``.
            ``expected`` is γ of theory. ``why_not`` is empty, or says why no growth or damping can be seen.
        """
        columns, theory = read_series(self._folder.series), read_theory(self._folder.series)
        return measured(columns, theory, self.provenance)

    @property
    def fields(self) -> xarray.Dataset:
        """``density``, ``potential``, ``E_1``, … over ``time`` and the cell centres ``x_1``, …, in normalised units.

        With several species each has a ``density_NAME``, and ``rho`` is the charge density.
        """
        components = [(f"E/{label}", f"E_{axis}", "E") for axis, label in enumerate(_AXES, 1)]
        densities = [(name, name, "density") for name in ("density", *(f"density_{one}" for one in self.species))]
        meshes = [*densities, ("rho", "rho", "rho"), ("potential", "potential", "potential"), *components]
        missing = "fields: run the case with output.every above 0 (an external field is not written)"
        return self._meshes("meshes", meshes, missing)

    @property
    def histograms(self) -> xarray.Dataset:
        """Phase-space densities ``f_x_1_v_1``, … over ``time`` and bin centres, integrated over all other
        coordinates."""
        meshes = [
            (f"phase_space_{label}_v{label}", f"f_x_{axis}_v_{axis}", "xv") for axis, label in enumerate(_AXES, 1)
        ]
        return self._meshes(
            f"{HISTOGRAMS}/{self._name}", meshes, "histograms: run the case with output.histogram_every above 0"
        )

    @property
    def marginals(self) -> xarray.Dataset:
        """Densities ``f_x_1``, …, ``f_v_1``, … of one coordinate over ``time`` and bin centres."""
        meshes = [
            (f"marginal_{'v' * (kind == 'v')}{label}", f"f_{kind}_{axis}", kind)
            for kind in "xv"
            for axis, label in enumerate(_AXES, 1)
        ]
        return self._meshes(
            f"{HISTOGRAMS}/{self._name}", meshes, "marginals: run the case with output.histogram_every above 0"
        )

    @property
    def particles(self) -> xarray.Dataset:
        """``x_1``, …, ``v_1``, …, ``log_f`` over ``time`` and ``particle``, and ``weight``, the ∫f of each particle.

        Equal weights are one number for each time. A particle has the same index in all snapshots, and an ``id`` for
        other programs. The last time is the end of the run. At each of these times there are also fields, histograms
        and marginals.
        """
        species = f"particles/{self._name}"
        records = [("position", "x"), ("momentum", "v")]
        names = {
            f"{species}/{record}/{label}": (f"{kind}_{axis}", _UNITS[kind])
            for record, kind in records
            for axis, label in enumerate(_AXES, 1)
        }
        names |= {f"{species}/log_f": ("log_f", "1"), f"{species}/weighting": ("weight", self._density_unit(""))}
        found = self._found("particles: run the case with output.particles_every above 0", names)
        variables: dict[str, Any] = {}
        for path, item in found.items():
            name, unit = names[path]
            dims = ("time", "particle")[: len(item.shape) + 1]
            mass = f"{species}/mass" if name.startswith("v_") else None  # the files contain momenta
            variables[name] = (dims, _lazy(self._folder.snapshots, path, item, mass), {"units": unit})
        xr, coordinates = _xarray(), _times(found)
        if f"{species}/id" in self._contents:
            path, item = f"{species}/id", self._contents[f"{species}/id"]
            coordinates["id"] = xr.Variable(("time", "particle"), _lazy(self._folder.snapshots, path, item))[0]
        return xr.Dataset(variables, coordinates, self._attributes())

    def _meshes(self, group: str, meshes: Sequence[tuple[str, str, str]], missing: str) -> xarray.Dataset:
        """The given meshes that the snapshots contain: (name in the group of the file, variable, what it is).

        What it is: a key of _UNITS, or the kinds of the coordinates of a density.
        """
        names = {f"{group}/{path}": (variable, what) for path, variable, what in meshes}
        found = self._found(missing, names)
        variables, coordinates = {}, _times(found)
        for path, item in found.items():
            name, what = names[path]
            variables[name] = (
                ("time", *item.axes),
                _lazy(self._folder.snapshots, path, item),
                {"units": _UNITS[what] if group == "meshes" else self._density_unit(what)},
            )
            coordinates |= {axis: (axis, centres, {"units": _UNITS[axis[0]]}) for axis, centres in item.axes.items()}
        return _xarray().Dataset(variables, coordinates, self._attributes())

    def _density_unit(self, kinds: str) -> str:
        """The unit of the density of coordinates of these kinds. Without coordinates it is that of ∫f."""
        return density_unit(kinds, RunCase(self._folder.case).box_dims)

    def _found(self, missing: str, names: Sequence[str] | dict[str, Any]) -> dict[str, _Item]:
        """The given datasets that the snapshots contain. All must be at the same steps."""
        found = {path: self._contents[path] for path in names if path in self._contents}
        if not found:
            raise UserError(f"{self._folder.snapshots}: holds no {missing}")
        return found

    @functools.cached_property
    def _contents(self) -> dict[str, _Item]:
        """All datasets of the snapshots, by their path in the file."""
        items: dict[str, _Item] = {}
        for step in list_snapshots(self._folder.snapshots):
            with skipping_damaged(), open_snapshot(self._folder.snapshots, step) as iteration:
                time = float(iteration.attrs["time"])
                there = {path: (data.shape, data.dtype, _axes(data)) for path, data in _datasets(iteration)}
                for path, kind in there.items():
                    item = items.setdefault(path, _Item([], [], *kind))
                    item.steps.append(step)
                    item.times.append(time)
        return items

    def _attributes(self) -> dict[str, str]:
        """The provenance as attributes that every file format accepts."""
        status = {name: value for name, value in self.provenance.items() if name != "status"}
        return {"case": self._folder.case.read_text(encoding="utf-8"), "provenance": json.dumps(status)}


@dataclass(frozen=True)
class _Item:
    """A dataset of the snapshots: its steps, its shape and type in each step, and the coordinates of a mesh."""

    steps: list[int]
    times: list[float]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: dict[str, np.ndarray]


class _Constant:
    """A constant component of openPMD (a group with a value), as a dataset without dimensions."""

    shape, dtype = (), np.dtype(np.float64)

    def __init__(self, group: h5py.Group):
        self.attrs, self.parent = group.attrs, group.parent

    def __getitem__(self, key: Any) -> float:
        return float(self.attrs["value"])


def _dataset(iteration: h5py.Group, path: str) -> h5py.Dataset | _Constant:
    found = iteration[path]
    return found if isinstance(found, h5py.Dataset) else _Constant(found)


def _datasets(iteration: h5py.Group) -> Iterator[tuple[str, h5py.Dataset | _Constant]]:
    """Yield all datasets and constants of a snapshot, with their paths."""
    paths: list[str] = []
    iteration.visit(paths.append)
    for path in paths:
        found = iteration[path]
        if isinstance(found, h5py.Dataset) or "value" in found.attrs:
            yield path, _dataset(iteration, path)


def _axes(dataset: h5py.Dataset | _Constant) -> dict[str, np.ndarray]:
    """The centres of the cells of a mesh, by the name of the coordinate; empty for particles."""
    # components have the attributes of their record
    record = dataset if "axisLabels" in dataset.attrs else dataset.parent
    if "axisLabels" not in record.attrs:
        return {}
    names = []
    for label in (text.decode() for text in record.attrs["axisLabels"]):
        names.append(f"{'v' if label.startswith('v') else 'x'}_{_AXES.index(label[-1]) + 1}")
    lower, spacing = record.attrs["gridGlobalOffset"], record.attrs["gridSpacing"]
    sides = zip(names, lower, spacing, dataset.shape, strict=True)
    return {name: low + (np.arange(cells) + 0.5) * width for name, low, width, cells in sides}


def _times(found: dict[str, _Item]) -> dict[str, Any]:
    item = next(iter(found.values()))
    return {"time": ("time", item.times, {"units": _UNITS["time"]}), "step": ("time", item.steps)}


def _lazy(folder: Path, path: str, item: _Item, divisor: str | None = None) -> Any:
    """A dataset of all snapshots as one array [steps, ...]. Only selected values are read, when they are needed.

    Args:
        folder: the folder of the snapshots.
        path: the path of the dataset in a file.
        item: the dataset.
        divisor: the path of a constant by which the values are divided.
    """
    _xarray()
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Snapshots(BackendArray):
        shape, dtype = (len(item.steps), *item.shape), item.dtype

        def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
            support = indexing.IndexingSupport.OUTER_1VECTOR  # as in HDF5: at most one list of indices
            return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            steps = np.asarray(item.steps)[key[0]]
            if np.ndim(steps) == 0:
                return np.asarray(self._of(steps, key[1:]))
            if len(steps) == 0:
                return np.empty((0, *np.broadcast_to(0, item.shape)[key[1:]].shape), self.dtype)
            return np.stack([self._of(step, key[1:]) for step in steps])

        def _of(self, step: int, key: tuple[Any, ...]) -> Any:
            with open_snapshot(folder, int(step)) as iteration:
                values = _dataset(iteration, path)[key]
                return values / iteration[divisor].attrs["value"] if divisor else values

    return indexing.LazilyIndexedArray(Snapshots())


def _xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise UserError("labelled data need xarray: pip install 'hpc_kjko[analysis]'") from None
    return xarray
