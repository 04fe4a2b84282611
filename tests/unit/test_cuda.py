"""What can be seen of a GPU without one: kernels through its compiler, their choice and launch, what has a device."""

import copy
import ctypes
import dataclasses
import importlib.util
import itertools
import re
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cuda_network import assert_moments, true_moments
from test_native_objective import SPACES, STEP, exact, objective_of, particles_of, value_and_gradient
from test_native_pairs import assert_agrees, by_torch, couples
from test_native_particles import GRIDS, assert_close, ensemble

from hpc_kjko import kernels
from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.errors import UserError
from hpc_kjko.inner.control import ControlField, smallest_eigenvalue
from hpc_kjko.inner.objective import DensityObjective, JKOObjective, linear_part, tracked_log_det
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers import density
from hpc_kjko.inner.solvers.base import Batches, Sample, TrainingData
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.potential_sums import PotentialSums
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels import objective as fused
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import pairs as cuda_pairs
from hpc_kjko.kernels.cuda import particles as cuda_particles
from hpc_kjko.kernels.cuda import potential as cuda_potential
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import NODES, Beta
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import Particles, Shard, drifted, equal_weights, folds
from hpc_kjko.running.simulation import Simulation

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


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


def assert_in_registers(log, most, spilt=0):
    """Next to nothing spilt, and as many blocks at a time as are meant to fit.

    A few registers are the price of one block more at a time, which on an H200 was faster; see
    docs/benchmarks/2026-11-26-gpu.md.
    """
    stores = re.findall(r"(\d+) bytes spill stores", log)
    assert stores and all(int(bytes_) <= spilt for bytes_ in stores), log
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
    kernel = cuda_network.objective_kernel(*network)
    log, code = compiled(kernel, arch)
    assert_in_registers(log, 65536 // int(dict(kernel.constants)["KJKO_RESIDENT_THREADS"]), 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, kernel",
    [
        ("sm_80", cuda_network.moments_kernels(32, True, 3)[0]),
        ("sm_90", cuda_network.moments_kernels(32, True, 1)[0]),
        ("sm_90", cuda_network.moments_kernels(64, False, 3)[1]),
        ("sm_80", cuda_network.field_kernel(torch.float64, 32, True, 3)),
        ("sm_90", cuda_network.field_kernel(torch.float64, 64, True, 2)),
        ("sm_90", cuda_network.field_kernel(torch.float32, 32, True, 1)),
    ],
)
def test_moments_and_the_field_compile_and_stay_in_registers(arch, kernel):
    log, code = compiled(kernel, arch)
    assert_in_registers(log, 255, 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "name, dtype, dims, order", [("deposit", torch.float32, 1, 1), ("gather", torch.float64, 3, 2)]
)
def test_the_kernels_of_particles_compile(name, dtype, dims, order, arch):
    log, code = compiled(cuda_particles.particle_kernel(name, dtype, ([4] * dims, [1.0] * dims, order)), arch)
    assert_in_registers(log, 168)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, dims, alike, exponent, single_precision",
    [
        ("sm_80", 3, True, -3.0, True),
        ("sm_90", 3, True, -3.0, True),
        ("sm_90", 3, False, -2.5, True),
        ("sm_80", 2, False, 1.0, True),
        ("sm_90", 2, True, -1.0, False),
    ],
)
def test_sums_over_pairs_compile_and_stay_in_registers(arch, dims, alike, exponent, single_precision):
    log, code = compiled(cuda_pairs.pair_kernel(dims, alike, exponent, single_precision), arch)
    assert_in_registers(log, 128, 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, name, dtype, dims, most, spilt",
    [
        ("sm_80", "values", torch.float32, 3, 128, 0),
        ("sm_90", "missed", torch.float32, 3, 128, 0),
        ("sm_90", "slopes", torch.float32, 3, 128, 0),
        ("sm_80", "carry", torch.float32, 3, 128, 120),
        ("sm_90", "carry", torch.float64, 3, 128, 200),
        ("sm_90", "carry", torch.float32, 1, 128, 80),
        ("sm_80", "normal", torch.float32, 3, 255, 0),
        ("sm_90", "derivatives", torch.float32, 3, 255, 0),
        ("sm_90", "barrier", torch.float32, 3, 255, 80),
        ("sm_80", "tied", torch.float32, 3, 255, 0),
        ("sm_90", "training", torch.float32, 3, 128, 80),
    ],
)
def test_the_potential_compiles_and_stays_in_registers(arch, name, dtype, dims, most, spilt):
    """Those of the default's two layers of 64."""
    log, code = compiled(cuda_potential.potential_kernel(f"potential_{name}", dtype, 64, dims), arch)
    assert_in_registers(log, most, spilt)
    assert b"shape" in code


