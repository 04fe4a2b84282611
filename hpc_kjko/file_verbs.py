"""The verbs of ``kjko`` that only read a run folder and print. Under mpirun rank 0 does, once."""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import rich.markup
import rich.table

from hpc_kjko import config, summary
from hpc_kjko.comm import Communicator
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.output import list_snapshots
from hpc_kjko.runfolder import RunFolder
from hpc_kjko.series import read_series
from hpc_kjko.storage import damage, unfinished, writing
from hpc_kjko.terminal import show
from hpc_kjko.watch import watch as follow

DONE, DIFFERENT = 0, 1


def on_rank_0(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace, Communicator], int]:
    """A command that reads files and prints: under mpirun once, not once a rank."""

    @functools.wraps(command)
    def on_root(options: argparse.Namespace, comm: Communicator) -> int:
        with comm.together():
            return command(options) if comm.is_root else DONE

    return on_root


@on_rank_0
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
    show(table)
    return DONE


@on_rank_0
def plot(options: argparse.Namespace) -> int:
    """Draw the figures of a run."""
    plotting, folder = _plotting(), _existing(options.folder)
    _rows(folder)
    with folder.writing():
        for path in plotting.plot_run(folder):
            print(path)
    return DONE


@on_rank_0
def inspect(options: argparse.Namespace) -> int:
    """Say what a run folder holds."""
    folder = _existing(options.folder)
    status, damaged = folder.status(), []
    case: config.Case | None = None
    columns: dict[str, np.ndarray] = {}
    try:
        case = config.load(folder.case, of_a_run=True)
    except UserError as failure:
        damaged.append(str(failure))
    try:
        columns = _rows(folder)
    except DamagedFile as failure:
        damaged.append(str(failure))
    files = [path for kind in (folder.checkpoints, folder.snapshots) for path in sorted(kind.glob("*.h5"))]
    damaged += [f"{path.relative_to(folder.path)}: {what}" for path in files if (what := damage(path))]
    rows: dict[str, str] = {
        "status": f"gone: {folder.what_now()}" if status["status"] == "gone" else status["status"],
        **({"damaged files": "\n".join(damaged)} if damaged else {}),
        **(_about_case(case) if case else {}),
        **(_about_series(columns, case) if columns else {}),
        "snapshots": f"{len(list_snapshots(folder.snapshots))}",
        "checkpoints": ", ".join(sorted(path.name for path in folder.checkpoints.glob("step*.h5"))) or "none",
        **(summary.memory(status, case.particles.count) if case else {}),
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
    table = rich.table.Table(show_header=False, title=rich.markup.escape(str(folder.path)))
    for name, value in rows.items():
        table.add_row(name, rich.markup.escape(value))
    show(table)
    return DONE


def _about_case(case: config.Case) -> dict[str, str]:
    return {
        "case": f"{case.problem.kind}, {case.problem.space_dims}D{case.problem.velocity_dims}V, κ = "
        f"{case.physics.collision_strength:g}, {case.particles.count} particles, {case.method.collision}",
    }


def _about_series(columns: dict[str, np.ndarray], case: config.Case | None) -> dict[str, str]:
    """What the time series of a run comes to; ``case`` is None if it cannot be read."""
    energy = summary.total_energy(columns)
    planned = f" of {case.time.end:g} in steps of {case.time.step:g}" if case else ""
    missing = summary.missing_steps(columns)
    return {
        "time": f"{columns['time'][-1]:g}{planned}",
        **({"rows missing in series.h5": f"steps {missing}"} if missing else {}),
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
        **(_certificates(case, columns) if case else {}),
        "smallest eigenvalue of I + h ∇v u": f"{columns['min_eigenvalue'].min():.4g}",
    }


def _balance(columns: dict[str, np.ndarray], energy: np.ndarray) -> dict[str, str]:
    """What of the change of energy no collision accounts for."""
    if "collision_energy_total" not in columns:
        return {}
    unexplained = energy - energy[0] - columns["collision_energy_total"]
    return {"energy change not from collisions": f"{np.abs(unexplained).max():.2e}"}


def _certificates(case: config.Case, columns: dict[str, np.ndarray]) -> dict[str, str]:
    """The tally of a run's certificates."""
    fall = summary.fall(columns)
    if fall is None:
        return {}
    return {
        f"fall of {summary.certified_quantity(case)} in collisions": summary.tally_text(columns),
        "its sum, on particles never fitted": fall,
    }


@on_rank_0
def report(options: argparse.Namespace) -> int:
    """Write a page about a run: one HTML file that needs nothing else."""
    _plotting()
    from hpc_kjko.report import write_report

    print(write_report(_existing(options.folder), options.out))
    return DONE


@on_rank_0
def compare(options: argparse.Namespace) -> int:
    """Compare a run with another one, with the grid solver or with a CSV file; exit 1 beyond the tolerance."""
    from hpc_kjko import compare  # torch and scipy, which the other verbs can do without

    plotting = _plotting() if options.out else None
    if options.out and options.out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {options.out}: the name of a figure ends in .png, .pdf or .svg")
    folder = _existing(options.run)
    found = compare.differences(_rows(folder), compare.reference_of(folder, options.reference), options.column)
    time = found[0].time
    title = f"{options.run} against {options.reference}, {len(time)} times from {time[0]:g} to {time[-1]:g}"
    numbers = ("relative L2", "largest difference", "at t", "last of A", "last of B")
    table = rich.table.Table(rich.table.Column("column", no_wrap=True), *numbers, title=rich.markup.escape(title))
    beyond = []
    for one in found:
        is_beyond = options.tolerance is not None and not one.relative_l2 <= options.tolerance
        beyond += [one] * is_beyond
        last = (f"{values[-1]:.7g}" for values in (one.values, one.reference))
        cells = (f"{one.relative_l2:.3g}", f"{one.largest:.3g}", f"{one.at:g}", *last)
        table.add_row(one.column, *cells, style="bold red" if is_beyond else None)
    show(table)
    for path in (options.run, Path(options.reference)):
        if (path / "case.toml").exists() and (status := RunFolder(path).status()["status"]) != "finished":
            print(f"kjko: {path} is {status}: compared as far as it has come", file=sys.stderr)
    if plotting:
        curves = {one.column: (one.time, one.values, one.reference) for one in found}
        with writing(options.out):
            plotting.comparison(curves, (options.run.name, Path(options.reference).name)).savefig(options.out)
        print(options.out)
    if beyond:
        what = ", ".join(f"{one.column} by {one.relative_l2:.3g}" for one in beyond)
        print(f"kjko: beyond the tolerance of {options.tolerance:g} in relative L2: {what}", file=sys.stderr)
        return DIFFERENT
    return DONE


@on_rank_0
def watch(options: argparse.Namespace) -> int:
    """Follow a running job in the terminal, from its files; ends with the run, or at Ctrl-C."""
    follow(options.folder, once=options.once, interval=options.interval)
    return DONE


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


def _plotting() -> ModuleType:
    try:
        from hpc_kjko import plotting
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'hpc_kjko[plot]'") from None
    return plotting
