"""Figures of an HTML page that can be zoomed and read with the mouse: the pictures of ``panels`` for Plotly.

This module makes only JSON, so Python needs no library for it. The page contains plotly.js and draws the figures
(``templates/page.js``). It also sets the colours of text and lines, which depend on whether the page is dark.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_kjko.post.panels import SUBSCRIPT, Axis, Curve, Image, Panel, Picture, widths, with_minus

#: Largest number of cells of an image along an axis. Larger images are averaged over neighbouring cells.
CELLS = 400
#: Largest number of points of a curve. Longer curves are reduced to the minima and maxima of short pieces.
POINTS = 3000
#: The name of the text colour of the page. The script of the page replaces it.
INK = "ink"
#: Colour of a line over an image. The legend of the page uses it too.
_ON_IMAGE = "#2ec4b6"
#: Colours that can be seen on a white and on a dark page.
_COLOURS = ("#3b82c4", "#d97a1c", "#3f9a57", "#d4504d", "#9a6fc4", "#a0765b")
#: Widths of lines by the look of the curve.
_WIDTHS = {"line": 1.8, "fit": 6.0, "reference": 1.2, "noise": 1.2}
#: Line styles of theory and references. Noise is dotted.
_DASHES = ("dash", "dashdot", "longdash")
#: Colour maps for values from zero up, and for values of both signs: magma and RdBu_r of matplotlib.
_MAGMA = "000004 140e36 3b0f70 641a80 8c2981 b73779 de4968 f7705c fe9f6d fecf92 fcfdbf".split()
_SIGNED = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f".split()
#: A logarithmic axis with more decades has no numbers between the powers of ten.
_FEW_DECADES = 2.5
#: Integer codes for zero and for NaN in images. A scale of 65534 steps lies below them.
_TOP, _NOTHING = 65534, 65535
#: Fraction of the height of a panel for its lower part, and for the gap above that part.
_BELOW, _GAP = 0.3, 0.06
#: A logarithmic colour scale ends at this fraction of its largest value.
_FAINTEST = 1e-4


def figure(pictures: Sequence[Picture], number: int) -> dict[str, Any]:
    """A panel as the page draws it. For a series of pictures, a slider on the page moves through them.

    Args:
        pictures: one picture, or several that differ only in data and in the titles of their panels.
        number: the index of the panel in each picture.

    Returns:
        ``data`` and ``layout`` of Plotly. ``log`` says whether the page offers a logarithmic scale, and ``is_log``
        whether it begins with one. ``title``, ``note`` and ``text`` are shown around the figure. With several pictures
        also ``labels``, ``notes`` and ``frames`` (the data), one for each picture.
    """
    picture, panel = pictures[-1], pictures[-1].panels[number]
    found: dict[str, Any] = {
        "data": _data(panel),
        "layout": _layout(panel),
        "log": _may_be_log(panel),
        "is_log": panel.image.log if panel.image else panel.y.log,
        "title": html_of(_title(picture, panel)),
        "text": picture.text,
        "note": _note(panel),
    }
    if len(pictures) > 1:
        found |= {
            "title": html_of(picture.title),
            "labels": [html_of(one.panels[number].title) for one in pictures],
            "notes": [_note(one.panels[number]) for one in pictures],
            "frames": [_data(one.panels[number]) for one in pictures],
        }
    return found


def _note(panel: Panel) -> str:
    """The sentences below a panel."""
    return html_of(" ".join(one.remark for one in (panel, panel.below) if one and one.remark))


def _title(picture: Picture, panel: Panel) -> str:
    """The title of a panel that is shown alone."""
    if len(picture.panels) == 1 and not panel.title:
        return picture.title
    return f"{picture.title}: {panel.title or panel.x.label}"


def packed(content: Any) -> str:
    """JSON of an object, or a text, compressed and encoded as text that can be part of a page."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def numbers(values: np.ndarray) -> dict[str, Any]:
    """Numbers in the form that the page reads, with seven digits each."""
    with np.errstate(over="ignore"):
        return {"f4": _base64(np.asarray(values, "<f4"))}


