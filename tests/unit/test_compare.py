"""``kjko compare``: a run against itself, another run, a table, the grid solver."""

import csv
import functools
import json
import re
import shutil

import numpy as np
import pytest
import torch

from hpc_kjko import casefile
from hpc_kjko.case.config import from_table
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.post import compare, draw
from hpc_kjko.post.differences import differences


@pytest.fixture
def here(a_run, kjko_here, tmp_path):
    """The command in a folder with the run "mine", and "other": every second row of it until t = 0.8, with a KL that is
    a tenth larger."""
    for name in ("mine", "other"):
        shutil.copytree(a_run, tmp_path / name)
    rows = {name: values[:9:2] for name, values in read_series(a_run / "series.h5").items()}
    rows["kl"] = 1.1 * rows["kl"]
    SeriesWriter(tmp_path / "other/series.h5", list(rows), dict.fromkeys(rows, "1"), rows).close()
    return kjko_here


def test_a_run_against_another_and_against_the_grid_solver(here, tmp_path):
    result = here("compare", "mine", "other", "--tolerance", "0.0909", "--out", "figure.png")
    assert result.returncode == 1 and "L2: kl by 0.0909\n" in result.stderr and "energy" not in result.stderr
    assert "5 times from 0 to 0.8" in result.stdout and (tmp_path / "figure.png").stat().st_size > 20_000
    assert here("compare", "mine", "other", "--column", "entropy", "--tolerance", "0").returncode == 0

    grid = here("compare", "mine", "grid", "--tolerance", "0.02")
    assert grid.returncode == 1 and grid.stderr.count("\n") == 1
    assert "beyond the tolerance of 0.02 in relative L2: field_energy by" in grid.stderr  # so few particles
    for column in ("kinetic_energy", "entropy", "free_energy", "kl"):
        assert column in grid.stdout and column not in grid.stderr
    assert "potential_energy" not in grid.stdout  # there is none
    assert "entropy (∫ f log f) " in grid.stdout  # as in figures


def test_without_collisions_only_energies_are_compared(here, tmp_path):
    """Of either run. A column that is asked for is compared nevertheless."""
    for name in ("mine", "other"):
        path = tmp_path / name / "case.toml"
        case = path.read_text()
        text = re.sub("collision_strength = .*", "collision_strength = 0.0", case)
        path.write_text(re.sub('collision = "jko"', 'collision = "none"', text))
        said = here("compare", "mine", "other").stdout
        assert "kinetic_energy" in said and not any(word in said for word in ("entropy", "free_energy", "kl")), name
        assert "kl" in here("compare", "mine", "other", "--column", "kl").stdout
        path.write_text(case)
    path = tmp_path / "mine/case.toml"
    path.write_text(re.sub("collision_strength = .*", "collision_strength = 0.0", path.read_text()))
    (tmp_path / "kl.csv").write_text("time,kl\n0,1\n1,1\n")
    assert "name one with --column: kl" in here("compare", "mine", "kl.csv").stderr


def test_a_figure_has_words_units_differences_and_the_noise(here, tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(draw, "save", lambda picture, path: pictures.append(picture))
    note = json.loads((tmp_path / "mine/run.json").read_text())
    assert note["noise_floor"]["field_energy"] > 0
    assert here("compare", "mine", "other", "--out", "figure.png").returncode == 0
    (picture,) = pictures
    panels = {panel.title: panel for panel in picture.panels}
    assert not any("_energy" in title or title == "kl" for title in panels)
    field, kl = panels["field energy ½∫|E|²dx"], panels["KL divergence from equilibrium"]
    assert field.y.label == "in n̄ m v_th³/ω_p" and field.y.log
    assert [curve.label for curve in field.curves] == ["mine", "noise of the whole field", "other"]
    assert field.curves[1].look == field.below.curves[1].look == "noise"
    assert field.curves[1].y[-1] == pytest.approx(
        note["noise_floor"]["field_energy"] * note["noise_growth"]["field_energy"] * 0.8
    )
    (difference,) = kl.below.curves  # of one that is a tenth larger
    assert difference.y == pytest.approx(0.1 * kl.curves[0].y) and kl.below.y.label == "|difference|"


def test_a_page_of_a_comparison(here, tmp_path):
    result = here("compare", "mine", "other", "--out", "page.html")
    assert result.returncode == 0 and "page.html" in result.stdout, result.stderr
    page = (tmp_path / "page.html").read_text()
    assert "KL divergence from equilibrium" in page and "0.0909" in page and "kinetic_energy" not in page
    assert "there is no folder none" in here("compare", "mine", "other", "--out", "none/page.html").stderr


def test_what_the_cases_differ_in_is_named(here, tmp_path):
    assert here("compare", "mine", "other").stderr == ""
    path = tmp_path / "other/case.toml"
    text = path.read_text().replace("seed = 0", "seed = 7").replace("every = 5", "every = 2")
    path.write_text(text.replace("strength = 0.1", "strength = 0.2").replace("step = 0.1", "step = 0.05"))
    for name, constant in (("mine", 1), ("other", 2)):
        (tmp_path / name / "code").mkdir()
        (tmp_path / name / "code/start.py").write_text(f"A = {constant}")
    (tmp_path / "mine/code/helper.py").touch()  # that only one has
    result = here("compare", "mine", "other")
    assert result.returncode == 0
    assert (
        result.stderr
        == "kjko: the runs differ in physics.collision_strength, time.step, code/helper.py, code/start.py\n"
    )


def test_a_table_at_other_times_with_a_known_error(here, tmp_path):
    series = read_series(tmp_path / "mine/series.h5")
    times = np.linspace(0.25, 2.25, 9)  # 0.25, 0.5, 0.75, 1.0 are within the run
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "kl", "other"])
        writer.writerows([t, 1.25 * np.interp(t, series["time"], series["kl"]), 7] for t in times)
    result = here("compare", "mine", "mine.csv", "--tolerance", "0.21")
    assert result.returncode == 0 and "0.2 " in result.stdout and "4 times" in result.stdout
    assert here("compare", "mine", "mine.csv", "--tolerance", "0.19").returncode == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_a_table_may_come_from_any_spreadsheet(encoding, here, tmp_path):
    (tmp_path / "mine.csv").write_bytes("time,kl,Kräfte\r\n0,1,0\r\n1,1,0\r\n".encode(encoding))
    result = here("compare", "mine", "mine.csv")
    assert result.returncode == 0 and "2 times" in result.stdout, result.stderr


