"""One HDF5 file written by all ranks, whole or not at all.

:class:`ShardedFile` puts the rows of every rank's shard, and the small things around them, into one file.
With an h5py built for MPI each rank writes its own rows (MPI-IO); with the ordinary h5py rank 0 writes and
the others send it their rows, a bounded slab at a time. Both leave the same data behind. :func:`reading` is
for every file of the project.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from hpc_kjko.errors import DamagedFile, DiskFailure, UserError

if TYPE_CHECKING:  # these bring torch, which readers of files can do without
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.particles.state import Shard

#: Largest message and receive buffer when rank 0 gathers.
SLAB_BYTES = 4 << 20
#: More than HDF5 adds around the data of one call of ours.
METADATA_BYTES = 16 << 10
#: Checksums of metadata and SWMR came with HDF5 1.10 (2016); nothing newer, so that older readers can follow.
LIBVER = ("v110", "v110")

# What h5py raises when the system refuses, and when a file holds other bytes than were written.
_REFUSED = (OSError, RuntimeError)
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError)

#: What a full disk, an exhausted quota, a limit on the size of files and a failing disk say.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: What to do where HDF5 cannot lock a file.
_WITHOUT_LOCKS = (
    "HDF5 cannot lock files on this file system{}: set HDF5_USE_FILE_LOCKING=FALSE in the environment of all ranks "
    "(see docs/howto/parallel_hdf5.md), or use a folder on another file system"
)

_SLAB_TAG = 5

logger = logging.getLogger(__name__)


def parallel_hdf5(comm: Communicator) -> bool:
    """True when all ranks can write one file together: an h5py built with MPI, and more than one rank."""
    return bool(h5py.get_config().mpi) and comm.size > 1


def partial_name(path: Path) -> Path:
    """Where a file grows until it is whole: beside it, hidden, and with a suffix that no reader looks for."""
    return path.with_name(f".{path.name}.partial")


def unfinished(folder: Path | str) -> list[Path]:
    """Files in a folder whose writer ended before they were whole (or is at work on them)."""
    return sorted(Path(folder).glob(".*.partial"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around h5py and file calls of this rank: what the system refuses becomes a UserError on ``path``.

    Raises:
        UserError: it cannot be written; a DiskFailure if the disk takes no more.
    """
    try:
        yield
    except _REFUSED as error:
        if locks := _lock_advice(error):
            raise UserError(f"cannot write {path}: {locks}") from error
        if _errno(error) == errno.ENOENT and not path.parent.exists():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}: make it first") from error
        kind = DiskFailure if _errno(error) in DISK_ERRORS else UserError
        raise kind(
            f"cannot write {path} ({_reason(error)}): look at free space, quota and permissions of its folder"
        ) from error


@contextlib.contextmanager
def reading(path: Path, kind: str, advice: str, swmr: bool = False) -> Iterator[h5py.File]:
    """Open ``path`` for reading on this rank; what is found wrong on opening or inside the block is named.

    Args:
        path: the file.
        kind: what it should be, for the message ("checkpoint").
        advice: what to do if it is not.
        swmr: another process may be appending, or was killed while it did.

    Raises:
        DamagedFile: the file is missing, truncated, damaged or of another kind.
        UserError: the system does not let it be read.
    """
    if not path.is_file():
        raise DamagedFile(f"there is no {kind} {path}: {advice}")
    try:
        with _opened(path, swmr) as file:
            yield file
    except UserError:
        raise
    except _DAMAGED as error:
        if locks := _lock_advice(error):
            raise UserError(f"cannot read {path}: {locks}") from error
        if isinstance(error, PermissionError):
            raise UserError(f"cannot read {path} ({error.strerror}): ask for permission to read it") from error
        raise DamagedFile(f"{path} is not a complete {kind} ({_reason(error)}): {advice}") from error


def damage(path: Path) -> str:
    """Why an HDF5 file cannot even be opened, as one that is truncated; empty if it can."""
    try:
        with reading(path, "file", ""):
            return ""
    except DamagedFile as failure:
        return _reason(failure.__cause__ or failure)


