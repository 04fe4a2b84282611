"""The verbs of ``kjko`` that read files and print. Under mpirun only rank 0 runs them.

They start quickly: neither this module nor the modules of the other verbs that read files import torch, MPI or the
models of a case before a verb needs them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from importlib import resources
from types import ModuleType

from hpc_kjko.cli.opening import DONE, any_backend, existing, plotting_module, rows_of
from hpc_kjko.errors import UserError
from hpc_kjko.terminal import show_table, width, wrapped


def series(options: argparse.Namespace) -> int:
    """Show the time series of a run."""
    columns = rows_of(existing(options.folder))
    if options.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        return DONE
    rows = [
        [name, *(f"{value:.7g}" for value in (values[0], values[-1], values.min(), values.max()))]
        for name, values in columns.items()
    ]
    show_table(["column", "first", "last", "smallest", "largest"], rows)
    return DONE


def plot(options: argparse.Namespace) -> int:
    """Draw the figures of a run, or figures that compare the runs of a sweep."""
    if not options.first <= options.last:
        raise UserError(f"--from {options.first:g} --to {options.last:g}: the first time must not be after the last")
    plotting, window = plotting_module(), (options.first, options.last)
    if (options.folder / "sweep.json").exists():
        return _plot_sweep(options, plotting, window)
    folder = existing(options.folder)
    rows_of(folder)
    wanted = {"columns": options.column, "window": window, "file_format": options.format}
    wanted |= {"log": options.log, "places": options.at, "planes": options.plane, "movie": options.movie}
    wanted |= {"against": existing(options.against) if options.against else None}
    for path in plotting.plot_run(folder, **wanted, out=options.out):
        print(path)
    return DONE


def _plot_sweep(options: argparse.Namespace, plotting: ModuleType, window: tuple[float, float]) -> int:
    """Draw figures that compare the runs of a sweep."""
    from hpc_kjko.post import overview

    for flag in ("log", "at", "plane", "movie", "against"):
        if getattr(options, flag):
            raise UserError(f"--{flag}: this option needs one run: give the folder of one run of this sweep")
    runs, unreadable = overview.runs_in([options.folder])
    for sentence in unreadable:
        print(f"kjko: {sentence}", file=sys.stderr)
    pictures = overview.pictures(runs, options.column, window)
    out = options.out or options.folder / "figures"
    for path in plotting.save_all(pictures, out, options.format, options.folder.resolve().name, window):
        print(path)
    return DONE


def report(options: argparse.Namespace) -> int:
    """Write a page about one run, or a page that compares several runs: one self-contained HTML file."""
    from hpc_kjko.post import overview

    first = options.folder[0]
    if len(options.folder) == 1 and not overview.holds_runs(first):
        from hpc_kjko.post.report import write_report

        with any_backend():
            print(write_report(existing(first), options.out))
        return DONE
    name = overview.COMPARISON if len(options.folder) > 1 else overview.INDEX
    print(overview.write_overview(options.folder, options.out or first / name))
    return DONE


def watch(options: argparse.Namespace) -> int:
    """Follow a running job in the terminal by reading its files. It ends with the run or at Ctrl-C."""
    from hpc_kjko.post import watch

    watch.watch(options.folder, once=options.once, interval=options.interval)
    return DONE


def cases(options: argparse.Namespace) -> int:
    """List the keys of a case and the built-in choices, from a page that scripts/reference.py made from the models."""
    page = resources.files("hpc_kjko.post").joinpath("templates/cases.txt").read_text(encoding="utf-8")
    for line in page.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        for part in wrapped(line.strip(), width() - len(indent)) or [""]:
            print(f"{indent}{part}".rstrip())
    return DONE
