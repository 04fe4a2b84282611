#!/usr/bin/env python
"""Collisionless particle-in-cell steps: native kernels, the same in torch, jaxincell, and the memory bandwidth.

    python scripts/bench_pic.py [--quick] [--rounds N]

A step is a drift with deposit and field solve, and a kick (leapfrog), as in a run. All variants take turns, round after
round, and the least time is used. Prints one line for each variant:

    name, ms, ns_per_particle_step, fraction_of_bandwidth, ratio

`ms` is the time of one step. `fraction_of_bandwidth` compares it with a copy: it is the time in which this machine
copies as many bytes as the step must read and write, divided by the time of the step. The copy uses arrays of the same
size and the same number of threads. (A step reads x and v and writes x, then reads x and v and writes v; without
write-allocate.) `ratio` is the speed relative to the baseline: jaxincell in 1D, and torch with one thread in 3D.

jaxincell (https://github.com/uwplasma/JAX-in-Cell) is not a dependency: `pip install jaxincell`, otherwise its row is
missing. It gets the same two-stream particles, mesh and step. It uses all cores, pushes three velocity components, and
keeps the history of its particles, which cannot be switched off. Its shape functions have order 2. The amplitude of the
first mode of E at the end is printed for both programs, to show that the case is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a waiting thread must not use a core that other threads need

import numpy as np
import torch
from benchmark import print_heading

from hpc_kjko import kernels
from hpc_kjko.case.config import from_table
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles, Shard, draw, equal_weights
from hpc_kjko.species import plasma_of

STEP = 0.1
#: The two-stream case of jobs/two_stream.toml.
LENGTH, CELLS_1D = 31.4159265, 128


@dataclass
class Variant:
    """A variant to be measured: ``advance`` makes several steps of ``count`` particles."""

    name: str
    count: int
    steps: int
    advance: Callable[[], object]
    bytes_per_particle: int = 0
    threads: int = 1
    backend: str = "native"
    seconds: float = math.inf  # the least time so far, for all steps

    def time(self) -> None:
        """Measure one round."""
        os.environ["KJKO_KERNELS"] = self.backend
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        self.advance()
        self.seconds = min(self.seconds, time.perf_counter() - started)

    @property
    def nanoseconds(self) -> float:
        """Time per particle and step, in ns."""
        return 1e9 * self.seconds / self.steps / self.count


def beams(count: int, dtype: torch.dtype) -> Particles:
    """The two-stream particles in 1D1V."""
    problem = from_table({"problem": {"kind": "two_stream", "length": LENGTH}}).problem
    options = {"start": "quiet", "weights": "equal", "cells": (CELLS_1D,), "seed": 0, "temperature": 1.0}
    return draw(problem, Shard.of(count, 0, 1), **options, dtype=dtype, device=torch.device("cpu"))


def thermal(count: int, cells: int, dtype: torch.dtype, by_cell: bool) -> Particles:
    """A Maxwellian in 3D3V, in a box of cells of one Debye length; in random order or sorted by cell."""
    generator = torch.Generator().manual_seed(0)
    x = cells * torch.rand(count, 3, dtype=torch.float64, generator=generator)
    v = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    if by_cell:
        order = sorting(x, cells)
        x, v = x[order], v[order]
    mass, shard = float(cells**3), Shard(0, count, count)
    x, v = x.to(dtype).remainder(cells), v.to(dtype)
    return Particles(
        x, v, torch.zeros(count, dtype=dtype), equal_weights(mass, shard), shard, mass, (float(cells),) * 3
    )


def sorting(x: torch.Tensor, cells: int) -> torch.Tensor:
    """The order of the particles by their cells of side 1."""
    index = x.long()
    return torch.argsort((index[:, 0] * cells + index[:, 1]) * cells + index[:, 2])


def pushed(particles: Particles, grid: Grid, steps: int) -> Callable[[], float]:
    """Leapfrog steps from the same start, with velocities half a step ahead. Returns |Ê_1| after the last drift."""
    solver = PoissonSolver(grid, Communicator())
    plasma = plasma_of(particles)
    start, ahead = solver.kick(solver.start(plasma), plasma, 0.5 * STEP)

    def advance() -> float:
        field, state = start, ahead
        for _ in range(steps):
            field, state = solver.drift(field, state, STEP)
            field, state = solver.kick(field, state, STEP)
        return first_mode(field.electric[..., 0])

    return advance


def first_mode(electric: np.ndarray) -> float:
    """The amplitude of the first mode of a field along its first axis."""
    return float(np.abs(np.fft.rfft(electric, axis=0)[1]).max() / len(electric))


def jaxincell(particles: Particles, steps: int) -> Callable[[], float] | None:
    """The same two-stream case in jaxincell, compiled. It returns |Ê_1| in normalised units. None if it is not
    installed.

    Normalised units: lengths in v_th/ω_p and times in 1/ω_p, with v_th = c/100 and any ω_p.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from jaxincell import Simulation
            from jaxincell._constants import elementary_charge, epsilon_0, mass_electron, speed_of_light
    except ImportError:
        return None
    frequency, speed = 1e9, 0.01 * speed_of_light
    debye, count, ions = speed / frequency, len(particles.x), CELLS_1D
    length = LENGTH * debye
    weight = frequency**2 * epsilon_0 * mass_electron * length / (count * elementary_charge**2)

    def rows(x: np.ndarray) -> np.ndarray:
        return np.column_stack([x, np.zeros((len(x), 2))])

    electrons = {
        "number_pseudoparticles": count,
        "weight": weight,
        "initial_positions": rows(debye * (particles.x.double().numpy()[:, 0] - LENGTH / 2)),
        "initial_velocities": rows(speed * particles.v.double().numpy()[:, 0]),
    }
    background = {  # one heavy ion per cell
        "number_pseudoparticles": ions,
        "weight": weight * count / ions,
        "mass_over_proton_mass": 1e9,
        "initial_positions": rows(length * ((np.arange(ions) + 0.5) / ions - 0.5)),
        "initial_velocities": np.zeros((ions, 3)),
    }
    spacing = length / CELLS_1D
    simulation = Simulation(
        {
            "domain_parameters": {
                "length": length,
                "number_grid_points": CELLS_1D,
                "total_steps": steps,
                "timestep_over_spatialstep_times_c": STEP / frequency * speed_of_light / spacing,
            },
            "solver_parameters": {"print_info": False, "field_solver": 0, "filter_passes": 0},
            "species_parameters": {"electrons": {"beams": electrons}, "ions": {"background": background}},
        }
    )

    def advance() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # hide its progress bar
            output = simulation.run()
            electric = np.asarray(output["electric_field"])[-1, :, 0]
        electric = electric * elementary_charge / (mass_electron * speed * frequency)
        return first_mode(electric)

    return advance


