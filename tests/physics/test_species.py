"""Several species: waves and instabilities of electrons and ions, what is conserved, and collisions of each."""

import numpy as np
import pytest
import torch
from conftest import rows_to_the_end

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import StepStart
from hpc_kjko.errors import UserError
from hpc_kjko.reference.dispersion import SpeciesTerm, species_root
from hpc_kjko.reference.grid_1d1v import GridSpecies, solve_species
from hpc_kjko.running.assembly import seed_of
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import warnings_of

ELECTRONS = {"charge": -1.0, "mass": 1.0, "count": 8192}
IONS = {"charge": 1.0, "mass": 25.0, "count": 8192}


def table_of(electrons=None, ions=None, **sections):
    return {
        "problem": {"kind": "plasma", "length": 4 * np.pi, **sections.pop("problem", {})},
        "species": {"electrons": {**ELECTRONS, **(electrons or {})}, "ions": {**IONS, **(ions or {})}},
        "grid": {"cells": 32, **sections.pop("grid", {})},
        "time": {"step": 0.1, "end": 5.0, **sections.pop("time", {})},
        **sections,
    }


def run(comm, table, *columns):
    """The simulation at its end, and its rows: all columns or those that are named."""
    simulation = Simulation.start(from_table(table), comm)
    return simulation, rows_to_the_end(simulation, *columns)


def test_the_buneman_instability_grows_as_theory_and_the_grid_have_it(alone):
    """Electrons that stream through ions of 25 times their mass, k = 0.3: γ within 3 %, field energy within 5 %."""
    drift, mass, amplitude, k = 4.0, 25.0, 0.01, 0.3
    table = table_of(
        {"mean_velocity": drift, "amplitude": amplitude, "count": 65536},
        {"mass": mass, "count": 65536},
        problem={"length": 2 * np.pi / k},
        time={"step": 0.1, "end": 25.0},
    )
    _, rows = run(alone, table, "field_energy", "wave_energy")
    time = 0.1 * np.arange(len(rows["wave_energy"]))

    def electrons(x, v):
        return (1 + amplitude * np.cos(k * x)) * np.exp(-0.5 * (v - drift) ** 2) / np.sqrt(2 * np.pi)

    def ions(x, v):
        return np.exp(-0.5 * mass * v**2) * np.sqrt(mass / (2 * np.pi)) + 0 * x

    grid = solve_species(
        [
            GridSpecies(electrons, -1.0, 1.0, velocity_range=(-5.0, 13.0)),
            GridSpecies(ions, 1.0, mass, velocity_range=(-2.0, 2.0)),
        ],
        2 * np.pi / k,
        25.0,
        0.1,
        cells_x=64,
    )
    assert np.linalg.norm(rows["field_energy"] - grid.field_energy) < 0.05 * np.linalg.norm(grid.field_energy)
    window = (time > 15) & (time < 25)
    ours, theirs = (
        0.5 * np.polyfit(time[window], np.log(energy[window]), 1)[0]
        for energy in (rows["wave_energy"], grid.field_energy)
    )
    terms = [SpeciesTerm(-1.0, 1.0, 1.0, 1.0, drift), SpeciesTerm(1.0, mass, 1.0, 1.0)]
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours == pytest.approx(species_root(k, terms).imag, rel=0.08)  # other modes are not gone yet


def test_an_ion_acoustic_wave_is_that_of_the_grid(alone):
    """k λ_D = 0.5, ions of 100 times the mass and a tenth of the temperature: field energy of two oscillations."""
    mass, temperature, k, amplitude = 100.0, 0.1, 0.5, 0.1
    wave = {"amplitude": amplitude, "count": 65536}
    table = table_of(wave, {**wave, "mass": mass, "temperature": temperature}, time={"step": 0.2, "end": 110.0})
    _, rows = run(alone, table, "wave_energy")

    def density(width):
        def start(x, v):
            return (1 + amplitude * np.cos(k * x)) * np.exp(-0.5 * (v / width) ** 2) / (np.sqrt(2 * np.pi) * width)

        return start

    width = np.sqrt(temperature / mass)
    grid = solve_species(
        [
            GridSpecies(density(1.0), -1.0, 1.0),
            GridSpecies(density(width), 1.0, mass, velocity_range=(-9 * width, 9 * width), velocity_cells=256),
        ],
        4 * np.pi,
        110.0,
        0.2,
        cells_x=32,
    )
    assert np.linalg.norm(rows["wave_energy"] - grid.field_energy) < 0.05 * np.linalg.norm(grid.field_energy)
    assert np.abs(np.argmax(rows["wave_energy"]) - np.argmax(grid.field_energy)) <= 5  # steps


