#!/usr/bin/env python
"""The paper's figures 1-11 (arXiv:2603.23901) from run folders. Missing runs are made, which takes hours.

    python scripts/paper_figures.py [fig1 … fig11] [--out DIR] [--ranks N] [--quick]

Runs are kept in DIR/runs (see experiments.py). Figures are written to DIR/figures. --quick is a small size for tests (a
minute in all): the pictures are complete but noisy. The pictures of the paper were not available, so these follow its
text.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from experiments import JOBS, QUICK_STEPS, RUNS, STEPS, Experiments, slope

from hpc_kjko.case.config import Case
from hpc_kjko.cli.main import main as kjko
from hpc_kjko.files.histograms import Marginal
from hpc_kjko.files.output import Snapshot, list_snapshots, read_snapshot
from hpc_kjko.post.draw import STYLE as OURS
from hpc_kjko.post.figures.energies import dissipated
from hpc_kjko.reference.gaussian import gaussian_equilibrium, gaussian_moments, gaussian_relative_entropy
from hpc_kjko.reference.grid_1d1v import GridSolution

matplotlib.use("agg")

# Colours of Okabe and Ito, which colour-blind readers can distinguish.
BLUE, RED, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
STYLE = {**OURS, "figure.dpi": 110, "legend.fontsize": 9}
TIME, UNIT = "time  [1/ω$_p$]", {"x": "v$_{th}$/ω$_p$", "v": "v$_{th}$"}
GRID = {"color": "black", "lw": 0.9}

#: Label and colour of the curve of each run.
Curves = dict[str, tuple[str, str]]
#: With fewer particles than this, histograms have a quarter of the bins.
MANY = 30_000


# -- what the figures share --------------------------------------------------------------------------------------------


class QuickExperiments(Experiments):
    """Runs of the quick size on one rank in this process, because starting Python takes longer than a run."""

    def folder(self, name: str) -> Path:
        folder = self.out / name
        if not (folder / "run.json").exists():
            settings = [part for change in self.changes(name) for part in ("--set", change)]
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            with contextlib.redirect_stdout(sys.stderr):
                code = kjko(["run", str(JOBS / f"{RUNS[name].job}.toml"), "--out", str(folder), *settings])
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if code:
                sys.exit(code)
        return super().folder(name)


def draw_one(name: str, draw: Callable[[Experiments], plt.Figure], description: str | None) -> None:
    """The command line of a script that draws one figure. Runs are in DIR/runs, the figure in DIR/figures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks of each run")
    options = parser.parse_args()
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        path = options.out / "figures" / f"{name}.png"
        draw(Experiments(options.out / "runs", options.ranks)).savefig(path)
    print(path)


def snapshots_of(runs: Experiments, name: str) -> list[Snapshot]:
    """The snapshots of a run with marginals and histograms (other snapshots have only fields)."""
    folder = runs.folder(name) / "snapshots"
    return [found for step in list_snapshots(folder) if (found := read_snapshot(folder, step)).marginals]


def snapshots_at(runs: Experiments, name: str, times: Sequence[float]) -> list[Snapshot]:
    """For each time, the nearest of these snapshots."""
    found = snapshots_of(runs, name)
    return [min(found, key=lambda snapshot: abs(snapshot.time - time)) for time in times]


