"""The fused objective against automatic differentiation of its torch twin, in double precision."""

import copy
import importlib.util
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_kjko import kernels
from hpc_kjko.case.config import from_table
from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import CONTINUE_BELOW, JKOObjective, linear_part
from hpc_kjko.inner.solvers.base import Sample
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels.settings import Settings
from hpc_kjko.operators import Bath
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

#: (periods, dx, dv) with 2 to 9 inputs
SPACES = {
    "1D1V": ((1.0,), 1, 1),
    "1D1V unbounded": (None, 1, 1),
    "1D2V": ((1.0,), 1, 2),
    "1D3V": ((1.0,), 1, 3),
    "2D2V": ((1.0, 2.0), 2, 2),
    "2D2V unbounded": (None, 2, 2),
    "3D3V": ((1.0, 2.0, 3.0), 3, 3),
    "3D3V unbounded": (None, 3, 3),
}
STEP = 0.1


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "native")


def objective_of(space, *, width=32, activation="tanh", logdet="exact", skip=True, size=0.5):
    periods, dx, dv = SPACES[space]
    control = ControlField(periods, dx, dv, hidden=(width, width), activation=activation, seed=1, skip=skip)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in [*control.layers[-1].parameters(), *([control.skip] if skip else [])]:
            fan_in = width if parameter.shape[-1] == width else 1
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    return JKOObjective(control, operator=Bath(1.3, 0.8), logdet=logdet)


def folding(objective):
    """The same with a field whose map folds velocity space: its determinant is near zero and of either sign."""
    control = objective.control
    with torch.no_grad():
        control.layers[0].weight.mul_(4)
        control.skip.zero_()
        control.skip[0, -control.velocity_dims] = -1 / STEP
    return objective


def particles_of(objective, count, known=False):
    control = objective.control
    dv = control.velocity_dims
    dx = (control.layers[0].in_features - dv) // (2 if control.periods else 1)
    generator = torch.Generator().manual_seed(3)
    x, v = torch.rand(count, dx, generator=generator), torch.randn(count, dv, generator=generator)
    share = torch.rand(count, generator=generator) / max(count, 1)
    return control.features(x, v), v, share, None, torch.rand(count, generator=generator) if known else None


def value_and_gradient(objective, particles):
    objective.zero_grad()
    value = objective(STEP, *particles)
    value.backward()
    return value.detach().double(), torch.cat([p.grad.double().ravel() for p in objective.parameters()])


def exact(objective, particles):
    """By automatic differentiation in double precision."""
    double = [part.double() if part is not None else None for part in particles]
    return value_and_gradient(copy.deepcopy(objective).double(), double)


def assert_agrees(objective, particles):
    value, gradient = value_and_gradient(objective, particles)
    true_value, true_gradient = exact(objective, particles)
    # of the size of the terms that cancel in J
    running = objective.operator.temperature * float(particles[2].sum()) * STEP
    assert abs(value - true_value) <= 1e-6 * max(abs(true_value), running)
    assert torch.linalg.norm(gradient - true_gradient) <= 1e-6 * torch.linalg.norm(true_gradient)


@pytest.mark.parametrize("logdet", ["linear", "exact"])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("space", SPACES)
def test_value_and_gradient_against_double_precision(space, width, activation, logdet):
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    for known in (False, True):
        assert_agrees(objective, particles_of(objective, 3000, known))


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16, 17, 47, 48, 49, 95, 96, 97, 1500, 1535, 1536, 1537, 5000])
@pytest.mark.parametrize("space", ["1D1V", "2D2V", "3D3V"])
def test_any_number_of_particles(space, count):
    objective = objective_of(space)
    if count:
        assert_agrees(objective, particles_of(objective, count))
    else:
        value, gradient = value_and_gradient(objective, particles_of(objective, count))
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("logdet", ["linear", "exact"])
def test_without_a_skip(logdet):
    for space in ("1D1V", "1D3V"):
        objective = objective_of(space, logdet=logdet, skip=False)
        assert_agrees(objective, particles_of(objective, 500))


@pytest.mark.parametrize("space", ["1D1V", "2D2V", "3D3V"])
def test_the_continuation_of_the_logarithm(space):
    """Where the map is not invertible at some particles."""
    objective = folding(objective_of(space, size=6.0))
    particles = particles_of(objective, 2000)
    dets = torch.linalg.det(linear_part(objective.control.with_jacobian(particles[0])[1], STEP))
    assert (dets < 0).any() and (dets > CONTINUE_BELOW).any()
    assert_agrees(objective, particles)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("logdet", ["linear", "exact"])
