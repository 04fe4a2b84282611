"""Coulomb collisions as sums over pairs: what they keep, how fast they relax, exact solutions."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.collisions.blocks import Blocks
from hpc_kjko.collisions.meeting import restore
from hpc_kjko.collisions.pairs import Members, pair_sums
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.reference.landau import bi_maxwellian_relaxation, pair_sum
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import warnings_of


@pytest.fixture
def torch_pairs(monkeypatch):
    """Sums over pairs in double precision: what is exact of them is not so in the native kernel's."""
    monkeypatch.setenv("KJKO_KERNELS", "torch")


def random_members(dims, size=40, mass=1.0, seed=0, blocks=3):
    generator = torch.Generator().manual_seed(10 * dims + seed)
    v, score = torch.randn(2, blocks * size, dims, dtype=torch.float64, generator=generator)
    hessian = torch.randn(blocks * size, dims, dims, dtype=torch.float64, generator=generator)
    weight = torch.rand(blocks * size, dtype=torch.float64, generator=generator)
    edges = size * np.arange(blocks + 1)
    return Members(v / math.sqrt(mass), score, hessian + hessian.mT, weight, mass, edges)


def two_species(dims):
    """Some of mass 1, and fewer of mass 25."""
    return random_members(dims), random_members(dims, 30, 25.0, 1)


def velocities(one, other, exponent):
    """What particles of two species do to each other, and to themselves: m_a V_a / m_a."""
    sums = [pair_sums(one, one, exponent)[0] + pair_sums(one, other, exponent)[0]]
    sums += [pair_sums(other, other, exponent)[0] + pair_sums(other, one, exponent)[0]]
    return [total / members.mass for total, members in zip(sums, (one, other), strict=True)]


