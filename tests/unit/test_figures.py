"""Figures as data, and as matplotlib draws them: what they show of runs whose f and E are known."""

import dataclasses
import shutil
from types import SimpleNamespace

import h5py
import matplotlib.colors
import numpy as np
import pytest
import torch
from conftest import SMALL_CASE
from PIL import Image as Bitmap

from hpc_kjko.errors import UserError
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, read_series_and_units
from hpc_kjko.files.wavetheory import Branch, WaveTheory
from hpc_kjko.post import draw, figures, plotting
from hpc_kjko.post.figures import energies, marginals, noise, phase_space, planes, space, waves
from hpc_kjko.post.figures.names import axis_of
from hpc_kjko.post.figures.runfiles import RunFiles, edges_of, top_of
from hpc_kjko.post.interactive import axis_layout, figure
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture


def run_of(path) -> RunFiles:
    return RunFiles.of(RunFolder(path))


def test_every_figure_has_its_units_and_no_raw_names(a_run):
    found = {picture.name: picture for picture in figures.pictures_of(run_of(a_run))}
    assert {"field_energy", "energies", "free_energy", "relative_entropy", "field", "density", "potential"} < {*found}
    assert {"marginals", "phase_space", "seconds"} < {*found}
    columns = read_series_and_units(a_run / "series.h5")[0]
    raw = [name for name in columns if "_" in name]
    for picture in found.values():
        assert picture.title and picture.text and picture.panels
        for panel in picture.panels:
            labels = [panel.x.label, panel.y.label, panel.title, *(curve.label for curve in panel.curves)]
            assert not [name for name in raw if any(name in label for label in labels)]
            assert panel.x.unit or panel.x.label in ("step",)
            for curve in panel.curves:
                assert len(curve.x) == len(curve.y)
            if panel.image:
                shape = len(panel.image.x_edges) - 1, len(panel.image.y_edges) - 1
                assert panel.image.values.shape == shape and panel.image.limits[0] < panel.image.limits[1]


def test_columns_are_called_by_words(a_run):
    columns, units = read_series_and_units(a_run / "series.h5")
    for name in columns:
        axis = axis_of(name, units[name])
        assert "_" not in axis.label.replace("v_1", "").replace("x_1", "").replace("E_1", ""), name
    ions = axis_of("ions_kinetic_energy", "n̄ m v_th³/ω_p", ["electrons", "ions"])
    assert ions.label.startswith("ions: kinetic energy") and ions.unit == "n̄ m v_th³/ω_p"
    assert axis_of("kl", "1").log and not axis_of("mass", "1").log


@pytest.mark.parametrize("seed", [0, 1])
def test_f_from_log_f_is_that_of_a_gaussian_where_a_histogram_is_noise(seed):
    """4096 particles in a periodic box, and f with a wave: within 2 % of its largest value, everywhere."""
    random = np.random.default_rng(seed)
    x, v = random.uniform(0, 10, 4096), random.normal(size=4096)
    x_edges, v_edges = np.linspace(0, 10, 65), np.linspace(-3, 3, 65)

    def log_f(x, v):
        return np.log1p(0.3 * np.cos(2 * np.pi * x / 10)) - 0.5 * v**2 - 0.5 * np.log(2 * np.pi)

    found = planes.f_from_log_f(x, v, log_f(x, v), x_edges, v_edges, "period")
    centres = np.meshgrid(0.5 * (x_edges[1:] + x_edges[:-1]), 0.5 * (v_edges[1:] + v_edges[:-1]), indexing="ij")
    wanted = np.exp(log_f(*centres))
    inside = found > 0
    assert inside[:, 8:-8].all()  # also at both ends of the box
    assert np.abs(found - wanted)[inside].max() < 0.02 * wanted.max()
    histogram = np.histogram2d(x, v, [x_edges, v_edges])[0]
    assert np.abs(histogram / histogram.max() - wanted / wanted.max()).max() > 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_f_reaches_as_far_at_the_edges_of_a_box_as_inside(seed):
    """Also in the tails, where particles are so few that a strip of the next period does not have enough of them."""
    random = np.random.default_rng(seed)
    x, v = random.uniform(0, 10, 8192), random.normal(size=8192)
    edges = np.linspace(0, 10, 65), np.linspace(-4.5, 4.5, 193)
    reach = (planes.f_from_log_f(x, v, -0.5 * v**2, *edges, "period") > 0).sum(axis=1)
    assert reach[[0, -1]].tolist() == pytest.approx([np.median(reach)] * 2, abs=1)