def test_differences_are_measured_where_both_are():
    ours = {"time": np.arange(5.0), "a": np.array([0, 0, 3.0, 4.0, 0]), "kl": np.zeros(5)}
    theirs = {"time": np.array([1.5, 3.0, 9.0]), "a": np.array([0, 5.0, 0]), "kl": np.zeros(3)}
    (one,) = differences(ours, theirs, ["a"])
    assert one.time.tolist() == [1.5, 3.0]
    assert (one.relative_l2, one.largest, one.at) == (pytest.approx(np.hypot(1.5, 1) / 5), 1.5, 1.5)
    (kl,) = differences(ours, theirs)
    assert kl.column == "kl" and kl.relative_l2 == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine", "gird"], 'gird: give a run folder, a .csv file, or "grid"'),
        (["mine", "nowhere.csv"], "nowhere.csv: cannot read this table"),
        (["nowhere", "mine"], "nowhere: not a run folder"),
        (["mine", "."], "not a run folder"),
        (["mine", "other", "--column", "pressure"], "--column pressure: the run has no such column"),
        (["mine", "other", "--column", "entropi"], "the run has no such column: did you mean entropy?"),
        (["mine", "other", "third"], "third is one argument too many for 'kjko compare': it takes A and B; put quotes"),
        (["mine", "other", "late.csv"], "late.csv is one argument too many for 'kjko compare': it takes A and B\n"),
        (["mine", "other", "--tolerance", "much"], "--tolerance: much must be a number"),
        (["mine"], "'kjko compare' needs B"),
        (["mine", "other", "--tolerance", "-1"], "must be a number, 0 or more"),
        (["mine", "other", "--out", "figure.doc"], "must end in .png, .pdf or .svg, and that of a page in .html"),
        (["mine", "late.csv"], "no time in common: the run has t = 0 to 1, the reference 5 to 6"),
        (["mine", "headless.csv"], 'needs a header line with a column "time"'),
        (["mine", "words.csv"], "row 2: could not convert string to float: 'much'"),
        (["mine", "ragged.csv"], "row 1 must have a finite number for each of the 2 columns"),
        (["mine", "back.csv"], "the column time must increase"),
        (["mine", "strange.csv"], "share none of the columns kinetic_energy"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, says, here, tmp_path):
    tables = {
        "late": "time,kl\n5,1\n6,1\n",
        "headless": "0,1\n1,1\n",
        "words": "time,kl\n0,1\n1,much\n",
        "ragged": "time,kl\n0\n1,1\n",
        "back": "time,kl\n1,1\n0,1\n",
        "strange": "time,flux\n0,1\n1,1\n",
    }
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    result = here("compare", *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1


TWO_STREAM = {"kind": "two_stream", "velocity_dims": 2}


@pytest.mark.parametrize(
    ("changes", "dims"),
    [
        ({"problem": {"kind": "kappa", "velocity_dims": 2}}, "1D2V"),  # v_1 and v_2 are not independent
        ({"problem": TWO_STREAM, "physics": {"collision_operator": "dougherty"}}, "1D2V"),  # one T of both
        ({"problem": TWO_STREAM | {"space_dims": 2}, "grid": {"cells": 16}}, "2D2V"),
        ({"problem": {"kind": "plasma", "velocity_dims": 3}}, "1D3V"),
    ],
)
def test_the_grid_solver_refuses_what_it_cannot_do(changes, dims, here, tmp_path):
    path = tmp_path / "mine/case.toml"
    path.write_text(from_table(casefile.read(path) | changes).toml())
    assert f"is for 1D1V, and the run is {dims}" in here("compare", "mine", "grid").stderr


RELAXING = {
    "problem": {"kind": "bi_maxwellian", "velocity_dims": 3, "temperatures": [1.0, 2.5, 0.4], "amplitude": 0.0},
    "physics": {"collision_strength": 0.7, "temperature": 1.3, "field": "external"},
    "time": {"step": 0.1, "end": 1.0},
}
RELAXING["problem"]["mean_velocity"] = [0.5, -1.0, 0.2]


def gaussian_at(time):
    """Mean and variance of each direction."""
    left = np.exp(-0.7 * time)
    return left * np.array([0.5, -1.0, 0.2]), 1.3 + left**2 * (np.array([1.0, 2.5, 0.4]) - 1.3)


def test_directions_beside_the_first_relax_in_the_grid_solution_too():
    """Without a force every direction is a Gaussian whose mean and variance are known."""
    case = from_table(RELAXING)
    solution = compare.grid_solution(case, cells=(8, 512))
    mean, variance = gaussian_at(solution.times[:, None])
    mass, energy = 4 * np.pi, 0.5 * (mean**2 + variance).sum(1)
    entropy = -0.5 * (1 + np.log(2 * np.pi * variance)).sum(1)
    kl = 0.5 * (variance / 1.3 - 1 - np.log(variance / 1.3) + mean**2 / 1.3).sum(1)
    assert solution.kinetic_energy == pytest.approx(mass * energy, rel=1e-3)
    assert solution.entropy == pytest.approx(mass * entropy, rel=1e-3)
    assert solution.free_energy == pytest.approx(mass * (energy + 1.3 * entropy), rel=1e-3)
    assert solution.relative_entropy == pytest.approx(mass * kl, abs=1e-3 * mass)


def test_the_grid_solvers_density_has_all_directions(tmp_path, monkeypatch):
    case = from_table(RELAXING)
    monkeypatch.setattr(compare, "grid_solution", functools.partial(compare.grid_solution, cells=(8, 512)))
    (tmp_path / "case.toml").write_text(case.toml())
    start, end = compare.grid_densities(RunFolder(tmp_path), case, [0.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.rand(50, dims, dtype=torch.float64, generator=generator) for dims in (1, 3))
    assert torch.allclose(start.log_density(x, v), case.problem.log_density(x, v, 1.3), atol=1e-3)
    mean, variance = (torch.from_numpy(part) for part in gaussian_at(1.0))
    wanted = -0.5 * ((v - mean) ** 2 / variance + torch.log(2 * np.pi * variance)).sum(1)
    assert torch.allclose(end.log_density(x, v), wanted, atol=2e-3)
    assert torch.allclose(end.score_v(x, v), (mean - v) / variance, atol=5e-3)
    for axis in range(3):
        edges = mean[axis].item() + np.sqrt(variance[axis].item()) * np.array([-1.0, 0.0, 1.0])
        assert end.marginal("v", axis, edges) == pytest.approx([0.34134475] * 2, abs=2e-3)


def test_the_grid_is_widened_for_a_tail_that_falls_as_a_power():
    """At the ends of the first grid the tail is below the tolerance, and what is beyond them still counts."""
    table = {"kind": "kappa", "kappa_index": 2.5, "amplitude": 0.1}
    case = from_table({"problem": table, "time": {"step": 0.1, "end": 0.1}})
    solution = compare.grid_solution(case, cells=(16, 256), substeps=1)
    assert solution.v[-1] > 1.5 * case.problem.window[1][0][1]
    assert solution.mass == pytest.approx(4 * np.pi, rel=1e-5)
    assert solution.kinetic_energy[0] == pytest.approx(2 * np.pi, rel=1e-2)


def test_the_grid_is_widened_until_it_holds_f(monkeypatch):
    case = from_table({"problem": {"kind": "landau_damping"}, "time": {"step": 0.1, "end": 1.0}})
    wide = compare.grid_solution(case, cells=(32, 256))
    monkeypatch.setattr(compare, "_REACH_V", 0.6)
    monkeypatch.setattr(compare, "_REACH", 2.0)
    widened = compare.grid_solution(case, cells=(32, 128))
    assert widened.v[-1] > 4.5
    assert widened.field_energy == pytest.approx(wide.field_energy, rel=1e-3)
    monkeypatch.setattr(compare, "_WIDENINGS", 1)
    with pytest.raises(ValueError, match="enlarge velocity_max"):
        compare.grid_solution(case, cells=(32, 128))