def _opened(path: Path, swmr: bool) -> h5py.File:
    """The file as its last writer left it; if that one has not closed it, as a reader beside a writer (SWMR).

    Only then: HDF5 waits for minutes for a damaged file to become whole when it believes that somebody is writing it.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if swmr and any(sign in str(error) for sign in ("already open", "unable to lock")):
            return h5py.File(path, "r", swmr=True)
        raise


def require_hdf5(folder: Path) -> None:
    """Check that HDF5 can write and lock a file in a folder, by making one for a moment.

    Raises:
        UserError: it cannot; a DiskFailure if the disk takes no more.
    """
    with writing(folder), tempfile.TemporaryDirectory(prefix=".kjko-", dir=folder) as scratch:
        path = Path(scratch) / "locked.h5"
        reserve(path, 0, METADATA_BYTES)
        for mode in ("w", "r"):
            h5py.File(path, mode).close()


def hdf5_problem(folder: Path) -> str:
    """What :func:`require_hdf5` says of a folder; empty if nothing is wrong."""
    try:
        require_hdf5(folder)
    except UserError as failure:
        return str(failure)
    return ""


@functools.cache
def warn_once(text: str) -> None:
    """A warning in the log, not repeated by those who read the same files again."""
    logger.warning("%s", text)


def reserve(path: Path, offset: int, nbytes: int) -> None:
    """Claim disk space for the bytes [offset, offset + nbytes) of a file, made or extended to hold them.

    HDF5 does not survive a refused write: it keeps what it could not write, fails again on closing and can
    take the process down. So the system is asked first, where a refusal is an ordinary OSError and the file
    can still be closed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):  # macOS lacks it
            os.posix_fallocate(descriptor, offset, nbytes)
    finally:
        os.close(descriptor)


def trim(path: Path, size: int) -> None:
    """Give back what was reserved in excess, once HDF5 has closed a file of ``size`` bytes."""
    if path.stat().st_size > size:
        os.truncate(path, size)


