#!/usr/bin/env python
"""Langevin particles and the deep kinetic JKO step at equal error: error as a function of processor time.

    python scripts/bench_langevin.py [bath] [dougherty] [--quick] [--seeds N] [--out DIR] [--redraw]

A step of a PIC code with Langevin collisions is cheap, and its noise decreases as N^-1/2. A JKO step is expensive, but
its particles have less noise. So each method runs with several N and several steps h, with the same quiet starts. Each
round uses other random numbers. The grid solver gives the true solution.

Seconds are processor time of the steps only, on one thread, without measurements and without other programs. Other
programs still slow down the caches, so the least time over the rounds is used for each point. Errors are root mean
squares over the rounds. Four errors are drawn:

    field      field energy, relative L2 error over the run
    late       the same over the second half of the run
    entropy    ∫ f log f divided by the mass, largest error. JKO particles carry log f; Langevin particles do not
    marginal   the distribution of v, L1 distance, mean over the second half of the run

The entropy of Langevin particles comes from a histogram in (x, v), with the correction (n - 1)/(2 N) of Miller and
Madow for n bins that are not empty. For each N the best number of bins is used, which the true solution shows. A user
does not know it, so this favours Langevin. The time of the histogram does not count. `waves` in the files is `field`
without the noise of short waves: the energy of the particles' first four waves, compared with the whole field energy of
the truth.

Errors are interpolated between points. Langevin's lines are continued beyond their last point as N^-1/2 (dashed), which
is the best possible case for them. The star marks the error below which the cheapest JKO run costs less than the
cheapest Langevin run, for all errors that JKO reached. Writes langevin.json and langevin.png into DIR. Runs that are
already in langevin.json are not repeated. --redraw makes no runs and draws the figure from that file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from benchmark import print_heading
from experiments import JOBS, LANGEVIN, grid_solution, marginal_distance, relative_l2
from scipy.special import xlogy

from hpc_kjko.case import config
from hpc_kjko.fields.base import MeshField
from hpc_kjko.files.histograms import marginals
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles
from hpc_kjko.reference.grid_1d1v import GridSolution
from hpc_kjko.running.simulation import Simulation

#: A case of jobs/, its changes, and its description.
CASES = {
    "bath": (
        "e5_two_stream_weak",
        ("physics.collision_strength=0.1", "problem.amplitude=0.05"),
        "two-stream in a bath, κ = 0.1",
    ),
    "dougherty": ("dougherty_two_stream", (), "two-stream, like-particle collisions, κ = 0.001"),
}
#: Langevin has the default order 1. With order 2, the default of JKO, it costs the same and has a smaller time error.
METHODS = {"langevin": (*LANGEVIN, "method.order=2"), "jko": ()}
#: Numbers of particles, by case, method and step.
NUMBERS = tuple(4**power for power in range(6, 11))
LADDERS = {
    "bath": {
        "langevin": {0.2: NUMBERS, 0.4: NUMBERS, 0.1: NUMBERS[:4]},
        "jko": {0.2: NUMBERS[:3], 0.4: NUMBERS[:3], 0.1: NUMBERS[1:3]},
    },
    "dougherty": {
        "langevin": {0.2: NUMBERS, 0.4: NUMBERS},
        "jko": {0.2: NUMBERS[:3], 0.4: NUMBERS[:3]},
    },
}
QUICK = dict.fromkeys(CASES, {"langevin": {0.2: (1024, 8192)}, "jko": {0.2: (1024, 4096)}})
QUICK_CHANGES = ("time.end=2.0", "method.first_iterations=20", "grid.cells=[32]")
#: Entropy and the distribution of v are compared at multiples of this time, in 1/ω_p.
EVERY = 2.0
#: The smallest numbers of bins (x, v) of a histogram, and how often both are doubled.
BINS, DOUBLINGS = (4, 16), 4
#: Number of waves in `waves`.
WAVES = 4
ERRORS = {
    "field": "field energy, relative L² error",
    "late": "field energy at late times, relative L² error",
    "entropy": "entropy per particle, largest error",
    "marginal": "distribution of v at late times, L¹ distance",
}
COLORS = {
    "langevin": {0.1: "#fdae6b", 0.2: "#e6550d", 0.4: "#7f2704"},
    "jko": {0.1: "#9ecae1", 0.2: "#3182bd", 0.4: "#08306b"},
}
NAMES = {"langevin": "Langevin", "jko": "deep JKO"}


def case_of(name: str, method: str, step: float, count: int, seed: int, quick: bool) -> config.Case:
    """The case of one run."""
    job, changes, _ = CASES[name]
    mine = (f"time.step={step}", f"particles.count={count}", f"particles.seed={seed}")
    return config.load(JOBS / f"{job}.toml", [*changes, *(QUICK_CHANGES if quick else ()), *METHODS[method], *mine])


def truth_of(name: str, quick: bool) -> GridSolution:
    """The solution of the grid solver with snapshots at multiples of EVERY, equal for all runs of a case."""
    case = case_of(name, "jko", 0.1, 1024, 0, quick)
    times = tuple(float(t) for t in np.arange(round(case.time.end / EVERY) + 1) * EVERY)
    return grid_solution(case, times, quick=quick)


def histogram_entropies(particles: Particles, length: float, reach: float) -> dict[str, float]:
    """∫ f log f / ∫ f from histograms of (x, v) in (0, length) × (−reach, reach), by their numbers of bins."""
    nx, nv = (number * 2**DOUBLINGS for number in BINS)
    i = np.floor(particles.x[:, 0].double().numpy() * (nx / length)).astype(int) % nx
    j = np.floor((particles.v[:, 0].double().numpy() + reach) * (nv / (2 * reach))).astype(int).clip(0, nv - 1)
    numbers = np.bincount(i * nv + j, minlength=nx * nv).reshape(nx, nv)
    density = particles.total_weight / (2 * reach * length)  # the mean of f in the window
    found = {}
    for level in range(DOUBLINGS, -1, -1):
        parts = numbers / numbers.sum()
        correction = (np.count_nonzero(numbers) - 1) / (2 * numbers.sum())
        entropy = xlogy(parts, parts * numbers.size * density).sum() - correction
        found["x".join(str(number * 2**level) for number in BINS)] = float(entropy)
        numbers = numbers.reshape(numbers.shape[0] // 2, 2, numbers.shape[1] // 2, 2).sum((1, 3)) if level else numbers
    return found


def energy_of_waves(field: MeshField, number: int) -> float:
    """½ ∫ E² dx of the waves with wavenumbers 1 to ``number`` (in units of the smallest), in one dimension."""
    cells, (length,) = len(field.electric), field.grid.lengths
    amplitudes = np.abs(np.fft.rfft(field.electric[:, 0])[1 : number + 1]) / cells
    return float(length * (amplitudes**2).sum())


def run_of(case: config.Case, truth: GridSolution) -> dict[str, float]:
    """The seconds of the steps of a run, and its errors."""
    simulation = Simulation.start(case, Communicator())
    every, seconds = round(EVERY / case.time.step), 0.0
    (length,), (_, ((low, high),)) = case.problem.periods, case.problem.window
    edge = truth.v[-1] + 0.5 * (truth.v[1] - truth.v[0])
    spacing = truth.x[1] - truth.x[0]
    energy, waves, distances, entropies = [], [], [], {}
    tracked = simulation.collisions[0].tracks_log_f
    while True:
        state = simulation.state
        energy.append(state.field.energy)
        waves.append(energy_of_waves(state.field, WAVES))
        turn, rest = divmod(simulation.step_index, every)
        if rest == 0:
            if tracked:
                found = {"tracked": float((state.particles.shares() * state.particles.log_f.double()).sum())}
            else:
                found = histogram_entropies(state.particles, length, edge)
            wanted = np.interp(state.time, truth.times, truth.entropy / truth.mass)
            for how, value in found.items():
                entropies[how] = max(entropies.get(how, 0.0), abs(value - wanted))
            if 2 * state.time >= case.time.end:
                _, velocities = marginals(state.particles, case.problem, simulation.comm)
                values = velocities.values / case.problem.mass
                wanted = truth.snapshots[turn].sum(0) * spacing / case.problem.mass
                distances.append(marginal_distance(values, (low, high), wanted, truth.v))
        if simulation.step_index == case.time.steps:
            break
        started = time.process_time()
        simulation.state = simulation.advance()
        seconds += time.process_time() - started
        simulation.step_index += 1
    at = case.time.step * np.arange(case.time.steps + 1)
    wanted = np.interp(at, truth.times, truth.field_energy)
    late = 2 * at >= case.time.end
    return {
        "seconds": seconds,
        "field": relative_l2(np.array(energy), wanted),
        "waves": relative_l2(np.array(waves), wanted),
        "late": relative_l2(np.array(energy)[late], wanted[late]),
        "marginal": float(np.mean(distances)),
        **{f"entropy {how}": error for how, error in entropies.items()},
    }


def bench(names: list[str], quick: bool, seeds: int, path: Path) -> list[dict[str, Any]]:
    """Make all runs, and write the file after each. Runs that are already in the file are not repeated."""
    ladders, keys = QUICK if quick else LADDERS, ("case", "method", "step", "count", "seed", "quick")
    runs = json.loads(path.read_text()) if path.exists() else []
    made = {tuple(run[key] for key in keys) for run in runs}
    wanted = (
        (name, method, step, count, seed, quick)
        for seed, name, method in itertools.product(range(seeds), names, METHODS)
        for step, counts in ladders[name][method].items()
        for count in counts
    )
    for name, method, step, count, seed, _ in (run for run in wanted if run not in made):
        found = run_of(case_of(name, method, step, count, seed, quick), truth_of(name, quick))
        runs.append(dict(zip(keys, (name, method, step, count, seed, quick), strict=True)) | found)
        path.write_text(json.dumps(runs, indent=1) + "\n")
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in found.items())
        print(f"# {name} {method} h = {step} N = {count} seed {seed}: {numbers}", flush=True)
    return chosen(runs, names, quick)


def chosen(runs: list[dict[str, Any]], names: list[str], quick: bool) -> list[dict[str, Any]]:
    """Runs of some cases with the same size. Errors of different sizes must not be mixed."""
    return [run for run in runs if run["quick"] == quick and run["case"] in names]


def points_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point for each case, method, h and N: least seconds, and root mean square errors over the seeds.

    ``entropy`` belongs to the best number of bins, which ``bins`` names.
    """
    keys, points = ("case", "method", "step", "count"), []
    for key in dict.fromkeys(tuple(run[name] for name in keys) for run in runs):
        mine = [run for run in runs if tuple(run[name] for name in keys) == key]
        errors = {
            name: float(np.sqrt(np.mean([run[name] ** 2 for run in mine])))
            for name in mine[0]
            if name not in (*keys, "seed", "quick", "seconds")
        }
        best = min((name for name in errors if name.startswith("entropy ")), key=lambda name: errors[name])
        seconds = min(run["seconds"] for run in mine)
        whole = {"runs": len(mine), "seconds": seconds, "entropy": errors[best], "bins": best.split()[1]}
        points.append({**dict(zip(keys, key, strict=True)), **whole, **errors})
    return points


