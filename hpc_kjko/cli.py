"""The ``kjko`` command: its verbs, its log, its exit codes. With ``terminal`` the only place that prints.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 ours or the numerics', 75 stopped with a checkpoint, 130
interrupted without one.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rich.console
import rich.markup
import rich.table

from hpc_kjko import __version__, config, driver, native
from hpc_kjko.analysis import analyse
from hpc_kjko.collisions import METHODS
from hpc_kjko.comm import Communicator
from hpc_kjko.control import ControlField
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.integrators import MAPS
from hpc_kjko.native import cuda
from hpc_kjko.objective import JKOObjective
from hpc_kjko.output import list_snapshots
from hpc_kjko.problems import KINDS
from hpc_kjko.runfolder import RunFolder, provenance
from hpc_kjko.series import read_series
from hpc_kjko.simulation import Outcome
from hpc_kjko.solvers import SOLVERS
from hpc_kjko.storage import ShardedFile, unfinished
from hpc_kjko.terminal import StopSignals

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
        return _leave(comm, OURS if options and options.command is doctor else MISTAKE, str(mistake))
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


def _on_rank_0(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace, Communicator], int]:
    """A command that reads files and prints: under mpirun once, not once a rank."""

    @functools.wraps(command)
    def on_rank_0(options: argparse.Namespace, comm: Communicator) -> int:
        with comm.together():
            return command(options) if comm.is_root else DONE

    return on_rank_0


# -- the verbs -------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, comm: Communicator) -> int:
    """Run a case from t = 0."""
    stop, case = StopSignals(), None
    _log_to_console(comm)
    with comm.together():
        if comm.is_root:
            case = config.load(options.case, options.set)
    folder = RunFolder(options.out or Path("runs") / options.case.stem)
    return _over(driver.start(case, folder, comm, force=options.force, stop=stop.requested), stop)


def restart(options: argparse.Namespace, comm: Communicator) -> int:
    """Continue a run from its newest sound checkpoint."""
    stop = StopSignals()
    _log_to_console(comm)
    return _over(driver.resume(RunFolder(options.folder), options.set, comm, stop=stop.requested), stop)


def _log_to_console(comm: Communicator) -> None:
    if comm.is_root:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        console.addFilter(lambda record: record.levelno < logging.ERROR)  # errors end the command, which prints them
        log.handlers = [console]


def _over(outcome: Outcome, stop: StopSignals) -> int:
    stop.ignore()
    return DONE if outcome == "finished" else STOPPED


@_on_rank_0
def series(options: argparse.Namespace) -> int:
    """Show the time series of a run."""
    columns = _rows(_existing(options.folder))
    if options.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        return DONE
    table = rich.table.Table(rich.table.Column("column", no_wrap=True), "first", "last", "smallest", "largest")
    for name, values in columns.items():
        table.add_row(name, *(f"{value:.7g}" for value in (values[0], values[-1], values.min(), values.max())))
    _show(table)
    return DONE


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


@_on_rank_0
def plot(options: argparse.Namespace) -> int:
    """Draw the figures of a run."""
    try:
        from hpc_kjko import plotting
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'hpc_kjko[plot]'") from None
    folder = _existing(options.folder)
    _rows(folder)
    with folder.writing():
        paths = plotting.plot_run(folder)
    for path in paths:
        print(path)
    return DONE


@_on_rank_0
def inspect(options: argparse.Namespace) -> int:
    """Say what a run folder holds."""
    folder = _existing(options.folder)
    status, case = folder.status(), config.load(folder.case, of_a_run=True)
    columns = _rows(folder)
    energy = columns["kinetic_energy"] + columns["field_energy"] + columns["potential_energy"]
    rows: dict[str, str] = {
        "status": status["status"],
        "case": f"{case.problem.kind}, {case.problem.space_dims}D{case.problem.velocity_dims}V, κ = "
        f"{case.physics.collision_strength:g}, {case.particles.count} particles, {case.method.collision}",
        "time": f"{columns['time'][-1]:g} of {case.time.end:g} in steps of {case.time.step:g}",
        "seconds per step": f"{np.median(columns['seconds'][1:]):.3g}" if len(energy) > 1 else "-",
        "mass, largest change": f"{np.abs(columns['mass'] - columns['mass'][0]).max():.2e}",
        "energy, first and last": f"{energy[0]:.8g}, {energy[-1]:.8g}",
        **_balance(columns, energy),
        **{
            f"{label}, first and last": f"{columns[name][0]:.8g}, {columns[name][-1]:.8g}"
            for label, name in (("free energy", "free_energy"), ("KL to equilibrium", "kl"))
            if name in columns
        },
        "steps split, fits repeated": f"{int((columns['substeps'] > 1).sum())}, {int(sum(columns.get('retries', [])))}",
        **_certificates(columns),
        "smallest eigenvalue of I + h ∇v u": f"{columns['min_eigenvalue'].min():.4g}",
        "snapshots": f"{len(list_snapshots(folder.snapshots))}",
        "checkpoints": ", ".join(sorted(path.name for path in folder.checkpoints.glob("step*.h5"))) or "none",
        **_memory(status, case.particles.count),
        "incomplete files": ", ".join(
            str(path.relative_to(folder.path))
            for path in (*unfinished(folder.checkpoints), *unfinished(folder.snapshots))
        )
        or "none",
        **{
            name: str(status[name])
            for name in ("version", "git", "ranks", "threads", "device", "mpi", "date")
            if name in status
        },
    }
    table = rich.table.Table(show_header=False, title=str(folder.path))
    for name, value in rows.items():
        table.add_row(name, value)
    _show(table)
    return DONE


def _balance(columns: dict[str, np.ndarray], energy: np.ndarray) -> dict[str, str]:
    """What of the change of energy no collision accounts for."""
    if "collision_energy_total" not in columns:
        return {}
    unexplained = energy - energy[0] - columns["collision_energy_total"]
    return {"energy change not from collisions": f"{np.abs(unexplained).max():.2e}"}


def _memory(status: dict[str, Any], particles: int) -> dict[str, str]:
    """What a rank took at most, the interpreter and its libraries included."""
    if "memory" not in status:
        return {}
    ranks = status.get("ranks", 1)
    per_particle = status["memory"] * ranks / particles
    return {
        "memory of rank 0": f"{status['memory'] / 1e9:.2f} GB",
        "memory of all ranks": f"{per_particle:.0f} bytes a particle",
    }


def _certificates(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """The tally of a run's certificates."""
    if "certificate" not in columns:
        return {}
    verdicts = columns["certificate"][1:]
    tally = ", ".join(
        f"{int((verdicts == verdict).sum())} {name}"
        for verdict, name in ((1, "certified"), (0, "inconclusive"), (-1, "violated"))
    )
    change, error = (columns[f"collision_free_energy_total{suffix}"][-1] for suffix in ("", "_error"))
    return {
        "fall of the free energy in collisions": tally,
        "its sum, on particles never fitted": f"{change:.6g} ± {error:.2g} at most",
    }


