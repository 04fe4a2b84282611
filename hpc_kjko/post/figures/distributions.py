"""Figures of f: marginals, phase space from log f or as histograms, cuts through it, differences of two runs.

Particles carry log f. Where phase space has two dimensions, log f is interpolated linearly over the triangles that the
particles make. So 8192 particles give as smooth a picture as a histogram of millions. In more dimensions particles are
too sparse for that, and what is drawn are histograms.
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

#: Panels of the phase-space figure.
PANELS = 6
#: Pictures of phase space in a report or a movie.
FRAMES = 24
#: Times of the marginals, and of cuts.
TIMES = 4
#: The percentage of the filled bins of phase space that the colours are made for: a few that noise fills are beyond.
BRIGHT = 99.5
#: Particles that log f is interpolated between: more take longer, a second for so many, and look the same.
MOST_PARTICLES = 32768
#: Particles in a histogram of two coordinates.
MOST_IN_HISTOGRAM = 1 << 22
#: Particles that show whether a run keeps log f.
_FEW_PARTICLES = 4096
#: Cells of an interpolated phase space, along x and along v.
CELLS = (192, 192)
#: A logarithmic scale of f goes down to this part of its largest value.
_DEEP = 1e-3
#: Linear colours and axes leave what is below this part of the largest f in the dark.
_DARK = 0.25
#: f stops falling where over this part of an axis it keeps this part of its value.
_STRETCH, _KEPT = 0.05, 0.9
#: A bump of f is not looked for below this part of the largest f, nor among fewer particles than these.
_FAINT, _FEW = 1e-3, 50
#: Particles in a bin of a marginal, on average, and the fewest bins.
_IN_A_BIN, _FEWEST_BINS = 200, 40


#: What is beyond a box.
Beyond = Literal["period", "walls", "nothing"]

#: What is said of densities that are no more than that.
_HISTOGRAM = "a histogram of the particles"


@dataclass(frozen=True)
class Plane:
    """Density of two coordinates at a time.

    Attributes:
        time: when; values: [nx, ny]; x_edges, y_edges: [nx + 1] and [ny + 1]; x, y: the axes.
        name: of the density; note: how it was found, if that must be said.
        one: the density that one particle makes in a cell; 0 where there is no such noise.
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
    """Marginals of every coordinate at several times, and the equilibrium's; nothing without snapshots of them.

    Where there is a mesh, those of x are left out: the density on it says the same with less noise.
    """
    snapshots = list(run.snapshots(spread(run.steps_with("histograms"), TIMES), species=species))
    if not snapshots:
        return
    known: dict[tuple[str, int], Marginal] = {}
    with contextlib.suppress(DamagedFile):  # who reads the series says so
        known = {(marginal.kind, marginal.axis): marginal for marginal in read_equilibrium(run.folder.series)}
    panels = []
    dims = len(snapshots[0].marginals)
    for number, first in enumerate(snapshots[0].marginals):
        if first.kind == "x" and run.steps_with("fields"):
            continue
        curves, noises = [], []
        for snapshot in snapshots:
            found = _merged(snapshot.marginals[number], run.particles_of(species))
            edges = _edges(found)
            # the mass of a case's only species is ∫f; of one of several, what the window holds of it
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
        if first.kind == "x" and least > 0.5 * most:  # it hardly differs from its mean: how it does
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
    """A density over its mean, less 1."""
    mean = curve.y.mean()
    raw = None if curve.raw is None else curve.raw / mean - 1
    return dataclasses.replace(curve, y=curve.y / mean - 1, raw=raw)


def _merged(marginal: Marginal, particles: int) -> Marginal:
    """The marginal in fewer bins, if there are few particles."""
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
    """f(x, v_x) at several times in one picture and, if f is from log f, f(v) at some x in another.

    Nothing without snapshots of particles or histograms.

    Args:
        log: logarithmic scales of f, also where linear ones hide nothing.
        places: x of the cuts; by default quarters of the box, or without one where the particles are.
    """
    planes = planes_of(run, species, most)
    log = log or any(map(hides_a_bump, planes))
    if planes:
        name = f"phase_space{suffix(species)}"
        yield _side_by_side(planes, name, f"Phase space{of_species(species)}", log=log)
        if planes[0].note != _HISTOGRAM:  # which is too noisy for it
            yield _cuts(run, [planes[number] for number in spread(range(len(planes)), TIMES)], species, places, log)


