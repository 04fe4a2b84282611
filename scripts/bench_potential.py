#!/usr/bin/env python
"""Speed of the kernels of a regression, compared with torch and with the multiply-add rate of the machine.

    python scripts/bench_potential.py [--quick] [--count N] [--width H]

Native kernels and torch take turns on one thread. Prints one line for each operation: `name, ns, torch_ns,
ratio_to_native, fraction_of_peak`. Nanoseconds are per particle, in the best round. The ratio is the median over
rounds. The fraction counts the multiply-adds of matrix products and of summed products, and none for tanh. It is
relative to a loop of multiply-adds in the same precision.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmark import print_heading

from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.potential_sums import PotentialSums
from hpc_kjko.kernels import require
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator

#: (periods, dx, dv)
SPACES = {"1D1V": ((1.0,), 1, 1), "1D3V": ((1.0,), 1, 3), "3D3V": (None, 3, 3)}
ROUNDS = 9


def operations(field: PotentialField, dv: int) -> dict[str, tuple[float, float]]:
    """Multiply-adds per particle for each operation, in the precision of the network and in float64."""
    inputs, width, number = field.layers[0].in_features, field.width, len(field.coefficients)
    forward, pairs, low = inputs * width + width**2, dv * (dv + 1) // 2, len(field.of_velocity)
    return {
        "values": (forward, 2 * field.of_density),
        "slopes": (forward + (dv + 1) * width**2 + (2 * dv + pairs) * width, 0),
        "normal": (forward, field.of_density * (field.of_density + 1) / 2),
        "derivatives": (forward + (dv + pairs) * width**2, (dv + pairs) * number * (number + 1) / 2),
        "barrier": (forward + (dv + pairs) * width**2, 2 * pairs * number),
        "tied": (forward + width**2 + dv * width, dv * low * (low + 2) + 2 * low),
        "training": (2 * forward + width**2, field.of_density),
    }


def calls(field: PotentialField, count: int) -> dict[str, Callable[[], object]]:
    """The operations, for particles of a plasma at rest."""
    generator, device = torch.Generator().manual_seed(1), field.layers[0].weight.device
    x = torch.rand(count, field.space_dims, generator=generator, dtype=torch.float64)
    v = torch.randn(count, field.velocity_dims, generator=generator, dtype=torch.float64)
    z = field.features(x, v).to(field.layers[0].weight)
    share, wanted = torch.full((count,), 1 / count, dtype=torch.float64).to(device), (v**2).sum(1).to(device)
    c = torch.randn(2, field.of_density, generator=generator, dtype=torch.float64).to(device)
    k = 0.01 * torch.randn(2, len(field.coefficients), generator=generator, dtype=torch.float64).to(device)
    sums = PotentialSums(field, LeastSquares(Communicator(), 1024, z.device))
    operator = Bath(temperature=1.0, collision_strength=1.0)
    objective = DensityObjective(field, operator=operator, mass=1.0, lengths=field.periods, together=1024)
    return {
        "values": lambda: field.values(z, c),
        "slopes": lambda: field.slopes(z, k, bent=1),
        "normal": lambda: sums.normal([(z, wanted, share)]),
        "derivatives": lambda: sums.derivatives([(z, share)]),
        "barrier": lambda: sums.barrier([(z, share)], k[0].cpu().numpy(), 0.1),
        "tied": lambda: sums.of_velocity([(z, share)], k[0].cpu().numpy()),
        "training": lambda: objective.evaluate(0.0, z, wanted, share, c[0], with_gradient=True),
    }


def seconds(call: Callable[[], object], backend: str) -> float:
    os.environ["KJKO_KERNELS"] = backend
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--count", type=int, default=16384)
    parser.add_argument("--width", type=int, default=64, help="width of both hidden layers (default 64)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    count, rounds = (256, 1) if options.quick else (options.count, ROUNDS)
    peak = require().peak_gflops(0.01 if options.quick else 0.2) * 1e9 / 2  # multiply-adds in float32
    print_heading("torch, one thread", options.quick)
    print("name, ns, torch_ns, ratio_to_native, fraction_of_peak")
    for space, (periods, dx, dv) in SPACES.items():
        field = PotentialField(periods, dx, dv, hidden=(options.width, options.width))
        for name, call in calls(field, count).items():
            seconds(call, "native"), seconds(call, "torch")
            times = np.array([[seconds(call, "native"), seconds(call, "torch")] for _ in range(rounds)])
            best, ratio = times.min(0), statistics.median(times[:, 1] / times[:, 0])
            single, double = operations(field, dv)[name]
            fraction = (single + 2 * double) / peak / (best[0] / count)
            native, twin = 1e9 * best / count
            print(f"{space} {name}, {native:.0f}, {twin:.0f}, {ratio:.1f}, {fraction:.2f}")


if __name__ == "__main__":
    main()