@pytest.mark.parametrize("activation, width", [("tanh", 16), ("tanh", 32), ("leaky_relu", 48), ("tanh", 64)])
@pytest.mark.parametrize("space", SPACES)
def test_moments_of_variable_projection(space, activation, width, logdet, known, alone):
    objective = objective_of(space, width=width, activation=activation, logdet=logdet)
    z, v, share, _, known = particles_of(objective, 1001, known)
    sample = Sample(z, v, share, None, known)
    double = Sample(*(part.double() if part is not None else None for part in sample.rows(slice(None))))
    coefficients = objective.control.coefficients.double().numpy()
    size = coefficients.size

    def moments(objective, sample, whole):
        solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
        with torch.no_grad():
            return solver._local(sample, coefficients, STEP, whole).numpy()

    whole, part = moments(objective, sample, True), moments(objective, sample, False)
    expected = moments(copy.deepcopy(objective).double(), double, True)
    np.testing.assert_array_equal(part, whole[: size + 3])
    sizes = [size, 2, 1, (size // len(coefficients)) ** 2, size, size**2]
    for ours, theirs in zip(*(np.split(array, np.cumsum(sizes)[:-1]) for array in (whole, expected)), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


def test_moments_count_the_particles_where_the_map_turns_orientation(alone):
    objective = folding(objective_of("2D2V", size=6.0))
    z, v, share, *_ = particles_of(objective, 1001)
    solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
    coefficients = objective.control.coefficients.double().numpy()
    turned = solver._local(Sample(z, v, share), coefficients, STEP, False)[coefficients.size + 2]
    dets = torch.linalg.det(linear_part(objective.control.with_jacobian(z)[1], STEP))
    assert 0 < turned == (dets <= 0).sum() < 1001


def test_no_particle_is_not_in_the_moments_where_the_map_is_singular(alone):
    """u = −8 tanh(tanh v), h = 1/8: the determinant is 0 at v = 0, where no particle is, and blocks are filled up."""
    control = ControlField(None, 1, 1, hidden=(16, 16))
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.zero_()
        control.layers[0].weight[0, 1] = control.layers[1].weight[0, 0] = 1.0
        control.layers[2].weight[0, 0] = -8.0
    objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet="exact")
    solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
    z = torch.full((5, 2), 3.0)
    moments = solver._local(
        Sample(z, z[:, 1:], torch.full((5,), 0.2)), control.coefficients.double().numpy(), 0.125, True
    )
    assert np.isfinite(moments).all()


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 80])
@pytest.mark.parametrize("inputs", [3, 15, 16])
def test_the_module_has_the_networks_that_python_takes_it_for(width, inputs):
    z, share = torch.zeros(5, inputs), torch.full((5,), 0.2)
    sizes = [(width, inputs), (width,), (width, width), (width,), (2, width), (2,)]
    arguments = [z, z[:, -2:], share, None, *(torch.zeros(size) for size in sizes), None]
    settings = Settings("tanh", "exact", 0.1, 1.0, 1.0, together=64, unit=0.0)

    def evaluate():
        return kernels.require().evaluate_objective(*arguments, settings=settings, with_gradient=False)

    if kernels.has_network((inputs, width, width, 2)):
        assert evaluate()[0] == 0
    else:
        with pytest.raises(ValueError, match=r"no kernel|inputs"):
            evaluate()


def test_velocities_may_be_the_last_inputs():
    objective = objective_of("1D3V")
    z, v, *rest = particles_of(objective, 100)
    value, gradient = value_and_gradient(objective, (z, v, *rest))
    again, same = value_and_gradient(objective, (z, z[:, -3:], *rest))
    assert value == again and torch.equal(gradient, same)


def test_equal_shares_may_be_one_number(alone):
    objective = objective_of("1D3V")
    z, v, *_ = particles_of(objective, 100)
    found = []
    for share in (torch.tensor(0.01).expand(100), torch.full((100,), 0.01)):
        solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
        coefficients = objective.control.coefficients.double().numpy()
        moments = solver._local(Sample(z, v, share), coefficients, STEP, True)
        found.append((*value_and_gradient(objective, (z, v, share)), moments))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_bits_do_not_depend_on_the_number_of_threads():
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        objective = objective_of("3D3V")
        found.append(value_and_gradient(objective, particles_of(objective, 20000)))
    torch.set_num_threads(before)
    for value, gradient in found[1:]:
        assert value == found[0][0] and torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("space", ["1D1V", "2D2V"])
