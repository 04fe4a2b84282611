"""The pages on Python of one's own, run as they stand, and what happens to code that does less than it must."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quick, run_command

from hpc_kjko import Case, UserError, restart, run, usercode
from hpc_kjko.case.method import COLLISIONS
from hpc_kjko.cli.main import main
from hpc_kjko.collisions import METHODS
from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.series import read_series

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["howto/own_problem.md", "howto/own_start.md", "howto/own_collision_method.md", "howto/own_diagnostic.md"]
PAGES += ["tutorials/bump_on_tail.md"]
#: Wrong in one way each; of a class of the pages where that is named.
MISTAKES = """
from mine import *

class Unfinished(Collision):
    pass
class Stumbles(Friction):
    def step(self, particles, duration, start):
        return particles, nothing
class Mute(Friction):
    def step(self, particles, duration, start):
        return None
class Loses(Friction):
    def step(self, particles, duration, start):
        moved, report = super().step(particles, duration, start)
        return moved.move(moved.v[1:], moved.log_f), report
class Keeps(Friction):
    def state(self):
        return {"friction": object()}
class Many(DoubleWell):
    def sample(self, points, temperature):
        if len(points) > 4:
            raise ValueError("four are enough")
        return super().sample(points, temperature)
class Deaf(Friction):
    tracks_log_f = False
class Taken(Wells):
    columns = ("mass", "right_velocity")
class Short(Wells):
    columns = ("only_one",)
class Words(Wells):
    def local(self, state):
        return ["right", "left"]
class Nameless(Wells):
    columns = "right_mass"
class Flat(DoubleWell):
    def sample(self, points, temperature):
        return points[:, 0], points[:, 1]
class Silent(DoubleWell):
    def log_density(self, x, v, temperature):
        return None
class Abstract(Problem):
    space_dims: int = 1
    velocity_dims: int = 1
"""


#: A start f0 each.
STARTS = """
import numpy as np
import torch

def matrix(x, v):
    return torch.exp(-0.5 * v**2)
def by_numpy(x, v):
    return np.exp(-0.5 * v[:, 0] ** 2)
def detached(x, v):
    return torch.exp(-0.5 * v[:, 0].detach() ** 2)
def of_x(x):
    return x
def misspelt(x, v):
    return torch.exp(-w[:, 0] ** 2)
