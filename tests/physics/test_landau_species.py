"""Coulomb collisions between species: rates of two temperatures, what they keep, equilibrium, random pairs."""

import numpy as np
import pytest
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart, collide
from hpc_kjko.collisions.pairs import pair_sums
from hpc_kjko.errors import UserError
from hpc_kjko.reference.landau import two_temperature_rate, two_temperature_relaxation
from hpc_kjko.running.remarks import certificate_remarks
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import warnings_of


def table_of(ions, *, electrons=(), count=4096, **sections):
    """Electrons of temperature 1 and ions, without a field."""
    physics = {"field": "external", "collision_operator": "landau", "collision_strength": 1.0}
    return {
        "problem": {"kind": "plasma", "length": 5.0, "velocity_dims": 3},
        "physics": physics | sections.pop("physics", {}),
        "species": {
            "electrons": {"charge": -1.0, "mass": 1.0, "count": count, **dict(electrons)},
            "ions": {"charge": 1.0, "count": count, **ions},
        },
        "time": {"step": 0.1, "end": 0.2},
        "method": {"hidden": [16, 16], **sections.pop("method", {})},
        **sections,
    }


def collided(simulation, steps, duration):
    """The particles of all species after some collision steps alone."""
    plasma = [species.particles for species in simulation.state.species]
    for k in range(steps):
        starts = [StepStart(k, 0.0, particles) for particles in plasma]
        found = collide(simulation.collisions, plasma, duration, starts)
        plasma = [particles for particles, _ in found]
    return plasma


def mean_of(particles, values):
    return np.average(values.numpy(), axis=0, weights=particles.weight.numpy())


def temperatures(plasma, masses):
    found = []
    for particles, mass in zip(plasma, masses, strict=True):
        v = particles.v - particles.v.new_tensor(mean_of(particles, particles.v))
        found.append(mass * mean_of(particles, (v**2).sum(1)) / v.shape[1])
    return np.array(found)


@pytest.mark.parametrize("mass", [1.0, 25.0, 1836.0])
def test_two_temperatures_approach_at_the_rate_of_two_maxwellians(mass, alone):
    """The exact integral, Spitzer's formula where ions are heavy: at the start, since electrons as slow as the ions
    change within 0.001 / C."""
    simulation = Simulation.start(from_table(table_of({"mass": mass, "temperature": 0.5})), alone)
    before = [species.particles for species in simulation.state.species]
    after = collided(simulation, 1, 2e-4)
    old, new = (temperatures(plasma, (1.0, mass)) for plasma in (before, after))
    wanted = two_temperature_rate(0.5 * (old + new), [1.0, mass], [1.0, 1.0], [1.0, 1.0], 1.0)
    assert (new - old) / 2e-4 == pytest.approx(np.array(wanted), rel=0.01)


def test_two_temperatures_of_maxwell_molecules_relax_exactly(alone):
    """A closed equation whatever f is: to the third order in the step, and the noise of the sample."""
    table = table_of(
        {"mass": 4.0, "temperature": 0.2, "density": 0.5},
        physics={"landau": {"exponent": 0.0}},
    )
    simulation = Simulation.start(from_table(table), alone)
    old = temperatures([species.particles for species in simulation.state.species], (1.0, 4.0))
    new = temperatures(collided(simulation, 8, 0.025), (1.0, 4.0))
    wanted = two_temperature_relaxation(old, [1.0, 4.0], [1.0, 0.5], [1.0, 1.0], 1.0, np.array([0.2]), exponent=0.0)
    assert new - old == pytest.approx(wanted[0] - old, rel=0.005)


def test_few_heavy_particles_among_many_light_ones_relax_at_the_same_rate(alone):
    """A block has five of the one, 250 of the other: how many it happens to have must not change the mean rate."""
    table = table_of(
        {"mass": 4.0, "temperature": 0.2, "count": 256},
        count=12800,
        physics={"landau": {"exponent": 0.0, "block": 128}},
    )
    rates = []
    for seed in range(4):
        simulation = Simulation.start(from_table({**table, "particles": {"seed": seed}}), alone)
        old = temperatures([species.particles for species in simulation.state.species], (1.0, 4.0))
        new = temperatures(collided(simulation, 1, 0.002), (1.0, 4.0))
        wanted = two_temperature_rate(0.5 * (old + new), [1.0, 4.0], [1.0, 1.0], [1.0, 1.0], 1.0, exponent=0.0)
        rates.append((new - old)[0] / 0.002 / wanted[0])
    assert np.mean(rates) == pytest.approx(1.0, abs=0.02)


