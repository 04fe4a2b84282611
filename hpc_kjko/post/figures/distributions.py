"""Figures of f: marginals, phase space from log f or as histograms, cuts through it, and differences of two runs.

The particles carry log f. If phase space has two dimensions, log f is interpolated linearly on triangles between the
particles. The picture from 8192 particles is then as smooth as a histogram of millions. In more dimensions the
particles are too sparse for this, and histograms are drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpc_kjko.errors import DamagedFile, UserError, one_of
from hpc_kjko.files.binned import Marginal
from hpc_kjko.files.output import Snapshot, particle_file, skipping_damaged
from hpc_kjko.files.series import read_equilibrium
from hpc_kjko.post.figures.noise import noisy_note, waves_above_noise
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

#: Number of panels of the phase-space figure.
PANELS = 6
#: Number of pictures of phase space in a report or a movie.
FRAMES = 24
#: Number of times in figures of marginals and of cuts.
TIMES = 4
#: The colour scale ends at this percentile of the filled bins. A few bins with noise are above it.
BRIGHT = 99.5
#: Largest number of particles for the interpolation of log f. More particles take longer and look the same.
MOST_PARTICLES = 32768
#: Largest number of particles in a histogram of two coordinates.
MOST_IN_HISTOGRAM = 1 << 22
#: Number of particles from which it is found out whether a run carries log f.
_FEW_PARTICLES = 4096
#: Cells of an interpolated phase space along x and along v.
CELLS = (192, 192)
#: A logarithmic scale of f ends at this fraction of the largest value.
_DEEP = 1e-3
#: On a linear scale, f below this fraction of its largest value is too dark to be seen.
_DARK = 0.25
#: f has stopped falling if it keeps the fraction _KEPT of its value over the fraction _STRETCH of an axis.
_STRETCH, _KEPT = 0.05, 0.9
#: A bump of f is ignored below this fraction of the largest f, or if it contains fewer particles than _FEW.
_FAINT, _FEW = 1e-3, 50
#: Average number of particles in a bin of a marginal, and the smallest number of bins.
_IN_A_BIN, _FEWEST_BINS = 200, 40


#: What continues f beyond the edges of the box: its next period, its mirror image at a wall, or nothing.
Beyond = Literal["period", "walls", "nothing"]

#: Note for densities that are histograms.
_HISTOGRAM = "a histogram of the particles"


@dataclass(frozen=True)
class Plane:
    """Density of two coordinates at one time.

    Attributes:
        time: the time, in 1/ω_p.
        values: the density [nx, ny].
        x_edges, y_edges: edges of the cells [nx + 1] and [ny + 1].
        x, y: the axes.
        name: the name of the density.
        note: how the density was computed, if this must be said.
        one: the density of a cell with one particle; 0 if the density is not a histogram.
    """

    time: float
    values: np.ndarray
    x_edges: np.ndarray
    y_edges: np.ndarray
    x: Axis
    y: Axis
    name: str
    note: str = ""
    one: float = 0.0


# -- marginals -------------------------------------------------------------------------------------------------------


def marginals(run: RunFiles, species: str | None = None) -> Iterator[Picture]:
    """Marginals of every coordinate at several times, and that of the equilibrium; nothing without snapshots of them.

    With a mesh the marginals of x are left out, because the density on the mesh shows the same with less noise.
    """
    snapshots = list(run.snapshots(spread(run.steps_with("histograms"), TIMES), species=species))
    if not snapshots:
        return
    known: dict[tuple[str, int], Marginal] = {}
    collides = run.case.strength_of(species) if species else run.case.collision_strength
    with contextlib.suppress(DamagedFile):  # the code that reads the series reports this
        equilibrium = read_equilibrium(run.folder.series) if collides else []
        known = {(marginal.kind, marginal.axis): marginal for marginal in equilibrium}
    panels = []
    dims = len(snapshots[0].marginals)
    for number, first in enumerate(snapshots[0].marginals):
        if first.kind == "x" and run.steps_with("fields"):
            continue
        curves, noises = [], []
        for snapshot in snapshots:
            found = _merged(snapshot.marginals[number], run.particles_of(species))
            edges = _edges(found)
            # a case with one species: normalised by the mass ∫f; several species: by the mass inside the window
            whole = (found.values * np.diff(edges)).sum()
            mass = run.series["mass"][0] if run.series and species is None else whole
            values, raw = found.values / mass, None
            if first.kind == "x" and run.lengths:
                raw, mean = values, float(values.mean())
                waves, noise = waves_above_noise(raw / mean - 1, 0, run.particles_of(species), run.has_walls)
                values = mean * (1 + waves)
                noises.append(noise)
            curves.append(Curve(_centres(edges), values, f"t = {snapshot.time:g}", raw=raw))
        if (wanted := known.get((first.kind, first.axis))) is not None:
            curves.append(Curve(_centres(_edges(wanted)), wanted.values, "equilibrium", "reference"))
        least, most = (float(end([end(curve.y) for curve in curves])) for end in (np.min, np.max))
        if first.kind == "x" and least > 0.5 * most:  # the density is close to its mean, so show the relative change
            curves = [_about_its_mean(curve) for curve in curves]
            y, mean = Axis("n/⟨n⟩ − 1"), 1.0
        else:
            unit = "ω_p/v_th" if first.kind == "x" else "1/v_th"
            y = Axis("probability density", unit, limits=(0.0, 1.05 * most or 1.0))
        note = noisy_note("a histogram", mean * max(noises)) if noises else ""
        panels.append(Panel(coordinate_axis(first.kind, first.axis, dims), y, curves=tuple(curves), note=note))
    yield Picture(
        f"marginals{suffix(species)}",
        f"Marginal distributions{of_species(species)}",
        f"Distribution{of_species(species)} of each coordinate, at several times",
        tuple(panels),
    )


def _about_its_mean(curve: Curve) -> Curve:
    """The density divided by its mean, minus 1."""
    mean = curve.y.mean()
    raw = None if curve.raw is None else curve.raw / mean - 1
    return dataclasses.replace(curve, y=curve.y / mean - 1, raw=raw)


def _merged(marginal: Marginal, particles: int) -> Marginal:
    """The marginal with fewer bins, if there are few particles."""
    bins = len(marginal.values)
    wanted = [
        parts for parts in range(_FEWEST_BINS, bins + 1) if bins % parts == 0 and particles / parts >= _IN_A_BIN
    ] or [_FEWEST_BINS]
    if bins % wanted[-1]:
        return marginal
    values = marginal.values.reshape(wanted[-1], -1).mean(axis=1)
    return Marginal(marginal.kind, marginal.axis, values, marginal.range)


def _edges(marginal: Marginal) -> np.ndarray:
    return np.linspace(*marginal.range, len(marginal.values) + 1)


def _centres(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[1:] + edges[:-1])


# -- phase space -----------------------------------------------------------------------------------------------------


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
    planes = planes_of(run, species, most)
    log = log or any(map(hides_a_bump, planes))
    if planes:
        name = f"phase_space{suffix(species)}"
        yield _side_by_side(planes, name, f"Phase space{of_species(species)}", log=log)
        if planes[0].note != _HISTOGRAM:  # a histogram is too noisy for cuts
            yield _cuts(run, [planes[number] for number in spread(range(len(planes)), TIMES)], species, places, log)


def phase_space_frames(
    run: RunFiles, species: str | None = None, most: int = FRAMES, *, log: bool = False
) -> Iterator[Picture]:
    """The phase-space figure at up to ``most`` times, one picture for each time, all with the same colours."""
    yield from _frames(planes_of(run, species, most, frequent=True), species, log=log)


def _frames(planes: Sequence[Plane], species: str | None, *, log: bool) -> Iterator[Picture]:
    """One picture for each plane, all with the same colours."""
    log = log or any(map(hides_a_bump, planes))
    limits = _limits(planes, log)
    for number, plane in enumerate(planes):
        yield Picture(
            f"phase_space{suffix(species)}_{number:04d}",
            f"Phase space{of_species(species)}{_how(plane)}",
            f"Phase space{of_species(species)}{_how(plane)}, at t = {plane.time:g}",
            (_panel(plane, limits, log),),
            time=plane.time,
        )


def planes_of(run: RunFiles, species: str | None, most: int, *, frequent: bool = False) -> list[Plane]:
    """f(x, v_x) at up to ``most`` times: from log f if possible, otherwise histograms.

    Args:
        run: the files of the run.
        species: the name of the species; None in a case without ``[species]``.
        most: the largest number of times.
        frequent: prefer histograms if there are more of them, for example for a movie.
    """
    by_log_f = run.steps_with("particles") if can_interpolate(run, species) else []
    by_bins = run.steps_with("histograms")
    if len(by_log_f) > 1 and (not frequent or len(by_log_f) >= min(most, len(by_bins))):
        return interpolated(run, spread(by_log_f, most), species)
    return _binned(run, spread(by_bins, most), species)


def _binned(run: RunFiles, steps: Sequence[int], species: str | None) -> list[Plane]:
    """f(x, v_x) as histograms at the given steps."""
    found = []
    for one in run.snapshots(steps, species=species):
        for histogram in one.histograms[:1]:
            dims, values = len(one.marginals), _coarser(histogram.values, run.particles_of(species))
            x_edges, v_edges = (
                np.linspace(*limits, bins + 1)
                for limits, bins in zip((histogram.x_range, histogram.v_range), values.shape, strict=True)
            )
            x_axis, v_axis = (coordinate_axis(kind, histogram.axis, dims) for kind in "xv")
            name = f"f({x_axis.label}, {v_axis.label})  [{run.density_unit('xv')}]"
            cell = float((x_edges[1] - x_edges[0]) * (v_edges[1] - v_edges[0]))
            mass = float(one.marginals[0].values.mean() * np.ptp(one.marginals[0].range))
            of_one = mass / run.particles_of(species) / cell
            found.append(Plane(one.time, values, x_edges, v_edges, x_axis, v_axis, name, _HISTOGRAM, of_one))
    return found


def _coarser(values: np.ndarray, particles: int) -> np.ndarray:
    """Merge bins of a histogram [2n, 2n] until they contain two particles on average; at least 32² bins remain."""
    while len(values) > 32 and particles < 2 * values.size and not len(values) % 2:
        values = values.reshape(len(values) // 2, 2, values.shape[1] // 2, 2).mean(axis=(1, 3))
    return values


def can_interpolate(run: RunFiles, species: str | None) -> bool:
    """Whether the particles carry log f, phase space has two dimensions, and matplotlib can triangulate it."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    dims = {run.case.number("problem.space_dims"), run.case.number("problem.velocity_dims")}
    return dims == {1} and _tracks_log_f(run, species)


