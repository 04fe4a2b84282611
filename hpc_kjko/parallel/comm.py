"""Ranks, devices and collective operations: every MPI and torch.distributed call of the project lives here.

MPI is initialised when :meth:`Communicator.world` is called, never on import. Ranks form one torch process group
(NCCL when every rank has its own GPU, gloo otherwise) which DistributedDataParallel needs; on the CPU the gradients
themselves travel through MPI, which is several times faster than gloo and gives every rank the same bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal, no_type_check

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.parallel.launcher import promised_ranks

#: Most elements of one message: MPI counts them in 32 bits, and its displacements too. Longer arrays go in pieces.
MOST_ELEMENTS = 2**28
_EXCHANGE_TAG = 7


class Communicator:
    """The ranks of a run, the device of this rank, and the few collectives that the method needs.

    Attributes: ``rank``, ``size``; ``local_rank``, ``local_size`` (ranks of the same node); ``device``
    (a GPU or ``cpu``); ``library`` (the MPI library's own words, or why there is none).
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
        promised = promised_ranks()  # so that ranks started by another MPI's mpirun do not run as N copies
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
        """True on rank 0, which alone prints, solves the field and owns small files."""
        return self.rank == 0

    @property
    def mpi(self) -> Any:
        """The mpi4py communicator for MPI-IO, or None when running without MPI."""
        return self._comm

    def select_device(self, wanted: Literal["auto", "cpu", "cuda"]) -> None:
        """Take a GPU of this rank's own, if every rank has one; else the CPU. Collective.

        It is the one of this rank's number on its node, or the only one where the launcher shows each rank one.

        Raises:
            UserError: ``wanted`` is "cuda" and a rank has no GPU of its own (on every rank).
        """
        gpus = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
        index = self.local_rank if gpus > 1 else 0
        mine = None
        if index < gpus:  # torch 2.4 does not tell the uuid
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
        """Whether the MPI says that it takes buffers on a GPU: Open MPI and MPICH do, by an extension of the standard.

        Nothing here depends on it: the field is solved on the host, so what is deposited goes there anyway.
        """
        if self._comm is None:
            return False
        from mpi4py import MPI

        with contextlib.suppress(AttributeError):  # no such extension
            return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
        return False

    # -- collectives ---------------------------------------------------------------------------------------------

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 or int64 array over ranks, on every rank."""
        values = np.ascontiguousarray(values)
        if self.size == 1:
            return values
        total = np.empty_like(values)
        for mine, sums in zip(_pieces(values), _pieces(total), strict=True):
            self._comm.Allreduce(mine, sums)
        return total

    def min(self, value: float) -> float:
        """Smallest value over ranks, on every rank; NaN if any rank holds NaN (MPI_MIN alone would lose it)."""
        return value if self.size == 1 else float(np.min(self._comm.allgather(value)))

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set, on every rank."""
        return bool(self.sum(np.array([float(flag)]))[0])

    def bcast(self, value: Any) -> Any:
        """Rank 0's Python object, on every rank (small objects)."""
        return value if self.size == 1 else self._comm.bcast(value)

    def bcast_array(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """The array of one rank, in place, on every rank; contiguous."""
        if self.size > 1:
            for piece in _pieces(array):
                self._comm.Bcast(piece, root)
        return array

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's Python object, on every rank (small objects)."""
        return [value] if self.size == 1 else self._comm.allgather(value)

    def exchange(
        self, parts: Mapping[int, np.ndarray], shapes: Mapping[int, tuple[int, ...]], dtype: np.dtype
    ) -> list[np.ndarray]:
        """``parts[r]`` of this rank for that of rank r: what other ranks have for this one, of the given shapes.

        Ranks that neither names have nothing for each other, and no message is sent.
        """
        if self.size == 1:
            return list(parts.values())
        found = {rank: np.empty(shape, dtype) for rank, shape in shapes.items()}
        outgoing = {rank: np.ascontiguousarray(part) for rank, part in parts.items()}
        if self.rank in found:
            found[self.rank][...] = outgoing.pop(self.rank)
        requests = []
        for rank in (rank for rank in found if rank != self.rank):
            requests += [self._comm.Irecv(piece, rank, _EXCHANGE_TAG) for piece in _pieces(found[rank])]
        for rank, part in outgoing.items():
            requests += [self._comm.Isend(piece, rank, _EXCHANGE_TAG) for piece in _pieces(part)]
        for request in requests:
            request.Wait()
        return list(found.values())

    def join(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Every rank's rows, one after the other, in ``whole`` on every rank."""
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
        """Make one rank's failure inside the block everybody's: the first failing rank's error is raised on all.

        The block must hold no collective call, or the ranks that did not fail would wait in it for ever.
        """
        if self.size == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as mine:  # noqa: BLE001  (whatever it is, the other ranks must hear of it)
            failure = mine
        for error in self.allgather(failure if failure is None else _portable(failure)):
            if error is not None:
                error.shared = True
                raise error from failure

    def abort(self, code: int = 1) -> None:
        """End the whole job now, whatever the other ranks are waiting for."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.size > 1:
            self._comm.Abort(code)

    def all_leave(self, patience: float = 5.0) -> bool:
        """Whether all ranks end early, as this one does: they have a while to say so.

        If not, abort: an error that was meant to reach every rank but did not must not leave the others waiting.
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

        Its float64 gradients (``gradient_of``), local sums of shares of the whole, are then summed over ranks, which
        weights unequal (and empty) shards exactly. With one rank the module is returned as it is.
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
        """Accumulate gradients locally: for every chunk of a rank's particles but the last."""
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def close(self) -> None:
        """Take the process group down (MPI itself is finalised by mpi4py at exit)."""
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
        sys.excepthook = excepthook  # torch's own hides which rank failed; ours aborts the job
        self._process_group = True

    # -- where this rank runs ------------------------------------------------------------------------------------

    def _locate(self) -> tuple[int, int]:
        if self.size == 1:
            return 0, 1
        hosts = self._comm.allgather(socket.gethostname())
        mine = [rank for rank, host in enumerate(hosts) if host == hosts[self.rank]]
        return mine.index(self.rank), len(mine)

    def _cores_of_its_own(self) -> int:
        """This rank's part of the cores that it may use, at least 1. Ranks that may use the same core share it.

        So a rank that the launcher has bound to cores of its own has all of these; unbound ranks divide the node.
        """
        mine = [(socket.gethostname(), core) for core in os.sched_getaffinity(0)]
        users = Counter(core for cores in self.allgather(mine) for core in cores)
        return max(1, int(sum(Fraction(1, users[core]) for core in mine)))


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    """Views of a contiguous array, one after the other, that MPI can take; one empty view of an empty array."""
    assert array.flags.c_contiguous
    flat = array.reshape(-1)
    return [flat[start : start + MOST_ELEMENTS] for start in range(0, max(flat.size, 1), MOST_ELEMENTS)]


@no_type_check  # DDP compares annotations with its own types, and postponed ones are strings
def _sum_bucket(state, bucket):
    """DDP communication hook: float64 gradients are summed, by MPI on the CPU and by NCCL on GPUs."""
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
    """Name and version of the MPI library, of the much that it says of itself."""
    return mpi.Get_library_version().splitlines()[0].split(",")[0].strip(" \0")


def _portable(error: Exception) -> Exception:
    """The error itself where its kind matters to the caller, else its text: any exception must survive pickling."""
    if isinstance(error, UserError | SolverFailure):
        return type(error)(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
