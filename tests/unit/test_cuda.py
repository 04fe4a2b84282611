"""The GPU's kernels without a GPU: their text on the CPU against double precision, and through NVRTC for real GPUs."""

import copy
import ctypes
import importlib.util
import itertools
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from test_native_objective import SPACES, STEP, exact, folding, objective_of, particles_of, value_and_gradient
from test_native_particles import COUNTS, GRIDS, assert_close, ensemble

from hpc_kjko import native
from hpc_kjko.checkpoint import latest, load
from hpc_kjko.cli import main
from hpc_kjko.comm import Communicator
from hpc_kjko.config import from_table
from hpc_kjko.control import ControlField, smallest_eigenvalue
from hpc_kjko.control_variate import NODES, Beta
from hpc_kjko.diagnostics import measure
from hpc_kjko.errors import UserError
from hpc_kjko.exact import MOMENTS_UNIT, UNIT
from hpc_kjko.native import cuda
from hpc_kjko.native import objective as fused
from hpc_kjko.objective import JKOObjective, linear_part, tracked_log_det
from hpc_kjko.particles import Particles, Shard, drifted, equal_weights, folds
from hpc_kjko.simulation import Simulation
from hpc_kjko.solvers.base import Sample
from hpc_kjko.solvers.varpro import VarproSolver

needs_module = pytest.mark.skipif(not native.available(), reason="installed without the native module")

#: (space, width, activation, logdet): every width, activation and way of the tangents.
NETWORKS = [
    ("1D1V", 16, "tanh", "exact"),
    ("1D1V unbounded", 16, "tanh", "linear"),
    ("3D3V", 16, "tanh", "linear"),
    ("1D1V", 32, "tanh", "exact"),
    ("2D2V", 32, "tanh", "exact"),
    ("2D2V unbounded", 32, "tanh", "linear"),
    ("1D3V", 32, "tanh", "exact"),
    ("3D3V", 32, "tanh", "exact"),
    ("3D3V unbounded", 32, "tanh", "linear"),
    ("1D1V", 32, "leaky_relu", "linear"),
    ("1D2V", 32, "leaky_relu", "linear"),
    ("3D3V", 32, "leaky_relu", "exact"),
    ("1D1V", 48, "tanh", "exact"),
    ("1D2V", 48, "tanh", "linear"),
    ("1D1V unbounded", 64, "tanh", "exact"),
    ("2D2V", 64, "tanh", "linear"),
    ("3D3V", 64, "tanh", "exact"),
]


def evaluate(objective, particles, **options):
    """Value and gradient as the kernel has them."""
    z, v, share, _, known = particles
    control = objective.control
    parameters = [*control.layers.parameters(), *([control.skip] if control.skip is not None else [])]
    settings = dict(tanh=control.activation == "tanh", exact=objective.logdet == "exact", step=STEP)
    settings |= dict(collision_strength=objective.collision_strength, temperature=objective.temperature)
    settings |= dict(together=objective.together, unit=UNIT)
    return cuda.objective((z, v, share, known), parameters, **settings, **({"with_gradient": True} | options))


def assert_agrees(objective, particles):
    value, gradient = evaluate(objective, particles)
    true_value, true_gradient = exact(objective, particles)
    if objective.control.skip is not None:  # the last of the kernel's parameters, the first of the module's
        true_gradient = true_gradient.roll(-objective.control.skip.numel())
    running = objective.temperature * float(particles[2].sum()) * STEP  # of the size of the terms that cancel in J
    assert abs(value - true_value) <= 1e-6 * max(abs(true_value), running)
    assert torch.linalg.norm(gradient - true_gradient) <= 1e-6 * torch.linalg.norm(true_gradient)


