"""``kjko report``: a page of one file, for whatever runs have left behind, and what a browser makes of it."""

import base64
import dataclasses
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, read_series, read_series_and_units
from hpc_kjko.files.wavetheory import WaveTheory, theory_attributes
from hpc_kjko.post import overview, report
from hpc_kjko.post.draw import typeset
from hpc_kjko.post.figures import energies, phase_space, planes
from hpc_kjko.post.figures.energies import energy_panel
from hpc_kjko.post.figures.phase_space import BRIGHT
from hpc_kjko.post.figures.runfiles import RunFiles, top_of
from hpc_kjko.post.figures.waves import field_spectrum
from hpc_kjko.post.interactive import html_of

#: Figures that need no snapshot.
OF_SERIES = {"field_energy", "energies", "free_energy", "relative_entropy", "seconds"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    installed = subprocess.run(["bash", ROOT / "scripts/install_chromium.sh"], text=True, capture_output=True)
    if installed.returncode != 0:
        pytest.skip(installed.stderr.strip().splitlines()[-1])
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def content_of(page: str) -> dict:
    """What the script of a page reads: its figures, and its runs."""
    packed = re.search(r'id="content">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def figures_of(page: str) -> list[str]:
    """The names of the figures of a page, in the order in which they stand on it."""
    names = re.findall(r'data-figure="([^"]*)"', page)
    assert set(names) == set(content_of(page)["figures"])
    return names


def shown(browser: Browser, path: Path, width: int, dark: bool = False) -> None:
    """Look at a page, which asks for nothing, complains of nothing and fits the window."""
    browser.show(path, width, dark)
    browser.until("document.body.classList.contains('drawn')")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == (int(re.search(r"\d+", background)[0]) < 128)
    names = [event["method"] for event in browser.events if "method" in event]
    assert "Network.requestWillBeSent" in names  # that of the page itself
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(names)


def test_a_report_is_one_file_with_all_that_a_finished_run_has(finished, kjko_here, browser, tmp_path):
    finished = finished.rename(tmp_path / "a <run>")
    result = kjko_here("report", finished)
    assert result.returncode == 0, result.stderr
    path = finished / "report.html"
    assert result.stdout.strip().replace("\n", "") == str(path)
    page = path.read_text()
    assert "a &lt;run&gt;" in page and "a <run>" not in page and len(page) < 1_500_000
    figures = figures_of(page)
    assert {"field_energy-0", "energies-0", "field-0", "density-0", "marginals-0", "seconds-0"} <= set(figures)
    assert figures.count("phase_space-0") == figures.count("cuts-0") == 1
    assert "Not on this page" not in page
    assert "noise of the wave: " in page
    assert "10 certified" in page and "as they must" in page and "kjko run small.toml" in page

    for width, dark in ((390, True), (1280, False)):
        shown(browser, path, width, dark)
        for name in figures:
            plot = f"document.querySelector('[data-figure={name}] .plot')"
            across, high = (f"{plot}.querySelector('.main-svg').client{size}" for size in ("Width", "Height"))
            assert browser.evaluate(f"{across} > 200 && {across} < {width} && {high} > 200"), name
            assert browser.evaluate(f"{plot}.querySelectorAll('.lines path, .hm image').length"), name

    plot = "document.querySelector('[data-figure=field_energy-0] .plot')"
    browser.hover(f"{plot}.querySelector('.nsewdrag')", 0.5)
    browser.until(f"{plot}.querySelector('.hoverlayer').textContent")
    energy = read_series(finished / "series.h5")["field_energy"][5]
    text = browser.evaluate(f"{plot}.querySelector('.hoverlayer').textContent")
    assert text.startswith("t = 0.5") and f"{energy:.5g}" in text
    button = "document.querySelector('[data-figure=field_energy-0] .log')"
    for scale in ("linear", "log"):
        browser.evaluate(f"{button}.click()")
        browser.until(f"{plot}.layout.yaxis.type === '{scale}'")
        assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == str(scale == "log").lower()


def test_a_logarithmic_scale_says_what_it_cannot_show(finished, kjko_here, browser):
    """KL is an average, so it may be negative near equilibrium. Its curve then has gaps, and a note tells how many."""
    columns, units = read_series_and_units(finished / "series.h5")
    columns["kl"] = np.array([1.0, 0.5, 0.2, -1e-3, 0.1, 0.05, 0.0, 0.01, 0.01, -2e-3, 0.01])
    SeriesWriter(finished / "series.h5", list(columns), units, columns).close()
    assert kjko_here("report", finished).returncode == 0
    note = "A logarithmic scale cannot show 3 of 11 values, which are zero or negative."
    assert "KL is an average over the particles" in (finished / "report.html").read_text()
    shown(browser, finished / "report.html", 1280)
    place = "document.querySelector('[data-figure=relative_entropy-0]')"
    assert note in browser.evaluate(f"{place}.querySelector('.note').textContent")
    values = f"Array.from({place}.querySelector('.plot').data[0].y, value => value.toFixed(3)).join()"
    assert browser.evaluate(values) == "1.000,0.500,0.200,NaN,0.100,0.050,NaN,0.010,0.010,NaN,0.010"
    browser.evaluate(f"{place}.querySelector('.log').click()")
    assert "0.200,-0.001,0.100" in browser.evaluate(values)
    assert kjko_here("report", finished.parent, "--out", finished.parent / "all.html").returncode == 0
    shown(browser, finished.parent / "all.html", 1280)
    browser.evaluate(
        "const c = document.getElementById('column'); c.value = 'kl'; c.dispatchEvent(new Event('change'))"
    )
    browser.until("Number.isNaN(document.getElementById('curves').data[0].y[3])")
    assert browser.evaluate("document.getElementById('hidden').textContent") == note


def test_the_slider_and_the_colours_of_phase_space(finished, kjko_here, browser, monkeypatch):
    monkeypatch.setattr(phase_space, "_outside", lambda plane: f"Outside at {plane.time:g}.")
    assert kjko_here("report", finished).returncode == 0
    shown(browser, finished / "report.html", 1280)
    place = "document.querySelector('[data-figure=phase_space-0]')"
    assert browser.evaluate(f"{place}.querySelector('output').textContent") == "t = 1"

    trace = f"{place}.querySelector('.plot').data[0]"
    slider = f"{place}.querySelector('input')"
    frames = list(phase_space.phase_space_frames(RunFiles.of(RunFolder(finished))))
    for number, frame in enumerate(frames):
        browser.evaluate(f"{slider}.value = {number}; {slider}.dispatchEvent(new Event('input'))")
        assert browser.evaluate(f"{place}.querySelector('output').textContent") == f"t = {frame.time:g}"
        assert browser.evaluate(f"{place}.querySelector('.note').textContent") == f"Outside at {frame.time:g}."
        largest = frame.panels[0].image.values.max()
        browser.until(f"Math.abs(Math.max(...{trace}.customdata.flat()) / {largest} - 1) < 1e-4")
    assert len(frames) == 3
    top = browser.evaluate(f"{trace}.zmax")
    browser.evaluate(f"{place}.querySelector('.log').click()")
    browser.until(f"Math.abs({trace}.zmax - Math.log10({top})) < 1e-6")
    browser.evaluate(f"{slider}.value = 0; {place}.querySelector('.play').click()")
    browser.until(
        f"{place}.querySelector('output').textContent === 't = 1' && {place}.querySelector('.play').textContent === '▶'"
    )
    # a curve over colours with a logarithmic scale has the scale of its axis
    browser.evaluate(
        "(async () => {"
        "  const figure = JSON.parse(await unpacked('content')).figures['phase_space-0'];"
        "  const data = [{...figure.data[0], log: true}, {type: 'scatter', x: [0, 1, 2], y: [1, 0, -1]}];"
        f"  await draw({place}, {{...figure, data, frames: undefined}});"
        "})()"
    )
    browser.until(f"{place}.querySelector('.plot').data.length === 2")
    assert browser.evaluate(f"{place}.querySelector('.plot').data[1].y.join()") == "1,0,-1"


def test_a_page_without_its_script_says_how_to_get_figures(finished, kjko_here, browser):
    assert kjko_here("report", finished).returncode == 0
    page = finished / "report.html"
    browser.show(page, 390, script=False)
    assert "kjko plot" in browser.evaluate("document.body.innerText")
    page.write_text(page.read_text().replace("window.DecompressionStream", "window.none"))
    browser.show(page, 390)
    assert "This browser is too old" in browser.evaluate("document.body.innerText")


def test_runs_are_compared_on_one_page(finished, kjko_here, browser, tmp_path):
    """Two finished runs with other collisions, one that has not begun, and one that cannot be read."""
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs / "strong")
    shutil.copytree(finished, runs / "weak")
    shutil.copytree(finished, runs / "new")
    case = (runs / "weak/case.toml").read_text()
    (runs / "weak/case.toml").write_text(re.sub("collision_strength = .*", "collision_strength = 0.005", case))
    (runs / "new/series.h5").unlink()
    (runs / "damaged").mkdir()
    (runs / "damaged/case.toml").write_text("[problem")
    assert kjko_here("report", runs / "strong").returncode == 0
    assert kjko_here("report", runs).stdout.strip().endswith("index.html")
    path = runs / "index.html"
    page = path.read_text()
    assert "which differ in physics.collision_strength</p>" in page and 'href="strong/report.html"' in page
    assert "new: it has not written a time series yet" in page and 'href="weak' not in page
    assert "damaged/case.toml: not a TOML file" in page
    assert not re.search(r"(kinetic|field)_energy", page)

    for width, dark in ((390, True), (1280, False)):
        shown(browser, path, width, dark)
        assert browser.evaluate("document.getElementById('curves').data.length") == 2
    values = "document.getElementById('values')"
    assert browser.evaluate(f"{values}.data[0].x.join()") == "0.005,0.1"
    assert browser.evaluate(f"{values}.layout.xaxis.type") == "log"  # the strengths differ by more than a decade
    browser.evaluate(
        "const c = document.getElementById('column'); c.value = 'kl'; c.dispatchEvent(new Event('change'))"
    )
    kl = read_series(finished / "series.h5")["kl"]
    browser.until(f"Math.abs(document.getElementById('curves').data[0].y[0] - {kl[0]}) < 1e-6 * {kl[0]}")
    browser.evaluate("document.querySelectorAll('.chosen')[1].click()")
    browser.until("document.getElementById('curves').data.length === 1")
    first = "document.querySelector('.runs tbody tr').innerText"
    assert browser.evaluate(first).strip().startswith("new")
    for _ in range(2):  # the larger number first, then the smaller
        browser.evaluate("document.querySelectorAll('[data-sort]')[1].click()")
    assert "0.1" in browser.evaluate(first)


def test_rates_of_several_runs_stand_beside_each_other_and_sort(finished, kjko_here, browser, tmp_path):
    """Two waves fall, one grows and one has no rate. Each has a theory. Numbers are sorted with their signs.

    The rates are also drawn against the key in which the cases differ, with their errors and those of theory.
    """
    columns, units = read_series_and_units(finished / "series.h5")
    time = np.linspace(0, 20, 201)
    for name, rate in (("slow", -0.05), ("fast", -0.2), ("growing", 0.1), ("none", 0.0)):
        shutil.copytree(finished, tmp_path / "runs" / name)
        grown = {key: np.resize(values, 201) for key, values in columns.items()} | {"time": time}
        grown |= dict.fromkeys(("field_energy", "wave_energy"), 10 * np.exp(2 * rate * time))
        theory = WaveTheory(np.array([0.5]), "theory", rate=1.1 * rate, frequency=1.5)
        attributes = theory_attributes(theory)
        SeriesWriter(tmp_path / "runs" / name / "series.h5", list(grown), units, grown, attributes).close()
        case = tmp_path / "runs" / name / "case.toml"
        strength = f"collision_strength = {0.5 + rate}"
        case.write_text(re.sub("collision_strength = .*", strength, case.read_text()))
    assert kjko_here("report", tmp_path / "runs").returncode == 0
    runs, _ = overview.runs_in([tmp_path / "runs"])
    drawn = {picture.name: picture for picture in overview.pictures(runs)}["rate_physics_collision_strength"]
    (panel,) = drawn.panels
    measured, theory = panel.curves
    assert measured.x == pytest.approx([0.3, 0.45, 0.6]) and measured.y == pytest.approx([-0.2, -0.05, 0.1])
    assert (measured.error > 0).all() and measured.look == "points" and theory.label == "theory"
    assert theory.x == pytest.approx([0.3, 0.45, 0.5, 0.6]) and theory.y == pytest.approx([-0.22, -0.055, 0, 0.11])
    assert panel.remark == "1 of 4 runs have no rate."
    # theory depends on the other key too: a panel for each of its values
    steps = [dataclasses.replace(run, keys=run.keys | {"time.step": 0.2}, name=f"{run.name}, coarse") for run in runs]
    steps = [dataclasses.replace(run, theory=dataclasses.replace(run.theory, rate=0.7)) for run in steps]
    drawn = {picture.name: picture for picture in overview.pictures([*runs, *steps])}
    fine, coarse = drawn["rate_physics_collision_strength"].panels
    assert (fine.title, coarse.title) == (overview.verbatim("step = 0.1"), overview.verbatim("step = 0.2"))
    assert [curve.label for curve in fine.curves] == ["measured", "theory"]
    assert set(coarse.curves[1].y) == {0.7} and fine.remark == "2 of 8 runs have no rate." and not coarse.remark
    page = (tmp_path / "runs/index.html").read_text()
    row = re.search(r"<i></i>fast<.*?</tr>", page, re.DOTALL)[0]
    assert "−0.2 <small>±" in row and "−0.22<" in row and "1.5<" in row and "KL to equilibrium" in page
    differs = "γ differs from theory by more than 100 standard errors"
    refused = "its amplitude changes only by a factor"
    assert f'title="{differs}"' in row and re.search(rf"<p class=.note.>\[\d\] {differs}", page)
    row = re.search(r"<i></i>none<.*?</tr>", page, re.DOTALL)[0]
    assert re.search(rf'title="no rate of growth or damping: {refused}[^"]*"> <small>none</small> <small>\[\d\]', row)
    assert re.search(rf"<p class=.note.>\[\d\] no rate of growth or damping: {refused}", page)
    shown(browser, tmp_path / "runs/index.html", 1280)
    rates = "document.querySelector('[data-figure=rate_physics_collision_strength-0] .plot').data"
    assert browser.evaluate(f"{rates}.map(trace => trace.x.length).join()") == "3,4"
    assert browser.evaluate(f"{rates}[0].error_y.array.length") == 3
    heading = "[...document.querySelectorAll('[data-sort]')].find(one => one.innerText.startsWith('γ of theory'))"
    browser.evaluate(f"{heading}.click()")
    names = "[...document.querySelectorAll('.runs tbody tr')].map(row => row.cells[1].innerText.trim()).join()"
    assert browser.evaluate(names) == "fast,slow,none,growing"


def test_a_first_step_does_not_rule_the_scale_of_the_wall_clock(finished, kjko_here):
    """This holds for the page of several runs too. A note tells the time of the first step."""
    columns, units = read_series_and_units(finished / "series.h5")
    columns["seconds"] = np.array([0.0, 5.0] + [0.1] * 9)
    SeriesWriter(finished / "series.h5", list(columns), units, columns).close()
    (picture,) = energies.seconds(RunFiles.of(RunFolder(finished)))
    panel = picture.panels[0]
    assert panel.y.limits[1] == pytest.approx(0.105) and "The first step, with 5 s, is beyond the scale" in panel.note
    late = RunFiles.of(RunFolder(finished), (columns["time"][2], np.inf))
    late.series["seconds"][1] = 5.0  # a slow step is not the first one
    (picture,) = energies.seconds(late)
    assert not picture.panels[0].note
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    assert re.search("the first step.*5 s", page) and re.search("later step, fastest and slowest.*0.1 s, 0.1 s", page)
    shutil.copytree(finished, finished.parent / "runs/first")
    assert kjko_here("report", finished.parent / "runs").returncode == 0
    found = content_of((finished.parent / "runs/index.html").read_text())["columns"]
    assert found["seconds"]["top"] == pytest.approx(0.105) and found["kl"]["top"] is None


def test_phase_space_that_is_shown_twice_says_how_each_was_found(a_run):
    """f comes from log f at a few times, and from a histogram at more times."""
    run = RunFiles.of(RunFolder(a_run))
    by_log_f, _ = phase_space.phase_space(run)
    frames = phase_space._frames(planes.binned(run, [0, 5, 10], None), None, log=False)
    assert by_log_f.title == "Phase space, from the particles' log f"
    assert {frame.title for frame in frames} == {"Phase space, a histogram of the particles"}


def test_a_report_of_what_is_there_says_what_is_missing(finished, kjko_here):
    """No snapshots, then no log f and no field, then a failure before the first row."""
    for path in (finished / "snapshots").iterdir():
        path.unlink()
    series = finished / "series.h5"
    (finished / "run.json").write_text(json.dumps({"status": "failed", "software": "hpc_kjko", "version": "9"}))
    out = finished.parent / "elsewhere.html"
    assert kjko_here("report", finished, "--out", out).returncode == 0
    page = out.read_text()
    assert {name.split("-")[0] for name in figures_of(page)} == OF_SERIES
    assert "The run ended with an error" in page and not (finished / "report.html").exists()
    assert "Phase space: no snapshot has" in page and "run.json does not say command, git revision" in page
    series.unlink()
    (finished / "log.txt").write_text("2026-11-29 ERROR step 1: <no> longer finite\n")
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    assert not figures_of(page) and "has not written a row yet" in page and "0 of 10" in page
    assert "The run ended with an error: step 1: &lt;no&gt; longer finite" in page


def test_a_report_of_a_run_without_log_f_and_field(finished, kjko_here):
    columns = read_series(finished / "series.h5")
    kept = {name: columns[name] for name in columns if not re.search("entropy|free_energy|kl|certificate|diss", name)}
    kept |= {"field_energy": np.zeros(11), "seconds": np.full(11, 0.2), "seconds_collide": np.full(11, 0.05)}
    SeriesWriter(finished / "series.h5", list(kept), dict.fromkeys(kept, "1"), kept).close()
    shutil.rmtree(finished / "snapshots")
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    for sentence in (
        "Relative entropy: this figure needs",
        "Field energy: the run has no",
        "Certificates: the run kept no",
    ):
        assert sentence in page
    assert figures_of(page) == ["energies-0", "seconds-0"]
    assert "0.2 s, 0.2 s" in page  # the fastest and the slowest step


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        (["RUN", "--out", "no/such/folder.html"], "cannot write no/such/folder.html"),
        (["RUN", "nowhere"], "nowhere: not a run folder"),
        (["RUN", "nowhere", "--out", "page.html"], "nowhere: not a run folder"),
    ],
)
def test_mistakes(arguments, says, finished, kjko_here):
    result = kjko_here("report", *(finished if word == "RUN" else word for word in arguments))
    assert result.returncode == 2 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_the_page_of_two_runs_needs_no_name(finished, kjko_here):
    other = shutil.copytree(finished, finished.parent / "other")
    result = kjko_here("report", finished, other)
    assert result.returncode == 0 and result.stdout.strip() == str(finished / "comparison.html")
    page = (finished / "comparison.html").read_text()
    assert "other" in page and not (finished / "report.html").exists() and not (finished / "index.html").exists()
    wall_clock = json.loads((finished / "run.json").read_text())["seconds"]
    assert "wall clock, s" in page and f"{sum(wall_clock.values()):.4g}" in page


