#!/usr/bin/env python
"""Predicts the time and memory of a step on many ranks from what bench_scaling.py measured on few.

    python scripts/scaling_model.py BENCH.csv [--cells 128] [--latency 2e-6] [--bandwidth 1.2e10] [--speed-up 1]
                                    [--iterations 30] [--parameters 1700] [--cores 2] [--out DIR]

A step of N particles on n ranks, a mesh of M nodes:

    t = c N/n + s(M) + i A(8 P) + (1 + p) A(8 m) + A(8 M) + B(24 M)

c: seconds a particle for push, train, move and measure, and s: the root's solve, from the one-rank row of the table
(s grows as M log M). i hidden steps sum P gradients each, varpro's 1 + p passes m moments each, the density M numbers,
and the root's field goes out to all. A sum over ranks of B bytes costs A(B) = 2 ⌈log₂ n⌉ α + 2 B/β (recursive halving
and doubling), a broadcast B(B) = ⌈log₂ n⌉ α + 2 B/β: latency α and bandwidth β are assumptions, not measurements, as is
--speed-up, by which a rank's processor is faster than the measured core. R. Thakur, R. Rabenseifner, W. Gropp,
doi:10.1177/1094342005051521. What is left out: waiting for slower ranks, network contention, files.

Prints predictions beside the rows of the table, then the times and memory of ensembles up to 10¹¹ particles on 4096
ranks, and draws all of it into DIR/scaling_model.png. More ranks than --cores share them: the model then takes as many
ranks' work one after the other.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path

#: Numbers that varpro's moments sum, 3D3V with 32 features: gram, load and curvature of two samples.
MOMENTS, PASSES = 2 * (36**2 + 2 * 3 * 36 + (3 * 36) ** 2), 4
#: Bytes of a particle in 3D3V: positions, velocities and log f in float64, twice while a step is made; the network's
#: inputs, dealt to folds, in float32; and what a pass over them needs.
PARTICLE = 2 * 7 * 8 + 2 * 10 * 4 + 12
#: Copies of the mesh that a rank holds: density, potential, field, Fourier coefficients and partial sums.
MESHES = 24
PARTICLES, RANKS = (10**8, 10**9, 10**10, 10**11), (1, 4, 16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class Model:
    """The measured costs of a core, and the assumed network."""

    seconds_per_particle: float
    solve: float
    measured_nodes: int
    base_memory: float
    latency: float
    bandwidth: float
    iterations: int
    parameters: int
    speed_up: float

    def sum(self, ranks: int, size: float) -> float:
        """Seconds of a sum over ranks of ``size`` bytes."""
        return 0.0 if ranks == 1 else 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * size / self.bandwidth

    def communication(self, ranks: int, nodes: int) -> float:
        """Seconds of a step in collective calls."""
        gradients = self.iterations * self.sum(ranks, 8 * self.parameters)
        moments = (1 + PASSES) * self.sum(ranks, 8 * MOMENTS)
        return gradients + moments + self.sum(ranks, 8 * nodes) + 0.5 * self.sum(ranks, 48 * nodes)

    def root_solve(self, nodes: int) -> float:
        """Seconds of the Poisson equation on one rank."""
        return self.solve * nodes * math.log2(nodes) / (self.measured_nodes * math.log2(self.measured_nodes))

    def step(self, particles: float, ranks: int, nodes: int) -> float:
        """Seconds of a step."""
        computed = self.seconds_per_particle * particles / ranks / self.speed_up
        return computed + self.root_solve(nodes) + self.communication(ranks, nodes)

    def memory(self, particles: float, ranks: int, nodes: int) -> float:
        """Bytes of a rank."""
        return self.base_memory + PARTICLE * particles / ranks + 8 * MESHES * nodes


def read(path: Path) -> list[dict[str, float | str]]:
    """The rows of bench_scaling.py."""
    with path.open(newline="") as file:
        return [{k: v if k == "scaling" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def draw(model: Model, nodes: int, measured: list[tuple[str, int, float, float]], path: Path) -> None:
    """Step time against ranks: as measured, for each ensemble, and the memory.

    Args:
        measured: scaling, ranks, seconds measured and predicted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (first, left, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for number, scaling in enumerate(dict.fromkeys(row[0] for row in measured)):
        _, ranks, seconds, predicted = zip(*(row for row in measured if row[0] == scaling), strict=True)
        first.plot(ranks, seconds, "o", color=f"C{number}", label=f"{scaling} scaling, measured")
        first.plot(ranks, predicted, "-", color=f"C{number}", label=f"{scaling} scaling, model")
    first.set_xscale("log", base=2)
    first.set(xlabel="ranks", ylabel="seconds a step", title="measured points", ylim=(0, None))
    first.legend()
    for number, particles in enumerate(PARTICLES):
        label = f"$10^{{{round(math.log10(particles))}}}$ particles"
        left.loglog(RANKS, [model.step(particles, n, nodes) for n in RANKS], "o-", color=f"C{number}", label=label)
        right.loglog(RANKS, [model.memory(particles, n, nodes) / 1e9 for n in RANKS], "o-", color=f"C{number}")
    serial = [model.root_solve(nodes) + model.communication(n, nodes) for n in RANKS]
    left.loglog(RANKS, serial, "k--", label="root's solve and communication")
    left.set(xlabel="ranks", ylabel="seconds a step (model)", title=f"3D3V, mesh of {nodes} nodes")
    right.set(xlabel="ranks", ylabel="GB a rank (model)")
    left.legend()
    for axes in (first, left, right):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="written by bench_scaling.py --out")
    parser.add_argument("--measured-cells", type=int, default=32, help="cells an axis of the measured runs (32)")
    parser.add_argument("--cells", type=int, default=128, help="cells an axis of the predicted runs (128)")
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds a message (2e-6)")
    parser.add_argument("--bandwidth", type=float, default=1.2e10, help="bytes a second of a rank (1.2e10)")
    parser.add_argument("--speed-up", type=float, default=1.0, help="of a rank's processor over the measured core (1)")
    parser.add_argument("--iterations", type=int, default=30, help="hidden steps of a step (30)")
    parser.add_argument("--parameters", type=int, default=1700, help="of the network (1700)")
    parser.add_argument("--cores", type=int, default=2, help="of the machine that was measured (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    rows, measured_nodes, nodes = read(options.table), options.measured_cells**3, options.cells**3
    single = next(row for row in rows if row["ranks"] == 1)
    model = Model(
        seconds_per_particle=(single["step"] - single["solve"]) / single["particles"],
        solve=single["solve"],
        measured_nodes=measured_nodes,
        base_memory=single["memory"] - PARTICLE * single["particles"] - 8 * MESHES * measured_nodes,
        latency=options.latency,
        bandwidth=options.bandwidth,
        iterations=options.iterations,
        parameters=options.parameters,
        speed_up=options.speed_up,
    )
    print(f"{1e6 * model.seconds_per_particle:.2f} µs a particle and step, solve {1e3 * model.solve:.2f} ms")
    print(f"measured against the model, {options.cores} cores:")
    here, measured = replace(model, speed_up=1.0), []
    for row in rows:
        ranks, particles = int(row["ranks"]), row["particles"]
        sharing = max(1.0, ranks / options.cores)
        predicted = replace(here, speed_up=1 / sharing).step(particles, ranks, measured_nodes)
        memory = here.memory(particles, ranks, measured_nodes)
        measured.append((row["scaling"], ranks, row["step"], predicted))
        print(
            f"  {row['scaling']:6s} {ranks:3d} ranks {particles:10.0f} particles: {row['step']:.3f} s, model "
            f"{predicted:.3f} s; {row['memory'] / 1e9:.2f} GB, model {memory / 1e9:.2f} GB"
        )
    print(f"model, {options.cells}³ cells: seconds a step (of which communication and solve), GB a rank")
    for particles in PARTICLES:
        for ranks in RANKS:
            serial = model.root_solve(nodes) + model.communication(ranks, nodes)
            step, memory = model.step(particles, ranks, nodes), model.memory(particles, ranks, nodes)
            print(f"  {particles:.0e} particles, {ranks:4d} ranks: {step:10.3f} ({serial:.3f}), {memory / 1e9:9.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(model, nodes, measured, options.out / "scaling_model.png")
    print(options.out / "scaling_model.png")


if __name__ == "__main__":
    main()