def test_momentum_and_energy_of_the_box_are_kept(alone):
    """Without collisions: momentum m v of both together to 1e-12, energy to round-off with Ampère's law."""
    waves = ({"amplitude": 0.1, "mean_velocity": 1.0}, {"amplitude": 0.2})
    _, rows = run(alone, table_of(*waves))
    assert np.ptp(rows["momentum_1"]) < 1e-12 * rows["momentum_1"][0]
    assert np.ptp(rows["electrons_momentum_1"]) > 1e-4
    exchanged = np.diff(rows["electrons_momentum_1"]) + np.diff(rows["ions_momentum_1"])
    assert np.abs(exchanged).max() < 1e-12 * rows["momentum_1"][0]

    exact = {"physics": {"field": "ampere"}, "time": {"step": 0.5, "end": 20.0, "energy_conserving": True}}
    _, rows = run(alone, table_of(*waves, **exact))
    total = rows["kinetic_energy"] + rows["field_energy"]
    assert np.ptp(rows["field_energy"]) > 1e-2 and np.ptp(total) < 1e-11 * total[0]


def test_totals_are_those_of_all_species(alone):
    """Mass, momentum, energies and entropy are sums; moments of the start are what the case says."""
    table = table_of(
        {"mean_velocity": 0.5, "density": 2.0},
        {"temperature": 0.3, "density": 2.0, "mean_velocity": 0.1},
        time={"step": 0.1, "end": 0.1},
    )
    _, rows = run(alone, table)
    first = {name: values[0] for name, values in rows.items()}
    for name in ("mass", "momentum_1", "kinetic_energy", "entropy"):
        assert first[name] == pytest.approx(first[f"electrons_{name}"] + first[f"ions_{name}"], rel=1e-14)
    volume = 4 * np.pi
    assert first["electrons_mass"] == pytest.approx(2 * volume) and first["ions_mass"] == pytest.approx(50 * volume)
    assert first["ions_momentum_1"] == pytest.approx(50 * volume * 0.1, rel=1e-3)
    assert first["electrons_temperature_1"] == pytest.approx(1.0, rel=1e-3)
    assert first["ions_temperature_1"] == pytest.approx(0.3, rel=1e-3)
    heat = 2 * volume * (-0.5 * np.log(2 * np.pi * np.e * 0.3 / 25) + np.log(2.0))
    assert first["ions_entropy"] == pytest.approx(heat, rel=1e-3)
    assert first["ions_kl"] == pytest.approx(0.5 * 25 * 0.01 / 0.3, rel=0.02)  # of the drift alone


def test_each_species_relaxes_to_its_own_bath(alone):
    """Two temperatures in each, κ of each: exact moments, and the free energy of all falls in certified steps."""
    table = table_of(
        {"initial": "beams", "beam_velocity": 1.0, "thermal_speed": 0.6, "collision_strength": 0.5},
        {"initial": "beams", "beam_velocity": 0.3, "thermal_speed": 0.2, "collision_strength": 0.2, "temperature": 0.5},
        problem={"velocity_dims": 1},
        time={"step": 0.1, "end": 3.0},
    )
    _, rows = run(alone, table)
    for name, start, end, strength in (("electrons", 1.36, 1.0, 0.5), ("ions", 25 * 0.13, 0.5, 0.2)):
        wanted = end + (start - end) * np.exp(-2 * strength * 3.0)
        assert rows[f"{name}_temperature_1"][-1] == pytest.approx(wanted, rel=0.01)
        verdicts = rows[f"{name}_certificate"][1:]
        assert (verdicts >= 0).all() and (verdicts[:8] == 1).all()
        assert (np.diff(rows[f"{name}_kl"]) < 0).all()
        energy = rows[f"{name}_collision_energy_total"][-1]
        assert energy == pytest.approx(np.ptp(rows[f"{name}_kinetic_energy"]) * np.sign(wanted - start), rel=0.02)
    assert (np.diff(rows["free_energy"]) < 0).all()


