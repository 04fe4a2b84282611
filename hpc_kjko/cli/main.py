"""The ``kjko`` command: its command line and its exit codes. Other modules carry out the verbs.

Exit codes: 0 success, 1 internal or numerical error or a full disk, 2 user mistake (the message is one sentence),
75 stopped with a checkpoint, 130 interrupted without a checkpoint, 128 + n ended by signal n before the first step.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hpc_kjko import __version__, usercode
from hpc_kjko.errors import (
    OutOfMemory,
    SolverFailure,
    UserError,
    did_you_mean,
    listed,
    misspelt,
    one_of,
    ran_out_of_memory,
)
from hpc_kjko.parallel.launcher import promised_ranks
from hpc_kjko.terminal import write_in_any_encoding

if TYPE_CHECKING:
    from hpc_kjko.parallel.comm import Communicator

log = logging.getLogger("hpc_kjko")

DONE, OURS, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Verb:
    """A verb of the command, such as ``run`` in ``kjko run``.

    Attributes:
        module: the module that contains a function with the name of the verb.
        ranks: whether every rank calls the function with its communicator. Otherwise only rank 0 calls it.
        text: its purpose, in one line.
        example: an example of a command line.
        page: the page of the documentation with more information.
    """

    module: str
    ranks: bool
    text: str
    example: str
    page: str


VERBS = {
    "run": Verb(
        "run_verbs",
        True,
        "Run a case from t = 0.",
        "mpirun -n 2 kjko run jobs/two_stream.toml --out runs/mine --set physics.collision_strength=0.005",
        "tutorials/two_stream.md",
    ),
    "restart": Verb(
        "run_verbs",
        True,
        "Continue a run from its newest undamaged checkpoint.",
        "mpirun -n 2 kjko restart runs/mine --set time.end=60.0",
        "howto/restart.md",
    ),
    "series": Verb(
        "file_verbs",
        False,
        "Show the time series of a run.",
        "kjko series runs/mine --csv > mine.csv",
        "howto/look_at_runs.md",
    ),
    "analyze": Verb(
        "run_verbs",
        True,
        "Measure the particle snapshots of a run: moments, marginals, histograms, distances from a known density.",
        "mpirun -n 2 kjko analyze runs/mine",
        "howto/analyze.md",
    ),
    "plot": Verb(
        "file_verbs",
        False,
        "Draw the figures of a run, or compare the runs of a sweep in figures.",
        "kjko plot runs/mine --column kl --from 0 --to 20 --format pdf --out figures",
        "howto/look_at_runs.md",
    ),
    "report": Verb(
        "file_verbs",
        False,
        "Write an HTML page about a run, or a page that compares several runs: one file that needs no network.",
        "kjko report runs/mine --out mine.html",
        "howto/report.md",
    ),
    "inspect": Verb(
        "inspect_verb",
        False,
        "Show what a run folder holds: status, rate of the wave, conserved quantities, certificates, warnings.",
        "kjko inspect runs/mine",
        "howto/look_at_runs.md",
    ),
    "watch": Verb(
        "file_verbs",
        False,
        "Follow a running job in the terminal, by reading its files, until the run has ended or Ctrl-C.",
        "kjko watch runs/mine --interval 5",
        "howto/look_at_runs.md",
    ),
    "compare": Verb(
        "compare_verb",
        False,
        "Compare a run with another run, the grid solver or a CSV file. If they differ by more than --tolerance, the "
        "exit code is 1.",
        "kjko compare runs/mine grid --out compared.png",
        "howto/compare.md",
    ),
    "sweep": Verb(
        "sweep_verb",
        False,
        "Run a case for all combinations of some values, or write a SLURM job array for that, and show the results.",
        "kjko sweep jobs/two_stream.toml --grid physics.collision_strength=0.01,0.1 --out runs/sweep",
        "howto/sweep.md",
    ),
    "units": Verb(
        "units_verb",
        False,
        "Convert the density, temperature and Coulomb logarithm of a plasma to normalised units, and back.",
        "kjko units --density 1e19 --temperature 1000 --magnetic-field 2.5",
        "reference/units.md",
    ),
    "cases": Verb(
        "file_verbs",
        False,
        "List the keys of a case with their defaults, and the built-in problems, methods, solvers and integrators.",
        "kjko cases",
        "reference/case_file.md",
    ),
    "doctor": Verb(
        "run_verbs",
        True,
        "Show which MPI, devices and kernels a run would use here, and test the communication between ranks. If a run "
        "would fail, the exit code is 1.",
        "mpirun -n 2 kjko doctor",
        "howto/batch_jobs.md",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a ``kjko`` command line and return its exit code. Under mpirun every rank calls it."""
    write_in_any_encoding()
    comm = options = None
    try:
        try:
            options = _parsed(sys.argv[1:] if arguments is None else arguments)
        except UserError:
            comm = _ranks(always=False)  # so that only one rank prints the message
            raise
        verb = VERBS[options.verb]
        comm = _ranks(always=options.verb in ("run", "restart", "doctor"))
        command = getattr(importlib.import_module(f"hpc_kjko.cli.{verb.module}"), options.verb)
        if verb.ranks:
            return _on_all(command, options, comm)
        if comm is None:
            return command(options)
        with comm.together():
            return command(options) if comm.is_root else DONE
    except UserError as mistake:
        return _leave(comm, OURS if options and options.verb == "doctor" else mistake.exit_code, str(mistake))
    except SolverFailure as failure:
        return _leave(comm, OURS, str(failure))
    except BrokenPipeError:  # the program that reads our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard buffered output
        return DONE
    except KeyboardInterrupt:  # in a run this is the second Ctrl-C; the first one ends the run after a step
        print("kjko: interrupted", file=sys.stderr)
        if comm:
            comm.abort(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        where = f"rank {comm.rank}: " if comm and comm.size > 1 else ""
        if ran_out_of_memory(error):
            advice = "not enough memory: use more nodes, or fewer ranks on each"  # the case is not known here
            print(f"kjko: {where}{error if isinstance(error, OutOfMemory) else advice}", file=sys.stderr)
        elif said := usercode.blame(error):  # for calls of the methods of a user's problem
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


def _ranks(always: bool) -> Communicator | None:
    """The ranks of this job; None if a single process only reads files.

    Such a process does not initialise MPI, because this takes time and may be forbidden on a login node.
    """
    if not always and promised_ranks() == 1:
        return None
    from hpc_kjko.parallel.comm import Communicator

    return Communicator.world()


def _on_all(command: Any, options: argparse.Namespace, comm: Communicator | None) -> int:
    """Call a verb on every rank."""
    if comm is None:
        from hpc_kjko.parallel.comm import Communicator

        comm = Communicator()
    if not comm.is_root:
        log.addHandler(logging.NullHandler())
    return command(options, comm)


def _leave(comm: Communicator | None, code: int, sentence: str) -> int:
    """End all ranks with the exit code ``code``, and print the message once."""
    if comm is None or comm.is_root:
        print(f"kjko: {sentence}", file=sys.stderr, flush=True)
    if comm and not comm.all_leave():
        if not comm.is_root:  # rank 0 does not know of the error
            print(f"kjko: rank {comm.rank}: {sentence}", file=sys.stderr, flush=True)
        comm.abort(code)
    return code


# -- the command line ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ").replace(": expected one argument", " needs a value")
        if (named := message.removeprefix("the following arguments are required: ")) != message:
            message = f"'{self.prog}' needs {named}"
        raise UserError(f"{message} (see '{self.prog} --help')")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            flag = "/".join(action.option_strings)
            raise UserError(f"{flag} {value}: it may be one of {', '.join(action.choices)}")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """The parsed command line. Messages that are not clear in argparse are replaced here."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            readable = argument.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{readable}: this argument is not UTF-8 text: rename the file or folder") from None
    commands = parser()
    (verbs,) = (action.choices for action in commands._actions if isinstance(action, argparse._SubParsersAction))
    if not arguments:
        raise UserError(
            "a VERB is missing: 'kjko run CASE.toml' runs a case, 'kjko cases' lists keys and built-in choices, "
            "'kjko --help' lists all verbs"
        )
    verb = arguments[0]
    if not verb.startswith("-") and verb not in verbs:
        raise UserError(f"{verb} is not a verb of kjko: {one_of(verb, verbs)}")
    options, unknown = commands.parse_known_args(arguments)
    if unknown:
        raise UserError(_not_understood(unknown[0], verb, verbs))
    return options


def _not_understood(argument: str, verb: str, verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """The message about an argument that a verb does not take."""
    if argument.startswith("-"):
        flag = argument.partition("=")[0]
        own = _flags(verbs[verb])
        others = [f"'kjko {other}'" for other in verbs if flag in _flags(verbs[other])]
        if meant := misspelt(flag, own):
            advice = did_you_mean(meant)
        elif others:
            advice = f"{listed(others, 'and')} {'has' if len(others) == 1 else 'have'} it"
        else:
            advice = f"it has {listed(own, 'and')}"
        return f"{flag} is not an option of 'kjko {verb}': {advice}"
    names = [str(action.metavar) for action in verbs[verb]._actions if not action.option_strings]
    if not names:
        return f"{argument} is one argument too many: 'kjko {verb}' takes no argument"
    advice = f"it takes {' and '.join(names)}"
    if not Path(argument).exists():
        advice += "; put quotes around a name with spaces"
    return f"{argument} is one argument too many for 'kjko {verb}': {advice}"


def _flags(verb: argparse.ArgumentParser) -> list[str]:
    """The options of a verb."""
    return [flag for action in verb._actions for flag in action.option_strings if flag.startswith("--")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be a number") from None


def _count(text: str) -> int:
    number = _number(text)
    if not (number >= 1 and number.is_integer()):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(number)


def _finite(text: str) -> float:
    number = _number(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return number


def _not_negative(text: str) -> float:
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number, 0 or more")
    return number


def _plane(text: str) -> tuple[str, str]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 2 or names[0] == names[1]:
        raise argparse.ArgumentTypeError(f"{text} must be two coordinates, as in --plane y,vz")
    return names[0], names[1]


def _positive(text: str) -> float:
    if not _not_negative(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return float(text)


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``kjko``, with all verbs."""
    commands = _Parser(
        prog="kjko",
        description="Simulate collisional plasmas with particles that carry log f.",
        epilog="'kjko VERB --help' shows the options of a verb, and an example. To begin, read "
        "docs/tutorials/two_stream.md.",
    )
    commands.add_argument("--version", action="version", version=f"kjko {__version__}")
    verbs = commands.add_subparsers(required=True, metavar="VERB", dest="verb")
    parsers = {
        name: verbs.add_parser(
            name,
            help=verb.text,
            description=verb.text,
            epilog=f"example:\n  {verb.example}\n\nmore: docs/{verb.page}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, verb in VERBS.items()
    }
    change: dict[str, Any] = {
        "action": "append",
        "default": [],
        "metavar": "section.key=value",
        "help": "change a key of the case",
    }
    starting = parsers["run"]
    starting.add_argument("case", type=Path, metavar="CASE.toml", help="the case file")
    starting.add_argument("--out", type=Path, metavar="DIR", help="run folder (default runs/CASE)")
    starting.add_argument("--set", **change)
    starting.add_argument("--force", action="store_true", help="overwrite the run that is in the run folder")
    dry_run_help = (
        "show the warnings of the run, linear theory of the wave, and the memory, time and disk space that the run "
        "would need, without running or writing anything"
    )
    starting.add_argument("--dry-run", action="store_true", help=dry_run_help)
    for name in ("restart", "series", "analyze", "plot", "inspect", "watch"):
        of_a_sweep = ", or the folder of a sweep" if name == "plot" else ""
        parsers[name].add_argument("folder", type=Path, metavar="DIR", help=f"run folder{of_a_sweep}")
    restart_help = "change a key of the case, such as time.end (docs/reference/output_and_run.md lists the keys)"
    parsers["restart"].add_argument("--set", **{**change, "help": restart_help})
    parsers["series"].add_argument("--csv", action="store_true", help="print all rows as CSV to standard output")
    grid = "compare also with the grid solver for the same case (1D1V; 1D2V and 1D3V with a bath)"
    parsers["analyze"].add_argument("--reference", choices=["grid"], help=grid)
    watching = parsers["watch"]
    watching.add_argument("--once", action="store_true", help="show the present state of the run, and end")
    interval = "seconds between updates (default 2)"
    watching.add_argument("--interval", type=_positive, default=2.0, metavar="S", help=interval)
    several = "run folder; for a page that compares runs, give several, or a folder that contains run folders (a sweep)"
    parsers["report"].add_argument("folder", type=Path, nargs="+", metavar="DIR", help=several)
    page_help = (
        "file name of the page (default DIR/report.html; for a folder with run folders DIR/index.html; for several "
        "runs comparison.html in the first DIR)"
    )
    parsers["report"].add_argument("--out", type=Path, metavar="FILE", help=page_help)
    plotting = parsers["plot"]
    column_help = "draw this column of the time series instead of all figures; may be given several times"
    plotting.add_argument("--column", action="append", default=[], metavar="NAME", help=column_help)
    plotting.add_argument(
        "--from", dest="first", type=_finite, default=-math.inf, metavar="T", help="show times from T on"
    )
    plotting.add_argument("--to", dest="last", type=_finite, default=math.inf, metavar="T", help="show times up to T")
    plotting.add_argument("--format", choices=["png", "pdf", "svg"], default="png", help="file format (default png)")
    plotting.add_argument("--log", action="store_true", help="logarithmic scales for f in phase space and in its cuts")
    at_help = (
        "position x of a cut f(v) through phase space; may be given several times (default: four positions, spread "
        "over the box or, without a box, over the particles)"
    )
    plotting.add_argument("--at", action="append", type=_finite, default=[], metavar="X", help=at_help)
    plane_help = "draw the density over two of x, y, z, vx, vy, vz instead of all figures; may be given several times"
    plotting.add_argument("--plane", action="append", type=_plane, default=[], metavar="A,B", help=plane_help)
    against_help = "draw f minus f of the run in the folder OTHER, instead of all figures"
    plotting.add_argument("--against", type=Path, metavar="OTHER", help=against_help)
    movie_help = "write animated GIFs of phase space (and of the density in 2D and 3D) instead of all figures"
    plotting.add_argument("--movie", action="store_true", help=movie_help)
    plotting.add_argument("--out", type=Path, metavar="FOLDER", help="folder for the files (default DIR/figures)")
    comparing = parsers["compare"]
    comparing.add_argument("run", type=Path, metavar="A", help="run folder")
    comparing.add_argument(
        "reference", metavar="B", help="run folder, CSV file with a column 'time', or 'grid' for the grid solver"
    )
    comparing.add_argument(
        "--tolerance", type=_not_negative, metavar="X", help="largest relative L2 difference allowed"
    )
    column_help = "a column to compare instead of energies, entropy and KL; may be given several times"
    comparing.add_argument("--column", action="append", default=[], metavar="NAME", help=column_help)
    comparing.add_argument(
        "--out", type=Path, metavar="FILE", help="write a figure of both (.png, .pdf, .svg), or a page (.html)"
    )
    sweeping = parsers["sweep"]
    sweeping.add_argument(
        "case", type=Path, metavar="CASE.toml", help="the case file; with --table, the folder of a sweep"
    )
    grid_help = "a key of the case and its values; may be given several times, for all combinations"
    sweeping.add_argument("--grid", action="append", default=[], metavar="section.key=v1,v2", help=grid_help)
    sweeping.add_argument("--set", **{**change, "help": "change a key of the case in all runs"})
    sweeping.add_argument("--out", type=Path, metavar="DIR", help="folder for the run folders (required to run)")
    sweeping.add_argument("--ranks", type=_count, default=1, metavar="N", help="ranks of each run (default 1)")
    sweeping.add_argument("--slurm", type=Path, metavar="SCRIPT", help="write a SLURM job array instead of running")
    sweeping.add_argument("--table", action="store_true", help="show the results so far instead of running")
    _add_plasma(parsers["units"])
    return commands


def _add_plasma(converting: argparse.ArgumentParser) -> None:
    """Add the options of ``kjko units``."""
    case_help = "a case to convert to SI units; its [physics.landau] may define the plasma"
    converting.add_argument("case", type=Path, nargs="?", metavar="CASE.toml", help=case_help)
    numbers = {
        "--density": ("N", "density of the reference species, in 1/m³"),
        "--temperature": ("T", "temperature of the reference species, in eV"),
        "--log-lambda": ("L", "Coulomb logarithm (default: NRL Plasma Formulary, for collisions within the species)"),
        "--collision-strength": ("C", "C = lnΛ/(8π N_D); use it instead of --density, which follows from it"),
        "--length": ("M", "a length to convert, in m"),
        "--time": ("S", "a time to convert, in s"),
        "--magnetic-field": ("B", "a magnetic field to convert, in T"),
    }
    for flag, (metavar, text) in numbers.items():
        converting.add_argument(flag, type=_positive, metavar=metavar, help=text)
    mass_help = "mass of the reference species, in electron masses (default 1: electrons)"
    converting.add_argument("--mass", type=_positive, default=1.0, metavar="M", help=mass_help)
    charge_help = "absolute charge of the reference species, in elementary charges (default 1)"
    converting.add_argument("--charge", type=_positive, default=1.0, metavar="Z", help=charge_help)
