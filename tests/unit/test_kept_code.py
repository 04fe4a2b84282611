"""A run folder keeps the user's modules: what is copied, who finds it, who never asks for it, and what has changed."""

import importlib
import shutil
import sys

import pytest

from hpc_kjko import Case, UserError, open_run, restart, run, usercode
from hpc_kjko.cli.main import main
from hpc_kjko.files.storage import warn_once

PROBLEM = """
from typing import ClassVar
import numpy as np
import torch
from scipy.special import ndtri
from hpc_kjko.problems import Problem
from helper_of_mine import DEPTH

class Cloud(Problem):
    default_field: ClassVar = "external"
    periods: ClassVar = None
    window: ClassVar = (((-6.0, 6.0),), ((-6.0, 6.0),))
    space_dims: int = 1
    velocity_dims: int = 1
    def potential(self, x):
        return DEPTH * x[:, 0] ** 2
    def sample(self, points, temperature):
        z = ndtri(points)
        return z[:, :1], z[:, 1:]
    def log_density(self, x, v, temperature):
        return -0.5 * (x[:, 0] ** 2 + v[:, 0] ** 2) - np.log(2 * np.pi)

class Mean:
    columns = ("mean_x",)
    def __init__(self, case):
        pass
    def local(self, state):
        from package_of_mine.deeper import sums
        return sums(state)
    def finish(self, sums, state):
        return tuple(sums)
"""
MODULES = {
    "cloud_of_mine.py": PROBLEM,
    "helper_of_mine.py": "DEPTH = 0.5\n",
    "package_of_mine/__init__.py": "",
    "package_of_mine/deeper.py": "def sums(state):\n    return [float(state.particles.x[:, 0].mean())]\n",
    "package_of_mine/never_imported.py": "this is not Python",
    "unrelated.py": "",
}
TABLE = {
    "problem": {"kind": "cloud_of_mine:Cloud"},
    "particles": {"count": 512},
    "time": {"step": 0.1, "end": 0.2},
    "method": {"collision": "langevin"},
    "output": {"diagnostics": ["cloud_of_mine:Mean"], "histogram_every": 1},
}


def forget(monkeypatch):
    """As in another process, which has imported nothing yet."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "test_kept_code" not in path and "kept" not in path])
    for name in [name for name in sys.modules if name.partition(".")[0].endswith("_of_mine")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(usercode, "_LAST", [])
    usercode.load.cache_clear()
    warn_once.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory):
    """A run of somebody's own code, which is out of reach now; not to be changed."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, text in MODULES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        monkeypatch.chdir(folder)
        forget(monkeypatch)
        run(Case.from_table(TABLE), folder / "runs" / "out", progress=False)
        forget(monkeypatch)
    return folder / "runs" / "out"


@pytest.fixture
def elsewhere(kept_run, tmp_path, monkeypatch):
    """A copy of the run, looked at from another folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    forget(monkeypatch)
    yield shutil.copytree(kept_run, tmp_path / "out")
    forget(monkeypatch)


def test_the_module_and_all_that_it_needs_beside_it_are_copied(kept_run):
    code = kept_run / "code"
    copied = sorted(str(path.relative_to(code)) for path in code.rglob("*") if path.is_file())
    assert copied == sorted(set(MODULES) - {"unrelated.py"})
    assert all((code / name).read_text() == MODULES[name] for name in copied)


def test_installed_modules_and_cells_of_a_notebook_are_not_copied():
    assert usercode.load("math:pi", "problem.potential") and usercode.load("torch.special:gammaln", "problem.potential")
    assert usercode.files_of({"problem": {"potential": "math:pi", "note": "12:30", "kind": "__main__:Name"}}) == {}
    assert usercode.files_of({"a": ["torch.special:gammaln", "numpy:sin"], "b": "no_such_module_of_mine:x"}) == {}


def test_a_restart_and_an_analysis_find_the_copy(elsewhere, capsys, caplog):
    assert restart(elsewhere, ["time.end=0.3"], progress=False).series.step[-1] == 3
    assert main(["analyze", str(elsewhere)]) == 0, capsys.readouterr().err
    assert open_run(elsewhere).case.problem.window[0] == ((-6.0, 6.0),)
    assert "has changed since" not in caplog.text and not list(elsewhere.glob("code-before*"))
    assert sys.modules["cloud_of_mine"].__file__ == str(elsewhere / "code" / "cloud_of_mine.py")


@pytest.mark.parametrize("verb", ["series", "inspect", "watch", "compare", "plot", "report"])
def test_verbs_that_only_read_files_never_import_it(verb, elsewhere, kept_run, capsys):
    for path in (elsewhere / "code").rglob("*.py"):
        path.write_text("raise SystemExit('is run')")
    assert main([verb, str(elsewhere), *{"watch": ["--once"], "compare": [str(kept_run)]}.get(verb, [])]) == 0
    assert "is run" not in capsys.readouterr().err
    data = open_run(elsewhere)
    assert "mean_x" in data.series and data.particles.x_1.shape == (2, 512) and data.histograms.f_x_1_v_1.shape[0] == 3
    assert "cloud_of_mine" not in sys.modules


def test_a_module_that_has_changed_is_used_and_said(elsewhere, tmp_path, caplog, capfd, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_text(text)
    (tmp_path / "here" / "helper_of_mine.py").write_text("DEPTH = 0.25\n")
    restart(elsewhere, ["time.end=0.3"], progress=False)
    assert caplog.text.count("has changed since the run began") == 1
    assert f"{tmp_path}/here/helper_of_mine.py has changed since the run began: from step 2 on" in caplog.text
    assert (elsewhere / "code/helper_of_mine.py").read_text() == "DEPTH = 0.25\n"
    assert (elsewhere / "code-before-step00000002/helper_of_mine.py").read_text() == "DEPTH = 0.5\n"
    caplog.clear()
    restart(elsewhere, ["time.end=0.4"], progress=False)
    assert "has changed since" not in caplog.text
    (tmp_path / "here" / "helper_of_mine.py").write_text("DEPTH = 0.75\n")
    assert main(["analyze", str(elsewhere)]) == 0
    assert caplog.text.count("helper_of_mine.py has changed since the run began") == 1
    caplog.clear()
    forget(monkeypatch)
    assert main(["compare", str(elsewhere), "grid", "--column", "kinetic_energy"]) == 0
    assert caplog.text.count("helper_of_mine.py has changed since the run began") == 1
    run(Case.load(elsewhere / "case.toml"), elsewhere, force=True, progress=False)  # begins with the code as it is
    assert not list(elsewhere.glob("code-before*"))
    assert (elsewhere / "code/helper_of_mine.py").read_text() == "DEPTH = 0.75\n"


def test_a_copy_that_is_lost_too_is_looked_for_in_all_places(elsewhere):
    (elsewhere / "code/cloud_of_mine.py").unlink()
    with pytest.raises(UserError, match=f"no module cloud_of_mine, neither on .* nor in .* nor in {elsewhere}/code"):
        restart(elsewhere, ["time.end=0.3"], progress=False)
