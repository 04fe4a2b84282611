"""``kjko inspect``: show the contents of a run folder in a table."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.cli.opening import DONE, existing, rows_of
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.storage import damage, unfinished
from hpc_kjko.files.wavetheory import WaveTheory, read_theory
from hpc_kjko.post import rates, summary
from hpc_kjko.post.figures import waves
from hpc_kjko.running.clock import in_words
from hpc_kjko.terminal import duration, show_pairs, width, wrapped


def inspect(options: argparse.Namespace) -> int:
    """Show the contents of a run folder."""
    folder = existing(options.folder)
    status, damaged = folder.status(), []
    case: RunCase | None = None
    columns: summary.Columns = {}
    theory: WaveTheory | None = None
    try:
        case = RunCase(folder.case)
    except UserError as failure:
        damaged.append(str(failure))
    try:
        columns, theory = rows_of(folder), read_theory(folder.series)
    except DamagedFile as failure:
        damaged.append(str(failure))
    if case:
        columns = summary.meaningful(columns, case)
    files = [path for kind in (folder.checkpoints, folder.snapshots) for path in sorted(kind.glob("*.h5"))]
    damaged += [f"{path.relative_to(folder.path)}: {what}" for path in files if (what := damage(path))]
    rows: dict[str, str] = {
        "status": f"gone: {folder.what_now()}" if status["status"] == "gone" else status["status"],
        **({"damaged files": "\n".join(damaged)} if damaged else {}),
        **(_about_case(case) if case else {}),
        **(_about_series(columns, case) if columns else {}),
        **_times(status, columns),
        **(_wave(columns, theory, status, case) if columns else {}),
        **(_collisions(columns, case) if columns else {}),
        "snapshots": f"{len(list_snapshots(folder.snapshots))}",
        "checkpoints": ", ".join(sorted(path.name for path in folder.checkpoints.glob("step*.h5"))) or "none",
        **(summary.memory(status, case.particle_count) if case else {}),
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
    show_pairs(rows, title=str(folder.path))
    inconclusive = (summary.tally(columns) or {}).get("inconclusive")
    if case and inconclusive and columns["collision_free_energy_total_error"][-1] > 0:
        meaning = summary.verdict_meanings(summary.certified_quantity(case))["inconclusive"]
        print("\n".join(wrapped(f"inconclusive: {meaning}.", width())))
    for sentence in summary.remarks(status, columns):
        print("\n".join(wrapped(f"warning: {sentence}", width())))
    return DONE


def _about_case(case: RunCase) -> dict[str, str]:
    of = f" ({', '.join(case.species)})" if case.species else ""
    return {
        "case": f"{case.word('problem.kind')}, {case.dims}, {case.strength_words}, "
        f"{case.particle_count} particles{of}, "
        + (case.collision_method if case.collision_strength else "no collisions"),
    }


def _about_series(columns: summary.Columns, case: RunCase | None) -> dict[str, str]:
    """The progress of a run and its conserved quantities. ``case`` is None if the case cannot be read."""
    energy, error, mass = summary.total_energy(columns), summary.EnergyError.of(columns), columns["mass"]
    planned = f" of {case.number('time.end'):g} in steps of {case.number('time.step'):g}" if case else ""
    missing = summary.missing_steps(columns)
    return {
        "time": f"{columns['time'][-1]:g}{planned}",
        **({"rows missing in series.h5": f"steps {missing}"} if missing else {}),
        "mass, largest change": f"{np.abs(mass / mass[0] - 1).max():.1e} of the mass at t = 0, {mass[0]:.4g}",
        "energy, first and last": f"{energy[0]:.8g}, {energy[-1]:.8g}",
        "error of the energy": f"{error.largest:.1e} {error.words}",
    }


def _times(status: dict[str, Any], columns: summary.Columns) -> dict[str, str]:
    """The wall-clock time of the run with its parts, and that of a step."""
    found = {}
    if "seconds" in status:
        so_far = " so far" if status["status"] == "running" else ""
        found["wall-clock time"] = in_words(status["seconds"], status.get("restarts", 0), so_far)
    if len(columns.get("seconds", ())) > 1:
        of = "push, field and collisions" if "seconds_collide" in columns else "push and field"
        found["median time of a step"] = f"{duration(np.median(columns['seconds'][1:]))} ({of})"
    return found


def _collisions(columns: summary.Columns, case: RunCase | None) -> dict[str, str]:
    """The effect of collisions, and checks of the collision steps; empty without collisions."""
    return {
        **{
            f"{label}, first and last": f"{columns[name][0]:.8g}, {columns[name][-1]:.8g}"
            for label, name in (("free energy", "free_energy"), ("KL to equilibrium", "kl"))
            if name in columns
        },
        **_of_the_map(columns),
        **(_certificates(case, columns) if case else {}),
    }


def _wave(
    columns: summary.Columns, theory: WaveTheory | None, status: dict[str, Any], case: RunCase | None
) -> dict[str, str]:
    """The measured rate of the wave, or why there is none, and the theoretical one; empty without a field."""
    found = rates.measured(columns, theory, status)
    if found is None:
        return {}
    said = found.text
    if found.rate and found.why_not:
        said += f". A line through the whole series would have {found.rate.text()}"
    elif found.rate:
        first, last = found.rate.window
        said = f"{found.rate.text(found.expected)} (t = {first:.3g} to {last:.3g})"
        said += f"; it {found.difference}" if found.difference else ""
    coarse = waves.sampling_remark(case, theory) if case else ""
    return {
        "rate of the wave, in ω_p": said,
        **({"frequency of the wave, in ω_p": found.frequency_text} if found.frequency_text else {}),
        "theory of the wave": found.remark.removeprefix("Theory: ").removesuffix("."),
        **({"figure of ω and k": coarse.removesuffix(".")} if coarse else {}),
    }


def _of_the_map(columns: summary.Columns) -> dict[str, str]:
    """Numbers that show whether the map of the control field was invertible; empty if there is no control field."""
    if "min_eigenvalue" not in columns:
        return {}
    return {
        "steps split, fits repeated": f"{int((columns['substeps'] > 1).sum())}, {int(columns['retries'].sum())}",
        "smallest eigenvalue of I + h ∇v u": f"{columns['min_eigenvalue'].min():.4g}",
    }


def _certificates(case: RunCase, columns: summary.Columns) -> dict[str, str]:
    """The numbers of certified, inconclusive and violated steps."""
    fall = summary.fall(columns)
    if fall is None:
        return {}
    return {
        f"steps in which {summary.certified_quantity(case)} fell": summary.tally_text(columns),
        "change in all collisions": f"{fall} (of particles that are held out of the fit)",
    }
