"""hpc_kjko from Python: what ``from hpc_kjko import Case, run, open_run`` gives."""

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
        case: the case to run; on several ranks that of rank 0 is used.
        out: the run folder, made if missing.
        force: overwrite the run that the folder holds.
        progress: show the progress on standard output.

    Returns:
        The run, opened.

    Raises:
        UserError: the case cannot be run here, or the folder is not free. Nothing has been written then.
        SolverFailure: the numerics cannot go on. The folder has a checkpoint of the last good step.
    """
    folder = RunFolder(Path(out))
    with _job() as (comm, stop):
        driver.start(case, folder, comm, force=force, stop=stop, progress=progress)
    return open_run(folder.path)


def restart(out: Path | str, overrides: Overrides = (), *, progress: bool = True) -> Run:
    """Continue a run from its newest undamaged checkpoint, as ``kjko restart`` does. All else is as for :func:`run`.

    Args:
        out: the run folder.
        overrides: the keys to change, as for :meth:`Case.load`.
        progress: show the progress on standard output.
    """
    folder = RunFolder(Path(out))
    with _job() as (comm, stop):
        driver.resume(folder, overrides, comm, stop=stop, progress=progress)
    return open_run(folder.path)


_world = functools.cache(Communicator.world)  # of a process, however many runs it makes


@contextlib.contextmanager
def _job() -> Iterator[tuple[Communicator, StopSignals]]:
    """Around a run: its ranks, and signals that stop it. An error that not all ranks share ends the job."""
    comm, stop = _world(), StopSignals()
    try:
        yield comm, stop
        comm.barrier()  # from here on every rank sees what rank 0 wrote last
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