def _tracks_log_f(run: RunFiles, species: str | None) -> bool:
    """Whether the last snapshot of particles has log f. (The first one always has it, even if the run then loses
    it.)"""
    for step in reversed(run.steps_with("particles")):
        with skipping_damaged(), particle_file(run.folder.snapshots, step, species) as file:
            return bool(np.isfinite(file.rows(slice(_FEW_PARTICLES))["log_f"]).any())
    return False


def interpolated(run: RunFiles, steps: Sequence[int], species: str | None) -> list[Plane]:
    """f(x, v) from the log f of the particles at the given steps, in 1D1V."""
    found = []
    for snapshot in _particles(run, steps, species, MOST_PARTICLES):
        assert snapshot.position is not None and snapshot.velocity is not None and snapshot.log_f is not None
        x, v = (np.asarray(part[:, 0], np.float64) for part in (snapshot.position, snapshot.velocity))
        x_range, v_range = _ranges(run, snapshot, x, v)
        edges = [np.linspace(*limits, cells + 1) for limits, cells in zip((x_range, v_range), CELLS, strict=True)]
        beyond: Beyond = "walls" if run.has_walls else "period" if run.lengths else "nothing"
        values = f_from_log_f(x, v, np.asarray(snapshot.log_f, np.float64), edges[0], edges[1], beyond)
        x_axis, v_axis = (coordinate_axis(kind, 0, 2) for kind in "xv")
        found.append(
            Plane(
                snapshot.time,
                values,
                edges[0],
                edges[1],
                x_axis,
                v_axis,
                f"f(x, v)  [{run.density_unit('xv')}]",
                "from the particles' log f",
            )
        )
    return found


