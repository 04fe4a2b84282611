"""One HDF5 file that all ranks write, either completely or not at all.

:class:`ShardedFile` writes the rows of all ranks, and small data, into one file. If h5py was built with MPI, each rank
writes its own rows (MPI-IO). With the ordinary h5py rank 0 writes, and the other ranks send it their rows in pieces of
limited size. Both give the same data. :func:`reading` reads every kind of file of the project.
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

if TYPE_CHECKING:  # these import torch, which programs that only read files do not need
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.particles.state import Shard

#: Largest message, in bytes, when rank 0 gathers rows.
SLAB_BYTES = 4 << 20
#: An upper limit of the bytes that HDF5 adds to the data of one call.
METADATA_BYTES = 16 << 10
#: HDF5 1.10 (2016) introduced checksums of metadata and SWMR. No newer format is used, so older readers can read it.
LIBVER = ("v110", "v110")

# Exceptions of h5py if the system refuses an operation, and if a file is damaged.
_REFUSED = (OSError, RuntimeError)
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError)

#: Error numbers for a full disk, an exhausted quota, a limit on file sizes, and a failing disk.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: Advice if HDF5 cannot lock a file.
_WITHOUT_LOCKS = (
    "HDF5 cannot lock files on this file system{}: set HDF5_USE_FILE_LOCKING=FALSE in the environment of all ranks "
    "(see docs/howto/parallel_hdf5.md), or use a folder on another file system"
)

_SLAB_TAG = 5

logger = logging.getLogger(__name__)


def parallel_hdf5(comm: Communicator) -> bool:
    """Whether all ranks can write one file together: h5py was built with MPI, and there is more than one rank."""
    return bool(h5py.get_config().mpi) and comm.size > 1


def partial_name(path: Path) -> Path:
    """The path of a file until it is complete: in the same folder, hidden, with a suffix that no reader looks for."""
    return path.with_name(f".{path.name}.partial")


def unfinished(folder: Path | str) -> list[Path]:
    """Incomplete files in a folder. Their writer has ended too early, or is still writing."""
    return sorted(Path(folder).glob(".*.partial"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of h5py and of file operations in this block into a UserError that names ``path``.

    Raises:
        UserError: the file cannot be written. It is a DiskFailure if the disk accepts no more data.
    """
    try:
        yield
    except _REFUSED as error:
        if locks := _lock_advice(error):
            raise UserError(f"cannot write {path}: {locks}") from error
        if _errno(error) == errno.ENOENT and not path.parent.exists():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}: create it first") from error
        kind = DiskFailure if _errno(error) in DISK_ERRORS else UserError
        raise kind(
            f"cannot write {path} ({_reason(error)}): check the free space, quota and permissions of its folder"
        ) from error


@contextlib.contextmanager
def reading(path: Path, kind: str, advice: str, swmr: bool = False) -> Iterator[h5py.File]:
    """Open ``path`` for reading on this rank. Errors on opening or inside the block name the file.

    Args:
        path: the file.
        kind: the kind of file for the message, for example "checkpoint".
        advice: the end of the message, which says what to do.
        swmr: whether another process may be appending to the file, or was killed while it did.

    Raises:
        DamagedFile: the file is missing, truncated, damaged or of another kind.
        UserError: the system does not allow to read the file.
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
            raise UserError(f"cannot read {path} ({error.strerror}): ask its owner for read permission") from error
        raise DamagedFile(f"{path} is not a complete {kind} ({_reason(error)}): {advice}") from error


def damage(path: Path) -> str:
    """The reason why an HDF5 file cannot be opened, for example that it is truncated; empty if it can be opened."""
    try:
        with reading(path, "file", ""):
            return ""
    except DamagedFile as failure:
        return _reason(failure.__cause__ or failure)


def _opened(path: Path, swmr: bool) -> h5py.File:
    """Open the file. If its writer has not closed it, open it as a reader beside a writer (SWMR).

    SWMR is only the second attempt: if HDF5 believes that a writer is active, it waits for minutes for a damaged file
    to become complete.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if swmr and any(sign in str(error) for sign in ("already open", "unable to lock")):
            return h5py.File(path, "r", swmr=True)
        raise


def require_hdf5(folder: Path) -> None:
    """Check that HDF5 can write and lock a file in a folder. The test file is removed at once.

    Raises:
        UserError: HDF5 cannot. It is a DiskFailure if the disk accepts no more data.
    """
    with writing(folder), tempfile.TemporaryDirectory(prefix=".kjko-", dir=folder) as scratch:
        path = Path(scratch) / "locked.h5"
        reserve(path, 0, METADATA_BYTES)
        for mode in ("w", "r"):
            h5py.File(path, mode).close()


def hdf5_problem(folder: Path) -> str:
    """The message of :func:`require_hdf5` for a folder; empty if there is no problem."""
    try:
        require_hdf5(folder)
    except UserError as failure:
        return str(failure)
    return ""


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning. The same text is logged only once."""
    logger.warning("%s", text)


def reserve(path: Path, offset: int, nbytes: int) -> None:
    """Reserve disk space for the bytes [offset, offset + nbytes) of a file. The file is created or extended.

    HDF5 does not survive a refused write. It keeps the data that it could not write, fails again when the file is
    closed, and may crash the process. So the space is reserved first: a refusal is then an ordinary OSError, and the
    file can still be closed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):  # not available on macOS
            os.posix_fallocate(descriptor, offset, nbytes)
    finally:
        os.close(descriptor)