def phase_space_frames(
    run: RunFiles, species: str | None = None, most: int = FRAMES, *, log: bool = False
) -> Iterator[Picture]:
    """The same at up to ``most`` times, a picture of each; all have the same colours."""
    planes = planes_of(run, species, most, frequent=True)
    log = log or any(map(hides_a_bump, planes))
    limits = _limits(planes, log)
    for number, plane in enumerate(planes):
        yield Picture(
            f"phase_space{suffix(species)}_{number:04d}",
            f"Phase space{of_species(species)}, {plane.note}",
            f"Phase space{of_species(species)} at t = {plane.time:g}",
            (_panel(plane, limits, log),),
            time=plane.time,
        )


def planes_of(run: RunFiles, species: str | None, most: int, *, frequent: bool = False) -> list[Plane]:
    """f(x, v_x) at up to ``most`` times: from log f where that can be, else histograms.

    Args:
        frequent: prefer histograms if these are of more times, as for a movie.
    """
    by_log_f = run.steps_with("particles") if can_interpolate(run, species) else []
    by_bins = run.steps_with("histograms")
    if len(by_log_f) > 1 and (not frequent or len(by_log_f) >= min(most, len(by_bins))):
        return interpolated(run, spread(by_log_f, most), species)
    return _binned(run, spread(by_bins, most), species)


