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
import json
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_objective import SPACES
from benchmark import print_heading
from gpu_kernels import bench_network, bench_objective, bench_particles, bench_potential, bench_tensor
from gpu_results import Bench
from gpu_steps import bench_step

from hpc_kjko.kernels import cuda

ROOT = Path(__file__).resolve().parents[1]
#: Target seconds of a step by number of particles, and target fraction of the rate of a matrix product.
STEP_TARGETS = {2**26: 0.5, 2**16: 0.008}
OBJECTIVE_TARGET = 0.8
#: Select the tests of products on tensor cores, and those of other code that has not yet run on a GPU.
TENSOR = "tensor_cores"
NEW = f"(potential or density or pairs or regression or coulomb or species or moments) and not {TENSOR}"


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


def tensor(bench: Bench) -> None:
    """Products on tensor cores, then their tests."""
    bench_tensor(bench)
    run_tests(bench, TENSOR)


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
    "tensor": tensor,
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
