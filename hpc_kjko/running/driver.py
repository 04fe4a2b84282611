"""Makes a run in its folder, from the case to the files. ``kjko`` and :func:`hpc_kjko.run` both use this module.

All functions are collective. An error is written to the log of the folder and then raised.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from hpc_kjko import casefile, usercode
from hpc_kjko.case import config
from hpc_kjko.case.config import Case
from hpc_kjko.case.sections import Output, Run, end_after
from hpc_kjko.errors import DiskFailure, OutOfMemory, SolverFailure, UserError, ran_out_of_memory
from hpc_kjko.files import checkpoint
from hpc_kjko.files.runfolder import RunFolder, peak_memory, provenance, restart_command, run_command
from hpc_kjko.files.storage import ShardedFile
from hpc_kjko.kernels import cuda, describe
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running import forecast, memory
from hpc_kjko.running.clock import Clock, in_words
from hpc_kjko.running.recorder import Recorder
from hpc_kjko.running.remarks import Pieces
from hpc_kjko.running.simulation import Outcome, Simulation
from hpc_kjko.running.validity import noise_floor, noise_growth, warnings_of
from hpc_kjko.terminal import Progress, StopSignals, is_terminal

log = logging.getLogger("hpc_kjko")

#: The word before a warning on standard output.
WARNING = "warning: "
#: Seconds between updates of ``run.json`` while a run is running.
NOTE_EVERY = 10.0
#: The keys that a restart may change. All other keys belong to the state that the restart continues.
CHANGEABLE = {
    "time": {"end"},
    "method": {"iterations", "learning_rate", "chunk"},
    "grid": {"solver"},
    "output": set(Output.model_fields) - {"diagnostics"},
    "run": set(Run.model_fields),
}


def start(
    case: Case | None,
    folder: RunFolder,
    comm: Communicator,
    *,
    force: bool = False,
    stop: StopSignals | None = None,
    progress: bool = True,
    began: float | None = None,
) -> Outcome:
    """Run a case from t = 0.

    Args:
        case: the case on rank 0; the value on other ranks is ignored.
        folder: the run folder; that of rank 0 is used.
        comm: the ranks.
        force: overwrite the run in this folder.
        stop: signals that end the run on all ranks after a step, with a checkpoint. They have this effect from the
            moment just before the run writes its first file.
        progress: show the progress on standard output (rank 0).
        began: the time from which ``run.wall_time`` and the times of the run count, on the clock
            ``time.monotonic()``; if None, this call.

    Returns:
        "finished" if the run reached its end, else "stopped".

    Raises:
        UserError: the case cannot be run here or the folder is not free. Nothing has been written.
        DiskFailure: the files of the run cannot be written. The message says how to continue.
        SolverFailure: the solver cannot continue. The folder has a checkpoint of the last good step.
    """
    began = time.monotonic() if began is None else began
    with comm.together():
        kernels = kernels_in_use()
        if comm.is_root:
            folder.require_free(force=force)
    folder, case = comm.bcast(folder), _shared(case, comm)
    comm.select_device(case.run.device)
    memory.require(case, comm)
    with _memory_named(case, comm):
        simulation = Simulation.start(case, comm)  # before any file is written, because this may fail
    _begin(stop, comm)
    with _at_work_in(folder, comm), _memory_named(case, comm):
        with comm.together():
            if comm.is_root:
                folder.create(case.toml(), usercode.files_of(case.table()))
                _log_to(folder)
        return _drive(simulation, folder, stop, progress, kernels, Clock(began), began)


def resume(
    folder: RunFolder,
    overrides: config.Overrides,
    comm: Communicator,
    *,
    stop: StopSignals | None = None,
    progress: bool = True,
    began: float | None = None,
) -> Outcome:
    """Continue a run from its newest undamaged checkpoint. Other arguments, returns and errors are as in :func:`start`.

    Args:
        overrides: changes of the keys in ``CHANGEABLE``.
    """
    began = time.monotonic() if began is None else began
    with _at_work_in(folder, comm):
        with comm.together():
            kernels = kernels_in_use()
            noted = folder.status()
            for text in [overrides] if isinstance(overrides, str) else overrides:
                section, _, key = text.partition("=")[0].strip().partition(".")
                if key not in CHANGEABLE.get(section, ()):
                    allowed = ", ".join(f"{name}.{key}" for name, keys in CHANGEABLE.items() for key in sorted(keys))
                    raise UserError(f"--set {text}: a restart continues a run and may change only {allowed}")
            if not folder.has_checkpoint:
                raise UserError(
                    f"{folder.path}: its run wrote no checkpoint, so there is nothing to restart from: "
                    f"{run_command(folder.path)} starts the run from the beginning"
                )
            if comm.is_root:
                folder.claim()
                _log_to(folder)
        usercode.look_in(folder.code)
        saved = checkpoint.load_latest(folder.checkpoints, comm)
        with comm.together():
            _require_its_own(folder, saved)
            case = config.from_table(config.override(casefile.parse(saved.header["case"]), overrides))
        if saved.header["step"] >= case.time.steps:
            reached = saved.header["time"]
            raise UserError(
                f"{folder.path}: has reached t = {reached:.10g}, and time.end = {case.time.end}: to continue, set it "
                f"higher, as in --set time.end={end_after(2 * saved.header['step'], case.time.step)}"
            )
        comm.select_device(case.run.device)
        held = sum(array.nbytes for rows in saved.species.values() for array in rows.arrays.values())
        memory.require(case, comm, held=held)
        with _memory_named(case, comm):
            simulation = Simulation.resume(case, comm, saved)
            _begin(stop, comm)
            with comm.together():
                if comm.is_root:
                    folder.write_case(case.toml())
                    _keep_code(folder, case, saved.header["step"])
            # a run that began with a version without clock gets none, because its earlier times are not known
            clock = Clock(began, noted["seconds"]) if "seconds" in noted else None
            restarts = noted.get("restarts", 0) + 1
            resumed = {"resumed_at": saved.header["step"], "restarts": restarts}
            return _drive(simulation, folder, stop, progress, kernels, clock, began, **resumed)


def dry_run(case: Case | None, comm: Communicator) -> Iterator[str]:
    """Yield lines that say what a run of a case would need: particles, memory, time, disk space. Writes nothing.

    The lines include the warnings that the run would give when it begins.

    Args:
        case: the case on rank 0; the value on other ranks is ignored.

    Raises:
        UserError: the case cannot be run here. The lines before the error have been yielded.
    """
    with comm.together():
        kernels_in_use()
    case = _shared(case, comm)
    comm.select_device(case.run.device)
    yield from forecast.memory_of(case, comm)
    memory.require(case, comm)
    with comm.together():
        warnings = warnings_of(case, comm.size) if comm.is_root else []
    yield from (f"{WARNING}{sentence}" for sentence in warnings)
    with comm.together():
        about_wave = list(forecast.wave_of(case)) if comm.is_root else []
    yield from about_wave
    with _memory_named(case, comm):
        yield from forecast.time_of(case, comm)
    yield from forecast.files_of(case)
    comm.close()


def _shared(case: Case | None, comm: Communicator) -> Case:
    """The case of rank 0, on every rank. Collective."""
    table = comm.bcast(case.table() if case and comm.is_root else None)
    with comm.together():
        return case if case is not None and comm.is_root else config.from_table(table)


@contextlib.contextmanager
def _memory_named(case: Case, comm: Communicator) -> Iterator[None]:
    """Within this block, an error that says that memory ran out names the key that takes most memory.

    Raises:
        OutOfMemory: on the ranks that have too little memory.
    """
    try:
        yield
    except Exception as failure:
        if isinstance(failure, UserError | SolverFailure) or not ran_out_of_memory(failure):
            raise
        raise OutOfMemory(memory.advice(case, comm)) from failure


def process_began() -> float:
    """When this process started, on the clock ``time.monotonic()``; the present time if the system does not say."""
    now = time.monotonic()
    try:
        after_the_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        started = int(after_the_name.split()[19]) / os.sysconf("SC_CLK_TCK")  # since the machine was booted
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError):
        return now


def kernels_in_use() -> str:
    """Which kernels are in use, in words.

    Raises:
        UserError: KJKO_KERNELS asks for kernels that are not available.
    """
    try:
        return describe()
    except (ValueError, ImportError) as failure:
        raise UserError(str(failure)) from None


def _begin(stop: StopSignals | None, comm: Communicator) -> None:
    """From now on signals stop the run with a checkpoint. All ranks wait until this is true on all of them."""
    if stop:
        stop.begin()
    comm.barrier()


def _keep_code(folder: RunFolder, case: Case, step: int) -> None:
    """Keep copies of the user's own modules, and log which modules have changed since the run began."""
    for file in folder.keep_code(usercode.files_of(case.table()), step):
        log.warning(
            "%s has changed since the run began: from step %d on the run uses the changed file, and the file "
            "before is kept in %s",
            file,
            step,
            folder.code_before(step),
        )