class ShardedFile:
    """Context manager for one HDF5 file that all ranks write together.

    The file grows under a temporary name in the same folder and takes its own name, atomically, when the
    block ends well. It is removed when any rank fails, and a file that was there before then stays as it was.

    Every method is collective: all ranks call the same methods in the same order, with equal arguments but
    for the rows. Each begins with an agreement of all ranks, and so does the end of the block. A rank that
    fails inside the block goes to its end; the others hear of it there or in their next method, and all raise
    its error.

    Raises:
        UserError: on all ranks, naming the file, when it cannot be written (disk full, no permission).
    """

    def __init__(self, path: Path | str, comm: Communicator):
        self.path = Path(path)
        self._comm = comm
        self._partial = partial_name(self.path)
        self._mpi_io = parallel_hdf5(comm)
        self._file: h5py.File | None = None  # with MPI-IO on every rank, else on rank 0
        self._claimed = 0  # bytes of disk space
        self._all_failed = False

    @staticmethod
    def describe(comm: Communicator) -> str:
        """How files are written, for the log."""
        if comm.size == 1:
            return "one rank writes"
        if parallel_hdf5(comm):
            return "MPI-IO by all ranks"
        return f"rank 0 gathers in {SLAB_BYTES >> 20} MiB slabs (this h5py has no MPI)"

    def __enter__(self) -> ShardedFile:
        try:
            with self._together():
                if self._comm.is_root:  # finds a folder that cannot be written before the collective call
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    reserve(self._partial, 0, METADATA_BYTES)
            with self._together():
                driver = {"driver": "mpio", "comm": self._comm.mpi} if self._mpi_io else {}
                if self._mpi_io or self._comm.is_root:
                    self._file = h5py.File(self._partial, "w", libver=LIBVER, **driver)
        except Exception:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._all_failed:
            self._discard()
            return
        try:
            with self._comm.together():
                if error is not None:
                    raise error
            with self._together():
                if self._file is not None:
                    self._file.flush()
                    # The MPI-IO driver cannot tell the size, but trims the file by itself.
                    size = self._claimed if self._mpi_io else self._file.id.get_filesize()
                    self._file.close()
            with self._together():
                if self._comm.is_root:
                    trim(self._partial, size)
                    with open(self._partial, "rb+") as file:
                        os.fsync(file.fileno())
                    self._partial.replace(self.path)
        except Exception:
            self._discard()
            raise

    def group(self, path: str) -> None:
        """Create a group, and those above it, unless it is there."""
        with self._metadata(0) as file:
            if file:
                file.require_group(path)

    def attributes(self, path: str, mapping: Mapping[str, Any]) -> None:
        """Set attributes of a group or dataset that exists; strings and lists of them become fixed-length."""
        values = {name: np.asarray(value) for name, value in mapping.items()}
        with self._metadata(4 * sum(value.nbytes for value in values.values())) as file:
            if file:
                for name, value in values.items():
                    text = value.dtype.kind == "U"
                    file[path].attrs[name] = np.char.encode(value, "utf-8") if text else value

    def array(self, path: str, array: ArrayLike) -> None:
        """Write a small dataset: rank 0's values, in a shape and type on which all ranks agree."""
        array = np.asarray(array)
        with self._metadata(array.nbytes) as file:
            if file:
                dataset = file.create_dataset(path, array.shape, array.dtype)
                if self._comm.is_root:
                    dataset[()] = array

    def rows(self, path: str, local_rows: ArrayLike, shard: Shard, dtype: DTypeLike | None = None) -> None:
        """Write a dataset [total, ...] of which this rank holds the rows ``local_rows`` [stop - start, ...].

        Args:
            path: the dataset's name.
            local_rows: rows of this rank; of length 0 on a rank without particles.
            shard: which global rows they are.
            dtype: type in the file, if not that of the rows.
        """
        with self._together():
            local = np.ascontiguousarray(local_rows, dtype)
            assert len(local) == len(shard), f"{path}: {len(local)} rows for {shard}"
            shape = (shard.total, *local.shape[1:])
            self._reserve(math.prod(shape) * local.itemsize)
        with self._together():
            dataset = self._file.create_dataset(path, shape, local.dtype) if self._file else None
        if self._mpi_io:
            self._write_collectively(dataset, local, shard)
        else:
            self._gather(dataset, local, shard)

    # -- two ways to write rows ----------------------------------------------------------------------------

    def _write_collectively(self, dataset: h5py.Dataset, local: np.ndarray, shard: Shard) -> None:
        with writing(self.path):
            in_memory, in_file = h5py.h5s.create_simple(local.shape), dataset.id.get_space()
            if local.size:
                in_file.select_hyperslab((shard.start,) + (0,) * (local.ndim - 1), local.shape)
            else:  # this rank must still join the call, which h5py's indexing would skip
                in_memory.select_none()
                in_file.select_none()
            collective = h5py.h5p.create(h5py.h5p.DATASET_XFER)
            collective.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
            dataset.id.write(in_memory, in_file, local, dxpl=collective)

    def _gather(self, dataset: h5py.Dataset | None, local: np.ndarray, shard: Shard) -> None:
        slab = max(1, SLAB_BYTES // (local.itemsize * math.prod(local.shape[1:])))
        extents = self._comm.allgather((shard.start, shard.stop))
        if not self._comm.is_root:
            for first in range(0, len(local), slab):
                self._comm.send(local[first : first + slab], _SLAB_TAG)
            return
        buffer = np.empty((slab, *local.shape[1:]), local.dtype)
        failure = None
        for source, (start, stop) in enumerate(extents):
            for first in range(start, stop, slab):
                last = min(first + slab, stop)
                if source == self._comm.rank:
                    part = local[first - start : last - start]
                else:
                    part = self._comm.receive(buffer[: last - first], source, _SLAB_TAG)
                try:
                    if failure is None:
                        with writing(self.path):
                            assert dataset is not None
                            dataset[first:last] = part
                except UserError as error:  # what the other ranks have yet to send must still be received
                    failure = error
        if failure is not None:
            raise failure

    # -- agreement -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """A piece of work whose failure all ranks raise, and then need not be told of again.

        It is local, or one collective HDF5 call that every rank enters.
        """
        try:
            with self._comm.together(), writing(self.path):
                yield
        except Exception:
            self._all_failed = True
            raise

    @contextlib.contextmanager
    def _metadata(self, nbytes: int) -> Iterator[h5py.File | None]:
        """When all ranks are here: the open file, on those that create metadata (all of them with MPI-IO)."""
        with self._together():
            self._reserve(nbytes)
        with writing(self.path):
            yield self._file

    def _reserve(self, nbytes: int) -> None:
        if self._comm.is_root:
            reserve(self._partial, self._claimed, nbytes + METADATA_BYTES)
            self._claimed += nbytes + METADATA_BYTES

    def _discard(self) -> None:
        """Leave nothing behind; what may be wrong here as well must not hide the error that is on its way."""
        if self._file is not None:
            with contextlib.suppress(*_REFUSED):
                self._file.close()
        if self._comm.is_root:
            with contextlib.suppress(OSError):
                self._partial.unlink()


def _lock_advice(error: Exception) -> str:
    """What to do about an error, if it is that the file system has no locks; else nothing."""
    number = _errno(error)
    signs = ("unable to lock file", "file locking disabled on this file system")  # the latter by HDF5 1.10
    if not any(sign in str(error) for sign in signs) or number == errno.EAGAIN:  # EAGAIN: another process has the lock
        return ""
    return _WITHOUT_LOCKS.format(f" (errno {number})" if number else "")


def _errno(error: Exception) -> int | None:
    """The system's error number; h5py may have it in the text alone."""
    if found := re.search(r"errno = (\d+)", str(error)):
        return int(found[1])
    return getattr(error, "errno", None)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
