"""Times of steps on a GPU, and how often they wait for it, for bench_gpu.py."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_results import Bench

from hpc_kjko.case.config import from_table
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.species import plasma_of

#: Number of particles that are drawn for a step; all others are copies of them.
DRAWN = 2**20


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
