#!/usr/bin/env python
"""Predicts the time and memory of a step on many ranks, from measured costs and from the calls that a step makes.

    python scripts/scaling_model.py [BENCH.csv] [--each 2.45e-6] [--batches 0.29] [--solve 0.182] [--solve-cells 128]
                                    [--latency 2e-6] [--bandwidth 1.2e10] [--speed-up 1] [--cores 2] [--out DIR]

A step of N particles on n ranks, with a mesh of M nodes:

    t = c N/n + b (0.13 + 0.19 / min(n, 2) + 0.68 / min(n, 32)) + field(n, M) + talk(n)

c: seconds per particle, for all work that grows with the number of particles. b: seconds of the batches of the inner
solve. Their number and size do not depend on N: hidden steps, coefficients of psi, control field. Both numbers are
those of a measured step in 3D3V on one thread (docs/benchmarks); a table of bench_scaling.py replaces them.

Batches are dealt to ranks in pieces of 1024 rows. A hidden step has one batch of two pieces. The coefficients of psi
and the control field have 16 batches. In hidden steps every rank solves the normal equations, and Adam moves the
parameters. This work is 0.13 of b, and it does not depend on the rows of a rank.

talk: the calls that collectives.py lists and that a test counts. A sum over ranks of B bytes costs 2 ⌈log₂ n⌉ α + 2 B/β
(recursive halving and doubling), a broadcast ⌈log₂ n⌉ α + 2 B/β. The latency α and the bandwidth β are assumptions, not
measurements. So is --speed-up, the speed of a processor relative to the measured core. R. Thakur, R. Rabenseifner,
W. Gropp, doi:10.1177/1094342005051521.

field: twice in each step the density is summed, Poisson's equation is solved, and E is sent to every rank. The solve on
one rank takes --solve seconds with --solve-cells cells along each axis, and grows as M log M. Three ways:

    root         as grid.solver = "root": one rank solves, and broadcasts E
    distributed  as grid.solver = "distributed": slabs, five transpositions, then every rank gathers phi and E
    planned      not written yet: one copy of E for all ranks of a node, in shared memory and single precision. One rank
                 of each node takes part in a reduce-scatter of the density to slabs, and in an allgather of E

Not included: waiting for slower ranks, network contention, files. The memory of a rank is that of `kjko run --dry-run`.
It is computed here for the planned way. Prints predictions for the rows of a table. Then it prints times, memory and
limits of strong scaling for 10⁶ to 10¹¹ particles, and the ways to solve on 512³ cells. Draws DIR/scaling_model.png.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from collectives import JOB, Call, bytes_of_a_row, expected

from hpc_kjko.case import config
from hpc_kjko.inner.solvers.regression import FITTED_BATCHES
from hpc_kjko.particles.state import BATCH
from hpc_kjko.running.memory import parts_of

#: Cells along each axis, by number of particles: some tens of particles per cell, and at most 512³ cells.
CELLS = {10**6: 32, 10**7: 64, 10**8: 128, 10**9: 256, 10**10: 512, 10**11: 512}
RANKS = tuple(4**power for power in range(9))
#: Ranks that share the mesh of a node in the planned way. Each has its own threads.
RANKS_OF_A_NODE = 8
#: Fractions of the time of the batches, and the most ranks that share each: work of hidden steps that does not depend
#: on rows, work of hidden steps that does, all other work.
BATCHES = ((0.13, 1), (0.19, 2), (0.68, 32))
#: Assumed size of a small object, in bytes.
SMALL = 64
WAYS = ("root", "distributed", "planned")
DENSITY, FIELD = "density", "electric field"


@dataclass(frozen=True)
class Model:
    """The measured costs of one core, and the assumed network.

    Attributes:
        each: seconds per particle.
        batches: seconds of the work that does not depend on the number of particles.
        solve: seconds of all Poisson solves of a step, on one rank with ``solve_nodes`` nodes.
    """

    each: float
    batches: float
    solve: float
    solve_nodes: int
    latency: float
    bandwidth: float
    speed_up: float

    def sum(self, ranks: int, nbytes: float) -> float:
        """Seconds of a sum over ranks."""
        return 0.0 if ranks == 1 else 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * nbytes / self.bandwidth

    def broadcast(self, ranks: int, nbytes: float) -> float:
        """Seconds of a broadcast."""
        return 0.0 if ranks == 1 else math.ceil(math.log2(ranks)) * self.latency + 2 * nbytes / self.bandwidth

    def gather(self, ranks: int, nbytes: float) -> float:
        """Seconds until every rank has the parts of all ranks, of ``nbytes`` bytes together."""
        return 0.0 if ranks == 1 else math.ceil(math.log2(ranks)) * self.latency + nbytes / self.bandwidth

    def exchange(self, ranks: int, nbytes: float) -> float:
        """Seconds of an all-to-all exchange in which each rank sends ``nbytes`` bytes to the others."""
        return (ranks - 1) * self.latency + nbytes / self.bandwidth if ranks > 1 else 0.0

    def of_call(self, call: Call, ranks: int) -> float:
        """Seconds of one call in the list of collectives.py."""
        if call.kind == "sum":
            return self.sum(ranks, call.nbytes)
        if call.kind == "broadcast":
            return self.broadcast(ranks, call.nbytes or SMALL)
        return self.gather(ranks, SMALL * ranks)

    def of_batches(self, ranks: int) -> float:
        """Seconds of the batches."""
        return self.batches * sum(part / min(ranks, most) for part, most in BATCHES)

    def talk(self, case: config.Case, ranks: int) -> float:
        """Seconds of the calls of a step, except those of the field. Each batch is dealt once."""
        calls = expected(case)
        told = sum(n * self.of_call(call, ranks) for call, n in calls.items() if call.purpose not in (DENSITY, FIELD))
        batches = FITTED_BATCHES + case.method.iterations if ranks > 2 else 0
        return told + batches * (2 * self.latency + BATCH * bytes_of_a_row(case) / self.bandwidth)

    def field(self, case: config.Case, ranks: int, way: str) -> float:
        """Seconds in a step from the density on each rank to E on every rank."""
        nodes = math.prod(case.grid.cells)
        alone = self.solve * nodes * math.log2(nodes) / (self.solve_nodes * math.log2(self.solve_nodes))
        solves = sum(n for call, n in expected(case).items() if call.purpose == DENSITY)
        if way == "root":
            told = self.sum(ranks, 8 * nodes) + self.broadcast(ranks, 24 * nodes)
            return alone / self.speed_up + solves * told
        slabs = min(ranks, case.grid.cells[0])
        transposed = 5 * self.exchange(slabs, transposed_bytes(case) / slabs)
        if way == "distributed":
            told = self.sum(ranks, 8 * nodes) + self.gather(ranks, 32 * nodes)
        else:
            between = -(-ranks // RANKS_OF_A_NODE)
            told = self.gather(between, 8 * nodes) + self.gather(between, 12 * nodes)
        return alone / slabs / self.speed_up + solves * (transposed + told)

    def best(self, case: config.Case, ranks: int) -> float:
        """Seconds of :meth:`field` with the faster of the two existing ways."""
        return min(self.field(case, ranks, way) for way in WAYS[:2])

    def step(self, case: config.Case, ranks: int, field: float | None = None) -> float:
        """Seconds of a step. ``field`` is the time of the field; by default that of the faster existing way."""
        own = self.each * case.particles.count / ranks + self.of_batches(ranks)
        return own / self.speed_up + (self.best(case, ranks) if field is None else field) + self.talk(case, ranks)


def transposed_bytes(case: config.Case) -> float:
    """Bytes of the Fourier coefficients of a real mesh, which all ranks together exchange in a transposition."""
    *others, last = case.grid.cells
    return 16 * math.prod(others) * (last // 2 + 1)


def case_of(particles: int, cells: int, way: str = "root") -> config.Case:
    """The 3D3V case with this size."""
    changes = [f"particles.count={particles}", f"grid.cells=[{cells},{cells},{cells}]"]
    return config.load(JOB, [*changes, *([f"grid.solver={way}"] if way != "planned" else [])])


def memory(particles: int, cells: int, ranks: int, way: str) -> float:
    """Bytes of memory of one rank."""
    parts = parts_of(case_of(particles, cells, way), 0, ranks, torch.device("cpu"))
    if way != "planned":
        return sum(part.nbytes for part in parts)
    nodes, others = cells**3, sum(part.nbytes for part in parts if part.name != "mesh and field")
    # an own density in double precision, and a part of the node's copy of E and of the work arrays of the slabs
    shared = 12 * nodes / min(ranks, RANKS_OF_A_NODE)
    slabs = 8 * 12 * nodes / min(ranks, cells)
    return others + 8 * nodes + shared + slabs


def read(path: Path) -> list[dict[str, float | str]]:
    """The rows of a table of bench_scaling.py."""
    with path.open(newline="") as file:
        return [{k: v if k == "scaling" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def limits(model: Model, particles: int) -> list[tuple[float, int, float]]:
    """Efficiencies of strong scaling, the largest number of ranks with each, and their seconds per step."""
    case, found = case_of(particles, CELLS[particles]), []
    alone = model.step(case, 1)
    times = {
        ranks: model.step(case, ranks) for ranks in (2**power for power in range(21)) if ranks <= particles // 1024
    }
    for wanted in (0.9, 0.5):
        most = max(ranks for ranks, seconds in times.items() if alone / (ranks * seconds) >= wanted)
        found.append((wanted, most, times[most]))
    return found


def draw(model: Model, measured: list[tuple[str, int, float, float]], path: Path) -> None:
    """Draw time per step, efficiency and memory against the number of ranks, with measured points if there are any.

    Args:
        model: the model.
        measured: scaling, number of ranks, measured seconds and predicted seconds.
        path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, 3 + bool(measured), figsize=(5.2 * (3 + bool(measured)), 4.8), layout="constrained", squeeze=False
    )
    seconds, efficiency, needed, *first = axes[0]
    for number, scaling in enumerate(dict.fromkeys(row[0] for row in measured)):
        _, ranks, took, predicted = zip(*(row for row in measured if row[0] == scaling), strict=True)
        first[0].plot(ranks, took, "o", color=f"C{number}", label=f"{scaling} scaling, measured")
        first[0].plot(ranks, predicted, "-", color=f"C{number}", label=f"{scaling} scaling, model")
        first[0].set_xscale("log", base=2)
        first[0].set(xlabel="ranks", ylabel="seconds a step", title="measured points", ylim=(0, None))
        first[0].legend(fontsize=8)
    for number, (particles, cells) in enumerate(CELLS.items()):
        ranks = [n for n in RANKS if n <= particles // 1024]
        case, color = case_of(particles, cells), f"C{number}"
        label = f"$10^{{{round(math.log10(particles))}}}$ particles, {cells}³ cells"
        times = [model.step(case, n) for n in ranks]
        planned = [model.step(case, n, model.field(case, n, "planned")) for n in ranks]
        seconds.loglog(ranks, times, "o-", color=color, ms=4, label=label)
        efficiency.semilogx(
            ranks, [times[0] / (n * t) for n, t in zip(ranks, times, strict=True)], "o-", color=color, ms=4
        )
        many = [n for n in ranks if memory(particles, cells, n, "root") < 1e12]
        needed.loglog(many, [memory(particles, cells, n, "root") / 1e9 for n in many], "o-", color=color, ms=4)
        if cells == max(CELLS.values()):
            for_planned = [times[0] / (n * t) for n, t in zip(ranks, planned, strict=True)]
            seconds.loglog(ranks, planned, "--", color=color, label=f"{label}, planned field")
            efficiency.semilogx(ranks, for_planned, "--", color=color)
            needed.loglog(many, [memory(particles, cells, n, "planned") / 1e9 for n in many], "--", color=color)
    least = model.of_batches(max(RANKS)) / model.speed_up
    seconds.axhline(least, color="k", lw=0.8, ls=":")
    seconds.text(1, 1.1 * least, "batches", fontsize=8)
    seconds.set(xlabel="ranks", ylabel="seconds a step (model)", title="3D3V, strong scaling")
    efficiency.axhline(0.5, color="k", lw=0.8, ls=":")
    efficiency.set(
        xlabel="ranks", ylabel="parallel efficiency (model)", title="t(1) / (n t(n)) on n ranks", ylim=(0, 1.05)
    )
    needed.set(xlabel="ranks", ylabel="GB a rank", title="memory a rank")
    seconds.legend(fontsize=7.5)
    for one in axes[0]:
        one.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", help="a table written by bench_scaling.py --out")
    parser.add_argument("--measured-cells", type=int, default=32, help="cells along an axis in the table's runs (32)")
    parser.add_argument("--each", type=float, default=2.45e-6, help="seconds per particle (2.45e-6)")
    parser.add_argument("--batches", type=float, default=0.29, help="seconds of the batches in a step (0.29)")
    parser.add_argument("--solve", type=float, default=0.182, help="seconds of a Poisson solve on one rank (0.182)")
    parser.add_argument("--solve-cells", type=int, default=128, help="cells along an axis in that solve (128)")
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds per message (2e-6)")
    parser.add_argument("--bandwidth", type=float, default=1.2e10, help="bytes per second of a rank (1.2e10)")
    parser.add_argument("--speed-up", type=float, default=1.0, help="processor speed relative to the measured core (1)")
    parser.add_argument("--cores", type=int, default=2, help="cores of the measured machine (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    network = {name: getattr(options, name) for name in ("latency", "bandwidth", "speed_up")}
    model = Model(options.each, options.batches, 2 * options.solve, options.solve_cells**3, **network)
    rows, measured = read(options.table) if options.table else [], []
    if rows:
        single = next(row for row in rows if row["ranks"] == 1)
        each = (single["step"] - single["solve"] - single["batches"]) / single["particles"]
        solve = {"solve": single["solve"], "solve_nodes": options.measured_cells**3}
        model = replace(model, each=each, batches=single["batches"], **solve)
        print(f"measured against the model, {options.cores} cores:")
    here = replace(model, speed_up=1.0)
    for row in rows:
        ranks, particles = int(row["ranks"]), int(row["particles"])
        sharing = max(1.0, ranks / options.cores)  # ranks on the same core take turns
        case = case_of(particles, options.measured_cells)
        turns = replace(here, speed_up=1 / sharing)
        predicted = turns.step(case, ranks, turns.field(case, ranks, "root"))
        forecast = memory(particles, options.measured_cells, ranks, "root")
        measured.append((row["scaling"], ranks, row["step"], predicted))
        print(
            f"  {row['scaling']:6s} {ranks:3d} ranks {particles:10.0f} particles: {row['step']:.3f} s, model "
            f"{predicted:.3f} s; {row['memory'] / 1e9:.2f} GB, of which the case {forecast / 1e9:.2f} GB"
        )
    print(f"{1e6 * model.each:.2f} µs a particle and step, {1e3 * model.batches:.0f} ms of batches")
    print("model: seconds a step (of which the field; other calls), GB a rank; field by the faster way that there is")
    for particles, cells in CELLS.items():
        case = case_of(particles, cells)
        for ranks in (n for n in RANKS if n <= particles // 1024):
            field, talk = model.best(case, ranks), model.talk(case, ranks)
            print(
                f"  {particles:.0e} particles, {ranks:4d} ranks, {cells}³ cells: {model.step(case, ranks):10.3f} "
                f"({field:.3f}; {talk:.4f}), {memory(particles, cells, ranks, 'root') / 1e9:9.2f}"
            )
    print("limits of strong scaling: most ranks with an efficiency, and their seconds a step")
    for particles in CELLS:
        said = [f"{wanted:.0%} up to {ranks} ranks, {took:.3g} s" for wanted, ranks, took in limits(model, particles)]
        print(f"  {particles:.0e} particles: {'; '.join(said)}")
    cells = max(CELLS.values())
    print(f"ways to solve on {cells}³ cells: seconds a step of the field, GB a rank of 10¹¹ particles in all")
    for ranks in (512, 4096, 16384):
        for way in WAYS:
            took, size = model.field(case_of(10**11, cells), ranks, way), memory(10**11, cells, ranks, way)
            print(f"  {ranks:5d} ranks, {way:11s}: {took:8.3f} s, {size / 1e9:7.2f} GB")
    slab = transposed_bytes(case_of(10**11, cells))
    print(
        f"  a transposition moves {slab / 1e9:.3f} GB in all: {slab / 512 / 1e6:.2f} MB a rank of 512, five in a solve"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    draw(model, measured, options.out / "scaling_model.png")
    print(options.out / "scaling_model.png")


if __name__ == "__main__":
    main()
