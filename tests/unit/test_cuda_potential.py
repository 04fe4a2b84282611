"""The GPU's kernels of a potential: their text on the CPU, against torch in double precision."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_native_potential import Given, near

from hpc_kjko import kernels
from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.potential_sums import PotentialSums
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import potential as cuda_potential
from hpc_kjko.kernels.potential import Carry, Terms
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import FINE, MOMENTS_UNIT, UNIT

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

#: Box or not, dx, dv, width of both hidden layers, precision.
FUNCTIONS = [
    (True, 3, 3, 16, torch.float32),
    (False, 2, 2, 32, torch.float32),
    (True, 1, 1, 64, torch.float32),
    (True, 1, 3, 64, torch.float32),
    (False, 3, 3, 64, torch.float32),
    (True, 1, 1, 32, torch.float64),
    (True, 2, 2, 48, torch.float64),
    (True, 3, 3, 64, torch.float64),
]
#: Particles of two samples: pieces that are full, and such that are not.
SAMPLES = (300, 137)
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-12}


class Case(Given):
    """A potential at particles of two samples, with coefficients; and the truth about it."""

    def __init__(self, functions):
        periodic, dx, dv, width, self.dtype = functions
        super().__init__((periodic, dx, dv, (width, width), sum(SAMPLES)), self.dtype)
        self.exact = copy.deepcopy(self.field).double()
        self.true_sums = PotentialSums(self.exact, LeastSquares(Communicator(), 128, torch.device("cpu")))
        self.of = self.field.network._functions
        self.terms = Terms(self.share, 128, MOMENTS_UNIT, FINE, SAMPLES)
        self.k = 0.1 * self.k

    @property
    def rows(self):
        """z and shares of both samples, in double precision."""
        edges = [slice(0, SAMPLES[0]), slice(SAMPLES[0], None)]
        return [(self.z.double()[rows], self.wanted[rows], self.share[rows]) for rows in edges]

    @property
    def bare(self):
        return [(z, share) for z, _, share in self.rows]

    def near(self, found, wanted, factor=1.0):
        near(found, wanted, factor * TOLERANCE[self.dtype])

    def summed(self, **options):
        """Everything that is summed, one after the other."""
        call, given = cuda_potential, (self.of, self.z, self.terms.pieces)
        yield call.normal(*given, self.wanted, **options)
        yield call.derivatives(*given, **options)
        yield call.barrier(*given, self.k[0], 0.05, **options)
        yield call.tied(*given, self.k[1], **options)
        yield torch.cat(call.missed(*given, self.wanted, self.c[0], 1.0, **options)[::-1])[:2]
        yield torch.cat([part.view(-1) for part in call.training(*given, self.wanted, self.c[0], **options)])


@pytest.fixture(params=FUNCTIONS, ids=str)
def case(request, monkeypatch):
    """In torch, what is not called by its name."""
    monkeypatch.setenv("KJKO_KERNELS", "torch")
    with torch.no_grad():
        yield Case(request.param)


def test_values(case):
    higher = torch.cat([case.c, case.c[:, : 2 * case.field.velocity_dims]], dim=1)
    case.near(cuda_potential.values(case.of, case.z, higher), case.exact.values(case.z.double(), higher))
    assert cuda_potential.values(case.of, case.z[:0], higher).shape == (2, 0)


@pytest.mark.parametrize("bent", [0, 1, 2])
def test_slopes(case, bent):
    found = cuda_potential.slopes(case.of, case.z, case.k, bent)
    for one, other in zip(found, case.exact.slopes(case.z.double(), case.k, bent), strict=True):
        case.near(one, other)


def test_normal_equations(case):
    found = next(case.summed()).numpy().reshape(case.field.of_density, -1)
    case.near(found, case.true_sums.normal(case.rows))
    assert np.array_equal(found[:, :-1], found[:, :-1].T)


def test_what_a_density_misses(case):
    found, (square, far) = cuda_potential.missed(case.of, case.z, case.terms.pieces, case.wanted, case.c[0], 1.0)
    of_each, total, number = case.true_sums.missed(case.rows, case.c[0], 1.0)
    case.near(found, torch.cat(of_each))
    case.near(square, total)
    assert 0 < far == number < len(found)


def test_averages_of_derivatives(case):
    found = cuda_potential.derivatives(case.of, case.z, case.terms.pieces).numpy()
    wanted, number = case.true_sums.derivatives(case.bare), case.of.of_potential
    for one, other in zip(
        np.split(found[:-1], [number**2, 2 * number**2]),
        (wanted.gram, wanted.bending, wanted.laplacian),
        strict=True,
    ):
        case.near(one / found[-1], other.flatten())
    near(found[-1], wanted.mass, 1e-11)


def test_log_det_and_its_derivative(case):
    *pull, log_det, turned = cuda_potential.barrier(case.of, case.z, case.terms.pieces, case.k[0], 0.05)
    wanted, total = case.true_sums.barrier(case.bare, case.k[0].numpy(), 0.05)
    assert turned == 0 and np.isfinite(total)
    case.near(pull, wanted)
    case.near(log_det, total, 3)


def test_a_map_that_turns_over_is_seen(case):
    k = -(case.k[0] ** 2)
    *pull, log_det, turned = cuda_potential.barrier(case.of, case.z, case.terms.pieces, k, 1e4)
    bend = case.exact.slopes(case.z.double(), k[None], bent=1)[1][0]
    det = torch.linalg.det(torch.eye(bend.shape[1], dtype=torch.float64) + 1e4 * bend)
    assert 0 < turned == (det <= 0).sum() and np.isfinite([*pull, log_det]).all()


def test_sums_of_velocities(case):
    found = cuda_potential.tied(case.of, case.z, case.terms.pieces, case.k[1]).numpy()
    wanted = case.true_sums.of_velocity(case.bare, case.k[1].numpy())
    number, places = len(wanted.mean), len(wanted.moments)
    assert len(found) == number * (number + 2) + 2 * number + 1 + places**2
    products = found[: number * (number + 2)].reshape(number, -1)
    laplacian, mean, mass, moments = np.split(found[products.size :], np.cumsum([number, number, 1]))
    for one, other in ((products[:, :-2], wanted.gram), (products[:, -2], wanted.drag), (laplacian, wanted.laplacian)):
        near(one, other, 1e-11)
    for one, other in ((mean, wanted.mean), (mass[0], wanted.mass), (moments, wanted.moments.flatten())):
        near(one, other, 1e-11)
    case.near(products[:, -1], wanted.along)


def test_training_gradient(case):
    operator = Bath(temperature=1.0, collision_strength=1.0)
    objective = DensityObjective(case.exact, operator=operator, mass=1.0, lengths=None, together=128)
    wanted, parts = 0.0, []
    for z, log_f, share in case.rows:
        value, gradient = objective.evaluate(0.0, z, log_f, share, case.c[0], with_gradient=True)
        wanted, parts = wanted + value, [*parts, gradient]
    value, gradient = cuda_potential.training(case.of, case.z, case.terms.pieces, case.wanted, case.c[0])
    case.near(value, wanted, 10)  # sums are rounded to 2^-40
    case.near(gradient, sum(parts), 10)


def carried(case, x, v, how, exact, rows=slice(None), **options):
    """A step of some particles: what each has, the sums, the smallest eigenvalue."""
    terms = dataclasses.replace(case.terms, unit=UNIT, samples=(), share=case.share[rows])
    given = tuple(vars(how).values())
    return cuda_potential.carry(case.of, x[rows], v[rows], terms.pieces, case.k, given, **options)


@pytest.mark.parametrize("exact", [True, False])
def test_a_step_along_the_field(case, exact):
    """Against the native kernel, which is tested against torch, in the same precision or in a higher one. Particles are
    kept in the network's precision or in double precision."""
    dx, dv, generator = case.field.space_dims, case.field.velocity_dims, torch.Generator().manual_seed(7)
    x, v = (torch.randn(sum(SAMPLES), dims, generator=generator, dtype=torch.float64) for dims in (dx, dv))
    wave = tuple(0.5 + axis for axis in range(dx)) if exact else ()
    how = Carry(0.2, 0.2 if exact else 0.1, 1.3, exact, case.field.periods or (), wave, 0.7)
    terms = dataclasses.replace(case.terms, unit=UNIT, samples=())
    with pytest.MonkeyPatch.context() as native:
        native.setenv("KJKO_KERNELS", "native")
        wanted = case.exact.network.carry(x, v, terms, case.k, how)
    kept = torch.float64 if exact else case.dtype
    *found, sums, smallest = carried(case, x.to(kept), v.to(kept), how, exact)
    assert found[0].dtype == kept
    for one, other in zip(found, wanted[:4], strict=True):
        case.near(one, other, 4)
    case.near(sums.view(2, -1).sum(0), wanted[4].sum(0), 4)
    assert float(smallest) == pytest.approx(wanted[5], rel=1e-5 if case.dtype == torch.float32 else 1e-11)


