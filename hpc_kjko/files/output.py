"""Snapshots in the openPMD 1.1.0 standard: particles, fields and phase-space histograms, an HDF5 file a step.

All numbers are in the normalised units of the code (``unitSI`` 1): time in 1/ω_p, mean density, charge and mass of the
reference species 1; ``unitDimension`` says what kind of quantity a record is. Standard: doi:10.5281/zenodo.1167843.

A case that names no species has one, ``markers``, and a mesh ``density``. Several species have a mesh
``density_NAME`` each, and ``rho`` is the charge density.

All meshes are meshes of space: other readers take the domain from any of them. Phase-space histograms and marginals
have the attributes of meshes, but are in a group of their own, ``histograms``, which other readers pass over.

Momenta are m v. A tool that divides them by m c, as openPMD-viewer does, divides by c = 299792458 here.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from hpc_kjko import __version__
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.binned import Binned, Histogram, Marginal
from hpc_kjko.files.storage import ShardedFile, reading, warn_once

if TYPE_CHECKING:  # these bring torch, which readers of files can do without
    from hpc_kjko.fields.base import MeshField
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.species import Species

#: The group of phase-space histograms and marginals in an iteration.
HISTOGRAMS = "histograms"

_AXES = "xyz"
#: What to do about a damaged snapshot.
_ADVICE = "use another step of the run"

# Powers of length, mass, time, current (and temperature, amount, luminous intensity) in SI base units.
_POWERS = {
    "position": (1, 0, 0, 0),
    "positionOffset": (1, 0, 0, 0),
    "momentum": (1, 1, -1, 0),
    "mass": (0, 1, 0, 0),
    "charge": (0, 0, 1, 1),
    "weighting": (0, 0, 0, 0),
    "id": (0, 0, 0, 0),
    "log_f": (0, 0, 0, 0),
    "density": (-3, 0, 0, 0),
    "rho": (-3, 0, 1, 1),
    "potential": (2, 1, -3, -1),
    "E": (1, 1, -3, -1),
    "phase_space": (-2, 0, 1, 0),
    "marginal_x": (-1, 0, 0, 0),
    "marginal_v": (-1, 0, 1, 0),
}


def write_snapshot(
    folder: Path | str,
    comm: Communicator,
    *,
    step: int,
    time: float,
    time_step: float,
    run_attributes: dict[str, Any],
    names: Sequence[str],
    species: Sequence[Species] = (),
    meshes: MeshField | None = None,
    binned: Sequence[Binned] = (),
) -> Path:
    """Write what is due at a step into ``folder/data%08d.h5``. Collective.

    Args:
        folder: made if missing.
        comm: the ranks of the run.
        step: its number; time: t = step · time_step in 1/ω_p.
        time_step: h in 1/ω_p.
        run_attributes: what the run says of itself (strings and numbers): attributes of the file, rank 0's.
        names: of all species of the run.
        species: all of them with this rank's particles, if these are due.
        meshes: the fields, rank 0's.
        binned: of all ranks' particles of each species.

    Returns:
        The file.

    Raises:
        UserError: on all ranks, when it cannot be written.
    """
    path = _path(folder, step)
    iteration = f"/data/{step}"
    attributes = {
        **run_attributes,
        "openPMD": "1.1.0",
        "openPMDextension": np.uint32(0),
        "basePath": "/data/%T/",
        "iterationEncoding": "fileBased",
        "iterationFormat": "data%08T.h5",
        "software": "hpc_kjko",
        "softwareVersion": __version__,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    if meshes:
        attributes["meshesPath"] = "meshes/"
    if species:
        attributes["particlesPath"] = "particles/"
    with ShardedFile(path, comm) as file:
        file.group(iteration)
        file.attributes("/", comm.bcast(attributes))
        about = {"time": float(time), "dt": float(time_step), "timeUnitSI": 1.0, "species": list(names)}
        file.attributes(iteration, about)
        if meshes:
            _write_fields(file, f"{iteration}/meshes", meshes, names)
        for name, of_species in zip(names, binned, strict=False):
            group = f"{iteration}/{HISTOGRAMS}/{name}"
            for histogram in of_species.histograms:
                _write_histogram(file, group, histogram)
            for marginal in of_species.marginals:
                _write_marginal(file, group, marginal)
        for one in species:
            _write_particles(file, f"{iteration}/particles/{one.name}", one)
    return path


def _write_fields(file: ShardedFile, meshes: str, fields: MeshField, names: Sequence[str]) -> None:
    grid, walls = fields.grid, fields.walls

    def inside(values: np.ndarray) -> np.ndarray:
        return walls.inside(values) if walls else values

    labels = list(_AXES[: len(grid.cells)])
    lower = [0.0] * len(labels)
    scalars = [("potential", "potential", fields.potential)]
    if len(names) == 1:
        scalars.append(("density", "density", fields.densities[0]))
    else:
        scalars.append(("rho", "rho", fields.charge_density))
        scalars += [(f"density_{name}", "density", own) for name, own in zip(names, fields.densities, strict=True)]
    for name, quantity, values in scalars:
        file.array(f"{meshes}/{name}", inside(values))
        file.attributes(f"{meshes}/{name}", _mesh(quantity, labels, lower, grid.spacing) | _component(len(labels)))
    file.group(f"{meshes}/E")
    file.attributes(f"{meshes}/E", _mesh("E", labels, lower, grid.spacing))
    for axis, label in enumerate(labels):
        file.array(f"{meshes}/E/{label}", inside(fields.electric[..., axis]))
        file.attributes(f"{meshes}/E/{label}", _component(len(labels)))


def _write_histogram(file: ShardedFile, group: str, histogram: Histogram) -> None:
    label = _AXES[histogram.axis]
    path = f"{group}/phase_space_{label}_v{label}"
    lower, upper = np.transpose([histogram.x_range, histogram.v_range])
    spacing = (upper - lower) / histogram.values.shape
    file.array(path, histogram.values)
    file.attributes(path, _mesh("phase_space", [label, f"v{label}"], lower, spacing) | _component(2))


def _write_marginal(file: ShardedFile, group: str, marginal: Marginal) -> None:
    label = _label(marginal.kind, marginal.axis)
    path, (low, high) = f"{group}/marginal_{label}", marginal.range
    spacing = [(high - low) / len(marginal.values)]
    file.array(path, marginal.values)
    file.attributes(path, _mesh(f"marginal_{marginal.kind}", [label], [low], spacing) | _component(1))


def _label(kind: str, axis: int) -> str:
    """The name of a coordinate: x, y, z, vx, vy, vz."""
    return ("v" if kind == "v" else "") + _AXES[axis]


def _write_particles(file: ShardedFile, group: str, species: Species) -> None:
    particles = species.particles
    shard = particles.shard

    def constant(name: str, value: float) -> None:
        file.group(f"{group}/{name}")
        file.attributes(f"{group}/{name}", {"value": value, "shape": np.array([shard.total], np.uint64), "unitSI": 1.0})

    def varying(name: str, rows: Any) -> None:
        file.rows(f"{group}/{name}", rows if isinstance(rows, np.ndarray) else rows.cpu().numpy(), shard)
        file.attributes(f"{group}/{name}", {"unitSI": 1.0})

    for axis, label in enumerate(_AXES[: particles.x.shape[1]]):
        varying(f"position/{label}", particles.x[:, axis])
        constant(f"positionOffset/{label}", 0.0)
    for axis, label in enumerate(_AXES[: particles.v.shape[1]]):
        varying(f"momentum/{label}", species.mass * particles.v[:, axis])
    varying("log_f", particles.log_f)
    varying("id", np.arange(shard.start, shard.stop, dtype=np.uint64))
    constant("mass", species.mass)
    constant("charge", species.charge)
    if particles.has_equal_weights:
        constant("weighting", particles.total_weight / shard.total)
    else:
        varying("weighting", particles.weight)
    for record in ("position", "positionOffset", "momentum", "mass", "charge", "weighting", "log_f", "id"):
        file.attributes(f"{group}/{record}", _record(record))


def _record(quantity: str) -> dict[str, Any]:
    return {"unitDimension": np.array([*_POWERS[quantity], 0, 0, 0], np.float64), "timeOffset": 0.0}


def _mesh(quantity: str, labels: list[str], lower: Sequence[float], spacing: Sequence[float]) -> dict[str, Any]:
    return {
        **_record(quantity),
        "geometry": "cartesian",
        "dataOrder": "C",
        "axisLabels": labels,
        "gridSpacing": np.array(spacing, np.float64),
        "gridGlobalOffset": np.array(lower, np.float64),
        "gridUnitSI": 1.0,
    }


def _component(dimensions: int) -> dict[str, Any]:
    """Values belong to cell centres, half a cell from the cell's lower corner."""
    return {"unitSI": 1.0, "position": np.full(dimensions, 0.5)}


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """What a file holds of one step; None, and no histograms, for what was not due.

    Attributes:
        step: its number; time: in 1/ω_p.
        attributes: what the run said of itself.
        density, potential: at the cell centres [*cells]; electric: [*cells, dx]; spacing: cell sizes [dx].
        histograms: one for each space dimension; marginals: one for each coordinate, x first.
        position: [n, dx]; velocity: [n, dv]; log_f: [n], of the particles asked for.
        weighting: the mass of each particle [n], or of any one if they are all alike.
    """

    step: int
    time: float
    attributes: dict[str, Any]
    density: np.ndarray | None = None
    potential: np.ndarray | None = None
    electric: np.ndarray | None = None
    spacing: np.ndarray | None = None
    histograms: list[Histogram] = field(default_factory=list)
    marginals: list[Marginal] = field(default_factory=list)
    position: np.ndarray | None = None
    velocity: np.ndarray | None = None
    log_f: np.ndarray | None = None
    weighting: float | np.ndarray | None = None


