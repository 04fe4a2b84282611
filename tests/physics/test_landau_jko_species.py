"""Coulomb collisions of several species as a minimising movement: short steps, long ones, what is kept."""

import math

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end
from test_landau_species import mean_of, table_of, temperatures

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart, collide
from hpc_kjko.collisions.blocks import blocks_of_cells
from hpc_kjko.collisions.exchange import Exchange
from hpc_kjko.collisions.meeting import Meeting
from hpc_kjko.collisions.pairs import Members, pair_fields
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import warnings_of


def simulation_of(alone, ions, *, count=512, method=None, **sections):
    table = table_of(ions, count=count, method={"collision": "jko", **(method or {})}, **sections)
    return Simulation.start(from_table(table), alone)


def stepped(simulation, duration, steps=1):
    """The particles of all species before, and after some collision steps with their last reports."""
    before = plasma = [species.particles for species in simulation.state.species]
    for k in range(steps):
        starts = [StepStart(k, 0.0, particles) for particles in plasma]
        found = collide(simulation.collisions, plasma, duration, starts)
        plasma = [particles for particles, _ in found]
    return before, plasma, [report for _, report in found]


def energy_and_momentum(plasma, masses):
    pushes = [m * p.weight[:, None] * p.v for m, p in zip(masses, plasma, strict=True)]
    energy = sum(float((push * p.v).sum()) for push, p in zip(pushes, plasma, strict=True))
    return energy, sum(push.sum(0) for push in pushes)


def entropy(plasma):
    """Σ ∫f log f."""
    return sum(float((p.weight * p.log_f).sum()) for p in plasma)


def test_the_jacobian_between_unlike_particles_is_that_of_the_velocity_in_the_mean():
    """Over many of the others, by central differences, with γ = −1, for which those have a variance."""
    generator = torch.Generator().manual_seed(3)
    others = 0.6 * torch.randn(20000, 3, dtype=torch.float64, generator=generator)
    eye = torch.eye(3, dtype=torch.float64)
    bent = torch.tensor([[-1.0, 0.3, 0.0], [0.3, -2.0, 0.1], [0.0, 0.1, -0.5]], dtype=torch.float64)
    unlike = Members(
        others, -others / 0.72, (-eye / 0.72).expand(20000, 3, 3), torch.full((20000,), 1 / 20000).double(), 2.0,
        np.array([0, 20000]),
    )  # fmt: skip

    def fields(v):
        v = v[None]
        weight = torch.ones(1, dtype=torch.float64)
        return pair_fields(Members(v, v @ bent, bent[None], weight, 1.0, np.array([0, 1])), unlike, -1.0)

    v, step = torch.tensor([0.5, -0.2, 0.8], dtype=torch.float64), 1e-4
    slope = fields(v)[2][0]
    wanted = torch.stack([(fields(v + step * e)[1][0] - fields(v - step * e)[1][0]) / (2 * step) for e in eye], dim=1)
    assert float((slope - wanted).abs().max()) < 0.03 * float(wanted.abs().max())


@pytest.fixture
def exchange(alone):
    """Of electrons and ions with drifts, whose scores are those of Maxwellians with the moments of each block."""
    simulation = simulation_of(alone, {"mass": 25.0, "temperature": 0.3}, electrons={"mean_velocity": [0.4]})
    plasma = [species.particles for species in simulation.state.species]
    blocks = blocks_of_cells(plasma, None, 256, [1, 2], 0, alone)
    meeting, scores = Meeting.of(plasma, [1.0, 25.0], blocks), []
    for v, number, dealt in zip(meeting.v, meeting.numbers, blocks.species, strict=True):
        count = np.bincount(number)
        mean = np.stack([np.bincount(number, column) for column in v.T], axis=1) / count[:, None]
        width = np.bincount(number, ((v - mean[number]) ** 2).sum(1)) / (3 * count)
        score = torch.from_numpy(dealt.returned(-(v - mean[number]) / width[number, None]))
        scores.append((score, torch.zeros(len(score), 3, 3, dtype=torch.float64)))
    members = meeting.members(plasma, scores)
    metric, electrons, _ = pair_fields(*members, -3.0)
    ions = pair_fields(*reversed(members), -3.0)[1] / 25.0
    return Exchange.of(meeting, members, [electrons.numpy(), ions.numpy()], {(0, 1): metric})


