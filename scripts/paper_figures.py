#!/usr/bin/env python
"""The paper's figures 1-11 (arXiv:2603.23901) from run folders; what is missing is run, and that takes hours.

    python scripts/paper_figures.py [fig1 … fig11] [--out DIR] [--ranks N] [--quick]

Runs are kept in DIR/runs (see experiments.py), figures go to DIR/figures. --quick is a size for the tests, a minute in
all: the pictures are complete but noisy. The paper's own pictures are not at hand: these are built from its words.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from experiments import JOBS, QUICK, QUICK_STEPS, RUNS, STEPS, Experiments, slope

from hpc_kjko import cli, plotting
from hpc_kjko.diagnostics import Marginal
from hpc_kjko.output import Snapshot, list_snapshots, read_snapshot
from hpc_kjko.plotting import plt
from hpc_kjko.reference.gaussian import gaussian_equilibrium, gaussian_moments, gaussian_relative_entropy
from hpc_kjko.reference.grid_1d1v import GridSolution

# Okabe & Ito's colours, told apart by the colour-blind too.
BLUE, RED, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
STYLE = {**plotting._STYLE, "figure.dpi": 110, "legend.fontsize": 9}
TIME, UNIT = "time  [1/ω$_p$]", {"x": "v$_{th}$/ω$_p$", "v": "v$_{th}$"}
GRID = {"color": "black", "lw": 0.9}

#: Fewer particles than this are shown in a quarter of the bins.
MANY = 30_000


# -- what the figures share --------------------------------------------------------------------------------------------


class QuickExperiments(Experiments):
    """Runs of the quick size on one rank, in this process: starting Python takes longer than they do."""

    def folder(self, name: str) -> Path:
        folder, run = self.out / name, RUNS[name]
        if not (folder / "run.json").exists():
            settings = [part for change in run.changes + QUICK[run.job] for part in ("--set", change)]
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            with contextlib.redirect_stdout(sys.stderr):
                code = cli.main(["run", str(JOBS / f"{run.job}.toml"), "--out", str(folder), *settings])
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if code:
                sys.exit(code)
        return super().folder(name)


def snapshots_at(runs: Experiments, name: str, times: Sequence[float]) -> list[Snapshot]:
    """The snapshots nearest to the times."""
    folder, step = runs.folder(name) / "snapshots", runs.case(name).time.step
    steps = np.array(list_snapshots(folder))
    return [read_snapshot(folder, int(steps[np.abs(steps * step - time).argmin()])) for time in times]


def merged(values: np.ndarray, count: int) -> np.ndarray:
    """A histogram of ``count`` particles, in a quarter of the bins along each axis where they are few."""
    if count >= MANY:
        return values
    for axis in range(values.ndim):
        shape = values.shape[:axis] + (values.shape[axis] // 4, 4) + values.shape[axis + 1 :]
        values = values.reshape(shape).mean(axis=axis + 1)
    return values


def draw_marginal(axes: plt.Axes, marginal: Marginal, runs: Experiments, name: str, **style) -> None:
    """The particles' histogram of one coordinate, as a probability density."""
    case = runs.case(name)
    values = merged(marginal.values, case.particles.count) / case.problem.mass
    axes.stairs(values, np.linspace(*marginal.range, len(values) + 1), **style)


def draw_grid(axes: plt.Axes, solution: GridSolution, density: np.ndarray, kind: str, limits: tuple, **style) -> None:
    """The grid solver's marginal of a density on its grid, as a probability density."""
    points = solution.x if kind == "x" else solution.v
    values = density.sum(axis=1 if kind == "x" else 0)
    inside = (points >= limits[0]) & (points <= limits[1])
    axes.plot(points[inside], (values / (values.sum() * (points[1] - points[0])))[inside], **{**GRID, **style})


def draw_equilibrium(axes: plt.Axes, equilibrium, kind: str, axis: int, limits: tuple) -> None:
    edges = np.linspace(*limits, 321)
    values = equilibrium.marginal(kind, axis, edges) / np.diff(edges)
    axes.plot(0.5 * (edges[1:] + edges[:-1]), values, color=GREEN, lw=1.4, ls="--", label="equilibrium")