#: (space, width, activation): every width, number of velocity dimensions and activation.
MOMENTS = [
    ("1D1V", 16, "tanh"),
    ("3D3V unbounded", 16, "tanh"),
    ("1D1V", 32, "tanh"),
    ("1D1V unbounded", 32, "tanh"),
    ("2D2V unbounded", 32, "tanh"),
    ("1D3V", 32, "tanh"),
    ("3D3V", 32, "tanh"),
    ("3D3V unbounded", 32, "tanh"),
    ("1D2V", 32, "leaky_relu"),
    ("3D3V", 48, "tanh"),
    ("3D3V", 64, "tanh"),
]


def sum_moments(objective, particles, **options):
    """Moments as the kernel has them, at the objective's own coefficients."""
    z, v, share, _, known = particles
    control = objective.control
    parameters = [*control.layers.parameters(), *([control.skip] if control.skip is not None else [])]
    settings = dict(tanh=control.activation == "tanh", exact=objective.logdet == "exact", step=STEP, whole=True)
    settings |= dict(temperature=objective.temperature, together=objective.together, unit=MOMENTS_UNIT)
    return cuda.moments((z, v, share, known), parameters, **(settings | options))


def true_moments(objective, particles):
    """The same in double precision, by torch; and each of them by itself."""
    z, v, share, _, known = particles
    double = copy.deepcopy(objective).double()
    sample = Sample(*(None if part is None else part.double() for part in (z, v, share, None, known)))
    c = objective.control.coefficients.double().numpy()
    solver = VarproSolver(double, Communicator(), iterations=1, first_iterations=1, learning_rate=1e-3)
    dv, basis = c.shape
    sizes = [dv * basis, 1, 1, basis**2, dv * basis, (dv * basis) ** 2]
    with torch.no_grad():
        moments = solver._local_in_pieces(sample, c, STEP, True)
    return lambda found: zip(found.split(sizes), moments.split(sizes), strict=True)


def assert_moments(found, wanted):
    for ours, theirs in wanted(found):
        assert torch.linalg.norm(ours - theirs) <= 1e-6 * torch.linalg.norm(theirs)


#: (space, width, activation, precision)
FIELDS = [
    ("2D2V", 16, "tanh", torch.float64),
    ("1D1V", 32, "tanh", torch.float64),
    ("3D3V", 32, "tanh", torch.float64),
    ("1D3V", 32, "tanh", torch.float64),
    ("1D1V unbounded", 48, "leaky_relu", torch.float64),
    ("3D3V unbounded", 64, "tanh", torch.float64),
    ("1D1V", 32, "tanh", torch.float32),
    ("1D2V", 32, "leaky_relu", torch.float32),
    ("3D3V", 64, "tanh", torch.float32),
]


def assert_field(objective, z, dtype, found):
    expected = copy.deepcopy(objective.control).double().with_jacobian(z.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= (1e-13 if dtype == torch.float64 else 3e-6) * theirs.abs().max()


# -- the text, on the CPU ----------------------------------------------------------------------------------------------


@needs_module
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_value_and_gradient_against_double_precision(network, known):
    space, *network = network
    width, activation, logdet = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet, skip=width != 16)
    assert_agrees(objective, particles_of(objective, 2000, known))


@needs_module
@pytest.mark.parametrize("count", [0, 1, 31, 33, 64, 767, 1537])
@pytest.mark.parametrize("space", ["1D1V", "2D2V", "3D3V"])
def test_any_number_of_particles(space, count):
    objective = objective_of(space)
    if count:
        assert_agrees(objective, particles_of(objective, count))
    else:
        value, gradient = evaluate(objective, particles_of(objective, count))
        assert value == 0 and not gradient.any()


@needs_module
@pytest.mark.parametrize("space", ["1D1V", "2D2V", "3D3V"])
def test_the_continuation_of_the_logarithm(space):
    objective = folding(objective_of(space, size=6.0))
    assert_agrees(objective, particles_of(objective, 2000))


@needs_module
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_no_thread_needs_what_another_does_in_the_same_phase(network):
    """The threads of a GPU run in any order: from the last to the first they find the same bits."""
    space, width, activation, logdet = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    particles = particles_of(objective, 900, known=True)
    forwards, backwards = (evaluate(objective, particles, backwards=backwards) for backwards in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards, strict=True))