def test_f_reaches_up_to_walls_with_its_image():
    """f(x, v) with f(−x, −v) beyond: also where the particles nearest to the wall are slow."""
    random = np.random.default_rng(0)
    x, v = random.uniform(0, 10, 4096), random.normal(1.0, 1.0, size=4096)
    edges = np.linspace(0, 10, 65), np.linspace(-2, 2, 33)
    log_f = -0.5 * (v - np.tanh(x)) ** 2
    found = planes.f_from_log_f(x, v, log_f, *edges, "walls")
    assert (found[[0, -1]] > 0).all() and (planes.f_from_log_f(x, v, log_f, *edges, "nothing")[0] == 0).any()
    centres = 0.5 * (edges[1][1:] + edges[1][:-1])
    assert found[0] == pytest.approx(np.exp(-0.5 * (centres - np.tanh(10 / 128)) ** 2), abs=0.1)


def test_some_of_the_particles_of_a_quiet_start_are_from_all_of_phase_space(a_run, monkeypatch):
    """Every second, fourth … point of a Sobol sequence is in one half of it."""
    for most in (1600, 800, 400):
        monkeypatch.setattr(planes, "MOST_PARTICLES", most)
        first = planes.interpolated(run_of(a_run), [0], None)[0]
        quarters = [
            first.values[half, part] for half in (slice(96), slice(96, None)) for part in (slice(96), slice(96, None))
        ]
        assert all(np.mean(quarter > 0) > 0.5 for quarter in quarters), most


def test_cuts_without_a_box_are_where_particles_are():
    x = np.linspace(-5, 5, 101)
    values = np.exp(-0.5 * (0.5 * (x[1:] + x[:-1]) - 1) ** 2 / 0.25)[:, None] * np.ones((1, 8))
    plane = planes.Plane(0.0, values, x, np.linspace(-3, 3, 9), Axis("x"), Axis("v"), "f")
    places = phase_space._places_of_cuts(SimpleNamespace(lengths=()), [plane])
    assert places == pytest.approx([1 + 0.5 * z for z in (-1.150, -0.319, 0.319, 1.150)], abs=0.02)
    boxed = phase_space._places_of_cuts(SimpleNamespace(lengths=(10.0,)), [plane])
    assert boxed == pytest.approx([-5, -2.5, 0, 2.5])


def test_phase_space_of_a_run_is_that_of_its_particles(a_run):
    """Also cuts, planes, and what differs from another run: here from itself, nothing."""
    run = run_of(a_run)
    picture, cuts = phase_space.phase_space(run, places=[5.0])
    assert "log f" in picture.title and picture.shared and len(picture.panels) == 3
    last = picture.panels[-1].image
    snapshot = read_snapshot(a_run / "snapshots", 10, slice(None))
    mass = (last.values * np.diff(last.x_edges)[:, None] * np.diff(last.y_edges)).sum()
    assert mass == pytest.approx(31.4159265, rel=0.05)
    i = np.searchsorted(last.x_edges, snapshot.position[:, 0]) - 1
    j = np.searchsorted(last.y_edges, snapshot.velocity[:, 0]) - 1
    near = last.values[np.clip(i, 0, 191), np.clip(j, 0, 191)]
    assert np.median(np.abs(np.log(near[near > 0]) - snapshot.log_f[near > 0])) < 0.05
    assert cuts.panels[0].title == "at x = 5 v_th/ω_p" and len(cuts.panels[0].curves) == 3
    (difference,) = phase_space.difference(run, run)
    assert all(panel.image.signed and not panel.image.values.any() for panel in difference.panels)
    (plane,) = phase_space.plane(run, ("vx", "x"))
    image = plane.panels[0].image
    assert plane.panels[0].x.label == "v"
    total = (image.values * np.diff(image.x_edges)[:, None] * np.diff(image.y_edges)).sum()
    assert total == pytest.approx(31.4159265, rel=0.05) and "log f" in plane.title


