"""The Python interface: the functions and classes of ``from hpc_kjko import Case, run, open_run``."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from hpc_kjko.case.config import Case, Overrides
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.post.opened import Run, open_run
from hpc_kjko.running import driver
from hpc_kjko.terminal import StopSignals

__all__ = ["Case", "Run", "SolverFailure", "UserError", "open_run", "restart", "run"]


def run(case: Case, out: Path | str, *, force: bool = False, progress: bool = True) -> Run:
    """Run a case from t = 0 in this process. Under mpirun every rank must call this function.

    It does what ``kjko run`` does. Ctrl-C (a notebook's "interrupt"), SIGTERM and ``run.wall_time`` end the run after a
    step, with a checkpoint. The :attr:`~hpc_kjko.post.opened.Run.status` is then "stopped" instead of "finished".
    Before the first step these signals have their usual effect in Python.

    Args:
        case: the case to run. On several ranks the case of rank 0 is used.
        out: the run folder. It is created if it does not exist.
        force: overwrite the run in this folder.
        progress: show the progress on standard output.

    Returns:
        The finished or stopped run, opened for reading.

    Raises:
        UserError: the case cannot be run here, or the folder already holds a run or is in use.
            Nothing has been written.
        SolverFailure: the solver cannot continue. The folder has a checkpoint of the last good step.
    """
    folder = RunFolder(Path(out))
    with _job() as (comm, stop):
        driver.start(case, folder, comm, force=force, stop=stop, progress=progress)
    return open_run(folder.path)


def restart(out: Path | str, overrides: Overrides = (), *, progress: bool = True) -> Run:
    """Continue a run from its newest undamaged checkpoint, as ``kjko restart`` does.

    Signals, ``run.wall_time`` and calls under mpirun work as in :func:`run`.

    Args:
        out: the run folder.
        overrides: the keys to change, in the form of :meth:`Case.load`.
        progress: show the progress on standard output.

    Returns:
        The run, opened for reading.

    Raises:
        UserError: the folder holds no run that can be continued, or a key may not be changed.
        SolverFailure: the solver cannot continue. The folder has a checkpoint of the last good step.
    """
    folder = RunFolder(Path(out))
    with _job() as (comm, stop):
        driver.resume(folder, overrides, comm, stop=stop, progress=progress)
    return open_run(folder.path)


_world = functools.cache(Communicator.world)  # one per process, also if the process makes several runs


@contextlib.contextmanager
def _job() -> Iterator[tuple[Communicator, StopSignals]]:
    """The ranks of a run and the signals that stop it. An error that not all ranks raise aborts the whole job."""
    comm, stop = _world(), StopSignals()
    try:
        yield comm, stop
        comm.barrier()  # after this every rank sees the last files of rank 0
    except (UserError, SolverFailure) as failure:
        if not comm.all_leave():
            print(f"rank {comm.rank}: {failure}", file=sys.stderr)
            comm.abort()
        raise
    except BaseException:
        if comm.size > 1:
            traceback.print_exc()
            comm.abort()
        raise
    finally:
        stop.restore()