def merged(values: np.ndarray, count: int) -> np.ndarray:
    """A histogram of ``count`` particles; with few particles, in a quarter of the bins along each axis."""
    if count >= MANY:
        return values
    for axis in range(values.ndim):
        shape = values.shape[:axis] + (values.shape[axis] // 4, 4) + values.shape[axis + 1 :]
        values = values.reshape(shape).mean(axis=axis + 1)
    return values


def draw_marginals(
    row: np.ndarray, case: Case, snapshot: Snapshot, solution: GridSolution, number: int, style: dict, **grid
) -> None:
    """Draw the histogram of each coordinate and the marginal of the grid solver at one time, as probability
    densities."""
    for axes, marginal in zip(row.flat, snapshot.marginals, strict=True):
        kind, (low, high), density = marginal.kind, marginal.range, solution.snapshots[number]
        values = merged(marginal.values, case.particles.count) / case.problem.mass
        axes.stairs(values, np.linspace(low, high, len(values) + 1), **style)
        points, expected = (solution.x, density.sum(1)) if kind == "x" else (solution.v, density.sum(0))
        expected, inside = expected / (expected.sum() * (points[1] - points[0])), (points > low) & (points < high)
        axes.plot(points[inside], expected[inside], **{**GRID, **grid})
        name = f"{kind}$_{marginal.axis + 1}$" if len(snapshot.marginals) > 2 else kind
        axes.set(xlabel=f"{name}  [{UNIT[kind]}]", ylabel="probability density")


def draw_equilibrium(row: np.ndarray, snapshot: Snapshot, case: Case) -> None:
    """Draw the marginals of the stationary density."""
    equilibrium = case.problem.equilibrium(case.physics.temperature)
    for axes, marginal in zip(row, snapshot.marginals, strict=True):
        edges = np.linspace(*marginal.range, 321)
        values = equilibrium.marginal(marginal.kind, marginal.axis, edges) / np.diff(edges)
        axes.plot(0.5 * (edges[1:] + edges[:-1]), values, color=GREEN, lw=1.4, ls="--", label="equilibrium")


def titled(figure: plt.Figure, title: str, runs: Experiments, *names: str) -> plt.Figure:
    """The figure with a title and, below it, those of κ, N and h that are equal in all runs."""
    cases = [runs.case(name) for name in names]
    found = {
        "κ": {case.physics.collision_strength for case in cases},
        "N": {case.particles.count for case in cases},
        "h": {case.time.step for case in cases},
    }
    common = [f"{name} = {values.pop():g}" for name, values in found.items() if len(values) == 1]
    figure.suptitle(f"{title}\n{', '.join(common)}", fontsize=12)
    return figure


def draw_kl(row: np.ndarray, runs: Experiments, curves: Curves, solution: GridSolution, directions: int = 1) -> None:
    """Draw the KL divergence per direction from the carried log f, with that of the grid solver, and their
    difference."""
    axes, difference = row
    expected, end, per = solution.relative_entropy / solution.mass, solution.times[-1], " / 3" * (directions == 3)
    for name, (label, color) in curves.items():
        series = runs.series(name)
        found, time = series["kl"] / directions, series["time"]
        axes.semilogy(time, np.where(found > 0, found, np.nan), label=label, color=color)
        difference.plot(time, np.abs(found - np.interp(time, solution.times, expected)), label=label, color=color)
    late = (solution.times >= 0.3 * end) & (solution.times <= 0.9 * end)
    rate = -np.polyfit(solution.times[late], np.log(expected[late]), 1)[0]
    axes.semilogy(solution.times, expected, **GRID, ls="--", label=f"grid solver, late ∝ exp(−{rate:.2f} ω$_p$t)")
    difference.axhline(0.03, color="grey", lw=1, ls=":", label="target: 0.03")
    axes.set(xlabel=TIME, ylabel=f"KL(f | f$_∞$){per}")
    difference.set(xlabel=TIME, ylabel=f"|KL{per} − KL of the grid solver|", ylim=(0, None))
    axes.legend()
    difference.legend()


def draw_field(axes: plt.Axes, runs: Experiments, curves: Curves, solution: GridSolution) -> None:
    """Draw the field energy on a logarithmic scale, with that of the grid solver."""
    found = {name: runs.series(name) for name in curves}
    for name, (label, color) in curves.items():
        axes.semilogy(found[name]["time"], found[name]["field_energy"], color=color, label=label)
    axes.semilogy(solution.times, solution.field_energy, **GRID, ls="--", label="grid solver")
    # The grid solver has no noise. So a damped wave falls far below the level that particles can show.
    energies = np.concatenate([series["field_energy"] for series in found.values()])
    axes.set(xlabel=TIME, ylabel="field energy  ½∫|E|²dx  [normalised]")
    axes.set_ylim(0.1 * energies.min(), 5 * max(energies.max(), solution.field_energy.max()))
    legend_below(axes)


def panels(rows: int, columns: int, width: float, height: float, **options) -> tuple[plt.Figure, np.ndarray]:
    """A figure of rows × columns axes. Width and height are in inches."""
    size = (width * columns, height * rows + 0.6)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **options)


