"""Snapshots in the openPMD 1.1.0 standard: particles, fields and phase-space histograms, one HDF5 file per step.

All numbers are in normalised units (``unitSI`` is 1): time in 1/ω_p; mean density, charge and mass of the reference
species are 1. ``unitDimension`` gives the physical dimension of a record. Standard: doi:10.5281/zenodo.1167843.

A case without ``[species]`` has one species, ``markers``, and a mesh ``density``. With several species each has a mesh
``density_NAME``, and ``rho`` is the charge density.

All meshes are meshes in space, because other readers take the domain from any of them. Phase-space histograms and
marginals have the attributes of meshes, but are in their own group ``histograms``, which other readers ignore.

Momenta are m v. Some tools, such as openPMD-viewer, divide them by m c; here they divide by c = 299792458.
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

if TYPE_CHECKING:  # these import torch, which programs that only read files do not need
    from hpc_kjko.fields.base import MeshField
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.species import Species

#: The group with phase-space histograms and marginals in an iteration.
HISTOGRAMS = "histograms"

_AXES = "xyz"
#: Advice for a damaged snapshot.
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
    """Write the outputs that are due at a step into ``folder/data%08d.h5``. Collective.

    Args:
        folder: the folder; it is created if it does not exist.
        comm: the ranks of the run.
        step: the number of the step.
        time: t = step · time_step, in 1/ω_p.
        time_step: h, in 1/ω_p.
        run_attributes: texts and numbers about the run, as attributes of the file; those of rank 0 are used.
        names: the names of all species of the run.
        species: all species with the particles of this rank, if particles are due.
        meshes: the fields, if they are due; those of rank 0 are used.
        binned: histograms and marginals of each species, from the particles of all ranks.

    Returns:
        The path of the file.

    Raises:
        UserError: on all ranks, if the file cannot be written.
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
    """Attributes for values at cell centres, half a cell from the lower corner of the cell."""
    return {"unitSI": 1.0, "position": np.full(dimensions, 0.5)}


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """The contents of one snapshot file. What was not due is None, or an empty list of histograms or marginals.

    Attributes:
        step: the number of the step.
        time: in 1/ω_p.
        attributes: texts and numbers about the run.
        density, potential: values at the cell centres [*cells].
        electric: E at the cell centres [*cells, dx].
        spacing: cell sizes [dx].
        histograms: one for each space dimension.
        marginals: one for each coordinate, x first.
        position, velocity, log_f: [n, dx], [n, dv] and [n], for the particles that were asked for.
        weighting: the mass of each particle [n], or one number if all are equal.
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
    """The steps with a snapshot in ``folder``, ascending; empty if the folder does not exist."""
    matches = (re.fullmatch(r"data(\d{8,})\.h5", path.name) for path in Path(folder).glob("data*.h5"))
    return sorted(int(match[1]) for match in matches if match)


@contextlib.contextmanager
def skipping_damaged() -> Iterator[None]:
    """Read one snapshot out of many inside this block. If it is damaged, a warning names it and the block is left."""
    try:
        yield
    except DamagedFile as failure:
        warn_once(f"skipped: {failure}")


def list_contents(folder: Path | str) -> dict[int, set[str]]:
    """The parts ("fields", "histograms", "particles") in each undamaged snapshot of ``folder``, by step, ascending."""
    contents = {}
    for step in list_snapshots(folder):
        with skipping_damaged(), open_snapshot(folder, step) as iteration:
            found = {"fields": "meshesPath" in iteration.file.attrs, "histograms": HISTOGRAMS in iteration}
            found["particles"] = "particlesPath" in iteration.file.attrs
            contents[step] = {name for name, there in found.items() if there}
    return contents


def species_of(iteration: h5py.Group) -> list[str]:
    """The names of the species of a run, in the order of its case, from the data of one step."""
    return [name if isinstance(name, str) else name.decode() for name in iteration.attrs["species"]]


def _one_species(iteration: h5py.Group, wanted: str | None) -> str:
    """The species with this name, or the first species if ``wanted`` is None.

    Raises:
        UserError: the run has no species with this name.
    """
    names = species_of(iteration)
    if wanted is not None and wanted not in names:
        raise UserError(f'the run has no species "{wanted}": it has {", ".join(names)}')
    return wanted or names[0]


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
        folder: the folder of the snapshots.
        step: one of :func:`list_snapshots`.
        particles: the rows of particles to read, for example ``slice(None, None, 101)`` for every 101st particle. The
            step should be odd: after a quiet start, every second particle is in the same half of phase space.
        fields: whether to read density, potential and E, which are large in three dimensions.
        species: the species whose density, histograms, marginals and particles are read; by default the first of the
            case.

    Raises:
        UserError: the file is missing or damaged, or the run has no such species.
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
    """The particles of a snapshot, which can be read in pieces.

    Attributes:
        time: in 1/ω_p.
        total: number of particles.
        has_equal_weights: whether all particles have the same mass.
    """

    def __init__(self, iteration: h5py.Group, species: str | None = None):
        self._species = iteration[f"particles/{_one_species(iteration, species)}"]
        self.time = float(iteration.attrs["time"])
        self.total = len(self._species["log_f"])
        self.has_equal_weights = isinstance(self._species["weighting"], h5py.Group)

    def rows(self, rows: slice) -> dict[str, Any]:
        """Read some rows: ``position`` [n, dx], ``velocity`` [n, dv], ``log_f`` [n], ``weighting`` [n] or one
        number."""
        return _read_particles(self._species, rows)


def list_particles(folder: Path | str) -> list[int]:
    """The steps with particles in undamaged snapshots of ``folder``, ascending."""
    return [step for step, contents in list_contents(folder).items() if "particles" in contents]


@contextlib.contextmanager
def particle_file(folder: Path | str, step: int, species: str | None = None) -> Iterator[ParticleFile]:
    """Open the particles of one species at a step, on this rank. By default this is the first species of the case.

    Raises:
        UserError: there is no such file or species, or the file is damaged. Damage may be found only inside the block.
    """
    with open_snapshot(folder, step) as iteration:
        yield ParticleFile(iteration, species)


@contextlib.contextmanager
def open_snapshot(folder: Path | str, step: int) -> Iterator[h5py.Group]:
    """Open the data of a step, on this rank.

    The group has attributes ``time`` and ``dt``, and groups ``meshes``, ``histograms`` and ``particles``.

    Raises:
        UserError: the file is missing or damaged. Damage may be found only inside the block.
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
    """The attributes as plain Python values."""
    values = {name: value.item() if np.ndim(value) == 0 else value for name, value in attributes.items()}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