def titled(figure: plt.Figure, title: str, runs: Experiments, *names: str) -> plt.Figure:
    """The figure under its title and, below that, those of κ, N and h that the runs have in common."""
    cases = [runs.case(name) for name in names]
    found = {
        "κ": {case.physics.collision_strength for case in cases},
        "N": {case.particles.count for case in cases},
        "h": {case.time.step for case in cases},
    }
    common = [f"{name} = {values.pop():g}" for name, values in found.items() if len(values) == 1]
    figure.suptitle(f"{title}\n{', '.join(common)}", fontsize=12)
    return figure


def draw_kl(
    axes: plt.Axes,
    difference: plt.Axes,
    runs: Experiments,
    curves: dict[str, tuple[str, dict]],
    solution: GridSolution,
    directions: int = 1,
) -> None:
    """KL divergence by the tracked log-density on a logarithmic scale against the grid solver's, and the difference."""
    expected, end = solution.relative_entropy / solution.mass, solution.times[-1]
    for label, (name, style) in curves.items():
        series = runs.series(name)
        found, time = series["kl"] / directions, series["time"]
        axes.semilogy(time, np.where(found > 0, found, np.nan), label=label, **style)
        difference.plot(time, np.abs(found - np.interp(time, solution.times, expected)), label=label, **style)
    late = (solution.times >= 0.3 * end) & (solution.times <= 0.9 * end)
    rate = -np.polyfit(solution.times[late], np.log(expected[late]), 1)[0]
    axes.semilogy(solution.times, expected, **GRID, ls="--", label=f"grid solver, late ∝ exp(−{rate:.2f} ω$_p$t)")
    difference.axhline(0.03, color="grey", lw=1, ls=":", label="target of docs/results.md: 0.03")
    per = " / 3" if directions == 3 else ""
    axes.set(xlabel=TIME, ylabel=f"KL(f | f$_∞$){per}")
    difference.set(xlabel=TIME, ylabel=f"|KL{per} − KL of the grid solver|", ylim=(0, None))
    axes.legend()
    difference.legend()


def panels(
    rows: int, columns: int, width: float = 4.6, height: float = 3.5, **options
) -> tuple[plt.Figure, np.ndarray]:
    """A figure of rows × columns axes."""
    size = (width * columns, height * rows + 0.6)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, **options)


def below(figure: plt.Figure, axes: plt.Axes, columns: int) -> None:
    """One legend for the whole figure, below it."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# -- the figures -------------------------------------------------------------------------------------------------------


def fig1(runs: Experiments) -> plt.Figure:
    """Example 1, drift error (38): first order in the step, and over time against score matching.

    The paper: its root falls like h; JKO is the steadier of the two in 1D and the better late in 3D.
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
    left.minorticks_off() if len(steps) < 3 else left.xaxis.minorticks_off()
    left.set_title("against the step")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
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
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
    return titled(figure, "Figure 1. Example 1: drift error", runs, "e1_1d_0.1", "e1_3d_0.1")


def fig2(runs: Experiments) -> plt.Figure:
    """Example 1: the free energy decays as the dissipation says, KL as that of the exact Gaussians, and the moments."""
    figure, axes = panels(2, 3)
    schemes = (("0.1", BLUE, "paper's scheme"), ("second_0.1", RED, "second order"))
    for row, dims in zip(axes, ("1d", "3d"), strict=True):
        for name, color, words in schemes:
            series = runs.series(f"e1_{dims}_{name}")
            time, lost = series["time"], plotting.dissipated(series)
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
        for panel in row:
            panel.legend(fontsize=8)
    return titled(figure, "Figure 2. Example 1: energy decay and moments", runs, "e1_1d_0.1")