def legend_below(axes: plt.Axes, columns: int = 2) -> None:
    """Draw a legend below the axes, where it hides no line."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize=8)


def legend_of_all(figure: plt.Figure, axes: plt.Axes, columns: int) -> None:
    """Draw one legend for the whole figure, below it."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# -- the figures -------------------------------------------------------------------------------------------------------


def fig1(runs: Experiments) -> plt.Figure:
    """Example 1, drift error (38): first order in the step, and against time in comparison with score matching.

    In the paper its root is proportional to h. JKO is steadier in 1D, and better at late times in 3D.
    """
    figure, axes = panels(1, 3, 5.2, 4.6)
    left, steps = axes[0, 0], np.array(QUICK_STEPS if runs.quick else STEPS)
    for dims, marker in (("1d", "o"), ("3d", "s")):
        for scheme, color, words in (("", BLUE, "paper's scheme"), ("second_", RED, "second order")):
            found = [runs.series(f"e1_{dims}_{scheme}{step}")["drift_error"][1:] for step in steps]
            errors = np.sqrt([drift.mean() for drift in found])
            label = f"{dims.upper()}, {words}: slope {slope(tuple(steps), errors):.2f}"
            dashes = "-" if dims == "1d" else "--"
            left.loglog(steps, errors, marker=marker, color=color, ls=dashes, label=label)
    low, high = left.get_ylim()
    for order, dots in ((1, ":"), (2, "-.")):
        guide = 0.8 * high * (steps / steps.max()) ** order
        left.loglog(steps, guide, color="grey", lw=1, ls=dots, label=f"slope {order}")
    left.set(ylim=(low, 1.3 * high), xlabel="step h  [1/ω$_p$]", ylabel="root of the mean drift error  [v$_{th}$ω$_p$]")
    left.set_xticks(steps, [f"{step:g}" for step in steps])
    left.xaxis.minorticks_off()
    left.set_title("against the step")
    legend_below(left)
    for panel, dims in zip(axes[0, 1:], ("1d", "3d"), strict=True):
        for name, color, dashes, words in (
            ("0.1", BLUE, "-", "JKO, affine field"),
            ("score_0.1", RED, "-", "score matching, affine field"),
            ("tanh", BLUE, "--", "JKO, tanh network"),
            ("tanh_score", RED, "--", "score matching, tanh network"),
        ):
            series = runs.series(f"e1_{dims}_{name}")
            panel.semilogy(series["time"][1:], series["drift_error"][1:], color=color, ls=dashes, label=words)
        panel.set(xlabel=TIME, ylabel="drift error  [v$_{th}$²ω$_p$²]", title=f"over time, {dims.upper()}, h = 0.1")
        legend_below(panel)
    return titled(figure, "Figure 1. Example 1: drift error", runs, "e1_1d_0.1", "e1_3d_0.2")


