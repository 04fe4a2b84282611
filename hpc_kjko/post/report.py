"""A page about a run: one HTML file with everything in it, from the files of the run only."""

from __future__ import annotations

import base64
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from hpc_kjko import __version__
from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.files.storage import partial_name, writing
from hpc_kjko.operators import OPERATORS
from hpc_kjko.post import plotting, summary
from hpc_kjko.post.plotting import Picture

#: Lines of the log that are shown, from its end.
LOG_LINES = 12

#: What ``run.json`` says of where a run comes from, in the order shown.
PROVENANCE = {
    "command": "command",
    "version": "hpc_kjko",
    "git": "git revision",
    "date": "started (or last restarted)",
    "host": "host of rank 0",
    "nodes": "nodes of the batch job",
    "ranks": "ranks",
    "threads": "threads a rank",
    "device": "device",
    "mpi": "MPI",
    "torch": "torch",
    "python": "Python",
}

#: What a figure needs, for the page to say why it is missing.
NEEDS = {
    "field_energy": ("Field energy", "the run has no self-consistent field"),
    "energies": ("Energies", "the time series has fewer than two rows"),
    "free_energy": ("Free energy and entropy", "this collision method does not track log f"),
    "relative_entropy": ("Relative entropy", "it needs log f and a known equilibrium"),
    "marginals": ("Marginals", "no snapshot has them (output.histogram_every)"),
    "phase_space": ("Phase space", "no snapshot has histograms of it (output.histogram_every)"),
    "spectrum": ("Spectrum of the field", "no snapshot has the field (output.every, and a field of the run's own)"),
    "seconds": ("Seconds of each step", "the time series has fewer than two rows"),
}


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Write the page of a run, in one piece.

    Args:
        folder: the run's; it may have ended in any way, be going on or not have made its first step.
        out: the file (default ``report.html`` in the folder).

    Returns:
        The file.

    Raises:
        UserError: a file of the run is damaged, or the page cannot be written.
    """
    out = out or folder.path / "report.html"
    page = _page(folder)
    with writing(out):
        partial = partial_name(out)
        partial.write_text(page, encoding="utf-8", errors="replace")  # the folder's name may be in another encoding
        partial.replace(out)
    return out


def _page(folder: RunFolder) -> str:
    case, status = RunCase(folder.case), folder.status()
    columns: summary.Columns = {}
    damaged = ""
    try:
        columns = read_series(folder.series) if folder.series.exists() else {}
    except DamagedFile as failure:
        damaged = str(failure)
    rows = len(columns["step"]) if columns else 0
    figures, missing = _figures(folder, case, columns if rows > 1 else {})
    if status["status"] == "gone":
        missing.insert(0, f"The end of the run: {folder.what_now()}")
    if rows and (steps := summary.missing_steps(columns)):
        missing.insert(0, f"Time series: it has no rows of steps {steps}")
    if damaged:
        missing.insert(0, f"Time series: {damaged}")
    elif not rows:
        missing.insert(0, "Time series: the run has not written a row of it yet")
    if columns and "certificate" not in columns:
        missing.append("Certificates: the run held no particles out to make them (method.held_out)")
    absent = [label for key, label in PROVENANCE.items() if key not in status and key != "nodes"]
    if absent:
        missing.append(f"Provenance: run.json does not say {', '.join(absent)}")
    template = resources.files("hpc_kjko.post").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: f"{value:.5g}"
    environment.filters["small"] = lambda value: f"{value:.2e}"
    environment.filters["source"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return environment.from_string(template).render(
        name=folder.path.resolve().name,
        title=f"{case.word('problem.kind').replace('_', ' ')}, {case.dims}",
        case=case,
        toml=folder.case.read_text(encoding="utf-8-sig"),
        status=status["status"],
        headline=_headline(case, columns, rows),
        what=_what(case),
        tally=summary.tally(columns) if rows else None,
        certified=summary.certified_quantity(case),
        inconclusive=summary.INCONCLUSIVE,
        fall=summary.fall(columns) if rows else None,
        drifts=summary.drifts(columns) if rows else [],
        checks=_checks(columns) if rows else {},
        figures=figures,
        missing=missing,
        remarks=summary.remarks(status, columns if rows else {}),
        phases=summary.seconds_by_phase(columns) if rows else {},
        steps_seconds=float(columns["seconds"].sum()) if rows else 0.0,
        timings=_timings(case, status, columns, rows),
        provenance={label: str(status[key]) for key, label in PROVENANCE.items() if key in status},
        files=_files(folder),
        log=_log(folder),
        written=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        version=__version__,
    )


def _headline(case: RunCase, columns: summary.Columns, rows: int) -> dict[str, str]:
    """The numbers that one looks for first."""
    if not rows:
        return {"steps": f"0 of {case.steps}"}
    found = {
        "time": f"{columns['time'][-1]:g} of {case.number('time.end'):g}",
        "steps": f"{columns['step'][-1]:.0f} of {case.steps}",
        "wall clock of the steps": _duration(columns["seconds"].sum()),
        "mass, largest change": f"{summary.Drift.of('mass', columns['mass']).largest:.1e}",
    }
    if "kl" in columns:
        found["KL to equilibrium"] = f"{columns['kl'][0]:.3g} → {columns['kl'][-1]:.3g}"
    if columns["field_energy"].any():
        found["field energy"] = f"{columns['field_energy'][0]:.3g} → {columns['field_energy'][-1]:.3g}"
    return found


def _collisions(case: RunCase) -> str:
    """What particles collide with, and how strongly; of several species, of each."""
    if case.species and not case.collide_together:
        each = {name: case.number(f"species.{name}.collision_strength") for name in case.species}
        operators = {name: case.word(f"species.{name}.collision_operator") for name in case.species}
        return ", ".join(f"{name}: κ = {strength:g} ({operators[name]})" for name, strength in each.items())
    if OPERATORS[case.collision_operator].frame == "bath":
        return f"κ = {case.collision_strength:g}, with a bath of T = {case.number('physics.temperature'):g}"
    return f"κ = {case.collision_strength:g}, {case.collision_operator} operator"


def _what(case: RunCase) -> dict[str, str]:
    """The case in a few lines."""
    method = collision = case.word("method.collision")
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
        "collision step": collision,
        **({"network": network} if method not in ("langevin", "binary", "none") else {}),
        "particles": f"{case.particle_count}, {start} start, {weights} weights, seed {seed}"
        + (", control variate" if case.value("particles.control_variate") else ""),
        "time": f"{case.steps} steps of {case.number('time.step'):g} to t = {case.number('time.end'):g}, "
        f"{case.value('time.integrator')}",
    }


def _checks(columns: summary.Columns) -> dict[str, str]:
    """What tells whether the steps were sound."""
    found = {}
    if "min_eigenvalue" in columns:
        found["smallest eigenvalue of I + h ∇v u"] = f"{columns['min_eigenvalue'].min():.4g}"
        found["steps split"] = str(int((columns["substeps"] > 1).sum()))
        found["fits repeated"] = str(int(columns["retries"].sum()))
    if "gauss_residual" in columns:
        found["largest residual of Gauss's law"] = f"{columns['gauss_residual'].max():.2e}"
    errors = [name for name in columns if name.endswith("_error") and not name.startswith("collision_")]
    errors += [name for name in columns if name.startswith("marginal_l1_")]
    return found | {f"{name.replace('_', ' ')}, at the end": f"{columns[name][-1]:.3g}" for name in errors}


def _figures(folder: RunFolder, case: RunCase, columns: summary.Columns) -> tuple[dict[str, list[Picture]], list[str]]:
    """Pictures by the name of their figure, and a sentence for each figure that there is none of."""
    figures: dict[str, list[Picture]] = {}
    missing = []
    try:
        for name, picture in plotting.pictures(folder, case, columns):
            figures.setdefault(name, []).append(picture)
    except UserError as failure:
        missing.append(f"Some figures: {failure}")
    if not columns:
        missing.append("Figures of the time series: it has fewer than two rows")
    of_series = {"field_energy", "energies", "free_energy", "relative_entropy", "seconds"}
    for name, (title, needs) in NEEDS.items():
        if name not in figures and (columns or name not in of_series):
            missing.append(f"{title}: {needs}")
    return figures, missing


def _timings(case: RunCase, status: dict[str, Any], columns: summary.Columns, rows: int) -> dict[str, str]:
    timings = {}
    if rows > 1:
        seconds = columns["seconds"][1:]
        of_a_rank = np.median(seconds) * status.get("ranks", 1) / case.particle_count
        timings = {
            "all steps": _duration(seconds.sum()),
            "a step, median": f"{np.median(seconds):.3g} s",
            "a step, fastest and slowest": f"{seconds.min():.3g} s, {seconds.max():.3g} s",
            "a particle and step": f"{1e6 * of_a_rank:.3g} microseconds of one rank",
        }
    return timings | summary.memory(status, case.particle_count)


def _files(folder: RunFolder) -> dict[str, str]:
    checkpoints = sorted(path.name for path in folder.checkpoints.glob("step*.h5"))
    return {
        "snapshots": str(len(list_snapshots(folder.snapshots))),
        "checkpoints": ", ".join(checkpoints) or "none",
    }


def _log(folder: RunFolder) -> list[str]:
    """The end of the log."""
    try:
        return folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
