"""The ensemble: the right density, the right log-density, the same particles whatever the number of ranks."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from scipy.stats import qmc

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import certificate
from hpc_kjko.particles.state import BLOCK, CERTIFY, Particles, Shard, draw, folds, uniform_points
from hpc_kjko.problems import quantile
from hpc_kjko.problems.quasirandom import Sobol

CASES = {
    "two_stream": {
        "kind": "two_stream",
        "amplitude": 0.3,
        "mode": 2,
        "velocity_dims": 3,
        "thermal_speed": 0.7,
    },
    "landau_3d": {
        "kind": "landau_damping",
        "amplitude": -0.9,
        "space_dims": 3,
        "velocity_dims": 3,
        "length": 5.0,
    },
    "gaussian": {"kind": "gaussian"},
}


def ensemble(name, count=40_000, rank=0, size=1, start="quiet", dtype=torch.float64, seed=1):
    problem = from_table({"problem": CASES[name]}).problem
    shard = Shard.of(count, rank, size)
    options = dict(start=start, seed=seed, temperature=1.3, dtype=dtype, device=torch.device("cpu"))
    return problem, draw(problem, shard, **options)


def test_shards_are_whole_blocks_in_order_and_may_be_empty():
    for total, size in [(1, 1), (1, 4), (3 * BLOCK, 2), (10 * BLOCK + 7, 3), (BLOCK * 64, 5)]:
        shards = [Shard.of(total, rank, size) for rank in range(size)]
        assert shards[0].start == 0 and shards[-1].stop == total
        assert all(a.stop == b.start for a, b in zip(shards, shards[1:], strict=False))
        assert all(s.start % BLOCK == 0 or s.start == total for s in shards)
    assert len(Shard.of(BLOCK, 0, 2)) + len(Shard.of(BLOCK, 1, 2)) == BLOCK
    assert 0 in (len(Shard.of(BLOCK, 0, 2)), len(Shard.of(BLOCK, 1, 2)))


@pytest.mark.parametrize("start", ["quiet", "random"])
@pytest.mark.parametrize("name", CASES)
def test_the_ensemble_does_not_depend_on_the_number_of_ranks(name, start):
    _, whole = ensemble(name, start=start)
    for size in (2, 3, 7):
        parts = [ensemble(name, rank=rank, size=size, start=start)[1] for rank in range(size)]
        for array in ("x", "v", "log_f"):
            assert torch.equal(torch.cat([getattr(part, array) for part in parts]), getattr(whole, array))


def test_quiet_and_random_points_are_uniform_and_seeded():
    for start in ("quiet", "random"):
        points = uniform_points(start, 3, 0, 4096, 6)
        assert points.min() > 0 and points.max() < 1
        for axis in range(6):
            assert stats.kstest(points[:, axis], "uniform").pvalue > 1e-3
        assert np.abs(np.corrcoef(points.T) - np.eye(6)).max() < 0.06
        assert not np.array_equal(points, uniform_points(start, 4, 0, 4096, 6))
    low = qmc.discrepancy(uniform_points("quiet", 3, 0, 4096, 4), method="L2-star")
    assert low < 0.5 * qmc.discrepancy(uniform_points("random", 3, 0, 4096, 4), method="L2-star")


@pytest.mark.filterwarnings("ignore:The balance properties")
def test_the_unscrambled_sequence_is_sobols_and_the_scrambled_one_keeps_its_net_property():
    scipys = qmc.Sobol(6, scramble=False, bits=64).random(3000)
    assert np.array_equal(Sobol(6, None).points(0, 3000), scipys)
    assert np.array_equal(Sobol(6, None).points(1701, 1299), scipys[1701:])
    scrambled = Sobol(6, 5).points(0, 2**14)
    for axis in range(6):  # one point in each of the 2^14 equal intervals
        assert np.array_equal(np.sort((scrambled[:, axis] * 2**14).astype(int)), np.arange(2**14))
    pairs = (scrambled[:, :2] * [2**7, 2**7]).astype(int)
    assert len({tuple(pair) for pair in pairs}) == 2**14
    assert np.array_equal(Sobol(3, 5).points(2**40, 4), Sobol(3, 5).points(2**40 - 2, 6)[2:])


@pytest.mark.parametrize("amplitude", [0.0, 0.005, -0.3, 0.97, -0.999999])
def test_positions_are_where_the_cumulative_density_is_the_uniform_number(amplitude):
    """By a root finder that knows no slope, on two and a half periods: between walls a wave has half ones."""
    length, wavenumber = 5.0, np.pi
    wave = {"kind": "landau_damping", "amplitude": amplitude, "length": length, "mode": 5, "boundary": "insulating"}
    problem = from_table({"problem": wave}).problem
    assert problem.wavenumber == pytest.approx(wavenumber)
    uniform = np.concatenate([[2.0**-64, 1e-9, 0.2, 0.4, 0.5, 1 - 1e-9, 1 - 2**-53], np.linspace(0.001, 0.999, 200)])

    def excess(x, u):
        return x + amplitude / wavenumber * np.sin(wavenumber * x) - u * length

    expected = [optimize.brentq(excess, -0.5, length + 0.5, (u,), xtol=1e-15, rtol=1e-15) for u in uniform]
    x = problem.positions(uniform[:, None])[:, 0]
    assert (x >= 0).all() and (x < length).all()
    assert excess(x, uniform) == pytest.approx(0.0, abs=3e-15 * length)
    # where there are next to no particles a position is known less well than the part of them below it
    slope = 1 + amplitude * np.cos(wavenumber * x)
    assert np.abs(slope * (x - expected)).max() < 3e-15 * length


def test_normal_deviates_are_the_quantiles_on_both_sides():
    below = np.concatenate([[2.0**-64], np.logspace(-19, -1, 2000), np.linspace(0.1, 0.5, 2001)])
    uniform = np.stack([below, np.minimum(1 - below, 1 - 2**-53)], axis=1)
    assert quantile.normal(uniform) == pytest.approx(special.ndtri(uniform), rel=2e-15, abs=1e-16)
    assert np.array_equal(quantile.normal(uniform[:, 1]), quantile.normal(uniform)[:, 1])


@pytest.mark.parametrize("name", CASES)
def test_log_f_is_the_density_that_the_particles_sample(name):
    """E[φ / f] over particles of density f / mass is ∫φ / mass, for any test function φ: here a narrow Gaussian."""
    problem, particles = ensemble(name, count=2**16)
    z = torch.cat([particles.x, particles.v], dim=1)
    centre = z.median(0).values
    width = 0.5 * z.std(0)
    log_test = -0.5 * (((z - centre) / width) ** 2).sum(1) - torch.log(width * np.sqrt(2 * np.pi)).sum()
    ratio = torch.exp(log_test - particles.log_f)
    inside = 1.0
    if problem.periods:
        for axis, length in enumerate(problem.periods):
            normal = stats.norm(centre[axis].item(), width[axis].item())
            inside *= normal.cdf(length) - normal.cdf(0)
    assert problem.mass * ratio.mean().item() == pytest.approx(inside, abs=0.03)


def test_moments_of_the_two_stream_start():
    problem, particles = ensemble("two_stream", count=2**16)
    x, v = particles.x[:, 0].numpy(), particles.v.numpy()
    k = problem.wavenumber
    assert 2 * np.cos(k * x).mean() == pytest.approx(problem.amplitude, abs=1e-4)
    assert abs(np.sin(k * x).mean()) < 1e-4
    assert v[:, 0].var() == pytest.approx(problem.beam_speed**2 + problem.thermal_speed**2, rel=1e-3)
    assert v[:, 1].var() == pytest.approx(1.3, rel=1e-3) and v[:, 2].var() == pytest.approx(1.3, rel=1e-3)

    def density(w):
        return np.exp(problem.log_density(torch.zeros(1, 1), torch.tensor([[w, 0.0, 0.0]]), 1.3).item())

    beams = integrate.quad(density, -15, 15)[0]
    assert beams == pytest.approx((1 + problem.amplitude) / (2 * np.pi * 1.3), rel=1e-6)


def test_drift_wraps_into_the_box_and_keeps_log_f():
    x = torch.tensor([[0.1], [1.9], [0.0]], dtype=torch.float64)
    v = torch.tensor([[-1.0], [1.0], [-1e-20]], dtype=torch.float64)
    particles = Particles(x, v, torch.zeros(3), torch.ones(3), Shard(0, 3, 3), 2.0, (2.0,))
    moved = particles.drift(0.2)
    assert torch.allclose(moved.x[:, 0], torch.tensor([1.9, 0.1, 0.0], dtype=torch.float64))
    assert ((moved.x >= 0) & (moved.x < 2.0)).all()
    assert moved.log_f is particles.log_f and torch.equal(particles.x, x)


def test_the_certificate_has_the_same_bits_however_many_ranks_have_its_particles():
    """Also with unequal weights, whose squares have more digits than the weights."""
    count = 200_000
    generator = torch.Generator().manual_seed(1)
    values, weight = torch.rand(2, count, dtype=torch.float64, generator=generator)
    weight = torch.exp(5 * weight)

    class OfAll:
        """Adds up what ranks would send."""

        def __init__(self):
            self.total = 0.0

        def sum(self, local):
            self.total = self.total + local
            return self.total

    found = set()
    for size in range(1, 9):
        comm, x = OfAll(), torch.zeros(count, 1, dtype=torch.float64)
        for rank in range(size):
            shard = Shard.of(count, rank, size)
            own = slice(shard.start, shard.stop)
            mass = float(weight.sum())
            particles = Particles(x[own], x[own], x[own, 0], weight[own], shard, mass, None, has_equal_weights=False)
            last = certificate.over_certifying(values[own], particles, comm)
        found.add(tuple(comm.total))
    assert len(found) == 1
    assert last == pytest.approx((0.5, 0.0), abs=0.02)


@pytest.mark.parametrize("rows", [(0, 80018), (5 * BLOCK, 80018), (3 * BLOCK, 9 * BLOCK), (80018, 80018)])
def test_rows_that_certify_are_those_of_their_fold(rows):
    shard = Shard(*rows, 80018)
    wanted = torch.nonzero(folds(shard) == CERTIFY).flatten()
    assert torch.equal(certificate._rows_of_fold(CERTIFY, shard), wanted)
