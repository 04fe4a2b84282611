"""Figures of a run, from its files only.

Units on the axes are those of the normalisation: time in 1/ω_p, lengths in v_th/ω_p, velocities in v_th (the thermal
speed of a bath at T = 1), densities in the mean density n̄, energies in n̄ m v_th² (v_th/ω_p)^dx.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

_STYLE: dict[Any, Any] = {
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
    case, series = config.load(folder.case, of_a_run=True), read_series(folder.series)
    folder.figures.mkdir(exist_ok=True)
    drawings: dict[str, Callable[[], plt.Figure | None]] = {
        "field_energy": lambda: field_energy(case, series),
        "energies": lambda: energies(case, series),
        "relative_entropy": lambda: relative_entropy(case, series),
        "marginals": lambda: marginals(case, folder),
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
    """Energies, and where log f is tracked free energy with entropy and the dissipation identity, against time."""
    tracked, in_bath = "entropy" in series, "free_energy" in series
    figure, panels = plt.subplots(1, 1 + tracked, figsize=(5 + 5 * tracked, 4.2), squeeze=False)
    left, right = panels[0, 0], panels[0, -1]
    time = series["time"]
    total = series["kinetic_energy"] + series["field_energy"] + series["potential_energy"]
    for name in ("kinetic", "field", "potential"):
        if series[f"{name}_energy"].any():
            left.plot(time, series[f"{name}_energy"], label=name)
    left.plot(time, total, color="black", lw=1, ls="--", label="total")
    left.set(xlabel="time  [1/ω$_p$]", ylabel="energy  [normalised]", title="energies")
    left.legend()
    if tracked:
        temperature, falls = (case.physics.temperature, "F") if in_bath else (1.0, "∫ f log f")
        right.plot(time, temperature * series["entropy"], color="C4", label=f"{'T ' if in_bath else ''}∫ f log f")
        if in_bath:
            right.plot(time, series["free_energy"], color="C2", label="free energy F")
        if "dissipation" in series:
            start = series["free_energy" if in_bath else "entropy"][0]
            label = f"{falls} at t = 0, less ∫ dissipation dt"
            right.plot(time, start - dissipated(series), color="black", lw=1, ls="--", label=label)
        right.set(
            xlabel="time  [1/ω$_p$]", ylabel="[normalised]", title="free energy and entropy"[0 if in_bath else 16 :]
        )
        right.legend()
    figure.suptitle(_title(case))
    return figure


def dissipated(series: dict[str, np.ndarray]) -> np.ndarray:
    """∫ dissipation dt up to each row, by the step that each row reports: what the free energy should have lost, or
    with the Dougherty operator ∫f log f."""
    return np.concatenate([[0.0], np.cumsum(series["dissipation"][1:] * np.diff(series["time"]))])


def relative_entropy(case: config.Case, series: dict[str, np.ndarray]) -> plt.Figure | None:
    """KL divergence from the equilibrium against time, logarithmic; None where it is not known."""
    if "kl" not in series:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    axes.semilogy(series["time"], np.where(series["kl"] > 0, series["kl"], np.nan), color="C0")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="KL(f | f$_∞$)", title=_title(case))
    return figure


def marginals(case: config.Case, folder: RunFolder) -> plt.Figure | None:
    """Marginals of every coordinate at several times, and the equilibrium's; None without snapshots of them."""
    steps = [step for step in list_snapshots(folder.snapshots) if read_snapshot(folder.snapshots, step).marginals]
    if not steps:
        return None
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(4, len(steps))).round().astype(int))]
    snapshots = [read_snapshot(folder.snapshots, step).marginals for step in chosen]
    equilibrium = case.equilibrium()
    columns = min(3, len(snapshots[0]))
    rows = -(-len(snapshots[0]) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows + 0.4), squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(snapshots[0]):
            axes.set_visible(False)
            continue
        kind, axis = snapshots[0][number].kind, snapshots[0][number].axis
        for step, found in zip(chosen, snapshots, strict=True):
            low, high = found[number].range
            edges = np.linspace(low, high, len(found[number].values) + 1)
            centres, width = 0.5 * (edges[1:] + edges[:-1]), (high - low) / len(found[number].values)
            share = found[number].values / case.problem.mass
            axes.plot(centres, share, lw=1.2, label=f"t = {step * case.time.step:g}")
        if equilibrium is not None:
            wanted = equilibrium.marginal(kind, axis, edges) / width
            axes.plot(centres, wanted, color="black", lw=1, ls="--", label="equilibrium")
        name = f"{kind}$_{axis + 1}$" if len(snapshots[0]) > 2 else kind
        unit = "v$_{th}$/ω$_p$" if kind == "x" else "v$_{th}$"
        axes.set(xlabel=f"{name}  [{unit}]", ylabel="probability density")
    grid.flat[0].legend(fontsize=8)
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