def test_dougherty_collisions_keep_each_species_own_momentum_and_energy(alone):
    """Field-free, as both are homogeneous: what one loses the other would show."""
    dougherty = {"collision_operator": "dougherty", "collision_strength": 0.3, "initial": "beams"}
    table = table_of(
        {**dougherty, "mean_velocity": 0.5, "amplitude": 0.0, "beam_velocity": 1.5, "thermal_speed": 0.7},
        {**dougherty, "amplitude": 0.0, "beam_velocity": 0.2, "thermal_speed": 0.2},
        time={"step": 0.1, "end": 2.0},
        method={"solver": "varpro", "hidden": [16]},
    )
    simulation = Simulation.start(from_table(table), alone)
    for species, collision in zip(simulation.state.species, simulation.collisions, strict=True):
        start = species.particles
        after, report = collision.step(start, 0.2, StepStart(0, 0.0, start))
        assert float((after.v - start.v).abs().max()) > 1e-3
        for power in (1, 2):
            before, now = float((start.v**power).sum()), float((after.v**power).sum())
            assert now == pytest.approx(before, abs=1e-10 * len(start.v))
        assert report.certificate == 1


def test_species_draw_their_own_numbers_whatever_others_there_are(alone):
    """The same species beside another, and in another order; two alike are not the same particles."""
    table = table_of({"amplitude": 0.1}, {"mass": 1.0, "charge": 1.0, "amplitude": 0.1})
    first = Simulation.start(from_table(table), alone).state.species
    table["species"] = dict(reversed(table["species"].items()))
    second = Simulation.start(from_table(table), alone).state.species
    assert [one.name for one in first] == ["electrons", "ions"] == [one.name for one in second][::-1]
    assert torch.equal(first[0].particles.v, second[1].particles.v)
    assert not torch.equal(first[0].particles.v, first[1].particles.v)
    table["particles"] = {"start": "random"}
    one, other = (species.particles.v[:, 0] for species in Simulation.start(from_table(table), alone).state.species)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert seed_of(0, "ions") != seed_of(1, "ions") and 0 <= seed_of(2**63 - 1, "e") < 2**63


def test_like_particles_without_a_field_have_their_local_mean_where_they_have_a_wave():
    """On the mesh; a homogeneous plasma is one cell."""
    for amplitude, meshed in ((0.3, True), (0.0, False)):
        own = {**ELECTRONS, "collision_operator": "dougherty", "collision_strength": 1.0, "amplitude": amplitude}
        table = {"problem": {"kind": "plasma"}, "physics": {"field": "external"}, "species": {"electrons": own}}
        assert (from_table(table).grid is not None) is meshed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"particles": {"count": 100}}, "particles.count is not allowed with .species.: .* .species.electrons."),
        ({"physics": {"temperature": 2.0}}, "physics.temperature is not allowed with"),
        ({"problem": {"initial_density": "maxwellian"}}, "problem.initial_density is not allowed with"),
        ({"problem": {"kind": "two_stream"}}, '.species. needs problem.kind = "plasma"'),
        ({"particles": {"control_variate": True}}, "particles.control_variate"),
        ({"species": {"electrons": {**ELECTRONS, "mass": -1.0}}}, "species.electrons.mass = -1.0"),
        ({"species": {"electrons": {"mass": 1.0, "count": 10}}}, "species.electrons.charge is missing"),
        (
            {"species": {"electrons": {**ELECTRONS, "initial": "ring"}}},
            'species.electrons.initial = "ring" is not known',
        ),
        ({"species": {"electrons": {**ELECTRONS, "amplitud": 0.1}}}, "species.electrons.amplitud is not a known key"),
        ({"species": {"electrons": {**ELECTRONS, "beam_velocity": 1.0}}}, "species.electrons.beam_velocity is not"),
        (
            {"species": {"electrons": {**ELECTRONS, "mean_velocity": [0.0, 1.0]}}},
            "species.electrons.mean_velocity has 2",
        ),
        ({"species": {"electrons": {**ELECTRONS, "length": 3.0}}}, "all species share problem.length"),
        ({"species": {"Electrons": ELECTRONS}}, "species.Electrons: a species name has at most 32 lower-case letters"),
        ({"species": {"e": ELECTRONS, "e_hot": ELECTRONS}}, "its columns would look like those of e"),
        ({"species": {}}, ".species. is empty"),
        ({"species": {"electrons": 3}}, "species.electrons must be a table"),
        (
            {"species": {"electrons": {**ELECTRONS, "initial": "bi_maxwellian", "temperatures": [1.0, 2.0]}}},
            "species.electrons.temperatures has 2 entries",
        ),
    ],
)
def test_a_case_of_species_that_cannot_be_is_refused(change, says):
    table = table_of()
    for section, keys in change.items():
        table[section] = keys if section == "species" else {**table.get(section, {}), **keys}
    with pytest.raises(UserError, match=says):
        from_table(table)