def test_the_field_and_its_wave_have_their_own_noise(a_run):
    (picture,) = waves.field_energy(run_of(a_run))
    curves = picture.panels[0].curves
    assert [curve.label for curve in curves[:4]] == [
        *("whole field", "noise of the whole field", "the wave", "noise of the wave")
    ]
    assert [curve.look for curve in curves[:4]] == ["line", "noise", "line", "noise"]
    assert (curves[1].y[1:] > 2 * curves[3].y[1:]).all()  # the noise of all waves is larger than that of one


def test_directions_of_one_temperature_are_one_curve_and_constant_energies_are_called_so():
    time, hot = np.linspace(0, 1, 3), np.array([2.0, 1.8, 1.6])
    columns = {f"ions_temperature_{axis}": np.full(3, 0.5) for axis in (1, 2, 3)}
    columns |= {f"electrons_temperature_{axis}": values for axis, values in ((1, hot), (2, hot / 2), (3, hot / 2))}
    (picture,) = energies.temperatures(SimpleNamespace(series={"time": time, **columns}))
    found = {curve.label: curve.y for curve in picture.panels[0].curves}
    assert [*found] == ["ions", "electrons, v_1", "electrons, v_2", "electrons, v_3"]
    assert np.array_equal(found["electrons, v_1"], hot) and picture.panels[0].y.unit == "m v_th²"
    assert not [*energies.temperatures(SimpleNamespace(series={"time": time, "temperature_1": hot}))]

    series = {"time": time, "kinetic_energy": 20 + 1e-12 * time, "field_energy": 0 * time, "potential_energy": 0 * time}
    assert "rounding errors" in energies.energy_panel(series, "").note
    assert not energies.energy_panel(series | {"field_energy": 1e-3 * time}, "").note


def test_a_legend_covers_no_curve_and_equal_curves_are_all_seen():
    x = np.linspace(0, 1, 5)
    curves = (*(Curve(x, x, f"t = {time}") for time in range(3)), Curve(x, x, "theory", "reference"))
    picture = Picture("a", "a", "a", (Panel(Axis("x"), Axis("y"), curves=curves),))
    drawn = draw.figure_of(picture)
    drawn.draw_without_rendering()
    (axes,), (legend,) = drawn.axes, drawn.legends
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    wide = [line.get_linewidth() for line in axes.lines]
    assert wide == sorted(wide, reverse=True) and len({*wide}) == 4
    on_page = [trace["line"]["width"] for trace in figure([picture], 0)["data"]]
    assert on_page == sorted(on_page, reverse=True) and len({*on_page}) == 4


def test_single_small_values_do_not_stretch_an_axis_of_energies():
    """A first row without noise and sharp minima do not count. A wave that grows by twelve decades does."""
    time = np.linspace(0, 15, 16)
    random = np.random.default_rng(0)
    modes = [1e-6 * random.uniform(0.5, 2.0, 16) for _ in range(3)]
    for mode in modes:
        mode[0] = 1e-21
    standing = 1e-2 * np.sin(np.pi * time / 5) ** 2  # almost nothing in every fifth row
    low, high = waves.energy_limits([standing, *modes])
    assert 1e-7 < low < 1e-6 and 1e-2 < high < 2e-2
    low, high = waves.energy_limits([np.geomspace(1e-12, 1.0, 200)])
    assert low < 4e-12 and high == 2.0
    assert waves.energy_limits([np.zeros(4), np.full(4, np.nan)]) is None


def test_the_spectrum_of_a_wave_is_at_its_wavenumber_and_frequency(a_run):
    length, time = 4 * np.pi, np.arange(0, 60, 0.25)
    x = (np.arange(32) + 0.5) * length / 32
    electric = np.cos(1.0 * x - 1.4 * time[:, None])  # the second mode of the box
    history = waves.FieldHistory(time, electric, length, np.empty(0), np.empty((0, 0)))
    ones = np.ones(3)
    theory = WaveTheory(
        np.array([1.0]), branches=(Branch("theory", np.array([0.5, 1.0, 1.5]), 1.4 * ones, -0.1 * ones),)
    )
    case = run_of(a_run).case
    panel, why = waves._spectrum(history, theory, case)
    assert not why and panel.curves[0].look == "reference"
    i, j = np.unravel_index(panel.image.values.argmax(), panel.image.values.shape)
    assert panel.image.x_edges[i] < 1.0 < panel.image.x_edges[i + 1]
    assert panel.image.y_edges[j] < 1.4 < panel.image.y_edges[j + 1]
    still = WaveTheory(np.array([1.0]), branches=(Branch("still", np.array([0.5, 1.0]), 0 * ones[:2], ones[:2]),))
    panel, _ = waves._spectrum(history, still, case)
    assert panel.y.limits[0] < -0.01  # a line of waves that only grow is inside, not on the edge
    panel, why = waves._spectrum(waves.FieldHistory(time[:9], electric[:9], length, ones, ones), theory, case)
    assert panel is None and "24 times or more, but there are only 9: run with output.every = " in why
    panel, why = waves._spectrum(waves.FieldHistory(10 * time, electric, length, ones, ones), theory, case)
    assert panel is None and "every 2.5 resolve frequencies below 1, but waves of this box have up to 1.5" in why