def fig2(runs: Experiments) -> plt.Figure:
    """Example 1: the free energy decays as its dissipation says, KL as that of the exact Gaussians, and the moments."""
    figure, axes = panels(2, 3, 4.6, 3.6)
    schemes = (("0.1", BLUE, "paper's scheme"), ("second_0.1", RED, "second order"))
    for row, dims in zip(axes, ("1d", "3d"), strict=True):
        for name, color, words in schemes:
            series = runs.series(f"e1_{dims}_{name}")
            time, lost = series["time"], dissipated(series)
            row[0].plot(time, series["free_energy"], color=color, label=words)
            label = "F(0) − ∫ dissipation dt"
            row[0].plot(time, series["free_energy"][0] - lost, color=color, lw=2.5, ls=":", label=f"{label}, {words}")
            row[1].semilogy(time, np.where(series["kl"] > 0, series["kl"], np.nan), color=color, label=words)
            for kind, dashes in (("mean", "-"), ("covariance", "--")):
                error = series[f"{kind}_error"]
                row[2].semilogy(time[1:], error[1:], color=color, ls=dashes, label=f"{kind}, {words}")
        case = runs.case(f"e1_{dims}_0.1")
        problem, physics = case.problem, case.physics
        stiffness, start = np.array(problem.stiffness), (np.array(problem.mean), np.array(problem.covariance))
        moments = gaussian_moments(*start, stiffness, physics.collision_strength, physics.temperature, time)
        equilibrium = gaussian_equilibrium(stiffness, physics.temperature)
        exact = [gaussian_relative_entropy(*moment, *equilibrium) for moment in zip(*moments, strict=True)]
        row[1].semilogy(time, exact, **GRID, ls="--", label="exact")
        row[0].set(xlabel=TIME, ylabel="free energy F  [normalised]", title=f"free energy, {dims.upper()}")
        row[1].set(xlabel=TIME, ylabel="KL(f | f$_∞$)", title=f"relative entropy, {dims.upper()}")
        row[2].set(xlabel=TIME, ylabel="largest error  [powers of v$_{th}$, ω$_p$]", title=f"moments, {dims.upper()}")
    for panel, columns in zip(axes[1], (1, 3, 2), strict=True):
        legend_below(panel, columns)
    return titled(figure, "Figure 2. Example 1: energy decay and moments", runs, "e1_1d_0.1")


def fig3(runs: Experiments) -> plt.Figure:
    """Example 2: the marginals change from the start to the two bumps of the equilibrium, as those of the grid
    solver."""
    times = (0.0, 1.0, 2.0, 5.0)
    figure, axes = panels(2, len(times), 3.4, 3.0, sharey="row")
    solution, case = runs.reference("e2", times), runs.case("e2")
    look = {"color": BLUE, "alpha": 0.35, "fill": True, "label": "JKO particles"}
    snapshots = snapshots_at(runs, "e2", times)
    for number, (column, snapshot) in enumerate(zip(axes.T, snapshots, strict=True)):
        draw_marginals(column, case, snapshot, solution, number, look, label="grid solver")
        draw_equilibrium(column, snapshot, case)
        column[0].set_title(f"t = {snapshot.time:g} / ω$_p$")
    for panel in axes.flat:
        panel.set(xlim=(-4, 4))
    for panel in axes[:, 1:].flat:
        panel.set_ylabel("")
    legend_of_all(figure, axes[0, 0], 3)
    return titled(figure, "Figure 3. Example 2: marginals in x (top) and v", runs, "e2")


def fig4(runs: Experiments) -> plt.Figure:
    """Example 2: KL decays exponentially, like that of the grid solver."""
    figure, axes = panels(1, 2, 5.4, 4.0)
    curves = {"e2": ("JKO, second order", BLUE), "e2_paper": ("paper's scheme", RED)}
    draw_kl(axes[0], runs, curves, runs.reference("e2", (0.0, 1.0, 2.0, 5.0)))
    return titled(figure, "Figure 4. Example 2: relative entropy", runs, "e2", "e2_paper")


def fig5(runs: Experiments) -> plt.Figure:
    """Example 3: in a periodic potential the marginals approach the equilibrium, which is asymmetric for the
    ratchet."""
    times = (0.0, 1.0, 5.0)
    figure, axes = panels(2, 2, 5.4, 3.6)
    for row, name in zip(axes, ("e3_cosine", "e3_ratchet"), strict=True):
        solution, case = runs.reference(name, times), runs.case(name)
        snapshots = snapshots_at(runs, name, times)
        for number, (snapshot, color) in enumerate(zip(snapshots, (SKY, ORANGE, BLUE), strict=True)):
            look = {"color": color, "lw": 1.5, "label": f"JKO particles, t = {snapshot.time:g}"}
            grid = {"label": "grid solver, same times"} if color == BLUE else {}
            draw_marginals(row, case, snapshot, solution, number, look, **grid)
        draw_equilibrium(row, snapshots[-1], case)
        for panel in row:
            panel.set(title=f"{case.problem.potential_name} potential", ylim=(0, None))
    legend_of_all(figure, axes[0, 0], 3)
    return titled(figure, "Figure 5. Example 3: marginals", runs, "e3_cosine", "e3_ratchet")


