"""The content of figures as data: curves and images over labelled axes.

``draw.py`` draws them with matplotlib, and ``interactive.py`` makes figures of a page that can be zoomed. So each
figure is defined once and looks the same everywhere.

Axes have normalised units: time in 1/ω_p, lengths in v_th/ω_p, velocities in v_th (the thermal
speed at T = 1), densities in the mean density n̄, energies in n̄ m v_th² (v_th/ω_p)^dx.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

#: The look of a curve: a result of the run, a fit to it (wide and pale, so that it is seen below a line of theory),
#: something to compare with (theory, a reference), the noise of the particles in the curve before it, or single points.
Look = Literal["line", "fit", "reference", "noise", "points"]

#: A symbol with a subscript in plain text: v_th, but not a name such as two_stream.
SUBSCRIPT = re.compile(r"(?<!\w)([^\W\d_])_([A-Za-z0-9∞]{1,4})(?![A-Za-z0-9_])")

#: A hyphen that is the minus sign of a number or of its exponent, but not one in a name or in a date.
_MINUS = re.compile(r"(?<![\w.)\]\u2060-])-(?=\.?\d)|(?<=\de)-(?=\d)")

#: If the lower end of a logarithmic colour scale is not above zero, it becomes this fraction of the upper end.
_FAINTEST = 1e-5


def verbatim(name: str) -> str:
    """The user's own name for a label. Its underscores do not make subscripts."""
    return name.replace("_", "\u2060_")


def with_minus(text: str) -> str:
    """Text whose numbers have minus signs in place of hyphens: "from -2e-05" becomes "from −2e−05"."""
    return _MINUS.sub("−", text)


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: the quantity in words and symbols, as plain text: "field energy ½∫|E|²dx".
        unit: the normalised unit, as plain text: "1/ω_p"; empty if there is none.
        log: whether the scale is logarithmic.
        limits: the first and last value shown; None means that the data decide.
    """

    label: str
    unit: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The limits if they are valid: finite, and above zero on a logarithmic scale. Otherwise None."""
        if self.limits is None or not np.isfinite(self.limits).all() or (self.log and min(self.limits) <= 0):
            return None
        return self.limits


@dataclass(frozen=True)
class Curve:
    """Points (x, y), arrays [n]. NaN leaves a gap.

    Attributes:
        x, y: the coordinates [n].
        label: the name in the legend.
        look: how the curve is drawn.
        error: one standard error of y [n].
        raw: the values with noise [n], if y is without noise. They are drawn as a thin line behind y.
    """

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    look: Look = "line"
    error: np.ndarray | None = None
    raw: np.ndarray | None = None


def widths(curves: Sequence[Curve], narrowest: float) -> list[float]:
    """Widths of the curves of a panel. Of results of the run, earlier ones are wider, so that they are seen below later
    ones with the same values. Other curves have the given width."""
    results = [number for number, curve in enumerate(curves) if curve.look == "line"]
    found = [narrowest] * len(curves)
    for place, number in enumerate(results):
        found[number] = narrowest * (1 + (len(results) - 1 - place) / max(2, len(results) - 1))
    return found


@dataclass(frozen=True)
class Image:
    """Values [nx, ny] in cells with the edges [nx + 1] and [ny + 1].

    Attributes:
        label: the quantity that the colour shows, with its unit.
        log: whether the colour scale is logarithmic.
        limits: the values at the two ends of the colour scale.
        signed: whether the values have both signs; the middle of the colour scale is then zero.
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
        """The limits, or the range of the finite values if the limits are not finite. The two ends always differ."""
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
    """One pair of axes with curves or an image.

    Attributes:
        window: the interval of x that is shaded, for example that of a fit.
        note: sentences above the panel, for example how the rate was found.
        below: a lower panel with the same x, for example for the difference of two curves.
    """

    x: Axis
    y: Axis
    title: str = ""
    curves: tuple[Curve, ...] = ()
    image: Image | None = None
    window: tuple[float, float] | None = None
    note: str = ""
    below: Panel | None = None

    @property
    def drawn(self) -> tuple[Curve, ...]:
        """The curves, without references and noise that lie wholly outside the limits of the axes."""
        return tuple(one for one in self.curves if one.look in ("line", "points") or self._shows(one))

    @property
    def remark(self) -> str:
        """The note, and a sentence if a logarithmic scale of y cannot show all values of the run."""
        values = [curve.y[np.isfinite(curve.y)] for curve in self.curves if curve.look in ("line", "points")]
        hidden, whole = sum(int((one <= 0).sum()) for one in values), sum(map(len, values))
        if not (self.y.log and hidden):
            return self.note
        are = "is" if hidden == 1 else "are"
        words = f"A logarithmic scale cannot show {hidden} of {whole} values, which {are} zero or negative."
        return f"{self.note} {words}".strip()

    def _shows(self, curve: Curve) -> bool:
        """Whether any point of a curve lies inside the axes."""
        inside = np.isfinite(curve.x) & np.isfinite(curve.y)
        for values, axis in ((curve.x, self.x), (curve.y, self.y)):
            if axis.log:
                inside &= values > 0
            if axis.ends:
                inside &= (values >= min(axis.ends)) & (values <= max(axis.ends))
        return bool(inside.any())


@dataclass(frozen=True)
class Picture:
    """Panels side by side, three in a row (four panels: two in a row), with a name for the file.

    Attributes:
        name: the file name without suffix.
        title: the heading.
        text: a sentence for readers who cannot see the picture: what is drawn against what.
        time: the time, for pictures that belong to one time; otherwise None.
        shared: whether all panels have the same axes and, for images, the same colours.
    """

    name: str
    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    time: float | None = None
    shared: bool = False