def f_from_log_f(
    x: np.ndarray, v: np.ndarray, log_f: np.ndarray, x_edges: np.ndarray, v_edges: np.ndarray, beyond: Beyond
) -> np.ndarray:
    """f at the centres of cells [nx, nv], from log f at particles, by linear interpolation on triangles between them.

    f is 0 beyond the outermost particles.

    Args:
        x, v, log_f: positions, velocities and log f of the particles [n].
        x_edges, v_edges: edges of the cells [nx + 1] and [nv + 1].
        beyond: what continues f beyond the edges of x: the next period of the box, the image f(−x, −v) at a wall, or
            nothing.

    Returns:
        f [nx, nv].
    """
    from matplotlib.tri import LinearTriInterpolator, Triangulation  # imported here because it takes half a second

    if beyond != "nothing":
        first, last = x_edges[[0, -1]]
        margin = (last - first) * min(0.5, 20 / np.sqrt(len(x)))
        low, high = x < first + margin, x > last - margin
        log_f = np.concatenate([log_f, log_f[low], log_f[high]])
        if beyond == "period":
            x = np.concatenate([x, x[low] + last - first, x[high] - last + first])
            v = np.concatenate([v, v[low], v[high]])
        else:
            x = np.concatenate([x, 2 * first - x[low], 2 * last - x[high]])
            v = np.concatenate([v, -v[low], -v[high]])
    scales = np.ptp(x_edges), np.ptp(v_edges)  # scale the coordinates, so that triangles are not long and thin
    triangles = Triangulation(x / scales[0], v / scales[1])
    centres = np.meshgrid(_centres(x_edges) / scales[0], _centres(v_edges) / scales[1], indexing="ij")
    return np.exp(LinearTriInterpolator(triangles, log_f)(*centres).filled(-np.inf))