@needs_module
def test_without_gradient():
    objective = objective_of("2D2V")
    particles = particles_of(objective, 1000)
    value, gradient = evaluate(objective, particles, with_gradient=False)
    assert gradient is None and value == evaluate(objective, particles)[0]


@needs_module
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(bad):
    for position in range(7):
        objective = objective_of("1D1V")
        with torch.no_grad():
            list(objective.parameters())[position].view(-1)[0] = bad
        value, gradient = evaluate(objective, particles_of(objective, 10))
        assert not value.isfinite() and gradient.isnan().all()
    objective = objective_of("1D2V")
    z, v, *rest = particles_of(objective, 100)
    z[50, 1] = bad
    assert not evaluate(objective, (z, v, *rest))[0].isfinite()


@needs_module
def test_velocities_may_be_the_last_inputs_and_shares_one_number():
    objective = objective_of("1D3V")
    z, v, *_ = particles_of(objective, 100)
    expected = evaluate(objective, (z, v, torch.full((100,), 0.01), None, None))
    found = evaluate(objective, (z, z[:, -3:], torch.tensor(0.01).expand(100), None, None))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@needs_module
@pytest.mark.parametrize("space, logdet", [("1D1V", "exact"), ("3D3V", "linear")])
def test_sums_do_not_depend_on_how_chunks_are_dealt(space, logdet, monkeypatch):
    """Not to blocks of threads, nor to ranks."""
    objective = objective_of(space, logdet=logdet)
    objective.together = 128
    particles = particles_of(objective, 1500, known=True)
    whole = evaluate(objective, particles)
    monkeypatch.setattr(cuda, "MOST_SUMS", 2)
    assert all(torch.equal(one, other) for one, other in zip(evaluate(objective, particles), whole, strict=True))
    parts = [
        evaluate(objective, [None if part is None else part[rows] for part in particles])
        for rows in (slice(0, 256), slice(256, 896), slice(896, 1500))
    ]
    assert all(torch.equal(sum(part), one) for part, one in zip(zip(*parts, strict=True), whole, strict=True))


@needs_module
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("network", MOMENTS, ids=str)
def test_moments_against_double_precision(network, logdet, known):
    space, width, activation = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet, skip=width != 16)
    particles = particles_of(objective, 1001, known)
    assert_moments(sum_moments(objective, particles), true_moments(objective, particles))


@needs_module
@pytest.mark.parametrize("network", MOMENTS, ids=str)
def test_moments_in_any_order_and_in_parts(network):
    """The bits do not depend on the order of threads, on how chunks are dealt, nor on what else is wanted."""
    space, width, activation = network
    objective = objective_of(space, width=width, activation=activation)
    objective.together = 128
    particles = particles_of(objective, 900, known=True)
    whole = sum_moments(objective, particles)
    assert torch.equal(sum_moments(objective, particles, backwards=True), whole)
    few = sum_moments(objective, particles, whole=False)
    assert torch.equal(few, whole[: len(few)]) and len(few) == objective.control.coefficients.numel() + 2
    parts = [
        sum_moments(objective, [None if part is None else part[rows] for part in particles])
        for rows in (slice(0, 256), slice(256, 640), slice(640, 900))
    ]
    assert torch.equal(sum(parts), whole)


@needs_module
def test_moments_count_the_particles_where_the_map_turns_orientation():
    objective = folding(objective_of("2D2V", size=6.0))
    particles = particles_of(objective, 1001)
    turned = sum_moments(objective, particles)[objective.control.coefficients.numel() + 1]
    dets = torch.linalg.det(linear_part(objective.control.with_jacobian(particles[0])[1], STEP))
    assert 0 < turned == (dets <= 0).sum() < 1001


@needs_module
@pytest.mark.parametrize("count", [0, 1, 33])
def test_moments_of_any_number_of_particles(count):
    objective = objective_of("3D3V")
    particles = particles_of(objective, count)
    if count:
        assert_moments(sum_moments(objective, particles), true_moments(objective, particles))
    else:
        assert not sum_moments(objective, particles).any()


