"""Figures of the density in phase space: marginals, and histograms of x and v at several times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_kjko.errors import DamagedFile
from hpc_kjko.files.binned import Histogram, Marginal
from hpc_kjko.files.series import read_equilibrium
from hpc_kjko.post.figures.runfiles import (
    RunFiles,
    coordinate,
    coordinate_axis,
    of_species,
    spread,
    suffix,
    top_of,
)
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture

#: Panels of the phase-space figure.
PANELS = 6
#: Pictures of phase space in a report or a movie.
FRAMES = 24
#: Times of the marginals.
TIMES = 4
#: The percentage of the filled bins of phase space that the colours are made for: a few that noise fills are beyond.
BRIGHT = 99.5


def marginals(run: RunFiles, species: str | None = None) -> Iterator[Picture]:
    """Marginals of every coordinate at several times, and the equilibrium's; nothing without snapshots of them."""
    snapshots = list(run.snapshots(spread(run.steps_with("histograms"), TIMES), species=species))
    if not snapshots:
        return
    known: dict[tuple[str, int], Marginal] = {}
    with contextlib.suppress(DamagedFile):  # who reads the series says so
        known = {(marginal.kind, marginal.axis): marginal for marginal in read_equilibrium(run.folder.series)}
    panels = []
    for number, first in enumerate(snapshots[0].marginals):
        curves = []
        for snapshot in snapshots:
            found = snapshot.marginals[number]
            edges = _edges(found)
            # the mass of a case's only species is ∫f; of one of several, what the window holds of it
            whole = (found.values * np.diff(edges)).sum()
            mass = run.series["mass"][0] if run.series and species is None else whole
            curves.append(Curve(_centres(edges), found.values / mass, f"t = {snapshot.time:g}"))
        if (wanted := known.get((first.kind, first.axis))) is not None:
            curves.append(Curve(_centres(_edges(wanted)), wanted.values, "equilibrium", "reference"))
        y = Axis("probability density", "ω_p/v_th" if first.kind == "x" else "1/v_th", limits=_limits(first, curves))
        dims = len(snapshots[0].marginals)
        panels.append(Panel(coordinate_axis(first.kind, first.axis, dims), y, curves=tuple(curves)))
    yield Picture(
        f"marginals{suffix(species)}",
        f"Marginal distributions{of_species(species)}",
        f"Distribution{of_species(species)} of each coordinate, at several times",
        tuple(panels),
    )


def _limits(marginal: Marginal, curves: Sequence[Curve]) -> tuple[float, float]:
    """From zero, but for a density in x that hardly differs from its mean: that shows how it differs."""
    values = np.concatenate([curve.y for curve in curves])
    low, high = float(values.min()), float(values.max())
    if marginal.kind == "x" and low > 0.5 * high:
        return low - 0.1 * (high - low), high + 0.1 * (high - low)
    return 0.0, 1.05 * high or 1.0


def _edges(marginal: Marginal) -> np.ndarray:
    return np.linspace(*marginal.range, len(marginal.values) + 1)


def _centres(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[1:] + edges[:-1])


def phase_space(run: RunFiles, species: str | None = None, most: int = PANELS) -> Iterator[Picture]:
    """Phase-space density of (x, v_x) at several times, in one picture; nothing without snapshots of it."""
    frames = list(phase_space_frames(run, species, most))
    if frames:
        yield Picture(
            f"phase_space{suffix(species)}",
            f"Phase space{of_species(species)}",
            f"Density{of_species(species)} in x and v, at several times",
            tuple(panel for frame in frames for panel in frame.panels),
            shared=True,
        )


def phase_space_frames(run: RunFiles, species: str | None = None, most: int = FRAMES) -> Iterator[Picture]:
    """The same at up to ``most`` times, a picture of each; all have the same colours."""
    steps = spread(run.steps_with("histograms"), most)
    chosen = [one for one in run.snapshots(steps, species=species) if one.histograms]
    brightest = top_of([one.histograms[0].values for one in chosen], BRIGHT)
    for one in chosen:
        dims = len(one.marginals)
        histogram = one.histograms[0]
        yield Picture(
            f"phase_space{suffix(species)}_{one.step:08d}",
            f"Phase space{of_species(species)}",
            f"Phase space{of_species(species)} at t = {one.time:g}",
            (
                Panel(
                    coordinate_axis("x", histogram.axis, dims),
                    coordinate_axis("v", histogram.axis, dims),
                    f"t = {one.time:g}",
                    image=_image(histogram, dims, brightest),
                ),
            ),
            time=one.time,
        )


def _image(histogram: Histogram, dims: int, brightest: float) -> Image:
    names = [coordinate(kind, histogram.axis, dims) for kind in "xv"]
    x_edges, v_edges = (
        np.linspace(*limits, bins + 1)
        for limits, bins in zip((histogram.x_range, histogram.v_range), histogram.values.shape, strict=True)
    )
    return Image(x_edges, v_edges, histogram.values, f"f({', '.join(names)})", (0.0, brightest))
