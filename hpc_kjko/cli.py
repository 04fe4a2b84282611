"""The ``kjko`` command: its verbs, its log, its exit codes.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 ours or the numerics', 75 stopped with a checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rich.box
import rich.markup
import rich.table

from hpc_kjko import __version__, checkpoint, config, summary
from hpc_kjko.analysis import analyse
from hpc_kjko.collisions import METHODS
from hpc_kjko.comm import Communicator
from hpc_kjko.control import ControlField
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.file_verbs import compare, inspect, on_rank_0, plot, report, series, watch
from hpc_kjko.integrators import MAPS
from hpc_kjko.native import cuda, describe
from hpc_kjko.objective import JKOObjective
from hpc_kjko.particles import Shard
from hpc_kjko.problems import KINDS
from hpc_kjko.recorder import Recorder
from hpc_kjko.runfolder import RunFolder, peak_memory, provenance
from hpc_kjko.simulation import Simulation
from hpc_kjko.solvers import SOLVERS
from hpc_kjko.storage import ShardedFile
from hpc_kjko.sweep import Sweep
from hpc_kjko.terminal import Progress, StopSignals, is_terminal, show

log = logging.getLogger("hpc_kjko")

DONE, OURS, MISTAKE, STOPPED = 0, 1, 2, 75

#: What a restart may change; everything else is part of the state it continues.
CHANGEABLE = {
    "time": {"end"},
    "method": {"iterations", "learning_rate", "chunk"},
    "grid": {"solver"},
    "output": set(config.Output.model_fields),
    "run": set(config.Run.model_fields),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a ``kjko`` command line and return its exit code. Under mpirun every rank calls it."""
    comm = options = None
    try:
        try:
            options = _parser().parse_args(arguments)
        finally:  # also to print a mistake once; who only reads files needs no MPI, which a login node may forbid
            alone = options and options.command not in (run, restart, doctor) and Communicator.promised() == 1
            comm = Communicator() if alone else Communicator.world()
        if not comm.is_root:
            log.addHandler(logging.NullHandler())
        return options.command(options, comm)
    except UserError as mistake:
        return _leave(comm, OURS if options and options.command is doctor else MISTAKE, str(mistake))
    except SolverFailure as failure:
        return _leave(comm, OURS, str(failure))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        where = f"rank {comm.rank}: " if comm and comm.size > 1 else ""
        if _out_of_memory(error):
            advice = "lower particles.count or grid.cells, or use more nodes"
            print(f"kjko: {where}not enough memory: {advice}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"kjko: {where}{type(error).__name__}: {error}", file=sys.stderr)
        if comm:
            comm.abort(OURS)  # the other ranks may be waiting for this one
        return OURS


def _leave(comm: Communicator | None, code: int, sentence: str) -> int:
    """End all ranks with ``code``, the sentence said once."""
    if comm is None or comm.is_root:
        if log.handlers:
            log.error("%s", sentence)
        print(f"kjko: {sentence}", file=sys.stderr, flush=True)
    if comm and not comm.all_leave():
        if not comm.is_root:  # which knows nothing of it
            print(f"kjko: rank {comm.rank}: {sentence}", file=sys.stderr, flush=True)
        comm.abort(code)
    return code


def _out_of_memory(error: BaseException) -> bool:
    """Whether numpy, torch on the CPU or torch on a GPU could not get what it asked for."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _kernels() -> str:
    """Which kernels are in use.

    Raises:
        UserError: KJKO_KERNELS asks for what is not there.
    """
    try:
        return describe()
    except (ValueError, ImportError) as failure:
        raise UserError(str(failure)) from None


# -- the verbs -------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, comm: Communicator) -> int:
    """Run a case from t = 0."""
    stop, case, folder = StopSignals(), None, None
    with comm.together():
        kernels = _kernels()
        if comm.is_root:
            case = config.load(options.case, options.set)
            folder = RunFolder(options.out or Path("runs") / options.case.stem)
            folder.require_free(force=options.force)
    case, folder = comm.bcast((case, folder))
    simulation = Simulation.start(case, comm)  # before anything is written: it may not fit the machine
    with comm.together():
        if comm.is_root:
            folder.create(case.toml())
            _log_to(folder)
    return _drive(simulation, folder, stop, kernels)


def restart(options: argparse.Namespace, comm: Communicator) -> int:
    """Continue a run from its newest sound checkpoint."""
    stop, folder = StopSignals(), RunFolder(options.folder)
    with comm.together():
        kernels = _kernels()
        folder.status()
        for text in options.set:
            section, _, key = text.partition("=")[0].strip().partition(".")
            if key not in CHANGEABLE.get(section, ()):
                allowed = ", ".join(f"{name}.{key}" for name, keys in CHANGEABLE.items() for key in sorted(keys))
                raise UserError(f"--set {text}: a restart continues a state, it may change only {allowed}")
        if comm.is_root:
            folder.claim()
            _log_to(folder)
    saved = checkpoint.load_latest(folder.checkpoints, comm)
    with comm.together():
        _require_its_own(folder, saved)
    case = config.from_table(config.override(config.parse(saved.header["case"]), options.set))
    if saved.header["step"] >= case.time.steps:
        reached = saved.header["time"]
        raise UserError(
            f"{folder.path}: has reached t = {reached:g}, and time.end = {case.time.end:g}: to go on, set it higher, "
            f"as in --set time.end={2 * max(reached, case.time.end):g}"
        )
    simulation = Simulation.resume(case, comm, saved)
    with comm.together():
        if comm.is_root:
            folder.write_case(case.toml())
    return _drive(simulation, folder, stop, kernels, resumed_at=saved.header["step"])


def _require_its_own(folder: RunFolder, saved: checkpoint.Checkpoint) -> None:
    """Check that a checkpoint is of the folder's case, but for what restarts may change."""
    step = f"the checkpoint of step {saved.header['step']}"
    try:
        tables = [config.parse(text) for text in (folder.case.read_text(encoding="utf-8"), saved.header["case"])]
    except ValueError as failure:
        raise UserError(f"{folder.case}: not a TOML file ({failure}): put back the case that the run wrote") from None
    ours, theirs = tables
    for section in sorted(ours.keys() | theirs.keys()):
        first, second = (table.get(section, {}) for table in tables)
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key) and key not in CHANGEABLE.get(section, ()):
                raise UserError(
                    f"{folder.case}: has {section}.{key} = {first.get(key)!r}, {step} was written with "
                    f"{second.get(key)!r}: put back the file that belongs to the other, or start a new run"
                )