def test_three_dimensions_have_projections_and_two_have_images(alone, tmp_path):
    """The mean over a direction of a density that does not depend on it is the density."""
    cells = (8, 6, 4)
    x = (np.arange(8) + 0.5) / 8
    density = 1 + 0.1 * np.cos(2 * np.pi * x)[:, None, None] * np.ones(cells)
    field = np.stack([density, 0 * density, 0 * density], axis=-1)
    snapshot = SimpleNamespace(
        density=density, potential=density, electric=field, spacing=np.array([1.0, 2.0, 3.0]), time=2.0
    )
    quantities = space._quantities([snapshot], None)
    assert [name for name, *_ in quantities] == ["density", "potential", "electric_field"]
    picture = space._projections([snapshot], quantities[0])
    assert [panel.title for panel in picture.panels] == ["mean over x_3", "mean over x_2", "slice at x_3 = 7.5"]
    assert np.allclose(picture.panels[0].image.values, density[:, :, 0] - 1)
    assert picture.panels[1].y.label == "x_3" and picture.panels[1].image.y_edges[-1] == 12
    assert picture.panels[0].image.limits[1] == pytest.approx(0.1, rel=0.1) and picture.panels[0].image.signed


def test_colours_are_for_most_of_the_values():
    values = np.ones((50, 50))
    values[0, 0] = 1e6
    assert top_of([values], phase_space.BRIGHT) == 1
    assert space._largest([values]) == 1
    assert edges_of(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]


def plane_of(f, particles=0, seed=0):
    """f(v) at every x of a plane, or a histogram of so many particles of it."""
    x, v = np.linspace(0, 10, 65), np.linspace(-8, 8, 129)
    values = np.ones((64, 1)) * f(0.5 * (v[1:] + v[:-1]))
    cell, one = (x[1] - x[0]) * (v[1] - v[0]), 0.0
    if particles:
        one = 10 / particles / cell
        values = one * np.random.default_rng(seed).poisson(values / one)
    return planes.Plane(0.0, values, x, v, Axis("x"), Axis("v"), "f", one=one)


def maxwellian(density, velocity, speed):
    return lambda v: density / np.sqrt(2 * np.pi) / speed * np.exp(-0.5 * ((v - velocity) / speed) ** 2)


@pytest.mark.parametrize("particles", [0, 4096, 65536])
def test_a_bump_in_the_dark_makes_the_scale_logarithmic(particles):
    """One of 8 % does, and a plateau; a Maxwellian, two beams and particles' noise do not."""
    bulk, bump = maxwellian(0.92, 0, 1), maxwellian(0.08, 5, 0.5)
    beams = maxwellian(0.5, 2.4, 1), maxwellian(0.5, -2.4, 1)
    shown = {
        "maxwellian": maxwellian(1, 0, 1),
        "cold": maxwellian(1, 0, 0.3),
        "beams": lambda v: beams[0](v) + beams[1](v),
    }
    hidden = {"bump": lambda v: bulk(v) + bump(v), "left": lambda v: bulk(v) + bump(-v)}
    if particles != 4096:
        hidden["plateau"] = lambda v: bulk(v) + 0.015 * ((v > 3) & (v < 6))
    for name, f in (shown | hidden).items():
        assert phase_space.hides_a_bump(plane_of(f, particles)) == (name in hidden), name


@pytest.mark.parametrize("place", [0.0, 2.0, 5.0])
def test_a_bunch_has_the_same_scale_anywhere_in_a_box(place):
    plane = plane_of(maxwellian(1, 0, 1))
    x = 0.5 * (plane.x_edges[1:] + plane.x_edges[:-1])
    bunch = np.exp(2 * np.cos(2 * np.pi * (x - place) / 10))[:, None]
    assert not phase_space.hides_a_bump(dataclasses.replace(plane, values=bunch * plane.values))


