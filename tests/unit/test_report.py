"""``kjko report``: a page of one file, for whatever a run has left behind, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.post.figures.distributions import BRIGHT
from hpc_kjko.post.figures.energies import energy_panel
from hpc_kjko.post.figures.runfiles import top_of
from hpc_kjko.post.figures.waves import field_spectrum

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    installed = subprocess.run(["bash", ROOT / "scripts/install_chromium.sh"], text=True, capture_output=True)
    if installed.returncode != 0:
        pytest.skip(installed.stderr.strip().splitlines()[-1])
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def figures_of(page: str) -> list[str]:
    return re.findall(r'<img[^>]*src="data:image/png;base64,[^"]{1000,}" alt="([^"]*)"', page)


def test_a_report_is_one_file_with_all_that_a_finished_run_has(finished, kjko_here, browser, tmp_path):
    finished = finished.rename(tmp_path / "a <run>")
    result = kjko_here("report", finished)
    assert result.returncode == 0, result.stderr
    path = finished / "report.html"
    assert result.stdout.strip().replace("\n", "") == str(path)
    page = path.read_text()
    assert "a &lt;run&gt;" in page and "a <run>" not in page
    figures = figures_of(page)
    assert len(figures) == 9 + 2  # three times of phase space
    assert "Phase space at t = 0.5" in figures and "Field energy by wavenumber, at several times" in figures
    assert "Not on this page" not in page
    assert "10 certified" in page and "kjko run small.toml" in page

    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.show(path, width, dark)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
        browser.screenshot(tmp_path / "page.png")
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == (int(re.search(r"\d+", background)[0]) < 128)
        names = [event["method"] for event in browser.events if "method" in event]
        assert "Network.requestWillBeSent" in names  # that of the page itself
        asked = [
            e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
        ]
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(names)
    browser.evaluate("const s = document.getElementById('when'); s.value = 0; s.dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.querySelector('#frames img.shown').alt") == "Phase space at t = 0"
    assert browser.evaluate("document.getElementById('at').textContent") == "t = 0"


def test_a_report_of_what_is_there_says_what_is_missing(finished, kjko_here):
    """No snapshots, then no log f and no field, then a failure before the first row."""
    for path in (finished / "snapshots").iterdir():
        path.unlink()
    series = finished / "series.h5"
    (finished / "run.json").write_text(json.dumps({"status": "failed", "software": "hpc_kjko", "version": "9"}))
    out = finished.parent / "elsewhere.html"
    assert kjko_here("report", finished, "--out", out).returncode == 0
    page = out.read_text()
    assert len(figures_of(page)) == 5 and "failed" in page and not (finished / "report.html").exists()
    assert "Phase space: no snapshot has" in page and "run.json does not say command, git revision" in page
    series.unlink()
    (finished / "log.txt").write_text("ERROR step 1: <no> longer finite\n")
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    assert not figures_of(page) and "has not written a row of it yet" in page and "0 of 10" in page
    assert "&lt;no&gt; longer finite" in page


def test_a_report_of_a_run_without_log_f_and_field(finished, kjko_here):
    columns = read_series(finished / "series.h5")
    kept = {name: columns[name] for name in columns if not re.search("entropy|free_energy|kl|certificate|diss", name)}
    kept |= {"field_energy": np.zeros(11), "seconds": np.full(11, 0.2), "seconds_collide": np.full(11, 0.05)}
    SeriesWriter(finished / "series.h5", list(kept), dict.fromkeys(kept, "1"), kept).close()
    shutil.rmtree(finished / "snapshots")
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    for sentence in ("Relative entropy: it needs", "Field energy: the run has no", "Certificates: the run held no"):
        assert sentence in page
    assert figures_of(page) == ["Energies against time", "Seconds of each step"]
    assert re.search(r"collide<.*0\.55<.*25\.0 %", page)
    assert "collide 0.55 s (25 %)" in kjko_here("watch", finished, "--once").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        (["RUN", "--out", "no/such/folder.html"], "cannot write no/such/folder.html"),
    ],
)
def test_mistakes(arguments, says, finished, kjko_here):
    result = kjko_here("report", *(finished if word == "RUN" else word for word in arguments))
    assert result.returncode == 2 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_the_spectrum_adds_up_to_the_field_energy(a_run):
    snapshot = read_snapshot(a_run / "snapshots", 5)
    wavenumber, energy = field_spectrum(snapshot.electric, (31.4159265,))
    assert energy.sum() == pytest.approx(read_series(a_run / "series.h5")["field_energy"][5], rel=1e-12)
    x, y = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in (8, 12)), indexing="ij")
    wave = np.stack([np.cos(x + 3 * y), 0 * x], axis=-1)  # in a box of 2π × 4π
    wavenumber, energy = field_spectrum(wave, (2 * np.pi, 4 * np.pi))
    shell = round(np.hypot(1, 1.5) / 0.5)
    assert energy[shell - 1] == pytest.approx(0.5 * 8 * np.pi**2 * 0.5)
    assert wavenumber[shell - 1] == pytest.approx(0.5 * shell)


def test_a_small_wave_shows_beside_a_plasmas_thermal_energy():
    time = np.linspace(0, 1, 5)
    series = {"time": time, "kinetic_energy": 21 - 0.05 * time, "field_energy": 0.05 * time}
    curves = energy_panel(series | {"potential_energy": 0 * time}, "").curves
    assert np.ptp([curve.y for curve in curves]) < 0.2 and curves[0].label == "kinetic, from 21"


def test_one_noisy_bin_does_not_rule_the_colours_of_phase_space(a_run):
    snapshot = read_snapshot(a_run / "snapshots", 10, slice(None))
    values = snapshot.histograms[0].values
    before = top_of([values], BRIGHT)
    values[0, 0] = 1000 * values.max()
    assert 0 < top_of([values], BRIGHT) < 2 * before
