#!/usr/bin/env python
"""How fast a GPU's kernels are, beside torch on the same GPU, and whole steps of a 3D3V run.

    python scripts/bench_gpu.py [--quick] [--count N] [--steps N [N ...]]

Prints three tables. Kernels of the network: milliseconds for N particles (the median of some calls), the rate of the
matrix products that it makes (bench_objective.py counts them), that rate over torch's float32 matrix product of 8192 ×
8192, and how many times longer torch takes for the same (automatic differentiation of the objective in pieces that fill
the GPU, the twin in hpc_kjko/inner/control.py for the field). Kernels of particles: milliseconds, and nanoseconds a
particle. Steps: seconds, gigabytes at most and bytes a particle.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_objective import COLLISION_STRENGTH, SPACES, STEP, TEMPERATURE, operations
from benchmark import print_heading

from hpc_kjko.case.config import from_table
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.inner.solvers.base import Sample
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels import cuda
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of

WIDTH = 32
#: Particles at a time, for what torch does.
PIECE = 2**18
#: Particles of a step that are drawn; more are copies of them.
DRAWN = 2**20


def milliseconds(call: Callable[[], Any], rounds: int = 7) -> float:
    """The median of some calls, after two that compile and allocate."""
    times = []
    for turn in range(2 + rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if turn >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def matmul_tflops() -> float:
    a = torch.randn(8192, 8192, device="cuda")
    return 2e-9 * 8192**3 / milliseconds(lambda: a @ a)


def copied_terabytes_a_second() -> float:
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2e-9 * 2**30 / milliseconds(lambda: b.copy_(a))


def bench_network(space: str, count: int, matmul: float) -> None:
    """The objective with its gradient, the moments, the field."""
    periods, dx, dv = SPACES[space]
    control = ControlField(periods, dx, dv, hidden=(WIDTH, WIDTH), skip=True, device=torch.device("cuda"))
    x, v = torch.rand(count, dx, device="cuda"), torch.randn(count, dv, device="cuda")
    with torch.no_grad():
        control.layers[-1].weight.copy_(0.1 * torch.randn(dv, WIDTH, device="cuda"))
    z = control.features(x, v)
    share = torch.full((1,), 1 / count, device="cuda").expand(count)
    sample = Sample(z, z[:, -dv:], share)
    few = min(count, 4 * PIECE)

    def line(name: str, ms: float, flops: int, torch_ms: float) -> None:
        tflops = 1e-9 * flops * count / ms
        ratio = torch_ms * count / few / ms
        print(f"{space} {name} N={count}, {ms:.3f}, {tflops:.1f}, {tflops / matmul:.2f}, {ratio:.1f}", flush=True)

    for logdet in ("exact", "linear"):
        bench_objective(control, logdet, sample, line)
    control, z = control.double(), z.double()
    with torch.no_grad():
        fused = milliseconds(lambda: control.with_jacobian(z))

        def by_torch() -> None:
            for first in range(0, few, PIECE):
                rows = z[first : first + PIECE]
                h, along = control._hidden(rows, None)
                control._output(h, rows)
                torch.stack([t @ control.layers[-1].weight.T for t in along], dim=2)

        line("field float64", fused, operations(z.shape[1], WIDTH, dv, "tanh", "exact") // 3, milliseconds(by_torch, 3))


def bench_objective(control: ControlField, logdet: Any, sample: Sample, line: Callable[..., None]) -> None:
    """The objective with its gradient, and the moments."""
    objective = JKOObjective(control, operator=Bath(COLLISION_STRENGTH, TEMPERATURE), logdet=logdet, together=1024)
    count, few, dv = len(sample.z), min(len(sample.z), 4 * PIECE), control.velocity_dims

    def by_autograd() -> None:
        objective.zero_grad()
        for first in range(0, few, PIECE):
            objective.part(STEP, *sample.rows(slice(first, first + PIECE))).backward()

    solver = VarproSolver(objective, Communicator(), iterations=1, first_iterations=1, learning_rate=1e-3)
    c = control.coefficients.double().cpu().numpy()
    flops, basis = operations(sample.z.shape[1], WIDTH, dv, "tanh", logdet), c.shape[1]
    fused = milliseconds(lambda: objective.evaluate(STEP, *sample.rows(), with_gradient=True))
    line(f"objective {logdet}", fused, flops, milliseconds(by_autograd, 3))
    with torch.no_grad():
        fused = milliseconds(lambda: solver._local(sample, c, STEP, True))
        part = Sample(*(None if rows is None else rows[:few] for rows in sample.rows(slice(count))))
        objective.together = PIECE
        in_torch = milliseconds(lambda: solver._local_in_pieces(part, c, STEP, True), 3)
    products = basis * (basis + 1) + (dv * basis * (dv * basis + 1) if logdet == "exact" else 0)
    line(f"moments {logdet}", fused, flops // 3 + products, in_torch)


def bench_particles(cells: tuple[int, ...], order: int, dtype: torch.dtype, count: int) -> None:
    grid = Grid(cells, (10.0,) * len(cells), order)  # type: ignore[arg-type]
    x = 10 * torch.rand(count, len(cells), device="cuda", dtype=dtype)
    v = torch.randn(count, 3, device="cuda", dtype=dtype)
    weight = torch.full((1,), 10.0 ** len(cells) / count, device="cuda", dtype=torch.float64).expand(1, count)
    values = torch.randn(*cells, len(cells), device="cuda", dtype=torch.float64)
    passes = {
        "drift and deposit": lambda: grid.drift(x, v, 0.1, weight, UNIT),
        "gather and kick": lambda: grid.kick(values, x, v, 0.1),
    }
    shape = "CIC" if order == 1 else "TSC"
    for name, call in passes.items():
        ms = milliseconds(call)
        where = f"{len(cells)}D {shape} {str(dtype).removeprefix('torch.')}"
        print(f"{where} {name} N={count}, {ms:.3f}, {1e6 * ms / count:.4f}", flush=True)


def bench_step(count: int, reproducible: bool, precision: str, steps: int) -> None:
    """Steps of two beams in 3D3V with the default method: E7 of the docs, with more particles."""
    table = {
        "problem": {"kind": "two_stream", "space_dims": 3, "velocity_dims": 3, "amplitude": 0.05, "mode": [1]},
        "physics": {"collision_strength": 0.01},
        "particles": {"count": min(count, DRAWN), "precision": precision},
        "grid": {"cells": [32, 32, 32] if count < 2**24 else [64, 64, 64]},
        "time": {"step": 0.1, "end": 10.0},
        "run": {"device": "cuda", "reproducible": reproducible},
    }
    comm = Communicator()
    drawn = Simulation.start(from_table(table), comm).state
    table["particles"] |= {"count": count}
    simulation = Simulation(from_table(table), comm)
    copies = math.ceil(count / len(drawn.particles.x))
    few, shard = drawn.particles, Shard.of(count, 0, 1)
    rows: dict[str, Any] = {
        name: getattr(few, name).repeat_interleave(copies, 0)[:count] for name in ("x", "v", "log_f")
    }
    rows["v"] += 0.05 * torch.randn_like(rows["v"])  # or copies would stay together
    particles = Particles(
        **rows,
        weight=equal_weights(few.total_weight, shard, comm.device),
        shard=shard,
        total_weight=few.total_weight,
        periods=few.periods,
    )
    plasma = plasma_of(particles)
    simulation.state = replace(drawn, species=plasma, field=simulation.field_solver.start(plasma))
    del drawn, few, rows, particles, plasma
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        simulation.state = simulation.advance()
        simulation.step_index += 1
        torch.cuda.synchronize()
        seconds, most = time.perf_counter() - start, torch.cuda.max_memory_allocated()
        how = f"{precision}{' reproducible' if reproducible else ''}"
        numbers = f"{seconds:.3f}, {most / 1e9:.1f}, {most / count:.0f}"
        print(f"step {step + 1} N={count} {how}, {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few particles")
    parser.add_argument("--count", type=int, help="particles of a kernel (default 10000000)")
    parser.add_argument("--steps", type=int, nargs="*", help="particles of runs (default 2^20, 2^23, 2^26)")
    options = parser.parse_args()
    if not cuda.available():
        sys.exit("There is nothing to measure: this needs an NVIDIA GPU and CuPy.")
    count = options.count or (2**18 if options.quick else 10**7)
    print_heading("torch on the same GPU, as its twin of each kernel or by automatic differentiation", options.quick)
    matmul = matmul_tflops()
    print(
        f"# float32 matrix product: {matmul:.1f} TFLOP/s; copy: {copied_terabytes_a_second():.2f} TB/s read and written"
    )
    print("name, ms, tflops, fraction_of_matmul, ratio_to_torch")
    for space in SPACES:
        bench_network(space, count, matmul)
    print("name, ms, ns_per_particle")
    for cells in ((64,), (64, 64, 64)):
        for order in (1, 2):
            bench_particles(cells, order, torch.float64, count)
    print("name, seconds, gigabytes, bytes_per_particle")
    for particles in (
        options.steps if options.steps is not None else [2**16] if options.quick else [2**20, 2**23, 2**26]
    ):
        bench_step(particles, True, "float64", 3)
        bench_step(particles, False, "float32", 3)


if __name__ == "__main__":
    main()