def fig3(runs: Experiments) -> plt.Figure:
    """Example 2: the marginals go from the start over to the equilibrium's two bumps, on top of the grid solver's."""
    times = (0.0, 1.0, 2.0, 5.0)
    figure, axes = panels(2, len(times), 3.4, 3.0, sharey="row")
    solution, case = runs.reference("e2", times), runs.case("e2")
    equilibrium = case.problem.equilibrium(case.physics.temperature)
    snapshots = snapshots_at(runs, "e2", times)
    for column, snapshot, density in zip(axes.T, snapshots, solution.snapshots, strict=True):
        for panel, marginal in zip(column, snapshot.marginals, strict=True):
            kind, limits = marginal.kind, marginal.range
            draw_marginal(panel, marginal, runs, "e2", color=BLUE, alpha=0.35, fill=True, label="JKO particles")
            draw_grid(panel, solution, density, kind, limits, label="grid solver")
            draw_equilibrium(panel, equilibrium, kind, 0, limits)
            panel.set(xlabel=f"{kind}  [{UNIT[kind]}]", xlim=(-4, 4))
        column[0].set_title(f"t = {snapshot.time:g} / ω$_p$")
    for panel in axes[:, 0]:
        panel.set_ylabel("probability density")
    below(figure, axes[0, 0], 3)
    return titled(figure, "Figure 3. Example 2: marginals in x (top) and v", runs, "e2")


def fig4(runs: Experiments) -> plt.Figure:
    """Example 2: KL decays exponentially, as that of the grid solver."""
    figure, axes = panels(1, 2, 5.4, 4.0)
    curves = {"JKO, second order": ("e2", {"color": BLUE}), "paper's scheme": ("e2_paper", {"color": RED})}
    draw_kl(*axes[0], runs, curves, runs.reference("e2", (0.0, 1.0, 2.0, 5.0)))
    return titled(figure, "Figure 4. Example 2: relative entropy", runs, "e2", "e2_paper")


def fig5(runs: Experiments) -> plt.Figure:
    """Example 3: in a periodic potential the marginals go to the equilibrium's, asymmetric in the ratchet."""
    times = (0.0, 1.0, 5.0)
    figure, axes = panels(2, 2, 5.4, 3.6)
    for row, name in zip(axes, ("e3_cosine", "e3_ratchet"), strict=True):
        solution, case = runs.reference(name, times), runs.case(name)
        equilibrium = case.problem.equilibrium(case.physics.temperature)
        for snapshot, density, color in zip(
            snapshots_at(runs, name, times), solution.snapshots, (SKY, ORANGE, BLUE), strict=True
        ):
            for panel, marginal in zip(row, snapshot.marginals, strict=True):
                label = f"JKO particles, t = {snapshot.time:g}"
                draw_marginal(panel, marginal, runs, name, color=color, lw=1.5, label=label)
                own = {"label": "grid solver, same times"} if color == BLUE else {}
                draw_grid(panel, solution, density, marginal.kind, marginal.range, **own)
        for panel, marginal in zip(row, snapshot.marginals, strict=True):
            draw_equilibrium(panel, equilibrium, marginal.kind, 0, marginal.range)
            panel.set(xlabel=f"{marginal.kind}  [{UNIT[marginal.kind]}]", ylabel="probability density")
            panel.set(title=f"{case.problem.potential_name} potential", ylim=(0, None))
    below(figure, axes[0, 0], 3)
    return titled(figure, "Figure 5. Example 3: marginals", runs, "e3_cosine", "e3_ratchet")


def fig6(runs: Experiments) -> plt.Figure:
    """Example 3: KL decays exponentially in both potentials."""
    figure, axes = panels(2, 2, 5.4, 3.6)
    for row, name in zip(axes, ("e3_cosine", "e3_ratchet"), strict=True):
        draw_kl(*row, runs, {"JKO, second order": (name, {"color": BLUE})}, runs.reference(name, (0.0, 1.0, 5.0)))
        row[0].set_title(f"{runs.case(name).problem.potential_name} potential")
    return titled(figure, "Figure 6. Example 3: relative entropy", runs, "e3_cosine", "e3_ratchet")


