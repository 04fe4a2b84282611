"""Draws the pictures of ``panels`` into files with matplotlib.

Figures are made without pyplot, so the backend of a notebook or of MPLBACKEND has no effect and is not changed.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patheffects import withStroke
from matplotlib.ticker import AutoLocator, LogFormatterSciNotation, LogLocator, NullLocator, ScalarFormatter

from hpc_kjko.files.storage import writing
from hpc_kjko.post.panels import SUBSCRIPT, Axis, Curve, Image, Panel, Picture, widths, with_minus

#: Number of panels in a row.
ACROSS = 3

STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

#: Colour maps: for values from zero up, and for values of both signs.
_MAP, _SIGNED_MAP = "magma", "RdBu_r"
#: Largest number of intervals on the x axis, if a figure has several panels.
_TICKS = 6
#: Width of the colour bar relative to that of all panels, and its height relative to its width.
_BAR, _TALL = 0.02, 30
#: Relative heights of a panel and of the lower panel below it.
_HEIGHTS = (2.4, 1.0)
#: Line styles of theory and references. Noise is dotted.
_DASHES: tuple[Any, ...] = ((0, (4, 3)), "-.", (0, (8, 3)))
#: Characters in a line of a note, and in a line of the title of a panel.
_NOTE, _TITLE = 72, 60
#: Width of the narrowest curve of a run.
_WIDTH = 1.5
#: Largest number of names in a row of a legend below one panel, and below several.
_ACROSS_LEGEND = 4, 6
#: A logarithmic axis with fewer decades has numbers between the powers of ten.
_FEW_DECADES = 2.5
#: The choices of these numbers, as multiples of a power of ten.
_MULTIPLES: tuple[tuple[float, ...], ...] = ((1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (2, 3, 5), (2, 5), (3,))
#: The space of a number along the axis, in points: its width or its height.
_SPACE = {"x": 36.0, "y": 12.0}
#: A logarithmic axis that spans less than this factor has the numbers of a linear axis.
_LITTLE = 2.0


def save(picture: Picture, path: Path, subtitle: str = "") -> None:
    """Draw a picture into a file. The suffix of the file name gives the format.

    Args:
        picture: the picture.
        path: the file.
        subtitle: a line below the title, for example the name of the run.

    Raises:
        UserError: the file cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figure = figure_of(picture, subtitle)
        with writing(path):
            figure.savefig(path)


