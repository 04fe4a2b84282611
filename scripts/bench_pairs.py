#!/usr/bin/env python
"""Speed of sums over pairs: the native kernel on one thread, and torch.

    python scripts/bench_pairs.py [--quick] [--exponent GAMMA] [--rounds N]

Both take turns, round after round. A loop of float32 multiply-adds also takes part, to measure the peak rate of a core
at that time (peak_gflops of the native module). Prints one line for each: `name, ms, pairs_per_second,
operations_per_pair, gflops, fraction_of_peak, ratio_to_native, error_of_v, error_of_g`. Times are those of the best
round, in processor seconds, so other programs on the core do not count. Fractions of the peak and ratios are medians
over rounds. Errors are the largest differences from torch in float64, divided by its largest value.

Operations per pair are the additions and multiplications of the shortest known formula, whatever is really computed:
z and Δσ, |z|² and z·Δσ, 1/|z| by an estimate and one Newton step (7), w |z|^γ and w |z|^(γ+2) (3), and the additions to
V and G. (The kernel also searches for near pairs, and torch does more.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from hpc_kjko import kernels
from hpc_kjko.collisions.pairs import Members, pair_sums

#: Numbers of particles in a collision block, and the number of pairs in all collision blocks of a call.
SIZES, PAIRS = (128, 512, 2048), 2**22


def operations(dims: int, alike: bool) -> int:
    """Operations per pair, as described above. A symmetric matrix has ``entries`` different entries."""
    entries = dims * (dims + 1) // 2
    of_both = 2 * dims + 2 * (2 * dims - 1) + 7 + 3 + dims + 4 * dims  # and w |z|^γ z, and V
    if alike:
        return of_both + 2 * entries + 2  # Σ w |z|^γ z zᵀ, Σ w |z|^γ z·Δσ
    bending = entries + (dims - 1) + (2 * entries - dims) + 2 * dims - 1  # ∇σ_i − ∇σ_j; its forms
    return of_both + bending + 2 * (2 * dims - 1) + 9  # and with σ_j


def species(dims: int, size: int, blocks: int, mass: float) -> Members:
    """A Maxwellian of temperature 1, with a score that is close to its exact one."""
    generator = torch.Generator().manual_seed(round(mass))
    v = torch.randn(blocks * size, dims, dtype=torch.float64, generator=generator) / mass**0.5
    hessian = 0.1 * torch.randn(len(v), dims, dims, dtype=torch.float64, generator=generator)
    hessian = hessian + hessian.mT - torch.eye(dims, dtype=torch.float64)
    weight = torch.full((len(v),), 1 / size, dtype=torch.float64)
    return Members(v, -v - 0.1 * v**3, hessian, weight, mass, size * np.arange(blocks + 1))


def timed(run: Callable[[], object]) -> tuple[float, object]:
    """The processor seconds of a call, and its result."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def peak() -> float:
    """The present rate of one core without other programs, in GFLOP/s."""
    started = time.perf_counter()
    seconds, rate = timed(lambda: kernels.require().peak_gflops(0.01))
    return rate * (time.perf_counter() - started) / seconds


def measure(dims: int, size: int, alike: bool, exponent: float, pairs: int, rounds: int) -> None:
    blocks = max(1, pairs // size**2)
    members = species(dims, size, blocks, 1.0)
    others = members if alike else species(dims, size, blocks, 4.0)
    times: dict[str, list[float]] = {"native": [], "torch": []}
    peaks, found = [], {}
    for _ in range(rounds):
        peaks.append(peak())
        for backend, seconds in times.items():
            os.environ["KJKO_KERNELS"] = backend
            spent, found[backend] = timed(lambda: pair_sums(members, others, exponent))
            seconds.append(spent)
    number, giga = blocks * size**2, 1e-9 * blocks * size**2 * operations(dims, alike)
    case = f"{dims}V {'like' if alike else 'unlike'} gamma={exponent:g} B={size}"
    for backend, seconds in times.items():
        fraction = statistics.median(giga / spent / most for spent, most in zip(seconds, peaks, strict=True))
        ratio = statistics.median(spent / own for spent, own in zip(seconds, times["native"], strict=True))
        errors = (
            float((ours - exact).abs().max() / exact.abs().max())
            for ours, exact in zip(found[backend], found["torch"], strict=True)
        )
        best = min(seconds)
        print(
            f"{case} {backend}, {1e3 * best:.3f}, {number / best:.3g}, {operations(dims, alike)}, {giga / best:.2f}, "
            f"{fraction:.3f}, {ratio:.2f}, " + ", ".join(f"{error:.1e}" for error in errors),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pairs and rounds: the numbers mean nothing")
    parser.add_argument("--exponent", type=float, default=-3.0, help="γ, not 0 (default -3)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 9)")
    options = parser.parse_args()
    if not kernels.available():
        sys.exit(f"No comparison is possible: {kernels.describe()}.")
    from benchmark import print_heading  # not at the top, because tests import this file from another folder

    print_heading("torch in float64, a few hundred thousand pairs at a time", options.quick)
    torch.set_num_threads(1)
    columns = "gflops, fraction_of_peak, ratio_to_native, error_of_v, error_of_g"
    print(f"name, ms, pairs_per_second, operations_per_pair, {columns}")
    rounds, pairs = options.rounds or (2 if options.quick else 9), 2**16 if options.quick else PAIRS
    for dims in (2, 3):
        for size in SIZES[:2] if options.quick else SIZES:
            measure(dims, size, True, options.exponent, pairs, rounds)
        measure(dims, 512, False, options.exponent, pairs, rounds)


if __name__ == "__main__":
    main()