def html_of(text: str) -> str:
    """Plain text with subscripts and minus signs for a page: v_th becomes v<sub>th</sub>."""
    escaped = with_minus(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SUBSCRIPT.sub(r"\1<sub>\2</sub>", escaped)


def thinned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices [n] of the points of a curve that are needed: all, or the minima and maxima of many short pieces."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    edges = np.linspace(0, len(x), POINTS // 2 + 1).astype(int)
    kept = {0, len(x) - 1}
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        piece = y[first:last]
        if np.isfinite(piece).any():
            kept |= {first + int(np.nanargmin(piece)), first + int(np.nanargmax(piece))}
    return np.array(sorted(kept))


def axis_layout(axis: Axis) -> dict[str, Any]:
    """An axis in the form of Plotly."""
    found: dict[str, Any] = {
        "title": {
            "text": html_of(f"{axis.label}  [{axis.unit}]" if axis.unit else axis.label),
            "standoff": 6,
            "font": {"size": 12},
        },
        "type": "log" if axis.log else "linear",
        "automargin": True,
        "zeroline": False,
        "exponentformat": "power",
        "hoverformat": ".5~g",
        "nticks": 7 if axis.log else 0,
    }
    if axis.ends:
        found["range"] = [float(end) for end in (np.log10(axis.ends) if axis.log else axis.ends)]
        if axis.log and (decades := abs(found["range"][1] - found["range"][0])) > _FEW_DECADES:
            found["dtick"] = float(-(-decades // 6))  # only powers of ten
    return found


def _data(panel: Panel) -> list[dict[str, Any]]:
    traces = [_image(panel.image)] if panel.image else []
    traces += _curves(panel.drawn, {}, over_image=panel.image is not None)
    if panel.below:
        traces += _curves(panel.below.drawn, {"yaxis": "y2"}, over_image=False)
    return traces


def _curves(curves: Sequence[Curve], place: dict[str, str], over_image: bool) -> list[dict[str, Any]]:
    traces = []
    colours, dashes, colour = itertools.cycle(_COLOURS), itertools.cycle(_DASHES), INK
    for curve, width in zip(curves, widths(curves, _WIDTHS["line"]), strict=True):
        if curve.look == "reference":
            traces += _curve(curve, _ON_IMAGE if over_image else INK, next(dashes), width, place)
        elif curve.look == "noise":  # of the curve before it
            traces += _curve(curve, colour, "dot", width, place)
        else:
            colour = next(colours)
            traces += _curve(curve, colour, "solid", width, place)
    return traces


def _curve(curve: Curve, colour: str, dash: str, width: float, place: dict[str, str]) -> list[dict[str, Any]]:
    kept = thinned(curve.x, curve.y)
    x = numbers(curve.x[kept])
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers" if curve.look == "points" else "lines",
        "x": x,
        "y": numbers(curve.y[kept]),
        "name": html_of(curve.label),
        "showlegend": bool(curve.label),
        **place,
    }
    if curve.look == "points":
        trace["marker"] = {"color": colour, "size": 6, "symbol": "circle-open"}
    else:
        trace["line"] = {"color": colour, "width": width if curve.look == "line" else _WIDTHS[curve.look], "dash": dash}
        if curve.look == "fit":
            trace["opacity"] = 0.45
    if curve.raw is not None:
        thin = {"x": x, "y": numbers(curve.raw[kept]), "line": {"color": colour, "width": 0.8}, "opacity": 0.4}
        return [{"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip", **thin, **place}, trace]
    if curve.error is None:
        return [trace]
    if curve.look == "points":
        trace["error_y"] = {"array": numbers(curve.error[kept]), "color": colour, "thickness": 1}
        return [trace]
    quiet = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
    low, high = (numbers((curve.y + sign * curve.error)[kept]) for sign in (-1, 1))
    filled = {"fill": "tonexty", "fillcolor": f"{colour}33"} if colour != INK else {"fill": "tonexty"}
    return [{**quiet, "y": low, **place}, {**quiet, "y": high, **filled, **place}, trace]


def _image(image: Image) -> dict[str, Any]:
    scale = _SIGNED if image.signed else _MAGMA
    (low, high), (x_edges, y_edges, values) = image.ends, _coarser(image)
    return {
        "type": "heatmap",
        "x": numbers(x_edges),
        "y": numbers(y_edges),
        "z": _cells(values, image.log),
        "zmin": float(low),
        "zmax": float(high),
        "log": image.log,  # the page takes logarithms, and can return to the values
        "faintest": float(low if image.log else _FAINTEST * high),
        "colorscale": [[number / (len(scale) - 1), f"#{colour}"] for number, colour in enumerate(scale)],
        "colorbar": {"title": {"text": html_of(image.label), "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }


def _coarser(image: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges and values of an image that is averaged over neighbours, until it has no more cells than a page shows."""
    edges, values = [image.x_edges, image.y_edges], np.asarray(image.values, float)
    for axis, cells in enumerate(image.values.shape):
        first = np.arange(0, cells, -(-cells // CELLS))
        width = np.diff(np.append(first, cells))
        shape = [-1, 1] if axis == 0 else [1, -1]
        values = np.add.reduceat(values, first, axis=axis) / width.reshape(shape)
        edges[axis] = np.append(edges[axis][first], edges[axis][-1])
    return edges[0], edges[1], values


def _cells(values: np.ndarray, log: bool) -> dict[str, Any]:
    """Values [nx, ny] by rows of y, each as an integer from 0 to 65534 between the smallest and the largest value.

    On a logarithmic scale such steps would be too large for small values, so there they are numbers with seven digits.
    """
    rows = np.asarray(values, float).T
    if log:
        return numbers(rows) | {"across": rows.shape[1]}
    inside = np.isfinite(rows)
    low, high = (float(rows[inside].min()), float(rows[inside].max())) if inside.any() else (0.0, 0.0)
    step = (high - low) / _TOP or 1.0
    steps = np.where(inside, np.rint((np.where(inside, rows, low) - low) / step), _NOTHING)
    return {"u2": _base64(steps.astype("<u2")), "low": low, "step": step, "across": rows.shape[1]}


def _layout(panel: Panel) -> dict[str, Any]:
    layout: dict[str, Any] = {"xaxis": axis_layout(panel.x), "yaxis": axis_layout(panel.y)}
    if panel.window:
        low, high = map(float, panel.window)
        band = {"type": "rect", "x0": low, "x1": high, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        layout["shapes"] = [band | {"line": {"width": 0}, "fillcolor": INK, "opacity": 0.1}]
    if panel.below:
        layout["yaxis"]["domain"] = [_BELOW + _GAP, 1]
        layout["yaxis2"] = axis_layout(panel.below.y) | {"domain": [0, _BELOW]}
        layout["xaxis"]["anchor"] = "y2"
    if not panel.image:
        layout["hovermode"] = "x unified" if len(panel.curves) <= len(_COLOURS) else "closest"
        name = "t" if panel.x.label == "time" else html_of(panel.x.label)
        layout["xaxis"]["unifiedhovertitle"] = {"text": f"{name} = %{{x:.5~g}}"}
    return layout


def _may_be_log(panel: Panel) -> bool:
    """Whether a logarithmic scale makes sense, of y or of the colours."""
    if panel.image:
        return not panel.image.signed and panel.image.ends[1] > 0
    if panel.y.log:
        return True
    values = np.concatenate([curve.y for curve in panel.curves]) if panel.curves else np.zeros(0)
    values = values[np.isfinite(values)]
    return bool(len(values)) and bool(values.min() >= 0 and values.max() > 0)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
