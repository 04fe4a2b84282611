"""The GPU's kernels of particles: their text on the CPU, against the CPU's own kernels."""

import math

import pytest
import torch
from test_native_particles import COUNTS, GRIDS, ensemble

from hpc_kjko import kernels
from hpc_kjko.kernels.cuda import particles as cuda_particles
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import drifted

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


@needs_module
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_particles_have_the_bits_of_the_cpu(grid, dtype, count, monkeypatch):
    """Positions, velocities, values, and densities of rounded terms; others are the same to rounding."""
    monkeypatch.setenv("KJKO_KERNELS", "native")
    dims, mesh = len(grid.cells), (grid.cells, grid.lengths, grid.shape_order)
    values = torch.randn(*grid.cells, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for velocity_dims in range(dims, 4):
        x, v, weight = ensemble(grid, count, dtype, velocity_dims)
        weight = weight / max(1.0, float(weight.sum()))
        quantities = torch.stack([weight, weight * v[:, 0].double()])
        for unit in (UNIT, 0.0):
            moved = torch.empty_like(x)
            density = cuda_particles.deposit(mesh, x, quantities, unit, v=v, duration=0.3, moved=moved)
            wanted_x, wanted = grid.drift(x, v, 0.3, quantities, unit)
            assert torch.equal(moved, wanted_x) and torch.equal(cuda_particles.drift(x, v, 0.3, grid.lengths), wanted_x)
            assert torch.equal(density, wanted) if unit else (density - wanted).abs().max() < 1e-12
        more = torch.cat([values, values[..., :1]], -1)
        assert torch.equal(cuda_particles.gather(mesh, more, x), grid.gather(more, x))
        assert torch.equal(cuda_particles.gather(mesh, values, x, v, -0.7), grid.kick(values, x, v, -0.7))


@needs_module
def test_bits_of_a_deposit_do_not_depend_on_the_order_of_particles():
    grid = GRIDS[-2]
    x, v, weight = ensemble(grid, 5001)
    mesh = (grid.cells, grid.lengths, grid.shape_order)
    quantities = torch.stack([weight, weight * v[:, 0]]) / weight.sum()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    density = cuda_particles.deposit(mesh, x, quantities, UNIT)
    assert torch.equal(cuda_particles.deposit(mesh, x, quantities, UNIT, backwards=True), density)
    assert torch.equal(cuda_particles.deposit(mesh, x[order], quantities[:, order], UNIT), density)


@needs_module
@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_particle_that_is_nowhere_is_seen_everywhere(grid, nowhere):
    mesh = (grid.cells, grid.lengths, grid.shape_order)
    x, v, weight = ensemble(grid, 600)
    x[517, -1] = nowhere
    moved = torch.empty_like(x)
    assert cuda_particles.deposit(mesh, x, weight[None], UNIT, v=v, duration=0.1, moved=moved).isnan().all()
    assert moved[517, -1].isnan() and moved.isnan().sum() == 1
    gathered = cuda_particles.gather(mesh, torch.ones(*grid.cells, 1, dtype=torch.float64), x)
    assert gathered[517].isnan() and gathered.isnan().sum() == 1


@needs_module
def test_positions_in_other_boxes():
    for grid in GRIDS:
        mesh, length = (grid.cells, grid.lengths, grid.shape_order), torch.tensor(grid.lengths, dtype=torch.float64)
        cell = length / torch.tensor(grid.cells)
        near = [0 * length, length, 2 * length, -length, 0.6 * cell - length, 1.1 * cell - length]
        x = torch.stack([*near, 1e3 * length + 0.1, -1e3 * length - 0.1])
        still = torch.zeros_like(x)
        assert torch.equal(cuda_particles.drift(x, still, 1.0, grid.lengths), drifted(x, still, 1.0, grid.lengths))
        weight = torch.full((1, len(x)), 0.01, dtype=torch.float64)
        assert torch.equal(cuda_particles.deposit(mesh, x, weight, UNIT), grid.deposit(x, weight, UNIT))
