"""The ``kjko`` command: its verbs, its log, its exit codes.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 ours, the numerics' or the disk's, 75 stopped with a
checkpoint, 130 interrupted without one, 128 + n ended by signal n before the first step.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rich.box
import rich.markup
import rich.table

from hpc_kjko import __version__, config, driver, native, summary, usercode
from hpc_kjko.analysis import analyse
from hpc_kjko.collisions import METHODS
from hpc_kjko.comm import Communicator
from hpc_kjko.compare import say_changed_code
from hpc_kjko.control import ControlField
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.file_verbs import compare, inspect, on_rank_0, plot, report, series, watch
from hpc_kjko.integrators import MAPS
from hpc_kjko.native import cuda
from hpc_kjko.objective import JKOObjective
from hpc_kjko.problems import KINDS
from hpc_kjko.runfolder import RunFolder, provenance
from hpc_kjko.simulation import Outcome
from hpc_kjko.solvers import SOLVERS
from hpc_kjko.storage import ShardedFile, hdf5_problem
from hpc_kjko.sweep import Sweep
from hpc_kjko.terminal import StopSignals, show

log = logging.getLogger("hpc_kjko")

DONE, OURS, MISTAKE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130


def main(arguments: list[str] | None = None) -> int:
    """Run a ``kjko`` command line and return its exit code. Under mpirun every rank calls it."""
    comm = options = None
    try:
        try:
            options = _parsed(sys.argv[1:] if arguments is None else arguments)
        finally:  # also to print a mistake once; who only reads files needs no MPI, which a login node may forbid
            alone = options and options.command not in (run, restart, doctor) and Communicator.promised() == 1
            comm = Communicator() if alone else Communicator.world()
        if not comm.is_root:
            log.addHandler(logging.NullHandler())
        return options.command(options, comm)
    except UserError as mistake:
        return _leave(comm, OURS if options and options.command is doctor else mistake.exit_code, str(mistake))
    except SolverFailure as failure:
        return _leave(comm, OURS, str(failure))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return DONE
    except KeyboardInterrupt:  # of a run the second one; the first ends it after the step
        print("kjko: interrupted", file=sys.stderr)
        if comm:
            comm.abort(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        where = f"rank {comm.rank}: " if comm and comm.size > 1 else ""
        if _out_of_memory(error):
            advice = "lower particles.count or grid.cells, or use more nodes"
            print(f"kjko: {where}not enough memory: {advice}", file=sys.stderr)
        elif said := usercode.blame(error):  # where only a problem's own methods are called from
            print(f"kjko: {where}{said}", file=sys.stderr)
            if comm:
                comm.abort(MISTAKE)
            return MISTAKE
        else:
            traceback.print_exc()
            print(f"kjko: {where}{type(error).__name__}: {error}", file=sys.stderr)
        if comm:
            comm.abort(OURS)  # the other ranks may be waiting for this one
        return OURS


def _leave(comm: Communicator | None, code: int, sentence: str) -> int:
    """End all ranks with ``code``, the sentence said once."""
    if comm is None or comm.is_root:
        print(f"kjko: {sentence}", file=sys.stderr, flush=True)
    if comm and not comm.all_leave():
        if not comm.is_root:  # which knows nothing of it
            print(f"kjko: rank {comm.rank}: {sentence}", file=sys.stderr, flush=True)
        comm.abort(code)
    return code


def _out_of_memory(error: BaseException) -> bool:
    """Whether numpy, torch on the CPU or torch on a GPU could not get what it asked for."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


# -- the verbs -------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, comm: Communicator) -> int:
    """Run a case from t = 0."""
    case = None
    with _stop_signals(comm) as stop:
        _log_to_console(comm)
        with comm.together():
            if comm.is_root:
                case = config.load(options.case, options.set)
        folder = RunFolder(options.out or Path("runs") / options.case.stem)
        return _over(driver.start(case, folder, comm, force=options.force, stop=stop), stop)


def restart(options: argparse.Namespace, comm: Communicator) -> int:
    """Continue a run from its newest sound checkpoint."""
    with _stop_signals(comm) as stop:
        _log_to_console(comm)
        return _over(driver.resume(RunFolder(options.folder), options.set, comm, stop=stop), stop)


@contextlib.contextmanager
def _stop_signals(comm: Communicator) -> Iterator[StopSignals]:
    """What signals do to a run, until it fails. Where all ranks hear of one, one of them says so."""
    stop = StopSignals("kjko: ended by" if comm.is_root else "")
    try:
        yield stop
    except BaseException:
        stop.restore()
        raise


def _log_to_console(comm: Communicator) -> None:
    if comm.is_root:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        console.addFilter(lambda record: record.levelno < logging.ERROR)  # errors end the command, which prints them
        log.handlers = [console]


def _over(outcome: Outcome, stop: StopSignals) -> int:
    stop.ignore()
    return DONE if outcome == "finished" else STOPPED


def analyze(options: argparse.Namespace, comm: Communicator) -> int:
    """Measure a run's particle snapshots: moments, marginals, histograms, distances from a known density."""
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
        swept.require_free(options.slurm)
        swept.write()
        swept.write_slurm_script(options.slurm, options.ranks)
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
    quantities = ("energy", "field_energy", "potential_energy", "free_energy", "kl", "seconds")
    numbers = [name for name in quantities if any(row[name] for row in rows)]
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
    if not native.available():
        advice.append("for native kernels, several times faster: install a C++ compiler, then hpc_kjko again")
    collectives, locks = _try_collectives(comm), hdf5_problem(Path.cwd())
    rows["collectives"] = collectives or "allreduce and DistributedDataParallel work"
    rows["file locks"] = locks or "HDF5 can write and lock files in this folder"
    problem = collectives or locks
    if comm.is_root:
        table = rich.table.Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, value)
        show(table)
        for sentence in advice:
            print(sentence)
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
        gradient = control.layers[-1].bias.grad
        if gradient is None or gradient.item() != comm.size:
            return "gradients are not summed over the ranks: reinstall torch as constraints.txt pins it"
    except RuntimeError as failure:
        return f"torch.distributed does not start ({failure}): set GLOO_SOCKET_IFNAME to the network interface to use"
    return ""


# -- the command line ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line, with what argparse has no good sentences for said here."""
    parser = _parser()
    (verbs,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if not arguments:
        raise UserError(
            "a VERB is missing: 'kjko run CASE.toml' runs a case, 'kjko cases' says what is built in, 'kjko --help' "
            "lists all verbs"
        )
    verb = arguments[0]
    if not verb.startswith("-") and verb not in verbs:
        raise UserError(f"{verb} is not a verb of kjko: {_nearest(verb, list(verbs))}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in verbs[verb]._actions for flag in action.option_strings if flag.startswith("--")]
        advice = _nearest(unknown[0], flags) if unknown[0].startswith("-") else "quote a name with spaces in it"
        raise UserError(f"{unknown[0]} is one argument too many for 'kjko {verb}': {advice}")
    return options


def _nearest(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {near[0]}?" if near else f"it may be one of {', '.join(known)}"


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

    change: dict[str, Any] = {
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
        if command is analyze:
            grid = "measure against the grid solver on the same case, too (1D1V)"
            on_folder.add_argument("--reference", choices=["grid"], help=grid)
        if command is watch:
            on_folder.add_argument("--once", action="store_true", help="show it as it is now and end")
            interval = "seconds between looks (default 2)"
            on_folder.add_argument("--interval", type=_positive, default=2.0, metavar="S", help=interval)
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
