"""Figures of a page: what is left of curves and images, and how they are written."""

import base64
import gzip
import json

import numpy as np
import pytest

from hpc_kjko.post.interactive import CELLS, POINTS, figure, html_of, packed, thinned
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture, verbatim


def unpacked(numbers):
    """What the page makes of numbers."""
    if "f4" in numbers:
        return np.frombuffer(base64.b64decode(numbers["f4"]), "<f4")
    steps = np.frombuffer(base64.b64decode(numbers["u2"]), "<u2").reshape(-1, numbers["across"])
    return np.where(steps == 65535, np.nan, numbers["low"] + numbers["step"] * steps)


def drawn(panel):
    found = figure([Picture("name", "Title", "text", (panel,))], 0)
    return json.loads(gzip.decompress(base64.b64decode(packed(found))))


def test_a_long_curve_keeps_its_ends_and_its_spikes():
    x = np.arange(200_000.0)
    y = np.sin(x / 1e4)
    y[123_456], y[77_777], y[5:50] = 9.0, -9.0, np.nan
    kept = thinned(x, y)
    assert len(kept) <= POINTS + 2 and {0, 77_777, 123_456, 199_999} <= set(kept)
    assert len(thinned(x[:POINTS], y[:POINTS])) == POINTS
    assert not set(range(5, 50)) & set(kept)


def test_an_image_keeps_its_values_and_is_no_finer_than_a_screen():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 2 * CELLS + 2))
    values[1, 0] = np.nan
    edges = np.arange(4.0), np.arange(2 * CELLS + 3.0)
    image = Image(*edges, values, "f  [1/v_th]", (-1.0, 2.0), signed=True)
    trace = drawn(Panel(Axis("x"), Axis("v"), image=image))["data"][0]
    found = unpacked(trace["z"])
    means = np.column_stack([values[:, :-1].reshape(3, -1, 3).mean(2), values[:, -1:]])
    assert found.shape == (len(means.T), 3) and len(unpacked(trace["y"])) == len(found) + 1
    assert np.isnan(found[0, 1]) and found == pytest.approx(means.T, abs=1e-3, nan_ok=True)
    assert unpacked(trace["y"])[[0, 1, -1]].tolist() == [0.0, 3.0, 2.0 * CELLS + 2]
    assert trace["colorbar"]["title"]["text"] == "f  [1/v<sub>th</sub>]"


def test_a_panel_has_its_labels_its_window_its_theory_and_what_is_below_it():
    x = np.array([0.0, 1.0, 2.0])
    curves = (Curve(x, x + 1, "mine", error=0.1 * x), Curve(x, x + 2, "theory", "reference"))
    below = Panel(Axis("time"), Axis("difference"), curves=(Curve(x, -x),))
    panel = Panel(Axis("time", "1/ω_p"), Axis("E", log=True), curves=curves, window=(0.5, 1.5), below=below)
    found = drawn(panel)
    low, high, mine, theory, difference = found["data"]
    assert unpacked(high["y"]) - unpacked(low["y"]) == pytest.approx(0.2 * x, abs=1e-6)
    assert mine["line"]["color"] != theory["line"]["color"] == "ink" and theory["line"]["dash"] == "dash"
    assert (
        difference["yaxis"] == "y2" and found["layout"]["yaxis2"]["domain"][1] < found["layout"]["yaxis"]["domain"][0]
    )
    assert found["layout"]["xaxis"]["title"]["text"] == "time  [1/ω<sub>p</sub>]"
    assert found["layout"]["shapes"][0]["x0"] == 0.5 and found["log"] and found["is_log"]


def test_noise_is_dotted_in_the_colour_of_its_curve_and_hidden_lines_have_no_name():
    x = np.array([0.0, 1.0, 2.0])
    curves = (Curve(x, 10 * x, "field"), Curve(x, x, "noise", "noise"), Curve(x, 0 * x - 9, "theory", "reference"))
    field, noise = drawn(Panel(Axis("t"), Axis("W", log=True, limits=(0.5, 30.0)), curves=curves))["data"]
    assert noise["line"]["color"] == field["line"]["color"] and noise["line"]["dash"] == "dot"
    assert not drawn(Panel(Axis("t"), Axis("W", log=True, limits=(5.0, 30.0)), curves=curves))["data"][1:]


def test_only_symbols_have_subscripts():
    assert html_of("v_th² of <two_stream>") == "v<sub>th</sub>² of &lt;two_stream&gt;"
    assert "<sub>" not in html_of(verbatim("x_1"))


def test_a_logarithmic_image_keeps_its_small_values():
    """Five decades down they have their digits, and what cannot be shown is left out."""
    values = np.array([[1.0, 1.3e-5], [2.7e-5, np.inf]])
    edges = np.arange(3.0)
    image = Image(edges, edges, values, "f", (1e-5, 1.0), log=True)
    z = drawn(Panel(Axis("x"), Axis("v"), image=image))["data"][0]["z"]
    found = unpacked(z).reshape(-1, z["across"])
    assert found == pytest.approx(values.T, rel=1e-6)


def test_limits_that_no_scale_can_have_are_left_to_the_data():
    edges, values = np.arange(3.0), np.array([[1.0, np.nan], [3.0, 2.0]])
    for log, limits, wanted in (
        (False, (np.nan, np.inf), (1.0, 3.0)),
        (True, (0.0, 3.0), (3e-5, 3.0)),
        (True, (2.0, 2.0), (2.0, 20.0)),
    ):
        panel = Panel(Axis("t"), Axis("W", log=log, limits=limits), image=Image(edges, edges, values, "f", limits, log))
        found = drawn(panel)
        assert (found["data"][0]["zmin"], found["data"][0]["zmax"]) == pytest.approx(wanted)
        assert ("range" in found["layout"]["yaxis"]) == (limits == (2.0, 2.0))
