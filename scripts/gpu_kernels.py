"""Times and errors of the kernels of a GPU, for bench_gpu.py."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any
from unittest import mock

import torch
from bench_objective import COLLISION_STRENGTH, SPACES, STEP, TEMPERATURE, operations
from bench_potential import calls as potential_calls
from bench_potential import operations as potential_operations
from gpu_results import Bench

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

WIDTH = 32
#: Number of particles in one piece, for operations in torch.
PIECE = 2**18


def _kernels(backend: str) -> Any:
    return mock.patch.dict(os.environ, {"KJKO_KERNELS": backend})


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


# -- networks of a control field, and particles ------------------------------------------------------------------------


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