def fig6(runs: Experiments) -> plt.Figure:
    """Example 3: KL decays exponentially in both potentials."""
    figure, axes = panels(2, 2, 5.4, 3.6)
    for row, name in zip(axes, ("e3_cosine", "e3_ratchet"), strict=True):
        draw_kl(row, runs, {name: ("JKO, second order", BLUE)}, runs.reference(name, (0.0, 1.0, 5.0)))
        row[0].set_title(f"{runs.case(name).problem.potential_name} potential")
    return titled(figure, "Figure 6. Example 3: relative entropy", runs, "e3_cosine", "e3_ratchet")


def fig7(runs: Experiments) -> plt.Figure:
    """Example 4: all six marginals equal those of one dimension, at the start and at the end."""
    figure, axes = panels(2, 3, 4.4, 3.2, sharex="row", sharey="row")
    case = runs.case("e4")
    times = (0.0, case.time.end)
    solution, snapshots = runs.reference("e4", times), snapshots_at(runs, "e4", times)
    for number, (snapshot, color, dashes) in enumerate(zip(snapshots, (ORANGE, BLUE), ("--", "-"), strict=True)):
        when = f"t = {snapshot.time:g}"
        look = {"color": color, "lw": 1.4, "label": f"JKO particles, {when}"}
        draw_marginals(axes, case, snapshot, solution, number, look, ls=dashes, label=f"grid solver 1D, {when}")
    for panel in axes.flat:
        panel.set(xlim=(-4, 4))
    for panel in axes[:, 1:].flat:
        panel.set_ylabel("")
    legend_of_all(figure, axes[0, 0], 4)
    return titled(figure, "Figure 7. Example 4: marginals in 3D3V", runs, "e4")


def fig8(runs: Experiments) -> plt.Figure:
    """Example 4: KL decays exponentially and is three times that of one dimension."""
    figure, axes = panels(1, 2, 5.4, 4.0)
    solution = runs.reference("e4", (0.0, runs.case("e4").time.end))
    draw_kl(axes[0], runs, {"e4": ("JKO in 3D3V", BLUE)}, solution, directions=3)
    return titled(figure, "Figure 8. Example 4: relative entropy per direction", runs, "e4")


def fig9(runs: Experiments) -> plt.Figure:
    """Two-stream instability: the beams form a vortex at weak κ, and collisions mix them at strong κ."""
    times = (0.0, 10.0, 20.0, 30.0, 40.0)
    figure, axes = panels(2, len(times), 3.0, 2.9, sharex=True, sharey=True)
    for row, name in zip(axes, ("e5_weak", "e5_strong"), strict=True):
        case, snapshots = runs.case(name), snapshots_at(runs, name, times)
        found = [merged(snapshot.histograms[0].values, case.particles.count) for snapshot in snapshots]
        brightest = float(np.percentile(found, 99.8))
        for panel, snapshot, values in zip(row, snapshots, found, strict=True):
            extent = (*snapshot.histograms[0].x_range, *snapshot.histograms[0].v_range)
            look = {"cmap": "cividis", "vmin": 0, "vmax": brightest, "aspect": "auto", "origin": "lower"}
            image = panel.imshow(values.T, extent=extent, **look)
            panel.grid(False)
            panel.set_title(f"κ = {case.physics.collision_strength:g}, t = {snapshot.time:g}", fontsize=10)
        row[0].set_ylabel("v  [v$_{th}$]")
        figure.colorbar(image, ax=row, label="f(x, v)  [n̄/v$_{th}$]", extend="max")
    for panel in axes[-1]:
        panel.set_xlabel("x  [v$_{th}$/ω$_p$]")
    return titled(figure, "Figure 9. Two-stream instability: phase space", runs, "e5_weak", "e5_strong")


