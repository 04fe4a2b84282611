"""What is known before a run to be outside the method: each is said, with a key to change, and nothing else is."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_kjko.case import config
from hpc_kjko.cli.main import main
from hpc_kjko.errors import UserError
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.running.validity import noise_floor, noise_growth, warnings_of

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.toml"))


def case_of(kind="two_stream", **changes):
    small = {"particles.count": 65536, **changes}
    return config.from_table(config.override({"problem": {"kind": kind}}, small))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_jobs_are_inside(path):
    assert warnings_of(config.load(path), 1) == []


@pytest.mark.parametrize(
    ("changes", "said", "key"),
    [
        ({"physics.collision_strength": 15.0}, "κh = 1.5", "method.order = 1"),
        ({"physics.collision_strength": 1.0, "problem.thermal_speed": 0.2}, "2.5 times its own width", "time.step"),
        (
            {
                "physics.collision_operator": "dougherty",
                "physics.collision_strength": 1.0,
                "problem.thermal_speed": 0.5,
            },
            "2.4 times its own width",
            "time.step",
        ),
        (
            {"problem.kind": "confined", "problem.std_v": [0.1], "physics.collision_strength": 1.0},
            "10 times its own width",
            "order",
        ),
        (
            {
                "problem.kind": "bump_on_tail",
                "problem.bump_thermal_speed": 0.2,
                "physics.collision_strength": 1.0,
            },
            "2.5 times its own width",
            "time.step",
        ),
        (
            {
                "problem.kind": "bi_maxwellian",
                "problem.velocity_dims": 3,
                "problem.temperatures": [4.0, 4.0, 0.1],
                "physics.collision_operator": "dougherty",
                "physics.collision_strength": 1.0,
            },
            "2.7 times its own width",  # 0.1 · 8.1/3 / 0.1
            "time.step",
        ),
        ({"problem.kind": "kappa", "problem.kappa_index": 1.6, "problem.length": 128.0}, "4 Debye", "grid.cells"),
        ({"method.collision": "score_matching", "physics.collision_strength": 8.0}, "κh = 0.8", "time.step"),
        ({"time.step": 0.8, "time.end": 8.0, "problem.length": 62.8}, "phase is off by 2.7%", "time.step"),
        ({"time.step": 2.5, "time.end": 5.0, "problem.length": 125.6}, "unstable", "time.step"),
        ({"grid.cells": 8}, "3.93 Debye lengths", "grid.cells"),
        ({"problem.thermal_speed": 0.05}, "4.91 Debye lengths", "grid.cells"),
        ({"physics.temperature": 1e-6}, "Debye lengths", "grid.cells"),
        ({"problem.mode": 20}, "6.4 cells along x_1", "grid.cells"),
        ({"time.step": 0.5, "time.end": 5.0, "problem.mode": 2}, "k v h = 1.38", "time.step"),
        ({"particles.count": 64}, "64 for 75 coefficients", "method.hidden"),
        ({"particles.count": 64, "method.solver": "varpro"}, "64 for 35 coefficients", "method.hidden"),
        ({"particles.count": 64}, "less than one particle", "grid.cells"),
        ({"particles.count": 4096, "particles.start": "random"}, "noise of the wave from 4096", "control_variate"),
        ({"particles.count": 65535}, "power of two", "particles.count = 65536"),
        ({"method.collision": "langevin", "method.solver": "adam"}, "method.solver has no effect", "langevin"),
        ({"method.collision": "none", "method.hidden": [8]}, "method.hidden has no effect", "none"),
    ],
)
def test_what_is_outside_is_said_with_the_key_to_change(changes, said, key):
    sentences = [sentence for sentence in warnings_of(case_of(**changes), 1) if said in sentence]
    assert len(sentences) == 1 and key in sentences[0]


def own_wave(x, v):
    """A density of a user's own, with a wave of 0.03."""
    return (1 + 0.03 * torch.cos(0.5 * x[:, 0])) * torch.exp(-0.5 * v[:, 0] ** 2)


def own_maxwellian(x, v):
    return torch.exp(-0.5 * v[:, 0] ** 2) + 0 * x[:, 0]