def list_snapshots(folder: Path | str) -> list[int]:
    """The steps of which ``folder`` holds a snapshot, ascending; none if there is no folder."""
    matches = (re.fullmatch(r"data(\d{8,})\.h5", path.name) for path in Path(folder).glob("data*.h5"))
    return sorted(int(match[1]) for match in matches if match)


@contextlib.contextmanager
def skipping_damaged() -> Iterator[None]:
    """Around the reading of one snapshot of many: if it is damaged, a warning names it, and the block ends there."""
    try:
        yield
    except DamagedFile as failure:
        warn_once(f"skipped: {failure}")


def list_contents(folder: Path | str) -> dict[int, set[str]]:
    """What each sound snapshot of ``folder`` holds of "fields", "histograms" and "particles": by step, ascending."""
    contents = {}
    for step in list_snapshots(folder):
        with skipping_damaged(), open_snapshot(folder, step) as iteration:
            found = {"fields": "meshesPath" in iteration.file.attrs, "histograms": HISTOGRAMS in iteration}
            found["particles"] = "particlesPath" in iteration.file.attrs
            contents[step] = {name for name, there in found.items() if there}
    return contents


def species_of(iteration: h5py.Group) -> list[str]:
    """The names of the species of a run, in the order of its case, from what a file holds of its step."""
    return [name if isinstance(name, str) else name.decode() for name in iteration.attrs["species"]]