def test_phase_space_and_its_cuts_have_the_same_scale(a_run, monkeypatch):
    run = run_of(a_run)
    picture, cuts = phase_space.phase_space(run)
    assert not picture.panels[0].image.log and not cuts.panels[0].y.log
    monkeypatch.setattr(phase_space, "hides_a_bump", lambda plane: plane.time > 0)
    picture, cuts = phase_space.phase_space(run)
    assert all(panel.image.log for panel in picture.panels) and all(panel.y.log for panel in cuts.panels)
    assert all(frame.panels[0].image.log for frame in phase_space.phase_space_frames(run))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("has_walls", [False, True])
def test_waves_of_the_density_stand_out_of_the_noise_of_its_particles(order, has_walls):
    """A wave of 20 % is found as it is, noise alone leaves a wave in few, and the noise is as large as it is said."""
    grid = Grid((128,), (2.0,), order) if has_walls else Grid((64,), (1.0,), order)
    random, count = np.random.default_rng(order), 8192
    k = np.pi if has_walls else 2 * np.pi
    centres = (np.arange(64) + 0.5) / 64

    def waves_of(amplitude):
        x = random.uniform(size=4 * count)
        x = x[random.uniform(size=len(x)) < (1 + amplitude * np.cos(k * x)) / (1 + amplitude)][:count]
        if has_walls:  # on the torus with images
            x = np.concatenate([x, 2 - x])
        weights = torch.full((1, len(x)), 1 / count, dtype=torch.float64)
        density = np.asarray(grid.deposit(torch.from_numpy(x[:, None]), weights)[0])[:64]
        smooth, spread = noise.waves_above_noise(density - 1, order, count, has_walls)
        wanted = amplitude * np.cos(k * centres)
        return smooth - wanted, spread, np.std(density - 1 - wanted)

    change, spread, measured = waves_of(0.2)
    assert np.std(change) < 0.7 * spread and measured == pytest.approx(spread, rel=0.4)
    assert sum(bool(np.ptp(waves_of(0.0)[0]) > 1e-9) for _ in range(30)) < 14  # of 6 that are expected
    quiet = 0.005 * np.cos(k * centres)
    assert noise.waves_above_noise(quiet, order, count, has_walls)[0] == pytest.approx(quiet, abs=1e-9)


def test_the_marginal_of_v_has_the_noise_of_its_particles_removed(a_run):
    """A Maxwellian of 32768 particles: the modes that are kept are within a third of the histogram's error."""
    values = np.random.default_rng(0).normal(size=32768)
    found, edges = np.histogram(values, 160, (-7, 7))
    wanted = maxwellian(1, 0, 1)(0.5 * (edges[1:] + edges[:-1])) * 14
    raw = found * 160 / 32768
    smooth, spread = noise.waves_above_noise(raw - 1, 0, 32768, False)
    assert np.std(1 + smooth - wanted) < 0.35 * np.std(raw - wanted) and np.std(raw - wanted) == pytest.approx(
        spread, rel=0.2
    )
    (picture,) = marginals.marginals(run_of(a_run))
    (panel,) = [panel for panel in picture.panels if panel.x.label == "v"]
    line = panel.curves[-2]  # the last time; then the equilibrium
    assert np.abs(np.diff(line.y, 2)).sum() < 0.3 * np.abs(np.diff(line.raw, 2)).sum() and "Fourier modes" in panel.note


@pytest.mark.parametrize("values", [(0.01, 1.0), (0.05, 0.25), (0.9, 2.1), (1e-4, 1.2e-4), (1e-3, 2.0)])
@pytest.mark.parametrize("panels", [1, 6])
def test_numbers_of_logarithmic_axes_do_not_touch(values, panels):
    """There are at least two on each axis, whatever it spans and however large the figure is."""
    ends = np.array(values)
    panel = Panel(Axis("x", log=True), Axis("y", log=True), curves=(Curve(ends, ends, "", "points"),))
    figure = draw.figure_of(Picture("name", "Title", "", (panel,) * panels))
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis, along in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            boxes = []
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if tick.label1.get_text() and low <= tick.get_loc() <= high:
                    box = tick.label1.get_window_extent()
                    boxes.append((box.min[along], box.max[along]))
            boxes.sort()
            assert len(boxes) >= 2
            assert all(one[1] < other[0] for one, other in zip(boxes[:-1], boxes[1:], strict=True))


