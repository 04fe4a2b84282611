"""Particle-in-cell: charge, adjointness, no self-force, spectral accuracy of the field solve."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import SolverFailure
from hpc_kjko.fields.ampere import ConservingAmpereSolver
from hpc_kjko.fields.base import ExternalField
from hpc_kjko.fields.external import ExternalSolver
from hpc_kjko.fields.mesh import Grid, MassMatrix
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.particles.state import Particles, Shard, equal_weights
from hpc_kjko.species import plasma_of

GRIDS = [
    Grid(cells, lengths, order)
    for order in (1, 2)
    for cells, lengths in [((16,), (3.0,)), ((9, 12), (2.0, 5.0)), ((8, 5, 6), (1.0, 2.0, 3.0))]
]


def random_positions(grid, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, len(grid.cells), dtype=torch.float64, generator=generator) * torch.tensor(grid.lengths)


def particles_at(x, grid):
    count = len(x)
    return Particles(
        x,
        torch.zeros_like(x),
        torch.zeros(count),
        equal_weights(math.prod(grid.lengths), Shard(0, count, count)),
        Shard(0, count, count),
        math.prod(grid.lengths),
        grid.lengths,
    )


def weighed(grid, x, weight):
    """The density of particles that all carry the same."""
    return grid.deposit(x, torch.full((1, len(x)), weight, dtype=torch.float64))[0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_charge_is_conserved_to_round_off(grid):
    density = weighed(grid, random_positions(grid, 5000), 0.37)
    assert float(density.sum()) * grid.cell_volume == pytest.approx(5000 * 0.37, rel=1e-12)
    assert float(density.min()) >= 0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gather_is_the_adjoint_of_deposit(grid):
    x = random_positions(grid, 1000)
    values = torch.randn(*grid.cells, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    at_particles = 0.5 * grid.gather(values, x).sum(0)
    at_nodes = torch.tensordot(weighed(grid, x, 0.5), values, dims=len(grid.cells)) * grid.cell_volume
    assert torch.allclose(at_particles, at_nodes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_particle_on_a_node_and_one_across_the_boundary(grid):
    """Nodes are cell centres; a B-spline of order 1 is a unit weight there, of order 2 it is ¾ per axis."""
    node = torch.tensor([[0.5 * spacing for spacing in grid.spacing]], dtype=torch.float64)
    density = weighed(grid, node, 1.0) * grid.cell_volume
    assert float(density.flatten()[0]) == pytest.approx((1.0 if grid.shape_order == 1 else 0.75) ** len(grid.cells))
    corner = torch.zeros_like(node)  # equally far from the first and the last node of every axis
    density = weighed(grid, corner, 1.0) * grid.cell_volume
    assert float(density.flatten()[0]) == pytest.approx(0.5 ** len(grid.cells))
    assert float(density.flatten()[-1]) == pytest.approx(0.5 ** len(grid.cells))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_self_force_and_no_net_force(grid, alone):
    def solve(particles):
        return PoissonSolver(grid, alone).start(plasma_of(particles))

    one = particles_at(random_positions(grid, 1), grid)
    assert solve(one).acceleration(one.x).abs().max() < 1e-10
    many = particles_at(random_positions(grid, 500), grid)
    forces = solve(many).acceleration(many.x)
    assert forces.sum(0).abs().max() < 1e-10 * forces.abs().sum()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("solver", ["root", "replicated"])
def test_poisson_is_spectrally_accurate(dims, solver, alone):
    """n − 1 = −Δφ for φ = exp(Σ cos k_j x_j) less its mean: infinitely many modes, so accuracy must be spectral."""
    lengths = (2.0, 3.0, 5.0)[:dims]

    def errors(cells):
        grid = Grid((cells,) * dims, lengths)
        axes = [(np.arange(cells) + 0.5) * length / cells for length in lengths]
        x = np.meshgrid(*axes, indexing="ij")
        k = [2 * np.pi / length for length in lengths]
        phi = 0.01 * np.exp(sum(np.cos(ki * xi) for ki, xi in zip(k, x, strict=True)))
        electric = np.stack([ki * np.sin(ki * xi) * phi for ki, xi in zip(k, x, strict=True)], axis=-1)
        laplacian = sum(ki**2 * (np.sin(ki * xi) ** 2 - np.cos(ki * xi)) * phi for ki, xi in zip(k, x, strict=True))
        potential, found = PoissonSolver(grid, alone, solver).solve(1 - laplacian)
        energy = 0.5 * np.sum(electric**2) * grid.cell_volume
        return (
            np.abs(found - electric).max(),
            np.abs(potential - (phi - phi.mean())).max(),
            abs(0.5 * np.sum(found**2) * grid.cell_volume - energy),
        )

    coarse, fine = errors(10), errors(24)
    assert max(fine) < 1e-11
    assert coarse[0] > 1e3 * fine[0]


def test_an_odd_and_an_even_mesh_agree_on_a_resolved_mode(alone):
    energies = []
    for cells in (15, 16):
        x = (np.arange(cells) + 0.5) / cells
        grid = Grid((cells,), (1.0,))
        _, electric = PoissonSolver(grid, alone).solve(1 + 0.2 * np.cos(4 * np.pi * x))
        energies.append(0.5 * np.sum(electric**2) * grid.cell_volume)
    assert energies == pytest.approx([0.25 * (0.2 / (4 * np.pi)) ** 2] * 2, rel=1e-12)


def test_a_lost_particle_is_noticed_not_deposited(alone):
    grid = GRIDS[0]
    x = random_positions(grid, 100)
    x[17] = math.nan
    assert torch.isnan(weighed(grid, x, 1.0)).all()
    with pytest.raises(SolverFailure, match="no longer finite"):
        PoissonSolver(grid, alone).start(plasma_of(particles_at(x, grid)))


def test_an_empty_shard_deposits_nothing():
    for grid in GRIDS:
        nothing = torch.zeros(0, len(grid.cells), dtype=torch.float64)
        assert float(weighed(grid, nothing, 1.0).abs().sum()) == 0
        assert grid.gather(torch.ones(*grid.cells, 3, dtype=torch.float64), nothing).shape == (0, 3)


def test_the_external_force_is_minus_the_gradient_of_the_potential():
    problem = from_table({"problem": {"kind": "gaussian", "stiffness": 4.0}}).problem
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(ExternalField(problem).acceleration(x), -4 * x, atol=1e-15)
    free = from_table({"problem": {"kind": "two_stream"}}).problem
    assert torch.equal(ExternalField(free).acceleration(x), torch.zeros_like(x))


def test_an_external_potential_is_looked_at_once_a_drift(alone):
    """Kicks before and after a collision are of one force, that of the positions as they are."""
    looked = []

    class Well:
        def potential(self, x):
            looked.append(len(x))
            return 2 * (x**2).sum(1)

    grid = GRIDS[0]
    solver, plasma = ExternalSolver(Well(), alone), plasma_of(particles_at(random_positions(grid, 50), grid))
    field = solver.start(plasma)
    for passed in (1, 2):
        assert len(looked) == passed
        before = plasma[0].particles
        for _ in range(2):
            field, plasma = solver.kick(field, plasma, 0.25)
        assert torch.allclose(plasma[0].particles.v, before.v - 0.5 * 4 * before.x, atol=1e-14)
        field, plasma = solver.drift(field, plasma, 0.1)


# -- the kick that E takes part in -----------------------------------------------------------------------------------


def dense_mass_matrix(grid, x, weight):
    """M column by column, as what is deposited of what is gathered."""
    units = torch.eye(math.prod(grid.cells), dtype=torch.float64)
    return torch.cat(
        [grid.deposit(x, weight * grid.gather(unit.reshape(*grid.cells, 1), x).T).flatten(1) for unit in units]
    ).numpy()


SMALL = [*GRIDS, Grid((4,), (1.0,), 2)]  # on four nodes two neighbours two nodes away are the same one


@pytest.mark.parametrize("grid", SMALL, ids=str)
def test_the_mass_matrix_deposits_what_is_gathered(grid):
    x = random_positions(grid, 200)
    weight = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = MassMatrix(grid, grid.mass_matrix(x, weight).numpy())
    columns = np.eye(math.prod(grid.cells)).reshape(*grid.cells, -1)
    found = (matrix @ columns).reshape(columns.shape[-1], -1)
    dense = dense_mass_matrix(grid, x, weight)
    assert np.allclose(found, dense, rtol=1e-12, atol=1e-12 * dense.max())
    assert torch.isnan(grid.mass_matrix(torch.full_like(x, math.nan), weight)).all()


@pytest.mark.parametrize("duration", [0.1, -0.3, 30.0])
@pytest.mark.parametrize("grid", [SMALL[0], SMALL[4], SMALL[-1]], ids=str)
def test_a_conserving_kick_is_the_exact_flow(grid, duration, alone):
    """The matrix exponential of (E, J), and with it the velocities; back again; in two parts as in one."""
    solver, dims = ConservingAmpereSolver(grid, alone, unit=0.0), len(grid.cells)
    size = math.prod(grid.cells) * dims
    x = random_positions(grid, 300)
    v = torch.randn(300, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    particles = dataclasses.replace(particles_at(x, grid), v=v)
    plasma = plasma_of(particles)
    field = solver.start(plasma)
    mass = np.kron(dense_mass_matrix(grid, x, particles.weight), np.eye(dims))
    units = np.eye(size).reshape(size, *grid.cells, dims)
    projection = np.stack([solver.spectrum.curl_free(unit).ravel() for unit in units], axis=1)

    def current_of(moved):
        return grid.deposit(moved.x, (moved.weight[:, None] * moved.v).T).numpy().reshape(dims, -1).T.ravel()

    zero = np.zeros((size, size))
    flow = scipy.linalg.expm(duration * np.block([[zero, -projection], [mass, zero]]))
    electric, current = np.split(flow @ np.concatenate([field.electric.ravel(), current_of(particles)]), 2)
    kicked, after = solver.kick(field, plasma, duration)
    moved = after[0].particles
    assert np.abs(kicked.electric.ravel() - electric).max() < 1e-12 * np.abs(current).max()
    assert np.abs(current_of(moved) - current).max() < 1e-11 * np.abs(current).max()
    assert np.array_equal(moved.x, x) and np.abs(kicked.electric - field.electric).max() > 0.01
    assert np.allclose(kicked.potential, solver.spectrum.potential_of(kicked.electric), atol=1e-14)
    assert np.abs(kicked.potential - field.potential).max() > 1e-3

    back, home = solver.kick(kicked, after, -duration)
    assert torch.allclose(home[0].particles.v, v, atol=1e-12) and np.allclose(back.electric, field.electric, atol=1e-12)
    halves = solver.kick(*solver.kick(field, plasma, 0.4 * duration), 0.6 * duration)
    assert torch.allclose(halves[1][0].particles.v, moved.v, atol=1e-12)
    assert np.allclose(halves[0].electric, kicked.electric)