def _one_species(iteration: h5py.Group, wanted: str | None) -> str:
    """The species to read: that of this name, or the first.

    Raises:
        UserError: the run has none of this name.
    """
    names = species_of(iteration)
    if wanted is not None and wanted not in names:
        raise UserError(f'the run has no species "{wanted}": it has {", ".join(names)}')
    return wanted or names[0]


def read_snapshots(
    folder: Path | str, steps: Sequence[int], *, fields: bool = True, species: str | None = None
) -> list[Snapshot]:
    """Those of some steps that are sound, by :func:`read_snapshot`."""
    found = []
    for step in steps:
        with skipping_damaged():
            found.append(read_snapshot(folder, step, fields=fields, species=species))
    return found


def read_snapshot(
    folder: Path | str,
    step: int,
    particles: slice | None = None,
    *,
    fields: bool = True,
    species: str | None = None,
) -> Snapshot:
    """Read the snapshot of a step.

    Args:
        folder: that of the snapshots.
        step: one of :func:`list_snapshots`.
        particles: which rows of particles to read, as ``slice(None, None, 101)`` for every 101st. Of a quiet start take
            every n-th with an odd n: every second point of a Sobol sequence is in the same half of phase space.
        fields: whether to read density, potential and E, which are large in three dimensions.
        species: whose density, histograms, marginals and particles; by default of the first species of the case.

    Raises:
        UserError: there is no such file, it is damaged, or it has no such species.
    """
    path = _path(folder, step)
    with reading(path, "snapshot", _ADVICE) as file:
        iteration = file[f"data/{step}"]
        contents: dict[str, Any] = {}
        name = _one_species(iteration, species)
        if fields and "meshesPath" in file.attrs:
            contents |= _read_fields(iteration["meshes"], name)
        if HISTOGRAMS in iteration:
            contents |= _read_histograms(iteration[f"{HISTOGRAMS}/{name}"])
        if particles is not None and "particlesPath" in file.attrs:
            contents |= _read_particles(iteration[f"particles/{name}"], particles)
        return Snapshot(step, float(iteration.attrs["time"]), _text(file.attrs), **contents)


