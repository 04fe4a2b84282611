"""f as a function of two coordinates: from the particles' log f, or as a histogram.

The particles carry log f. If phase space has two dimensions, log f is interpolated linearly on triangles between the
particles. The picture from 8192 particles is then as smooth as a histogram of millions. In more dimensions the
particles are too sparse for this, and histograms are made.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpc_kjko.errors import UserError, one_of
from hpc_kjko.files.output import Snapshot, particle_file, skipping_damaged
from hpc_kjko.post.figures.runfiles import PANELS, RunFiles, centres_of, coordinate, coordinate_axis, spread
from hpc_kjko.post.panels import Axis

#: Largest number of particles for the interpolation of log f. More particles take longer and look the same.
MOST_PARTICLES = 32768
#: Largest number of particles in a histogram of two coordinates.
MOST_IN_HISTOGRAM = 1 << 22
#: Number of particles from which it is found out whether a run carries log f.
_FEW_PARTICLES = 4096
#: A particle is in the tails if its f is below this fraction of the largest.
_TAIL = 0.03
#: Cells of an interpolated phase space along x and along v.
CELLS = (192, 192)

#: What continues f beyond the edges of the box: its next period, its mirror image at a wall, or nothing.
Beyond = Literal["period", "walls", "nothing"]

#: Note for densities that are histograms.
HISTOGRAM = "a histogram of the particles"


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
        outside: the fraction of the mass that is outside of the cells.
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
    outside: float = 0.0


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
    return binned(run, spread(by_bins, most), species)


def planes_of_coordinates(run: RunFiles, names: tuple[str, str], species: str | None) -> list[Plane]:
    """The density of any two coordinates at several times: from log f in 1D1V if possible, otherwise histograms.

    Args:
        run: the files of the run.
        names: two of x, y, z, vx, vy, vz.
        species: the name of the species; None in a case without ``[species]``.

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
        advice = ""
        if {*names} == {"x", "vx"} and run.steps_with("histograms"):
            advice = ", or see the figure phase_space of 'kjko plot DIR', which is drawn from the histograms"
        raise UserError(
            f"--plane {','.join(names)}: the snapshots hold no particles: run with output.particles_every above "
            f"0{advice}"
        )
    if {*names} == {"x", "vx"} and can_interpolate(run, species):
        planes = interpolated(run, steps, species)
        return [_turned(one) for one in planes] if names[0] == "vx" else planes
    chosen = [known[name] for name in names]
    snapshots = _particles(run, steps, species, MOST_IN_HISTOGRAM)
    return [_histogram(run, snapshot, chosen, species) for snapshot in snapshots]


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
        outside = _outside([(x, edges[0]), (v, edges[1])], np.asarray(snapshot.weighting, np.float64))
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
                outside=outside,
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
        # triangles in the tails of f are large, so they reach farther beyond the edges
        margin = (last - first) * np.where(log_f > log_f.max() + np.log(_TAIL), min(0.5, 20 / np.sqrt(len(x))), 1.0)
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
    centres = np.meshgrid(centres_of(x_edges) / scales[0], centres_of(v_edges) / scales[1], indexing="ij")
    return np.exp(LinearTriInterpolator(triangles, log_f)(*centres).filled(-np.inf))


def binned(run: RunFiles, steps: Sequence[int], species: str | None) -> list[Plane]:
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
            # the marginal of x counts particles with any v
            outside = 1 - float(values.sum()) * cell / mass if mass else 0.0
            found.append(Plane(one.time, values, x_edges, v_edges, x_axis, v_axis, name, HISTOGRAM, of_one, outside))
    return found


def _coarser(values: np.ndarray, particles: int) -> np.ndarray:
    """Merge bins of a histogram [2n, 2n] until they contain two particles on average; at least 32² bins remain."""
    while len(values) > 32 and particles < 2 * values.size and not len(values) % 2:
        values = values.reshape(len(values) // 2, 2, values.shape[1] // 2, 2).mean(axis=(1, 3))
    return values


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


def _outside(coordinates: Sequence[tuple[np.ndarray, np.ndarray]], weighting: np.ndarray) -> float:
    """The fraction of the mass of particles that is outside of the cells.

    Args:
        coordinates: pairs of the values [n] of a coordinate of the particles, and the edges of its cells.
        weighting: the weights of the particles [n], or one weight for all [].
    """
    inside = np.logical_and.reduce([(values >= edges[0]) & (values <= edges[-1]) for values, edges in coordinates])
    weight = np.broadcast_to(weighting, len(inside))
    return float(weight[~inside].sum() / weight.sum())


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
    outside = _outside([(first, x_edges), (second, y_edges)], weight)
    values = values / area / kept
    return Plane(snapshot.time, values, x_edges, y_edges, x_axis, y_axis, name, HISTOGRAM, of_one, outside)