@_on_rank_0
def cases(options: argparse.Namespace) -> int:
    """List the built-in problems, methods, solvers and integrators."""
    for kind, problem in KINDS.items():
        _show(f"[bold]{kind}[/]  {rich.markup.escape((problem.__doc__ or '').splitlines()[0])}")
        for name, value in config.from_table({"problem": {"kind": kind}}).problem.model_dump(mode="json").items():
            if name != "kind":
                _show(f"    {name} = {value}")
    _show(f"method.collision: {', '.join(METHODS)}    method.solver: {', '.join(SOLVERS)}")
    _show(f"time.integrator: {', '.join(MAPS)}    method.order: 1, 2")
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
    problem = _try_collectives(comm)
    rows["collectives"] = problem or "allreduce and DistributedDataParallel work"
    if comm.is_root:
        table = rich.table.Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, value)
        _show(table)
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


def _show(renderable: Any) -> None:
    """Print a table or marked-up text; by print(), because rich turns a closed pipe into an error exit."""
    console = rich.console.Console(highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    print(capture.get(), end="")


def _rows(folder: RunFolder) -> dict[str, np.ndarray]:
    """The time series of a folder, of one row at least."""
    columns = read_series(folder.series)
    if not len(columns["step"]):
        raise UserError(f"{folder.series}: has no rows yet: wait for the first step of the run")
    return columns


def _existing(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.status()
    return folder


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
    for command in (restart, series, analyze, plot, inspect):
        on_folder = verb(command)
        on_folder.add_argument("folder", type=Path, metavar="DIR", help="run folder")
        if command is restart:
            on_folder.add_argument("--set", **change)
        if command is series:
            on_folder.add_argument("--csv", action="store_true", help="all rows, as CSV on standard output")
    verb(cases)
    verb(doctor)
    return parser