def trim(path: Path, size: int) -> None:
    """Release the reserved space that is not needed, after HDF5 has closed a file of ``size`` bytes."""
    if path.stat().st_size > size:
        os.truncate(path, size)


class ShardedFile:
    """Context manager for one HDF5 file that all ranks write together.

    The file is written under a temporary name in the same folder. It gets its final name atomically if the block ends
    without error. If a rank fails, the temporary file is removed, and an existing file with the final name is
    unchanged.

    Every method is collective: all ranks call the same methods in the same order, with equal arguments except for the
    rows. At the beginning of each method and at the end of the block all ranks agree whether to continue. A rank that
    fails inside the block goes to its end. The other ranks learn of the failure there or in their next method, and all
    ranks raise the error.

    Raises:
        UserError: on all ranks, if the file cannot be written (disk full, no permission). The message names the file.
    """

    def __init__(self, path: Path | str, comm: Communicator):
        self.path = Path(path)
        self._comm = comm
        self._partial = partial_name(self.path)
        self._mpi_io = parallel_hdf5(comm)
        self._file: h5py.File | None = None  # with MPI-IO on every rank, otherwise only on rank 0
        self._claimed = 0  # reserved disk space in bytes
        self._all_failed = False

    @staticmethod
    def describe(comm: Communicator) -> str:
        """A description of how files are written, for the log."""
        if comm.size == 1:
            return "one rank writes"
        if parallel_hdf5(comm):
            return "MPI-IO by all ranks"
        return f"rank 0 gathers in {SLAB_BYTES >> 20} MiB slabs (this h5py has no MPI)"

    def __enter__(self) -> ShardedFile:
        try:
            with self._together():
                if self._comm.is_root:  # detects a folder that cannot be written, before the collective call
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
                    # The MPI-IO driver does not know the size, but trims the file itself.
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
        """Create a group and its parents, if they do not exist."""
        with self._metadata(0) as file:
            if file:
                file.require_group(path)

    def attributes(self, path: str, mapping: Mapping[str, Any]) -> None:
        """Set attributes of an existing group or dataset. Strings and lists of strings get a fixed length."""
        values = {name: np.asarray(value) for name, value in mapping.items()}
        with self._metadata(4 * sum(value.nbytes for value in values.values())) as file:
            if file:
                for name, value in values.items():
                    text = value.dtype.kind == "U"
                    file[path].attrs[name] = np.char.encode(value, "utf-8") if text else value

    def array(self, path: str, array: ArrayLike) -> None:
        """Write a small dataset with the values of rank 0. Shape and type must be equal on all ranks."""
        array = np.asarray(array)
        with self._metadata(array.nbytes) as file:
            if file:
                dataset = file.create_dataset(path, array.shape, array.dtype)
                if self._comm.is_root:
                    dataset[()] = array

    def rows(self, path: str, local_rows: ArrayLike, shard: Shard, dtype: DTypeLike | None = None) -> None:
        """Write a dataset [total, ...], of which this rank has the rows ``local_rows`` [stop - start, ...].

        Args:
            path: the name of the dataset.
            local_rows: the rows of this rank; length 0 on a rank without particles.
            shard: the global indices of these rows.
            dtype: the type in the file, if it differs from that of the rows.
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
            else:  # this rank must still take part in the call, which h5py's indexing would skip
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
                except UserError as error:  # the messages of the other ranks must still be received
                    failure = error
        if failure is not None:
            raise failure

    # -- agreement -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Do work whose failure on one rank is raised on all ranks, once.

        The work is local, or one collective HDF5 call that every rank makes.
        """
        try:
            with self._comm.together(), writing(self.path):
                yield
        except Exception:
            self._all_failed = True
            raise

    @contextlib.contextmanager
    def _metadata(self, nbytes: int) -> Iterator[h5py.File | None]:
        """When all ranks have arrived, yield the open file on the ranks that create metadata (with MPI-IO on all
        ranks)."""
        with self._together():
            self._reserve(nbytes)
        with writing(self.path):
            yield self._file

    def _reserve(self, nbytes: int) -> None:
        if self._comm.is_root:
            reserve(self._partial, self._claimed, nbytes + METADATA_BYTES)
            self._claimed += nbytes + METADATA_BYTES

    def _discard(self) -> None:
        """Close and remove the temporary file. Errors here are ignored, so that they do not hide the original error."""
        if self._file is not None:
            with contextlib.suppress(*_REFUSED):
                self._file.close()
        if self._comm.is_root:
            with contextlib.suppress(OSError):
                self._partial.unlink()


def _lock_advice(error: Exception) -> str:
    """Advice if the error says that the file system has no locks; otherwise empty."""
    number = _errno(error)
    signs = ("unable to lock file", "file locking disabled on this file system")  # the second is of HDF5 1.10
    if not any(sign in str(error) for sign in signs) or number == errno.EAGAIN:  # EAGAIN: another process has the lock
        return ""
    return _WITHOUT_LOCKS.format(f" (errno {number})" if number else "")


def _errno(error: Exception) -> int | None:
    """The error number of the system. Some h5py errors have it only in their text."""
    if found := re.search(r"errno = (\d+)", str(error)):
        return int(found[1])
    return getattr(error, "errno", None)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
