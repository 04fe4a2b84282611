"""``kjko sweep``: run a case for all combinations of some values."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hpc_kjko.cli.opening import DONE, FAILED, STOPPED
from hpc_kjko.errors import UserError
from hpc_kjko.parallel.launcher import promised_ranks
from hpc_kjko.post import summary
from hpc_kjko.terminal import show_table, width, wrapped

if TYPE_CHECKING:
    from hpc_kjko.post.sweep import Sweep


def sweep(options: argparse.Namespace) -> int:
    """Run a case for all combinations of some values, or write a SLURM job array for that, and print a table."""
    from hpc_kjko.post.sweep import Sweep

    if promised_ranks() > 1:
        raise UserError("kjko sweep starts the ranks itself: call it without mpirun, with --ranks")
    if options.table:
        _show_sweep(Sweep.read(options.case), {})
        return DONE
    if not options.grid or options.out is None:
        raise UserError(
            "kjko sweep: needs --grid section.key=v1,v2 and --out DIR, or --table after the folder of a sweep"
        )
    swept = Sweep.plan(options.case, options.grid, options.out, options.set)
    if options.slurm:
        swept.require_free(options.slurm)
        swept.write()
        swept.write_slurm_script(options.slurm, options.ranks)
        print(
            f"{len(swept.points)} runs. Submit them from the folder that contains jobs/. Paths in the script are "
            "relative to this folder:"
        )
        print(f"    sbatch {options.slurm}")
        print(f"    kjko sweep {options.out} --table     # shows the results so far")
        return DONE
    from hpc_kjko.post import overview

    swept.write()
    outcomes = swept.run(options.ranks)
    _show_sweep(swept, outcomes)
    if overview.holds_runs(swept.folder):
        print(overview.write_overview([swept.folder], swept.folder / overview.INDEX))
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    if failed:
        print(f"kjko: {len(failed)} of {len(swept.points)} runs failed: {' '.join(failed)}", file=sys.stderr)
        return FAILED
    if list(outcomes.values()).count("finished") < len(swept.points):
        print("kjko: stopped before the end of the sweep: the same command continues it", file=sys.stderr)
        return STOPPED
    return DONE


def _show_sweep(swept: Sweep, outcomes: dict[str, str]) -> None:
    """Print the table of a sweep without empty columns, and write the complete table as CSV."""
    rows = swept.table(outcomes)
    keys = [key for key in swept.points[0].settings if len({row[key] for row in rows}) > 1]
    verdicts = list(summary.VERDICTS.values())
    quantities = ("energy", "field_energy", "potential_energy", "free_energy", "kl", "seconds")
    numbers = [name for name in quantities if any(row[name] for row in rows)]
    certified = any(row[verdicts[0]] is not None for row in rows)
    waves = any(row["rate_note"] is not None for row in rows)
    headings = [key.partition(".")[2] for key in keys] + ["status", *numbers]
    headings += ["γ of_the wave", "γ of_theory"] * waves + ["certificates"] * certified
    lines, notes = [], list[str]()
    for row in rows:
        cells = [row[key] for key in keys] + [row["status"]]
        cells += ["-" if row[name] is None else f"{row[name]:.4g}" for name in numbers]
        if waves:
            cells += _rate(row, notes)
        cells += ["/".join("-" if row[name] is None else str(row[name]) for name in verdicts)] * certified
        lines.append(cells)
    title = str(swept.folder)
    if certified:
        title += f" (certificates: {' / '.join(verdicts)})"
    show_table([heading.replace("_", "\n") for heading in headings], lines, title=title, labels=max(1, len(keys)))
    for number, note in enumerate(notes, 1):
        print("\n".join(wrapped(f"[{number}] {note}", width())))
    print(swept.write_table(rows))


def _rate(row: dict[str, Any], notes: list[str]) -> list[str]:
    """The rate of the wave of a run with its error, and that of theory. A note below the table gets a number."""
    if row["rate_note"] is None:
        return ["-", "-"]
    digits = f"{row['rate']:.3g} ± {row['rate_error']:.1g}" if row["rate"] is not None else "none"
    if note := row["rate_note"]:
        if note not in notes:
            notes.append(note)
        digits += f" [{notes.index(note) + 1}]"
    theory = "-" if row["rate_of_theory"] is None else f"{row['rate_of_theory']:.3g}"
    return [digits.replace("-", "−"), theory.replace("-", "−") if theory != "-" else theory]
