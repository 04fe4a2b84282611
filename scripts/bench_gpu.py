#!/usr/bin/env python
"""All measurements on a GPU, in ten minutes: its tests, the performance targets, and the speed of its kernels.

    python scripts/bench_gpu.py [--out FILE] [--minutes M] [--parts PART ...] [--quick]

The parts, in this order: `tests`, those of tests/unit/test_gpu.py that have not yet run on a GPU; `targets`; `tensor`,
products on tensor cores, then their tests; `potential`, the kernels of a regression; `others`, the other tests;
`network`, `particles`, `steps`. A failure is noted, and the next part begins. Parts that do not fit into the time are
named. Prints tables, and writes all results to FILE as JSON after each part.

The targets: a step of two beams in 3D3V with the default method, 0.5 s with 2^26 particles and 8 ms with 2^16; and the
objective with its gradient at 0.8 of the rate of torch's float32 matrix product of 8192 × 8192. The time of a step is
the median after the first steps. The tables also show how often a step launched kernels on the GPU, copied, and waited.
The table `waits` names the lines that waited. For a kernel the tables have milliseconds (the median of some calls), the
rate of its products (counted as in bench_objective.py and bench_potential.py), and the ratio of torch's time to it.

Products on tensor cores (hpc_kjko/kernels/cuda/tensor.hpp) have not run on a GPU, so no run uses them. The part
`tensor` runs each kernel in both ways, with products by threads and on tensor cores. Its table has the milliseconds of
both, the ratio of the first to the second, and the relative error of both against double precision. A kernel may use
tensor cores by default if the ratio is above 1 and its errors are alike: below 1e-6 in float32, 1e-12 in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
import traceback
import warnings
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from bench_objective import COLLISION_STRENGTH, SPACES, STEP, TEMPERATURE, operations
from bench_potential import calls as potential_calls
from bench_potential import operations as potential_operations
from benchmark import print_heading

from hpc_kjko.case.config import from_table
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.base import Sample
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels.potential import Carry, Terms
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import FINE, UNIT
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 32
#: Number of particles in one piece, for operations in torch.
PIECE = 2**18
#: Number of particles that are drawn for a step; all others are copies of them.
DRAWN = 2**20
#: Target seconds of a step by number of particles, and target fraction of the rate of a matrix product.
STEP_TARGETS = {2**26: 0.5, 2**16: 0.008}
OBJECTIVE_TARGET = 0.8
#: Select the tests of products on tensor cores, and those of other code that has not yet run on a GPU.
TENSOR = "tensor_cores"
NEW = f"(potential or density or pairs or regression or coulomb or species or moments) and not {TENSOR}"


class Bench:
    """The settings and results of the measurements.

    Attributes:
        count: number of particles for a kernel.
        steps: numbers of particles for runs.
        found: all results, as they are written to the file.
    """

    def __init__(self, device: str, quick: bool, minutes: float, count: int | None, steps: list[int] | None):
        self.device, self.quick = torch.device(device), quick
        self.deadline = time.monotonic() + 60 * minutes
        self.count = count or (2**12 if device == "cpu" else 2**18 if quick else 10**7)
        self.steps = (
            steps if steps is not None else [2**12] if device == "cpu" else [2**16] if quick else [2**20, 2**23]
        )
        self.found: dict[str, Any] = {"machine": {}, "rows": [], "targets": [], "failures": {}, "left_out": []}
        self._matmul: float | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def row(self, table: str, name: str, **numbers: Any) -> None:
        """Add and print one line of a table."""
        self.found["rows"].append({"table": table, "name": name, **numbers})
        text = [f"{number:.4g}" if isinstance(number, float) else str(number) for number in numbers.values()]
        print(f"{name}, {', '.join(text)}", flush=True)

    def target(self, name: str, value: float, wanted: float, met: bool) -> None:
        self.found["targets"].append({"name": name, "value": value, "wanted": wanted, "met": met})
        print(f"# target: {name}: {value:.4g}, wanted {wanted:.4g}: {'met' if met else 'missed'}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], rounds: int = 7) -> float:
        """The median time of several calls, after two calls that compile and allocate."""
        times = []
        for turn in range(2 + (1 if self.device.type == "cpu" else rounds)):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            if turn >= 2:
                times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    @property
    def matmul(self) -> float:
        """The rate of torch's float32 matrix product, in TFLOP/s."""
        if self._matmul is None:
            size = 256 if self.device.type == "cpu" else 8192
            a = torch.randn(size, size, device=self.device)
            self._matmul = 2e-9 * size**3 / self.milliseconds(lambda: a @ a)
            self.found["machine"]["matmul_tflops"] = self._matmul
            print(f"# float32 matrix product: {self._matmul:.4g} TFLOP/s", flush=True)
        return self._matmul