def test_threads_may_run_in_any_order(case):
    for one, other in zip(case.summed(), case.summed(backwards=True), strict=True):
        assert torch.equal(one, other)
    for name, given in (("values", [case.c.new_ones(2, case.field.of_density + 2 * case.field.velocity_dims)]),):
        function = getattr(cuda_potential, name)
        assert torch.equal(function(case.of, case.z, *given), function(case.of, case.z, *given, backwards=True))
    for one, other in zip(
        cuda_potential.slopes(case.of, case.z, case.k, 1),
        cuda_potential.slopes(case.of, case.z, case.k, 1, backwards=True),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_bits_do_not_depend_on_blocks_of_threads_or_ranks(case, monkeypatch):
    """Pieces may be dealt in any way; the samples of two ranks, or of one."""
    whole = list(case.summed())
    monkeypatch.setattr(cuda_network, "BLOCKS_OF_CPU", 2)
    assert all(torch.equal(one, other) for one, other in zip(case.summed(), whole, strict=True))
    parts = []
    for rows in (slice(0, SAMPLES[0]), slice(SAMPLES[0], None)):
        part = copy.copy(case)
        part.z, part.wanted = case.z[rows], case.wanted[rows]
        part.terms = dataclasses.replace(case.terms, share=case.share[rows], samples=())
        parts.append(list(part.summed()))
    assert all(torch.equal(one + other, both) for one, other, both in zip(*parts, whole, strict=True))


def test_a_step_has_the_same_bits_anywhere(case, monkeypatch):
    dx, dv, generator = case.field.space_dims, case.field.velocity_dims, torch.Generator().manual_seed(7)
    x, v = (torch.randn(sum(SAMPLES), dims, generator=generator, dtype=case.dtype) for dims in (dx, dv))
    how = Carry(0.2, 0.2, 1.3, True, case.field.periods or (), (), 0.7)
    whole = carried(case, x, v, how, True)
    monkeypatch.setattr(cuda_network, "BLOCKS_OF_CPU", 1)
    again = carried(case, x, v, how, True, backwards=True)
    assert all(torch.equal(one, other) for one, other in zip(again, whole, strict=True))
    parts = [carried(case, x, v, how, True, rows) for rows in (slice(0, 256), slice(256, None))]
    for number in range(4):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])
    assert torch.equal(parts[0][4] + parts[1][4], whole[4])
    assert torch.equal(torch.minimum(parts[0][5], parts[1][5]), whole[5])
    v[70] = torch.nan
    assert carried(case, x, v, how, True)[5].isnan()