def test_every_chunk_is_added_once(space, alone):
    """Each thread has a sum of its own. Rounded parts add up exactly: one by one they give the same bits."""
    objective = objective_of(space)
    objective.together = 16
    z, v, share, *_ = particles_of(objective, 300 * 16 + 5)
    solver = VarproSolver(objective, alone, iterations=1, first_iterations=1, learning_rate=1e-3)
    coefficients = objective.control.coefficients.double().numpy()

    def found(rows):
        value, gradient = objective.evaluate(STEP, z[rows], v[rows], share[rows], None, None, with_gradient=True)
        moments = solver._local(Sample(z[rows], v[rows], share[rows]), coefficients, STEP, True)
        return torch.cat([value[None], gradient, moments])

    chunks = [found(slice(first, first + 16)) for first in range(0, len(z), 16)]
    assert torch.equal(found(slice(None)), torch.stack(chunks).sum(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_seen(bad):
    for position in range(7):
        objective = objective_of("1D1V")
        parameter = list(objective.parameters())[position]
        with torch.no_grad():
            parameter.view(-1)[0] = bad
        value, gradient = value_and_gradient(objective, particles_of(objective, 10))
        assert value.isnan() and gradient.isnan().all()


def test_particles_that_are_not_finite_are_seen():
    objective = objective_of("1D2V")
    z, v, *rest = particles_of(objective, 100)
    z[50, 1] = math.nan
    assert value_and_gradient(objective, (z, v, *rest))[0].isnan()


def test_without_gradient():
    objective = objective_of("2D2V")
    particles = particles_of(objective, 1000)
    with torch.no_grad():
        value = objective(STEP, *particles)
    assert not value.requires_grad and value == value_and_gradient(objective, particles)[0]


def test_a_factor_scales_the_gradient():
    objective = objective_of("1D1V")
    particles = particles_of(objective, 100)
    _, gradient = value_and_gradient(objective, particles)
    objective.zero_grad()
    (3 * objective(STEP, *particles)).backward()
    torch.testing.assert_close(torch.cat([p.grad.double().ravel() for p in objective.parameters()]), 3 * gradient)


def test_what_no_kernel_is_compiled_for_is_left_to_torch():
    periods, dx, dv = SPACES["1D1V"]
    for hidden in ((), (32,), (16, 32), (24, 24)):
        control = ControlField(periods, dx, dv, hidden=hidden, seed=1)
        objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet="exact")
        assert objective(STEP, *particles_of(objective, 10)).isfinite()


def test_a_run_agrees_with_torch(monkeypatch, alone):
    table = {
        "problem": {"kind": "two_stream"},
        "particles": {"count": 2**12, "seed": 1},
        "grid": {"cells": 32, "shape_order": 2},
        "time": {"step": 0.1, "end": 0.5},
        "physics": {"collision_strength": 0.1},
    }
    rows = []
    for backend in ("native", "torch"):
        monkeypatch.setenv("KJKO_KERNELS", backend)
        simulation = Simulation.start(from_table(table), alone)
        for _ in range(5):
            simulation.state = simulation.advance()
        rows.append(measure(simulation.diagnostics, simulation.state, alone))
    for name in ("kinetic_energy", "field_energy", "entropy", "free_energy"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name


def test_the_kernel_reaches_the_machine():
    """35 % of the multiply-adds that a loop in registers does: a spilt register or a lost vector would show."""
    path = Path(__file__).parents[2] / "scripts" / "bench_objective.py"
    spec = importlib.util.spec_from_file_location("bench_objective", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    count, arguments = 10000, TestArguments().arguments("1D1V", 10000)
    best, peak = math.inf, 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(100):  # the machine may be busy with other things: what counts is the best of short times
        peak = max(peak, kernels.require().peak_gflops(1e-3))
        start = time.perf_counter()
        kernels.require().evaluate_objective(**arguments, **TestArguments.SETTINGS)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    assert 1e-9 * count * bench.operations(3, 32, 1, "tanh", "exact") / best > 0.35 * peak


class TestArguments:
    """The module itself says what is wrong with its arguments."""

    SETTINGS = dict(settings=Settings("tanh", "exact", 0.1, 1.0, 1.0, together=1024, unit=0.0), with_gradient=True)

    def arguments(self, space="1D2V", count=20):
        objective = objective_of(space)
        z, v, share, _, known = particles_of(objective, count, known=True)
        layers = objective.control.layers
        names = ["w1", "b1", "w2", "b2", "w3", "b3"]
        parameters = dict(zip(names, (p.detach() for p in layers.parameters()), strict=True))
        return dict(z=z, v=v, share=share, known=known, **parameters, skip=objective.control.skip.detach())

    @pytest.mark.parametrize("name", ["z", "v", "share", "known", "w1", "b1", "w2", "b2", "w3", "b3", "skip"])
    def test_of_another_type(self, name):
        arguments = self.arguments()
        arguments[name] = arguments[name].double()
        with pytest.raises(TypeError, match="incompatible function arguments"):
            kernels.require().evaluate_objective(**arguments, **self.SETTINGS)

    @pytest.mark.parametrize("name", ["z", "w1", "w2", "w3", "skip"])
    def test_not_contiguous(self, name):
        arguments = self.arguments()
        arguments[name] = arguments[name].T.contiguous().T
        with pytest.raises(TypeError, match="order='C'"):
            kernels.require().evaluate_objective(**arguments, **self.SETTINGS)

    def test_scattered_components(self):
        arguments = self.arguments()
        arguments["v"] = arguments["v"].T.contiguous().T
        with pytest.raises(ValueError, match="side by side"):
            kernels.require().evaluate_objective(**arguments, **self.SETTINGS)

    def test_on_another_device(self):
        arguments = self.arguments()
        arguments["z"] = arguments["z"].to("meta")
        with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
            kernels.require().evaluate_objective(**arguments, **self.SETTINGS)

    @pytest.mark.parametrize("name, words", [("share", "same particles"), ("b2", "do not fit together")])
    def test_of_other_lengths(self, name, words):
        arguments = self.arguments()
        arguments[name] = arguments[name][1:]
        with pytest.raises(ValueError, match=words):
            kernels.require().evaluate_objective(**arguments, **self.SETTINGS)
