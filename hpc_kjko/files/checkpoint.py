"""Checkpoints: the complete state of a run in one file. A run can continue from it with any number of ranks.

A checkpoint is plain HDF5 with numbers and JSON, and contains nothing executable. Every byte that is read is checked:

    manifest           JSON: the caller's header; type, shape and checksum of every dataset below
    sha256             attribute of the manifest: its digest
    particles/SPECIES/NAME     rows of all ranks
    block_crc32/SPECIES/NAME   CRC-32 of each row block
    state/NAME         arrays that are equal on all ranks (networks, optimisers)

A checksum belongs to a row block and not to the rows of one rank. So any number of ranks can verify their own rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.storage import ShardedFile, reading, unfinished
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import BLOCK, Shard

_FORMAT = "hpc_kjko checkpoint 2"
_ANOTHER = "restart from another checkpoint of this run, or run it anew"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of one species on this rank.

    Attributes:
        shard: the position of these rows among those of all ranks.
        arrays: the rows [stop - start, ...] by name.
    """

    shard: Shard
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A state that was read from a file.

    Attributes:
        header: the header that was given to :func:`save`, as JSON stores it (tuples become lists).
        species: the rows of this rank, by the name of the species.
        state: arrays by name, equal on every rank.
    """

    header: dict[str, Any]
    species: dict[str, Rows]
    state: dict[str, np.ndarray]


def save(
    folder: Path | str,
    comm: Communicator,
    species: Mapping[str, Rows],
    state: Mapping[str, np.ndarray],
    header: dict[str, Any],
) -> Path:
    """Write the state into ``folder/step%08d.h5``. Of the other checkpoints only the one before it is kept. Collective.

    Checkpoints of later steps are removed too: they belong to the run before a restart.

    Args:
        folder: the folder; it is created if it does not exist.
        comm: the ranks of the run.
        species: the rows of this rank, by the name of the species.
        state: arrays of rank 0 by name ("collisions/electrons/network/layers.0.weight").
        header: the header of rank 0, which JSON must be able to store. ``header["step"]`` gives the name of the file.

    Returns:
        The path of the file.

    Raises:
        UserError: on all ranks, if the file cannot be written. Earlier checkpoints still exist.
    """
    particles = {
        f"{name}/{array}": (values, rows.shard)
        for name, rows in species.items()
        for array, values in rows.arrays.items()
    }
    checksums = {
        name: np.concatenate(comm.allgather(_block_checksums(values))) for name, (values, _) in particles.items()
    }
    manifest = {
        "format": _FORMAT,
        "header": header,
        "totals": {name: rows.shard.total for name, rows in species.items()},
        "particles": {
            name: _entry(values.dtype, (shard.total, *values.shape[1:]), checksums[name])
            for name, (values, shard) in particles.items()
        },
        "state": {name: _entry(array.dtype, array.shape, array) for name, array in state.items()},
    }
    text, step = comm.bcast((json.dumps(manifest).encode(), header["step"]))
    path = Path(folder) / f"step{step:08d}.h5"
    with ShardedFile(path, comm) as file:
        file.array("manifest", np.bytes_(text))
        file.attributes("manifest", {"sha256": hashlib.sha256(text).hexdigest()})
        for name, (values, shard) in particles.items():
            file.rows(f"particles/{name}", values, shard)
            file.array(f"block_crc32/{name}", checksums[name])
        for name, array in state.items():
            file.array(f"state/{name}", array)
    with comm.together():
        if comm.is_root:
            steps = _steps(path.parent)
            before = max((other for other in steps if other < step), default=step)
            for other in steps.keys() - {step, before}:
                steps[other].unlink()
    return path


def load(path: Path | str, comm: Communicator, advice: str = _ANOTHER) -> Checkpoint:
    """Read and verify a checkpoint. Each rank gets its own rows. Collective.

    Args:
        advice: the end of an error message, which says what to do.

    Raises:
        UserError: on all ranks, if the file is missing, truncated, damaged or not a checkpoint.
    """
    with comm.together():
        checkpoint = _read(Path(path), comm.rank, comm.size, advice)
    return checkpoint


def latest(folder: Path | str) -> Path:
    """The newest checkpoint in ``folder``, by its step.

    Raises:
        UserError: there is no checkpoint.
    """
    return _newest_first(folder)[0]


def load_latest(folder: Path | str, comm: Communicator) -> Checkpoint:
    """Read the newest undamaged checkpoint. Collective.

    Damaged or incomplete checkpoints are skipped, with a warning in the log.

    Raises:
        UserError: on all ranks, if there is no undamaged checkpoint.
    """
    with comm.together():
        paths = _newest_first(folder)
        for partial in unfinished(folder):
            logger.warning("%s is incomplete: the run ended while it was being written", partial)
    paths = comm.bcast(paths)
    for path, before in itertools.pairwise(paths):
        try:
            return load(path, comm, f"using step {step_of(before)} instead")
        except DamagedFile as failure:
            logger.warning("%s", failure)
    return load(paths[-1], comm, "no other checkpoint is left, so start the run anew")


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its file name."""
    return int(path.stem.removeprefix("step"))