@pytest.mark.parametrize("panels", [1, 2, 3, 4, 5, 7])
def test_panels_leave_no_empty_place(panels):
    """A last row that is not full is in the middle; each of its panels and of those above has numbers on its axis."""
    edges, axis = np.arange(4.0), Axis("x")
    image = Image(edges, edges, np.eye(3), "f", (0.0, 1.0))
    all_of = tuple(Panel(axis, axis, f"t = {number}", image=image) for number in range(panels))
    figure = draw.figure_of(Picture("name", "Title", "", all_of, shared=True))
    figure.draw_without_rendering()
    *axes, bar = figure.axes
    assert len(axes) == panels and all(one.get_visible() for one in axes) and bar.get_ylabel() == "f"
    boxes = [one.get_position() for one in axes]
    assert np.ptp([box.width for box in boxes]) < 0.01 and np.ptp([box.height for box in boxes]) < 0.05
    for bottom in {round(box.y0, 2) for box in boxes}:
        row = [box for box in boxes if round(box.y0, 2) == bottom]
        middle = 0.5 * (min(box.x0 for box in row) + max(box.x1 for box in row))
        assert middle == pytest.approx(0.5 * (boxes[0].x0 + max(box.x1 for box in boxes)), abs=0.02)
    numbered = [one for one in axes if any(label.get_visible() and label.get_text() for label in one.get_xticklabels())]
    assert len(numbered) == {4: 2}.get(panels, panels)


def test_a_logarithmic_axis_of_a_page_has_powers_of_ten_alone_unless_these_are_few():
    assert axis_layout(Axis("E", log=True, limits=(1e-5, 1.0)))["dtick"] == 1
    assert axis_layout(Axis("E", log=True, limits=(1e-20, 1.0)))["dtick"] == 4
    assert "dtick" not in axis_layout(Axis("E", log=True, limits=(0.1, 1.0)))
    assert "dtick" not in axis_layout(Axis("E", limits=(1e-5, 1.0)))


def test_a_picture_is_drawn_as_it_says():
    x = np.linspace(0, 4, 30)
    curve = Panel(
        *(Axis("x", "v_th"), Axis("y", log=True, limits=(2.0, 40.0))),
        *("title", (Curve(x, np.exp(x), "run"), Curve(x, 2 * np.exp(x), "theory", "reference"))),
        window=(1.0, 2.0),
        note="a note that is said",
    )
    image = Image(np.array([0.0, 1, 2]), np.array([0.0, 1]), np.array([[1e-3], [1.0]]), "f", (1e-2, 1.0), log=True)
    figure = draw.figure_of(Picture("name", "Title", "", (curve, Panel(Axis("x"), Axis("v_x"), image=image))), "of κ_1")
    first, second, bar = figure.axes
    assert first.get_xlabel() == r"x  [v$_{\mathrm{th}}$]" and first.get_yscale() == "log"
    assert [text.get_text() for text in first.texts] == ["a note that is said"]
    assert len([line for line in first.lines if line.get_linestyle() == "--"]) == 1
    numbers = [label.get_text() for label in first.get_yticklabels(minor=True)]
    assert sum(bool(number) for number in numbers) >= 2  # a decade and a half has more than its one power of ten
    assert isinstance(second.collections[0].norm, matplotlib.colors.LogNorm) and bar.get_ylabel() == "f (log)"
    assert figure._suptitle.get_text().startswith("Title\n")
    assert draw.typeset("two_stream KL(f | f_∞) 1/ω_p") == (r"two_stream KL(f | f$_{\mathrm{∞}}$) 1/ω$_{\mathrm{p}}$")


