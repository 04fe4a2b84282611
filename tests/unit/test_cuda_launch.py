"""Launches on a GPU that is pretended: which kernels are launched, with what, and how often the host waits."""

import copy
import dataclasses
import shutil
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from test_cuda_network import assert_moments, true_moments
from test_native_objective import STEP, exact, objective_of, particles_of, value_and_gradient
from test_native_pairs import assert_agrees, by_torch, couples
from test_native_particles import GRIDS, assert_close, ensemble

from hpc_kjko import kernels
from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.errors import UserError
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers import density
from hpc_kjko.inner.solvers.base import Sample
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import particles as cuda_particles
from hpc_kjko.kernels.cuda import potential as cuda_potential
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import drifted
from hpc_kjko.running.simulation import Simulation

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


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