def test_collisions_keep_momentum_and_energy_of_unlike_species_with_unlike_weights(alone):
    """Densities, numbers of particles, charges and weights differ; a wave in the density makes weights unequal."""
    table = table_of(
        {"mass": 30.0, "temperature": 0.3, "density": 0.5, "charge": 2.0, "count": 2048, "mean_velocity": [0.3]},
        electrons={"amplitude": 0.3, "count": 5000},
        particles={"weights": "density"},
        physics={"landau": {"block": 100}, "field": "poisson"},
        grid={"cells": 8},
        method={"hidden": [16]},
    )
    simulation = Simulation.start(from_table(table), alone)
    before = [species.particles for species in simulation.state.species]
    after = collided(simulation, 3, 0.02)
    momentum, energy = [], []
    for plasma in (before, after):
        pushes = [m * p.weight[:, None] * p.v for m, p in zip((1.0, 30.0), plasma, strict=True)]
        momentum.append(sum(push.sum(0) for push in pushes).numpy())
        energy.append(sum(float((push * p.v).sum()) for push, p in zip(pushes, plasma, strict=True)))
    assert energy[1] == pytest.approx(energy[0], rel=1e-13)
    assert np.abs(momentum[1] - momentum[0]).max() < 1e-12
    drift = [mean_of(plasma[1], plasma[1].v)[0] for plasma in (before, after)]
    assert 0 < drift[1] < drift[0] - 0.0008  # they slow down on the electrons


def test_species_of_one_temperature_stay_and_others_approach_it(alone):
    """∫f log f of both together falls, also where one of them loses."""
    for temperature, changes in ((1.0, False), (0.5, True)):
        table = table_of({"mass": 4.0, "temperature": temperature}, time={"step": 0.1, "end": 0.3})
        rows = rows_to_the_end(Simulation.start(from_table(table), alone))
        assert np.abs(rows["kinetic_energy"] / rows["kinetic_energy"][0] - 1).max() < 1e-13
        fell, of_ions = (np.ptp(rows[name][[0, -1]]) for name in ("entropy", "ions_entropy"))
        if changes:
            assert rows["entropy"][-1] < rows["entropy"][0] - 0.03 and of_ions > 0.06
            assert rows["collision_free_energy_total"][-1] < 0 and "ions_certificate" not in rows
        else:
            assert fell / 10 < 5e-4  # a particle: the box has 5 of each species
            assert abs(rows["ions_temperature_1"][-1] / rows["ions_temperature_1"][0] - 1) < 0.005


@pytest.mark.parametrize("density", [1.0, 0.625])
def test_random_pairs_of_unlike_particles_relax_at_the_same_rate(density, alone):
    """Maxwell molecules, for which the relaxation is a closed equation, in small blocks, of equal and unequal numbers.
    Momentum and energy to round-off."""
    table = table_of(
        {"mass": 4.0, "temperature": 0.2, "density": density, "count": round(density * 24000)},
        count=24000,
        method={"collision": "binary"},
        physics={"landau": {"exponent": 0.0, "block": 80}},
    )
    simulation = Simulation.start(from_table(table), alone)
    before = [species.particles for species in simulation.state.species]
    after = collided(simulation, 20, 0.005)
    old, new = (temperatures(plasma, (1.0, 4.0)) for plasma in (before, after))
    given = [1.0, 4.0], [1.0, density], [1.0, 1.0], 1.0
    wanted = two_temperature_relaxation(old, *given, np.array([0.1]), exponent=0.0)
    assert new - old == pytest.approx(wanted[0] - old, rel=0.03)
    moved = (after[1].v - before[1].v).square().sum(1)
    assert float(moved[:7500].mean()) == pytest.approx(float(moved[7500:].mean()), rel=0.05)  # whatever their number
    pushes = [
        [m * p.weight[:, None] * p.v for m, p in zip((1.0, 4.0), plasma, strict=True)] for plasma in (before, after)
    ]
    assert float((sum(p.sum(0) for p in pushes[1]) - sum(p.sum(0) for p in pushes[0])).abs().max()) < 1e-12
    energies = [
        sum(float((push * p.v).sum()) for push, p in zip(*both, strict=True))
        for both in ((pushes[0], before), (pushes[1], after))
    ]
    assert energies[1] == pytest.approx(energies[0], rel=1e-13)


