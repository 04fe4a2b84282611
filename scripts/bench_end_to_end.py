#!/usr/bin/env python
"""The time of a complete step: the paper's scheme in plain torch, and the default method with native kernels.

    python scripts/bench_end_to_end.py [--quick] [--count N] [--rounds N]

The case is the two-stream instability with weak collisions (the paper's section 4.2, jobs/e5_two_stream_weak.toml). The
paper's scheme is Adam with 50 iterations on all particles by automatic differentiation, a first-order step and the
linear log det. It is written in torch from the mesh to the move. Every method has its own run. The runs take turns, one
step each, and processor time is measured. A step includes its diagnostics but no files. Prints one line for each method
and kernels:

    name, ms_per_step, steps, hours, ratio

ms_per_step is the least time of a step. steps is the number of steps to t = 40, and hours their time if all steps were
like the measured ones (bench_methods.py measures errors). ratio is the speed relative to the paper's scheme, as a
median over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench_methods import CASES, changes_of
from benchmark import print_heading
from experiments import JOBS

from hpc_kjko import kernels
from hpc_kjko.case import config
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

#: Method of bench_methods.py, and kernels. The others are compared with the first.
VARIANTS = (
    ("paper's scheme", "torch"),
    ("paper's scheme", "native"),
    ("regression (default)", "torch"),
    ("regression (default)", "native"),
    ("regression (default), 2h", "native"),
    ("varpro, order 2, 30 hidden steps", "torch"),
    ("varpro, order 2, 30 hidden steps", "native"),
    ("varpro, order 2, 10 hidden steps, 2h", "native"),
)


class Run:
    """A run after its first, slower steps."""

    def __init__(self, method: str, backend: str, count: int, cold: int):
        self.name, self.backend = f"{method}, {backend}", backend
        job = CASES["e5"][0]
        changes = [f"particles.count={count}", *changes_of("e5", method), f"method.first_iterations={cold}"]
        if backend == "torch":  # in large pieces, because torch does not need the pieces of reproducible sums
            changes.append("run.reproducible=false")
        self.case = config.load(JOBS / f"{job}.toml", changes)
        os.environ["KJKO_KERNELS"] = backend
        self.simulation = Simulation.start(self.case, Communicator())
        self.step(), self.step()

    def step(self) -> float:
        """Make one time step and return its processor time in seconds."""
        os.environ["KJKO_KERNELS"] = self.backend
        simulation, started = self.simulation, time.process_time()
        simulation.state = simulation.advance()
        simulation.step_index += 1
        measure(simulation.diagnostics, simulation.state, simulation.comm)
        return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean little")
    parser.add_argument("--count", type=int, help="particles (default 100000)")
    parser.add_argument("--rounds", type=int, help="steps of each method (default 5)")
    options = parser.parse_args()
    if not kernels.available():
        raise SystemExit(f"No comparison is possible: {kernels.describe()}.")
    count, rounds = options.count or (4096 if options.quick else 100000), options.rounds or (2 if options.quick else 5)
    torch.set_num_threads(1)
    print_heading("the paper's scheme in torch (Adam, automatic differentiation)", options.quick)
    print(f"# {count} particles")
    runs = [Run(*variant, count, cold=10 if options.quick else 100) for variant in VARIANTS]
    seconds = [[run.step() for run in runs] for _ in range(rounds)]
    print("name, ms_per_step, steps, hours, ratio")
    baseline = runs[0].case.time.steps
    for i, run in enumerate(runs):
        steps, least = run.case.time.steps, min(row[i] for row in seconds)
        ratio = statistics.median(row[0] * baseline / (row[i] * steps) for row in seconds)
        print(f'"{run.name}", {1e3 * least:.1f}, {steps}, {least * steps / 3600:.3f}, {ratio:.1f}')


if __name__ == "__main__":
    main()
