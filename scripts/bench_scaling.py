#!/usr/bin/env python
"""Strong and weak scaling over ranks: seconds by phase, communicated bytes, and memory of a rank.

    python scripts/bench_scaling.py [--ranks 1,2] [--particles N] [--steps N] [--rounds N] [--quick] [--out FILE.csv]

Strong scaling: N particles on every number of ranks. Weak scaling: N particles on each rank. The case is
jobs/e7_two_stream_3d3v.toml with the default method and one thread per rank. The numbers of ranks take turns in several
rounds, and the median of all timed steps is used. The first two steps are not timed, because they train longer. Phases:

    push       drift and kick, deposit included
    solve      the field from the density, broadcast included
    batches    the part of the inner solve that is the same for any N: hidden steps, coefficients of psi, control field
    train      the rest of the inner solve: the averages that tie psi to all particles
    move       the particles along the control field, with relaxation of log f and the certificate
    measure    a row of the time series
    wait       the part of all these in collective calls: communication, and waiting for slower ranks

The efficiency is t(1)/(n t(n)) for strong and t(1)/t(n) for weak scaling. With more ranks than cores it means nothing,
but bytes, memory and the fraction of the root's solve do.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

JOB = Path(__file__).resolve().parent.parent / "jobs" / "e7_two_stream_3d3v.toml"
PHASES = ("push", "solve", "batches", "train", "move", "measure", "wait")
#: Number of steps before the timed ones.
WARM = 2
QUICK = ("grid.cells=[8,8,8]", "method.hidden=[16,16]", "method.iterations=4", "method.first_iterations=10")


class Clock:
    """Seconds by phase (without the phases inside it), and the bytes of collective calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes, self.calls = 0, 0
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, phase: str, nested: bool = False) -> None:
        """Measure the time of a method. The time of a nested phase also counts for the phase around it."""
        method = getattr(owner, name)

        def watched(*arguments: Any, **settings: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return method(*arguments, **settings)
            finally:
                took = time.perf_counter() - started
                self.seconds[phase] += took - self._inner.pop()
                if not nested:
                    self._inner[-1] += took

        setattr(owner, name, watched)

    def count(self, owner: Any, name: str) -> None:
        """Count the bytes of the array in a collective call."""
        method: Callable[..., Any] = getattr(owner, name)

        def counted(array: np.ndarray) -> Any:
            self.bytes, self.calls = self.bytes + array.nbytes, self.calls + 1
            return method(array)

        setattr(owner, name, counted)


def worker(options: argparse.Namespace) -> None:
    """Make the timed steps, on one of the ranks."""
    from hpc_kjko.case import config
    from hpc_kjko.files.runfolder import peak_memory
    from hpc_kjko.parallel.comm import Communicator
    from hpc_kjko.running.diagnostics import measure
    from hpc_kjko.running.simulation import Simulation

    comm, clock = Communicator.world(), Clock()
    for name in ("sum", "bcast_array"):
        clock.count(comm, name)
        clock.watch(comm, name, "wait", nested=True)
    settings = [f"particles.count={options.particles}", *(QUICK if options.quick else ())]
    simulation = Simulation.start(config.load(JOB, settings), comm)
    solver, collision = simulation.field_solver, simulation.collisions[0]
    inner = collision._solver
    for owner, name, phase in (
        (solver, "drift", "push"),
        (solver, "kick", "push"),
        (solver, "solve", "solve"),
        (inner.fitted, "train", "batches"),
        (inner.fitted, "solve", "batches"),
        (inner.of_potential, "derivatives", "batches"),
        (inner, "_fit_field", "batches"),
        (collision, "fit", "train"),
        (collision, "relaxed", "move"),
        (collision, "_move", "move"),
    ):
        clock.watch(owner, name, phase)
    steps = []
    for index in range(WARM + options.steps):
        if index == WARM:
            clock.seconds.clear()
            clock.bytes = clock.calls = 0
        comm.barrier()
        started = time.perf_counter()
        simulation.state = simulation.advance()
        simulation.step_index += 1
        measuring = time.perf_counter()
        measure(simulation.diagnostics, simulation.state, comm)
        clock.seconds["measure"] += time.perf_counter() - measuring
        comm.barrier()
        steps.append(time.perf_counter() - started)
    every = comm.allgather((clock.seconds, clock.bytes, clock.calls, peak_memory()))
    if comm.is_root:
        slowest = {phase: max(seconds[phase] for seconds, *_ in every) / options.steps for phase in PHASES}
        found = {
            "step": float(np.median(steps[WARM:])),
            **slowest,
            "bytes": max(carried for _, carried, _, _ in every) // options.steps,
            "calls": every[0][2] // options.steps,
            "memory": max(memory for *_, memory in every),
        }
        print(json.dumps(found))
    comm.close()


def run(ranks: int, particles: int, options: argparse.Namespace) -> dict[str, float]:
    """Make a run on ``ranks`` ranks."""
    line = [sys.executable, __file__, "--worker", "--particles", str(particles), "--steps", str(options.steps)]
    if ranks > 1:
        line = [str(Path(sysconfig.get_path("scripts")) / "mpirun"), "-n", str(ranks), *line]
    done = subprocess.run(line + ["--quick"] * options.quick, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench_scaling: the run on {ranks} ranks failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks (default 1,2)")
    parser.add_argument("--particles", type=int, help="default 1000000")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per run (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="runs for each number of ranks (default 3)")
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="file for the table, as CSV")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.particles = options.particles or (4096 if options.quick else 1_000_000)
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.worker:
        return worker(options)
    counts = [int(count) for count in options.ranks.split(",")]
    from benchmark import print_heading  # not at the top, because the ranks do not need it

    print_heading(
        "perfect scaling from the smallest number of ranks, which the efficiency is relative to", options.quick
    )
    print(f"# {JOB.name}")
    sizes = {(kind, n): options.particles * (n if kind == "weak" else 1) for kind in ("strong", "weak") for n in counts}
    found: dict[tuple[int, int], list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for ranks, particles in dict.fromkeys((n, size) for (_, n), size in sizes.items()):
            found[ranks, particles].append(run(ranks, particles, options))
    rows = []
    for (kind, ranks), particles in sizes.items():
        runs = found[ranks, particles]
        row = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        first = next((r for r in rows if r["scaling"] == kind), None)
        base = first["step"] * first["ranks"] if first else row["step"] * ranks
        efficiency = base / (ranks * row["step"]) if kind == "strong" else base / counts[0] / row["step"]
        rows.append({"scaling": kind, "ranks": ranks, "particles": particles, "efficiency": efficiency, **row})
        numbers = " ".join(f"{phase} {row[phase]:.3f}" for phase in ("step", *PHASES))
        print(
            f"# {kind:6s} {ranks:3d} ranks {particles:10d} particles  efficiency {efficiency:.2f}  seconds: {numbers}  "
            f"{row['bytes'] / 1e6:.2f} MB in {row['calls']:.0f} calls, {row['memory'] / 1e6:.0f} MB a rank",
            flush=True,
        )
    print(", ".join(rows[0]))
    for row in rows:
        print(", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in row.values()))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
