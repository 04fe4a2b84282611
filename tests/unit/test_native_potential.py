"""The native kernels of a potential's functions against their torch twins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers import potential_sums
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.potential_sums import PotentialSums
from hpc_kjko.kernels import available
from hpc_kjko.kernels.potential import Terms
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import MOMENTS_UNIT
from hpc_kjko.running.simulation import Simulation

pytestmark = pytest.mark.skipif(not available(), reason="no native kernels")

#: Box or not, dx, dv, hidden widths, particles.
SHAPES = [
    (True, 1, 1, (32, 32), 1000),
    (False, 1, 1, (7,), 65),
    (False, 1, 1, (4, 1), 100),
    (True, 1, 1, (8, 64), 100),
    (False, 1, 2, (64, 8), 100),
    (True, 1, 2, (16, 9), 300),
    (False, 2, 2, (33, 32), 129),
    (True, 1, 3, (24,), 1),
    (False, 3, 3, (32, 32), 777),
    (True, 3, 3, (20, 40), 256),
]


class Given:
    """A potential at particles, with coefficients."""

    def __init__(self, shape: tuple[bool, int, int, tuple[int, ...], int], dtype: torch.dtype = torch.float64):
        periodic, dx, dv, hidden, count = shape
        generator = torch.Generator().manual_seed(3)

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        periods = tuple(2.0 + axis for axis in range(dx)) if periodic else None
        self.field = PotentialField(periods, dx, dv, hidden=hidden, seed=2, dtype=dtype)
        self.z = self.field.features(normal(count, dx), normal(count, dv)).to(dtype)
        self.share = torch.rand(count, generator=generator, dtype=torch.float64) / count
        self.wanted = normal(count)
        self.c, self.k = normal(2, self.field.of_density), normal(2, len(self.field.coefficients))
        self.sums = PotentialSums(self.field, LeastSquares(Communicator(), 128, torch.device("cpu")))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=SHAPES, ids=str)
def given(request: pytest.FixtureRequest) -> Given:
    return Given(request.param)


def both(function, monkeypatch: pytest.MonkeyPatch):
    """What a function returns with native kernels, and in torch."""
    native = function()
    with monkeypatch.context() as there:
        there.setenv("KJKO_KERNELS", "torch")
        return native, function()


def near(native: object, twin: object, tolerance: float) -> None:
    native, twin = np.asarray(native), np.asarray(twin)
    assert native.shape == twin.shape
    assert np.abs(native - twin).max(initial=0.0) <= tolerance * max(np.abs(twin).max(initial=0.0), 1e-300)


def test_values(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    near(*both(lambda: given.field.values(given.z, given.c), monkeypatch), 1e-13)
    higher = torch.cat([given.c, given.c[:, : 2 * given.field.velocity_dims]], dim=1)
    near(*both(lambda: given.field.values(given.z, higher), monkeypatch), 1e-13)


@pytest.mark.parametrize("bent", [0, 1, 2])
def test_slopes(given: Given, bent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    native, twin = both(lambda: given.field.slopes(given.z, given.k, bent), monkeypatch)
    for one, other in zip(native, twin, strict=True):
        near(one, other, 1e-13)


def test_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(SHAPES[5], torch.float32)
    exact = Given(SHAPES[5])
    exact.z = given.z.double()
    for layer, other in zip(exact.field.layers, given.field.layers, strict=True):
        layer.weight.data, layer.bias.data = other.weight.data.double(), other.bias.data.double()
    near(given.field.values(given.z, given.c), exact.field.values(exact.z, exact.c), 2e-6)
    for one, other in zip(
        given.field.slopes(given.z, given.k, 1), exact.field.slopes(exact.z, exact.k, 1), strict=True
    ):
        near(one, other, 5e-6)


def test_normal_equations(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(given.z, given.wanted, given.share), (given.z[:50], given.wanted[:50], given.share[:50])]
    native, twin = both(lambda: given.sums.normal(rows), monkeypatch)
    near(native, twin, 1e-11)
    assert np.array_equal(native[:, :-1], native[:, :-1].T)


def test_derivatives(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    native, twin = both(lambda: given.sums.derivatives([(given.z, given.share)]), monkeypatch)
    for name, part in vars(native).items():
        near(part, vars(twin)[name], 1e-11)


def test_log_det_and_its_derivative(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    k, rows = 0.1 * given.k[0].numpy(), [(given.z, given.share)]
    native, twin = both(lambda: given.sums.barrier(rows, k, 0.05), monkeypatch)
    assert np.isfinite(twin[1])
    near(native[0], twin[0], 1e-11)
    near(native[1], twin[1], 1e-10)


def test_a_map_that_turns_over_is_seen(given: Given) -> None:
    assert given.sums.barrier([(given.z, given.share)], -(given.k[0].numpy() ** 2), 1e4)[1] == -np.inf


def test_sums_of_velocities(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    native, twin = both(lambda: given.sums.of_velocity([(given.z, given.share)], given.k[1].numpy()), monkeypatch)
    for name, part in vars(native).items():
        near(part, vars(twin)[name], 1e-11)


def test_training_gradient(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Bath(temperature=1.0, collision_strength=1.0)
    objective = DensityObjective(given.field, operator=operator, mass=1.0, lengths=given.field.periods, together=128)
    rows = (given.z, given.wanted, given.share, given.c[0])
    native, twin = both(lambda: objective.evaluate(0.0, *rows, with_gradient=True), monkeypatch)
    near(native[0], twin[0], 1e-11)
    near(native[1], twin[1], 1e-11)


def test_bits_are_each_particles_own() -> None:
    given = Given(SHAPES[0], torch.float32)
    values, (slopes, bends) = given.field.values(given.z, given.c), given.field.slopes(given.z, given.k, 2)
    some = slice(37, 701)
    assert torch.equal(given.field.values(given.z[some], given.c), values[:, some])
    for one, other in zip(given.field.slopes(given.z[some], given.k, 2), (slopes, bends), strict=True):
        assert torch.equal(one, other[:, some])


def test_bits_of_sums_do_not_depend_on_how_pieces_are_dealt() -> None:
    given = Given((True, 1, 1, (32, 32), 1000), torch.float32)
    network = given.field.network
    terms = Terms(given.share, 128, MOMENTS_UNIT)
    whole = network.normal(given.z, terms, given.wanted)
    parts = [slice(0, 512), slice(512, 1000)]
    pieces = [network.normal(given.z[p], Terms(given.share[p], 128, MOMENTS_UNIT), given.wanted[p]) for p in parts]
    assert np.array_equal(whole, sum(pieces))


def test_bits_of_sums_do_not_depend_on_how_samples_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """And joined samples have the sums that torch finds for each of them."""
    given = Given((True, 1, 2, (32, 32), 1000), torch.float32)
    edges = [0, 300, 300, 301, 557, 1000]
    rows = [(given.z[a:b], given.wanted[a:b], given.share[a:b]) for a, b in itertools.pairwise(edges)]
    bare, k = [(z, share) for z, _, share in rows], given.k[0].numpy()

    def sums() -> list[np.ndarray]:
        found = [given.sums.normal(rows), *given.sums.barrier(bare, k, 0.05)]
        of_field, of_sample = given.sums.derivatives(bare), given.sums.of_velocity(bare, k)
        return [np.asarray(part) for part in (*found, *vars(of_field).values(), *vars(of_sample).values())]

    whole, twin = both(sums, monkeypatch)
    for one, other in zip(whole, twin, strict=True):
        near(one, other, 1e-5)
    for most in (1, 400):
        monkeypatch.setattr(potential_sums, "JOINED", most)
        assert all(np.array_equal(one, other) for one, other in zip(sums(), whole, strict=True))


@pytest.mark.parametrize(
    ("problem", "method", "particles"),
    [
        ({"kind": "two_stream", "amplitude": 0.3}, {"precision": "float64"}, {}),
        ({"kind": "two_stream", "amplitude": 0.3, "velocity_dims": 2}, {"order": 2, "precision": "float64"}, {}),
        ({"kind": "two_stream", "space_dims": 2, "velocity_dims": 3}, {"logdet": "linear", "precision": "float64"}, {}),
        ({"kind": "confined", "potential": "bumpy", "space_dims": 3}, {}, {}),
        ({"kind": "confined", "potential": "bumpy", "space_dims": 3}, {}, {"precision": "float32"}),
        ({"kind": "two_stream", "amplitude": 0.3}, {"precision": "float64"}, {"precision": "float32"}),
    ],
)
def test_a_step_along_the_field(problem, method, particles, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "problem": problem,
        "physics": {"collision_strength": 0.5},
        "particles": {"count": 1500, **particles},
        "method": method,
        "time": {"step": 0.2, "end": 0.2},
    }
    simulation = Simulation.start(from_table(table), Communicator())
    (collision,), before = simulation.collisions, simulation.state.particles
    start = StepStart(0, 0.0, before)
    with torch.enable_grad():
        collision.fit(before, 0.2, start, 0)
    native, twin = both(lambda: collision.carried(before, 0.2, start), monkeypatch)
    exact = before.v.dtype == torch.float64 and method.get("precision") == "float64"
    tolerance = 1e-12 if exact else 3e-6
    assert float((twin.v - before.v).abs().max()) > 0.01
    for name in ("v", "log_f", "change", "disagreement", "smallest"):
        near(getattr(native, name), getattr(twin, name), tolerance)
    near(native.sums.sum(0), twin.sums.sum(0), tolerance)


def test_a_field_in_single_precision_moves_particles_as_one_in_double_precision_does() -> None:
    """Velocities and log f are kept in double precision. Rounding of the field adds far less than what a fit misses."""
    table = {
        "problem": {"kind": "two_stream", "amplitude": 0.3, "velocity_dims": 2},
        "physics": {"collision_strength": 0.5},
        "particles": {"count": 4096},
    }
    simulation = Simulation.start(from_table(table), Communicator())
    (collision,), before = simulation.collisions, simulation.state.particles
    start, h = StepStart(0, 0.0, before), 0.2
    with torch.enable_grad():
        collision.fit(before, h, start, 0)
    rounded = collision.carried(before, h, start)
    assert collision.control.layers[0].weight.dtype == torch.float32 and rounded.v.dtype == torch.float64
    collision.control.double()
    exact = collision.carried(before, h, start)
    moved, fallen = (exact.v - before.v).abs().max(), (exact.log_f - before.log_f).abs().max()
    assert moved > 0.01 and fallen > 0.001
    assert 0 < (rounded.v - exact.v).abs().max() < 3e-6 * moved
    assert 0 < (rounded.log_f - exact.log_f).abs().max() < 3e-6 * fallen
    assert abs((rounded.log_f - exact.log_f).mean()) < 1e-7 * fallen