def natural(moments, masses, densities):
    """−1/T and U/T."""
    inertia = masses * densities
    velocity = moments[..., 1:] / inertia[..., None]
    temperature = (2 * moments[..., 0] - inertia * (velocity**2).sum(-1)) / (3 * densities)
    return np.concatenate([np.ones((*temperature.shape, 1)) * -1, velocity], axis=-1) / temperature[..., None]


def test_species_exchange_as_maxwellians_do(exchange):
    """What the sums over pairs have is a product of the conductance, and long steps end at one T and U."""
    start = exchange.moments
    lambdas = natural(start, exchange.masses, exchange.densities)
    apart = (lambdas[:, 0] - lambdas[:, 1])[..., None]
    wanted = -(exchange.conductance[:, 0, 1] @ apart)[..., 0]
    assert exchange.rates[:, 0] == pytest.approx(wanted, rel=1e-9)
    assert np.linalg.eigvalsh(exchange.conductance[:, 0, 1]).min() > 0
    for duration in (1e-6, 1.0, 1e3, 1e6):
        end = exchange.after(start, duration)
        assert end.sum(1) == pytest.approx(start.sum(1), rel=1e-8)
        after = natural(end, exchange.masses, exchange.densities)
        assert (after[..., 0] < 0).all()
        given = -(exchange.conductance[:, 0, 1] @ (after[:, 0] - after[:, 1])[..., None])[..., 0]
        assert end[:, 0] - start[:, 0] == pytest.approx(duration * given, abs=1e-8 * np.abs(start).max())
    assert after[:, 0] == pytest.approx(after[:, 1], rel=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_short_steps_agree_with_the_sum_over_pairs(order, alone):
    """What temperatures and ∫f log f change by differs by less and less, to the order of the step."""
    differences = []
    for duration in (0.04, 0.02):
        changes = []
        for collision in ("jko", "pair_sum"):
            ions, method = {"mass": 4.0, "temperature": 0.2}, {"collision": collision, "order": order}
            before, after, _ = stepped(simulation_of(alone, ions, method=method), duration)
            old, new = (temperatures(plasma, (1.0, 4.0)) for plasma in (before, after))
            changes.append([*(new - old), entropy(after) - entropy(before)])
        differences.append(np.abs(np.subtract(*changes) / changes[1]))
    longer, shorter = differences
    assert (longer < (0.06 if order == 1 else 0.01)).all() and shorter[2] < 0.8 * longer[2]
    assert (shorter[:2] < (0.6 if order == 1 else 0.4) * longer[:2]).all()


@pytest.mark.parametrize(
    ("mass", "duration", "least", "most"),
    [(1.0, 1.0, 0.4, 0.6), (1.0, 100.0, 0.0, 0.03), (25.0, 100.0, 0.05, 0.15), (1836.0, 100.0, 0.86, 0.92),
     (1836.0, 1e4, 0.03, 0.1)],
)  # fmt: skip
def test_a_long_step_of_two_temperatures_goes_towards_one(mass, duration, least, most, alone):
    """By about what an implicit step of the exact rate leaves, 1/(1 + νh): 0.46, 0.01, 0.08, 0.89 and 0.05."""
    simulation = simulation_of(alone, {"mass": mass, "temperature": 0.5})
    before, after, reports = stepped(simulation, duration)
    old, new = (temperatures(plasma, (1.0, mass)) for plasma in (before, after))
    assert least < (new[0] - new[1]) / (old[0] - old[1]) < most
    assert old[1] < new[1] < new[0] < old[0]
    assert entropy(after) < entropy(before)
    assert all(report.substeps == 1 and report.min_eigenvalue > 0 for report in reports)
    (energy, momentum), (wanted, momenta) = (energy_and_momentum(plasma, (1.0, mass)) for plasma in (after, before))
    assert energy == pytest.approx(wanted, rel=1e-13)
    assert float((momentum - momenta).abs().max()) < 1e-13 * mass


def test_cold_heavy_particles_are_warmed_without_overshooting(alone):
    """Twenty times colder; by the Maxwellians' rate an implicit step leaves 0.33."""
    before, after, _ = stepped(simulation_of(alone, {"mass": 1836.0, "temperature": 0.05}), 1000.0)
    old, new = (temperatures(plasma, (1.0, 1836.0)) for plasma in (before, after))
    assert 0.28 < (new[0] - new[1]) / (old[0] - old[1]) < 0.38
    assert entropy(after) < entropy(before) - 5


def test_electrons_that_stream_through_ions_are_stopped_and_heated(alone):
    """The energy of the drift, ½ U², becomes heat of the electrons: ⅓ of it in each direction."""
    ions = {"mass": 1836.0, "temperature": 1.0}
    simulation = simulation_of(alone, ions, electrons={"mean_velocity": [1.0]})
    before, after, _ = stepped(simulation, 100.0)
    drift = [[mean_of(p, p.v)[0] for p in plasma] for plasma in (before, after)]
    assert drift[0][0] == pytest.approx(1.0, abs=0.01) and 0 < drift[1][0] < 0.1
    assert drift[1][1] == pytest.approx((drift[0][0] - drift[1][0]) / 1836, rel=0.2)
    heated = np.subtract(*(temperatures(plasma, (1.0, 1836.0)) for plasma in (after, before)))
    assert heated[0] == pytest.approx(1 / 3, abs=0.04) and 0 < heated[1] < 0.05


@pytest.mark.parametrize("mass", [4.0, 1836.0])
def test_a_drifting_maxwellian_of_two_species_stays(mass, alone):
    drift = {"mean_velocity": [0.3 / math.sqrt(mass)]}
    simulation = simulation_of(alone, {"mass": mass, **drift}, electrons=drift)
    before, after, reports = stepped(simulation, 1000.0, steps=2)
    old, new = (temperatures(plasma, (1.0, mass)) for plasma in (before, after))
    assert new == pytest.approx(old, abs=0.005)
    for p, q, m in zip(before, after, (1.0, mass), strict=True):
        assert float((q.v - p.v).square().mean().sqrt()) < 0.06 / math.sqrt(m)
    assert abs(entropy(after) - entropy(before)) < 0.05  # the box has 5 of each species
    assert all(report.substeps == 1 for report in reports)


def test_unlike_counts_weights_and_densities_keep_what_they_have_together(alone):
    """In cells of a wave, of which some blocks have few ions."""
    simulation = simulation_of(
        alone,
        {"mass": 30.0, "temperature": 0.3, "density": 0.5, "charge": 2.0, "count": 100},
        electrons={"amplitude": 0.3, "count": 1500},
        particles={"weights": "density"},
        physics={"landau": {"block": 100}, "field": "poisson"},
        grid={"cells": 4},
        time={"step": 1.0, "end": 2.0},
    )
    rows = rows_to_the_end(simulation)
    assert np.abs(rows["collision_energy"]).max() < 1e-12 * rows["kinetic_energy"][0]
    assert np.ptp(rows["momentum_2"]) < 1e-12
    assert (rows["min_eigenvalue"][1:] > 0).all() and (rows["ions_dissipation"][1:] > 0).all()


def test_all_species_are_split_together(alone, monkeypatch):
    module = "hpc_kjko.collisions.landau_jko"
    monkeypatch.setattr(f"{module}.MAX_CORRECTED", 0)
    monkeypatch.setattr(f"{module}.UNSETTLED", 0.1)
    simulation = simulation_of(alone, {"mass": 4.0, "temperature": 0.2})
    before, after, reports = stepped(simulation, 1.0)
    assert reports[0].substeps == reports[1].substeps > 1
    (energy, _), (wanted, _) = (energy_and_momentum(plasma, (1.0, 4.0)) for plasma in (after, before))
    assert energy == pytest.approx(wanted, rel=1e-13)


def test_species_without_a_charge_keep_their_own(alone):
    before, after, _ = stepped(simulation_of(alone, {"mass": 4.0, "charge": 0.0, "temperature": 0.5}), 1.0)
    assert after[1].v is before[1].v
    assert temperatures(after, (1.0, 4.0)) == pytest.approx(temperatures(before, (1.0, 4.0)), rel=1e-12)


def test_only_the_midpoint_is_warned_of():
    def said(**method):
        table = table_of({"mass": 25.0}, time={"step": 50.0, "end": 50.0}, method={"collision": "jko", **method})
        return [one for one in warnings_of(from_table(table), 1) if "in a step" in one]

    assert said() == []
    assert len(found := said(order=2)) == 2 and "the midpoint rule overshoots" in found[0]