def _binned(run: RunFiles, steps: Sequence[int], species: str | None) -> list[Plane]:
    """f(x, v_x) as histograms, at some steps."""
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
    """A histogram [2n, 2n] in fewer bins, until these hold two particles on average, but not in fewer than 32²."""
    while len(values) > 32 and particles < 2 * values.size and not len(values) % 2:
        values = values.reshape(len(values) // 2, 2, values.shape[1] // 2, 2).mean(axis=(1, 3))
    return values


def can_interpolate(run: RunFiles, species: str | None) -> bool:
    """Whether particles carry log f, and their phase space has two dimensions, and matplotlib finds the triangles."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    dims = {run.case.number("problem.space_dims"), run.case.number("problem.velocity_dims")}
    return dims == {1} and _tracks_log_f(run, species)


def _tracks_log_f(run: RunFiles, species: str | None) -> bool:
    """Whether the last snapshot of particles has log f: the first one has it even of a run that then loses it."""
    for step in reversed(run.steps_with("particles")):
        with skipping_damaged(), particle_file(run.folder.snapshots, step, species) as file:
            return bool(np.isfinite(file.rows(slice(_FEW_PARTICLES))["log_f"]).any())
    return False


def interpolated(run: RunFiles, steps: Sequence[int], species: str | None) -> list[Plane]:
    """f(x, v) from the log f of particles at some steps, in 1D1V."""
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
    """f at the centres of cells [nx, nv], from log f at particles, linear over the triangles that these make.

    It is 0 beyond the outermost particles.

    Args:
        x, v, log_f: of the particles [n].
        x_edges, v_edges: of the cells [nx + 1] and [nv + 1].
        beyond: what is beyond the first and the last edge of x: the box again, its image f(−x, −v), or nothing.
    """
    from matplotlib.tri import LinearTriInterpolator, Triangulation  # which takes half a second to load

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
    scales = np.ptp(x_edges), np.ptp(v_edges)  # so that triangles are not long and thin
    triangles = Triangulation(x / scales[0], v / scales[1])
    centres = np.meshgrid(_centres(x_edges) / scales[0], _centres(v_edges) / scales[1], indexing="ij")
    return np.exp(LinearTriInterpolator(triangles, log_f)(*centres).filled(-np.inf))


def _particles(run: RunFiles, steps: Sequence[int], species: str | None, most: int) -> Iterator[Snapshot]:
    """Snapshots with every n-th particle, about ``most`` of them at most, and the ranges of their histograms.

    n is odd: every second point of a Sobol sequence, as a quiet start has it, is in the same half of phase space.
    """
    for step in steps:
        with skipping_damaged():
            with particle_file(run.folder.snapshots, step, species) as file:
                every = -(-file.total // most) | 1
            yield from run.snapshots([step], species=species, rows=slice(None, None, every))


def _ranges(
    run: RunFiles, snapshot: Snapshot, x: np.ndarray, v: np.ndarray
) -> tuple[tuple[float, float], tuple[float, float]]:
    """What is shown of x and v."""
    found = {(marginal.kind, marginal.axis): marginal.range for marginal in snapshot.marginals}
    length = run.lengths
    of_x = (0.0, length[0]) if length else found.get(("x", 0), (float(x.min()), float(x.max())))
    reach = float(np.abs(v).max())
    return of_x, found.get(("v", 0), (-reach, reach))


def _cuts(run: RunFiles, planes: Sequence[Plane], species: str | None, places: Sequence[float], log: bool) -> Picture:
    """f(v) at some x, at the times of some planes."""
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
    """Quarters of the box; without a box, where an eighth of the particles and every quarter more are below."""
    edges = planes[0].x_edges
    if run.lengths:
        return [float(edges[0] + part * (edges[-1] - edges[0])) for part in (0.0, 0.25, 0.5, 0.75)]
    below = np.cumsum(sum(plane.values.sum(axis=1) for plane in planes))
    return [float(np.interp(part, below / below[-1], edges[1:])) for part in (0.125, 0.375, 0.625, 0.875)]


def difference(run: RunFiles, other: RunFiles, species: str | None = None) -> Iterator[Picture]:
    """f of a run less f of another one at the times that both have; nothing if there are none.

    From log f where both have it, so that noise of the particles does not drown what differs.
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
    """Whether two densities are of the same cells."""
    edges = ((ours.x_edges, theirs.x_edges), (ours.y_edges, theirs.y_edges))
    return all(mine.shape == other.shape and np.allclose(mine, other) for mine, other in edges)


def _minus(ours: Plane, theirs: Plane) -> Plane:
    values = ours.values - theirs.values
    return Plane(ours.time, values, ours.x_edges, ours.y_edges, ours.x, ours.y, f"difference of {ours.name}", ours.note)


def _side_by_side(
    planes: Sequence[Plane], name: str, title: str, *, log: bool = False, signed: bool = False
) -> Picture:
    """A picture of some planes with the same colours."""
    limits = _limits(planes, log, signed)
    panels = tuple(_panel(plane, limits, log, signed) for plane in planes)
    note = f", {planes[0].note}" if planes[0].note else ""
    return Picture(name, title + note, f"{title}, at several times", panels, shared=True)


def _limits(planes: Sequence[Plane], log: bool, signed: bool = False) -> tuple[float, float]:
    top = top_of([np.abs(plane.values) for plane in planes], BRIGHT) or 1.0
    if signed:
        return -top, top
    return (max(_DEEP * top, 0.5 * planes[0].one) if log else 0.0), top


def hides_a_bump(plane: Plane) -> bool:
    """Whether a linear scale would leave a bump or a plateau of f in the dark: then the scale is to be logarithmic.

    So it is if the mean of f over the other coordinate, on its way down from its largest value, stops falling below a
    quarter of it. A Maxwellian hides nothing, nor do two beams alike.
    """
    return any(_stops_falling_in_the_dark(plane, axis) for axis in (0, 1))


def _stops_falling_in_the_dark(plane: Plane, axis: int) -> bool:
    """The same along one axis of a plane."""
    profile = plane.values.mean(axis=1 - axis)
    stretch = max(1, round(_STRETCH * len(profile)))
    profile = np.convolve(profile, np.ones(stretch) / stretch, mode="same")
    largest = float(profile.max())
    needed = max(_FAINT * largest, _FEW * plane.one / (stretch * plane.values.shape[1 - axis]))
    peak = int(profile.argmax())
    for falling in (profile[peak:], profile[peak::-1]):
        beyond = np.maximum.accumulate(falling[::-1])[::-1][stretch:]  # the largest value further out
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
        names: two of x, y, z, vx, vy, vz.

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
    """The same with its axes exchanged."""
    return dataclasses.replace(
        plane, values=plane.values.T, x_edges=plane.y_edges, y_edges=plane.x_edges, x=plane.y, y=plane.x
    )


def _histogram(run: RunFiles, snapshot: Snapshot, chosen: Sequence[tuple[str, int]], species: str | None) -> Plane:
    """A histogram of two coordinates, in bins that hold some particles each."""
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