def _require_its_own(folder: RunFolder, saved: checkpoint.Checkpoint) -> None:
    """Check that a checkpoint belongs to the case of the folder, apart from the keys that a restart may change."""
    step = f"the checkpoint of step {saved.header['step']}"
    ours, theirs = casefile.read(folder.case), casefile.parse(saved.header["case"])
    for section, key in casefile.differing(ours, theirs):
        if key not in CHANGEABLE.get(section, ()):
            first, second = (table.get(section, {}).get(key) for table in (ours, theirs))
            raise UserError(
                f"{folder.case}: has {section}.{key} = {first!r}, but {step} was written with {second!r}: restore the "
                "case.toml of this run, or start a new run"
            )


def _drive(
    simulation: Simulation,
    folder: RunFolder,
    stop: StopSignals | None,
    progress: bool,
    kernels: str,
    clock: Clock | None,
    began: float,
    resumed_at: int | None = None,
    restarts: int = 0,
) -> Outcome:
    """Run a simulation until it ends or is stopped, with log and progress."""
    comm, case = simulation.comm, simulation.case
    header = comm.bcast({**provenance(comm), "case": case.toml()} if comm.is_root else None)
    known: dict[str, Any] = {}
    with comm.together():
        if comm.is_root:
            noise = {"noise_floor": noise_floor(case), "noise_growth": noise_growth(case)}
            known = {"warnings": warnings_of(case, comm.size), **noise}
            _log_start(simulation, folder, header, kernels, known["warnings"])
    recorder = Recorder(folder, comm, header, resumed_at)
    shown = None
    if progress and comm.is_root:
        shown = Progress(case.time.steps, resumed_at or 0, is_terminal(comm))
    details = {name: value for name, value in {**header, **known}.items() if name not in ("case", "software")}
    noted, times = -math.inf, dict[str, Any]()

    def note(status: str) -> None:
        """Write to ``run.json`` how far the run is (rank 0)."""
        nonlocal noted, times
        if comm.is_root:
            now = {"step": simulation.step_index, "time": simulation.time, "memory": peak_memory()}
            times = {"seconds": clock.seconds(), "restarts": restarts} if clock else {}
            folder.set_status(status, **now, **times, **details)
            noted = time.monotonic()

    if clock:
        clock.lap("start")
    with comm.together():
        note("running")
    requested, pieces = stop.requested if stop else lambda: False, Pieces()

    def on_step(row: dict[str, float]) -> None:
        if shown:
            shown(row)
        if comm.is_root and (sentence := pieces(row)):
            log.warning("%s", sentence)
        if time.monotonic() - noted > NOTE_EVERY:
            with contextlib.suppress(UserError):  # the next output file of the run reports a full disk
                note("running")

    deadline = began + (case.run.wall_time or math.inf)
    # sums in NumPy's linear algebra depend on the number of threads
    one_thread = threadpool_limits(1, user_api="blas") if case.run.reproducible else contextlib.nullcontext()
    try:
        with one_thread:
            outcome = simulation.run(recorder, on_step=on_step, stop=requested, deadline=deadline, clock=clock)
        recorder.close()
        if clock:
            clock.lap("files")
        note(outcome)
    except BaseException:  # call nothing collective here: the other ranks may still be computing
        for last in (recorder.close, lambda: note("failed")):
            with contextlib.suppress(UserError):  # for example because the disk is still full
                last()
        raise
    finally:
        if shown:
            shown.close()
    if comm.is_root:
        if outcome == "stopped":
            continues = restart_command(folder.path)
            log.info("stopped at t = %g with a checkpoint: %s continues", simulation.time, continues)
        else:
            log.info("finished: %s", folder.path)
        if times:
            log.info("wall-clock time %s", in_words(**times))
    comm.close()
    return outcome


