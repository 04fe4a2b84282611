"""Sums over pairs by the native kernel, against torch in double precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpc_kjko import kernels
from hpc_kjko.collisions.pairs import Members, pair_fields, pair_sums
from hpc_kjko.kernels import pairs as kernel

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

#: Particles of the blocks of two species: none, one, groups that are full and not, more than a run.
SIZES, OTHER_SIZES = (40, 0, 1, 16, 17, 7, 300, 2, 129), (33, 5, 1, 0, 130, 7, 263, 1, 16)
#: Those with ways of their own, and others.
EXPONENTS = [-3.0, -2.0, -1.0, 1.0, -2.5, 0.3]
TOLERANCE = {True: 1e-5, False: 1e-12}  # of the largest, for pairs in single and in double precision


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "native")


def species(dims, sizes=SIZES, mass=1.0, seed=0):
    """Particles with any scores."""
    generator, count = torch.Generator().manual_seed(10 * dims + seed), sum(sizes)
    v, score = torch.randn(2, count, dims, dtype=torch.float64, generator=generator)
    hessian = torch.randn(count, dims, dims, dtype=torch.float64, generator=generator)
    weight = torch.rand(count, dtype=torch.float64, generator=generator)
    edges = np.cumsum([0, *sizes])
    return Members(v / math.sqrt(mass), math.sqrt(mass) * score, hessian + hessian.mT, weight, mass, edges)


def couples(dims):
    """Members and others: alike, and two species both ways."""
    one, other = species(dims), species(dims, OTHER_SIZES, 25.0, 1)
    return [(one, one), (one, other), (other, one)]


def by_torch(members, others, exponent):
    with pytest.MonkeyPatch.context() as chosen:
        chosen.setenv("KJKO_KERNELS", "torch")
        return pair_sums(members, others, exponent)


def by_kernel(members, others, exponent, single_precision=True):
    assert kernel.take(members.v, exponent)
    met = None if others is members else others.arrays
    return kernel.pair_sums(members.arrays, met, mass=others.mass, exponent=exponent, single_precision=single_precision)


def assert_agrees(found, wanted, tolerance=1e-5):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize("single_precision", [True, False])
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_against_double_precision(dims, exponent, single_precision):
    for members, others in couples(dims):
        found = by_kernel(members, others, exponent, single_precision)
        assert_agrees(found, by_torch(members, others, exponent), TOLERANCE[single_precision])


@pytest.mark.parametrize("dims", [2, 3])
def test_sums_over_pairs_are_made_by_the_kernel(dims):
    for members, others in couples(dims):
        found, wanted = pair_sums(members, others, -3.0), by_kernel(members, others, -3.0)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("speed", [1e-3, 1e3])
@pytest.mark.parametrize("weight", [1e-12, 1e12])
@pytest.mark.parametrize("exponent", [-3.0, -2.5, 1.0])
def test_any_units(exponent, weight, speed):
    """Nothing overflows, and a block that moves a thousand times as fast as it is wide is computed at rest."""

    def scaled(members):
        v, score, hessian = members.v + 1000.0, members.score / speed, members.hessian / speed**2
        return replace(members, v=speed * v, score=score, hessian=hessian, weight=weight * members.weight)

    for couple in couples(3):
        members = scaled(couple[0])
        others = members if couple[0] is couple[1] else scaled(couple[1])
        assert_agrees(by_kernel(members, others, exponent), by_torch(members, others, exponent))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_in_equilibrium_nothing_is_left(dims, exponent):
    """Of two species with one temperature and mean velocity: to 1e-6 of what terms add up to. In two dimensions nearly
    near pairs are more, and leave a few 1e-6 of G."""
    tolerances = (1e-6, 4e-6 if dims == 2 else 1e-6)
    for members, others in couples(dims):
        plasma = []
        for one in (members, others):
            bent = -torch.eye(dims, dtype=torch.float64).expand_as(one.hessian) / 0.7
            plasma.append(replace(one, score=0.3 - one.v / 0.7, hessian=bent))
        if others is members:
            plasma[1] = plasma[0]
        found = by_kernel(*plasma, exponent)
        one, other = plasma  # as if the others had no score, their terms are not cancelled
        still = replace(other, score=torch.zeros_like(other.score), hessian=torch.zeros_like(other.hessian))
        for ours, size, tolerance in zip(found, by_torch(one, still, exponent), tolerances, strict=True):
            assert float(ours.abs().max()) < tolerance * float(size.abs().max())


def near_couples(dims):
    """Couples with pairs at |z| = 1e-6 and at z = 0, between like and unlike particles."""
    generator = torch.Generator().manual_seed(5)
    one, other = species(dims, (200, 64)), species(dims, (200, 64), 4.0, 1)
    v = one.v.clone()
    v[3], v[70], v[190], v[150] = v[140] + 1e-6, v[71], v[5], v[20] + 3e-4
    one = replace(one, v=v, score=0.1 * v**2 - v)
    v = v + 1e-6 * torch.randn(v.shape, dtype=torch.float64, generator=generator)
    v[100:150] = one.v[100:150]
    other = replace(other, v=v)
    return [(one, one), (one, other), (other, one)]


@pytest.mark.parametrize("exponent", [-3.0, -2.5])
@pytest.mark.parametrize("dims", [2, 3])
def test_near_pairs_do_no_harm(dims, exponent):
    """Where the rounding of v and σ to single precision would be most of Δσ / |z|²."""
    for members, others in near_couples(dims):
        assert_agrees(by_kernel(members, others, exponent), by_torch(members, others, exponent))


def test_particles_at_one_velocity_do_not_move_each_other():
    one = species(3, (40, 3))
    one = replace(one, v=torch.full_like(one.v, 0.1))
    for others in (one, replace(one)):
        assert all(bool((part == 0).all()) for part in by_kernel(one, others, -3.0))


@pytest.mark.parametrize("exponent", [-3.0, 0.3])
@pytest.mark.parametrize("dims", [2, 3])
def test_momentum_and_energy_are_kept_to_rounding(dims, exponent):
    """Of single precision, by two species together."""
    one, other = species(dims, (150,)), species(dims, (77,), 25.0, 1)
    momentum, energy, size = torch.zeros(dims, dtype=torch.float64), 0.0, 0.0
    for members, pair in ((one, [one, other]), (other, [other, one])):
        for others in pair:
            push = members.weight[:, None] * by_kernel(members, others, exponent)[0]
            momentum, energy = momentum + push.sum(0), energy + float((push * members.v).sum())
            size += float(push.abs().sum())
    assert max(float(momentum.abs().max()), abs(energy)) < 1e-6 * size


@pytest.mark.parametrize("dims", [2, 3])
def test_a_block_has_the_same_bits_on_any_number_of_threads_and_alone(dims):
    before = torch.get_num_threads()
    for members, others in couples(dims):
        whole = by_kernel(members, others, -3.0)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            again = by_kernel(members, others, -3.0)
            torch.set_num_threads(before)
            assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))
        for number in range(len(members.edges) - 1):
            parts = []
            for species in (members, others):
                rows = species.block(number)
                arrays = {name: getattr(species, name)[rows] for name in ("v", "score", "hessian", "weight")}
                parts.append(replace(species, **arrays, edges=np.array([0, rows.stop - rows.start])))
            alone = by_kernel(parts[0], parts[0] if others is members else parts[1], -3.0)
            rows = members.block(number)
            assert all(torch.equal(one, two[rows]) for one, two in zip(alone, whole, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["v", "score", "weight"])
def test_what_is_not_finite_is_seen_in_its_block_alone(name, value):
    one = species(3, (30, 30, 5))
    whole = by_kernel(one, one, -3.0)
    spoilt = getattr(one, name).clone()
    spoilt[33] = value
    found = by_kernel(one := replace(one, **{name: spoilt}), one, -3.0)
    others = [k for k in range(30, 60) if k != 33]
    assert not bool(found[0][others].isfinite().any()) and not bool(found[1][others].isfinite().any())
    for ours, theirs in zip(found, whole, strict=True):
        assert torch.equal(ours[:30], theirs[:30]) and torch.equal(ours[60:], theirs[60:])


def test_results_are_in_the_precision_of_the_velocities():
    one = species(3)
    single = Members(*(part.float() for part in one.arrays[:4]), 1.0, one.edges)
    found = pair_sums(single, single, -3.0)
    assert all(part.dtype == torch.float32 for part in found)
    assert_agrees([part.double() for part in found], by_torch(one, one, -3.0))


def test_what_is_left_to_torch(monkeypatch):
    v = torch.zeros(4, 3, dtype=torch.float64)
    assert kernel.take(v, -3.0) and not kernel.take(v, 0.0) and not kernel.take(v[:, :1], -3.0)
    monkeypatch.setenv("KJKO_KERNELS", "torch")
    assert not kernel.take(v, -3.0)


class TestArguments:
    """The module itself says what is wrong with its arguments."""

    def call(self, exponent=-3.0, others=None, rows=12, **changes):
        one = species(3, (7, 5))
        names = ("v", "score", "hessian", "weight", "edges")
        members = tuple(changes.get(name, given) for name, given in zip(names, one.arrays, strict=True))
        velocity, growth = torch.empty(rows, 3, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
        options = dict(mass=1.0, exponent=exponent, single_precision=True, velocity=velocity, growth=growth)
        kernels.require().pair_sums(members, others, **options)

    @pytest.mark.parametrize("name", ["v", "score", "hessian", "weight"])
    def test_of_another_kind(self, name):
        given = getattr(species(3, (7, 5)), name)
        for other in (given.float(), given.to("meta"), given.repeat_interleave(2, dim=-1)[..., ::2]):
            with pytest.raises(TypeError, match="incompatible function arguments"):
                self.call(**{name: other})

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"score": torch.zeros(11, 3, dtype=torch.float64)}, "not of the same particles"),
            ({"hessian": torch.zeros(12, 3, 2, dtype=torch.float64)}, "not of the same dimensions"),
            ({"edges": np.array([0, 7, 13])}, "edges are not those of collision blocks"),
            ({"edges": np.array([0, 9, 8])}, "edges are not those of collision blocks"),
            ({"edges": np.array([], dtype=np.int64)}, "edges are not those of collision blocks"),
            ({"others": species(3, (7, 5, 1)).arrays}, "not in the same number of collision blocks"),
            ({"rows": 11}, "not of the members"),
            ({"exponent": 0.0}, "needs no pairs"),
        ],
    )
    def test_that_do_not_fit(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.call(**changes)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_fields_of_an_implicit_step_against_torch(dims, exponent, monkeypatch):
    """D, V and ∂V/∂v of like and unlike particles; two that coincide add nothing to each other."""
    for members, others in couples(dims):
        members.v[7] = members.v[9]
        if others is not members:
            others.v[2] = members.v[3]
        found = pair_fields(members, others, exponent)
        monkeypatch.setenv("KJKO_KERNELS", "torch")
        wanted = pair_fields(members, others, exponent)
        monkeypatch.setenv("KJKO_KERNELS", "native")
        assert kernel.take_fields(members.v, exponent)
        assert not torch.equal(found[2], wanted[2])  # not torch twice
        assert_agrees(found, wanted, 1e-12)


def test_the_fields_of_a_block_do_not_depend_on_threads():
    members = species(3)
    found = pair_fields(members, members, -3.0)
    torch.set_num_threads(2)
    try:
        again = pair_fields(members, members, -3.0)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