def fig7(runs: Experiments) -> plt.Figure:
    """Example 4: all six marginals, at the start and at the end, are those of one dimension."""
    figure, axes = panels(2, 3, 4.4, 3.2, sharex="row", sharey="row")
    times = (0.0, runs.case("e4").time.end)
    solution = runs.reference("e4", times)
    for snapshot, density, color, dashes in zip(
        snapshots_at(runs, "e4", times), solution.snapshots, (ORANGE, BLUE), ("--", "-"), strict=True
    ):
        when = f"t = {snapshot.time:g}"
        for panel, marginal in zip(axes.flat, snapshot.marginals, strict=True):
            kind = marginal.kind
            draw_marginal(panel, marginal, runs, "e4", color=color, lw=1.4, label=f"JKO particles, {when}")
            draw_grid(panel, solution, density, kind, marginal.range, ls=dashes, label=f"grid solver in 1D, {when}")
            panel.set(xlabel=f"{kind}$_{marginal.axis + 1}$  [{UNIT[kind]}]", xlim=(-4, 4))
    for panel in axes[:, 0]:
        panel.set_ylabel("probability density")
    below(figure, axes[0, 0], 4)
    return titled(figure, "Figure 7. Example 4: marginals in 3D3V", runs, "e4")


def fig8(runs: Experiments) -> plt.Figure:
    """Example 4: KL decays exponentially and is three times that of one dimension."""
    figure, axes = panels(1, 2, 5.4, 4.0)
    solution = runs.reference("e4", (0.0, runs.case("e4").time.end))
    draw_kl(*axes[0], runs, {"JKO in 3D3V": ("e4", {"color": BLUE})}, solution, directions=3)
    return titled(figure, "Figure 8. Example 4: relative entropy per direction", runs, "e4")


def fig9(runs: Experiments) -> plt.Figure:
    """Two-stream instability: the beams roll up into a vortex at weak κ; collisions mix them at strong κ."""
    times = (0.0, 10.0, 20.0, 30.0, 40.0)
    figure, axes = panels(2, len(times), 3.0, 2.9, sharex=True, sharey=True)
    for row, name in zip(axes, ("e5_weak", "e5_strong"), strict=True):
        case = runs.case(name)
        for panel, snapshot in zip(row, snapshots_at(runs, name, times), strict=True):
            histogram = snapshot.histograms[0]
            image = panel.imshow(
                merged(histogram.values, case.particles.count).T,
                origin="lower",
                extent=(*histogram.x_range, *histogram.v_range),
                aspect="auto",
                cmap="cividis",
                vmin=0,
                vmax=0.45,
            )
            panel.grid(False)
            panel.set_title(f"κ = {case.physics.collision_strength:g}, t = {snapshot.time:g}", fontsize=10)
        row[0].set_ylabel("v  [v$_{th}$]")
    for panel in axes[-1]:
        panel.set_xlabel("x  [v$_{th}$/ω$_p$]")
    figure.colorbar(image, ax=axes, label="f(x, v)  [n̄/v$_{th}$]", shrink=0.9, extend="max")
    return titled(figure, "Figure 9. Two-stream instability: phase space", runs, "e5_weak", "e5_strong")


