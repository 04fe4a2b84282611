"""``kjko inspect``: what a run folder holds, in a table."""

from __future__ import annotations

import argparse

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.cli.opening import DONE, existing, rows_of
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.storage import damage, unfinished
from hpc_kjko.files.wavetheory import WaveTheory, read_theory
from hpc_kjko.post import rates, summary
from hpc_kjko.terminal import show_pairs, width, wrapped


def inspect(options: argparse.Namespace) -> int:
    """Say what a run folder holds."""
    folder = existing(options.folder)
    status, damaged = folder.status(), []
    case: RunCase | None = None
    columns: dict[str, np.ndarray] = {}
    theory: WaveTheory | None = None
    try:
        case = RunCase(folder.case)
    except UserError as failure:
        damaged.append(str(failure))
    try:
        columns, theory = rows_of(folder), read_theory(folder.series)
    except DamagedFile as failure:
        damaged.append(str(failure))
    files = [path for kind in (folder.checkpoints, folder.snapshots) for path in sorted(kind.glob("*.h5"))]
    damaged += [f"{path.relative_to(folder.path)}: {what}" for path in files if (what := damage(path))]
    rows: dict[str, str] = {
        "status": f"gone: {folder.what_now()}" if status["status"] == "gone" else status["status"],
        **({"damaged files": "\n".join(damaged)} if damaged else {}),
        **(_about_case(case) if case else {}),
        **(_about_series(columns, case, theory) if columns else {}),
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
    if (summary.tally(columns) or {}).get("inconclusive") and columns["collision_free_energy_total_error"][-1] > 0:
        print("\n".join(wrapped(summary.INCONCLUSIVE, width())))
    for sentence in summary.remarks(status, columns):
        print("\n".join(wrapped(f"warning: {sentence}", width())))
    return DONE


def _about_case(case: RunCase) -> dict[str, str]:
    of = f" ({', '.join(case.species)})" if case.species else ""
    return {
        "case": f"{case.word('problem.kind')}, {case.dims}, {case.strength_words}, "
        f"{case.particle_count} particles{of}, {case.word('method.collision')}",
    }


def _about_series(columns: dict[str, np.ndarray], case: RunCase | None, theory: WaveTheory | None) -> dict[str, str]:
    """What the time series of a run comes to; ``case`` is None if it cannot be read."""
    energy = summary.total_energy(columns)
    planned = f" of {case.number('time.end'):g} in steps of {case.number('time.step'):g}" if case else ""
    missing = summary.missing_steps(columns)
    return {
        "time": f"{columns['time'][-1]:g}{planned}",
        **({"rows missing in series.h5": f"steps {missing}"} if missing else {}),
        "seconds per step": f"{np.median(columns['seconds'][1:]):.3g}" if len(energy) > 1 else "-",
        "mass, largest change": f"{np.abs(columns['mass'] - columns['mass'][0]).max():.2e}",
        "energy, first and last": f"{energy[0]:.8g}, {energy[-1]:.8g}",
        **_balance(columns, energy),
        **_wave(columns, theory),
        **{
            f"{label}, first and last": f"{columns[name][0]:.8g}, {columns[name][-1]:.8g}"
            for label, name in (("free energy", "free_energy"), ("KL to equilibrium", "kl"))
            if name in columns
        },
        **_of_the_map(columns),
        **(_certificates(case, columns) if case else {}),
    }


def _wave(columns: dict[str, np.ndarray], theory: WaveTheory | None) -> dict[str, str]:
    """The rate of the wave and that of theory; nothing without a field."""
    found = rates.measured(columns, theory)
    if found is None:
        return {}
    first, last = found.rate.window
    return {
        "rate of the wave, in ω_p": f"{found.text} (t = {first:.3g} to {last:.3g})",
        **({"frequency of the wave, in ω_p": found.frequency_text} if found.rate.frequency else {}),
        "theory of the wave": found.remark.removeprefix("Theory: ").removesuffix("."),
    }


def _of_the_map(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """What tells whether the control field's map was sound; nothing where there is none."""
    if "min_eigenvalue" not in columns:
        return {}
    return {
        "steps split, fits repeated": f"{int((columns['substeps'] > 1).sum())}, {int(columns['retries'].sum())}",
        "smallest eigenvalue of I + h ∇v u": f"{columns['min_eigenvalue'].min():.4g}",
    }


def _balance(columns: dict[str, np.ndarray], energy: np.ndarray) -> dict[str, str]:
    """What of the change of energy no collision accounts for."""
    if "collision_energy_total" not in columns:
        return {}
    unexplained = energy - energy[0] - columns["collision_energy_total"] - columns.get("drive_energy", 0.0)
    by = "collisions or the drive" if "drive_energy" in columns else "collisions"
    return {f"energy change not from {by}": f"{np.abs(unexplained).max():.2e}"}


def _certificates(case: RunCase, columns: dict[str, np.ndarray]) -> dict[str, str]:
    """The tally of a run's certificates."""
    fall = summary.fall(columns)
    if fall is None:
        return {}
    return {
        f"steps in which {summary.certified_quantity(case)} fell": summary.tally_text(columns),
        "change in all collisions": f"{fall} (of particles that are held out of the fit)",
    }
