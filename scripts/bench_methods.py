#!/usr/bin/env python
"""Accuracy and processor time of the collision methods: errors against the grid solver.

    python scripts/bench_methods.py [e4] [e5] [--quick] [--seeds N] [--out DIR]

Every method runs the same case on one core. The methods take turns in several rounds, with other random numbers in each
round. The least time and the root mean square of the errors are used. `ratio` is the speed relative to the paper's
scheme. Seconds are processor time, so other programs do not count. They include everything in a step except files.
Writes bench_methods.csv and bench_methods.png into DIR.
E5: relative L² error of the field energy, and largest relative errors of the kinetic energy and of the entropy. E4:
largest errors of the kinetic energy and of KL, per dimension. Langevin particles have no log f, so no KL and no
entropy.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from benchmark import print_heading
from experiments import JOBS, grid_solution, relative_l2

from hpc_kjko.case import config
from hpc_kjko.errors import SolverFailure
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

#: The changes of the case for each method. 2h is twice the case's own step, RATE the learning rate of Adam.
PAPER = (
    *("method.solver=adam", "method.order=1", "method.logdet=linear"),
    *("method.iterations=50", "method.first_iterations=500", "method.learning_rate=RATE"),
)
VARPRO = ("method.solver=varpro", "method.hidden=[32,32]")
METHODS = {
    "paper's scheme": PAPER,
    "adam, auto": (*PAPER, "method.logdet=exact", "method.iterations=auto", "method.held_out=true"),
    "varpro, order 1": (*VARPRO, "method.order=1", "method.iterations=2"),
    "varpro, order 2": (*VARPRO, "method.iterations=2"),
    "varpro, order 2, 10 hidden steps, 2h": (*VARPRO, "method.iterations=10", "time.step=2h"),
    "varpro, order 2, 10 hidden steps, 2h, all fitted": (
        *(*VARPRO, "method.iterations=10"),
        *("time.step=2h", "method.held_out=false"),
    ),
    "varpro, order 2, 30 hidden steps": VARPRO,
    "regression (default)": (),
    "regression (default), 2h": ("time.step=2h",),
    "score matching": (*PAPER, "method.collision=score_matching"),
    "Langevin": ("method.collision=langevin",),
}
#: Job, learning rate of Adam (with 5e-3 the paper's scheme diverges on E4), size with the paper's step, size of a test.
CASES = {
    "e5": ("e5_two_stream_weak", "5e-3", ("particles.count=16384",), ("particles.count=1024", "time.end=2.0")),
    "e4": (
        "e4_confined_3d",
        "1e-3",
        ("particles.count=16384", "time.step=0.1"),
        ("particles.count=1024", "time.end=0.4"),
    ),
}


def changes_of(name: str, method: str) -> list[str]:
    """The settings in which a method differs from the job of the case."""
    job, rate, full, _ = CASES[name]
    step = config.load(JOBS / f"{job}.toml", full).time.step
    return [change.replace("2h", str(2 * step)).replace("RATE", rate) for change in METHODS[method]]


def run_of(case: config.Case) -> tuple[dict[str, np.ndarray], float]:
    """The time series of a case, and the seconds of its steps."""
    simulation = Simulation.start(case, Communicator())
    rows = [measure(simulation.diagnostics, simulation.state, simulation.comm)]
    started = time.process_time()
    while simulation.step_index < case.time.steps:
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(simulation.diagnostics, simulation.state, simulation.comm))
    seconds = time.process_time() - started
    series = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return series | {"time": case.time.step * np.arange(case.time.steps + 1)}, seconds


def errors_of(case: config.Case, series: dict[str, np.ndarray], quick: bool) -> dict[str, float]:
    """The errors of a run against the grid solver; NaN if the method does not carry log f."""
    reference = grid_solution(case, quick=quick)

    def wanted(name: str) -> np.ndarray:
        return np.interp(series["time"], reference.times, getattr(reference, name))

    dims = case.problem.space_dims
    if case.problem.kind == "two_stream":
        kinetic = np.abs(series["kinetic_energy"] / wanted("kinetic_energy") - 1).max()
        entropy = np.abs(series["entropy"] / wanted("entropy") - 1).max() if "entropy" in series else np.nan
        field = relative_l2(series["field_energy"], wanted("field_energy"))
        return {"field": field, "kinetic": float(kinetic), "entropy": float(entropy)}
    kinetic = np.abs(series["kinetic_energy"] / dims - wanted("kinetic_energy")).max()
    kl = np.abs(series["kl"] / dims - wanted("relative_entropy")).max() if "kl" in series else np.nan
    return {"kinetic": float(kinetic), "kl": float(kl)}


def bench(name: str, quick: bool, seeds: int) -> list[dict[str, object]]:
    """One row per method: its errors over the rounds, and its least time."""
    job, _, full, small = CASES[name]
    seconds: dict[str, list[float]] = {}
    errors: dict[str, list[dict[str, float]]] = {}
    for seed, method in itertools.product(range(seeds), METHODS):
        changes = [
            *full,
            *(small if quick else ()),
            *changes_of(name, method),
            f"particles.seed={seed}",
        ]
        if quick:
            changes.append("method.first_iterations=20")
        case = config.load(JOBS / f"{job}.toml", changes)
        try:
            series, took = run_of(case)
        except SolverFailure as failure:
            print(f"# {name:3s} {method:50s} seed {seed} stopped: {failure}", flush=True)
            continue
        found = errors_of(case, series, quick)
        seconds.setdefault(method, []).append(took)
        errors.setdefault(method, []).append(found)
        numbers = "  ".join(f"{key} {value:9.4g}" for key, value in {"seconds": took, **found}.items())
        print(f"# {name:3s} {method:50s} seed {seed}  {numbers}", flush=True)
    paper = min(seconds.get("paper's scheme", [float("nan")]))
    return [
        {"case": name, "method": method, "runs": len(times), "seconds": min(times), "ratio": paper / min(times)}
        | {key: float(np.sqrt(np.mean([e[key] ** 2 for e in errors[method]]))) for key in errors[method][0]}
        for method, times in seconds.items()
    ]


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Draw the error against seconds, one panel per case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 6), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        label, text = {
            "e5": ("field", "field energy, relative L² error"),
            "e4": ("kl", "KL per dimension, largest error"),
        }[name]
        for row in rows:
            if row["case"] == name and np.isfinite(row[label]):
                color = f"C{list(METHODS).index(row['method'])}"
                axes.loglog(row["seconds"], row[label], "o", ms=9, color=color, label=row["method"])
        axes.set(xlabel="seconds, one core", ylabel=text, title=name.upper())
        axes.grid(alpha=0.3, which="both")
    handles = {
        label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--seeds", type=int, default=1, help="number of rounds, with other seeds each (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(CASES)}")
    torch.set_num_threads(1)
    print_heading("the paper's scheme, score matching, and Langevin particles, which a PIC code has", options.quick)
    rows = [row for name in options.cases or CASES for row in bench(name, options.quick, options.seeds)]
    if not rows:
        raise SystemExit("bench_methods: every run was stopped, there is nothing to compare")
    options.out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (options.out / "bench_methods.csv").open("w", newline="") as table:
        for file in (table, sys.stdout):
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, options.out / "bench_methods.png")
    print(f"# {options.out / 'bench_methods.png'}")


if __name__ == "__main__":
    main()
