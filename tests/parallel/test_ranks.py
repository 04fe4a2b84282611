"""Any number of ranks computes the same thing: ensemble, density, gradient, a whole step. Under a real mpirun.

Every test compares the job's ranks with the same computation done by rank 0 alone.
"""

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.fields.poisson import PoissonSolver
from hpc_kjko.files.histograms import phase_space_histograms
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import JKOObjective
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.parallel.limits import Limit
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import BLOCK
from hpc_kjko.running import driver, memory
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

RANKS = [1, 2, 3, 4]
#: Unequal shards on 2, 3 and 4 ranks; and so few that ranks are left empty on 3 and 4.
COUNTS = [5 * BLOCK + 17, BLOCK + 300]


TABLE = {
    "problem": {"kind": "two_stream", "velocity_dims": 2, "amplitude": 0.1},
    "physics": {"collision_strength": 0.5},
    "particles": {},
    "grid": {"cells": 16},
    "time": {"step": 0.1, "end": 1.0},
    "method": {"hidden": [8, 6], "precision": "float64", "first_iterations": 12, "iterations": 4, "chunk": 400},
}


def case_of(count, **changes):
    """The small case with sections changed key by key; another problem replaces it."""
    table = {name: {**TABLE.get(name, {}), **changes.get(name, {})} for name in TABLE | changes}
    table["problem"] = changes.get("problem", TABLE["problem"])
    table["particles"]["count"] = count
    return from_table(table)


def gathered(state, comm):
    """x, v and log f of all ranks in global order, as one array."""
    particles = state.particles
    local = torch.cat([particles.x, particles.v, particles.log_f[:, None]], dim=1).numpy()
    return np.concatenate(comm.allgather(local))


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("count", COUNTS)
def test_ensemble_density_and_one_step(count, world):
    case = case_of(count)
    ours, serial = Simulation.start(case, world), Simulation.start(case, Communicator())
    alone = serial.comm
    shares = world.allgather(len(ours.state.particles.x))
    assert sum(shares) == count and (world.size == 1 or len(set(shares)) > 1)
    if count == COUNTS[1] and world.size > 2:
        assert 0 in shares
    assert np.array_equal(gathered(ours.state, world), gathered(serial.state, alone))
    density = serial.state.field.charge_density
    assert np.abs(ours.state.field.charge_density - density).max() < 1e-12 * density.max()
    histograms = [phase_space_histograms(s.state.particles, case.problem, s.comm)[0].values for s in (ours, serial)]
    assert np.array_equal(*histograms)

    replicated = PoissonSolver(ours.grid, world, "replicated").start(ours.state.species)
    assert np.array_equal(replicated.electric, ours.state.field.electric)  # rank 0's, broadcast, on every rank

    after, expected = ours.advance(), serial.advance()
    assert np.abs(gathered(after, world) - gathered(expected, alone)).max() < 1e-9
    row, expected_row = measure(ours.diagnostics, after, world), measure(serial.diagnostics, expected, alone)
    assert row == pytest.approx(expected_row, rel=1e-9, abs=1e-9)
    assert row["inner_iterations"] > 12  # of Adam, and passes for the output layer
    assert all(other == row for other in world.allgather(row))  # every rank knows the same numbers


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("count", COUNTS)
def test_one_step_in_single_precision(count, world):
    """Where there are native kernels, they make the objective, its gradient and the moments: empty shards too."""
    case = case_of(count, method={"hidden": [16, 16], "precision": "float32"})
    ours, serial = Simulation.start(case, world), Simulation.start(case, Communicator())
    after, expected = ours.advance(), serial.advance()
    assert np.abs(gathered(after, world) - gathered(expected, serial.comm)).max() < 1e-4
    assert after.collision.certificate == expected.collision.certificate == 1