# -- the tests ---------------------------------------------------------------------------------------------------------


def run_tests(bench: Bench, chosen: str) -> None:
    """Run the tests with such names. The time limit leaves time for the other parts."""
    print("name, passed, failed, skipped, seconds")
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={results}", "-k", chosen]
        begin = time.monotonic()
        said = subprocess.run(
            [*command, str(ROOT / "tests/unit/test_gpu.py")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(10, 0.4 * bench.left),
        )
        if not results.is_file():
            raise RuntimeError(said.stdout[-2000:] + said.stderr[-2000:])
        suite = xml.parse(results).getroot().find("testsuite")
    assert suite is not None
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    numbers = {"passed": total - skipped - failed, "failed": failed, "skipped": skipped}
    bench.row("tests", chosen, **numbers, seconds=time.monotonic() - begin)
    if failed:
        raise RuntimeError(said.stdout[-20000:])


# -- kernels -----------------------------------------------------------------------------------------------------------


def bench_potential(bench: Bench) -> None:
    """Measure the kernels of a regression with the default layers, in float32, in turns with torch."""
    print("name, ms, torch_ms, ratio_to_torch, tflops")
    count = min(bench.count, 2**20)
    for space, (periods, dx, dv) in {"1D1V": ((1.0,), 1, 1), "3D3V": ((1.0,) * 3, 3, 3)}.items():
        field = PotentialField(periods, dx, dv, hidden=(64, 64), device=bench.device)
        flops = potential_operations(field, dv)
        for name, call in potential_calls(field, count).items():
            with torch.no_grad(), _kernels("native"):
                ours = bench.milliseconds(call)
            with torch.no_grad(), _kernels("torch"):
                theirs = bench.milliseconds(call, 1)
            tflops = 2e-9 * sum(flops[name]) * count / ours
            bench.row(
                "potential", f"{space} {name} N={count}", ms=ours, torch_ms=theirs, ratio=theirs / ours, tflops=tflops
            )


# -- tensor cores ------------------------------------------------------------------------------------------------------


def bench_tensor(bench: Bench) -> None:
    """Times and errors of kernels with products by threads, and on tensor cores."""
    print("name, ms, tensor_ms, ratio, tflops, tensor_tflops, error, tensor_error")
    few = min(bench.count, 2**14)
    for space in ("1D1V",) if bench.device.type == "cpu" else ("1D1V", "3D3V"):
        control, sample = network_of(bench, space)
        objective = JKOObjective(control, operator=Bath(COLLISION_STRENGTH, TEMPERATURE), logdet="exact", together=1024)
        part, exact = Sample(*sample.rows(slice(few))), copy.deepcopy(objective).double()
        rows = [None if tensor is None else tensor.double() for tensor in part.rows()]
        truth = exact.evaluate(STEP, *rows, with_gradient=True)

        def gradient(of: Sample, objective: JKOObjective = objective) -> Any:
            return objective.evaluate(STEP, *of.rows(), with_gradient=True)

        flops = operations(sample.z.shape[1], WIDTH, control.velocity_dims, "tanh", "exact")
        both_ways(bench, f"{space} objective", lambda: gradient(sample), lambda: gradient(part), truth, flops)  # noqa: B023
    for dtype in (torch.float32, torch.float64):
        field = PotentialField((1.0,) * 3, 3, 3, hidden=(64, 64), device=bench.device, dtype=dtype)
        flops = potential_operations(field, 3)
        count = min(bench.count, 2**22)
        given, some, exact_some = (
            {**potential_calls(of, number), "carry": carry_call(of, number)}
            for of, number in ((field, count), (field, few), (copy.deepcopy(field).double(), few))
        )
        flops["carry"] = flops["slopes"]
        for name in ("carry",) if dtype == torch.float64 else ("carry", "tied", "training", "normal"):
            with torch.no_grad(), _kernels("native"):
                truth = exact_some[name]()
                of_one = int(2 * sum(flops[name]))
                both_ways(bench, f"{name} {dtype}", given[name], some[name], truth, of_one, count)
    run_tests(bench, TENSOR)


def both_ways(
    bench: Bench,
    name: str,
    call: Callable[[], Any],
    some: Callable[[], Any],
    truth: Any,
    flops: int,
    count: int | None = None,
) -> None:
    """A row of the table: a kernel with products by threads, then on tensor cores.

    Args:
        some: the same call for a few particles, for which ``truth`` is the result in double precision.
        flops: operations of one particle; count: of particles, if not that of the bench.
    """
    times, errors, right = [], [], numbers_of(truth)
    for way in (contextlib.nullcontext, cuda.on_tensor_cores):
        with way():
            times.append(bench.milliseconds(call))
            errors.append(float((numbers_of(some()) - right).norm() / right.norm()))
    rate = 1e-9 * flops * (count or bench.count)
    numbers = {"ms": times[0], "tensor_ms": times[1], "ratio": times[0] / times[1]}
    numbers |= {"tflops": rate / times[0], "tensor_tflops": rate / times[1]}
    bench.row("tensor", f"{name} N={count or bench.count}", **numbers, error=errors[0], tensor_error=errors[1])


def numbers_of(found: Any) -> torch.Tensor:
    """All numbers of a result, one after the other, in float64."""
    if is_dataclass(found):
        return numbers_of(list(vars(found).values()))
    if isinstance(found, tuple | list):
        return torch.cat([numbers_of(part) for part in found])
    return torch.as_tensor(found, dtype=torch.float64).cpu().flatten()


def carry_call(field: PotentialField, count: int) -> Callable[[], object]:
    """A step of particles in double precision along a potential, in the precision of its network."""
    generator, like = torch.Generator().manual_seed(1), field.layers[0].weight
    x, v = (torch.randn(count, dims, generator=generator, dtype=torch.float64) for dims in (3, 3))
    k = 0.01 * torch.randn(2, len(field.coefficients), generator=generator, dtype=torch.float64)
    terms = Terms(torch.full((count,), 1 / count, dtype=torch.float64, device=like.device), 1024, UNIT, FINE)
    how = Carry(0.1, 0.05, TEMPERATURE, True, field.periods or (), (), COLLISION_STRENGTH)
    x, v, k = (part.to(like.device) for part in (x, v, k))
    return lambda: field.network.carry(x, v, terms, k, how)


def _kernels(backend: str) -> Any:
    return mock.patch.dict(os.environ, {"KJKO_KERNELS": backend})


def bench_network(bench: Bench) -> None:
    """Measure the objective with its gradient, the moments, and the field."""
    print("name, ms, tflops, fraction_of_matmul, ratio_to_torch")
    for space in SPACES:
        for logdet in ("exact", "linear"):
            bench_objective(bench, space, logdet, everything=True)
        bench_field(bench, space)


def network_of(bench: Bench, space: str) -> tuple[ControlField, Sample]:
    periods, dx, dv = SPACES[space]
    control = ControlField(periods, dx, dv, hidden=(WIDTH, WIDTH), skip=True, device=bench.device)
    x, v = (torch.rand(bench.count, dx, device=bench.device), torch.randn(bench.count, dv, device=bench.device))
    with torch.no_grad():
        control.layers[-1].weight.copy_(0.1 * torch.randn(dv, WIDTH, device=bench.device))
    z = control.features(x, v)
    share = torch.full((1,), 1 / bench.count, device=bench.device).expand(bench.count)
    return control, Sample(z, z[:, -dv:], share)


def line(bench: Bench, name: str, ms: float, flops: int, torch_ms: float | None = None) -> float:
    """Print a row of the network's table, and return the fraction of the rate of the matrix product."""
    tflops, few = 1e-9 * flops * bench.count / ms, min(bench.count, 4 * PIECE)
    ratio = None if torch_ms is None else torch_ms * bench.count / few / ms
    fraction = tflops / bench.matmul
    bench.row("network", f"{name} N={bench.count}", ms=ms, tflops=tflops, fraction=fraction, ratio=ratio)
    return fraction


def bench_objective(bench: Bench, space: str, logdet: Any, everything: bool) -> float:
    """Measure the objective with its gradient (with ``everything`` also the moments); return its fraction of the
    rate."""
    control, sample = network_of(bench, space)
    objective = JKOObjective(control, operator=Bath(COLLISION_STRENGTH, TEMPERATURE), logdet=logdet, together=1024)
    few, dv = min(bench.count, 4 * PIECE), control.velocity_dims

    def by_autograd() -> None:
        objective.zero_grad()
        for first in range(0, few, PIECE):
            objective.part(STEP, *sample.rows(slice(first, first + PIECE))).backward()

    solver = VarproSolver(objective, Communicator(), iterations=1, first_iterations=1, learning_rate=1e-3)
    c = control.coefficients.double().cpu().numpy()
    flops, basis = operations(sample.z.shape[1], WIDTH, dv, "tanh", logdet), c.shape[1]
    fused = bench.milliseconds(lambda: objective.evaluate(STEP, *sample.rows(), with_gradient=True))
    in_torch = bench.milliseconds(by_autograd, 3) if everything else None
    fraction = line(bench, f"{space} objective {logdet}", fused, flops, in_torch)
    if everything:
        with torch.no_grad():
            fused = bench.milliseconds(lambda: solver._local(sample, c, STEP, True))
            part = Sample(*(None if rows is None else rows[:few] for rows in sample.rows(slice(bench.count))))
            objective.together = PIECE
            in_torch = bench.milliseconds(lambda: solver._local_in_pieces(part, c, STEP, True), 3)
        products = basis * (basis + 1) + (dv * basis * (dv * basis + 1) if logdet == "exact" else 0)
        line(bench, f"{space} moments {logdet}", fused, flops // 3 + products, in_torch)
    return fraction


def bench_field(bench: Bench, space: str) -> None:
    control, sample = network_of(bench, space)
    control, z, few = control.double(), sample.z.double(), min(bench.count, 4 * PIECE)
    with torch.no_grad():
        fused = bench.milliseconds(lambda: control.with_jacobian(z))

        def by_torch() -> None:
            for first in range(0, few, PIECE):
                rows = z[first : first + PIECE]
                h, along = control._hidden(rows, None)
                control._output(h, rows)
                torch.stack([t @ control.layers[-1].weight.T for t in along], dim=2)

        flops = operations(z.shape[1], WIDTH, control.velocity_dims, "tanh", "exact") // 3
        line(bench, f"{space} field float64", fused, flops, bench.milliseconds(by_torch, 3))


def bench_particles(bench: Bench) -> None:
    print("name, ms, ns_per_particle")
    count, device, dtype = bench.count, bench.device, torch.float64
    for cells in ((64,), (8, 8, 8) if device.type == "cpu" else (64, 64, 64)):
        for order in (1, 2):
            grid = Grid(cells, (10.0,) * len(cells), order)  # type: ignore[arg-type]
            x = 10 * torch.rand(count, len(cells), device=device, dtype=dtype)
            v = torch.randn(count, 3, device=device, dtype=dtype)
            weight = torch.full((1,), 10.0 ** len(cells) / count, device=device, dtype=dtype).expand(1, count)
            values = torch.randn(*cells, len(cells), device=device, dtype=dtype)
            drift = bench.milliseconds(lambda: grid.drift(x, v, 0.1, weight, UNIT))  # noqa: B023
            kick = bench.milliseconds(lambda: grid.kick(values, x, v, 0.1))  # noqa: B023
            for name, ms in (("drift and deposit", drift), ("gather and kick", kick)):
                where = f"{len(cells)}D {'CIC' if order == 1 else 'TSC'} float64"
                bench.row("particles", f"{where} {name} N={count}", ms=ms, ns=1e6 * ms / count)


# -- steps -------------------------------------------------------------------------------------------------------------


def bench_step(bench: Bench, count: int, reproducible: bool, precision: str, steps: int) -> float:
    """Make steps of two beams in 3D3V with the default method (E7 with more particles); the median time in seconds."""
    simulation = beams(bench, count, reproducible, precision)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, launches = [], {}
    for step in range(steps):
        counted = step == steps - 1  # the last step is slower, because it is profiled
        bench.wait()
        begin = time.perf_counter()
        with (
            torch.profiler.profile() if counted else contextlib.nullcontext() as profile,
            waits_noted(bench) if counted else contextlib.nullcontext() as waits,
        ):
            simulation.state = simulation.advance()
        bench.wait()
        simulation.step_index += 1
        if counted:
            launches = _launches(profile)
        else:
            times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[min(2, len(times) - 1) :])
    most = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    how = f"{precision}{' reproducible' if reproducible else ''}"
    phases = {f"{name}_s": part for name, part in simulation.seconds.items()}
    numbers = {"seconds": seconds, "first_s": times[0], "bytes_per_particle": most / count, **launches, **phases}
    bench.row("steps", f"step N={count} {how}", **numbers)
    for where, times_waited in Counter(waits or ()).most_common():
        bench.row("waits", f"step N={count} {how}: {where}", waits=times_waited)
    return seconds


@contextlib.contextmanager
def waits_noted(bench: Bench) -> Iterator[list[str]]:
    """The lines that wait for the GPU, from the warnings of torch. CuPy's launches do not wait."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if bench.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    found += [f"{Path(one.filename).name}:{one.lineno}" for one in noted if "synchroniz" in str(one.message)]


def _launches(profile: Any) -> dict[str, int]:
    """How often a step launched kernels, copied, and waited."""
    kinds = {"launches": "Launch", "copies": "Memcpy", "waits": "Synchronize"}
    counted = dict.fromkeys(kinds, 0)
    for event in profile.key_averages():
        for name, part in kinds.items():
            counted[name] += event.count * (part in event.key and event.key.startswith("cu"))
    return counted


def beams(bench: Bench, count: int, reproducible: bool, precision: str) -> Simulation:
    table: dict[str, Any] = {
        "problem": {"kind": "two_stream", "space_dims": 3, "velocity_dims": 3, "amplitude": 0.05, "mode": [1]},
        "physics": {"collision_strength": 0.01},
        "particles": {"count": min(count, DRAWN), "precision": precision},
        "grid": {"cells": [8] * 3 if count < 2**14 else [32] * 3 if count < 2**24 else [64] * 3},
        "time": {"step": 0.1, "end": 10.0},
        "run": {"device": bench.device.type, "reproducible": reproducible},
        "method": {"first_iterations": 3, "iterations": 3} if bench.device.type == "cpu" else {},
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
    rows["v"] += 0.05 * torch.randn_like(rows["v"])  # otherwise copies of a particle would stay together
    particles = Particles(
        **rows,
        weight=equal_weights(few.total_weight, shard, comm.device),
        shard=shard,
        total_weight=few.total_weight,
        periods=few.periods,
    )
    plasma = plasma_of(particles)
    simulation.state = replace(drawn, species=plasma, field=simulation.field_solver.start(plasma))
    return simulation


def bench_steps(bench: Bench) -> None:
    for count in bench.steps:
        bench_step(bench, count, True, "float64", 5)
        bench_step(bench, count, False, "float32", 5)


def measure_targets(bench: Bench) -> None:
    small = bench.quick or bench.device.type == "cpu"
    for count, wanted in STEP_TARGETS.items():
        size = min(count, bench.steps[-1] if bench.steps else count) if small else count
        seconds = bench_step(bench, size, True, "float64", 4 if size > 2**24 else 12 if not small else 4)
        bench.target(f"seconds of a step of {size} particles", seconds, wanted, seconds <= wanted)
    for space in ("1D1V",) if bench.device.type == "cpu" else SPACES:
        fraction = bench_objective(bench, space, "exact", everything=False)
        name = f"objective of {space} over a matrix product"
        bench.target(name, fraction, OBJECTIVE_TARGET, fraction >= OBJECTIVE_TARGET)


PARTS: dict[str, Callable[[Bench], None]] = {
    "tests": lambda bench: run_tests(bench, NEW),
    "targets": measure_targets,
    "tensor": bench_tensor,
    "potential": bench_potential,
    "others": lambda bench: run_tests(bench, f"not {TENSOR} and not ({NEW})"),
    "network": bench_network,
    "particles": bench_particles,
    "steps": bench_steps,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few particles")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for all results, as JSON")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins after this time (default 9)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--count", type=int, help="number of particles for a kernel (default 10000000)")
    parser.add_argument("--steps", type=int, nargs="*", help="numbers of particles for runs (default 2^20, 2^23)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a test of this script")
    options = parser.parse_args()
    if options.device == "cuda" and not cuda.available():
        sys.exit("No measurement is possible: this needs an NVIDIA GPU and CuPy.")
    print_heading("torch on the same GPU, as its twin of each kernel or by automatic differentiation", options.quick)
    bench = Bench(options.device, options.quick, options.minutes, options.count, options.steps)
    machine = {"torch": torch.__version__, "kernels": cuda.describe()}
    if options.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    bench.found["machine"] |= machine
    for part in options.parts:
        if bench.left <= 0:
            bench.found["left_out"].append(part)
            print(f"# no time was left for: {part}", flush=True)
            continue
        print(f"# {part}", flush=True)
        try:
            PARTS[part](bench)
        except Exception:  # a part that fails must not stop the others
            bench.found["failures"][part] = traceback.format_exc()
            print("\n".join(f"# {line}" for line in traceback.format_exc().splitlines()), flush=True)
        if options.out:
            options.out.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")
    if bench.found["failures"]:
        sys.exit(f"failed: {', '.join(bench.found['failures'])}")


if __name__ == "__main__":
    main()
