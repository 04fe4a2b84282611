"""Kernels and runs on a GPU; skipped where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch
from test_cuda_network import FIELDS, MOMENTS, NETWORKS, assert_field, assert_moments, sum_moments, true_moments
from test_cuda_potential import FUNCTIONS, Case
from test_native_objective import STEP, exact, objective_of, particles_of, value_and_gradient
from test_native_pairs import EXPONENTS, assert_agrees, by_torch, couples
from test_native_particles import GRIDS, ensemble

from hpc_kjko.case.config import from_table
from hpc_kjko.cli.main import main
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.files.checkpoint import latest, load
from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels.potential import Carry, Terms
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import FINE, UNIT
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.available(), reason="needs an NVIDIA GPU and CuPy"),
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_objective_on_a_gpu(network):
    space, width, activation, logdet = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    particles = particles_of(objective, 5000, known=True)
    wanted = exact(objective, particles)
    moved = [None if part is None else part.cuda() for part in particles]
    objective.cuda().clear_gradient()
    value, gradient = value_and_gradient(objective, moved)  # by the objective's own choice of a kernel
    assert abs(value.cpu() - wanted[0]) <= 1e-6 * max(abs(wanted[0]), objective.operator.temperature * STEP)
    assert torch.linalg.norm(gradient.cpu() - wanted[1]) <= 1e-6 * torch.linalg.norm(wanted[1])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_particles_on_a_gpu_have_the_bits_of_the_cpu(grid):
    x, v, weight = ensemble(grid, 5001)
    weight = weight / weight.sum()
    values = torch.randn(*grid.cells, len(grid.cells), dtype=torch.float64)
    found, wanted = (
        [
            *grid.drift(*(part.to(device) for part in (x, v)), 0.3, weight[None].to(device), UNIT),
            grid.kick(*(part.to(device) for part in (values, x, v)), 0.1),
        ]
        for device in ("cuda", "cpu")
    )
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_sums_over_pairs_on_a_gpu(dims, exponent):
    for members, others in couples(dims):
        names = ("v", "score", "hessian", "weight")
        moved = [replace(one, **{name: getattr(one, name).cuda() for name in names}) for one in (members, others)]
        found = pair_sums(moved[0], moved[0] if others is members else moved[1], exponent)
        assert_agrees([part.cpu() for part in found], by_torch(members, others, exponent))


def test_gradients_travel_through_nccl(monkeypatch):
    """Of as many ranks as there are GPUs of one each here: one, wrapped as several are."""
    comm = Communicator()
    comm.select_device("cuda")
    objective = objective_of("3D3V")
    z, v, share, _, _ = (None if part is None else part.cuda() for part in particles_of(objective, 3000))
    objective.cuda().clear_gradient()
    objective(STEP, z, v, share).backward()
    wanted = objective.gradient.clone()
    comm._start_process_group()
    try:
        assert torch.distributed.get_backend() == "nccl"
        monkeypatch.setattr(comm, "size", 2)
        distributed = comm.distribute(objective)
        objective.zero_grad()
        objective.clear_gradient()
        distributed(STEP, z, v, share).backward()
        for parameter in objective.trained:
            assert torch.equal(parameter.grad, objective.gradient_of(parameter).float())
        assert torch.equal(objective.gradient, wanted)
    finally:
        comm.close()


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("network", MOMENTS, ids=str)
def test_moments_on_a_gpu(network, logdet):
    space, width, activation = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    objective.together = 128
    particles = particles_of(objective, 5000, known=True)
    wanted = true_moments(objective, particles)
    moved = [None if part is None else part.cuda() for part in particles]
    objective.cuda()
    whole = sum_moments(objective, moved)
    assert_moments(whole.cpu(), wanted)
    parts = [[None if part is None else part[rows] for part in moved] for rows in (slice(1024), slice(1024, None))]
    assert torch.equal(sum(sum_moments(objective, part) for part in parts), whole)


@pytest.mark.parametrize("network", FIELDS, ids=str)
def test_the_field_on_a_gpu(network):
    space, width, activation, dtype = network
    objective = objective_of(space, width=width, activation=activation).to(dtype)
    z = particles_of(objective, 5000)[0].to(dtype)
    control = objective.control.cuda()
    with torch.no_grad():
        found = control.with_jacobian(z.cuda())  # by the field's own choice of a kernel
    assert_field(objective.cpu(), z, dtype, [part.cpu() for part in found])


class OnGPU(Case):
    """A potential on a GPU, whose kernels the field and its sums choose themselves; the truth stays on the CPU."""

    def __init__(self, functions):
        super().__init__(functions)
        self.field.cuda()
        self.field.coefficients = self.field.coefficients.cuda()  # no buffer
        self.sums.sums.at_once = len(self.z)
        self.there = [(z.to(self.z.dtype).cuda(), wanted.cuda(), share.cuda()) for z, wanted, share in self.rows]
        assert self.field.network.on_gpu and self.field.network.in_use

    @property
    def bare_there(self):
        return [(z, share) for z, _, share in self.there]


@pytest.fixture(params=FUNCTIONS, ids=str)
def potential(request):
    with torch.no_grad():
        yield OnGPU(request.param)


def test_functions_of_a_potential_on_a_gpu(potential):
    z = potential.z.cuda()
    values, (slopes, bends) = (
        potential.field.values(z, potential.c.cuda()),
        potential.field.slopes(z, potential.k.cuda(), bent=1),
    )
    potential.near(values.cpu(), potential.exact.values(potential.z.double(), potential.c))
    for one, other in zip((slopes, bends), potential.exact.slopes(potential.z.double(), potential.k, 1), strict=True):
        potential.near(one.cpu(), other)
    some = slice(37, 301)
    assert torch.equal(potential.field.values(z[some], potential.c.cuda()), values[:, some])


def test_sums_of_a_potential_on_a_gpu(potential):
    sums, true = potential.sums, potential.true_sums
    potential.near(sums.normal(potential.there), true.normal(potential.rows))
    k = potential.k.numpy()
    pairs = [
        (sums.derivatives(potential.bare_there), true.derivatives(potential.bare)),
        (sums.of_velocity(potential.bare_there, k[1]), true.of_velocity(potential.bare, k[1])),
    ]
    for found, wanted in pairs:
        for name, part in vars(found).items():
            potential.near(part, vars(wanted)[name])
    pull, log_det = sums.barrier(potential.bare_there, k[0], 0.05)
    wanted = true.barrier(potential.bare, k[0], 0.05)
    potential.near(pull, wanted[0])
    potential.near(log_det, wanted[1], 3)
    c = potential.c[0]
    found, wanted = sums.missed(potential.there, c.cuda(), 1.0), true.missed(potential.rows, c, 1.0)
    potential.near(torch.cat(found[0]).cpu(), torch.cat(wanted[0]))
    potential.near(found[1:], wanted[1:])
    of_each = [sums.normal([rows]) for rows in potential.there]
    assert np.array_equal(sum(of_each), sums.normal(potential.there))  # as two ranks would have it


def test_the_gradient_of_a_density_on_a_gpu(potential):
    options = dict(operator=Bath(1.0, 1.0), mass=1.0, lengths=None, together=128)
    here, there = (DensityObjective(field, **options) for field in (potential.exact, potential.field))
    rows = (potential.z, potential.wanted, potential.share, potential.c[0])
    wanted = here.evaluate(0.0, rows[0].double(), *rows[1:], with_gradient=True)
    found = there.evaluate(0.0, *(part.cuda() for part in rows), with_gradient=True)
    for one, other in zip(found, wanted, strict=True):
        potential.near(one.cpu(), other, 10)


@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
def test_a_step_along_a_potential_on_a_gpu(potential, kept):
    """Against the CPU's kernel in double precision."""
    dx, dv, generator = potential.field.space_dims, potential.field.velocity_dims, torch.Generator().manual_seed(7)
    x, v = (torch.randn(len(potential.z), dims, generator=generator, dtype=torch.float64) for dims in (dx, dv))
    how = Carry(0.2, 0.1, 1.3, True, potential.field.periods or (), tuple(0.5 + axis for axis in range(dx)), 0.7)
    wanted = potential.exact.network.carry(x, v, Terms(potential.share, 128, UNIT, FINE), potential.k, how)
    x, v = (part.to(kept).cuda() for part in (x, v))
    terms = Terms(potential.share.cuda(), 128, UNIT, FINE)
    found = potential.field.network.carry(x, v, terms, potential.k.cuda(), how)
    for one, other in zip(found[:4], wanted[:4], strict=True):
        potential.near(one.cpu(), other, 4)
    potential.near(found[4].sum(0), wanted[4].sum(0), 4)
    assert found[5] == pytest.approx(wanted[5], rel=1e-5)