def sloping(x, v):
    return (1 + 0.1 * x[:, 0]) * torch.exp(-0.5 * v[:, 0] ** 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the pages: a block's first line names its file, to which it is added."""
    folder = tmp_path_factory.mktemp("mine")
    for page in PAGES:
        for text in re.findall(r"```(?:python|toml)\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL):
            named = re.match(r"# (\w+\.(?:py|toml))\n", text)
            with open(folder / named[1], "a") as file:
                file.write(f"{text}\n\n")
    (folder / "mistaken.py").write_text(MISTAKES)
    (folder / "starts.py").write_text(STARTS)
    (folder / "unparsed.py").write_text("import torch\ndef f0(x, v)\n    return x\n")
    (folder / "unimported.py").write_text("import torch\n\nimport no_such_module_of_mine\n")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    usercode.load.cache_clear()


@pytest.fixture(scope="module")
def typed(folder):
    """The pages' run, on two ranks."""
    result = run_command(quick("-m", "hpc_kjko", "run", "mine.toml", "--out", "two", ranks=2), folder)
    assert result.returncode == 0, result.stderr
    return folder / "two"


def test_the_pages_run_on_any_number_of_ranks(here, typed, folder):
    alone = run(Case.load("mine.toml"), "alone", progress=False).series
    series = read_series(typed / "series.h5")
    for name in (name for name in series if not name.startswith("seconds")):
        assert np.allclose(alone[name], series[name], rtol=1e-9, atol=1e-12), name
    # mass at the top slides into both wells; friction takes its energy; and log f says that volume shrinks
    assert series["right_mass"] == pytest.approx(0.5, abs=0.01)
    assert series["right_velocity"].max() > 0.1
    energy = series["kinetic_energy"] + series["potential_energy"]
    assert energy[-1] < energy[0] - 0.1
    assert np.diff(series["entropy"]) == pytest.approx(0.5 * 0.05, rel=1e-6)
    written = read_snapshot(folder / "alone" / "snapshots", 0, slice(None))
    assert written.position.std() == pytest.approx(0.5, rel=0.01)


def test_a_restart_goes_on_with_the_same_code_and_columns(here, typed):
    with pytest.raises(UserError, match="may change only"):
        restart(typed, ["output.diagnostics=[]"])
    longer = restart(typed, ["time.end=1.1"], progress=False)
    assert len(longer.series.right_mass) == 23


def test_a_plasma_from_ones_own_density_agrees_with_the_grid_solver(here, capsys):
    assert main(["run", "bump.toml", "--out", "bump", "--set", "time.end=2.0"]) == 0
    against_grid = ["compare", "bump", "grid", "--column", "field_energy", "--tolerance", "0.01"]
    assert main(against_grid) == 0, capsys.readouterr()


def test_the_theory_of_ones_own_density_is_that_of_the_tutorial(here, capsys):
    runpy.run_path("theory.py")
    (printed,) = re.findall(r"It prints `(.*?)`", (DOCS / "tutorials" / "bump_on_tail.md").read_text(encoding="utf-8"))
    assert complex(capsys.readouterr().out) == pytest.approx(complex(printed), abs=1e-8)


def test_a_start_of_ones_own(here):
    table = {"problem": {"kind": "confined", "initial_density": "mine:two_clouds"}, "time": {"step": 0.1, "end": 0.1}}
    table |= {"particles": {"count": 4096}, "method": {"collision": "langevin"}}
    started = run(Case.from_table(table), "clouds", progress=False)
    x = started.particles.x_1.isel(time=0)
    assert float((x > 0).mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(abs(x).mean()) == pytest.approx(1.0, abs=1e-2) and float(abs(x).std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("key", "reference", "says"),
    [
        ("method.collision", "mistaken:Unfinished", "it has no __init__, load, state, step"),
        (
            "method.collision",
            "mistaken:Stumbles",
            r"NameError: name 'nothing' is not defined, in line 8 of mistaken.py",
        ),
        (
            "method.collision",
            "mistaken:Mute",
            "step must return the particles, as many as before, and a CollisionReport",
        ),
        ("method.collision", "mistaken:Loses", "step must return the particles, as many as before"),
        ("method.collision", "mistaken:Keeps", "state must return a dictionary of numpy arrays"),
        ("method.collision", "mine:DoubleWell", "subclass of hpc_kjko.collisions.Collision"),
        ("method.collision", "frictoin", 'it may be "jko", .* or "module:name" of your own code'),
        ("output.diagnostics", "mine:Bells", "the module mine has no Bells"),
        ("output.diagnostics", "mistaken:Taken", "has a column mass already"),
        ("output.diagnostics", "mistaken:Short", r"finish must return 1 number\(s\), for only_one, but it returned 2"),
        ("output.diagnostics", "mistaken:Words", "local must return the rank's sums as an array of numbers"),
        ("output.diagnostics", "mistaken:Nameless", "columns must be names"),
        ("output.diagnostics", "mine:two_clouds", "it must be a class"),
        ("output.diagnostics", "starts:matrix", r"that takes the case, .* its arguments are \(x, v\)$"),
        ("problem.kind", "mine:Friction", "subclass of hpc_kjko.problems.Problem"),
        (
            "problem.kind",
            "mistaken:Flat",
            r"sample must return arrays x \[n, 1\] and v \[n, 1\], but for n = 4 it returned",
        ),
        ("problem.kind", "mistaken:Silent", "log_density must return a tensor"),
        ("problem.kind", "mistaken:Abstract", "it has no .*log_density.*sample.*window"),
        ("problem.depth", "high", "problem.depth = 'high'"),
    ],
)
def test_a_mistake_in_it_is_one_sentence_that_names_the_key(key, reference, says, here):
    with pytest.raises(UserError, match=says) as mistake:
        run(Case.load("mine.toml", {key: reference, "time.end": 0.1}), "wrong", force=True, progress=False)
    assert key in str(mistake.value) and len(str(mistake.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (
            "satrts:matrix",
            "there is no module satrts, neither on the Python path nor in the current folder: did you mean starts\\?",
        ),
        ("starts.py:matrix", '.*: leave out .py, as in "starts:matrix"'),
        ("code/starts.py:matrix", 'write code of your own as "module:name", .*'),
        ("starts:martix", r"the module starts has no martix \(.*starts.py\): did you mean matrix\?"),
        ("unparsed:f0", "importing unparsed failed: SyntaxError: .*, in line 2 of unparsed.py"),
        ("unimported:f0", "importing unimported failed: ModuleNotFoundError: .*, in line 3 of unimported.py"),
        ("starts:matrix", r"f0\(x, v\) must return a floating-point tensor \[n\] .* of torch.float64"),
        ("starts:by_numpy", "it mixes torch tensors with numpy, math or .*: use torch.cos.*, in line 8 of starts.py"),
        ("starts:detached", "it cannot be differentiated in v: .*"),
        ("starts:of_x", r"it must be a function f0\(x, v\) .*, but its arguments are \(x\)"),
        ("starts:misspelt", "it raised NameError: name 'w' is not defined, in line 14 of starts.py"),
        ("starts:sloping", "f0 is not periodic along x_1, .* or change problem.length"),
    ],
)
def test_a_mistake_in_a_start_is_said_once_and_in_the_users_own_file(reference, says, here):
    with pytest.raises(UserError, match=rf'^problem.initial_density = "{reference}": {says}$') as mistake:
        Case.from_table({"problem": {"kind": "plasma", "initial_density": reference}})
    assert "UserError" not in str(mistake.value) and "custom.py" not in str(mistake.value)


def test_a_module_beside_the_case_is_found_from_another_folder(here, folder, tmp_path, kjko_here):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "beside_the_case.py").write_text((folder / "bump.py").read_text())
    case = tmp_path / "deep" / "case.toml"
    case.write_text('[problem]\nkind = "plasma"\ninitial_density = "beside_the_case:bump_on_tail"\n')
    few = ["--set", "particles.count=1024", "--set", "time.end=0.2", "--set", "problem.length=20.94395102393195"]
    assert kjko_here("run", case, "--out", "beside", *few).returncode == 0
    assert (tmp_path / "beside" / "code" / "beside_the_case.py").exists()
    result = kjko_here("run", case, "--out", "not", "--set", "problem.initial_density=beside_the_cas:f")
    assert f"nor in the current folder nor in {tmp_path}/deep: did you mean beside_the_case?" in result.stderr


def test_an_error_in_the_middle_of_a_problems_own_code_is_a_sentence_too(here, kjko_here, folder):
    result = kjko_here("run", folder / "mine.toml", "--out", "many", "--set", "problem.kind=mistaken:Many")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search(r"kjko: mistaken.py, line \d+: raised ValueError: four are enough", result.stderr)


def test_a_control_variate_needs_a_method_that_tracks_log_f(here):
    table = {"problem": {"kind": "two_stream"}, "particles": {"control_variate": True, "count": 1024}}
    with pytest.raises(UserError, match="particles.control_variate"):
        run(Case.from_table(table | {"method": {"collision": "mistaken:Deaf"}}), "deaf", progress=False)


def test_the_case_knows_the_methods_that_there_are():
    assert set(COLLISIONS) == set(METHODS)


def test_a_method_of_ones_own_conserves_with_the_dougherty_operator(here):
    """Friction takes energy from nobody: what it took in the rest frame is given back."""
    table = {"problem": {"kind": "two_stream"}, "particles": {"count": 1024}, "time": {"end": 0.2}}
    table |= {
        "physics": {"collision_operator": "dougherty", "field": "external"},
        "method": {"collision": "mine:Friction"},
    }
    series = run(Case.from_table(table), "dougherty", progress=False).series
    assert abs(series.collision_energy_total[-1]) < 1e-12 * series.kinetic_energy[0]


def test_cases_in_two_folders_have_modules_of_the_same_name(tmp_path):
    """One process, two cases, a mine.py beside each."""
    found = []
    for name, height in (("one", 1.0), ("two", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "namesake.py").write_text(f"def phi(x):\n    return {height} * (x**2).sum(1)\n")
        (folder / "case.toml").write_text('[problem]\nkind = "confined"\npotential = "namesake:phi"\n')
        case = Case.load(folder / "case.toml")
        found.append(float(case.problem.potential(torch.ones(1, 1, dtype=torch.float64))))
    assert found[1] == 2 * found[0]
