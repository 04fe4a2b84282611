"""Coulomb collisions as a minimising movement: short steps, long ones, equilibrium, what is kept."""

import math

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end
from test_landau import WARM, collided, random_members, table_of

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.collisions.landau_jko import _Met
from hpc_kjko.collisions.pairs import Members, pair_fields, pair_sums
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.free_field import FreeField, Steered
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.reference.landau import isotropisation_rate
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import warnings_of


def simulation_of(alone, problem=WARM, *, count=2048, strength=1.0, method=None, **sections):
    table = table_of(problem, particles={"count": count}, **sections)
    table["physics"]["collision_strength"] = strength
    table["method"] = {"collision": "jko", "hidden": [16, 16], **(method or {})}
    return Simulation.start(from_table(table), alone)


def temperatures(particles):
    return particles.v.var(0, correction=0)


def entropy_above_a_maxwellian(particles):
    """∫f log f of a particle beside that of the Maxwellian with the same energy and density 1."""
    dims, temperature = particles.v.shape[1], float(temperatures(particles).mean())
    return float(particles.log_f.mean()) + 0.5 * dims * (math.log(2 * math.pi * temperature) + 1)


@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("exponent", [-3.0, -1.0, 0.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_fields_of_pairs_are_those_of_the_sums(dims, exponent, unlike, monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "torch")  # in double precision
    members = random_members(dims, 30)
    others = random_members(dims, 20, 25.0, 1) if unlike else members
    metric, velocity, slope = pair_fields(members, others, exponent)
    wanted, growth = pair_sums(members, others, exponent)
    assert torch.allclose(velocity, wanted, rtol=1e-12, atol=1e-12)
    assert torch.allclose(-slope.diagonal(dim1=1, dim2=2).sum(1), growth, rtol=1e-12, atol=1e-12)
    met = others.block(0)
    z = members.v[5] - others.v[met]
    square = (z * z).sum(1)
    bare = torch.where(square > 0, square.clamp(min=1e-300) ** (0.5 * exponent), 0.0) * others.weight[met]
    whole = (bare * square).sum() * torch.eye(dims, dtype=z.dtype) - (z * bare[:, None]).mT @ z
    assert torch.allclose(metric[5], whole, rtol=1e-12, atol=1e-12)


def test_the_field_is_the_same_in_an_ensemble_of_any_size(alone):
    """With shares as of 2²⁰ times as many particles, and the factor that the shares in a batch then have."""
    simulation = simulation_of(alone)
    simulation.advance()  # which fits a density
    (step,), particles = simulation.collisions, simulation.state.particles
    force = torch.sin(particles.v.flip(1)).double()
    inverse = torch.eye(force.shape[1], dtype=force.dtype).expand(len(force), -1, -1)
    own, fields = _Met(inverse, 0 * force, 0 * inverse), []
    for larger in (1, 2**20):
        step.density.scale = larger
        field, _ = step.minimised(step.inputs(particles), particles.shares() / larger, force, inverse, own, 0.1)
        fields.append(field.u)
    assert torch.equal(*fields) and fields[0].abs().mean() > 0.1


def test_the_jacobian_is_that_of_the_velocity():
    """A particle and its score move, the others stay: central differences."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(30, 3, dtype=torch.float64, generator=generator)

    def members(places):
        x, y, z = places.unbind(-1)
        score = torch.stack([y - x**3, x - y, torch.sin(z)], -1)
        zero = torch.zeros_like(x)
        rows = [torch.stack(row, -1) for row in ((-3 * x**2, zero + 1, zero), (zero + 1, zero - 1, zero))]
        rows.append(torch.stack([zero, zero, torch.cos(z)], -1))
        return Members(places, score, torch.stack(rows, 1), torch.ones_like(x), 1.0, np.array([0, len(places)]))

    slope, step = pair_fields(*2 * [members(v)], -3.0)[2][5], 1e-6
    for axis in range(3):
        ends = []
        for sign in (1, -1):
            moved = v.clone()
            moved[5, axis] += sign * step
            ends.append(pair_fields(*2 * [members(moved)], -3.0)[1][5])
        assert torch.allclose((ends[0] - ends[1]) / (2 * step), slope[:, axis], rtol=1e-5, atol=1e-5)


def noisy_field(alone):
    """A free field that is no gradient, with noise in all that is known, and what it is steered by."""
    generator = torch.Generator().manual_seed(2)
    control = PotentialField((5.0,), 1, 2, hidden=[4], dtype=torch.float64)
    v, known, force = torch.randn(3, 400, 2, dtype=torch.float64, generator=generator)
    slope, root = torch.randn(2, 400, 2, 2, dtype=torch.float64, generator=generator)
    x = 5 * torch.rand(400, 1, dtype=torch.float64, generator=generator)
    metric, share = root @ root.mT + torch.eye(2), torch.full((400,), 1 / 400, dtype=torch.float64)
    force = force + 2 * v.flip(1) - v
    field = FreeField(control, alone, LeastSquares(alone, 1024, alone.device))
    return field, Steered(control.features(x, v), metric, force, known, slope, share)


@pytest.mark.parametrize("step", [0.7, 10.0])
def test_the_free_field_is_the_minimiser_of_its_functional(step, alone):
    """Of the functional as it reads, for steps that bend it little and much."""
    field, given = noisy_field(alone)
    metric, force = given.metric, given.force
    passes, value = field.minimise([given], step, 1.0)

    def functional():
        u, jacobian = field.at(given.z, given.known, given.slope)
        divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        symmetric = torch.eye(2, dtype=u.dtype) + 0.5 * step * (jacobian + jacobian.mT)
        quadratic = 0.5 * torch.einsum("ik,ikm,im->i", u, metric, u)
        return float((step * (quadratic + (force * u).sum(1) + divergence) - torch.logdet(symmetric)).mean())

    lowest, best = functional(), field.coefficients
    assert 3 <= passes < 12 and lowest < -0.05
    assert value == pytest.approx(lowest, rel=1e-4)
    for seed in range(5):
        away = 0.01 * np.random.default_rng(seed).standard_normal(len(best)) * (np.abs(best) + 0.01)
        rises = []
        for sign in (1, -1):
            field.coefficients = best + sign * away
            rises.append(functional() - lowest)
        assert min(rises) > 0 and abs(rises[0] - rises[1]) < 0.2 * max(rises)


@pytest.mark.parametrize("size", [0.0, 0.02])
def test_the_second_derivatives_of_the_barrier_are_those_of_the_first(size, alone):
    """Central differences, where there is no field and elsewhere."""
    field, given = noisy_field(alone)
    generator, parts = np.random.default_rng(4), [tuple(vars(given).values())]
    number = len(field._barrier(parts, np.zeros(2 * field.control.of_density + 1), 0.7, 1.0, 1.0, bends=False)[1])
    c, along = size * generator.standard_normal(number), generator.standard_normal(number)
    value, pull, bent = field._barrier(parts, c, 0.7, 1.0, 1.0, bends=True)
    ends = [field._barrier(parts, c + sign * 1e-5 * along, 0.7, 1.0, 1.0, bends=False) for sign in (1, -1)]
    assert np.isfinite(value) and (ends[0][0] - ends[1][0]) / 2e-5 == pytest.approx(along @ pull, rel=1e-6)
    wanted = -(ends[0][1] - ends[1][1]) / 2e-5
    assert np.abs(bent @ along - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_short_step_has_the_rate_of_a_bi_maxwellian(alone):
    """At C h = 0.01, less what the rate falls by in half of it; momentum and energy to round-off."""
    simulation = simulation_of(alone, count=4096)
    before = simulation.state.particles
    after, (report,) = collided(simulation, 1, 0.01)
    old, new = temperatures(before), temperatures(after)
    wanted = float(isotropisation_rate(float(0.5 * (old + new)[0]), float(0.5 * (old + new)[1:].mean()), 1.0))
    assert float(new[0] - old[0]) / 0.01 == pytest.approx(wanted, rel=0.01)
    assert float((after.v.mean(0) - before.v.mean(0)).abs().max()) < 1e-14
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)
    assert report.certificate == 1 and report.substeps == 1 and 0.9 < report.min_eigenvalue < 1


def test_the_midpoint_of_one_long_step_agrees_with_many_short_ones_of_the_pair_sum(alone):
    """C t = 0.5: what the steps of the pair sum with the midpoint have found."""
    after, _ = collided(simulation_of(alone, method={"order": 2}), 1, 0.5)
    pairs = simulation_of(alone, method={"collision": "pair_sum"})
    wanted, _ = collided(pairs, 5, 0.1)
    start = temperatures(pairs.state.particles)
    change = temperatures(wanted) - start
    assert float((temperatures(after) - temperatures(wanted)).abs().max()) < 0.015 * float(change.abs().max())
    assert float(after.log_f.mean()) == pytest.approx(float(wanted.log_f.mean()), abs=0.01)


@pytest.mark.parametrize("strength", [100.0, 1000.0])
def test_a_long_step_ends_near_the_maxwellian_and_stays(strength, alone):
    simulation = simulation_of(alone, strength=strength)
    before = simulation.state.particles
    once, (report,) = collided(simulation, 1, 1.0)
    spread = temperatures(once) / temperatures(once).mean() - 1
    assert float(spread.abs().max()) < 0.01 + 2.5 / strength  # an implicit step leaves 1/(1 + 0.6 C h) of 1.5
    assert abs(entropy_above_a_maxwellian(once)) < 0.01 and entropy_above_a_maxwellian(before) > 0.3
    assert report.certificate == 1 and report.substeps == 1
    later, reports = simulation.collisions[0].step(once, 1.0, StepStart(1, 1.0, once))
    assert abs(entropy_above_a_maxwellian(later)) < 0.01 and reports.certificate >= 0
    assert float((temperatures(later) / temperatures(later).mean() - 1).abs().max()) < 0.015
    assert float((later.v.mean(0) - before.v.mean(0)).abs().max()) < 1e-14
    assert float((later.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)


def test_a_maxwellian_stays(alone):
    simulation = simulation_of(
        alone, {"kind": "maxwellian", "amplitude": 0.0, "velocity_dims": 2, "length": 5.0}, strength=1000.0
    )
    before = simulation.state.particles
    after, reports = collided(simulation, 3, 1.0)
    assert float((after.v - before.v).square().mean().sqrt()) < 0.03
    assert abs(float(after.log_f.mean() - before.log_f.mean())) < 2e-3
    assert all(report.certificate >= 0 for report in reports)


def test_a_long_step_of_beams_stays_invertible(alone):
    """In two dimensions, where the Jacobian of the sum over pairs has no variance for γ = −3."""
    simulation = simulation_of(alone, {"kind": "two_stream", "velocity_dims": 2}, count=1024, strength=1000.0)
    before = simulation.state.particles
    after, (report,) = collided(simulation, 1, 1.0)
    assert report.min_eigenvalue > 0 and report.certificate == 1
    assert entropy_above_a_maxwellian(after) < 0.1 < entropy_above_a_maxwellian(before)
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)


def test_a_step_whose_coefficients_do_not_settle_is_split(alone, monkeypatch):
    module = "hpc_kjko.collisions.landau_jko"
    monkeypatch.setattr(f"{module}.MAX_CORRECTED", 0)
    monkeypatch.setattr(f"{module}.UNSETTLED", 0.15)
    simulation = simulation_of(alone, count=1024)
    before = simulation.state.particles
    after, (report,) = collided(simulation, 1, 1.0)
    assert report.substeps == 2 and report.certificate == 1
    assert float((after.v**2).sum()) == pytest.approx(float((before.v**2).sum()), rel=1e-13)
    monkeypatch.setattr(f"{module}.UNSETTLED", 0.0)
    monkeypatch.setattr("hpc_kjko.collisions.split_pairs.MAX_SPLITS", 1)
    with pytest.raises(SolverFailure, match="do not settle even in 2 pieces: reduce time.step"):
        collided(simulation, 1, 1.0)


def test_every_block_of_a_wave_keeps_its_own_and_the_series_tells_of_the_step(alone):
    simulation = simulation_of(
        alone,
        {"kind": "landau_damping", "velocity_dims": 2, "amplitude": 0.3},
        count=1024,
        strength=10.0,
        physics={"field": "poisson", "landau": {"block": 64}},
        grid={"cells": 4},
    )
    rows = rows_to_the_end(simulation)
    assert np.abs(rows["collision_energy"]).max() < 1e-12 * rows["kinetic_energy"][0]
    assert np.ptp(rows["momentum_2"]) < 1e-12
    assert (rows["min_eigenvalue"][1:] > 0).all() and (rows["substeps"][1:] == 1).all()
    assert (rows["dissipation"][1:] > 0).all() and (rows["certificate"][1:] >= 0).all()


def test_what_is_asked_for_long_steps():
    def said(**method):
        table = table_of(WARM, physics={"collision_strength": 50.0}, method={"collision": "jko", **method})
        return from_table(table), [one for one in warnings_of(from_table(table), 1) if "C h" in one]

    case, warnings = said()
    assert case.method.order == 1 and not warnings
    case, warnings = said(order=2)
    assert len(warnings) == 1 and "the midpoint rule overshoots" in warnings[0]
    (explicit,) = said(collision="pair_sum")[1]
    assert 'or method.collision = "jko"' in explicit


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (table_of(WARM, method={"collision": "jko", "solver": "varpro"}), 'needs method.solver = "regression"'),
        (table_of(WARM, method={"collision": "jko", "logdet": "linear"}), "method.solver"),
    ],
)
def test_what_cannot_be_is_refused(table, says):
    with pytest.raises(UserError, match=says):
        from_table(table)