def figure_of(picture: Picture, subtitle: str = "") -> Figure:
    """The matplotlib figure of a picture, in the present style of matplotlib."""
    panels = picture.panels
    across = 2 if len(panels) == 4 else min(ACROSS, len(panels))
    rows = -(-len(panels) // across)
    bars = not picture.shared and any(panel.image for panel in panels)
    below = any(panel.below for panel in panels)
    width, height = (6.4, 4.5) if len(panels) == 1 else (4.6 + 0.6 * bars, 3.5)
    figure = Figure(figsize=(width * across + 0.8 * picture.shared, (height + below) * rows + 0.4 * (rows > 1)))
    one_bar = picture.shared and panels[0].image is not None
    whole = figure.add_gridspec(1, 1 + one_bar, width_ratios=(1, _BAR)[: 1 + one_bar])
    places = _places(whole[0], len(panels), across)
    most = max(panels, key=lambda panel: len(panel.drawn))
    # a legend below the panels covers no curve
    one_legend = all(panel.drawn and _labels(panel) == _labels(most)[: len(panel.drawn)] for panel in panels)
    first = None
    for number, (place, panel) in enumerate(zip(places, panels, strict=True)):
        axes = figure.add_subplot(place, sharex=first, sharey=first)
        if picture.shared:
            first = first or axes
        if panel.below:
            axes = _with_below(axes, panel.below)
        if len(panels) > 1 and not panel.x.log:
            axes.locator_params(axis="x", nbins=_TICKS)  # numbers of neighbouring panels must not overlap
        colours = _draw(axes, panel, with_bar=not picture.shared, with_legend=not one_legend)
        if one_legend and panel is most and any(_labels(panel)):
            handles, labels = axes.get_legend_handles_labels()
            lines = -(-len(labels) // _ACROSS_LEGEND[across > 1])
            figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // lines), fontsize=9)
        if picture.shared and number % across:
            axes.tick_params(which="both", labelleft=False)
            axes.set_ylabel("")
        if picture.shared and len(panels) % across == 0 and number + across < len(panels):
            axes.tick_params(which="both", labelbottom=False)
            axes.set_xlabel("")
    if one_bar:
        bar = figure.add_subplot(whole[1])
        bar.set_box_aspect(_TALL)
        _bar(figure, colours, [panel.image for panel in panels if panel.image], cax=bar)
    figure.suptitle("\n".join(line for line in (typeset(picture.title), typeset(subtitle)) if line))
    return figure


def _places(whole: SubplotSpec, panels: int, across: int) -> list[SubplotSpec]:
    """Return the places of the panels, row by row. If the last row is not full, its panels are centred."""
    rows, over = -(-panels // across), panels % across
    if not over:
        grid = whole.subgridspec(rows, across)
        return [grid[number] for number in range(panels)]
    found: list[SubplotSpec] = []
    lines = whole.subgridspec(rows, 1)
    for row in range(rows):
        here = min(across, panels - len(found))
        beside = [0.5 * (across - here)] * (here < across)
        widths = (*beside, *[1.0] * here, *beside)
        grid = lines[row].subgridspec(1, len(widths), width_ratios=widths)
        found += [grid[len(beside) + number] for number in range(here)]
    return found


def typeset(text: str) -> str:
    """Plain text with subscripts and minus signs for matplotlib: v_th becomes "v$_{th}$"; only single letters do."""
    return SUBSCRIPT.sub(r"\1$_{\\mathrm{\2}}$", with_minus(text).replace("$", r"\$"))


def label_of(axis: Axis) -> str:
    """The label of an axis, with its unit."""
    return typeset(f"{axis.label}  [{axis.unit}]" if axis.unit else axis.label)


def _with_below(axes: Axes, below: Panel) -> Axes:
    """Divide axes into two with the same x, draw into the lower ones, and return the upper ones."""
    place = axes.get_subplotspec()
    assert place is not None  # the axes were made by subplots
    upper, lower = place.subgridspec(2, 1, height_ratios=_HEIGHTS).subplots(sharex=True)  # type: ignore[misc]
    axes.remove()
    _draw(lower, below, with_bar=False)
    return upper


def _labels(panel: Panel) -> tuple[str, ...]:
    return tuple(curve.label for curve in panel.drawn)


def _draw(axes: Axes, panel: Panel, with_bar: bool, with_legend: bool = True) -> Any:
    """Draw a panel. Return the object that needs a colour bar, if there is one."""
    mesh = None
    if panel.image:
        mesh = _draw_image(axes, panel.image)
        axes.grid(False)
        if with_bar:
            _bar(axes.figure, mesh, [panel.image], ax=axes, shrink=0.95)
    dashes = itertools.cycle(_DASHES[:1] if panel.image else _DASHES)
    for curve, width in zip(panel.drawn, widths(panel.drawn, _WIDTH), strict=True):
        _draw_curve(axes, curve, width, next(dashes) if curve.look == "reference" else "", panel.image is not None)
    if panel.window:
        axes.axvspan(*panel.window, color=_ink(), alpha=0.08, lw=0)
    for axis, name in ((panel.x, "x"), (panel.y, "y")):
        if axis.log:
            _set_log(axes, name)
        if axis.ends:
            getattr(axes, f"set_{name}lim")(*axis.ends)
        if axis.log:
            _number_log(axes, name)
    axes.set(xlabel="" if panel.below else label_of(panel.x), ylabel=label_of(panel.y))
    note = textwrap.fill(panel.remark, _NOTE)
    if panel.title:
        axes.set_title(typeset(textwrap.fill(panel.title, _TITLE)), fontsize=10, pad=6 + 11 * len(note.splitlines()))
    if note:
        axes.text(0.5, 1.01, typeset(note), transform=axes.transAxes, fontsize=8, ha="center", va="bottom", alpha=0.8)
    if with_legend and any(_labels(panel)):
        axes.legend(fontsize=8, frameon=True, framealpha=0.75, edgecolor="none")
    return mesh


def _draw_curve(axes: Axes, curve: Curve, width: float, dashes: Any, over_image: bool) -> None:
    look: dict[str, Any] = {"label": typeset(curve.label), "lw": width}
    if curve.look == "reference":
        look |= {"color": _ink(), "lw": 1.0, "ls": dashes}
        if over_image:
            outline = [withStroke(linewidth=2.6, foreground="black")]
            look |= {"color": "white", "lw": 1.4, "path_effects": outline}
    elif curve.look == "fit":
        look |= {"lw": 5.0, "alpha": 0.45}
    elif curve.look == "noise":
        look |= {"color": axes.lines[-1].get_color(), "lw": 1.1, "ls": ":"}
    elif curve.look == "points":
        look |= {"ls": "none", "marker": "o", "ms": 3.5, "mfc": "none"}
    if curve.error is not None and curve.look != "points":
        (line,) = axes.plot(curve.x, curve.y, **look)
        spread = (curve.y - curve.error, curve.y + curve.error)
        axes.fill_between(curve.x, *spread, color=line.get_color(), alpha=0.2, lw=0)
    elif curve.error is not None:
        axes.errorbar(curve.x, curve.y, curve.error, capsize=2, **look)
    else:
        (line,) = axes.plot(curve.x, curve.y, **look)
        if curve.raw is not None:
            axes.plot(curve.x, curve.raw, color=line.get_color(), lw=0.7, alpha=0.4, zorder=1)


def _draw_image(axes: Axes, image: Image) -> Any:
    low, high = image.ends
    norm = LogNorm(low, high) if image.log else Normalize(low, high)
    colours = _SIGNED_MAP if image.signed else _MAP
    return axes.pcolormesh(image.x_edges, image.y_edges, image.values.T, norm=norm, cmap=colours, rasterized=True)


def _bar(figure: Any, mesh: Any, images: Sequence[Image], **place: Any) -> None:
    """Draw the colour bar of the images. Its label says whether the scale is logarithmic.

    Args:
        figure: the figure.
        mesh: what matplotlib drew for one of the images, with the colours of all.
        images: the images that share the colours.
        place: where to put the bar: keyword arguments of ``Figure.colorbar``.
    """
    image = images[0]
    low, high = image.ends
    values = np.concatenate([one.values.ravel() for one in images])
    above, below = (values > high).any(), (values < low).any()
    ends = "both" if above and below else "max" if above else "min" if below else "neither"
    label = f"{image.label} (log)" if image.log else image.label
    bar = figure.colorbar(mesh, label=typeset(label), extend=ends, **place)
    bar.ax.grid(False)
    if image.log:
        _number_log(bar.ax, "y")


def _set_log(axes: Axes, name: str) -> None:
    getattr(axes, f"set_{name}scale")("log", nonpositive="mask")


class _BetweenPowers(LogLocator):
    """Ticks between the powers of ten: as many of ``_MULTIPLES`` as have space for their numbers.

    Args:
        axes: the axes.
        name: "x" or "y".
    """

    def __init__(self, axes: Axes, name: str):
        super().__init__()
        self.axes, self.name = axes, name

    def tick_values(self, vmin: float, vmax: float) -> Any:
        box = self.axes.get_window_extent()  # only known while the figure is drawn
        figure = self.axes.get_figure(root=True)
        assert figure is not None  # axes that are drawn
        length = (box.width if self.name == "x" else box.height) * 72 / figure.dpi
        decade = length / abs(np.log10(vmax / vmin))
        for multiples in _MULTIPLES:
            if decade * np.diff(np.log10([1.0, *multiples, 10.0])).min() >= _SPACE[self.name]:
                self.set_params(subs=multiples)
                return super().tick_values(vmin, vmax)
        return np.array([])


def _number_log(axes: Axes, name: str) -> None:
    """Write numbers between the powers of ten on an axis with few decades, as many as have space.

    An axis that spans less than a factor of two gets the numbers of a linear axis.
    """
    low, high = getattr(axes, f"get_{name}lim")()
    axis = getattr(axes, f"{name}axis")
    if high / low < _LITTLE:
        axis.set_major_locator(AutoLocator())
        numbers = ScalarFormatter()
        numbers.set_powerlimits((-2, 3))  # smaller and larger ones would be too wide
        axis.set_major_formatter(numbers)
        axis.set_minor_locator(NullLocator())
    elif high / low < 10**_FEW_DECADES:
        axis.set_minor_locator(_BetweenPowers(axes, name))
        axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axis.set_tick_params(which="minor", labelsize="x-small")


def _ink() -> str:
    return matplotlib.rcParams["text.color"]


def movie(frames: Sequence[Picture], path: Path, subtitle: str = "", per_second: float = 6.0) -> None:
    """Draw pictures, one after the other, into an animated GIF.

    All frames have the same palette: up to 255 colours of the first, the middle and the last frame.

    Args:
        frames: at least one picture; all have the same size.
        path: the file.
        subtitle: a line below the title.
        per_second: frames per second.

    Raises:
        UserError: the file cannot be written.
    """
    from PIL import Image as Bitmap  # always available, because matplotlib needs it

    bitmaps = []
    for frame in frames:
        file: IO[bytes] = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure_of(frame, subtitle).savefig(file, format="png", dpi=100)
        bitmaps.append(Bitmap.open(file).convert("RGB"))
    sample = Bitmap.new("RGB", (bitmaps[0].width, 3 * bitmaps[0].height))
    for place, bitmap in enumerate((bitmaps[0], bitmaps[len(bitmaps) // 2], bitmaps[-1])):
        sample.paste(bitmap, (0, place * bitmap.height))
    palette = sample.quantize(255)
    first, *others = (bitmap.quantize(palette=palette, dither=Bitmap.Dither.NONE) for bitmap in bitmaps)
    with writing(path):
        first.save(path, save_all=True, append_images=others, duration=round(1000 / per_second), loop=0)
