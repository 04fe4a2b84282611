"""The native particle kernels against their torch twins, and what physics asks of them."""

import hashlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_kjko import kernels
from hpc_kjko.case.config import from_table
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import drifted
from hpc_kjko.running.simulation import Simulation

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

GRIDS = [
    Grid(cells, lengths, order)
    for order in (1, 2)
    for cells, lengths in [
        ((16,), (3.0,)),
        ((9, 12), (2.0, 5.0)),
        ((8, 5, 6), (1.0, 2.0, 3.0)),
        ((2, 1, 3), (1.0,) * 3),
    ]
]
PRECISIONS = [(torch.float64, 1e-13), (torch.float32, 2e-6)]
COUNTS = [0, 1, 1001]


def ensemble(grid, count, dtype=torch.float64, velocity_dims=3, seed=0):
    """Positions in the box, velocities that carry some of them through it several times, weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, len(grid.cells), dtype=torch.float64, generator=generator) * torch.tensor(grid.lengths)
    v = 20 * torch.randn(count, velocity_dims, dtype=torch.float64, generator=generator)
    weight = torch.rand(count, dtype=torch.float64, generator=generator)
    return x.to(dtype), v.to(dtype), weight


def both(monkeypatch, compute):
    """What the native kernels and what torch make of the same."""
    results = []
    for choice in ("native", "torch"):
        monkeypatch.setenv("KJKO_KERNELS", choice)
        results.append(compute())
    return results


def assert_close(found, wanted, tolerance):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    if found.numel():
        assert (found - wanted).abs().max() <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_kernels_are_their_torch_twins(grid, dtype, tolerance, count, monkeypatch):
    dims = len(grid.cells)
    values = torch.randn(*grid.cells, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for velocity_dims in range(dims, 4):
        x, v, weight = ensemble(grid, count, dtype, velocity_dims)
        quantities = torch.stack([weight, weight * v[:, 0].double()])

        def passes(x=x, v=v, quantities=quantities):
            moved, density = grid.drift(x, v, 0.3, quantities)
            gathered = grid.gather(torch.cat([values, values[..., :1]], -1), x)
            kicked = grid.kick(values, x, v, -0.7)
            return moved, drifted(x, v, 0.3, grid.lengths), grid.deposit(x, quantities), density, gathered, kicked

        (moved, drifting, *found), (wanted, _, *twins) = both(monkeypatch, passes)
        assert torch.equal(moved, drifting)
        across = (moved - wanted).abs()  # the same up to rounding, on one side or the other of the box
        assert (torch.minimum(across, torch.tensor(grid.lengths) - across) <= 20 * tolerance).all()
        for one, other in zip(found, twins, strict=True):
            at_moved = one is found[1]  # positions that differ by rounding
            assert_close(one, other, (50 if at_moved else 1) * tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_mass_matrix_is_its_torch_twin(grid, dtype, monkeypatch):
    for count in COUNTS:
        x, _, weight = ensemble(grid, count, dtype)
        assert_close(*both(monkeypatch, lambda x=x, weight=weight: grid.mass_matrix(x, weight)), 1e-13)
    monkeypatch.setenv("KJKO_KERNELS", "native")
    x[517, -1] = math.nan
    assert grid.mass_matrix(x, weight).isnan().all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_charge_is_that_of_the_particles(grid):
    x, _, weight = ensemble(grid, 5000)
    total = float(grid.deposit(x, weight[None]).sum()) * grid.cell_volume
    assert total == pytest.approx(float(weight.sum()), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_box_is_periodic(grid, dtype, monkeypatch):
    """At 0, at L, a hair outside, boxes away: the same bits as torch; what is nowhere stays nowhere."""
    length = torch.tensor(grid.lengths, dtype=dtype)
    tiny = torch.finfo(dtype).tiny
    places = [0 * length, length, -tiny + 0 * length, torch.nextafter(length, 0 * length), -length, 2 * length]
    places += [1e3 * length + 0.1, -1e3 * length - 0.1, 1e30 * length, 0 * length - 0.0]
    x = torch.stack(places)
    still = torch.zeros(len(x), len(length), dtype=dtype)
    moved, wanted = both(monkeypatch, lambda: drifted(x, still, 1.0, grid.lengths))
    assert torch.equal(moved, wanted)
    assert ((moved >= 0) & (moved < length)).all()
    for nowhere in (math.nan, math.inf, -math.inf):
        assert drifted(torch.full_like(x, nowhere), still, 1.0, grid.lengths).isnan().all()
    near = x[:8]  # any box will do to deposit and to gather
    for compute in (lambda: grid.deposit(near, near.T[:1]), lambda: grid.gather(torch.rand(*grid.cells, 1), near)):
        torch.manual_seed(0)
        found = compute()
        monkeypatch.setenv("KJKO_KERNELS", "torch")
        torch.manual_seed(0)
        wanted = compute()
        monkeypatch.setenv("KJKO_KERNELS", "native")
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_particle_that_is_nowhere_is_seen_everywhere(grid, nowhere):
    x, v, weight = ensemble(grid, 600)
    x[517, -1] = nowhere
    assert grid.deposit(x, weight[None]).isnan().all()
    moved, density = grid.drift(x, v, 0.1, weight[None])
    assert density.isnan().all() and moved[517, -1].isnan() and moved.isnan().sum() == 1
    gathered = grid.gather(torch.ones(*grid.cells, 1, dtype=torch.float64), x)
    assert gathered[517].isnan() and gathered.isnan().sum() == 1
    assert grid.deposit(x, weight[None], UNIT).isnan().all()


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if min(grid.cells) > 3], ids=str)
def test_no_particle_pushes_itself_and_all_together_push_nothing(grid, alone):
    solver, dims = PoissonSolver(grid, alone), len(grid.cells)
    for count in (1, 500):
        x, _, weight = ensemble(grid, count)
        _, electric = solver.solve(grid.deposit(x, weight[None])[0].numpy())
        kicked = grid.kick(torch.from_numpy(electric), x, torch.zeros(count, dims, dtype=torch.float64), 1.0)
        force = (weight[:, None] * kicked).sum(0)
        assert force.abs().max() < 1e-12 * (weight[:, None] * torch.from_numpy(electric).abs().max()).sum()


# -- bits --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("unit", [0.0, UNIT])
@pytest.mark.parametrize("grid", [Grid((32,), (3.0,), 2), Grid((20, 20, 24), (1.0, 2.0, 3.0))], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(grid, unit, threads):
    x, v, weight = ensemble(grid, 60_001)
    values = torch.randn(*grid.cells, len(grid.cells), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for count in (1, 2, 3):
        threads(count)
        moved, density = grid.drift(x, v, 0.1, torch.stack([weight, weight * v[:, 0]]) / 60_001, unit)
        mass_matrix = grid.mass_matrix(x, weight / 60_001, unit)
        results.append((moved, density, mass_matrix, grid.kick(values, x, v, 0.1)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def digest():
    """Of what the kernels make of an ensemble on each grid."""
    found = hashlib.sha256()
    for grid, (dtype, _) in itertools.product(GRIDS, PRECISIONS):
        x, v, weight = ensemble(grid, 1001, dtype)
        values = torch.sin(torch.arange(math.prod(grid.cells) * len(grid.cells), dtype=torch.float64))
        kicked = grid.kick(values.reshape(*grid.cells, -1), x, v, 0.1)
        for result in (*grid.drift(x, v, 0.3, weight[None]), kicked, grid.mass_matrix(x, weight)):
            found.update(result.numpy().tobytes())
    return found.hexdigest()


def test_bits_do_not_depend_on_the_instruction_set():
    line = [sys.executable, "-c", "import test_native_particles as tests; print(tests.digest())"]
    lowest = os.environ | ({} if kernels.build_info()["isa"] == "generic" else {"KJKO_ISA": "x86-64-v2"})
    said = subprocess.run(line, env=lowest, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == digest()


@pytest.mark.parametrize("choice", ["native", "torch"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounded_sums_are_the_same_for_any_order_and_any_parts(grid, choice, monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", choice)
    x, v, weight = ensemble(grid, 3001)
    weight = weight / (weight.sum() / math.prod(grid.lengths))  # density 1
    quantities = torch.stack([weight, weight * v[:, 0]])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    for deposit in (
        lambda rows: grid.deposit(x[rows], quantities[:, rows], UNIT),
        lambda rows: grid.mass_matrix(x[rows], weight[rows], UNIT),
    ):
        whole = deposit(slice(None))
        assert torch.equal(deposit(order), whole)
        for cuts in ([0, 1, 3001], [0, 256, 777, 2048, 2048, 3001]):
            assert torch.equal(sum(deposit(slice(a, b)) for a, b in itertools.pairwise(cuts)), whole)
    exact = grid.deposit(x, quantities)
    assert (grid.deposit(x, quantities, UNIT) - exact).abs().max() < 0.5 * len(x) * UNIT  # half a unit a particle
    assert not torch.equal(grid.deposit(x, quantities, 2.0**-20), exact)


# -- what is handed over -----------------------------------------------------------------------------------------------


def test_strides_do_not_matter():
    grid = GRIDS[1]
    x, v, weight = ensemble(grid, 999)
    wide = torch.cat([x, v], 1)
    values = torch.randn(2, *grid.cells, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(grid.gather(values.movedim(0, -1), wide[:, :2]), grid.gather(values.movedim(0, -1).clone(), x))
    momentum = (weight[:, None] * v).T
    assert torch.equal(grid.deposit(wide[:, :2], momentum), grid.deposit(x, momentum.contiguous()))
    one = torch.full((1,), 0.25, dtype=torch.float64).expand(999)
    assert torch.equal(grid.deposit(x, one[None]), grid.deposit(x, one.clone()[None]))
    backwards = grid.kick(values.movedim(0, -1), x, v.T.contiguous().T, 0.1)
    assert torch.equal(backwards, grid.kick(values.movedim(0, -1), x, v, 0.1))


def test_what_does_not_fit_is_refused():
    grid = GRIDS[1]
    x, v, weight = ensemble(grid, 10)
    with pytest.raises(ValueError, match="rows and the precision of x"):
        grid.drift(x, v.float(), 0.1, weight[None])
    with pytest.raises(ValueError, match="of the n particles"):
        grid.deposit(x, weight[None, :-1])
    with pytest.raises(ValueError, match="as many columns"):
        grid.deposit(x[:, :1], weight[None])
    with pytest.raises(ValueError, match="one component for each axis"):
        grid.kick(torch.zeros(*grid.cells, 1, dtype=torch.float64), x, v, 0.1)
    half = grid.deposit(x.half(), weight[None])  # not made for these: torch
    assert half.isfinite().all()


@pytest.mark.parametrize("field", ["poisson", "ampere"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
def test_a_run_is_the_same_to_rounding(field, precision, tolerance, alone, monkeypatch):
    table = {
        "problem": {"kind": "two_stream"},
        "physics": {"field": field},
        "particles": {"count": 3000, "precision": precision},
        "grid": {"cells": [32]},
        "time": {"step": 0.1, "end": 2.0},
        "method": {"collision": "none"},
    }

    def end():
        simulation = Simulation.start(from_table(table), alone)
        while simulation.step_index < simulation.case.time.steps:
            simulation.state = simulation.advance()
            simulation.step_index += 1
        return simulation.state

    found, wanted = both(monkeypatch, end)
    across = (found.particles.x - wanted.particles.x).abs()
    assert torch.minimum(across, found.particles.periods[0] - across).max() < tolerance
    assert (found.particles.v - wanted.particles.v).abs().max() < tolerance
    assert np.abs(found.field.electric - wanted.field.electric).max() < tolerance
