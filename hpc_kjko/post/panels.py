"""What a figure shows, as data: curves and images over labelled axes.

``draw.py`` makes pictures of it with matplotlib, ``interactive.py`` figures of a page, which can be zoomed. So it is
decided once what a run has to show, and it looks the same wherever it is shown.

Units on the axes are those of the normalisation: time in 1/ω_p, lengths in v_th/ω_p, velocities in v_th (the thermal
speed at T = 1), densities in the mean density n̄, energies in n̄ m v_th² (v_th/ω_p)^dx.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: How a curve is drawn: what was computed; what it is held against (theory, a reference); single points.
Look = Literal["line", "reference", "points"]

#: A symbol and its subscript in plain text: v_th, not a name such as two_stream.
SUBSCRIPT = re.compile(r"(?<!\w)([^\W\d_])_([A-Za-z0-9∞]{1,4})(?![A-Za-z0-9_])")

#: A logarithmic colour scale whose lower end is not above zero goes down to this part of its upper end.
_FAINTEST = 1e-5


def verbatim(name: str) -> str:
    """A name of the user's for a label, as it is: its underscores make no subscripts."""
    return name.replace("_", "\u2060_")


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: the quantity in words and symbols, as plain text: "field energy ½∫|E|²dx".
        unit: of the normalisation, as plain text: "1/ω_p"; empty if there is none.
        log: a logarithmic scale.
        limits: the first and last value shown; None leaves it to the data.
    """

    label: str
    unit: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The limits, where an axis can have them: finite ones, and above zero on a logarithmic scale."""
        if self.limits is None or not np.isfinite(self.limits).all() or (self.log and min(self.limits) <= 0):
            return None
        return self.limits


@dataclass(frozen=True)
class Curve:
    """Points (x, y), both [n]; NaN leaves a gap.

    Attributes:
        error: one standard error of y [n].
        raw: y with its noise [n], which is drawn thin behind a y without it.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    look: Look = "line"
    error: np.ndarray | None = None
    raw: np.ndarray | None = None


@dataclass(frozen=True)
class Image:
    """Values [nx, ny] in cells between edges [nx + 1] and [ny + 1].

    Attributes:
        label: what the colour means, with its unit.
        log: a logarithmic colour scale.
        limits: values of the darkest and the brightest colour.
        signed: the values are differences: zero is the middle of a colour scale with two ends.
    """

    x_edges: np.ndarray
    y_edges: np.ndarray
    values: np.ndarray
    label: str
    limits: tuple[float, float]
    log: bool = False
    signed: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The limits, or those of the finite values where the limits are not finite, with a range between them."""
        low, high = self.limits
        if not np.isfinite(self.limits).all():
            inside = self.values[np.isfinite(self.values)]
            low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
            if self.signed:
                low, high = -max(-low, high), max(-low, high)
        if self.log and low <= 0:
            low = _FAINTEST * high if high > 0 else 1.0
        if not low < high:
            high = 10 * low if self.log else low + 1.0
        return low, high


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        window: the part of x that is shaded, for instance where a rate was fitted.
        note: a sentence that stands inside the panel, for instance the rate.
        below: a low panel under it with the same x, for instance what two curves differ by.
    """

    x: Axis
    y: Axis
    title: str = ""
    curves: tuple[Curve, ...] = ()
    image: Image | None = None
    window: tuple[float, float] | None = None
    note: str = ""
    below: Panel | None = None


@dataclass(frozen=True)
class Picture:
    """Panels beside each other, wrapped after three (four of them after two), with a name for its file.

    Attributes:
        name: of the file, without its ending.
        title: what is shown, as a heading.
        text: one sentence for those who cannot see it: what is drawn against what.
        time: when it is, for pictures that belong to one time; None otherwise.
        shared: all panels have the same axes and, for images, the same colours.
    """

    name: str
    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    time: float | None = None
    shared: bool = False