def test_no_particles_need_no_launch(case):
    case.z, case.wanted = case.z[:0], case.wanted[:0]
    case.terms = dataclasses.replace(case.terms, share=case.share[:0], samples=())
    assert not any(part.any() for part in case.summed())
    how = Carry(0.2, 0.2, 1.3, True, case.field.periods or (), (), 0.7)
    nobody = (case.z.new_empty(0, case.field.space_dims), case.z.new_empty(0, case.field.velocity_dims))
    terms = dataclasses.replace(case.terms, samples=())
    *_, sums, smallest = cuda_potential.carry(case.of, *nobody, terms.pieces, case.k, tuple(vars(how).values()))
    assert not sums.any() and smallest == np.inf


def test_every_kernel_fits_into_the_shared_memory_that_it_asks_for():
    """And two blocks of threads of the default's step in double precision fit into the 228 KB of an H100."""
    names = ("values", "slopes", "carry", "normal", "derivatives", "barrier", "tied", "missed", "training")
    for dtype, width, dv in ((torch.float32, 64, 3), (torch.float64, 64, 3), (torch.float64, 48, 2)):
        for name in names:
            shape = cuda_potential.potential_kernel(f"potential_{name}", dtype, width, dv).shape(torch.device("cpu"))
            assert shape.shared_bytes <= cuda_potential.MOST_SHARED, (name, dtype, width)
    shape = cuda_potential.potential_kernel("potential_carry", torch.float64, 64, 3).shape(torch.device("cpu"))
    assert 2 * (shape.shared_bytes + 1024) <= 228 * 1024


def test_functions_are_counted_as_the_field_counts_them():
    for periodic, dx, dv, width, dtype in FUNCTIONS:
        field = PotentialField((1.0,) * dx if periodic else None, dx, dv, hidden=(width, width), dtype=dtype)
        of = field.network._functions
        assert (of.shared, of.of_density) == (field.shared, field.of_density)
        assert of.of_potential == len(field.coefficients)
