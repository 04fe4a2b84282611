"""``kjko inspect`` shows the contents of a run folder, without parts that have no meaning for the case."""

import json
import re

import numpy as np
import pytest

from hpc_kjko.casefile import RunCase
from hpc_kjko.cli import inspect_verb
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, read_series, read_series_and_units
from hpc_kjko.post import figures, rates, report, summary
from hpc_kjko.post.figures import waves
from hpc_kjko.post.figures.runfiles import RunFiles


def said_by(kjko_here, *arguments) -> str:
    """The output of a verb, without its line breaks."""
    result = kjko_here(*arguments)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def rewritten(folder, **columns: np.ndarray) -> None:
    """Replace columns of the series of a run. All columns get the length of the new ones."""
    found, units = read_series_and_units(folder / "series.h5")
    rows = len(next(iter(columns.values())))
    found = {name: np.resize(values, rows) for name, values in found.items()} | columns
    SeriesWriter(folder / "series.h5", list(found), units, found).close()


@pytest.fixture
def collisionless(finished):
    """The finished run, as if it had been made without collisions: its columns are those of a run that has some."""
    path = finished / "case.toml"
    text = re.sub("collision_strength = .*", "collision_strength = 0.0", path.read_text())
    path.write_text(re.sub('collision = "jko"', 'collision = "none"', text))
    return finished


def test_a_short_series_has_no_rate_and_says_why_everywhere(finished, kjko_here):
    """The run has eleven rows, and its wave has a theoretical rate."""
    why = "the series has 11 rows with energy in the wave, but a fit needs 12"
    assert f"no rate of growth or damping: {why}" in said_by(kjko_here, "inspect", finished)
    (picture,) = waves.field_energy(RunFiles.of(RunFolder(finished)))
    assert picture.panels[0].title == "No rate of growth or damping" and why in picture.panels[0].note.lower()
    assert kjko_here("report", finished).returncode == 0
    assert why in (finished / "report.html").read_text()


def test_the_energys_error_is_relative_and_the_same_on_a_page(finished, kjko_here):
    series = read_series(finished / "series.h5")
    energy = series["kinetic_energy"] + series["field_energy"]
    left = energy - series["collision_energy_total"]
    error = f"{np.abs(left - left[0]).max() / energy[0]:.1e}"
    words = f"relative to the energy at t = 0, {energy[0]:.4g}. Energy from collisions is not counted as an error"
    assert f"{error} {words}" in said_by(kjko_here, "inspect", finished)
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    assert error.replace("-", "−") in page and words in page


def test_without_collisions_nothing_is_said_of_an_equilibrium(collisionless, kjko_here):
    """The columns are still measured, and kjko series shows them."""
    assert "kl" in read_series(collisionless / "series.h5")
    run = RunFiles.of(RunFolder(collisionless))
    found = {picture.name: picture for picture in figures.pictures_of(run)}
    assert "relative_entropy" not in found and "free_energy" not in found
    labels = [curve.label for panel in found["marginals"].panels for curve in panel.curves]
    assert labels and "equilibrium" not in labels
    for verb in (["inspect", collisionless], ["watch", collisionless, "--once"]):
        said = said_by(kjko_here, *verb)
        assert "equilibrium" not in said and "KL" not in said and "free energy" not in said, verb
    assert "from collisions" not in said_by(kjko_here, "inspect", collisionless)
    assert kjko_here("report", collisionless).returncode == 0
    page = (collisionless / "report.html").read_text()
    assert "KL to equilibrium" not in page and "method.held_out" not in page
    assert "without collisions f does not approach an equilibrium" in page
    assert kjko_here("plot", collisionless, "--column", "kl").returncode == 0  # an explicit request is still served
    tiles = report._tiles(run, {}, run.series)
    assert not [tile for tile in tiles if "equilibrium" in tile.label + tile.says]


def test_of_two_species_only_that_which_collides_approaches_an_equilibrium(tmp_path):
    path = tmp_path / "case.toml"
    strengths = "\n".join(f"[species.{name}]\ncollision_strength = {k}" for name, k in (("ions", 0.0), ("rest", 0.1)))
    path.write_text(f'[method]\ncollision = "jko"\n{strengths}\n')
    columns = {name: np.zeros(1) for name in ("mass", "kl", "ions_kl", "rest_kl", "ions_marginal_l1_v_1", "ions_mass")}
    assert list(summary.meaningful(columns, RunCase(path))) == ["mass", "kl", "rest_kl", "ions_mass"]


def test_snapshots_too_coarse_for_a_spectrum_name_output_every(finished, kjko_here):
    """First there are three snapshots in ten steps. Then there are many, at intervals longer than half a period."""
    assert "there are only 3: run with output.every = 1, and longer" in said_by(kjko_here, "inspect", finished)
    path = finished / "case.toml"
    text = re.sub("(?m)^end = .*", "end = 100.0", path.read_text())
    path.write_text(re.sub("(?m)^every = .*", "every = 20", text))
    said = said_by(kjko_here, "inspect", finished)
    assert "snapshots every 2 resolve frequencies below 1.3" in said and "output.every = 17 or less" in said
    case = RunCase(path)
    case.table["output"]["every"] = 17
    assert waves.sampling_remark(case, None) == ""


def test_theorys_line_lies_on_no_mean_of_a_wave_that_has_no_rate(finished):
    """The wave neither grows nor falls, but theory says that it falls. The line starts at the first value."""
    time = np.linspace(0, 20, 201)
    energy = 1e-4 * (1.5 + np.cos(1.3 * time)) ** 2
    columns = {"time": time, "field_energy": energy, "wave_energy": energy}
    theory = waves.WaveTheory(np.array([0.5]), "theory", rate=-0.2, frequency=1.3)
    found = rates.measured(columns, theory)
    assert found.why_not and found.expected == -0.2 and "damped, γ = −0.2000" in found.remark
    (line,) = waves._theory_curves(found, time, energy)
    assert line.y[0] == energy[0] and line.y[-1] == pytest.approx(energy[0] * np.exp(-8))
    assert "first value" in line.label
    grown = rates.measured({"time": time, "field_energy": np.exp(0.4 * time)}, theory)
    (line,) = waves._theory_curves(grown, time, np.exp(0.4 * time))
    middle = sum(grown.rate.window) / 2  # of the fit window
    assert line.label == "theory" and np.interp(middle, line.x, line.y) == pytest.approx(np.exp(0.4 * middle), rel=0.05)


def test_a_wave_in_the_noise_says_so(finished):
    time = np.linspace(0, 20, 201)
    energy = 1e-6 * (1.1 + np.cos(0.9 * time + np.sin(7 * time)))
    columns = {"time": time, "field_energy": energy, "wave_energy": energy}
    status = {"noise_floor": {"wave_energy": 1e-6}}
    assert "of the rows it is below 2 times the noise of the wave" in rates.measured(columns, None, status).text
    assert "noise of" not in rates.measured(columns, None, json.loads("{}")).text
    (said,) = (text for name, text in inspect_verb._wave(columns, None, status, None).items() if "rate" in name)
    assert re.search(r"control_variate = true\. A line through the whole series would have γ = ", said)