@needs_module
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_moments_of_what_is_not_finite(bad):
    for position in range(7):
        objective = objective_of("1D1V")
        with torch.no_grad():
            list(objective.parameters())[position].view(-1)[0] = bad
        assert sum_moments(objective, particles_of(objective, 10)).isnan().all()


@needs_module
@pytest.mark.parametrize("network", FIELDS, ids=str)
def test_the_field_against_double_precision(network):
    space, width, activation, dtype = network
    for skip in (True, False):
        objective = objective_of(space, width=width, activation=activation, skip=skip).to(dtype)
        control = objective.control
        z = particles_of(objective, 333)[0].to(dtype)
        parameters = [*control.layers.parameters(), *([control.skip] if skip else [])]
        found = cuda.field(z, parameters, tanh=activation == "tanh")
        assert_field(objective, z, dtype, found)
        other = cuda.field(z[100:201], parameters, tanh=activation == "tanh", backwards=True)
        assert all(torch.equal(part, whole[100:201]) for part, whole in zip(other, found, strict=True))


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
            density = cuda.deposit(mesh, x, quantities, unit, v=v, duration=0.3, moved=moved)
            wanted_x, wanted = grid.drift(x, v, 0.3, quantities, unit)
            assert torch.equal(moved, wanted_x) and torch.equal(cuda.drift(x, v, 0.3, grid.lengths), wanted_x)
            assert torch.equal(density, wanted) if unit else (density - wanted).abs().max() < 1e-12
        more = torch.cat([values, values[..., :1]], -1)
        assert torch.equal(cuda.gather(mesh, more, x), grid.gather(more, x))
        assert torch.equal(cuda.gather(mesh, values, x, v, -0.7), grid.kick(values, x, v, -0.7))


@needs_module
def test_bits_of_a_deposit_do_not_depend_on_the_order_of_particles():
    grid = GRIDS[-2]
    x, v, weight = ensemble(grid, 5001)
    mesh = (grid.cells, grid.lengths, grid.shape_order)
    quantities = torch.stack([weight, weight * v[:, 0]]) / weight.sum()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    density = cuda.deposit(mesh, x, quantities, UNIT)
    assert torch.equal(cuda.deposit(mesh, x, quantities, UNIT, backwards=True), density)
    assert torch.equal(cuda.deposit(mesh, x[order], quantities[:, order], UNIT), density)