def test_options_of_plot(finished, kjko_here):
    """Planes, logarithmic scales, movies and differences; each mistake is a sentence and leaves no file."""
    other = finished.parent / "other"
    shutil.copytree(finished, other)
    drawn = kjko_here("plot", finished, "--plane", "x,vx", "--against", other, "--movie", "--log", "--out", "here")
    assert drawn.returncode == 0, drawn.stderr
    names = ["plane_x_vx_log.png", "difference_from_other.png", "phase_space_log.gif"]
    assert drawn.stdout.split() == [f"here/{name}" for name in names]
    with Bitmap.open(finished.parent / "here/phase_space_log.gif") as movie:
        assert movie.n_frames == 3
    for arguments, says in {
        ("--plane", "x,vy"): "--plane x,vy: the run has no coordinate vy: it may be one of x, vx",
        ("--plane", "x"): "x must be two coordinates, as in --plane y,vz",
        ("--at", "99"): "--at 99: x goes from 0 to 31.4159",
        ("--against", "nowhere"): "nowhere: not a run folder",
    }.items():
        result = kjko_here("plot", finished, *arguments, "--out", "there")
        assert result.returncode == 2 and says in result.stderr and result.stderr.count("\n") == 1
        assert not any((finished.parent / "there").glob("*"))


def test_a_plane_without_particles_names_the_figure_of_histograms(a_run, monkeypatch):
    run, steps_with = run_of(a_run), RunFiles.steps_with
    monkeypatch.setattr(RunFiles, "steps_with", lambda run, what: [] if what == "particles" else steps_with(run, what))
    with pytest.raises(UserError, match="the snapshots hold no particles: .*, or see the figure phase_space of"):
        planes.planes_of_coordinates(run, ("vx", "x"), None)


def test_no_choice_replaces_a_figure_of_the_whole_run(finished, monkeypatch):
    """Every picture of other content has a name of its own."""
    monkeypatch.setattr(draw, "save", lambda picture, path, subtitle: None)

    def names(**choice):
        return {path.stem for path in plotting.plot_run(RunFolder(finished), **choice)}

    whole = names()
    assert {"field_energy", "seconds", "free_energy", "phase_space", "cuts"} <= whole
    columns = ["field_energy", "free_energy", "seconds"]
    assert names(columns=columns) == {f"column_{name}" for name in columns}
    for window, ending in (((0.2, 0.7), "_t0.2_to_t0.7"), ((0.2, np.inf), "_from_t0.2"), ((-np.inf, 0.7), "_to_t0.7")):
        assert all(name.endswith(ending) for name in names(window=window)), window
    assert names(places=[5.0, 20.0]) - whole == {"cuts_x5_x20"}
    assert names(log=True) - whole == {"phase_space_log", "cuts_log"}


def test_a_note_says_how_much_is_outside_of_phase_space(finished, monkeypatch):
    """At t = 1 thirty of 3000 particles are faster than the axis reaches, and 2% of the histogram are missing."""
    run = run_of(finished)
    assert not any(panel.remark for picture in phase_space.phase_space(run) for panel in picture.panels)
    with h5py.File(finished / "snapshots/data00000010.h5", "r+") as file:
        speeds = file["data/10/particles/markers/momentum/x"]
        speeds[:30] = 1e3 * np.where(np.arange(30) % 2, 1, -1)
        histogram = file["data/10/histograms/markers/phase_space_x_vx"]
        histogram[...] = 0.98 * histogram[()]
    words = "of the particles are outside of the range shown."
    found = [planes.planes_of(run, None, 2), planes.planes_of_coordinates(run, ("vx", "x"), None)]
    with monkeypatch.context() as histograms:
        histograms.setattr(planes, "can_interpolate", lambda *of: False)
        found.append(planes.planes_of_coordinates(run, ("vx", "x"), None))
    for of_time in found:
        assert of_time[0].outside < 0.001 and of_time[-1].outside == pytest.approx(0.01, abs=0.0005)
    first, last = planes.binned(run, [0, 10], None)
    assert first.outside < 0.001 and last.outside == pytest.approx(0.02, abs=0.001)
    pictures = phase_space.phase_space(run)
    assert [panel.remark for panel in next(pictures).panels][-1] == f"1% {words}"
    frames = list(phase_space.phase_space_frames(run))
    page = figure(frames, 0)
    assert page["notes"][0] == "" and page["notes"][-1].endswith(words) and page["note"] == page["notes"][-1]


