"""Random two-stream cases from the usual range of parameters, compared with the grid solver, for validate.py.

The seed alone determines the cases: none is left out or drawn again. For each case there are three runs: the default
method, `method.solver = "varpro"`, and the paper's scheme.
"""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiments import PAPER_SCHEME, RUNS, Experiments, Run, relative_l2
from records import record

from hpc_kjko.running.validity import noise_floor

#: Number of cases, and the settings of the three runs of each case.
CASES = 12
METHODS = {
    "default": (),
    "varpro": ("method.solver=varpro",),
    "paper": PAPER_SCHEME,
}
#: Targets: relative L² error of the field energy, and error of ∫f log f, absolute or as a fraction of its change.
FIELD, ENTROPY, ENTROPY_PART = 0.10, 0.03, 1e-3


def table_of(random: np.random.Generator) -> dict[str, dict[str, Any]]:
    """A case: collisions, beams, wave, box, step and particles are drawn from ranges, scales in their logarithm."""
    return {
        "problem": {
            "kind": "two_stream",
            "velocity_dims": int(random.choice([1, 3])),
            "beam_velocity": round(random.uniform(0.8, 3.0), 3),
            "thermal_speed": round(random.uniform(0.3, 1.2), 3),
            "amplitude": float(f"{np.exp(random.uniform(np.log(0.005), np.log(0.2))):.3g}"),
            "length": round(random.uniform(2 * np.pi, 10 * np.pi), 3),
        },
        "physics": {"collision_strength": float(f"{np.exp(random.uniform(np.log(3e-3), 0.0)):.3g}")},
        "particles": {
            "count": round(np.exp(random.uniform(np.log(4096), np.log(65536)))),
            "seed": int(random.integers(1000)),
        },
        "grid": {"cells": int(random.choice([64, 128]))},
        "time": {"step": float(random.choice([0.05, 0.1, 0.2])), "end": 20.0},
        "output": {"every": 1, "particles_every": 0, "histogram_every": 0},
    }


def draw(seed: int, folder: Path) -> list[str]:
    """Write the case files of a seed to a folder, register their runs, and return the names of the cases."""
    random, names = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, CASES + 1):
        name = f"drawn_{seed}_{number}"
        lines = [
            line
            for section, keys in table_of(random).items()
            for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
        ]
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
        job = str((folder / name).resolve())
        RUNS.update({f"{name}_{method}": Run(job, changes) for method, changes in METHODS.items()})
        names.append(name)
    return names


@dataclass(frozen=True)
class Errors:
    """Errors of a run against the grid solver.

    Attributes:
        field: relative L² error of the field energy, while it is above the noise floor; NaN if it never is.
        entropy: largest error of ∫f log f.
        allowed: the target for this error.
        uncertified: number of steps without a certificate of 1; None if the run has no certificates.

    A run that stops early has infinite errors.
    """

    field: float
    entropy: float
    allowed: float
    uncertified: int | None

    @property
    def is_good(self) -> bool:
        return not self.field > FIELD and self.entropy <= self.allowed

    def __str__(self) -> str:
        field = "below noise" if np.isnan(self.field) else f"{100 * self.field:.1f} %"
        if np.isinf(self.entropy):
            return "gave up before the end"
        uncertified = "–" if self.uncertified is None else str(self.uncertified)
        return f"{field:>11s} {self.entropy:8.4f}{' ' if self.entropy <= self.allowed else '!'} {uncertified:>4s}"


def errors_of(runs: Experiments, name: str) -> Errors:
    try:
        runs.folder(name)
    except subprocess.CalledProcessError:
        return Errors(math.inf, math.inf, ENTROPY, None)
    case, series, grid = runs.case(name), runs.series(name), runs.reference(name)
    field, entropy = (np.interp(series["time"], grid.times, values) for values in (grid.field_energy, grid.entropy))
    # the other velocity directions are always in equilibrium with the bath
    others = case.problem.velocity_dims - 1
    entropy = entropy - 0.5 * others * case.problem.mass * (1 + np.log(2 * np.pi * case.physics.temperature))
    above = field > noise_floor(case)["field_energy"]
    return Errors(
        relative_l2(series["field_energy"][above], field[above]) if above.any() else float("nan"),
        float(np.abs(series["entropy"] - entropy).max()),
        max(ENTROPY, ENTROPY_PART * float(np.ptp(entropy))),
        int((series["certificate"][1:] != 1).sum()) if "certificate" in series else None,
    )


def drawn(runs: Experiments, seed: int = 1) -> bool:
    """Field energy and entropy are within their targets in all cases, and better than the paper's scheme in all but
    one."""
    names = draw(seed, runs.out.parent / "drawn")
    print(f"seed {seed}; of each run: field energy, entropy (! is more than is asked), steps without certificate")
    good, better = 0, 0
    for name in names:
        found = {method: errors_of(runs, f"{name}_{method}") for method in METHODS}
        case = runs.case(f"{name}_default")
        problem, count = case.problem, case.particles.count
        print(
            f"{name}: 1D{problem.velocity_dims}V, κ = {case.physics.collision_strength:g}, "
            f"beams ±{problem.beam_speed:g} of width {problem.thermal_speed:g}, amplitude {problem.amplitude:g}, "
            f"L = {problem.periods[0]:g}, {case.grid.cells[0]} cells, h = {case.time.step:g}, {count} particles"
        )
        for method, errors in found.items():
            print(f"    {method:10s} {errors}", flush=True)
        ours, papers = found["default"], found["paper"]
        good += ours.is_good
        better += not ours.field > papers.field and ours.entropy <= papers.entropy
    print(f"default: {good} of {CASES} as is asked, {better} better than the paper's scheme in both")
    case = f"{CASES} random two-stream cases, seed {seed}"
    passed = record(case, "cases within their targets", f"{CASES}", f"{good}", good == CASES)
    row = (case, "cases better than the paper's scheme in field and entropy", f"≥ {CASES - 1}", f"{better}")
    return record(*row, better >= CASES - 1) and passed