def _drive(
    simulation: Simulation, folder: RunFolder, stop: StopSignals, kernels: str, resumed_at: int | None = None
) -> int:
    """Run a simulation to its end or to a stop, with log and progress."""
    comm, case = simulation.comm, simulation.case
    header = comm.bcast({**provenance(comm), "case": case.toml()} if comm.is_root else None)
    _log_start(simulation, folder, header, kernels)
    recorder = Recorder(folder, comm, header, resumed_at)
    progress = Progress(case.time.steps, resumed_at or 0, is_terminal(comm)) if comm.is_root else None
    with comm.together():
        _note(simulation, folder, header, "running")
    outcome = "failed"
    try:
        outcome = simulation.run(recorder, on_step=progress or (lambda row: None), stop=stop.requested)
    finally:  # nothing collective: this rank may be the only one that is here
        if progress:
            progress.close()
        recorder.close()
        _note(simulation, folder, header, outcome)
    stop.ignore()
    if comm.is_root:
        if outcome == "stopped":
            log.info(
                "stopped at t = %g with a checkpoint: 'kjko restart %s' continues",
                simulation.time,
                folder.path,
            )
        else:
            log.info("finished: %s", folder.path)
    comm.close()
    return DONE if outcome == "finished" else STOPPED


def analyze(options: argparse.Namespace, comm: Communicator) -> int:
    """Measure a run's particle snapshots: moments, marginals, histograms, distances from a known density."""
    folder = RunFolder(options.folder)
    with comm.together():
        folder.status()
        case = config.load(folder.case)
    header = comm.bcast({**provenance(comm), "case": case.toml()})
    for path in analyse(folder, case, comm, header):
        if comm.is_root:
            print(path)
    return DONE


def sweep(options: argparse.Namespace, comm: Communicator) -> int:
    """Run a case over a grid of its keys, or write a SLURM array job that does; a table of what came out."""
    if comm.size > 1:
        raise UserError("kjko sweep starts the ranks itself: call it without mpirun, with --ranks")
    if options.table:
        _show_sweep(Sweep.read(options.case), {})
        return DONE
    if not options.grid or options.out is None:
        raise UserError(
            "kjko sweep: needs --grid section.key=v1,v2 and --out DIR, or --table after the folder of a sweep"
        )
    swept = Sweep.plan(options.case, options.grid, options.out)
    if options.slurm:
        swept.write_slurm_script(options.slurm, options.ranks)
        swept.write()
        print(
            f"{len(swept.points)} runs. From the folder that holds jobs/, in which paths of the script are looked for:"
        )
        print(f"    sbatch {options.slurm}")
        print(f"    kjko sweep {options.out} --table     # what has come out so far")
        return DONE
    swept.write()
    outcomes = swept.run(options.ranks)
    _show_sweep(swept, outcomes)
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    if failed:
        print(f"kjko: {len(failed)} of {len(swept.points)} runs failed: {' '.join(failed)}", file=sys.stderr)
        return OURS
    if list(outcomes.values()).count("finished") < len(swept.points):
        print("kjko: stopped before the end of the sweep: the same command goes on with it", file=sys.stderr)
        return STOPPED
    return DONE


