"""The report page of a run: one self-contained HTML file, made only from the files of the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.operators import OPERATORS
from hpc_kjko.post import figures, page, rates, summary
from hpc_kjko.post.figures import waves
from hpc_kjko.post.figures.names import axis_of
from hpc_kjko.post.figures.runfiles import RunFiles
from hpc_kjko.post.interactive import figure
from hpc_kjko.running.remarks import IN_CHANCE
from hpc_kjko.terminal import duration

#: Number of log lines that are shown, from the end of the log.
LOG_LINES = 12

#: Entries of ``run.json`` about the provenance of a run, in the order shown.
PROVENANCE = {
    "command": "command",
    "version": "hpc_kjko",
    "git": "git revision",
    "date": "started (or last restarted)",
    "host": "host of rank 0",
    "nodes": "nodes of the batch job",
    "ranks": "ranks",
    "threads": "threads per rank",
    "device": "device",
    "mpi": "MPI",
    "torch": "torch",
    "python": "Python",
}

#: The meaning of each status of a run.
STATUS_MEANINGS = {
    "new": "The run has not begun its first step.",
    "running": "The run goes on: this page shows the results so far.",
    "finished": "The run reached its end.",
    "stopped": "The run stopped with a checkpoint, and kjko restart continues it.",
    "failed": "The run ended with an error.",
    "gone": "The process of the run no longer exists and left no message: it was killed, or its machine failed.",
    "unknown": "run.json does not say how the run ended.",
}

#: The title of each figure, and the reason why it may be missing.
NEEDS = {
    "field_energy": ("Field energy", "the run has no self-consistent field"),
    "energies": ("Energies", "the time series has fewer than two rows"),
    "free_energy": ("Free energy and entropy", "this collision method does not carry log f"),
    "relative_entropy": ("Relative entropy", "this figure needs log f and a known equilibrium"),
    "marginals": ("Marginals", "no snapshot has marginals (output.histogram_every)"),
    "phase_space": ("Phase space", "no snapshot has histograms of phase space (output.histogram_every)"),
    "field": (
        "Electric field against x and time",
        "this figure needs two snapshots of a self-consistent field (output.every)",
    ),
    "seconds": ("Seconds of each step", "the time series has fewer than two rows"),
}

#: Sentence about the parts that are missing in the report of a run without collisions.
_WITHOUT_COLLISIONS = (
    "Free energy, relative entropy and certificates: without collisions f does not approach an equilibrium"
)


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Write the report page of a run, atomically.

    Args:
        folder: the run folder. The run may be over for any reason, be running, or not have made its first step.
        out: the file (default ``report.html`` in the folder).

    Returns:
        The file that was written.

    Raises:
        UserError: a file of the run is damaged, or the page cannot be written.
    """
    out = out or folder.path / "report.html"
    page.require_folder(out)
    case, status = RunCase(folder.case), folder.status()
    columns: summary.Columns = {}
    damaged = ""
    try:
        columns = summary.meaningful(read_series(folder.series), case) if folder.series.exists() else {}
    except DamagedFile as failure:
        damaged = str(failure)
    rows = len(columns["step"]) if columns else 0
    run = RunFiles(folder, case, columns if rows > 1 else {})
    drawn, missing = _figures(run)
    if status["status"] == "gone":
        missing.insert(0, f"The end of the run: {folder.what_now()}")
    if rows and (steps := summary.missing_steps(columns)):
        missing.insert(0, f"Time series: the rows of steps {steps} are missing")
    if damaged:
        missing.insert(0, f"Time series: {damaged}")
    elif not rows:
        missing.insert(0, "Time series: the run has not written a row yet")
    if not case.collision_strength:
        missing.append(_WITHOUT_COLLISIONS)
    elif columns and "certificate" not in columns:
        missing.append("Certificates: the run kept no particles out of the fit for them (method.held_out)")
    absent = [label for key, label in PROVENANCE.items() if key not in status and key != "nodes"]
    if absent:
        missing.append(f"Provenance: run.json does not say {', '.join(absent)}")
    return page.write(
        "report.html",
        out,
        drawn,
        {},
        name=folder.path.resolve().name,
        title=f"{case.word('problem.kind').replace('_', ' ')}, {case.dims}",
        case=case,
        toml=folder.case.read_text(encoding="utf-8-sig"),
        status=status["status"],
        status_meaning=_status_meaning(folder, status["status"]),
        tiles=_tiles(run, status, columns),
        what=_what(case),
        tally=summary.tally(columns) if rows else None,
        certified=summary.certified_quantity(case),
        verdicts=summary.verdict_meanings(summary.certified_quantity(case)),
        fall=summary.fall(columns) if rows else None,
        drifts=summary.drifts(columns) if rows else [],
        checks=_checks(case, columns) if rows else {},
        of_timings=[key for key in drawn if key.startswith("seconds")],
        missing=missing,
        remarks=summary.remarks(status, columns if rows else {}),
        parts=summary.seconds_by_part(status),
        wall_clock=summary.wall_clock(status),
        restarts=status.get("restarts", 0),
        timings=_timings(case, status, columns, rows),
        provenance={label: str(status[key]) for key, label in PROVENANCE.items() if key in status},
        files=_files(folder),
        log=_log(folder),
    )


