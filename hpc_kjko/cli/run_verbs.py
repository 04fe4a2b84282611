"""The verbs of ``kjko`` that run or measure something. They need torch and the models of a case."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpc_kjko import __version__, kernels, usercode
from hpc_kjko.case import config
from hpc_kjko.files.runfolder import RunFolder, provenance
from hpc_kjko.files.storage import ShardedFile, hdf5_problem
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.kernels import cuda
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running import driver
from hpc_kjko.running.simulation import Outcome
from hpc_kjko.terminal import StopSignals, show_pairs

log = logging.getLogger("hpc_kjko")

DONE, FAILED, STOPPED = 0, 1, 75


def run(options: argparse.Namespace, comm: Communicator) -> int:
    """Run a case from t = 0."""
    case, began = None, driver.process_began()
    with _stop_signals(comm) as stop, _log_on_console(comm):
        usercode.look_in(options.case.parent)
        with comm.together():
            if comm.is_root:
                case = config.load(options.case, options.set)
        if options.dry_run:
            for line in driver.dry_run(case, comm):
                if comm.is_root:
                    print(line, flush=True)
            stop.restore()
            return DONE
        folder = RunFolder(options.out or Path("runs") / options.case.stem)
        return _over(driver.start(case, folder, comm, force=options.force, stop=stop, began=began), stop)


def restart(options: argparse.Namespace, comm: Communicator) -> int:
    """Continue a run from its newest undamaged checkpoint."""
    folder, began = RunFolder(options.folder), driver.process_began()
    with _stop_signals(comm) as stop, _log_on_console(comm):
        return _over(driver.resume(folder, options.set, comm, stop=stop, began=began), stop)


@contextlib.contextmanager
def _stop_signals(comm: Communicator) -> Iterator[StopSignals]:
    """The signals that stop a run, until the run fails. If all ranks receive a signal, only rank 0 prints a message."""
    stop = StopSignals("kjko: ended by" if comm.is_root else "")
    try:
        yield stop
    except BaseException:
        stop.restore()
        raise


@contextlib.contextmanager
def _log_on_console(comm: Communicator) -> Iterator[None]:
    """Print the log on standard output too, while a run is running."""
    before = log.handlers[:]
    if comm.is_root:
        console = _Console()
        # errors end the command, which prints them itself
        console.addFilter(lambda record: record.levelno < logging.ERROR)
        log.handlers = [console]
    try:
        yield
    finally:
        log.handlers = before


class _Console(logging.Handler):
    """Prints lines of the log on the present standard output. Warnings begin with a word that says so."""

    def emit(self, record: logging.LogRecord) -> None:
        before = driver.WARNING if record.levelno == logging.WARNING else ""
        print(f"{before}{record.getMessage()}", flush=True)


def _over(outcome: Outcome, stop: StopSignals) -> int:
    stop.ignore()
    return DONE if outcome == "finished" else STOPPED


def analyze(options: argparse.Namespace, comm: Communicator) -> int:
    """Measure the particle snapshots of a run: moments, marginals, histograms, distances from a known density."""
    from hpc_kjko.post.analysis import analyse
    from hpc_kjko.post.compare import say_changed_code

    folder = RunFolder(options.folder)
    with comm.together():
        folder.status()
        usercode.look_in(folder.code)
        case = config.load(folder.case)
        if comm.is_root:
            say_changed_code(folder, case)
    header = comm.bcast({**provenance(comm), "case": case.toml()})
    for path in analyse(folder, case, comm, header, against_grid=options.reference == "grid"):
        if comm.is_root:
            print(path)
    return DONE


def doctor(options: argparse.Namespace, comm: Communicator) -> int:
    """Show what a run would use here, and test the collective operations. If a run would fail, the exit code is 1."""
    import h5py
    import torch

    comm.select_device("auto")
    rows = {
        "hpc_kjko": f"{__version__}, {driver.kernels_in_use()}",
        "python": sys.version.split()[0],
        "MPI": f"{comm.library}, {'' if comm.is_cuda_aware else 'not '}CUDA-aware",
        "ranks": f"{comm.size}, {torch.get_num_threads()} thread(s) each",
        "HDF5": f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}, "
        + ("parallel" if h5py.get_config().mpi else "not parallel"),
        "files": ShardedFile.describe(comm),
        "torch": f"{torch.__version__}, backends "
        + ", ".join(name for name in ("gloo", "nccl", "mpi") if torch.distributed.is_backend_available(name)),
        "GPU kernels": cuda.describe(),
        "devices": ", ".join(f"rank {rank}: {device}" for rank, device in enumerate(comm.allgather(str(comm.device)))),
    }
    advice = []
    if comm.mpi is None:
        advice.append("for more than one rank: pip install 'hpc_kjko[mpi]', or load the cluster's MPI module")
    if not kernels.available():
        advice.append("for native kernels, several times faster: install a C++ compiler, then hpc_kjko again")
    collectives, locks = _try_collectives(comm), hdf5_problem(Path.cwd())
    rows["collectives"] = collectives or "allreduce and DistributedDataParallel work"
    rows["file locks"] = locks or "HDF5 can write and lock files in this folder"
    problem = collectives or locks
    if comm.is_root:
        show_pairs(rows)
        for sentence in advice:
            print(sentence)
        if problem:
            print(f"kjko: a run would fail here: {problem}", file=sys.stderr)
    comm.close()
    return FAILED if problem else DONE


def _try_collectives(comm: Communicator) -> str:
    """The problem with the collective operations of this job, as a sentence; empty if there is none."""
    import torch

    if comm.sum(np.array([1.0]))[0] != comm.size:
        return "an allreduce over the ranks gives a wrong sum: use the mpirun that belongs to this Python's MPI"
    try:
        control = ControlField(None, 1, 1, hidden=(), device=comm.device)
        objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet="linear")
        # one particle with v = 1 at u = 0: the gradient with respect to a constant u is 1
        one = torch.ones(1, 1, device=comm.device)
        distributed = comm.distribute(objective)
        distributed(1.0, torch.cat([one, one], dim=1), one, one[0]).backward()
        gradient = control.layers[-1].bias.grad
        if gradient is None or gradient.item() != comm.size:
            return "gradients are not summed over the ranks: reinstall torch as constraints.txt pins it"
    except RuntimeError as failure:
        return f"torch.distributed does not start ({failure}): set GLOO_SOCKET_IFNAME to the network interface to use"
    return ""
