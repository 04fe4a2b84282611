"""Figures of phase space: f(x, v) at several times, cuts, planes of any two coordinates, differences of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_kjko.post.figures.planes import (
    HISTOGRAM,
    Plane,
    binned,
    can_interpolate,
    interpolated,
    planes_of,
    planes_of_coordinates,
)
from hpc_kjko.post.figures.runfiles import (
    FRAMES,
    PANELS,
    TIMES,
    RunFiles,
    centres_of,
    of_species,
    spread,
    suffix,
    top_of,
)
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture

#: The colour scale ends at this percentile of the filled bins. A few bins with noise are above it.
BRIGHT = 99.5
#: A logarithmic scale of f ends at this fraction of the largest value.
_DEEP = 1e-3
#: On a linear scale, f below this fraction of its largest value is too dark to be seen.
_DARK = 0.25
#: f has stopped falling if it keeps the fraction _KEPT of its value over the fraction _STRETCH of an axis.
_STRETCH, _KEPT = 0.05, 0.9
#: A note says how much of the mass is outside of what is shown if it is more than this fraction.
_OUTSIDE = 1e-3
#: A bump of f is ignored below this fraction of the largest f, or if it contains fewer particles than _FEW.
_FAINT, _FEW = 1e-3, 50


def phase_space(
    run: RunFiles,
    species: str | None = None,
    most: int = PANELS,
    *,
    log: bool = False,
    places: Sequence[float] = (),
) -> Iterator[Picture]:
    """f(x, v_x) at several times in one picture and, if f comes from log f, f(v) at some x in another picture.

    Nothing is yielded without snapshots of particles or histograms.

    Args:
        run: the files of the run.
        species: the name of the species; None in a case without ``[species]``.
        most: the largest number of times.
        log: use logarithmic scales for f, even if linear scales show everything.
        places: x of the cuts; by default quarters of the box or, without a box, of the particles.
    """
    planes, ending = planes_of(run, species, most), f"{suffix(species)}{_choice(log)}"
    log = log or any(map(hides_a_bump, planes))
    if planes:
        yield _side_by_side(planes, f"phase_space{ending}", f"Phase space{of_species(species)}", log=log)
        if planes[0].note != HISTOGRAM:  # a histogram is too noisy for cuts
            chosen = [planes[number] for number in spread(range(len(planes)), TIMES)]
            cuts = _cuts(run, chosen, species, places, log)
            yield dataclasses.replace(cuts, name=f"cuts{ending}{''.join(f'_x{place:g}' for place in places)}")


def phase_space_frames(
    run: RunFiles, species: str | None = None, most: int = FRAMES, *, log: bool = False
) -> Iterator[Picture]:
    """The phase-space figure at up to ``most`` times, one picture for each time, all with the same colours."""
    yield from _frames(planes_of(run, species, most, frequent=True), species, log=log)


def _frames(planes: Sequence[Plane], species: str | None, *, log: bool) -> Iterator[Picture]:
    """One picture for each plane, all with the same colours."""
    ending = f"{suffix(species)}{_choice(log)}"
    log = log or any(map(hides_a_bump, planes))
    limits = _limits(planes, log)
    for number, plane in enumerate(planes):
        yield Picture(
            f"phase_space{ending}_{number:04d}",
            f"Phase space{of_species(species)}{_how(plane)}",
            f"Phase space{of_species(species)}{_how(plane)}, at t = {plane.time:g}",
            (_panel(plane, limits, log),),
            time=plane.time,
        )


def _choice(log: bool) -> str:
    """The end of a file name if the user has asked for logarithmic scales; empty if the rule has chosen them."""
    return "_log" if log else ""


def _cuts(run: RunFiles, planes: Sequence[Plane], species: str | None, places: Sequence[float], log: bool) -> Picture:
    """f(v) at some x, at the times of the given planes."""
    where = list(places) or _places_of_cuts(run, planes)
    largest = max(float(plane.values.max()) for plane in planes)
    y = Axis("f(x, v)", run.density_unit("xv"), log, (_DEEP * largest, 2 * largest) if log else (0.0, 1.05 * largest))
    panels = []
    for place in where:
        curves = []
        for plane in planes:
            row = min(int(np.searchsorted(plane.x_edges, place, side="right")) - 1, len(plane.values) - 1)
            values = np.where(plane.values[row] > 0, plane.values[row], np.nan) if log else plane.values[row]
            curves.append(Curve(centres_of(plane.y_edges), values, f"t = {plane.time:g}"))
        title = f"at x = {place:.4g} {planes[0].x.unit}"
        panels.append(Panel(planes[0].y, y, title, tuple(curves)))
    title = f"Cuts through phase space{of_species(species)}"
    text = f"Density{of_species(species)} against v at some x, at several times"
    return Picture(f"cuts{suffix(species)}", title, text, tuple(panels), shared=True)


def _places_of_cuts(run: RunFiles, planes: Sequence[Plane]) -> list[float]:
    """x of the cuts: quarters of the box. Without a box, 1/8, 3/8, 5/8 and 7/8 of the particles are below them."""
    edges = planes[0].x_edges
    if run.lengths:
        return [float(edges[0] + part * (edges[-1] - edges[0])) for part in (0.0, 0.25, 0.5, 0.75)]
    below = np.cumsum(sum(plane.values.sum(axis=1) for plane in planes))
    return [float(np.interp(part, below / below[-1], edges[1:])) for part in (0.125, 0.375, 0.625, 0.875)]


def difference(run: RunFiles, other: RunFiles, species: str | None = None) -> Iterator[Picture]:
    """f of a run minus f of another run, at the times that both have; nothing if there are no common times.

    f comes from log f if both runs have it. Otherwise the noise of the particles would hide small differences.
    """
    ways = [("particles", can_interpolate(run, species) and can_interpolate(other, species)), ("histograms", True)]
    for what, possible in ways:
        ours, theirs = (
            {round(step * one.step_length, 9): step for step in one.steps_with(what)} for one in (run, other)
        )
        common = sorted(ours.keys() & theirs.keys()) if possible else []
        if len(common) < 2:
            continue
        times = [common[number] for number in spread(range(len(common)), PANELS)]
        sides = []
        for one, steps in ((run, ours), (other, theirs)):
            chosen = [steps[time] for time in times]
            found = interpolated(one, chosen, species) if what == "particles" else binned(one, chosen, species)
            sides.append({round(plane.time, 9): plane for plane in found})
        planes = [
            _minus(mine, sides[1][time])
            for time, mine in sides[0].items()
            if time in sides[1] and _is_alike(mine, sides[1][time])
        ]
        if planes:
            title = f"Phase space{of_species(species)}, difference from {other.folder.path.resolve().name}"
            name = f"difference_from_{other.folder.path.resolve().name}{suffix(species)}"
            yield _side_by_side(planes, name, title, signed=True)
            return


def _is_alike(ours: Plane, theirs: Plane) -> bool:
    """Whether two densities have the same cells."""
    edges = ((ours.x_edges, theirs.x_edges), (ours.y_edges, theirs.y_edges))
    return all(mine.shape == other.shape and np.allclose(mine, other) for mine, other in edges)


def _minus(ours: Plane, theirs: Plane) -> Plane:
    values = ours.values - theirs.values
    return Plane(ours.time, values, ours.x_edges, ours.y_edges, ours.x, ours.y, f"difference of {ours.name}", ours.note)


def plane(run: RunFiles, names: tuple[str, str], species: str | None = None, *, log: bool = False) -> Iterator[Picture]:
    """The density of any two coordinates at several times: histograms of the particles, or from log f in 1D1V.

    Args:
        run: the files of the run.
        names: two of x, y, z, vx, vy, vz.
        species: the name of the species; None in a case without ``[species]``.
        log: use logarithmic scales.

    Raises:
        UserError: the run has no such coordinate, or no particles in its snapshots.
    """
    planes, ending = planes_of_coordinates(run, names, species), f"{suffix(species)}{_choice(log)}"
    log = log or any(map(hides_a_bump, planes))
    if planes:
        title = f"Plane of {planes[0].x.label} and {planes[0].y.label}{of_species(species)}"
        yield _side_by_side(planes, f"plane_{names[0]}_{names[1]}{ending}", title, log=log)


def _side_by_side(
    planes: Sequence[Plane], name: str, title: str, *, log: bool = False, signed: bool = False
) -> Picture:
    """A picture of several planes with the same colours."""
    limits = _limits(planes, log, signed)
    panels = tuple(_panel(plane, limits, log, signed) for plane in planes)
    return Picture(name, title + _how(planes[0]), f"{title}, at several times", panels, shared=True)


def _how(plane: Plane) -> str:
    """The part of a title that says how the density was computed."""
    return f", {plane.note}" if plane.note else ""


def _limits(planes: Sequence[Plane], log: bool, signed: bool = False) -> tuple[float, float]:
    top = top_of([np.abs(plane.values) for plane in planes], BRIGHT) or 1.0
    if signed:
        return -top, top
    return (max(_DEEP * top, 0.5 * planes[0].one) if log else 0.0), top


def hides_a_bump(plane: Plane) -> bool:
    """Whether f has a bump or a plateau that only a logarithmic scale shows.

    The mean of f over the other coordinate falls with v on both sides of its largest value. A bump is hidden if the
    mean stops falling below a quarter of that value. A Maxwellian hides nothing, and neither do two equal beams.
    Positions are not tested: a bunch may be anywhere in a box.
    """
    return any(
        _stops_falling_in_the_dark(plane, axis)
        for axis, of in enumerate((plane.x, plane.y))
        if of.label.startswith("v")
    )


def _stops_falling_in_the_dark(plane: Plane, axis: int) -> bool:
    """Whether f hides a bump or a plateau along one axis: see :func:`hides_a_bump`."""
    profile = plane.values.mean(axis=1 - axis)
    stretch = max(1, round(_STRETCH * len(profile)))
    profile = np.convolve(profile, np.ones(stretch) / stretch, mode="same")
    largest = float(profile.max())
    needed = max(_FAINT * largest, _FEW * plane.one / (stretch * plane.values.shape[1 - axis]))
    peak = int(profile.argmax())
    for falling in (profile[peak:], profile[peak::-1]):
        beyond = np.maximum.accumulate(falling[::-1])[::-1][stretch:]  # the largest value farther from the peak
        here = falling[: len(beyond)]
        if ((here < _DARK * largest) & (beyond > _KEPT * here) & (beyond > needed) & (beyond < _DARK * largest)).any():
            return True
    return False


def _panel(plane: Plane, limits: tuple[float, float], log: bool, signed: bool = False) -> Panel:
    values = np.maximum(plane.values, 1e-300) if log else plane.values
    image = Image(plane.x_edges, plane.y_edges, values, plane.name, limits, log, signed)
    return Panel(plane.x, plane.y, f"t = {plane.time:.4g}", image=image, note=_outside(plane))


def _outside(plane: Plane) -> str:
    """A sentence if a part of the mass that matters is outside of what is shown; empty otherwise."""
    if not plane.outside > _OUTSIDE:
        return ""
    return f"{100 * plane.outside:.2g}% of the particles are outside of the range shown."