def test_a_pair_of_species_may_have_a_strength_of_its_own(alone):
    def factors(**keys):
        simulation = Simulation(from_table(table_of({"mass": 25.0, "charge": 2.0}, **keys)), alone)
        return [getattr(step, "operator", None) and step.operator.factors for step in simulation.collisions]

    assert factors() == [(1.0, 4.0), (4.0, 16.0)]
    own = {"electrons-ions": 0.5, "ions-ions": 0.0}
    assert factors(physics={"landau": {"pairs": own}}) == [(1.0, 0.5), (0.5, 0.0)]
    table = table_of({"mass": 25.0}, physics={"landau": {"pairs": own}})
    case = from_table(table)
    assert from_table(case.table()) == case and "collision_strength" not in case.table()["species"]["ions"]
    neutral = Simulation.start(from_table(table_of({"mass": 2.0, "charge": 0.0})), alone)
    before = neutral.state.species[1].particles
    assert collided(neutral, 1, 0.1)[1].v is before.v  # no charge, no collisions


@pytest.mark.parametrize(
    ("ions", "sections", "says"),
    [
        ({"collision_strength": 1.0}, {}, "species.ions.collision_strength is not allowed with"),
        ({"collision_operator": "bath"}, {}, "species.ions.collision_operator is not allowed with"),
        ({}, {"physics": {"landau": {"pairs": {"electrons-atoms": 1.0}}}}, "give two species, as electrons-ions"),
        ({}, {"physics": {"landau": {"pairs": {"electrons": 1.0}}}}, "give two species"),
        (
            {},
            {"physics": {"landau": {"pairs": {"electrons-ions": 1.0, "ions-electrons": 1.0}}}},
            "leave one of them out",
        ),
        ({}, {"physics": {"landau": {"pairs": {"electrons-ions": -1.0}}}}, "physics.landau.pairs.electrons-ions"),
        ({}, {"physics": {"landau": {"pairs": 3}}}, "physics.landau.pairs"),
        ({"count": 1000}, {"method": {"collision": "binary"}}, "choose species.NAME.count in proportion"),
        (
            {},
            {"physics": {"collision_strength": 0.0, "landau": {"pairs": {"electrons-ions": 1.0}}}},
            "give strength 0 to the pairs that do not collide",
        ),
        ({}, {"physics": {"temperature": 2.0}}, "physics.temperature is not allowed with"),
        ({}, {"physics": {"collision_operator": "dougherty"}}, "physics.collision_operator is not allowed with"),
    ],
)
def test_what_cannot_be_is_refused(ions, sections, says):
    with pytest.raises(UserError, match=says):
        from_table(table_of({"mass": 25.0, **ions}, **sections))


def test_a_species_with_collisions_of_its_own_says_landau_in_physics():
    table = table_of({"mass": 25.0, "collision_operator": "landau", "collision_strength": 1.0})
    for key in ("collision_operator", "collision_strength"):
        del table["physics"][key]
    with pytest.raises(UserError, match="use physics.collision_operator"):
        from_table(table)


def test_a_step_that_is_too_long_is_warned_of_by_the_species_that_is():
    """Cold light particles collide the fastest."""
    table = table_of({"mass": 25.0}, electrons={"temperature": 0.04}, time={"step": 0.1, "end": 0.1})
    said = [one for one in warnings_of(from_table(table), 1) if "explicit" in one]
    assert len(said) == 1 and said[0].startswith("species.electrons: its velocities relax by")


def test_without_collisions_a_resolved_case_names_no_operator():
    """Whoever reads the run's files finds none."""
    case = from_table(table_of({"mass": 25.0}, method={"collision": "none"}))
    assert not case.table()["physics"].keys() & {"collision_operator", "collision_strength", "landau"}
    assert any("physics.collision_operator" in said for said in case.idle)


def test_a_species_too_small_for_a_certificate_does_not_end_the_run(alone):
    """∫f log f of the electrons rises, as that of the ions which heat them falls: of these too few are held out."""
    ions = {"mass": 1.0, "temperature": 0.3, "count": 100}
    rows = rows_to_the_end(Simulation.start(from_table(table_of(ions, count=8192)), alone))
    assert (rows["substeps"][1:] == 1).all() and (rows["certificate"][1:] == 0).all()
    assert np.diff(rows["electrons_entropy"]).min() > 0 > np.diff(rows["ions_entropy"]).max()
    assert rows["kinetic_energy"][-1] == pytest.approx(rows["kinetic_energy"][0], rel=1e-13)


def test_a_rise_of_log_f_of_several_species_is_reported(alone, monkeypatch):
    """Not refused, as that of one species is: here the collisions run backwards in time."""

    def backwards(*arguments):
        return tuple(-found for found in pair_sums(*arguments))

    monkeypatch.setattr("hpc_kjko.collisions.landau.pair_sums", backwards)
    rows = rows_to_the_end(Simulation.start(from_table(table_of({"mass": 4.0, "temperature": 0.5})), alone))
    assert (rows["certificate"][1:] == -1).all() and (rows["substeps"][1:] == 1).all()
    assert "collisions raised ∫f log f of the held-out particles" in certificate_remarks(rows)[0]
