#!/usr/bin/env python
"""Full-size validation against independent solutions; prints the tables of docs/results.md.

    python scripts/validate.py [two_stream] [growth] [landau] [--ranks N] [--out DIR]

two_stream: jobs/two_stream_full.toml (65536 particles, κ = 0.01, half an hour on two cores) against the grid solver;
growth and landau: collisionless rates against the kinetic dispersion relation (seconds). Exit code 1 if a target is
missed. Small versions of all three are in the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

from hpc_kjko import config
from hpc_kjko.reference.dispersion import landau_root, two_stream_growth_rate
from hpc_kjko.reference.grid_1d1v import solve
from hpc_kjko.series import read_series

JOBS = Path(__file__).parent.parent / "jobs"


def run(case: Path, out: Path, ranks: int, *changes: str) -> dict[str, np.ndarray]:
    """Run a case on ``ranks`` ranks, unless ``out`` holds it finished, and return its time series."""
    status = out / "run.json"
    if not (status.exists() and json.loads(status.read_text())["status"] == "finished"):
        launcher = [str(Path(sysconfig.get_path("scripts")) / "mpirun"), "-n", str(ranks)] if ranks > 1 else []
        settings = [part for change in changes for part in ("--set", change)]
        line = [*launcher, sys.executable, "-m", "hpc_kjko", "run", str(case), "--out", str(out), "--force", *settings]
        subprocess.run(line, check=True)
    return read_series(out / "series.h5")


def two_stream(out: Path, ranks: int) -> bool:
    """Field energy within 10 % of the grid solver at t = 10, 15, 20, 25."""
    path = JOBS / "two_stream_full.toml"
    series, case = run(path, out / "two_stream_full", ranks), config.load(path)
    plasma = case.problem

    def density(x, v):
        beams = sum(
            np.exp(-0.5 * ((v - b) / plasma.thermal_speed) ** 2) for b in (plasma.beam_speed, -plasma.beam_speed)
        )
        profile = 1 + plasma.amplitude * np.cos(plasma.wavenumber * x)
        return profile * beams / (2 * math.sqrt(2 * math.pi) * plasma.thermal_speed)

    physics, step = case.physics, case.time.step / 4
    reference = solve(
        density,
        plasma.periods[0],
        physics.collision_strength,
        physics.temperature,
        case.time.end,
        step,
        cells=(128, 1024),
    )
    at = {name: np.interp(series["time"], reference.times, getattr(reference, name)) for name in
          ("field_energy", "kinetic_energy", "entropy", "free_energy")}  # fmt: skip
    print(f"two_stream: kappa = {physics.collision_strength:g}, {case.particles.count} particles, {ranks} rank(s)")
    print("   t   field energy    grid solver    error   kinetic   entropy  (relative errors)")
    passed = True
    for time in (5, 10, 15, 20, 25, 30, 40, 50):
        i = round(time / case.time.step)
        error = {name: series[name][i] / values[i] - 1 for name, values in at.items()}
        passed &= time not in (10, 15, 20, 25) or abs(error["field_energy"]) <= 0.10
        print(
            f"{time:4d} {series['field_energy'][i]:14.6g} {at['field_energy'][i]:14.6g} "
            f"{error['field_energy']:8.2%} {error['kinetic_energy']:9.3%} {error['entropy']:9.3%}"
        )
    for end in (25.0, case.time.end):
        early = series["time"] <= end
        difference = (series["field_energy"] - at["field_energy"])[early]
        norm = np.linalg.norm(difference) / np.linalg.norm(at["field_energy"][early])
        print(f"relative L2 of the field energy over [0, {end:g}]: {norm:.4f}")
    print(f"seconds per step: median {np.median(series['seconds'][1:]):.3g}, in all {series['seconds'].sum():.0f}")
    return passed


def growth(out: Path, ranks: int) -> bool:
    """Two-stream growth rate within 2 % of the dispersion relation: field energy grows at twice the rate."""
    changes = ("physics.collision_strength=0.0", "problem.amplitude=1e-4", "particles.count=1048576", "time.end=36.0")
    series = run(JOBS / "two_stream_full.toml", out / "growth", ranks, *changes)
    expected = two_stream_growth_rate(2 * math.pi / 31.4159265, 2.4, 1.0)
    late = (series["time"] > 24) & (series["time"] < 35)
    rate = 0.5 * np.polyfit(series["time"][late], np.log(series["field_energy"][late]), 1)[0]
    print(f"two-stream growth rate: {rate:.5f}, dispersion relation {expected:.5f}, error {rate / expected - 1:.2%}")
    return abs(rate / expected - 1) <= 0.02


def landau(out: Path, ranks: int) -> bool:
    """Landau damping rate and frequency within 2 %, from the maxima of the field energy."""
    series = run(JOBS / "landau_damping.toml", out / "landau", ranks)
    root = landau_root(0.5, 1.0)
    time, energy = series["time"], np.log(series["field_energy"])
    peaks = [i for i in range(5, len(time) - 1) if energy[i] > max(energy[i - 1], energy[i + 1]) and time[i] < 15]
    parabolas = [np.polyfit(time[i - 1 : i + 2] - time[i], energy[i - 1 : i + 2], 2) for i in peaks]
    when = np.array([time[i] - b / (2 * a) for i, (a, b, _) in zip(peaks, parabolas, strict=True)])
    height = np.array([c - b**2 / (4 * a) for a, b, c in parabolas])
    rate, frequency = 0.5 * np.polyfit(when, height, 1)[0], np.pi / np.diff(when).mean()
    print(
        f"Landau damping: gamma = {rate:.5f} (theory {root.imag:.5f}, {rate / root.imag - 1:.2%}), "
        f"omega = {frequency:.5f} (theory {root.real:.5f}, {frequency / root.real - 1:.2%})"
    )
    return abs(rate / root.imag - 1) <= 0.02 and abs(frequency / root.real - 1) <= 0.02


def main() -> int:
    validations = {"growth": growth, "landau": landau, "two_stream": two_stream}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(validations), default=[])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/validation"), help="run folders; finished ones are reused"
    )
    options = parser.parse_args()
    unknown = set(options.names) - validations.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(validations)}")
    chosen = options.names or list(validations)
    results = {name: validations[name](options.out, options.ranks) for name in chosen}
    for name, passed in results.items():
        print(f"{name}: {'within its target' if passed else 'MISSES its target'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