@pytest.mark.usefixtures("torch_pairs")
@pytest.mark.parametrize("exponent", [-3.0, -1.0, 0.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_pairs_keep_momentum_and_energy_whatever_the_score(dims, exponent):
    plasma = two_species(dims)
    moved = velocities(*plasma, exponent)
    for block in range(3):
        momentum, energy, entropy, size = torch.zeros(dims, dtype=torch.float64), 0.0, 0.0, 0.0
        for members, velocity in zip(plasma, moved, strict=True):
            rows = members.block(block)
            push = members.mass * members.weight[rows, None] * velocity[rows]
            momentum += push.sum(0)
            energy += float((push * members.v[rows]).sum())
            entropy += float((push * members.score[rows]).sum())
            size += float(push.abs().sum())
        assert max(float(momentum.abs().max()), abs(energy)) < 1e-13 * size
        assert entropy < 0  # ∫f log f falls


@pytest.mark.usefixtures("torch_pairs")
@pytest.mark.parametrize("exponent", [-3.0, -1.0, 0.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_species_of_one_temperature_do_not_move_each_other(dims, exponent):
    """Nor is there any noise in log f."""
    plasma = []
    for members in two_species(dims):
        still = -torch.eye(dims, dtype=torch.float64).expand_as(members.hessian) / 0.7
        plasma.append(replace(members, score=0.3 - members.v / 0.7, hessian=still))
    for one, other in itertools.product(plasma, plasma):
        for found in pair_sums(one, other, exponent):
            assert float(found.abs().max()) < 1e-12


@pytest.mark.usefixtures("torch_pairs")
def test_sums_agree_with_the_plain_one():
    """With reference.landau, which knows no blocks: one block of two species."""
    one, other = (random_members(3, size, mass, mass_seed, blocks=1) for size, mass, mass_seed in SIZES)
    masses = np.repeat([one.mass, other.mass], [len(one.v), len(other.v)])
    v = torch.cat([one.v, other.v]).numpy()
    score = torch.cat([one.mass * one.score, other.mass * other.score]).numpy()
    wanted, _ = pair_sum(v, score, torch.cat([one.weight, other.weight]).numpy(), -3.0, 1.0, masses=masses)
    found = torch.cat(velocities(one, other, -3.0)).numpy()
    assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()


SIZES = ((50, 1.0, 0), (30, 4.0, 1))


@pytest.mark.usefixtures("torch_pairs")
@pytest.mark.parametrize("dims", [2, 3])
def test_maxwell_molecules_need_no_pairs(dims):
    """The sums of moments have the limit of sums over pairs for γ → 0."""
    plasma = two_species(dims)
    for one, other in itertools.product(plasma, plasma):
        found = pair_sums(one, other, 0.0)
        assert torch.allclose(found[0], pair_sums(one, other, 1e-9)[0], rtol=1e-6, atol=1e-6)
        wanted = torch.zeros_like(found[1])
        for k in range(dims):
            step = 1e-5 * torch.eye(dims, dtype=torch.float64)[k]
            ends = []
            for sign in (1, -1):
                there = replace(one, v=one.v + sign * step, score=one.score + sign * (one.hessian @ step))
                ends.append(pair_sums(there, replace(other), 0.0)[0][:, k])
            wanted -= (ends[0] - ends[1]) / 2e-5
        assert float((found[1] - wanted).abs().max()) < 1e-6 * float(wanted.abs().max())


@pytest.mark.usefixtures("torch_pairs")
@pytest.mark.parametrize("exponent", [-3.0, -2.0])
def test_the_divergence_is_that_of_the_velocity(exponent):
    """A particle and its score move, the others stay: central differences."""
    members = random_members(3, 30, blocks=1)
    v = members.v

    def score(places):
        x, y, z = places.unbind(-1)  # a gradient
        return torch.stack([y - x**3, x - y, torch.sin(z)], -1)

    members = replace(members, score=score(v), hessian=torch.vmap(torch.func.jacrev(score))(v))
    growth, divergence, step = pair_sums(members, members, exponent)[1], 0.0, 1e-6
    for k in range(3):
        ends = []
        for sign in (1, -1):
            moved, mixed = v.clone(), members.score.clone()
            moved[5, k] += sign * step
            mixed[5] = score(moved)[5]
            there = replace(members, v=moved, score=mixed)
            ends.append(float(pair_sums(there, there, exponent)[0][5, k]))
        divergence += (ends[0] - ends[1]) / (2 * step)
    assert -divergence == pytest.approx(float(growth[5]), rel=1e-6)


def test_log_f_between_unlike_species_has_the_mean_of_the_divergence():
    """Over two Maxwellians of different temperatures, γ = −1, where both forms have a variance."""
    generator = torch.Generator().manual_seed(3)
    widths, masses, size = (1.0, 0.35), (1.0, 4.0), 40000
    plasma = []
    for width, mass in zip(widths, masses, strict=True):
        v = torch.randn(size // 2, 3, dtype=torch.float64, generator=generator)
        v = torch.cat([v, -v])  # with the exact moments, which are most of the noise
        v = width * v @ torch.linalg.inv(torch.linalg.cholesky(v.T @ v / size)).T
        hessian = -torch.eye(3, dtype=torch.float64).expand(size, 3, 3) / (width**2 * mass)
        weight = torch.full((size,), 1 / size, dtype=torch.float64)
        plasma.append(Members(v, -v / (width**2 * mass), hessian, weight, mass, np.array([0, size])))
    few = slice(0, 20)
    one = replace(plasma[0], **{name: getattr(plasma[0], name)[few] for name in ("v", "score", "hessian", "weight")})
    one = replace(one, edges=np.array([0, 20]))
    averaged = pair_sums(one, plasma[1], -1.0)[1]
    z = one.v[:, None] - plasma[1].v
    square = (z**2).sum(2)
    change = one.score[:, None] - plasma[1].score
    bent = square * one.hessian.diagonal(dim1=1, dim2=2).sum(1)[:, None]
    bent = bent - torch.einsum("ijk,ikl,ijl->ij", z, one.hessian, z)
    exact = ((bent - 2 * (z * change).sum(2)) / square.sqrt()).mean(1)
    assert float((averaged - exact).abs().max()) < 0.03 * float(exact.abs().mean())


def table_of(problem, **sections):
    return {
        "problem": problem,
        "physics": {
            **{"collision_operator": "landau", "collision_strength": 1.0, "field": "external"},
            **sections.pop("physics", {}),
        },
        "particles": {"count": 4096, **sections.pop("particles", {})},
        "time": {"step": 0.1, "end": 0.2, **sections.pop("time", {})},
        "method": {"hidden": [16, 16], **sections.pop("method", {})},
        **sections,
    }


WARM = {"kind": "bi_maxwellian", "temperatures": [2.0, 0.5, 0.5], "amplitude": 0.0, "velocity_dims": 3, "length": 5.0}


def collided(simulation, steps, duration):
    """Particles after some collision steps alone, and the reports."""
    particles, reports = simulation.state.particles, []
    for k in range(steps):
        particles, report = simulation.collisions[0].step(particles, duration, StepStart(k, 0.0, particles))
        reports.append(report)
    return particles, reports


def test_temperatures_relax_at_the_rate_of_a_bi_maxwellian(alone):
    """The exact integral at the start, for T = (2, ½, ½); momentum and energy to round-off."""
    simulation = Simulation.start(from_table(table_of(WARM, particles={"count": 8192})), alone)
    before = simulation.state.particles
    after, reports = collided(simulation, 2, 0.05)
    change = float(after.v[:, 0].var() - before.v[:, 0].var())
    parallel, _ = bi_maxwellian_relaxation(2.0, 0.5, 1.0, np.array([0.0, 0.1]))
    assert change == pytest.approx(parallel[1] - parallel[0], rel=0.012)  # f is no bi-Maxwellian for long: 0.8 % at 0.1
    assert float((after.v.mean(0) - before.v.mean(0)).abs().max()) < 1e-14
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)
    assert all(report.certificate == 1 for report in reports)
    assert float(after.log_f.mean()) < float(before.log_f.mean()) - 0.02


class Bkw:
    """The exact solution of Bobylev, Krook and Wu for Maxwell molecules in two dimensions, C = 1/16, c = ½."""

    def __init__(self, time, volume):
        self.k, self.volume = 1 - 0.5 * math.exp(-time / 8), volume
        self.p, self.q = (2 * self.k - 1) / self.k, (1 - self.k) / (2 * self.k**2)

    def sample(self, points, temperature):
        """|v|² is a mixture of the laws of a Gaussian and of one that is weighted with |v|²."""
        from scipy.special import gammaincinv

        heavy = points[:, 1] > self.p
        share = np.where(heavy, (points[:, 1] - self.p) / (1 - self.p), points[:, 1] / self.p)
        speed = np.sqrt(2 * self.k * gammaincinv(np.where(heavy, 2, 1), share))
        angle = 2 * np.pi * points[:, 2]
        return points[:, :1] * self.volume, np.stack([speed * np.cos(angle), speed * np.sin(angle)], axis=1)

    def log_density(self, x, v, temperature):
        square = (v**2).sum(1)
        return torch.log(self.p + self.q * square) - square / (2 * self.k) - math.log(2 * math.pi * self.k)


early = Bkw(2.0, 5.0)


def test_an_exact_solution_for_maxwell_molecules(alone):
    """From t = 2 to 4: the fourth moment of the sample, and log f at the particles."""
    problem = {"kind": "plasma", "length": 5.0, "velocity_dims": 2, "initial_density": f"{__name__}:early"}
    physics = {"collision_strength": 1 / 16, "landau": {"exponent": 0.0}}
    case = table_of(problem, physics=physics, method={"hidden": [64, 64]})
    case["particles"]["count"] = 16384
    simulation = Simulation.start(from_table(case), alone)
    before = simulation.state.particles
    after, _ = collided(simulation, 5, 0.4)
    late = Bkw(4.0, 5.0)
    moments = [float(((one.v**2).sum(1) ** 2).mean()) for one in (before, after)]
    exact = [8 * one.k**2 * (one.p + 6 * one.k * one.q) for one in (early, late)]  # E|v|⁴
    final = 2 * float((before.v**2).sum(1).mean()) ** 2  # of a Maxwellian with the sample's energy; exactly 8
    assert moments[0] == pytest.approx(exact[0], rel=0.01)
    relaxed = (moments[1] - moments[0]) / (final - moments[0])  # a closed equation: linear in what is left
    assert relaxed == pytest.approx((exact[1] - exact[0]) / (8 - exact[0]), rel=0.01)
    wanted = late.log_density(after.x, after.v, 1.0)
    certain = wanted > wanted.max() + math.log(1e-3)
    assert float((after.log_f - wanted)[certain].square().mean().sqrt()) < 0.012
    assert float((before.log_f - wanted)[certain].square().mean().sqrt()) > 0.08


def test_a_maxwellian_stays(alone):
    table = table_of({"kind": "maxwellian", "amplitude": 0.0, "velocity_dims": 2, "length": 5.0})
    simulation = Simulation.start(from_table(table), alone)
    before = simulation.state.particles
    after, reports = collided(simulation, 10, 0.1)
    assert float((after.v - before.v).square().mean().sqrt()) < 0.01
    assert abs(float(after.log_f.mean() - before.log_f.mean())) < 2e-4
    assert all(report.certificate >= 0 for report in reports)


def test_collisions_are_local_and_every_cell_keeps_its_own(alone):
    """A wave of density and the particles' own field; blocks do not cross cells, and what is kept is kept in each."""
    table = table_of(
        {"kind": "landau_damping", "velocity_dims": 2, "amplitude": 0.3},
        physics={"collision_strength": 0.05, "field": "poisson", "landau": {"block": 64}},
        grid={"cells": 16},
        time={"step": 0.1, "end": 1.0},
    )
    rows = rows_to_the_end(Simulation.start(from_table(table), alone))
    assert np.abs(rows["collision_energy"]).max() < 1e-12 * rows["kinetic_energy"][0]
    assert np.ptp(rows["momentum_2"]) < 1e-12
    assert (np.diff(rows["entropy"]) < 1e-3).all()
    simulation = Simulation.start(from_table(table), alone)
    before = simulation.state.particles
    after, _ = collided(simulation, 1, 0.1)
    cell = (before.x[:, 0] / before.x.new_tensor(before.periods) * 16).long()
    for k in range(16):
        old, new = before.v[cell == k], after.v[cell == k]
        assert float((new.mean(0) - old.mean(0)).abs().max()) < 1e-14
        assert float((new**2).sum()) == pytest.approx(float((old**2).sum()), rel=1e-13)


@pytest.mark.parametrize("changes", [{"method": {"order": 1}}, {"particles": {"precision": "float32", "count": 4096}}])
def test_the_first_order_and_single_precision_relax_too(changes, alone):
    simulation = Simulation.start(from_table(table_of(WARM, **changes)), alone)
    before = simulation.state.particles
    after, _ = collided(simulation, 1, 0.02)
    parallel, _ = bi_maxwellian_relaxation(2.0, 0.5, 1.0, np.array([0.0, 0.02]))
    change = float(after.v[:, 0].double().var() - before.v[:, 0].double().var())
    assert change == pytest.approx(parallel[1] - parallel[0], rel=0.04)
    energy = [float((one.v.double() ** 2).sum()) for one in (before, after)]
    assert energy[1] == pytest.approx(energy[0], rel=1e-13 if after.v.dtype == torch.float64 else 1e-7)


def test_what_each_step_leaves_of_energy_does_not_add_up():
    """Changes so small that the scale of the velocities differs from 1 by little: rounded, it was too small more often
    than too large, by 3e-17 a step."""
    random = np.random.default_rng(0)
    v, weight, edges = random.normal(size=(2048, 3)), np.full(2048, 1 / 300), 512 * np.arange(5)
    before = math.fsum((v**2).ravel())
    for _ in range(600):
        change = np.concatenate([1e-7 * random.normal(size=v.shape), np.zeros((2048, 1))], axis=1)
        restore([v], [change], [weight], [edges], [1.0])
        v = v + change[:, :3]
    assert abs(math.fsum((v**2).ravel()) / before - 1) < 1e-14


def test_small_blocks_collide_no_slower(alone):
    """A particle does not meet itself: with 16 in a block that would be a sixteenth of the rate."""
    rates = []
    for size in (16, 1024):
        simulation = Simulation.start(from_table(table_of(WARM, physics={"landau": {"block": size}})), alone)
        before = simulation.state.particles
        after, _ = collided(simulation, 1, 0.02)
        rates.append(float(after.v[:, 0].var() - before.v[:, 0].var()))
    assert rates[0] == pytest.approx(rates[1], rel=0.03)


def test_a_homogeneous_start_collides_in_cells_where_a_field_may_make_waves(alone):
    driven = {"field": "external", "drive": {"amplitude": 0.1, "frequency": 1.0}}
    for physics, cells in (({"field": "poisson"}, True), (driven, True), ({}, False)):
        case = from_table(table_of(WARM, physics=physics))
        assert (Simulation(case, alone).collisions[0].settings.grid is not None) is cells


def test_a_velocity_that_is_not_finite_ends_the_run(alone):
    simulation = Simulation.start(from_table(table_of(WARM)), alone)
    particles = simulation.state.particles
    particles.v[7, 1] = float("nan")
    with pytest.raises(SolverFailure, match="no longer finite"):
        simulation.collisions[0].step(particles, 0.1, StepStart(0, 0.0, particles))


def test_blocks_are_drawn_anew_and_all_particles_meet_others(alone):
    simulation = Simulation.start(from_table(table_of(WARM)), alone)
    particles, rows = simulation.state.particles, np.arange(4096.0)[:, None]
    drawn = []
    for seed in (1, 2):
        blocks = Blocks.drawn([particles], [np.zeros(4096, np.int64)], 1, 5.0, 256, [2**63], seed, alone)
        (dealt,) = blocks.species
        found = dealt.gathered(rows)
        assert len(dealt.edges) == 17 and sorted(found[:, 0]) == list(range(4096))
        assert all(150 < size < 400 for size in np.diff(dealt.edges))
        assert np.array_equal(dealt.returned(found), rows)
        drawn.append(np.split(found, dealt.edges[1:-1]))
    shared = len(set(drawn[0][0][:, 0]) & set(drawn[1][0][:, 0]))
    assert shared < 60  # 16 of 256 by chance


@pytest.mark.usefixtures("torch_pairs")
def test_large_blocks_are_summed_in_parts(monkeypatch):
    plasma = two_species(3)
    whole = pair_sums(*plasma, -3.0)
    monkeypatch.setattr("hpc_kjko.collisions.pairs.PAIRS", 30 * 7)
    for one, other in zip(whole, pair_sums(*plasma, -3.0), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_step_that_is_too_long_is_split(alone, monkeypatch):
    simulation = Simulation.start(from_table(table_of(WARM, physics={"collision_strength": 20.0})), alone)
    before = simulation.state.particles
    after, (report,) = collided(simulation, 1, 0.2)
    assert report.substeps > 1 and report.certificate == 1
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)
    monkeypatch.setattr("hpc_kjko.collisions.split_pairs.MAX_SPLITS", 1)
    with pytest.raises(SolverFailure, match="in a collision step even in 2 pieces: reduce time.step"):
        collided(simulation, 1, 0.2)


def test_a_step_that_raises_log_f_is_refused(alone, monkeypatch):
    """Of held-out particles: here the collisions run backwards in time."""

    def backwards(*arguments):
        return tuple(-found for found in pair_sums(*arguments))

    monkeypatch.setattr("hpc_kjko.collisions.landau.pair_sums", backwards)
    monkeypatch.setattr("hpc_kjko.collisions.split_pairs.MAX_SPLITS", 1)
    simulation = Simulation.start(from_table(table_of(WARM)), alone)
    with pytest.raises(SolverFailure, match=r"held-out particles rises \(by .*\) even in 2 pieces: reduce time.step"):
        collided(simulation, 1, 0.2)


def test_random_pairs_relax_at_the_same_rate(alone):
    """Takizuka and Abe's method, within its noise; momentum and energy to round-off, and so in an odd block."""
    table = table_of(WARM, particles={"count": 65535}, method={"collision": "binary"})
    simulation = Simulation.start(from_table(table), alone)
    before = simulation.state.particles
    after, _ = collided(simulation, 4, 0.025)
    parallel, _ = bi_maxwellian_relaxation(2.0, 0.5, 1.0, np.array([0.0, 0.1]))
    change = float(after.v[:, 0].var() - before.v[:, 0].var())
    assert change == pytest.approx(parallel[1] - parallel[0], rel=0.06)
    assert float((after.v.mean(0) - before.v.mean(0)).abs().max()) < 1e-13
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)
    assert after.log_f.isnan().all()


def test_a_step_that_may_be_too_long_is_warned_of():
    """By the coldest direction: for Coulomb's force its collisions are the fastest."""
    cold = {**WARM, "temperatures": [1.0, 0.04, 0.04]}
    assert not any("explicit" in said for said in warnings_of(from_table(table_of(WARM)), 1))
    (said,) = (said for said in warnings_of(from_table(table_of(cold)), 1) if "explicit" in said)
    assert said.startswith("C h σ^γ = 12.5") and "use a smaller time.step" in said


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (table_of({"kind": "two_stream"}), "needs problem.velocity_dims = 2 or 3"),
        (table_of(WARM, method={"collision": "langevin"}), 'use method.collision = "pair_sum", "jko" or "binary", not'),
        (table_of(WARM, particles={"weights": "density"}, method={"collision": "binary"}), 'weights = "equal"'),
        (table_of(WARM, physics={"collision_operator": "bath"}, method={"collision": "pair_sum"}), 'use "jko"'),
        (table_of(WARM, physics={"landau": {"exponent": -4.0}}), "physics.landau.exponent"),
        (table_of(WARM, physics={"landau": {"block": 1}}), "physics.landau.block"),
        (table_of(WARM, physics={"landau": {"pairs": {"a-b": 1.0}}}), "pairs is for several species"),
        (table_of(WARM, method={"solver": "varpro"}), 'needs method.solver = "regression", not "varpro"'),
        (table_of({"kind": "confined", "space_dims": 2}), "needs a periodic box"),
    ],
)
def test_what_cannot_be_is_refused(table, says):
    with pytest.raises(UserError, match=says):
        from_table(table)