def fig10(runs: Experiments) -> plt.Figure:
    """Two-stream instability: the field energy rises at weak κ and falls at strong κ; entropy against the grid's."""
    figure, axes = panels(1, 3, 5.0, 4.0)
    entropy = axes[0, 2]
    for panel, name, colors in ((axes[0, 0], "e5_weak", (BLUE, SKY)), (axes[0, 1], "e5_strong", (RED, ORANGE))):
        solution, kappa = runs.reference(name), runs.case(name).physics.collision_strength
        for run, color, words in ((name, colors[0], "tanh"), (f"{name}_leaky", colors[1], "leaky ReLU")):
            series = runs.series(run)
            time = series["time"]
            panel.semilogy(time, series["field_energy"], color=color, label=f"JKO, {words}")
            wanted = np.interp(time, solution.times, solution.entropy)
            error = np.abs(series["entropy"] / wanted - 1)
            entropy.semilogy(time[1:], error[1:], color=color, label=f"κ = {kappa:g}, {words}")
        panel.semilogy(solution.times, solution.field_energy, **GRID, ls="--", label="grid solver")
        panel.set(xlabel=TIME, ylabel="field energy  ½∫|E|²dx  [normalised]", title=f"field energy, κ = {kappa:g}")
        # The grid solver has no noise: a damped wave falls below what the particles can show.
        panel.set_ylim(bottom=0.1 * series["field_energy"].min())
        panel.legend()
    entropy.axhline(0.01, color="grey", lw=1, ls=":", label="target of docs/results.md: 1 %")
    entropy.set(xlabel=TIME, ylabel="|∫f log f / that of the grid − 1|", title="entropy, relative error")
    entropy.legend(fontsize=8)
    return titled(figure, "Figure 10. Two-stream instability: field energy and entropy", runs, "e5_weak", "e5_strong")


def temperatures(runs: Experiments, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times [n], and variance of the transverse velocities v_2, v_3 [n, 2] from their marginals."""
    folder = runs.folder(name) / "snapshots"
    snapshots = [read_snapshot(folder, step) for step in list_snapshots(folder)]
    return np.array([s.time for s in snapshots]), np.array(
        [[_variance(m) for m in s.marginals[-2:]] for s in snapshots]
    )


def _variance(marginal: Marginal) -> float:
    edges = np.linspace(*marginal.range, len(marginal.values) + 1)
    centres, share = 0.5 * (edges[1:] + edges[:-1]), marginal.values / marginal.values.sum()
    # A histogram is wider than what it counts by a bin's own variance (Sheppard's correction).
    return float(share @ centres**2 - (share @ centres) ** 2 - (edges[1] - edges[0]) ** 2 / 12)


def fig11(runs: Experiments) -> plt.Figure:
    """Two-stream instability in 1D3V: the field energy is that of 1D1V, the transverse directions stay Maxwellian."""
    figure, axes = panels(1, 2, 5.8, 4.2)
    field, heat = axes[0]
    for name, color, words in (("e6", BLUE, "1D3V, tanh"), ("e6_leaky", RED, "1D3V, leaky ReLU")):
        series = runs.series(name)
        field.semilogy(series["time"], series["field_energy"], color=color, label=words)
        time, found = temperatures(runs, name)
        for axis, (marker, dashes) in enumerate((("o", "-"), ("s", "--"))):
            label = f"v$_{axis + 2}$, {words}"
            heat.plot(time, found[:, axis], color=color, marker=marker, ms=4, ls=dashes, label=label)
    series, solution = runs.series("e5_weak"), runs.reference("e5_weak")
    field.semilogy(series["time"], series["field_energy"], color=GREEN, label="1D1V, tanh")
    field.semilogy(solution.times, solution.field_energy, **GRID, ls="--", label="grid solver, 1D1V")
    field.set(xlabel=TIME, ylabel="field energy  ½∫|E|²dx  [normalised]", title="field energy")
    field.legend()
    bath = runs.case("e6").physics.temperature
    heat.axhspan(0.99 * bath, 1.01 * bath, color="grey", alpha=0.25, lw=0, label="T of the bath ± 1 %")
    heat.set(xlabel=TIME, ylabel="variance of a transverse velocity  [v$_{th}$²]", title="transverse temperature")
    heat.legend(fontsize=8)
    return titled(figure, "Figure 11. Two-stream instability in 1D3V", runs, "e6", "e6_leaky")


FIGURES: dict[str, Callable[[Experiments], plt.Figure]] = {
    draw.__name__: draw for draw in (fig1, fig2, fig3, fig4, fig5, fig6, fig7, fig8, fig9, fig10, fig11)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FIGURE", help=", ".join(FIGURES), default=[])
    parser.add_argument("--out", type=Path, help="default: runs/paper, with --quick runs/paper_quick")
    parser.add_argument("--ranks", type=int, default=1, help="of each run")
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
