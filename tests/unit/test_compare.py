"""``kjko compare``: a run against itself, another run, a table, the grid solver."""

import csv
import shutil

import numpy as np
import pytest
from matplotlib.axes import Axes

from hpc_kjko import compare
from hpc_kjko.config import from_table
from hpc_kjko.differences import differences
from hpc_kjko.series import SeriesWriter, read_series


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


def test_a_run_against_another_and_against_the_grid_solver(here, tmp_path, monkeypatch):
    labels = []
    label = Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **look: labels.append(look.get("ylabel")) or label(axes, **look))
    result = here("compare", "mine", "other", "--tolerance", "0.0909", "--out", "figure.png")
    assert result.returncode == 1 and "L2: kl by 0.0909\n" in result.stderr and "energy" not in result.stderr
    assert labels[1:3] == ["field energy\n[normalised energy]", "entropy"]
    assert "5 times from 0 to 0.8" in result.stdout and (tmp_path / "figure.png").stat().st_size > 20_000
    assert here("compare", "mine", "other", "--column", "entropy", "--tolerance", "0").returncode == 0

    grid = here("compare", "mine", "grid", "--tolerance", "0.02")
    assert grid.returncode == 1 and grid.stderr.count("\n") == 1
    assert "beyond the tolerance of 0.02 in relative L2: field_energy by" in grid.stderr  # so few particles
    for column in ("kinetic_energy", "entropy", "free_energy", "kl"):
        assert column in grid.stdout and column not in grid.stderr
    assert "potential_energy" not in grid.stdout  # there is none


def test_what_the_cases_differ_in_is_named(here, tmp_path):
    assert here("compare", "mine", "other").stderr == ""
    path = tmp_path / "other/case.toml"
    text = path.read_text().replace("seed = 0", "seed = 7").replace("every = 5", "every = 2")
    path.write_text(text.replace("strength = 0.1", "strength = 0.2").replace("step = 0.1", "step = 0.05"))
    for name, constant in (("mine", 1), ("other", 2)):
        (tmp_path / name / "code").mkdir()
        (tmp_path / name / "code/start.py").write_text(f"A = {constant}")
    result = here("compare", "mine", "other")
    assert result.returncode == 0
    assert result.stderr == "kjko: the runs differ in physics.collision_strength, time.step, code/start.py\n"


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
        (["mine", "other", "third"], "third is one argument too many for 'kjko compare': it takes A and B; quote"),
        (["mine", "other", "late.csv"], "late.csv is one argument too many for 'kjko compare': it takes A and B\n"),
        (["mine", "other", "--tolerance", "much"], "--tolerance: much must be a number"),
        (["mine"], "'kjko compare' needs B"),
        (["mine", "other", "--tolerance", "-1"], "must be a number, 0 or more"),
        (["mine", "other", "--out", "figure.doc"], "ends in .png, .pdf or .svg"),
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


def test_the_grid_solver_refuses_what_it_cannot_do(here, tmp_path):
    path = tmp_path / "mine/case.toml"
    path.write_text(path.read_text().replace("velocity_dims = 1", "velocity_dims = 2"))
    assert "is for 1D1V, and the run is 1D2V" in here("compare", "mine", "grid").stderr


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