def _show_sweep(swept: Sweep, outcomes: dict[str, str]) -> None:
    """Print the table of a sweep without columns that are empty, and write all of it as CSV."""
    rows = swept.table(outcomes)
    keys = [key for key in swept.points[0].settings if len({row[key] for row in rows}) > 1]
    verdicts = list(summary.VERDICTS.values())
    numbers = ("energy", "field_energy", "potential_energy", "free_energy", "kl", "seconds")
    numbers = [name for name in numbers if any(row[name] for row in rows)]
    certified = any(row[verdicts[0]] is not None for row in rows)
    headings = [key.partition(".")[2] for key in keys] + ["status", *numbers] + ["certificates"] * certified
    table = rich.table.Table(title=rich.markup.escape(str(swept.folder)), box=rich.box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading.replace("_", "\n"), no_wrap=True, vertical="bottom")
    for row in rows:
        cells = [rich.markup.escape(row[key]) for key in keys] + [row["status"]]
        cells += ["-" if row[name] is None else f"{row[name]:.4g}" for name in numbers]
        cells += ["/".join("-" if row[name] is None else str(row[name]) for name in verdicts)] * certified
        table.add_row(*cells)
    if certified:
        table.caption = f"certificates: {' / '.join(verdicts)}"
    show(table, whole=True)
    print(swept.write_table(rows))


@on_rank_0
def cases(options: argparse.Namespace) -> int:
    """List the built-in problems, methods, solvers and integrators."""
    for kind, problem in KINDS.items():
        show(f"[bold]{kind}[/]  {rich.markup.escape((problem.__doc__ or '').splitlines()[0])}")
        for name, value in config.from_table({"problem": {"kind": kind}}).problem.model_dump(mode="json").items():
            if name != "kind":
                show(f"    {name} = {value}")
    show(f"method.collision: {', '.join(METHODS)}    method.solver: {', '.join(SOLVERS)}")
    show(f"time.integrator: {', '.join(MAPS)}    method.order: 1, 2")
    return DONE


def doctor(options: argparse.Namespace, comm: Communicator) -> int:
    """Say what a run would use here, and try its collectives; exit 1 with advice if a run would fail."""
    import h5py
    import torch

    comm.select_device("auto")
    rows = {
        "hpc_kjko": f"{__version__}, {_kernels()}",
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
    problem = _try_collectives(comm)
    rows["collectives"] = problem or "allreduce and DistributedDataParallel work"
    if comm.is_root:
        table = rich.table.Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, value)
        show(table)
        if problem:
            print(f"kjko: a run would fail here: {problem}", file=sys.stderr)
    comm.close()
    return OURS if problem else DONE


def _try_collectives(comm: Communicator) -> str:
    """What is wrong with this job's collectives, or nothing."""
    import torch

    if comm.sum(np.array([1.0]))[0] != comm.size:
        return "an allreduce over the ranks gives a wrong sum: use the mpirun that belongs to this Python's MPI"
    try:
        control = ControlField(None, 1, 1, hidden=(), device=comm.device)
        objective = JKOObjective(control, collision_strength=1.0, temperature=1.0, logdet="linear")
        one = torch.ones(1, 1, device=comm.device)  # a particle of v = 1 at u = 0: the gradient in a constant u is 1
        distributed = comm.distribute(objective)
        distributed(1.0, torch.cat([one, one], dim=1), one, one[0]).backward()
        if control.layers[-1].bias.grad.item() != comm.size:
            return "gradients are not summed over the ranks: reinstall torch as constraints.txt pins it"
    except RuntimeError as failure:
        return f"torch.distributed does not start ({failure}): set GLOO_SOCKET_IFNAME to the network interface to use"
    return ""


# -- around a run ----------------------------------------------------------------------------------------------------