def test_a_wave_of_the_users_own_is_measured_against_the_noise_too():
    changes = {"particles.count": 1024, "particles.start": "random", "problem.initial_density": f"{__name__}:own_wave"}
    said = warnings_of(case_of("plasma", **changes), 1)
    (sentence,) = (text for text in said if "noise of the wave from 1024" in text)
    starts = float(re.search(r"the wave starts with ([\d.e-]+):", sentence)[1])
    assert starts == pytest.approx(4 * math.pi * (0.03 / 0.5) ** 2 / 4, rel=0.05)
    none = warnings_of(case_of("plasma", **changes | {"problem.initial_density": f"{__name__}:own_maxwellian"}), 1)
    assert not any("noise of the wave" in text for text in none)


def test_a_fast_potential_and_ranks_without_particles_are_said():
    (sentence,) = warnings_of(case_of("confined", **{"time.step": 0.4, "time.end": 4.0}), 1)
    assert "time.step = 0.4" in sentence and "hω = 0.8," in sentence
    few = case_of(**{"particles.count": 2})
    assert any("2 of 3 ranks hold no particles" in sentence for sentence in warnings_of(few, 3))


@pytest.mark.parametrize("shape_order", [1, 2])
def test_the_noise_floor_is_that_of_a_thermal_plasma(shape_order):
    """Independent particles of a Maxwellian, averaged over seeds and over the time after their field is shielded."""
    changes = {"particles.count": 2048, "particles.start": "random", "grid.cells": 32, "method.collision": "none"}
    changes |= {"grid.shape_order": shape_order, "time.step": 0.2}
    energies = []
    for seed in range(4):
        simulation = Simulation.start(case_of("plasma", **changes, **{"particles.seed": seed}), Communicator())
        for step in range(100):
            simulation.state = simulation.advance()
            if step >= 25:
                energies.append(simulation.state.field.energy)
    floor = noise_floor(case_of("plasma", **changes))["field_energy"]
    assert np.mean(energies) == pytest.approx(floor, rel=0.2)


def test_a_quiet_start_has_noise_in_proportion_to_time_over_particles():
    for count in (1024, 16384):
        changes = {"particles.count": count, "grid.cells": 32, "method.collision": "none", "time.step": 0.2}
        case = case_of("plasma", **changes)
        simulation, part = Simulation.start(case, Communicator()), []
        for step in range(150):
            simulation.state = simulation.advance()
            time = 0.2 * (step + 1)
            part.append(simulation.state.field.energy / min(1.0, noise_growth(case)["field_energy"] * time))
        assert 0.6 < np.mean(part[25:]) / noise_floor(case)["field_energy"] < 2
    assert not noise_growth(case_of("plasma", **{"particles.start": "random"}))


def test_in_two_dimensions_the_whole_field_soon_has_all_its_noise():
    dims = {"problem.space_dims": 2, "problem.velocity_dims": 2}
    case = case_of(
        "plasma", **dims, **{"particles.count": 4096, "grid.cells": 16, "method.collision": "none", "time.step": 0.2}
    )
    simulation = Simulation.start(case, Communicator())
    for _ in range(15):
        simulation.state = simulation.advance()
    floor, growth = noise_floor(case), noise_growth(case)
    assert floor["field_energy"] / 2 < simulation.state.field.energy < 2 * floor["field_energy"]
    assert list(growth) == ["wave_energy"]


def test_the_noise_floor_is_a_sum_over_waves_in_any_number_of_dimensions():
    case = case_of(
        "plasma", **{"problem.space_dims": 2, "problem.velocity_dims": 2, "grid.cells": [4, 6], "problem.mode": [1, 1]}
    )
    spacing, total = [4 * math.pi / 4, 4 * math.pi / 6], 0.0
    for i in range(-2, 2):
        for j in range(-3, 3):
            k = np.array([0.5 * i, 0.5 * j])
            shape = math.prod(np.sinc(k[a] * spacing[a] / (2 * math.pi)) ** 4 for a in range(2))
            total += 0.5 * shape / (1 + k @ k) if i or j else 0.0
    scale = (4 * math.pi) ** 2 / 65536
    assert noise_floor(case)["field_energy"] == pytest.approx(scale * total, rel=1e-12)
    assert noise_floor(case_of("confined")) == {}