def _status_meaning(folder: RunFolder, status: str) -> str:
    """The meaning of the status of a run. For a failed run it includes the error in the log."""
    errors = [line.partition(" ERROR ")[2] for line in _log(folder) if " ERROR " in line]
    if status == "failed" and errors:
        return f"The run ended with an error: {errors[-1]}"
    return STATUS_MEANINGS.get(status, "")


@dataclass(frozen=True)
class Tile:
    """One of the most important numbers, and its explanation. ``tone`` is "good", "unsure", "bad" or empty."""

    label: str
    value: str
    says: str
    tone: str = ""


def _tiles(run: RunFiles, status: dict[str, Any], columns: summary.Columns) -> list[Tile]:
    """The most important numbers of a run."""
    case, rows = run.case, len(columns["step"]) if columns else 0
    if not rows:
        return [Tile("time reached", f"0 of {case.number('time.end'):g}", f"0 of {case.steps} steps")]
    spent = summary.wall_clock(status)
    found = [
        Tile(
            "time reached, in 1/ω_p",
            f"{columns['time'][-1]:g} of {case.number('time.end'):g}",
            f"{columns['step'][-1]:.0f} of {case.steps} steps" + (f"; wall clock: {duration(spent)}" if spent else ""),
        )
    ]
    if measured := rates.measured(columns, waves.theory_of(run), status):
        found.append(_rate_tile(measured))
    if columns["field_energy"].any():
        found.append(_field_tile(status, columns))
    if "kl" in columns:
        first, last = columns["kl"][[0, -1]]
        found.append(
            Tile("KL to equilibrium", f"{first:.3g} → {last:.3g}", "distance of f from the equilibrium, where KL is 0")
        )
    if tally := summary.tally(columns):
        found.append(_certificate_tile(case, tally))
    error = summary.EnergyError.of(columns)
    found.append(Tile("error of the energy", f"{error.largest:.1e}", f"largest change, {error.words}"))
    return found


def _rate_tile(measured: rates.Measured) -> Tile:
    """The growth or damping rate of the wave, with that of theory."""
    theory = "" if measured.expected is None else f"; theory: {measured.expected:.4f}"
    if measured.rate is None or measured.why_not:
        return Tile("rate of the wave", "none", measured.why_not + theory)
    first, last = measured.rate.window
    says = f"fitted from t = {first:.3g} to {last:.3g}{theory}"
    if measured.note:
        says += f"; {measured.note}"
    label = "growth rate of the wave" if measured.rate.rate > 0 else "damping rate of the wave"
    return Tile(label, measured.rate.text(), says)


def _field_tile(status: dict[str, Any], columns: summary.Columns) -> Tile:
    """The energy of the field, and the noise of the particles in it."""
    name = "wave_energy" if columns.get("wave_energy", np.zeros(1)).any() else "field_energy"
    values = columns[name]
    label = "energy of the wave" if name == "wave_energy" else "energy of the field"
    value = f"{values[0]:.2g} → {values[-1]:.2g}"
    floor = summary.noise_floors(status, columns).get(name)
    if floor is None:
        return Tile(label, value, f"largest {values.max():.2g}, at t = {columns['time'][values.argmax()]:g}")
    above = values[-1] / floor[-1] if floor[-1] else np.inf
    says = f"{summary.NOISE_OF[name]}: {floor[-1]:.1g}; at the end the energy is {_times(above)} it"
    return Tile(label, value, says, "good" if above > summary.NOISY else "unsure")


def _certificate_tile(case: RunCase, tally: dict[str, int]) -> Tile:
    steps = sum(tally.values())
    parts = [f"{number} {verdict}" for verdict, number in tally.items() if verdict != "certified" and number]
    says = f"held-out particles show that collisions lowered {summary.certified_quantity(case)}"
    if parts:
        says += f"; {', '.join(parts)}"
    chance = steps / IN_CHANCE
    tone = "good" if 2 * tally["certified"] > steps else ""
    if tally["violated"] > chance + 3 * np.sqrt(chance):
        tone = "bad"
    return Tile("certified steps", f"{tally['certified']} of {steps}", says, tone)


def _collisions(case: RunCase) -> str:
    """The collision operator and its strength; for several species those of each."""
    if not case.collision_strength:
        return "none"
    if case.species and not case.collide_together:
        each = {name: case.number(f"species.{name}.collision_strength") for name in case.species}
        operators = {name: case.word(f"species.{name}.collision_operator") for name in case.species}
        return ", ".join(f"{name}: κ = {strength:g} ({operators[name]})" for name, strength in each.items())
    if OPERATORS[case.collision_operator].frame == "bath":
        return f"κ = {case.collision_strength:g}, with a bath of T = {case.number('physics.temperature'):g}"
    return f"{case.strength_words}, {case.collision_operator} operator"


