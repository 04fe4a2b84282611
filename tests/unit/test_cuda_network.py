"""The GPU's kernels of the network: their text on the CPU, against double precision."""

import copy
import math

import pytest
import torch
from test_native_objective import STEP, exact, folding, objective_of, particles_of

from hpc_kjko import kernels
from hpc_kjko.inner.objective import linear_part
from hpc_kjko.inner.solvers.base import Sample
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.kernels.constants import MOMENTS_CHUNK
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import FINER, MOMENTS_UNIT, UNIT

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

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
    settings = objective.settings(STEP, UNIT)
    return cuda_network.objective((z, v, share, known), parameters, settings, **({"with_gradient": True} | options))


def assert_agrees(objective, particles):
    value, gradient = evaluate(objective, particles)
    true_value, true_gradient = exact(objective, particles)
    if objective.control.skip is not None:  # the last of the kernel's parameters, the first of the module's
        true_gradient = true_gradient.roll(-objective.control.skip.numel())
    # of the size of the terms that cancel in J
    running = objective.operator.temperature * float(particles[2].sum()) * STEP
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
    settings = objective.settings(STEP, MOMENTS_UNIT, FINER).within(MOMENTS_CHUNK)
    return cuda_network.moments((z, v, share, known), parameters, settings, **({"whole": True} | options))


def true_moments(objective, particles):
    """The same in double precision, by torch; and each of them by itself."""
    z, v, share, _, known = particles
    double = copy.deepcopy(objective).double()
    sample = Sample(*(None if part is None else part.double() for part in (z, v, share, None, known)))
    c = objective.control.coefficients.double().numpy()
    solver = VarproSolver(double, Communicator(), iterations=1, first_iterations=1, learning_rate=1e-3)
    dv, basis = c.shape
    sizes = [dv * basis, 2, 1, basis**2, dv * basis, (dv * basis) ** 2]
    with torch.no_grad():
        moments = solver._local_in_pieces(sample, c, STEP, True)
    return lambda found: zip(found.split(sizes), moments.split(sizes), strict=True)


def assert_moments(found, wanted, tolerance=1e-6):
    for ours, theirs in wanted(found):
        assert torch.linalg.norm(ours - theirs) <= tolerance * torch.linalg.norm(theirs)


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
    monkeypatch.setattr(cuda_network, "BLOCKS_OF_CPU", 2)
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
    assert torch.equal(few, whole[: len(few)]) and len(few) == objective.control.coefficients.numel() + 3
    parts = [
        sum_moments(objective, [None if part is None else part[rows] for part in particles])
        for rows in (slice(0, 256), slice(256, 640), slice(640, 900))
    ]
    assert torch.equal(sum(parts), whole)


@needs_module
@pytest.mark.parametrize("space", ["1D1V", "3D3V"])
def test_moments_of_an_affine_field_and_equal_shares(space):
    """What is the same for every particle is rounded the same way for each, and does not average out."""
    objective = objective_of(space)
    with torch.no_grad():
        objective.control.layers[-1].weight.zero_()
    objective.together = 1024
    z, v, *_ = particles_of(objective, 8192)
    for count in (1.5e6, 4e10):
        particles = (z, v, torch.full((len(z),), 1 / count), None, None)
        found, wanted = sum_moments(objective, particles), true_moments(objective, particles)
        if count < 1e9:  # beyond, the other sums are as good as their unit
            assert_moments(found, wanted, 4e-6)
        _, (ours, theirs), *_ = wanted(found)
        assert abs(ours.sum() / theirs.sum() - 1) < 1e-6


@needs_module
def test_moments_count_the_particles_where_the_map_turns_orientation():
    objective = folding(objective_of("2D2V", size=6.0))
    particles = particles_of(objective, 1001)
    turned = sum_moments(objective, particles)[objective.control.coefficients.numel() + 2]
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
        found = cuda_network.field(z, parameters, tanh=activation == "tanh")
        assert_field(objective, z, dtype, found)
        other = cuda_network.field(z[100:201], parameters, tanh=activation == "tanh", backwards=True)
        assert all(torch.equal(part, whole[100:201]) for part, whole in zip(other, found, strict=True))