def fig10(runs: Experiments) -> plt.Figure:
    """Two-stream instability: the field energy rises at weak κ and falls at strong κ; entropy with the grid
    solver's."""
    figure, axes = panels(1, 3, 5.0, 4.0)
    entropy = axes[0, 2]
    for panel, name, colors in ((axes[0, 0], "e5_weak", (BLUE, SKY)), (axes[0, 1], "e5_strong", (RED, ORANGE))):
        solution, kappa = runs.reference(name), runs.case(name).physics.collision_strength
        curves = {name: ("JKO, tanh", colors[0]), f"{name}_leaky": ("JKO, leaky ReLU", colors[1])}
        draw_field(panel, runs, curves, solution)
        panel.set_title(f"field energy, κ = {kappa:g}")
        for run, (label, color) in curves.items():
            series = runs.series(run)
            error = np.abs(series["entropy"] / np.interp(series["time"], solution.times, solution.entropy) - 1)
            entropy.semilogy(series["time"][1:], error[1:], color=color, label=f"κ = {kappa:g}, {label[5:]}")
    entropy.axhline(0.01, color="grey", lw=1, ls=":", label="target: 1 %")
    entropy.set(xlabel=TIME, ylabel="|∫f log f / that of the grid − 1|", title="entropy, relative error")
    legend_below(entropy)
    return titled(figure, "Figure 10. Two-stream instability: field energy and entropy", runs, "e5_weak", "e5_strong")


def variance(marginal: Marginal) -> float:
    """Variance of a coordinate from its histogram."""
    edges = np.linspace(*marginal.range, len(marginal.values) + 1)
    centres, share = 0.5 * (edges[1:] + edges[:-1]), marginal.values / marginal.values.sum()
    # The variance of a histogram is larger than that of its data by the variance of one bin (Sheppard's correction).
    return float(share @ centres**2 - (share @ centres) ** 2 - (edges[1] - edges[0]) ** 2 / 12)


def fig11(runs: Experiments) -> plt.Figure:
    """Two-stream instability in 1D3V: the field energy is that of 1D1V, and the transverse directions stay
    Maxwellian."""
    figure, axes = panels(1, 2, 5.8, 4.2)
    field, heat = axes[0]
    curves = {"e6": ("1D3V, tanh", BLUE), "e6_leaky": ("1D3V, leaky ReLU", RED)}
    draw_field(field, runs, {**curves, "e5_weak": ("1D1V, tanh", GREEN)}, runs.reference("e5_weak"))
    field.set_title("field energy")
    for name, (label, color) in curves.items():
        snapshots = snapshots_of(runs, name)
        for axis, look in ((1, {"marker": "o", "ls": "-"}), (2, {"marker": "s", "ls": "--"})):
            found = [variance(snapshot.marginals[1 + axis]) for snapshot in snapshots]
            time = [snapshot.time for snapshot in snapshots]
            heat.plot(time, found, color=color, ms=4, label=f"v$_{axis + 1}$, {label}", **look)
    bath = runs.case("e6").physics.temperature
    heat.axhspan(0.99 * bath, 1.01 * bath, color="grey", alpha=0.25, lw=0, label="T of the bath ± 1 %")
    heat.set(xlabel=TIME, ylabel="variance of a transverse velocity  [v$_{th}$²]", title="transverse temperature")
    legend_below(heat, 3)
    return titled(figure, "Figure 11. Two-stream instability in 1D3V", runs, "e6", "e6_leaky")


FIGURES: dict[str, Callable[[Experiments], plt.Figure]] = {
    draw.__name__: draw for draw in (fig1, fig2, fig3, fig4, fig5, fig6, fig7, fig8, fig9, fig10, fig11)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FIGURE", help=", ".join(FIGURES), default=[])
    parser.add_argument("--out", type=Path, help="default: runs/paper, with --quick runs/paper_quick")
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks of each run")
    parser.add_argument("--quick", action="store_true", help="small noisy runs, a minute in all")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(FIGURES)}")
    out = options.out or Path("runs/paper_quick" if options.quick else "runs/paper")
    kind = QuickExperiments if options.quick and options.ranks == 1 else Experiments
    runs = kind(out / "runs", options.ranks, options.quick)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        with plt.rc_context(STYLE):
            try:
                figure = FIGURES[name](runs)
            except subprocess.CalledProcessError as failure:
                print(f"paper_figures: {name} is not made, a run failed: {failure}", file=sys.stderr)
                return 1
            path = out / "figures" / f"{name}.png"
            figure.savefig(path)
            plt.close(figure)
        print(path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