def _log_to(folder: RunFolder) -> None:
    with folder.writing():
        file = logging.FileHandler(folder.log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # errors end the command, which prints them
    log.setLevel(logging.INFO)
    log.handlers = [file, console]


def _log_start(simulation: Simulation, folder: RunFolder, header: dict[str, Any], kernels: str) -> None:
    case, comm = simulation.case, simulation.comm
    shares = [len(Shard.of(case.particles.count, rank, comm.size)) for rank in range(comm.size)]
    if not comm.is_root:
        return
    log.info(
        "%s: %s",
        "start" if simulation.step_index == 0 else f"restart at t = {simulation.time:g}",
        folder.path,
    )
    if comm.device.type == "cuda":
        kernels += f"; on the GPU {cuda.describe()}"
    log.info("hpc_kjko %s (%s), %s", header["version"], header["git"], kernels)
    log.info("%d rank(s) × %d thread(s) on %s, %s", comm.size, header["threads"], header["device"], header["mpi"])
    log.info("files: %s", ShardedFile.describe(comm))
    log.info("%d particles, %d to %d a rank", case.particles.count, min(shares), max(shares))
    if 0 in shares:
        log.warning("%d rank(s) have no particles: fewer ranks would do as well", shares.count(0))
    if case.particles.start == "quiet" and case.particles.count & (case.particles.count - 1):
        nearest = 2 ** round(float(np.log2(case.particles.count)))
        log.warning("a quiet start is quietest with a power of two: particles.count = %d would be one", nearest)


def _note(simulation: Simulation, folder: RunFolder, header: dict[str, Any], status: str) -> None:
    """Say in ``run.json`` how far the run is (rank 0)."""
    if simulation.comm.is_root:
        details = {name: value for name, value in header.items() if name not in ("case", "software")}
        now = {"step": simulation.step_index, "time": simulation.time, "memory": peak_memory()}
        folder.set_status(status, **now, **details)


# -- the command line ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number, 0 or more")
    return number


def _positive(text: str) -> float:
    if not _not_negative(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return float(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kjko", description="Deep kinetic JKO: kinetic Fokker-Planck equations by particles.")
    parser.add_argument("--version", action="version", version=f"kjko {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(command: Callable[[argparse.Namespace, Communicator], int]) -> argparse.ArgumentParser:
        text = (command.__doc__ or "").splitlines()[0]
        subparser = verbs.add_parser(command.__name__, help=text, description=text)
        subparser.set_defaults(command=command)
        return subparser

    change = {
        "action": "append",
        "default": [],
        "metavar": "section.key=value",
        "help": "change a key of the case",
    }
    starting = verb(run)
    starting.add_argument("case", type=Path, metavar="CASE.toml")
    starting.add_argument("--out", type=Path, metavar="DIR", help="run folder (default runs/CASE)")
    starting.add_argument("--set", **change)
    starting.add_argument("--force", action="store_true", help="overwrite the run that the folder holds")
    for command in (restart, series, analyze, plot, report, inspect, watch):
        on_folder = verb(command)
        on_folder.add_argument("folder", type=Path, metavar="DIR", help="run folder")
        if command is restart:
            on_folder.add_argument("--set", **change)
        if command is series:
            on_folder.add_argument("--csv", action="store_true", help="all rows, as CSV on standard output")
        if command is watch:
            on_folder.add_argument("--once", action="store_true", help="show it as it is now and end")
            seconds = {"type": _positive, "default": 2.0, "metavar": "S", "help": "seconds between looks (default 2)"}
            on_folder.add_argument("--interval", **seconds)
        if command is report:
            on_folder.add_argument("--out", type=Path, metavar="FILE", help="the page (default DIR/report.html)")
    comparing = verb(compare)
    comparing.add_argument("run", type=Path, metavar="A", help="run folder")
    comparing.add_argument("reference", metavar="B", help="run folder, CSV file with a column time, or 'grid'")
    comparing.add_argument(
        "--tolerance", type=_not_negative, metavar="X", help="largest relative L2 difference allowed"
    )
    column_help = "a column to compare, in place of energies, entropy and KL; may be given several times"
    comparing.add_argument("--column", action="append", default=[], metavar="NAME", help=column_help)
    comparing.add_argument("--out", type=Path, metavar="FILE.png", help="a figure with both")
    sweeping = verb(sweep)
    sweeping.add_argument(
        "case", type=Path, metavar="CASE.toml", help="the case, or with --table the folder of a sweep"
    )
    grid_help = "a key of the case and its values; given several times, all combinations"
    sweeping.add_argument("--grid", action="append", default=[], metavar="section.key=v1,v2", help=grid_help)
    sweeping.add_argument("--out", type=Path, metavar="DIR", help="a folder for the run folders")
    sweeping.add_argument("--ranks", type=_count, default=1, metavar="N", help="of each run (default 1)")
    sweeping.add_argument("--slurm", type=Path, metavar="SCRIPT", help="run nothing: write a SLURM array job")
    sweeping.add_argument("--table", action="store_true", help="run nothing: the table of what has come out so far")
    verb(cases)
    verb(doctor)
    return parser