@contextlib.contextmanager
def _at_work_in(folder: RunFolder, comm: Communicator) -> Iterator[None]:
    """Write errors inside this block to the log, close the log, and release the folder.

    This is not done after an error on one of several ranks, because the other ranks may still be computing.
    """
    before, failed = log.handlers[:], True
    try:
        yield
        failed = False
    except DiskFailure as failure:
        if not folder.case.exists():
            raise
        anew = f"no checkpoint has been written: {run_command(folder.path)} starts the run from the beginning"
        how = f"{restart_command(folder.path)} continues from the last checkpoint" if folder.has_checkpoint else anew
        advised = DiskFailure(f"{failure}; when there is room, {how}")
        advised.shared = failure.shared
        log.error("%s", advised)
        raise advised from failure
    except Exception as failure:
        if log.handlers != before:
            log.error("%s", failure)
        raise
    finally:
        for handler in [handler for handler in log.handlers if handler not in before]:
            log.removeHandler(handler)
            with contextlib.suppress(OSError):  # the disk may be full
                handler.close()
        if comm.is_root and not (failed and comm.size > 1):
            folder.release()


class _LogFile(logging.FileHandler):
    """A log file that raises no error when the disk is full. The next output file of the run reports the full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging prescribes this name)
        pass


def _log_to(folder: RunFolder) -> None:
    with folder.writing():
        file = _LogFile(folder.log, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(file)


def _log_start(
    simulation: Simulation, folder: RunFolder, header: dict[str, Any], kernels: str, warnings: list[str]
) -> None:
    case, comm = simulation.case, simulation.comm
    log.info(
        "%s: %s",
        "start" if simulation.step_index == 0 else f"restart at t = {simulation.time:g}",
        folder.path,
    )
    if comm.device.type == "cuda":
        kernels += f"; on the GPU {cuda.describe()}"
    log.info("hpc_kjko version %s, %s, %s", header["version"], _revision(header["git"]), kernels)
    log.info("%d rank(s) × %d thread(s) on %s, %s", comm.size, header["threads"], header["device"], header["mpi"])
    log.info("files: %s", ShardedFile.describe(comm))
    on_each = forecast.particles_on_each(case, comm.size)
    log.info("%d particles, %s on each rank", case.particles.count, on_each)
    if case.species:
        charge = sum(species.charge * species.density for species in case.species.values())
        background = f"a uniform background of charge density {-charge:.6g} makes the box neutral"
        log.info("species %s: %s", ", ".join(case.species), background if charge else "together they are neutral")
    for sentence in warnings:
        log.warning("%s", sentence)


def _revision(git: str) -> str:
    """The git revision in words. If there is none, the text says so itself."""
    return git if " " in git else f"git revision {git}"