@pytest.mark.parallel([2, 3])
def test_external_field_affine_and_second_order(world):
    """The affine field leaves DDP little to wrap; unbounded problems have no mesh to meet on."""
    table = {
        "problem": {"kind": "gaussian"},
        "physics": {"collision_strength": 1.0},
        "particles": {"count": 2 * BLOCK + 5},
        "method": {"hidden": [], "precision": "float64", "first_iterations": 20, "order": 2},
    }
    case = from_table(table)
    ours, serial = Simulation.start(case, world), Simulation.start(case, Communicator())
    after, expected = ours.advance(), serial.advance()
    assert np.abs(gathered(after, world) - gathered(expected, serial.comm)).max() < 1e-9


#: What each method and each kind of field and start changes in the small case: sections of it.
VARIANTS = {
    "score_matching": {"method": {"collision": "score_matching"}},
    "langevin": {"method": {"collision": "langevin"}},
    "varpro, all fitted": {"method": {"solver": "varpro", "held_out": False}},
    "regression, all fitted": {"method": {"held_out": False}},
    "adam": {"method": {"solver": "adam"}},
    "adam, first order": {"method": {"solver": "adam", "order": 1, "logdet": "linear"}},
    "auto": {"method": {"solver": "adam", "iterations": "auto", "held_out": True}},
    "nonsplit": {"method": {"form": "nonsplit"}, "time": {"step": 0.1, "end": 1.0, "integrator": "euler"}},
    "velocity_matching": {
        "problem": {"kind": "periodic"},
        "physics": {"collision_strength": 0.5, "field": "external"},
        "time": {"step": 0.1, "end": 0.2},
        "method": {"collision": "velocity_matching"},
        "velocity_matching": {"outer_iterations": 2, "iterations": 3},
    },
    "ampere": {"physics": {"collision_strength": 0.5, "field": "ampere", "initial_field": "zero"}},
    "conserving": {"physics": {"field": "ampere"}, "time": {"step": 0.1, "end": 1.0, "energy_conserving": True}},
    "conserving, replicated": {
        "physics": {"field": "ampere"},
        "time": {"step": 0.1, "end": 1.0, "energy_conserving": True},
        "grid": {"cells": 16, "shape_order": 2, "solver": "replicated"},
    },
    "density weights": {"particles": {"weights": "density"}},
    "control variate": {
        "particles": {"control_variate": True, "weights": "density"},
    },
    "control variate, ampere": {
        "physics": {"collision_strength": 0.5, "field": "ampere"},
        # of another sample (seed 0) the sums behind β differ in their last bits, and training makes 1e-9 of that
        "particles": {"control_variate": True, "seed": 1},
    },
    "grid start": {"particles": {"start": "grid"}},
}


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_and_start_is_the_same_on_any_number_of_ranks(variant, world):
    """One step and its row of the series; a shard is empty on three ranks."""
    case = case_of(COUNTS[1], **VARIANTS[variant])
    ours, serial = Simulation.start(case, world), Simulation.start(case, Communicator())
    assert np.array_equal(gathered(ours.state, world), gathered(serial.state, serial.comm))
    assert ours.prepare() and serial.prepare()
    after, expected = ours.advance(), serial.advance()
    difference = np.abs(gathered(after, world) - gathered(expected, serial.comm))
    tracked = slice(None, -1) if variant == "langevin" else slice(None)
    assert difference[:, tracked].max() < 1e-9
    row, expected_row = measure(ours.diagnostics, after, world), measure(serial.diagnostics, expected, serial.comm)
    assert row == pytest.approx(expected_row, rel=1e-9, abs=1e-9)
    assert all(other == row for other in world.allgather(row))


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("hidden", [(), (16, 16)], ids=str)
@pytest.mark.parametrize("dims", [1, 3])
def test_the_distributed_gradient_is_the_serial_one(dims, hidden, world):
    """Shards of very different size, one of them empty, in chunks of different number."""
    total = 1000
    edges = np.array([0, 700, 700, 960, total])[: world.size + 1]
    edges[-1] = total

    def gradient(comm, rows, distribute):
        control = ControlField((3.0,), 1, dims, hidden=hidden, dtype=torch.float64)
        generator = torch.Generator().manual_seed(2)
        torch.nn.init.normal_(control.layers[-1].weight, std=0.2, generator=generator)
        z = control.features(
            3 * torch.rand(total, 1, dtype=torch.float64, generator=generator),
            torch.randn(total, dims, dtype=torch.float64, generator=generator),
        )[rows]
        objective = JKOObjective(control, operator=Bath(0.3, 1.1), logdet="exact")
        module = comm.distribute(objective) if distribute else objective
        share = torch.full((256,), 1 / total, dtype=torch.float64)
        pieces = [z[i : i + 256] for i in range(0, max(len(z), 1), 256)]
        with comm.no_sync(module):
            for piece in pieces[:-1]:
                module(0.1, piece, piece[:, -dims:], share[: len(piece)]).backward()
        module(0.1, pieces[-1], pieces[-1][:, -dims:], share[: len(pieces[-1])]).backward()
        return torch.cat([p.grad.flatten() for p in control.parameters()])

    ours = gradient(world, slice(edges[world.rank], edges[world.rank + 1]), True)
    serial = gradient(Communicator(), slice(None), False)
    assert (ours - serial).abs().max() < 1e-12 * serial.abs().max() + 4 * UNIT  # pieces here are none of whole blocks
    bits = world.allgather(ours.numpy().tobytes())
    assert all(other == bits[0] for other in bits)


