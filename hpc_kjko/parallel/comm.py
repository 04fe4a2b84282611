"""Ranks, devices and collective operations. All MPI and torch.distributed calls of the project are in this module.

MPI is initialised by :meth:`Communicator.world`, not on import. The ranks form one torch process group, which
DistributedDataParallel needs: NCCL if every rank has its own GPU, otherwise gloo. On CPUs the gradients are summed by
MPI, which is several times faster than gloo and gives the same bits on every rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, no_type_check

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.parallel.launcher import promised_ranks

#: Largest number of elements in one message, because MPI counts them in 32 bits. Longer arrays are sent in pieces.
MOST_ELEMENTS = 2**28
_EXCHANGE_TAG = 7


class Communicator:
    """The ranks of a run, the device of this rank, and the collective operations of the method.

    Attributes: ``rank``, ``size``; ``local_rank``, ``local_size`` (ranks on the same node); ``device`` (a GPU or
    ``cpu``); ``library`` (the name that the MPI library gives itself, or the reason why there is none).
    """

    def __init__(self, mpi_comm: Any = None, library: str = "no MPI: one rank"):
        self._comm = mpi_comm
        self.library = library
        self.rank: int = mpi_comm.rank if mpi_comm else 0
        self.size: int = mpi_comm.size if mpi_comm else 1
        self.local_rank, self.local_size = self._locate()
        self.device = torch.device("cpu")
        self._process_group = False
        self._departures: Any = mpi_comm.Dup() if mpi_comm else None
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self._cores_of_its_own())

    @classmethod
    def world(cls) -> Communicator:
        """All ranks of the job; one rank if no MPI library can be loaded.

        Raises:
            UserError: the launcher started several processes but this MPI sees only one.
        """
        # otherwise ranks started by the mpirun of another MPI would run as independent copies
        promised = promised_ranks()
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as failure:
            if promised > 1:
                raise UserError(
                    f"a launcher started {promised} ranks but no MPI library can be loaded "
                    f"({str(failure).splitlines()[0]}): load the cluster's MPI module, or install 'hpc_kjko[mpi]'"
                ) from failure
            return cls(None, "no MPI library found: one rank")
        world = MPI.COMM_WORLD
        if world.size == 1 and promised > 1:
            raise UserError(
                f"a launcher started {promised} ranks but this Python's MPI sees one: use the mpirun that belongs to "
                f"{_library(MPI)} (that of the same environment)"
            )
        return cls(world, _library(MPI))

    @property
    def is_root(self) -> bool:
        """True on rank 0, the only rank that prints and writes small files."""
        return self.rank == 0

    @property
    def mpi(self) -> Any:
        """The mpi4py communicator for MPI-IO, or None without MPI."""
        return self._comm

    def select_device(self, wanted: Literal["auto", "cpu", "cuda"]) -> None:
        """Use a GPU of this rank's own if every rank has one, otherwise the CPU. Collective.

        The rank uses the GPU with its number on the node, or the only GPU if the launcher shows each rank only one.

        Raises:
            UserError: on every rank, if ``wanted`` is "cuda" and a rank has no GPU of its own.
        """
        gpus = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
        index = self.local_rank if gpus > 1 else 0
        mine = None
        if index < gpus:  # torch 2.4 does not give the uuid
            mine = socket.gethostname(), str(getattr(torch.cuda.get_device_properties(index), "uuid", index))
        taken = self.allgather(mine)
        without = [rank for rank, gpu in enumerate(taken) if gpu is None or gpu in taken[:rank]]
        if wanted == "cuda" and without:
            raise UserError(
                f'run.device = "cuda" needs one GPU per rank, and rank {without[0]} has none: start fewer ranks per '
                'node, or set run.device = "cpu"'
            )
        if without:
            self.device = torch.device("cpu")
        else:
            torch.cuda.set_device(index)
            self.device = torch.device("cuda", index)

    @property
    def is_cuda_aware(self) -> bool:
        """Whether the MPI library says that it accepts buffers on a GPU. Open MPI and MPICH have an extension for this.

        Nothing here depends on it: the field is solved on the host, so deposited densities are copied there anyway.
        """
        if self._comm is None:
            return False
        from mpi4py import MPI

        with contextlib.suppress(AttributeError):  # this MPI library does not have the extension
            return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
        return False

    # -- collectives ---------------------------------------------------------------------------------------------

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 or int64 array over all ranks, on every rank."""
        values = np.ascontiguousarray(values)
        if self.size == 1:
            return values
        total = np.empty_like(values)
        for mine, sums in zip(_pieces(values), _pieces(total), strict=True):
            self._comm.Allreduce(mine, sums)
        return total

    def min(self, value: float) -> float:
        """Smallest value over all ranks, on every rank; NaN if any rank has NaN (MPI_MIN alone would ignore it)."""
        return value if self.size == 1 else float(np.min(self._comm.allgather(value)))

    def any(self, flag: bool) -> bool:
        """Whether the flag of any rank is set, on every rank."""
        return bool(self.sum(np.array([float(flag)]))[0])

    def bcast(self, value: Any) -> Any:
        """The Python object of rank 0, on every rank (for small objects)."""
        return value if self.size == 1 else self._comm.bcast(value)

    def bcast_array(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """Copy the contiguous array of one rank into ``array`` on every rank, and return it."""
        if self.size > 1:
            for piece in _pieces(array):
                self._comm.Bcast(piece, root)
        return array

    def allgather(self, value: Any) -> list[Any]:
        """The Python objects of all ranks, on every rank (for small objects)."""
        return [value] if self.size == 1 else self._comm.allgather(value)

    def exchange(self, parts: list[np.ndarray], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Send ``parts[r]`` to each rank r, and return the arrays that all ranks sent to this one, of the given
        shapes."""
        if self.size == 1:
            return parts
        found = [np.empty(shape, parts[0].dtype) for shape in shapes]
        found[self.rank][...] = parts[self.rank]
        outgoing = [np.ascontiguousarray(part) for part in parts]
        requests = []
        for rank in (rank for rank in range(self.size) if rank != self.rank):
            requests += [self._comm.Irecv(piece, rank, _EXCHANGE_TAG) for piece in _pieces(found[rank])]
            requests += [self._comm.Isend(piece, rank, _EXCHANGE_TAG) for piece in _pieces(outgoing[rank])]
        for request in requests:
            request.Wait()
        return found

    def join(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Collect the rows of all ranks, in the order of the ranks, in ``whole`` on every rank."""
        if self.size == 1:
            whole[...] = part
            return whole
        counts = self._comm.allgather(part.size)
        if whole.size <= MOST_ELEMENTS:
            self._comm.Allgatherv(np.ascontiguousarray(part), [whole, counts])
            return whole
        for rank, rows in enumerate(np.split(whole.reshape(-1), np.cumsum(counts)[:-1])):
            if rank == self.rank:
                rows[...] = part.reshape(-1)
            self.bcast_array(rows, rank)
        return whole

    def send(self, array: np.ndarray, tag: int) -> None:
        """Send a contiguous array to rank 0."""
        for piece in _pieces(array):
            self._comm.Send(piece, dest=0, tag=tag)

    def receive(self, array: np.ndarray, source: int, tag: int) -> np.ndarray:
        """Receive into a contiguous array on rank 0."""
        for piece in _pieces(array):
            self._comm.Recv(piece, source=source, tag=tag)
        return array

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            self._comm.Barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If a rank fails inside this block, raise the error of the first failing rank on all ranks.

        The block must contain no collective call, because the ranks that did not fail would wait in it forever.
        """
        if self.size == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as mine:  # noqa: BLE001  (the other ranks must learn of any error)
            failure = mine
        for error in self.allgather(failure if failure is None else _portable(failure)):
            if error is not None:
                error.shared = True
                raise error from failure

    def abort(self, code: int = 1) -> None:
        """End the whole job at once, whatever the other ranks are doing."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.size > 1:
            self._comm.Abort(code)

    def all_leave(self, patience: float = 5.0) -> bool:
        """Whether all ranks leave early, as this one does. The other ranks have ``patience`` seconds to say so.

        If the result is false, call :meth:`abort`: the error did not reach every rank, and the others would wait
        forever.
        """
        if self.size == 1:
            return True
        request, deadline = self._departures.Ibarrier(), time.monotonic() + patience
        while not request.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    # -- gradient averaging --------------------------------------------------------------------------------------

    def distribute(self, module: torch.nn.Module) -> torch.nn.Module:
        """Wrap an :class:`~hpc_kjko.inner.objective.Objective` in DistributedDataParallel.

        Its float64 gradients (``gradient_of``) are sums over the particles of a rank, with weights that add up to 1
        over all ranks. They are summed over ranks, so unequal and empty shards are weighted exactly. With one rank the
        module is returned unchanged.
        """
        if self.size == 1:
            return module
        self._start_process_group()
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        distributed = torch.nn.parallel.DistributedDataParallel(module, device_ids=device_ids)
        distributed.register_comm_hook((self, module), _sum_bucket)
        return distributed

    @staticmethod
    def no_sync(module: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """Accumulate gradients locally. Used for every chunk of a rank's particles except the last."""
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def close(self) -> None:
        """Close the process group. (mpi4py finalises MPI itself at exit.)"""
        if self._process_group:
            torch.distributed.destroy_process_group()
            self._process_group = False

    def _start_process_group(self) -> None:
        if self._process_group:
            return
        import torch.distributed as dist

        one_node = self.local_size == self.size
        if one_node:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store, address = None, None
        if self.is_root:
            host = "127.0.0.1" if one_node else socket.gethostname()
            store = dist.TCPStore(host, 0, self.size, is_master=True, wait_for_workers=False)
            address = (host, store.port)
        host, port = self.bcast(address)
        if store is None:
            store = dist.TCPStore(host, port, self.size, is_master=False)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        excepthook = sys.excepthook
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        sys.excepthook = excepthook  # torch's hook hides which rank failed; this one aborts the job
        self._process_group = True

    # -- where this rank runs ------------------------------------------------------------------------------------

    def _locate(self) -> tuple[int, int]:
        if self.size == 1:
            return 0, 1
        hosts = self._comm.allgather(socket.gethostname())
        mine = [rank for rank, host in enumerate(hosts) if host == hosts[self.rank]]
        return mine.index(self.rank), len(mine)

    def _cores_of_its_own(self) -> int:
        """The number of cores for this rank, at least 1. Ranks that may use the same cores divide them among each
        other.

        So a rank that the launcher has bound to cores uses all of these; unbound ranks divide the cores of the node.
        """
        mine = [(socket.gethostname(), core) for core in os.sched_getaffinity(0)]
        users = Counter(core for cores in self.allgather(mine) for core in cores)
        return max(1, int(sum(Fraction(1, users[core]) for core in mine)))


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    """Consecutive views of a contiguous array that are small enough for MPI; one empty view for an empty array."""
    assert array.flags.c_contiguous
    flat = array.reshape(-1)
    return [flat[start : start + MOST_ELEMENTS] for start in range(0, max(flat.size, 1), MOST_ELEMENTS)]


@no_type_check  # DDP compares annotations with its own types, but postponed annotations are strings
def _sum_bucket(state, bucket):
    """DDP communication hook: sums float64 gradients, by MPI on CPUs and by NCCL on GPUs."""
    comm, objective = state
    buffer, parameters = bucket.buffer(), bucket.parameters()
    total = torch.cat([objective.gradient_of(parameter).flatten() for parameter in parameters])
    if total.is_cuda:
        torch.distributed.all_reduce(total)
    else:
        total = torch.from_numpy(comm.sum(total.numpy()))
    parts = total.split([parameter.numel() for parameter in parameters])
    for gradient, part in zip(bucket.gradients(), parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    future: torch.futures.Future = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    future.set_result(buffer)
    return future


def _library(mpi: Any) -> str:
    """Name and version of the MPI library, from its long description of itself."""
    return mpi.Get_library_version().splitlines()[0].split(",")[0].strip(" \0")


def _portable(error: Exception) -> Exception:
    """The error itself if its type matters to the caller, otherwise its text, because the error must be pickled."""
    if isinstance(error, UserError | SolverFailure):
        return type(error)(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