def copies(variant: Variant) -> Variant:
    """A copy of as many bytes as the variant must move in a step, with the same number of threads."""
    source = torch.zeros(variant.count * variant.bytes_per_particle // 16, dtype=torch.float64)
    target = torch.empty_like(source)
    return Variant(f"copy for {variant.name}", variant.count, 1, lambda: target.copy_(source), threads=variant.threads)


def variants(quick: bool) -> list[Variant]:
    """All variants except jaxincell."""
    found = []
    count, steps = (1 << 14, 5) if quick else (1 << 20, 10)
    for dtype in (torch.float64, torch.float32):
        ensemble, kind = beams(count, dtype), str(dtype).removeprefix("torch.")
        size = ensemble.x.element_size()
        for backend, order, threads in [
            *(("native", order, threads) for order in (1, 2) for threads in (1, 2)),
            *(("torch", order, 1) for order in (1, 2) if dtype is torch.float64),
        ]:
            name = f"1d_{('cic', 'tsc')[order - 1]}_{kind}_{backend}_{threads}"
            advance = pushed(ensemble, Grid((CELLS_1D,), ensemble.periods, order), steps)
            found.append(Variant(name, count, steps, advance, 6 * size, threads, backend))
    count, steps = (1 << 13, 2) if quick else (1 << 20, 2)
    for cells in (8,) if quick else (32, 64):
        for dtype, order, by_cell, backend, threads in [
            (torch.float64, 1, False, "native", 1),
            (torch.float64, 1, False, "native", 2),
            (torch.float64, 1, True, "native", 1),
            (torch.float32, 1, False, "native", 1),
            (torch.float64, 2, False, "native", 1),
            (torch.float64, 1, False, "torch", 1),
        ]:
            ensemble, kind = thermal(count, cells, dtype, by_cell), str(dtype).removeprefix("torch.")
            sort = "_sorted" if by_cell else ""
            name = f"3d_{cells}_{('cic', 'tsc')[order - 1]}_{kind}{sort}_{backend}_{threads}"
            advance = pushed(ensemble, Grid((cells,) * 3, ensemble.periods, order), steps)
            size = 18 * ensemble.x.element_size()
            found.append(Variant(name, count, steps, advance, size, threads, backend))
        ensemble = thermal(count, cells, torch.float64, False)

        def sort(ensemble: Particles = ensemble, cells: int = cells) -> Particles:
            order = sorting(ensemble.x, cells)
            return replace(ensemble, x=ensemble.x[order], v=ensemble.v[order], log_f=ensemble.log_f[order])

        found.append(Variant(f"3d_{cells}_sort_once", count, 1, sort))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes for a test: the numbers mean nothing")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    options = parser.parse_args()
    kernels.require()
    print_heading("jaxincell from PyPI in 1D, the torch twins in 3D; a copy of as many bytes", options.quick)

    timed = variants(options.quick)
    floors = {variant.name: copies(variant) for variant in timed if variant.bytes_per_particle}
    ensemble = beams(1 << (12 if options.quick else 17), torch.float64)
    steps = 20
    peer = jaxincell(ensemble, steps)
    if peer:
        found = {"jaxincell": peer()}  # this call compiles
        found["hpc_kjko"] = pushed(ensemble, Grid((CELLS_1D,), ensemble.periods, 2), steps)()
        print(f"# first mode of E after {steps} steps: " + ", ".join(f"{name} {e:.5g}" for name, e in found.items()))
        timed.append(Variant("1d_jaxincell", len(ensemble.x) + CELLS_1D, steps, peer))
    else:
        print("# jaxincell is not installed (pip install jaxincell): its row and the ratios in 1D are missing")
    for _ in range(options.rounds):
        for variant in timed:
            if variant.name in floors:
                floors[variant.name].time()
            variant.time()

    by_name = {variant.name: variant for variant in timed}
    print("name, ms, ns_per_particle_step, fraction_of_bandwidth, ratio")
    for variant in timed:
        prefix = "_".join(variant.name.split("_")[: 2 if variant.name.startswith("3d") else 1])
        baseline = by_name.get("1d_jaxincell" if prefix == "1d" else f"{prefix}_cic_float64_torch_1")
        floor = floors.get(variant.name)
        fraction = f"{floor.nanoseconds / variant.nanoseconds:.3f}" if floor else ""
        ratio = f"{baseline.nanoseconds / variant.nanoseconds:.2f}" if baseline and floor else ""
        milliseconds = 1e3 * variant.seconds / variant.steps
        print(f"{variant.name}, {milliseconds:.3f}, {variant.nanoseconds:.3f}, {fraction}, {ratio}")


if __name__ == "__main__":
    main()