@pytest.mark.parallel([3])
def test_one_ranks_failure_is_everybodys(world):
    with pytest.raises(UserError, match="on rank 1 only"):
        with world.together():
            if world.rank == 1:
                raise UserError("on rank 1 only")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        with world.together():
            _ = 1 / (world.rank - 2)
    assert world.min(float("nan") if world.rank == 2 else 0.0) != world.min(0.0)
    assert world.any(world.rank == 2) and not world.any(False)


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("cells", [(8, 6, 5), (9, 4, 6), (3, 2, 4), (7, 9), (4, 4)], ids=str)
def test_a_mesh_dealt_to_ranks_has_the_same_field(cells, world):
    """With more ranks than planes too."""
    grid = Grid(cells, (1.0, 2.0, 3.0)[: len(cells)])
    density = np.random.default_rng(5).standard_normal(cells)
    ours = PoissonSolver(grid, world, "distributed").solve(density)
    whole = PoissonSolver(grid, Communicator()).solve(density)
    for found, wanted in zip(ours, whole, strict=True):
        assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()


@pytest.mark.parallel([2, 3])
def test_ranks_that_share_a_memory_need_it_together(world, monkeypatch):
    case = case_of(10**8)
    (one,) = memory.needs_of(case, Communicator())[:1]
    share = one.nbytes / world.size
    monkeypatch.setattr(memory, "memory_limits", lambda: [Limit("node", "node here", int(0.9 * share * world.size))])
    with pytest.raises(UserError, match=f"for {world.size} ranks, and node here has .* particles.count = 100000000"):
        memory.require(case, world)
    monkeypatch.setattr(memory, "memory_limits", lambda: [Limit(str(world.rank), "node of its own", int(1.2 * share))])
    memory.require(case, world)


@pytest.mark.parallel([2])
def test_a_dry_run_speaks_of_all_ranks(world):
    lines = list(driver.dry_run(case_of(COUNTS[0]) if world.is_root else None, world))
    assert lines[0] == f"particles: {COUNTS[0]} in all; ranks: 2, with 2065 to 3072 particles each"
    assert any("its 2 ranks together would take" in line for line in lines)


@pytest.mark.parallel(3)
def test_walls_on_three_ranks_have_the_bits_of_one(world):
    table = {
        "problem": {"kind": "landau_damping", "amplitude": 0.2, "boundary": "conducting"},
        "particles": {"count": 4096},
        "grid": {"cells": 16},
        "time": {"step": 0.1, "end": 1.0},
        "method": {"collision": "none"},
    }
    ours, alone = (Simulation.start(from_table(table), comm) for comm in (world, Communicator()))
    for _ in range(10):
        for simulation in (ours, alone):
            simulation.state, simulation.step_index = simulation.advance(), simulation.step_index + 1
    assert np.array_equal(ours.state.field.electric, alone.state.field.electric)
    assert np.array_equal(gathered(ours.state, world), gathered(alone.state, alone.comm))