@pytest.mark.parametrize(
    "network",
    [("1D1V", 32, "tanh", "exact"), ("3D3V", 32, "tanh", "exact"), ("3D3V", 32, "tanh", "linear")],
    ids=str,
)
def test_the_objective_on_tensor_cores(network):
    with cuda.on_tensor_cores():
        test_the_objective_on_a_gpu(network)


def test_moments_and_the_field_on_tensor_cores():
    with cuda.on_tensor_cores():
        test_moments_on_a_gpu(("3D3V", 32, "tanh"), "exact")
        test_the_field_on_a_gpu(("3D3V", 32, "tanh", torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_potential_on_tensor_cores(dtype):
    """The default's functions in 3D3V."""
    with torch.no_grad(), cuda.on_tensor_cores():
        potential = OnGPU((True, 3, 3, 64, dtype))
        for test in (
            test_functions_of_a_potential_on_a_gpu,
            test_sums_of_a_potential_on_a_gpu,
            test_the_gradient_of_a_density_on_a_gpu,
            test_a_step_along_a_potential_on_a_gpu,
        ):
            test(potential)


def two_stream(dims, count, **tables):
    """A few steps of two beams, self-consistent, with the default method."""
    return {
        "problem": {"kind": "two_stream", "space_dims": dims, "velocity_dims": dims},
        "particles": {"count": count, "seed": 1},
        "grid": {"cells": [16] * dims, "shape_order": 2},
        "time": {"step": 0.1, "end": 0.4},
        "physics": {"collision_strength": 0.1},
        **tables,
    }


@pytest.mark.parametrize("dims", [1, 3])
def test_a_run_on_a_gpu_is_that_of_the_cpu(dims):
    rows = []
    for device in ("cuda", "cpu"):
        comm = Communicator()
        simulation = Simulation.start(from_table(two_stream(dims, 2**14, run={"device": device})), comm)
        for _ in range(4):
            simulation.state = simulation.advance()
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    for name in ("kinetic_energy", "field_energy", "entropy", "free_energy"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name


#: What a run may have beside the defaults.
WAYS = {
    "paper": {"method": {"order": 1, "solver": "adam", "logdet": "linear", "first_iterations": 20, "iterations": 5}},
    "auto": {"method": {"solver": "adam", "iterations": "auto", "held_out": True, "first_iterations": 20}},
    "varpro": {"method": {"solver": "varpro"}},
    "regression": {"method": {"solver": "regression", "order": 2}},
    "regression, other widths": {"method": {"solver": "regression", "hidden": [24, 40]}},
    "coulomb": {
        "problem": {"kind": "bi_maxwellian", "velocity_dims": 3},
        "physics": {"collision_strength": 0.1, "collision_operator": "landau"},
    },
    "two species": {
        "problem": {"kind": "plasma"},
        "species": {
            "electrons": {"charge": -1.0, "mass": 1.0, "count": 4096, "collision_strength": 0.1},
            "ions": {"charge": 1.0, "mass": 25.0, "count": 4096, "collision_strength": 0.1},
        },
        "particles": {"seed": 1},
        "physics": {},
    },
    "leaky_relu": {"method": {"activation": "leaky_relu"}},
    "one layer": {"method": {"hidden": [20]}},
    "double": {"method": {"precision": "float64"}},
    "single": {"particles": {"count": 4096, "precision": "float32"}},
    "score_matching": {"method": {"collision": "score_matching", "first_iterations": 20, "iterations": 5}},
    "langevin": {"method": {"collision": "langevin"}},
    "none": {"method": {"collision": "none"}},
    "nonsplit": {"method": {"form": "nonsplit", "order": 1}, "time": {"step": 0.1, "end": 0.4, "integrator": "euler"}},
    "dougherty": {"physics": {"collision_strength": 0.1, "collision_operator": "dougherty"}},
    "control variate": {"particles": {"count": 4096, "control_variate": True}},
    "ampere": {
        "physics": {"collision_strength": 0.1, "field": "ampere"},
        "time": {"step": 0.1, "end": 0.4, "energy_conserving": True},
    },
    "density": {"particles": {"count": 4096, "weights": "density"}},
    "parts": {"run": {"reproducible": False}},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_a_step_runs_on_a_gpu(way):
    rows = []
    for device in ("cuda", "cpu"):
        table = two_stream(1, 4096, **WAYS[way])
        table["run"] = table.get("run", {}) | {"device": device}
        comm = Communicator()
        simulation = Simulation.start(from_table(table), comm)
        for _ in range(2):
            simulation.state = simulation.advance()
            simulation.step_index += 1
        rows.append(measure(simulation.diagnostics, simulation.state, comm))
    for name in ("kinetic_energy", "field_energy", "momentum_1"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3, abs=1e-6), name


def test_a_restart_on_a_gpu_has_the_bits_of_a_run_to_the_end(tmp_path):
    case, seen = two_stream(1, 5000, run={"device": "cuda"}, output={"checkpoint_every": 2}), []
    for folder, end in (("whole", 0.4), ("half", 0.2)):
        (tmp_path / "case.toml").write_text(tomli_w.dumps(case | {"time": {"step": 0.1, "end": end}}))
        assert main(["run", str(tmp_path / "case.toml"), "--out", str(tmp_path / folder)]) == 0
    assert main(["restart", str(tmp_path / "half"), "--set", "time.end=0.4"]) == 0
    for folder in ("whole", "half"):
        seen.append(load(latest(tmp_path / folder / "checkpoints"), Communicator()))
    whole, half = seen
    assert whole.header["step"] == half.header["step"] == 4
    for kind in ("particles", "state"):
        ours, theirs = getattr(whole, kind), getattr(half, kind)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