def test_a_case_of_species_comes_back_from_its_text():
    table = table_of(
        {"initial": "bump_on_tail", "bump_velocity": 3.0},
        {"initial": "kappa", "kappa_index": 4.0, "collision_operator": "dougherty", "collision_strength": 0.1},
        physics={"drive": {"amplitude": 0.1, "frequency": 1.0, "until": 5.0}},
    )
    case = from_table(table)
    again = from_table(case.table())
    assert again.table() == case.table()
    assert case.table()["species"]["ions"]["kappa_index"] == 4.0
    assert "count" not in case.table()["particles"] and "temperature" not in case.table()["physics"]
    assert type(again.species["electrons"].start) is type(case.species["electrons"].start)


def test_a_start_of_the_users_own_serves_a_species_and_must_agree_with_itself(alone, tmp_path, monkeypatch):
    """An f0 as a function gives the particles, the density and the entropy of the built-in start."""
    (tmp_path / "starts_of_mine.py").write_text(
        "import numpy as np\nimport torch\nfrom scipy.special import ndtri\n\n\n"
        "def cold(x, v):\n    return (1 + 0.1 * torch.cos(0.5 * x[:, 0])) * torch.exp(-0.5 * v[:, 0] ** 2 / 0.04)\n\n\n"
        "class Wrong:\n"
        "    def sample(self, points, temperature):\n"
        "        return 4 * np.pi * points[:, :1], 0.2 * ndtri(points[:, 1:])\n\n"
        "    def log_density(self, x, v, temperature):\n"
        "        return -0.5 * v[:, 0] ** 2 / 0.09 - np.log(0.3 * np.sqrt(2 * np.pi))\n\n\n"
        "wrong = Wrong()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ions = {"density": 0.7, "mass": 25.0, "temperature": 1.0}
    ours = Simulation.start(from_table(table_of({}, {**ions, "amplitude": 0.1})), alone)
    own = Simulation.start(from_table(table_of({}, {**ions, "initial": "starts_of_mine:cold"})), alone)
    first, second = (measure(run.diagnostics, run.state, alone) for run in (ours, own))
    for name in ("mass", "kinetic_energy", "entropy"):
        assert second[f"ions_{name}"] == pytest.approx(first[f"ions_{name}"], rel=2e-3), name
    with pytest.raises(UserError, match="species.ions.initial = .starts_of_mine:wrong.* log_density"):
        Simulation.start(from_table(table_of({}, {**ions, "initial": "starts_of_mine:wrong"})), alone)


def test_a_neutral_species_feels_neither_field(alone):
    table = table_of(
        {"charge": 0.0, "amplitude": 0.2},
        {"amplitude": 0.2},
        problem={"velocity_dims": 2},
        physics={"magnetic_field": [0.0, 0.0, 1.0]},
        time={"step": 0.1, "end": 1.0},
    )
    start = Simulation.start(from_table(table), alone).state.species
    simulation, _ = run(alone, table)
    neutral, ions = simulation.state.species
    assert torch.equal(neutral.particles.v, start[0].particles.v)
    assert not torch.equal(ions.particles.v, start[1].particles.v)


def test_a_thin_species_keeps_its_density(alone):
    """However few they are: what a node gets is rounded in proportion."""
    _, rows = run(alone, table_of({}, {"density": 1e-10, "amplitude": 0.1}, time={"step": 0.1, "end": 0.2}))
    assert rows["ions_mass"] == pytest.approx(25 * 1e-10 * 4 * np.pi, rel=1e-9)


def test_what_is_told_of_one_species_is_told_of_several(alone):
    """Waves that the mesh cannot show, cold starts, few particles, names of columns; the wave that is there."""
    wave = {"mode": 2, "amplitude": 0.1}
    table = table_of(wave, {}, time={"step": 0.1, "end": 0.1})
    table["species"] = dict(reversed(table["species"].items()))
    _, rows = run(alone, table)
    assert rows["wave_energy"][0] == pytest.approx(rows["field_energy"][0], rel=0.01)
    with pytest.raises(UserError, match="species.electrons.mode = .17. has 17 periods"):
        from_table(table_of({"mode": 17, "amplitude": 0.1}))
    with pytest.raises(UserError, match="species.seconds: the series has columns of that name"):
        from_table({**table_of(), "species": {"seconds": ELECTRONS}})
    cold = {"initial": "beams", "thermal_speed": 0.05, "collision_strength": 0.5, "count": 100}
    said = " ".join(warnings_of(from_table(table_of({**cold, **wave}, grid={"cells": 8})), 2))
    for text in (
        "species.electrons: its start is too cold",
        "species.electrons.count = 100",
        "hold no particles of electrons",
    ):
        assert text in said
    with pytest.raises(UserError, match="state.species"):
        _ = Simulation.start(from_table(table_of()), alone).state.particles