@needs_module
def test_python_mirrors_the_structs_of_the_kernels():
    """Every field by its place, and the size; of the launch and of the settings the names in their order."""
    layouts = kernels.require().struct_layouts()
    for module in (cuda_network, cuda_pairs, cuda_particles, cuda_potential):
        for name, mirror in vars(module).items():
            own = getattr(mirror, "__module__", None) == module.__name__
            if own and isinstance(mirror, type) and issubclass(mirror, ctypes.Structure):
                places = [getattr(mirror, field[0]).offset for field in mirror._fields_]
                assert [*places, ctypes.sizeof(mirror)] == layouts.pop(name.removeprefix("_")), name
    assert not layouts
    text = (cuda.FOLDER / "cuda" / "shape.hpp").read_text()
    assert tuple(re.findall(r"(\w+)[,;]", re.sub(r"//.*", "", text.split("struct Shape {")[1]))) == cuda.Shape._fields
    text = (cuda.FOLDER / "math" / "settings.hpp").read_text()
    fields = re.findall(r"^    \w+ (\w+);", text, re.MULTILINE)
    assert fields == [name for name, _ in cuda_network._Settings._fields_]


# -- a step, on a device that is not the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("space", ["1D1V", "3D3V unbounded"])
def test_an_inner_solve_stays_on_its_device(space, logdet):
    """On torch's meta device, which computes nothing but refuses to mix with the CPU."""
    meta, (periods, dx, dv) = torch.device("meta"), SPACES[space]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=meta) + torch.zeros(2)
    control = ControlField(periods, dx, dv, skip=True, device=meta)
    objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet=logdet)
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


class OnMeta(LeastSquares):
    """Sums that say of what kind they are, instead of what they are."""

    def summed(self, function, samples):
        found = [function(*sample) for sample in samples][-1]
        assert all(part.device == torch.device("meta") for part in found)
        return [np.ones(tuple(part.shape)) for part in found]


@pytest.mark.parametrize("space", ["1D1V", "3D3V unbounded"])
def test_a_regression_stays_on_its_device(space, alone):
    """What it computes of particles in torch: the functions, their sums, the gradient of the fit, the field."""
    meta, (periods, dx, dv) = torch.device("meta"), SPACES[space]
    field = PotentialField(periods, dx, dv, hidden=(64, 64), device=meta)
    x, v = (torch.zeros(200, dims, device=meta) for dims in (dx, dv))
    share, wanted = (torch.zeros(200, dtype=torch.float64, device=meta) for _ in range(2))
    z, k = field.features(x, v), field.coefficients
    c = torch.zeros(1, field.of_density, dtype=torch.float64, device=meta)
    objective = DensityObjective(field, operator=Bath(1.0, 1.0), mass=1.0, lengths=periods, together=128)
    with torch.no_grad():
        value, gradient = objective.evaluate(0.0, z, wanted, share, c[0], with_gradient=True)
        found = [value, gradient, field.values(z, c), *field.slopes(z, k[None], bent=1), field.hidden(z)]
        sums = PotentialSums(field, OnMeta(alone, 128, meta))
        sums.normal([(z, wanted, share)])
        sums.derivatives([(z, share)])
        sums.of_velocity([(z, share)], np.zeros(len(k)))
    assert all(tensor.device == meta for tensor in found)


def test_batches_are_gathered_when_they_are_asked_for():
    gathered = []

    def sample_of(rows, batch):
        gathered.append((rows.tolist(), batch))
        return Sample(rows[:, None], rows[:, None], rows)

    batches = Batches(sample_of, torch.tensor([3, 1, 2, 0, 4]), np.array([0, 2, 2, 5]))
    data = TrainingData.in_batches(batches, batches)
    assert len(data.folds) == 3 and gathered == [([], None)] and not len(data.select.z)
    assert data.folds[2].share.tolist() == data.folds[2].share.tolist() == [2, 0, 4]
    assert gathered[1:] == [([2, 0, 4], 2)]
    assert [len(one.z) for one in data.everything] == [2, 3]
    for most, wanted in (
        (np.inf, [([3, 1, 2, 0, 4], (2, 3))]),
        (4, [([3, 1], (2,)), ([2, 0, 4], (3,))]),
        (1, [([3, 1], (2,)), ([2, 0, 4], (3,))]),
    ):
        assert [(whole.share.tolist(), counts) for whole, counts in batches.joined(most)] == wanted


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

    def __deepcopy__(self, memo):
        return torch.nn.Parameter(self.detach().clone())


def pretended(tensor):
    return None if tensor is None else tensor.as_subclass(Pretended)