def test_a_rate_is_in_inspect_and_in_the_figure(finished, kjko_here):
    time = np.linspace(0, 20, 201)
    columns, units = read_series_and_units(finished / "series.h5")
    grown = {name: np.resize(values, 201) for name, values in columns.items()}
    grown |= {
        "time": time,
        "step": np.arange(201.0),
        "field_energy": np.exp(0.4 * time),
        "wave_energy": np.exp(0.4 * time),
    }
    SeriesWriter(finished / "series.h5", list(grown), units, grown).close()
    said = " ".join(kjko_here("inspect", finished).stdout.split())
    assert "γ = 0.2000" in said and "left no theory of its wave" in said
    (picture,) = waves.field_energy(run_of(finished))
    (fit,) = (curve for curve in picture.panels[0].curves if curve.look == "fit")
    assert fit.label == "fitted line" and fit.y == pytest.approx(np.exp(0.4 * fit.x), rel=1e-6)
    assert "γ = 0.2000" in picture.panels[0].title and np.diff(picture.panels[0].window) > 15


def test_runs_that_keep_no_log_f_differ_by_histograms(tmp_path, kjko_here):
    """Langevin runs have log f at the start only: neither of them, nor one whose series is short, draws zeros of it."""
    base = SMALL_CASE.replace("[method]", '[method]\ncollision = "langevin"')
    for number in (1, 2):
        (tmp_path / f"{number}.toml").write_text(base.replace("count = 3000", f"count = 3000\nseed = {number}"))
        result = kjko_here("run", f"{number}.toml", "--out", f"run {number}")
        assert result.returncode == 0, result.stderr
    first, second = (run_of(tmp_path / f"run {number}") for number in (1, 2))
    assert not np.isfinite(read_snapshot(tmp_path / "run 1/snapshots", 10, slice(None)).log_f).any()
    (difference,) = phase_space.difference(first, second)
    assert "histogram" in difference.title
    assert all(panel.image.values.min() < 0 < panel.image.values.max() for panel in difference.panels)
    (own,) = phase_space.phase_space(dataclasses.replace(first, series={}))
    assert "histogram" in own.title and all(panel.image.values.any() for panel in own.panels)


def test_a_run_without_rows_is_no_other_run(finished, kjko_here):
    other = finished.parent / "other"
    shutil.copytree(finished, other)
    columns, units = read_series_and_units(finished / "series.h5")
    empty = {name: values[:0] for name, values in columns.items()}
    SeriesWriter(other / "series.h5", list(columns), units, empty).close()
    result = kjko_here("plot", finished, "--against", other, "--out", "there")
    assert result.returncode == 2 and "series.h5: has no rows yet" in result.stderr and result.stderr.count("\n") == 1


def test_an_infinite_energy_is_left_out_of_figures_and_pages(finished, kjko_here):
    """As a run that has blown up leaves it."""
    columns, units = read_series_and_units(finished / "series.h5")
    most = columns["field_energy"][:-2].max()
    for name, values in columns.items():
        if name.endswith("_energy"):
            values[-2:] = np.inf, np.nan
    SeriesWriter(finished / "series.h5", list(columns), units, columns).close()
    (picture,) = waves.field_energy(run_of(finished))
    assert picture.panels[0].y.limits[1] == pytest.approx(2 * most)
    for arguments in (("plot", finished, "--out", "here"), ("report", finished)):
        result = kjko_here(*arguments)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("modes", [(1, 2), (2, -2), (0, 1)])
def test_an_oblique_wave_is_seen_along_its_wave_vector(modes):
    """Its field along k is the wave itself, whose mean over x_2 is nothing; a wave along x_1 is as it was."""
    periods, cells = (4 * np.pi, 6 * np.pi), (16, 24)
    centres = [(np.arange(n) + 0.5) * length / n for n, length in zip(cells, periods, strict=True)]
    x = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)
    vector = 2 * np.pi * np.array(modes) / periods
    k = np.linalg.norm(vector)
    electric = 0.3 * np.sin(x @ vector - 0.4)[..., None] * vector / k
    assert np.allclose(electric[..., 0].mean(axis=1), 0)
    line, length, is_oblique = waves.along_wave(electric, periods, vector)
    assert is_oblique and length == pytest.approx(2 * np.pi / k * np.gcd(*modes))
    along = (np.arange(len(line)) + 0.5) * length / len(line)
    assert line == pytest.approx(0.3 * np.sin(k * along - 0.4), abs=1e-12)
    straight, length, is_oblique = waves.along_wave(electric, periods, np.array([0.5, 0.0]))
    assert not is_oblique and length == periods[0] and np.allclose(straight, 0)