def seconds_for(error: float, lines: Iterable[tuple[np.ndarray, np.ndarray]], continued: bool) -> float:
    """The least seconds for which one of the lines has at most a given error; infinite if none reaches it.

    Args:
        error: the error.
        lines: seconds [n] and errors [n] of points, by seconds. Logarithms are interpolated between points.
        continued: whether the error continues to decrease as seconds^-1/2 after the last point of a line.
    """
    found = [np.inf]
    for seconds, errors in lines:
        least = np.minimum.accumulate(errors)
        kept = np.append(True, least[1:] < least[:-1])
        seconds, least = seconds[kept], least[kept]
        if error >= least[-1]:
            found.append(float(np.exp(np.interp(-np.log(error), -np.log(least), np.log(seconds)))))
        elif continued:
            found.append(float(seconds[-1] * (least[-1] / error) ** 2))
    return min(found)


def crossing(
    langevin: list[tuple[np.ndarray, np.ndarray]], jko: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, float, float] | None:
    """The error below which JKO costs less, the seconds at this error, and Langevin's cost ratio at JKO's least error.

    None if Langevin costs less at JKO's least error.
    """
    least, most = min(errors.min() for _, errors in jko), max(errors.max() for _, errors in [*jko, *langevin])
    errors = np.geomspace(least, most, 2001)
    errors[0] = least
    ratios = np.array([seconds_for(e, langevin, True) / seconds_for(e, jko, False) for e in errors])
    if ratios[0] < 1:
        return None
    dearer = np.flatnonzero(ratios < 1)
    at = errors[dearer[0] - 1] if len(dearer) else errors[-1]
    return float(at), seconds_for(at, jko, False), float(ratios[0])