@pytest.fixture
def launched(monkeypatch):
    """A GPU that is the CPU: what is launched runs here; the names of the kernels."""
    names, launch = [], cuda.Kernel.launch

    def noted(kernel, *arguments, **options):
        names.append(kernel.name)
        launch(kernel, *arguments, **options)

    monkeypatch.delenv("KJKO_KERNELS", raising=False)
    monkeypatch.setattr(cuda, "available", lambda: True)
    monkeypatch.setattr(cuda.Kernel, "launch", noted)
    return names


def pretend(objective):
    """Its network on that GPU."""
    for module in objective.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(pretended(parameter.detach())))
    objective.trained = [*objective.control.layers.parameters(), objective.control.skip]


@needs_module
def test_moments_and_the_field_on_a_gpu_are_launched_there(launched, alone):
    """With more pairs of rows than a block has threads."""
    objective = objective_of("3D3V", width=64)
    particles = particles_of(objective, 900, known=True)
    wanted = true_moments(objective, particles)
    z, v, share, _, known = (pretended(part) for part in particles)
    field = copy.deepcopy(objective.control).double().with_jacobian(particles[0].double())
    pretend(objective)
    solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
    with torch.no_grad():
        c = objective.control.coefficients.double().numpy()
        assert_moments(solver._local(Sample(z, v, share, None, known), c, STEP, True), wanted)
        found = objective.control.with_jacobian(z)
    assert launched == ["sum_moments", "order_moments", "evaluate_field"]
    assert all((one - other).abs().max() < 3e-6 * other.abs().max() for one, other in zip(found, field, strict=True))


@needs_module
@pytest.mark.parametrize("space, logdet", [("1D1V", "exact"), ("3D3V", "linear")])
def test_an_objective_on_a_gpu_is_launched_there(space, logdet, launched):
    objective = objective_of(space, logdet=logdet)
    particles = particles_of(objective, 900, known=True)
    wanted = exact(objective, particles)
    pretend(objective)
    value, gradient = value_and_gradient(objective, [pretended(part) for part in particles])
    assert launched == ["evaluate_objective"]
    assert abs(value - wanted[0]) <= 1e-6 * max(abs(wanted[0]), objective.operator.temperature * STEP)
    assert torch.linalg.norm(gradient - wanted[1]) <= 1e-6 * torch.linalg.norm(wanted[1])


def on_pretended_gpu(collision, particles, monkeypatch):
    """A regression and its particles there."""
    dealt = collision._dealt

    def dealt_there(whole, particles):
        return dealt(dataclasses.replace(whole, z=pretended(whole.z)), particles)

    monkeypatch.setattr(collision, "_dealt", dealt_there)
    control, trainer = collision.control, collision._solver.fitted.trainer
    for layer in control.layers:
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, torch.nn.Parameter(pretended(parameter.detach())))
    trainer.parameters = dict(control.named_parameters())
    trainer.groups[0]["params"] = trainer.objective.trained = list(trainer.parameters.values())
    trainer.objective.clear_gradient()
    return dataclasses.replace(particles, **{key: pretended(getattr(particles, key)) for key in ("x", "v", "log_f")})


@needs_module
def test_a_regression_on_a_gpu_is_launched_there(launched, monkeypatch):
    """A whole step of the default is what the CPU makes of it; all samples of a sum are one launch."""
    table = {
        "problem": {"kind": "two_stream", "amplitude": 0.3, "velocity_dims": 2},
        "physics": {"collision_strength": 0.5},
        "particles": {"count": 2**13, "precision": "float32"},
        "method": {"hidden": [32, 32], "first_iterations": 4},
        "time": {"step": 0.2, "end": 0.2},
    }
    found = []
    for there in (True, False):
        simulation = Simulation.start(from_table(table), Communicator())
        (collision,), particles = simulation.collisions, simulation.state.particles
        particles = on_pretended_gpu(collision, particles, monkeypatch) if there else particles
        launched.clear()
        found.append(collision.step(particles, 0.2, StepStart(0, 0.0, particles)))
        if there:
            ours = [name for name in launched if name.startswith("potential_")]
    (gpu, of_gpu), (cpu, of_cpu) = found
    assert not launched and of_gpu.log_f_residual < 0.3
    # each of Adam's steps is on one batch; then there is one sum over all three
    times = {name: ours.count(f"potential_{name}") for name in ("training", "derivatives", "tied", "carry", "barrier")}
    assert times.pop("barrier") > 0 and times == {"training": 4, "derivatives": 1, "tied": 1, "carry": 1}
    assert float((gpu.v - cpu.v).abs().max()) < 2e-3 * float((cpu.v - particles.v).abs().max())
    assert of_gpu.dissipation == pytest.approx(of_cpu.dissipation, rel=1e-4)
    assert of_gpu.collision_free_energy == pytest.approx(of_cpu.collision_free_energy, rel=1e-4)


#: Where the host reads what may be on a GPU, and so waits until it is there.
READS = ("cpu", "item", "tolist", "nonzero", "__float__", "__int__", "__bool__")