def _particles(run: RunFiles, steps: Sequence[int], species: str | None, most: int) -> Iterator[Snapshot]:
    """Snapshots with every n-th particle (about ``most`` in all), and the ranges of their histograms.

    n is odd. The particles of a quiet start are points of a Sobol sequence, and every second point of it is in the same
    half of phase space.
    """
    for step in steps:
        with skipping_damaged():
            with particle_file(run.folder.snapshots, step, species) as file:
                every = -(-file.total // most) | 1
            yield from run.snapshots([step], species=species, rows=slice(None, None, every))


def _ranges(
    run: RunFiles, snapshot: Snapshot, x: np.ndarray, v: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of x and v that are shown."""
    found = {(marginal.kind, marginal.axis): marginal.range for marginal in snapshot.marginals}
    length = run.lengths
    of_x = (0.0, length[0]) if length else found.get(("x", 0), (float(x.min()), float(x.max())))
    reach = float(np.abs(v).max())
    return of_x, found.get(("v", 0), (-reach, reach))


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
            curves.append(Curve(_centres(plane.y_edges), values, f"t = {plane.time:g}"))
        title = f"at x = {place:.4g} {planes[0].x.unit}".replace("-", "−")
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
            found = interpolated(one, chosen, species) if what == "particles" else _binned(one, chosen, species)
            sides.append({round(plane.time, 9): plane for plane in found})
        planes = [
            _minus(mine, sides[1][time])
            for time, mine in sides[0].items()
            if time in sides[1] and _is_alike(mine, sides[1][time])
        ]
        if planes:
            title = f"Phase space{of_species(species)}, difference from {other.folder.path.name}"
            yield _side_by_side(planes, f"difference{suffix(species)}", title, signed=True)
            return


def _is_alike(ours: Plane, theirs: Plane) -> bool:
    """Whether two densities have the same cells."""
    edges = ((ours.x_edges, theirs.x_edges), (ours.y_edges, theirs.y_edges))
    return all(mine.shape == other.shape and np.allclose(mine, other) for mine, other in edges)


def _minus(ours: Plane, theirs: Plane) -> Plane:
    values = ours.values - theirs.values
    return Plane(ours.time, values, ours.x_edges, ours.y_edges, ours.x, ours.y, f"difference of {ours.name}", ours.note)


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
    return Panel(plane.x, plane.y, f"t = {plane.time:.4g}", image=image)


# -- planes that the user chooses ------------------------------------------------------------------------------------


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
    dims = [int(run.case.number(f"problem.{kind}_dims")) for kind in ("space", "velocity")]
    known = {
        f"{'v' * number}{axis}": (kind, place)
        for number, kind in enumerate("xv")
        for place, axis in enumerate("xyz"[: dims[number]])
    }
    for name in names:
        if name not in known:
            raise UserError(f"--plane {','.join(names)}: the run has no coordinate {name}: {one_of(name, known)}")
    steps = spread(run.steps_with("particles"), PANELS)
    if not steps:
        raise UserError(
            f"--plane {','.join(names)}: the snapshots hold no particles: run with output.particles_every above 0"
        )
    if {*names} == {"x", "vx"} and can_interpolate(run, species):
        planes = interpolated(run, steps, species)
        if names[0] == "vx":
            planes = [_turned(one) for one in planes]
    else:
        chosen = [known[name] for name in names]
        snapshots = _particles(run, steps, species, MOST_IN_HISTOGRAM)
        planes = [_histogram(run, snapshot, chosen, species) for snapshot in snapshots]
    log = log or any(map(hides_a_bump, planes))
    if planes:
        title = f"Plane of {planes[0].x.label} and {planes[0].y.label}{of_species(species)}"
        yield _side_by_side(planes, f"plane_{names[0]}_{names[1]}{suffix(species)}", title, log=log)


def _turned(plane: Plane) -> Plane:
    """The plane with its axes exchanged."""
    return dataclasses.replace(
        plane, values=plane.values.T, x_edges=plane.y_edges, y_edges=plane.x_edges, x=plane.y, y=plane.x
    )


def _histogram(run: RunFiles, snapshot: Snapshot, chosen: Sequence[tuple[str, int]], species: str | None) -> Plane:
    """A histogram of two coordinates. The bins are so large that each contains some particles."""
    assert snapshot.position is not None and snapshot.velocity is not None
    of = {"x": snapshot.position, "v": snapshot.velocity}
    ranges: dict[tuple[str, int], tuple[float, float]] = {
        (marginal.kind, marginal.axis): marginal.range for marginal in snapshot.marginals
    }
    dims = snapshot.position.shape[1] + snapshot.velocity.shape[1]
    first, second = (np.asarray(of[kind][:, axis], np.float64) for kind, axis in chosen)
    bins = int(np.clip(np.sqrt(len(first) / 8), 24, 128))
    x_edges, y_edges = (
        np.linspace(*ranges.get(one, (float(values.min()), float(values.max()))), bins + 1)
        for one, values in zip(chosen, (first, second), strict=True)
    )
    weight = np.broadcast_to(np.asarray(snapshot.weighting, np.float64), len(first))
    values, *_ = np.histogram2d(first, second, [x_edges, y_edges], weights=weight)
    area = np.diff(x_edges)[:, None] * np.diff(y_edges)
    kept = len(first) / run.particles_of(species)
    x_axis, y_axis = (coordinate_axis(kind, axis, dims) for kind, axis in chosen)
    unit = run.density_unit("".join(kind for kind, _ in chosen))
    labels = ", ".join(coordinate(kind, axis, dims) for kind, axis in chosen)
    name, of_one = f"f({labels})  [{unit}]", float(weight.mean() / area[0, 0]) / kept
    return Plane(snapshot.time, values / area / kept, x_edges, y_edges, x_axis, y_axis, name, _HISTOGRAM, of_one)
