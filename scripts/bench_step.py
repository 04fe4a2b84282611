#!/usr/bin/env python
"""The time of each part of a step, for the default method and for Coulomb collisions; also against another checkout.

    python scripts/bench_step.py [--quick] [--threads N] [--against CHECKOUT] [CASE ...]

Prints one line for each case: `name, ms, other_ms, ratio`, then the parts of a step in milliseconds. With --against the
same steps are made in turns by the code of another checkout with its own kernels; other_ms is its time. All numbers are
medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: A job, and its changes.
CASES = {
    "1D1V 65536": ("e5_two_stream_weak", []),
    "1D1V 4096": ("e5_two_stream_weak", ["particles.count=4096"]),
    "3D3V 1000000": ("e4_confined_3d", ["particles.count=1000000"]),
    "Coulomb 1D3V 1000000": (
        "landau_damping",
        [
            *("problem.velocity_dims=3", "physics.collision_operator=landau", "physics.collision_strength=0.1"),
            *("particles.count=1000000", "grid.cells=[100]"),
        ],
    ),
    "implicit Coulomb 1D3V 65536": (
        "landau_damping",
        [
            *("problem.velocity_dims=3", "physics.collision_operator=landau", "physics.collision_strength=0.1"),
            *("particles.count=65536", "grid.cells=[32]", "method.collision=jko", "time.step=0.5"),
        ],
    ),
}
#: Parts of a step: name, then module, class and method.
PARTS = {
    "hidden layers": ("inner.solvers.density", "FittedDensity", "train"),
    "coefficients of psi": ("inner.solvers.density", "FittedDensity", "solve"),
    "tie to the sample": ("inner.solvers.density", "FittedDensity", "tie"),
    "control field": ("inner.solvers.regression", "RegressionSolver", "_fit_field"),
    "relaxation of log f": ("collisions.jko", "JKOCollision", "relaxed"),
    "move": ("collisions.controlled", "ControlledCollision", "_move"),
    "all of the collision": ("running.simulation", "", "collide"),
}
ROUNDS, WARM = 7, 2


def worker(case: str, quick: bool) -> None:
    """Make a step of a case for each line of standard input, and print the time of each part."""
    import importlib

    from hpc_kjko.case import config
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.running.simulation import Simulation

    job, changes = CASES[case]
    changes = [*changes, *(["particles.count=1024"] if quick else [])]
    simulation = Simulation.start(config.load(ROOT / f"jobs/{job}.toml", changes), Communicator())
    spent: dict[str, float] = {}

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin

        return call

    for name, (module, owner, method) in PARTS.items():
        place: Any = importlib.import_module(f"hpc_kjko.{module}")
        place = getattr(place, owner) if owner else place
        setattr(place, method, watched(name, getattr(place, method)))
    print(flush=True)
    for _ in sys.stdin:
        spent.clear()
        begin = time.perf_counter()
        simulation.state = simulation.advance()
        simulation.step_index += 1
        print(json.dumps({"step": time.perf_counter() - begin, **spent}), flush=True)


class Steps:
    """A worker process with the code of one checkout."""

    def __init__(self, checkout: Path, case: str, quick: bool, threads: int):
        line = [sys.executable, __file__, "--worker", case, *(["--quick"] if quick else [])]
        places = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )
        assert self.process.stdin and self.process.stdout
        self.asked, self.said = self.process.stdin, self.process.stdout
        self.said.readline()

    def step(self) -> dict[str, float]:
        print(file=self.asked, flush=True)
        return json.loads(self.said.readline())

    def end(self) -> None:
        self.asked.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="another checkout, in which the kernels have been built"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.quick)
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(CASES)}")
    from benchmark import print_heading

    print_heading(f"another checkout, {options.threads} threads", options.quick)
    print("name, ms, other_ms, ratio")
    for case in options.cases or CASES:
        checkouts = [ROOT, *([options.against.resolve()] if options.against else [])]
        sides = [Steps(checkout, case, options.quick, options.threads) for checkout in checkouts]
        rounds = [[side.step() for side in sides] for _ in range(WARM + (1 if options.quick else ROUNDS))][WARM:]
        for side in sides:
            side.end()
        ours, others = [one[0] for one in rounds], [one[-1] for one in rounds] if options.against else []
        ratio = [other["step"] / own["step"] for own, other in zip(ours, others, strict=False)]
        middle = [1e3 * statistics.median(one["step"] for one in of) if of else float("nan") for of in (ours, others)]
        text = [f"{number:.1f}" for number in (*middle, statistics.median(ratio) if ratio else float("nan"))]
        print(f"{case}, {', '.join(number.replace('nan', '') for number in text)}")
        for part in list(ours[0])[1:]:
            print(f"#   {part}: {1e3 * statistics.median(one.get(part, 0.0) for one in ours):.1f} ms")


if __name__ == "__main__":
    main()