def test_nothing_is_read_for_a_page_that_cannot_be_written(finished, kjko_here, monkeypatch):
    monkeypatch.setattr(report, "RunCase", lambda path: pytest.fail("it looks at the run"))
    result = kjko_here("report", finished, "--out", "none/page.html")
    assert result.returncode == 2 and "there is no folder none: create it first" in result.stderr
    assert "it is a folder" in kjko_here("report", finished, "--out", finished).stderr


def test_without_matplotlib_phase_space_is_a_histogram(finished, kjko_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert kjko_here("report", finished).returncode == 0
    figures = figures_of((finished / "report.html").read_text())
    assert "phase_space-0" in figures and "cuts-0" not in figures


def test_the_strength_of_coulomb_collisions_is_called_c(finished, kjko_here):
    path = finished / "case.toml"
    path.write_text(re.sub("collision_operator = .*", 'collision_operator = "landau"', path.read_text()))
    assert kjko_here("report", finished).returncode == 0
    page = (finished / "report.html").read_text()
    assert "C = 0.1, landau operator" in page and "κ" not in re.sub("<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "C = 0.1" in kjko_here("inspect", finished).stdout


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


@pytest.mark.parametrize("typed", [html_of, typeset])
def test_numbers_have_minus_signs_and_names_have_hyphens(typed):
    assert typed("from -23.09 to 2e-05") == "from −23.09 to 2e−05"
    assert typed("x = -.5, run-2 of 2026-11-29") == "x = −.5, run-2 of 2026-11-29"


def test_one_noisy_bin_does_not_rule_the_colours_of_phase_space(a_run):
    snapshot = read_snapshot(a_run / "snapshots", 10, slice(None))
    values = snapshot.histograms[0].values
    before = top_of([values], BRIGHT)
    values[0, 0] = 1000 * values.max()
    assert 0 < top_of([values], BRIGHT) < 2 * before