@pytest.mark.parametrize("kind", ["two_stream", "landau_damping", "plasma"])
@pytest.mark.parametrize(("mode", "cells"), [([4], [8]), ([5], [9, 8]), ([1, 4], [16, 8]), ([1, -4], [16, 8])])
def test_a_mode_that_the_mesh_would_alias_is_refused(kind, mode, cells):
    dims = {"space_dims": len(cells), "velocity_dims": len(cells)}
    table = {"problem": {"kind": kind, "mode": mode, **dims}, "grid": {"cells": cells}}
    with pytest.raises(UserError, match=r"^problem.mode = .*grid.cells"):
        config.from_table(table)
    table["grid"]["cells"] = [2 * cell for cell in cells]
    config.from_table(table)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("physics.temperature", 1e-300),
        ("physics.collision_strength", 1e300),
        ("problem.length", [1e-13]),
        ("time.step", 1e-30),
    ],
)
def test_numbers_of_no_sensible_size_are_refused(key, value):
    with pytest.raises(UserError, match=rf"^{key} = .*between 1e-12 and 1e\+12"):
        case_of(**{key: value})


def test_keys_without_effect_are_not_written_into_the_resolved_case():
    """So that it can be run, restarted and changed without their being said again."""
    case = case_of(**{"method.collision": "langevin", "method.hidden": [8], "method.solver": "adam"})
    assert "hidden" not in case.table()["method"] and len(case.idle) == 1
    again = config.from_table(case.table())
    assert again.idle == ()
    assert again.model_dump() == case.model_dump()  # the other ranks make theirs so, and must have that of rank 0
    without = case_of(**{"method.collision": "none", "physics.collision_operator": "dougherty"})
    assert config.from_table(without.table()).model_dump() == without.model_dump() and len(without.idle) == 1
    bare = config.from_table({"problem": {"kind": "confined", "potential": "harmonic", "bump_amplitude": 1.0}})
    assert bare.idle == ('problem.bump_amplitude has no effect with problem.potential = "harmonic"',)
    meshed = config.from_table({"problem": {"kind": "periodic"}, "grid": {"cells": 8}})
    assert meshed.grid is None and "[grid] has no effect" in meshed.idle[0]


def test_warnings_and_noise_are_in_the_log_and_in_what_is_said_of_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """
        [problem]
        kind = "landau_damping"
        [particles]
        count = 1024
        start = "random"
        [grid]
        cells = 8
        [time]
        end = 6.0
        [method]
        collision = "langevin"
        hidden = [8]
    """
    (tmp_path / "case.toml").write_text(text)
    assert main(["run", "case.toml", "--out", "out"]) == 0
    for verb in ("inspect", "report"):
        assert main([verb, "out"]) == 0
    out = capsys.readouterr().out
    sentences = ("method.hidden has no effect", "the noise of the wave from 1024", "wave energy is mostly noise")
    page = (tmp_path / "out" / "report.html").read_text()
    log = (tmp_path / "out" / "log.txt").read_text()
    for sentence in sentences:
        assert sentence in out and sentence in page
    assert all(sentence in log for sentence in sentences[:2])
    assert "eigenvalue" not in out and "eigenvalue" not in page  # langevin has no map
    assert main(["compare", "out", "out", "--column", "wave_energy"]) == 0
    assert "the noise of the wave in out is about" in capsys.readouterr().err


def test_a_run_without_collisions_can_be_looked_at(tmp_path, capsys, monkeypatch):
    """Its resolved case has no keys of collisions, which verbs that read files ask for."""
    monkeypatch.chdir(tmp_path)
    text = '[problem]\nkind = "two_stream"\n[particles]\ncount = 64\n[grid]\ncells = 8\n[time]\nend = 0.1\n'
    (tmp_path / "case.toml").write_text(text + '[method]\ncollision = "none"\n')
    assert main(["run", "case.toml", "--out", "out"]) == 0
    for verb in ("inspect", "plot", "report", "series"):
        assert main([verb, "out"]) == 0, capsys.readouterr().err
    assert "κ = 0," in capsys.readouterr().out