@needs_module
@pytest.mark.parametrize("nowhere", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_particle_that_is_nowhere_is_seen_everywhere(grid, nowhere):
    mesh = (grid.cells, grid.lengths, grid.shape_order)
    x, v, weight = ensemble(grid, 600)
    x[517, -1] = nowhere
    moved = torch.empty_like(x)
    assert cuda.deposit(mesh, x, weight[None], UNIT, v=v, duration=0.1, moved=moved).isnan().all()
    assert moved[517, -1].isnan() and moved.isnan().sum() == 1
    gathered = cuda.gather(mesh, torch.ones(*grid.cells, 1, dtype=torch.float64), x)
    assert gathered[517].isnan() and gathered.isnan().sum() == 1


@needs_module
def test_positions_in_other_boxes():
    for grid in GRIDS:
        mesh, length = (grid.cells, grid.lengths, grid.shape_order), torch.tensor(grid.lengths, dtype=torch.float64)
        cell = length / torch.tensor(grid.cells)
        near = [0 * length, length, 2 * length, -length, 0.6 * cell - length, 1.1 * cell - length]
        x = torch.stack([*near, 1e3 * length + 0.1, -1e3 * length - 0.1])
        still = torch.zeros_like(x)
        assert torch.equal(cuda.drift(x, still, 1.0, grid.lengths), drifted(x, still, 1.0, grid.lengths))
        weight = torch.full((1, len(x)), 0.01, dtype=torch.float64)
        assert torch.equal(cuda.deposit(mesh, x, weight, UNIT), grid.deposit(x, weight, UNIT))


# -- the text, for GPUs ------------------------------------------------------------------------------------------------


def nvrtc():
    """NVIDIA's run-time compiler from its wheel, which needs no driver; None without it."""
    for name in ("nvidia.cu13.lib", "nvidia.cuda_nvrtc.lib"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        folder = Path(next(iter(found.submodule_search_locations))) if found else None
        libraries = sorted(folder.glob("libnvrtc.so.*")) if folder else []
        if libraries:
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(libraries[0]))
    return None


def compiled(kernel, arch):
    """The log of a compilation with the assembler's report, and the machine code."""
    library, program = nvrtc(), ctypes.c_void_p()
    options = [*kernel.options, f"-arch={arch}", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    library.nvrtcCreateProgram(ctypes.byref(program), kernel.source.encode(), b"kernel.cu", 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(options), options)

    def text(what):
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    log = text("ProgramLog").decode()
    assert not failed, log
    code = text("CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log, code


def assert_in_registers(log, most):
    """Nothing spilt, and as many blocks at a time as are meant to fit."""
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert not re.search(r"[1-9]\d* bytes (stack frame|spill)", log), log
    assert all(int(used) <= most for used in re.findall(r"Used (\d+) registers", log)), log


needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="pip install nvidia-cuda-nvrtc")


#: (width, tanh, velocity_dims, closed)
COMPILED = [
    *itertools.product(["sm_80", "sm_90"], [(32, True, 1, False), (32, True, 2, True), (32, True, 3, False)]),
    ("sm_90", (16, True, 2, False)),
    ("sm_80", (48, False, 3, True)),
    ("sm_90", (64, True, 1, False)),
]


@needs_nvrtc
@pytest.mark.parametrize("arch, network", COMPILED, ids=str)
def test_the_objective_compiles_and_stays_in_registers(arch, network):
    width = network[0]
    log, code = compiled(cuda.objective_kernel(*network), arch)
    assert_in_registers(log, 65536 // (4 * width * max(1, 384 // (4 * width))))
    assert b"shared_bytes" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, kernel",
    [
        ("sm_80", cuda.moments_kernel(32, True, 3)),
        ("sm_90", cuda.moments_kernel(32, True, 1)),
        ("sm_90", cuda.moments_kernel(64, False, 3)),
        ("sm_80", cuda.field_kernel(torch.float64, 32, True, 3)),
        ("sm_90", cuda.field_kernel(torch.float64, 64, True, 2)),
        ("sm_90", cuda.field_kernel(torch.float32, 32, True, 1)),
    ],
)
def test_moments_and_the_field_compile_and_stay_in_registers(arch, kernel):
    log, code = compiled(kernel, arch)
    assert_in_registers(log, 255)
    assert b"shared_bytes" in code


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "name, dtype, dims, order", [("deposit", torch.float32, 1, 1), ("gather", torch.float64, 3, 2)]
)
def test_the_kernels_of_particles_compile(name, dtype, dims, order, arch):
    log, code = compiled(cuda.particle_kernel(name, dtype, ([4] * dims, [1.0] * dims, order)), arch)
    assert_in_registers(log, 168)
    assert b"shared_bytes" in code


# -- a step, on a device that is not the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("space", ["1D1V", "3D3V unbounded"])
def test_an_inner_solve_stays_on_its_device(space, logdet):
    """On torch's meta device, which computes nothing but refuses to mix with the CPU."""
    meta, (periods, dx, dv) = torch.device("meta"), SPACES[space]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=meta) + torch.zeros(2)
    control = ControlField(periods, dx, dv, skip=True, device=meta)
    objective = JKOObjective(control, collision_strength=1.0, temperature=1.0, logdet=logdet)
    x, v, share = (torch.zeros(size, device=meta) for size in ((100, dx), (100, dv), (100,)))
    z = control.features(x, v)
    tangents = torch.zeros(100, dv, z.shape[1], device=meta)
    tangents[:, :dx] -= control.position_derivatives(x)
    for more in ((), (tangents,), (None, share)):
        objective(STEP, z, v, share, *more).backward()
    assert all(parameter.grad.device == meta for parameter in objective.parameters())
    g, along = control.basis(z)
    control.coefficients = torch.zeros(dv, g.shape[1])
    assert along.device == control.coefficients.device == meta
    u, jacobian = control.with_jacobian(z)
    smallest = smallest_eigenvalue(linear_part(jacobian, STEP))
    assert u.device == smallest.device == tracked_log_det(jacobian, STEP, logdet).device == meta


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_particles_stay_on_their_device(grid):
    meta, shard, dims = torch.device("meta"), Shard(0, 100, 100), len(grid.cells)
    x, v, log_f = (torch.zeros(size, device=meta) for size in ((100, dims), (100, 3), (100,)))
    values = torch.zeros(*grid.cells, dims, dtype=torch.float64, device=meta)
    weight = equal_weights(1.0, shard, meta)
    particles = Particles(x, v, log_f, weight, shard, 1.0, grid.lengths)
    beta = Beta(np.ones_like(NODES), 1.0, 0.0)
    found = [drifted(x, v, 0.1, grid.lengths), grid.gather(values, x), grid.kick(values, x, v, 0.1)]
    found += [particles.drift(0.1).x, particles.shares(), folds(shard, meta), beta.weights(particles, slice(None))]
    assert all(tensor.device == meta for tensor in (*found, *beta.drag(particles, slice(None))))


