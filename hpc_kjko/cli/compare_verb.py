"""``kjko compare``: compare a run with another run, the grid solver or a table."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np

from hpc_kjko import casefile
from hpc_kjko.casefile import RunCase
from hpc_kjko.cli.opening import DIFFERENT, DONE, existing, plotting_module, rows_of
from hpc_kjko.errors import UserError
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series, read_series_and_units
from hpc_kjko.post import summary
from hpc_kjko.terminal import show_table

#: What the table calls a column whose name says something else: the column "entropy" is minus the physical entropy.
_WORDS = {"entropy": "entropy (∫ f log f)"}


def compare(options: argparse.Namespace) -> int:
    """Compare a run with another run, the grid solver or a CSV file. The exit code is 1 beyond the tolerance."""
    from hpc_kjko.post import differences

    if options.out and options.out.suffix not in (".png", ".pdf", ".svg", ".html"):
        raise UserError(
            f"--out {options.out}: the name of a figure must end in .png, .pdf or .svg, and that of a page in .html"
        )
    if options.out and options.out.suffix != ".html":
        plotting_module()
    folder = existing(options.run)
    ours, reference = rows_of(folder), differences.reference_of(folder, options.reference)
    meaningless = _meaningless(ours, folder)
    if options.reference != differences.GRID and Path(options.reference).is_dir():
        _say_other_case(folder, RunFolder(Path(options.reference)))
        meaningless |= _meaningless(reference, RunFolder(Path(options.reference)))
    found = differences.differences(ours, reference, options.column, meaningless)
    time = found[0].time
    title = f"{options.run} against {options.reference}, {len(time)} times from {time[0]:g} to {time[-1]:g}"
    numbers = ("relative L2", "largest difference", "at t", "last of A", "last of B")
    rows = []
    for one in found:
        name = _WORDS.get(one.column, one.column)
        last = (f"{values[-1]:.7g}" for values in (one.values, one.reference))
        rows.append([name, f"{one.relative_l2:.3g}", f"{one.largest:.3g}", f"{one.at:g}", *last])
    beyond = [
        number
        for number, one in enumerate(found)
        if options.tolerance is not None and not one.relative_l2 <= options.tolerance
    ]
    show_table(["column", *numbers], rows, title=title, marked=beyond)
    floors: dict[str, np.ndarray] = {}
    for path in (options.run, Path(options.reference)):
        if not (path / "case.toml").exists():
            continue
        status = RunFolder(path).status()
        if status["status"] != "finished":
            print(f"kjko: {path} is {status['status']}: its steps so far are compared", file=sys.stderr)
        columns = read_series(RunFolder(path).series)
        for name, floor in summary.noise_floors(status, columns).items():
            for one in (one for one in found if one.column == name):
                level = np.interp(one.time, columns["time"], floor)
                floors[name] = np.maximum(level, floors.get(name, level))
                times = int((np.minimum(one.values, one.reference) < summary.NOISY * level).sum())
                if times:
                    print(
                        f"kjko: {name} is mostly noise at {times} of {len(one.time)} times, so differences there are "
                        f"noise too: the {summary.NOISE_OF[name]} in {path} is about {level.max():.2g}; use "
                        "particles.control_variate = true or more particles",
                        file=sys.stderr,
                    )
    if options.out:
        _, known = read_series_and_units(folder.series)
        labels = (options.run.resolve().name, Path(options.reference).name)
        picture = differences.picture(found, known, labels, floors, RunCase(folder.case))
        if options.out.suffix == ".html":
            from hpc_kjko.post import page

            page.write_comparison(found, picture, options.out)
        else:
            from hpc_kjko.post import draw

            draw.save(picture, options.out)
        print(options.out)
    if beyond:
        what = ", ".join(f"{found[number].column} by {found[number].relative_l2:.3g}" for number in beyond)
        print(f"kjko: beyond the tolerance of {options.tolerance:g} in relative L2: {what}", file=sys.stderr)
        return DIFFERENT
    return DONE


def _meaningless(columns: summary.Columns, folder: RunFolder) -> set[str]:
    """The columns of a run that have no meaning for its case, such as KL without collisions."""
    with contextlib.suppress(UserError):  # a damaged case is not needed here
        return columns.keys() - summary.meaningful(columns, RunCase(folder.case)).keys()
    return set()


def _say_other_case(first: RunFolder, second: RunFolder) -> None:
    """Print the keys of the cases, and the user's own code, in which two runs differ. Seeds and output do not count."""
    aside = {("particles", "seed")}
    with contextlib.suppress(UserError):  # a damaged case is not needed here
        keys = casefile.differing(casefile.read(first.case), casefile.read(second.case))
        named = [f"{s}.{key}" for s, key in keys if s not in ("output", "run") and (s, key) not in aside]
        ours, theirs = (
            {str(path.relative_to(run.code)): path for path in sorted(run.code.rglob("*.py"))}
            for run in (first, second)
        )
        changed = {str(path.relative_to(second.code)) for path in first.changed_code(theirs)}
        named += [f"code/{name}" for name in sorted(changed | (ours.keys() ^ theirs.keys()))]
        if named:
            print(f"kjko: the runs differ in {', '.join(named)}", file=sys.stderr)