def _newest_first(folder: Path | str) -> list[Path]:
    steps = _steps(Path(folder))
    if not steps:
        raise UserError(f"there is no checkpoint in {folder}: start the run anew")
    return [steps[step] for step in sorted(steps, reverse=True)]


def _steps(folder: Path) -> dict[int, Path]:
    matches = ((re.fullmatch(r"step(\d{8,})\.h5", path.name), path) for path in folder.glob("step*.h5"))
    return {int(match[1]): path for match, path in matches if match}


def _read(path: Path, rank: int, size: int, advice: str) -> Checkpoint:
    with reading(path, "checkpoint", advice) as file:
        text = file["manifest"][()]
        if hashlib.sha256(text).hexdigest().encode() != file["manifest"].attrs["sha256"]:
            raise ValueError("its manifest does not match its digest")
        manifest = json.loads(text)
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is '{manifest['format']}', this version reads '{_FORMAT}'")
        species = {name: Rows(Shard.of(total, rank, size), {}) for name, total in manifest["totals"].items()}
        for path_of_rows, entry in manifest["particles"].items():
            name, _, array = path_of_rows.partition("/")
            species[name].arrays[array] = _read_rows(file, path_of_rows, entry, species[name].shard)
        state = {name: _read_array(file, f"state/{name}", entry) for name, entry in manifest["state"].items()}
        return Checkpoint(manifest["header"], species, state)


def _read_rows(file: h5py.File, name: str, entry: dict[str, Any], shard: Shard) -> np.ndarray:
    dataset, expected = file[f"particles/{name}"], file[f"block_crc32/{name}"][()]
    if _entry(dataset.dtype, dataset.shape, expected) != entry:
        raise ValueError(f"particles/{name} or its checksums are not what was written")
    rows = dataset[shard.start : shard.stop]
    found, first = _block_checksums(rows), shard.start // BLOCK
    damaged = np.flatnonzero(found != expected[first : first + len(found)])
    if len(damaged):
        raise ValueError(f"particles/{name} is not what was written from row {(first + damaged[0]) * BLOCK} on")
    return rows


def _read_array(file: h5py.File, path: str, entry: dict[str, Any]) -> np.ndarray:
    array = np.asarray(file[path][()])
    if _entry(array.dtype, array.shape, array) != entry:
        raise ValueError(f"{path} is not what was written")
    return array


def _entry(dtype: np.dtype, shape: tuple[int, ...], checked: np.ndarray) -> dict[str, Any]:
    """The entry of a dataset in the manifest: type, shape, and CRC-32 of its values or of its row block checksums."""
    return {"dtype": dtype.str, "shape": list(shape), "crc32": zlib.crc32(np.ascontiguousarray(checked).data)}


def _block_checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row block: [row blocks] uint32. The last block may be shorter."""
    rows = np.ascontiguousarray(rows)
    return np.array([zlib.crc32(rows[i : i + BLOCK].data) for i in range(0, len(rows), BLOCK)], np.uint32)