# -- the choice, and the launch ----------------------------------------------------------------------------------------


class OnGPU:
    """As much of a tensor as the choice of a kernel looks at."""

    is_cuda, dtype, device = True, torch.float32, torch.device("cuda", 0)


def test_kernels_of_the_gpu_are_taken_where_they_can_be(monkeypatch):
    monkeypatch.delenv("KJKO_KERNELS", raising=False)
    for there in (False, True):
        monkeypatch.setattr(cuda, "available", lambda there=there: there)
        assert cuda.take(OnGPU()) is there and fused.fused((3, 32, 32, 1), OnGPU()) is there
        assert not fused.fused((3, 24, 24, 1), OnGPU()) and not fused.fused((3, 32, 1), OnGPU())
        assert not cuda.take(OnGPU(), torch.zeros(1))
    assert cuda.describe() == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("KJKO_KERNELS", "torch")
    assert not cuda.take(OnGPU()) and cuda.describe() == "torch, chosen by KJKO_KERNELS"
    monkeypatch.setattr(cuda, "available", lambda: False)
    assert "no CuPy: pip install" in cuda.describe()
    monkeypatch.setenv("KJKO_KERNELS", "native")
    with pytest.raises(ImportError, match="no CuPy.*install 'hpc_kjko\\[cuda13\\]'"):
        cuda.take(OnGPU())


@pytest.mark.parametrize(
    "visible, expected",
    [
        ([["a", "b"], ["a", "b"]], ["cuda:0", "cuda:1"]),  # each rank sees all of a node
        ([["a"], ["b"]], ["cuda:0", "cuda:0"]),  # the launcher shows each rank its own
        ([["a"], ["a"]], ["cpu", "cpu"]),
        ([["a"], []], ["cpu", "cpu"]),
    ],
    ids=str,
)
def test_every_rank_takes_a_gpu_of_its_own(visible, expected, monkeypatch):
    ranks, gathered = [Communicator() for _ in visible], []

    def select(rank, wanted="auto"):
        gpus = visible[rank]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: types.SimpleNamespace(uuid=gpus[k]))
        monkeypatch.setattr(torch.cuda, "set_device", lambda k: None)
        ranks[rank].local_rank = rank
        ranks[rank].select_device(wanted)
        return str(ranks[rank].device)

    for rank in (0, 1):  # what each has to say, then what it hears from all
        monkeypatch.setattr(ranks[rank], "allgather", lambda mine: gathered.append(mine) or [mine])
        select(rank)
        monkeypatch.setattr(ranks[rank], "allgather", lambda mine: gathered[:2])
    assert [select(0), select(1)] == expected
    if "cpu" in expected:
        with pytest.raises(UserError, match="rank 1 has none"):
            select(0, "cuda")