@needs_module
def test_a_step_waits_for_a_gpu_a_known_number_of_times(launched, monkeypatch):
    """Twice in a hidden step: for the normal equations, and for what their solution misses. Else once for each sum that
    the host needs; not for each parameter, nor again for what does not change."""
    monkeypatch.setattr(density, "MAX_REWEIGHTED", 1)
    reads = Counter()

    def noted(name, read=None):
        def noting(*arguments):
            caller = sys._getframe(1)
            if "hpc_kjko" in caller.f_code.co_filename:
                reads[caller.f_code.co_name] += 1
            return read(*arguments)

        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, noting)

    def reads_of(call):
        reads.clear()
        call()
        return Counter(reads)

    for name in READS:
        noted(name)
    found = []
    for iterations in (3, 5):
        table = {
            "problem": {"kind": "two_stream", "amplitude": 0.3, "velocity_dims": 2},
            "physics": {"collision_strength": 0.5},
            "particles": {"count": 2**13, "precision": "float32"},
            "method": {"hidden": [32, 32], "first_iterations": iterations, "iterations": iterations},
            "time": {"step": 0.2, "end": 0.2},
        }
        simulation = Simulation.start(from_table(table), Communicator())
        (collision,), particles = simulation.collisions, simulation.state.particles
        particles = on_pretended_gpu(collision, particles, monkeypatch)
        start = StepStart(0, 0.0, particles)
        collision.step(particles, 0.2, start)
        found.append(reads_of(lambda: collision.step(particles, 0.2, start)))  # noqa: B023
        assert sum(reads_of(collision.state).values()) <= 3  # a copy for each precision, on each device
    few, more = found
    assert {name: more[name] - few[name] for name in more if more[name] != few[name]} == {"normal": 2, "missed": 2}
    per_step = dict(few - Counter(normal=4, missed=4))  # those of the hidden steps, and of the solution
    assert per_step.pop("barrier") <= 4  # of Newton's method
    once = ("derivatives", "tied", "tie", "excess", "_fit_field", "carry", "relaxed")
    assert per_step == {**dict.fromkeys(once, 1), "over_certifying": 2}


@needs_module
def test_a_gpu_without_the_memory_runs_a_regression_in_torch(launched, monkeypatch):
    field = PotentialField((1.0,), 1, 1, hidden=(64, 64))
    z = pretended(torch.zeros(10, 3))
    with torch.no_grad():
        for name, parameter in list(field.layers[0].named_parameters()):
            setattr(field.layers[0], name, torch.nn.Parameter(pretended(parameter.detach())))
        assert field.network.takes(z) and field.network.in_use
        monkeypatch.setattr(cuda_potential, "fit_on", lambda device: False)
        assert not field.network.takes(z) and not field.network.in_use


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


@needs_module
def test_sums_over_pairs_on_a_gpu_are_launched_there(launched):
    for members, others in couples(3):
        moved = [
            dataclasses.replace(
                one, **{name: pretended(getattr(one, name)) for name in ("v", "score", "hessian", "weight")}
            )
            for one in (members, others)
        ]
        found = pair_sums(moved[0], moved[0] if others is members else moved[1], -3.0)
        assert_agrees(found, by_torch(members, others, -3.0))
    assert launched == ["pair_sums"] * 3


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
    place = types.SimpleNamespace(get=lambda: np.array([128, 3, 50_000, 1, 0, 0, 1, 1], np.int32))

    def module(function):
        return lambda code, options: types.SimpleNamespace(
            get_function=lambda name: function, get_global=lambda name: place
        )

    launched = fake_cupy(monkeypatch, module)
    call = cuda_particles._GatherCall()
    kernel, device = cuda_particles.particle_kernel("gather", torch.float32, ((4,), (1.0,), 1)), torch.device("cuda", 0)
    kernel.launch(3, call, device)
    assert kernel.shape(device).resident == 3
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
    kernel = cuda_network.objective_kernel(32, True, 1, False)
    with pytest.raises(UserError, match="GPU \\(libnvrtc.so.12\\): install the CuPy that fits.*KJKO_KERNELS=torch"):
        kernel.launch(1, cuda_network._ObjectiveCall(), torch.device("cuda", 0))


def test_a_kernel_is_another_one_when_a_header_changes(monkeypatch, tmp_path):
    kernel = cuda_network.objective_kernel(32, True, 1, False)
    for folder in ("math", "cpu", "cuda"):
        shutil.copytree(cuda.FOLDER / folder, tmp_path / folder)
    before = kernel.source
    monkeypatch.setattr(cuda, "FOLDER", tmp_path)
    assert kernel.source == before
    (tmp_path / "math" / "log_det.hpp").write_text("")
    assert kernel.source != before