class ParticleFile:
    """The particles of a snapshot, to be read in pieces.

    Attributes:
        time: in 1/ω_p; total: how many particles there are; has_equal_weights: whether all carry the same mass.
    """

    def __init__(self, iteration: h5py.Group, species: str | None = None):
        self._species = iteration[f"particles/{_one_species(iteration, species)}"]
        self.time = float(iteration.attrs["time"])
        self.total = len(self._species["log_f"])
        self.has_equal_weights = isinstance(self._species["weighting"], h5py.Group)

    def rows(self, rows: slice) -> dict[str, Any]:
        """``position`` [n, dx], ``velocity`` [n, dv], ``log_f`` [n] and ``weighting`` ([n], or one number) of some."""
        return _read_particles(self._species, rows)


def list_particles(folder: Path | str) -> list[int]:
    """The steps of which ``folder`` holds particles in sound snapshots, ascending."""
    return [step for step, contents in list_contents(folder).items() if "particles" in contents]


@contextlib.contextmanager
def particle_file(folder: Path | str, step: int, species: str | None = None) -> Iterator[ParticleFile]:
    """The particles of one species at a step of :func:`list_particles`, on this rank; by default of the first.

    Raises:
        UserError: there is no such file or species, or it is found damaged, now or inside the block.
    """
    with open_snapshot(folder, step) as iteration:
        yield ParticleFile(iteration, species)


@contextlib.contextmanager
def open_snapshot(folder: Path | str, step: int) -> Iterator[h5py.Group]:
    """What a file holds of its step, on this rank: attributes ``time``, ``dt``; groups ``meshes``, ``histograms``,
    ``particles``.

    Raises:
        UserError: there is no such file, or it is found damaged, now or inside the block.
    """
    with reading(_path(folder, step), "snapshot", _ADVICE) as file:
        yield file[f"data/{step}"]


def _read_fields(meshes: h5py.Group, species: str) -> dict[str, Any]:
    electric = [component[()] for component in meshes["E"].values()]
    density = meshes["density" if "density" in meshes else f"density_{species}"]
    return {
        "density": density[()],
        "potential": meshes["potential"][()],
        "electric": np.stack(electric, axis=-1),
        "spacing": density.attrs["gridSpacing"],
    }


def _read_histograms(group: h5py.Group) -> dict[str, Any]:
    contents: dict[str, Any] = {"histograms": [], "marginals": []}
    for axis, label in enumerate(_AXES):
        name = f"phase_space_{label}_v{label}"
        if name in group:
            lower, spacing = (group[name].attrs[key] for key in ("gridGlobalOffset", "gridSpacing"))
            upper = lower + spacing * group[name].shape
            x_range, v_range = (tuple(limits) for limits in np.transpose([lower, upper]).tolist())
            contents["histograms"].append(Histogram(axis, group[name][()], x_range, v_range))
    kinds: tuple[Literal["x", "v"], ...] = ("x", "v")
    for kind, axis in itertools.product(kinds, range(len(_AXES))):
        name = f"marginal_{_label(kind, axis)}"
        if name in group:
            lower, spacing = (float(group[name].attrs[key][0]) for key in ("gridGlobalOffset", "gridSpacing"))
            values = group[name][()]
            contents["marginals"].append(Marginal(kind, axis, values, (lower, lower + spacing * len(values))))
    return contents


def _read_particles(species: h5py.Group, rows: slice) -> dict[str, Any]:
    def vector(record: str) -> np.ndarray:
        return np.stack([component[rows] for component in species[record].values()], axis=-1)

    varies = isinstance(species["weighting"], h5py.Dataset)
    return {
        "position": vector("position"),
        "velocity": vector("momentum") / float(species["mass"].attrs["value"]),
        "log_f": species["log_f"][rows],
        "weighting": species["weighting"][rows] if varies else float(species["weighting"].attrs["value"]),
    }


def _path(folder: Path | str, step: int) -> Path:
    return Path(folder) / f"data{step:08d}.h5"


def _text(attributes: h5py.AttributeManager) -> dict[str, Any]:
    """Attributes as plain Python values."""
    values = {name: value.item() if np.ndim(value) == 0 else value for name, value in attributes.items()}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