class Pretended(torch.Tensor):
    """A tensor in the CPU's memory that says that it is in a GPU's."""

    is_cuda = property(lambda self: True)


def pretended(tensor):
    return None if tensor is None else tensor.as_subclass(Pretended)


@pytest.fixture
def launched(monkeypatch):
    """A GPU that is the CPU: what is launched runs here; the names of the kernels."""
    names = []

    def launch(kernel, blocks, threads, call, device):
        names.append(kernel.name)
        if kernel.name == "evaluate_objective":
            closed = dict(kernel.constants)["KJKO_CLOSED"] == "true"
            native.require().device_objective(bytes(call), closed, blocks, False)
        else:
            run = {"deposit": native.require().device_deposit, "gather": native.require().device_gather}
            run[kernel.name](bytes(call), False)

    monkeypatch.delenv("KJKO_KERNELS", raising=False)
    monkeypatch.setattr(cuda, "available", lambda: True)
    monkeypatch.setattr(cuda.Kernel, "launch", launch)
    return names


@needs_module
@pytest.mark.parametrize("space, logdet", [("1D1V", "exact"), ("3D3V", "linear")])
def test_an_objective_on_a_gpu_is_launched_there(space, logdet, launched):
    objective = objective_of(space, logdet=logdet)
    particles = particles_of(objective, 900, known=True)
    wanted = exact(objective, particles)
    for module in objective.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(pretended(parameter.detach())))
    objective.trained = [*objective.control.layers.parameters(), objective.control.skip]
    value, gradient = value_and_gradient(objective, [pretended(part) for part in particles])
    assert launched == ["evaluate_objective"]
    assert abs(value - wanted[0]) <= 1e-6 * max(abs(wanted[0]), objective.temperature * STEP)
    assert torch.linalg.norm(gradient - wanted[1]) <= 1e-6 * torch.linalg.norm(wanted[1])


@needs_module
def test_particles_on_a_gpu_are_launched_there(launched):
    grid = GRIDS[2]
    x, v, weight = ensemble(grid, 500)
    x, v, weight = (pretended(part) for part in (x, v, weight))
    values = torch.randn(*grid.cells, 3, dtype=torch.float64)

    def passes():
        yield from grid.drift(x, v, 0.3, weight[None])
        yield grid.deposit(x, weight[None], UNIT)
        yield grid.gather(values, x)
        yield grid.kick(values, x, v, 0.3)
        yield drifted(x, v, 0.3, grid.lengths)
        yield grid.mass_matrix(x, weight)

    found = list(passes())
    assert launched == ["deposit"] * 2 + ["gather"] * 2 + ["deposit"]
    launched.clear()
    with pytest.MonkeyPatch.context() as off:
        off.setenv("KJKO_KERNELS", "torch")
        wanted = list(passes())
    assert not launched
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.double(), other.double(), 1e-9)


def fake_cupy(monkeypatch, module):
    """CuPy as far as a launch goes; what was launched."""
    launched = []

    class Function:
        max_dynamic_shared_size_bytes = 0

        def __call__(self, *arguments, **options):
            launched.append((self, arguments, options))

    class Context:
        def __init__(self, *_):
            pass

        __enter__ = __exit__ = lambda self, *_: None

    cupy = types.SimpleNamespace(RawModule=module(Function()), ndarray=lambda shape, dtype, place: place)
    errors = types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    cupy.cuda = types.SimpleNamespace(Device=Context, Stream=Context, ExternalStream=Context, compiler=errors)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(cuda, "_compiled", cuda._compiled.__wrapped__)
    return launched