def lines_of(points: list[dict[str, Any]], method: str, error: str) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Seconds and errors of the points of one method in one case, by step h, each in ascending order of seconds."""
    lines = {}
    for step in sorted({point["step"] for point in points if point["method"] == method}):
        mine = sorted((p["seconds"], p[error]) for p in points if p["method"] == method and p["step"] == step)
        lines[step] = (np.array([seconds for seconds, _ in mine]), np.array([value for _, value in mine]))
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw a figure with one column per case and one row per error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = points_of(runs)
    names = list(dict.fromkeys(point["case"] for point in points))
    handles: dict[str, Any] = {}
    figure, panels = plt.subplots(
        len(ERRORS),
        len(names),
        figsize=(5.0 * len(names), 3.8 * len(ERRORS) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for column, name in zip(panels.T, names, strict=True):
        mine = [point for point in points if point["case"] == name]
        for axes, (error, label) in zip(column, ERRORS.items(), strict=True):
            for method, colors in COLORS.items():
                for step in sorted({point["step"] for point in mine if point["method"] == method}):
                    of_step = [point for point in mine if (point["method"], point["step"]) == (method, step)]
                    of_step.sort(key=lambda point: point["count"])  # from few particles to many
                    seconds, errors = (np.array([point[key] for point in of_step]) for key in ("seconds", error))
                    color, text = colors[step], f"{NAMES[method]}, h = {step:g}"
                    axes.loglog(seconds, errors, "o-", color=color, ms=4, lw=1.6, label=text)
                    if method == "langevin":
                        far = np.array([1.0, 30.0])
                        (far_line,) = axes.loglog(seconds[-1] * far, errors[-1] * far**-0.5, "--", color=color, lw=1.0)
                        handles["as N$^{-1/2}$"] = far_line
                    key = {
                        p["count"]: f"entropy {p['bins']}" for p in mine if (p["method"], p["step"]) == (method, step)
                    }
                    some = [
                        (run["seconds"], run[key[run["count"]] if error == "entropy" else error])
                        for run in runs
                        if (run["case"], run["method"], run["step"]) == (name, method, step)
                    ]
                    (dots,) = axes.plot(*zip(*some, strict=True), ".", color=color, ms=3, alpha=0.45)
                    handles["single runs"] = dots
            found = crossing(*(list(lines_of(mine, method, error).values()) for method in METHODS))
            text = "Langevin costs less at every error that JKO reached"
            if found:
                at, seconds, times = found
                (star,) = axes.plot(seconds, at, "*", color="k", ms=12, ls="none", zorder=5)
                handles["JKO costs less from here on"] = star
                axes.axhline(at, color="k", lw=0.6, ls=":")
                level = f"{at:.1e} nats" if error == "entropy" else f"{100 * at:.2g} %"
                text = f"JKO costs less below {level}, {times:.3g} × less at its least error"
            axes.set(xlabel="processor seconds of the steps, one thread", ylabel=label)
            axes.set_title(f"{CASES[name][2]}\n{text}", fontsize=9.5)
            axes.grid(alpha=0.25, which="both")
    of_columns = [axes.get_legend_handles_labels() for axes in panels[0]]
    handles = {label: handle for found in of_columns for handle, label in zip(*found, strict=True)} | handles
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_table(points: list[dict[str, Any]]) -> None:
    """Print the points as CSV, then the crossings as comments."""
    columns = ("case", "method", "step", "count", "runs", "seconds", *ERRORS, "waves", "bins")
    print(", ".join(columns))
    for point in points:
        print(", ".join(f"{point[key]:.4g}" if isinstance(point[key], float) else str(point[key]) for key in columns))
    for name, error in itertools.product(dict.fromkeys(point["case"] for point in points), (*ERRORS, "waves")):
        mine = [point for point in points if point["case"] == name]
        found = crossing(*(list(lines_of(mine, method, error).values()) for method in METHODS))
        said = "Langevin costs less at every error that JKO reached"
        if found:
            said = (
                f"JKO costs less below {found[0]:.3g} ({found[1]:.3g} s), {found[2]:.3g} times less at its least error"
            )
        print(f"# {name} {error}: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=3, help="number of rounds, with other seeds each (default 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--redraw", action="store_true", help="draw again from langevin.json in the --out folder")
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(CASES)}")
    table, names = options.out / "langevin.json", options.cases or list(CASES)
    if options.redraw:
        if not table.exists():
            parser.error(f"--redraw needs {table}, which a run without it writes")
        runs = chosen(json.loads(table.read_text()), names, options.quick)
        if not runs:
            size = "quick" if options.quick else "full"
            parser.error(f"{table} has no runs of {', '.join(names)} at {size} size, so there is nothing to draw")
    else:
        torch.set_num_threads(1)
        print_heading("Langevin particles, which a PIC code has", options.quick)
        options.out.mkdir(parents=True, exist_ok=True)
        runs = bench(names, options.quick, options.seeds, table)
    print_table(points_of(runs))
    draw(runs, options.out / "langevin.png")
    print(f"# {options.out / 'langevin.png'}")


if __name__ == "__main__":
    main()
