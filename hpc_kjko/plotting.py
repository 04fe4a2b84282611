"""Figures of a run, from its files only.

Units on the axes are those of the normalisation: time in 1/ω_p, lengths in v_th/ω_p, velocities in v_th (the thermal
speed of a bath at T = 1), densities in the mean density n̄, energies in n̄ m v_th² (v_th/ω_p)^dx.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from hpc_kjko import config  # noqa: E402
from hpc_kjko.output import list_snapshots, read_snapshot  # noqa: E402
from hpc_kjko.runfolder import RunFolder  # noqa: E402
from hpc_kjko.series import read_series  # noqa: E402

#: Panels of the phase-space figure.
PANELS = 6

_STYLE = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def plot_run(folder: RunFolder) -> list[Path]:
    """Draw every figure the run has data for into its ``figures/`` folder.

    Returns:
        The files, field energy first.

    Raises:
        UserError: the folder holds no readable time series.
    """
    case, series = config.load(folder.case), read_series(folder.series)
    folder.figures.mkdir(exist_ok=True)
    drawings: dict[str, Callable[[], plt.Figure | None]] = {
        "field_energy": lambda: field_energy(case, series),
        "energies": lambda: energies(case, series),
        "phase_space": lambda: phase_space(case, folder),
    }
    paths = []
    for name, draw in drawings.items():
        with plt.rc_context(_STYLE):
            figure = draw()
        if figure is not None:
            paths.append(folder.figures / f"{name}.png")
            figure.savefig(paths[-1])
            plt.close(figure)
    return paths


def field_energy(case: config.Case, series: dict[str, np.ndarray]) -> plt.Figure | None:
    """½ ∫ |E|² dx against time, logarithmic; None without a self-consistent field."""
    if not series["field_energy"].any():
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    axes.semilogy(series["time"], series["field_energy"], color="C3")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="field energy  ½∫|E|²dx  [normalised]", title=_title(case))
    return figure


def energies(case: config.Case, series: dict[str, np.ndarray]) -> plt.Figure:
    """Energies, and free energy with entropy, against time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    time = series["time"]
    total = series["kinetic_energy"] + series["field_energy"] + series["potential_energy"]
    for name in ("kinetic", "field", "potential"):
        if series[f"{name}_energy"].any():
            left.plot(time, series[f"{name}_energy"], label=name)
    left.plot(time, total, color="black", lw=1, ls="--", label="total")
    left.set(xlabel="time  [1/ω$_p$]", ylabel="energy  [normalised]", title="energies")
    left.legend()
    right.plot(time, series["free_energy"], color="C2", label="free energy F")
    right.plot(time, case.physics.temperature * series["entropy"], color="C4", label="T ∫ f log f")
    right.set(xlabel="time  [1/ω$_p$]", ylabel="[normalised]", title="free energy and entropy")
    right.legend()
    figure.suptitle(_title(case))
    return figure


def phase_space(case: config.Case, folder: RunFolder) -> plt.Figure | None:
    """Phase-space density of (x, v_x) at several times; None without snapshots of it."""
    steps = [step for step in list_snapshots(folder.snapshots) if read_snapshot(folder.snapshots, step).histograms]
    if not steps:
        return None
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(PANELS, len(steps))).round().astype(int))]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns + 0.8, 3 * rows + 0.4), sharex=True, sharey=True, squeeze=False
    )
    histograms = [read_snapshot(folder.snapshots, step).histograms[0] for step in chosen]
    brightest = max(histogram.values.max() for histogram in histograms)
    image = None
    for axes, step, histogram in zip(grid.flat, chosen, histograms, strict=False):
        extent = (*histogram.x_range, *histogram.v_range)
        image = axes.imshow(
            histogram.values.T,
            origin="lower",
            extent=extent,
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=brightest,
        )
        axes.set_title(f"t = {step * case.time.step:g}", fontsize=10)
        axes.grid(False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("x  [v$_{th}$/ω$_p$]")
    for axes in grid[:, 0]:
        axes.set_ylabel("v$_x$  [v$_{th}$]")
    figure.colorbar(image, ax=grid, label="f(x, v$_x$)", shrink=0.9)
    figure.suptitle(_title(case))
    return figure


def _title(case: config.Case) -> str:
    problem = case.problem
    dims = f"{problem.space_dims}D{problem.velocity_dims}V"
    return (
        f"{problem.kind.replace('_', ' ')}, {dims}, κ = {case.physics.collision_strength:g}, "
        f"N = {case.particles.count}, h = {case.time.step:g}"
    )