def test_a_launch_hands_over_one_struct(monkeypatch):
    place = types.SimpleNamespace(get=lambda: [50_000])

    def module(function):
        return lambda code, options: types.SimpleNamespace(
            get_function=lambda name: function, get_global=lambda name: place
        )

    launched = fake_cupy(monkeypatch, module)
    call = cuda._GatherCall()
    cuda.particle_kernel("gather", torch.float32, ((4,), (1.0,), 1)).launch(3, 128, call, torch.device("cuda", 0))
    ((function, (grid, block, (argument,)), options),) = launched
    assert grid == (3, 1) and block == (128,) and options == {"shared_mem": 50_000}
    assert function.max_dynamic_shared_size_bytes == 50_000
    assert argument.size == 1 and argument.tobytes() == bytes(call)


def test_a_cupy_that_cannot_compile_ends_in_advice(monkeypatch):
    def module(function):
        def fail(code, options):
            raise RuntimeError("could not load\nlibnvrtc.so.12")

        return fail

    fake_cupy(monkeypatch, module)
    kernel = cuda.objective_kernel(32, True, 1, False)
    with pytest.raises(UserError, match="GPU \\(libnvrtc.so.12\\): install the CuPy that fits.*KJKO_KERNELS=torch"):
        kernel.launch(1, 128, cuda._ObjectiveCall(), torch.device("cuda", 0))


def test_a_kernel_is_another_one_when_a_header_changes(monkeypatch, tmp_path):
    kernel = cuda.objective_kernel(32, True, 1, False)
    for path in itertools.chain(cuda.FOLDER.glob("*.hpp"), cuda.FOLDER.glob("*.cu")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = kernel.source
    monkeypatch.setattr(cuda, "FOLDER", tmp_path)
    assert kernel.source == before
    (tmp_path / "particle.hpp").write_text("")
    assert kernel.source != before


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not cuda.available(), reason="needs an NVIDIA GPU and CuPy")(test))


@gpu
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_objective_on_a_gpu(network):
    space, width, activation, logdet = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    particles = particles_of(objective, 5000, known=True)
    wanted = exact(objective, particles)
    moved = [None if part is None else part.cuda() for part in particles]
    objective.cuda().forget()
    value, gradient = value_and_gradient(objective, moved)  # by the objective's own choice of a kernel
    assert abs(value.cpu() - wanted[0]) <= 1e-6 * max(abs(wanted[0]), objective.temperature * STEP)
    assert torch.linalg.norm(gradient.cpu() - wanted[1]) <= 1e-6 * torch.linalg.norm(wanted[1])


@gpu
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


@gpu
def test_gradients_travel_through_nccl(monkeypatch):
    """Of as many ranks as there are GPUs of one each here: one, wrapped as several are."""
    comm = Communicator()
    comm.select_device("cuda")
    objective = objective_of("3D3V")
    z, v, share, _, _ = (None if part is None else part.cuda() for part in particles_of(objective, 3000))
    objective.cuda().forget()
    objective(STEP, z, v, share).backward()
    wanted = objective.gradient.clone()
    comm._start_process_group()
    try:
        assert torch.distributed.get_backend() == "nccl"
        monkeypatch.setattr(comm, "size", 2)
        distributed = comm.distribute(objective)
        objective.zero_grad()
        objective.forget()
        distributed(STEP, z, v, share).backward()
        for parameter in objective.trained:
            assert torch.equal(parameter.grad, objective.gradient_of(parameter).float())
        assert torch.equal(objective.gradient, wanted)
    finally:
        comm.close()


@gpu
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


@gpu
@pytest.mark.parametrize("network", FIELDS, ids=str)
def test_the_field_on_a_gpu(network):
    space, width, activation, dtype = network
    objective = objective_of(space, width=width, activation=activation).to(dtype)
    z = particles_of(objective, 5000)[0].to(dtype)
    control = objective.control.cuda()
    with torch.no_grad():
        found = control.with_jacobian(z.cuda())  # by the field's own choice of a kernel
    assert_field(objective.cpu(), z, dtype, [part.cpu() for part in found])


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


@gpu
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


@gpu
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