def _what(case: RunCase) -> dict[str, str]:
    """The case in a few lines."""
    method = collision = case.collision_method
    if method == "jko":
        order, logdet, solver = (case.value(f"method.{key}") for key in ("order", "logdet", "solver"))
        collision += f" of order {order}, {logdet} log det, {solver}"
    hidden, cells = case.value("method.hidden", []), case.value("grid.cells")
    network = f"{', '.join(map(str, hidden)) or 'affine'} ({case.value('method.activation')})"
    start, weights, seed = (case.value(f"particles.{key}") for key in ("start", "weights", "seed"))
    return {
        "problem": f"{case.word('problem.kind')}, {case.dims}",
        "field": case.word("physics.field") + (f" on {' × '.join(map(str, cells))} cells" if cells else ""),
        "collisions": _collisions(case),
        **({"collision step": collision} if case.collision_strength else {}),
        **({"network": network} if method not in ("langevin", "binary", "none") else {}),
        "particles": f"{case.particle_count}, {start} start, {weights} weights, seed {seed}"
        + (", control variate" if case.value("particles.control_variate") else ""),
        "time": f"{case.steps} steps of {case.number('time.step'):g} to t = {case.number('time.end'):g}, "
        f"{case.value('time.integrator')}",
    }


def _checks(case: RunCase, columns: summary.Columns) -> dict[str, str]:
    """Numbers that show whether the steps were accurate."""
    found = {}
    if "min_eigenvalue" in columns:
        found["smallest eigenvalue of I + h ∇v u"] = f"{columns['min_eigenvalue'].min():.4g}"
        found["steps split"] = str(int((columns["substeps"] > 1).sum()))
        found["fits repeated"] = str(int(columns["retries"].sum()))
    if "gauss_residual" in columns:
        found["largest residual of Gauss's law"] = f"{columns['gauss_residual'].max():.2e}"
    errors: list[str] = [
        name for name in ("mean_error", "covariance_error", "drift_error", "wave_error") if name in columns
    ]
    errors += [name for name in columns if name.startswith("marginal_l1_")]
    labels = {name: axis_of(name, "1", case.species).label for name in errors}
    return found | {f"{labels[name]}, at the end": f"{columns[name][-1]:.3g}" for name in errors}


def _figures(run: RunFiles) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures by name, and a sentence for each figure that is missing."""
    found: dict[str, dict[str, Any]] = {}
    missing = []
    drawn: list[str] = []
    for pictures in figures.for_a_page(run):
        name = re.sub(r"_\d{4}$", "", pictures[-1].name)  # without the number of a picture in a series
        drawn.append(name)
        for number in range(len(pictures[-1].panels)):
            key = page.anchor(f"{name}-{number}")
            found[f"{key}-frames" if key in found else key] = figure(pictures, number)
    if not run.series:
        missing.append("Figures of the time series: the series has fewer than two rows")
    of_series = {"field_energy", "energies", "free_energy", "relative_entropy", "seconds"}
    suffixes = tuple(f"_{species}" for species in run.species if species)
    known = {name.removesuffix(of) for name in drawn for of in ("", *suffixes)}
    of_collisions = {"free_energy", "relative_entropy"} if not run.case.collision_strength else set()
    for name, (title, needs) in NEEDS.items():
        if name not in known | of_collisions and (run.series or name not in of_series):
            missing.append(f"{title}: {needs}")
    return found, missing


def _timings(case: RunCase, status: dict[str, Any], columns: summary.Columns, rows: int) -> dict[str, str]:
    """The time of a step, without diagnostics and files, and the memory."""
    timings = {}
    if rows > 1:
        seconds = columns["seconds"][1:]
        of_a_rank = np.median(seconds) * status.get("ranks", 1) / case.particle_count
        later = seconds[1:] if len(seconds) > 1 else seconds  # the first one includes work that is done only once
        timings = {
            "the first step": duration(seconds[0]),
            "one step, median": duration(np.median(seconds)),
            "one later step, fastest and slowest": f"{duration(later.min())}, {duration(later.max())}",
            "one particle and step": f"{1e6 * of_a_rank:.3g} microseconds of one rank",
        }
    return timings | summary.memory(status, case.particle_count)


def _times(ratio: float) -> str:
    """The ratio of two numbers in words: "below", or "about 3 times"."""
    return "below" if ratio < 1 else f"about {float(f'{ratio:.1g}'):g} times"


def _files(folder: RunFolder) -> dict[str, str]:
    checkpoints = sorted(path.name for path in folder.checkpoints.glob("step*.h5"))
    return {
        "snapshots": str(len(list_snapshots(folder.snapshots))),
        "checkpoints": ", ".join(checkpoints) or "none",
    }


def _log(folder: RunFolder) -> list[str]:
    """The last lines of the log."""
    try:
        return folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
