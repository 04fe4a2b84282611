"""scripts/paper_figures.py end to end, with runs of its quick size."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import quick, run_command

from hpc_kjko.files.output import list_snapshots, read_snapshot
from hpc_kjko.files.series import read_series

SCRIPT = Path(__file__).parents[2] / "scripts" / "paper_figures.py"
FIGURES = [f"fig{number}" for number in range(1, 12)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """The folder of all figures and their runs."""
    out = tmp_path_factory.mktemp("paper")
    done = run_command(quick(SCRIPT, "--quick", "--out", out), out, timeout=580)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / "figures" / f"{name}.png") for name in FIGURES]
    return out


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_picture(paper, name):
    path = paper / "figures" / f"{name}.png"
    assert path.stat().st_size > 20_000
    assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.9


def test_drift_error_of_the_papers_scheme_is_of_first_order(paper):
    for dims in ("1d", "3d"):
        coarse, fine = (
            np.sqrt(read_series(paper / "runs" / f"e1_{dims}_{step}" / "series.h5")["drift_error"][1:].mean())
            for step in (0.2, 0.1)
        )
        assert 0.6 < np.log2(coarse / fine) < 1.4


@pytest.mark.parametrize("name", ["e2", "e2_paper", "e4"])
def test_relative_entropy_decays(paper, name):
    kl = read_series(paper / "runs" / name / "series.h5")["kl"]
    assert (np.diff(kl) < 1e-4 * kl[0]).all()  # it ends near equilibrium
    assert kl[-1] < 0.2 * kl[0]


def test_the_two_stream_instability_grows_only_where_collisions_are_weak(paper):
    weak, strong = (read_series(paper / "runs" / name / "series.h5") for name in ("e5_weak", "e5_strong"))
    assert weak["field_energy"].max() > 8 * weak["field_energy"][0]
    assert strong["field_energy"].max() < 4 * strong["field_energy"][0]
    assert abs(strong["kl"][-1]) < 0.02 * strong["kl"][0]
    assert weak["kl"][-1] > 0.1 * weak["kl"][0]


def test_weak_collisions_leave_a_vortex(paper):
    """Phase space is emptier around the vortex's centre than at the same velocity elsewhere; not so at strong κ."""
    hollow = {}
    for name in ("e5_weak", "e5_strong"):
        folder = paper / "runs" / name / "snapshots"
        histogram = read_snapshot(folder, list_snapshots(folder)[-1]).histograms[0]
        slow = histogram.values[:, 48:80].sum(1)  # a quarter of the window in v, around 0
        quarters = slow.reshape(4, -1).sum(1)  # of the box: the trough of the density is in its middle
        hollow[name] = quarters[1:3].sum() / quarters[[0, 3]].sum()
    assert hollow["e5_weak"] < 0.8 < hollow["e5_strong"]


def test_an_unknown_figure_is_refused(tmp_path):
    done = run_command(quick(SCRIPT, "fig4", "fig12"), tmp_path)
    assert done.returncode == 2
    assert "fig12: not one of fig1, fig2" in done.stderr
    assert list(tmp_path.iterdir()) == []
