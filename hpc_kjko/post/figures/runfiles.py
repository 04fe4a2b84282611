"""The files of a run from which figures are made, at the times that are shown."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError
from hpc_kjko.files.column_units import density_unit
from hpc_kjko.files.output import Snapshot, list_contents, read_snapshot, skipping_damaged
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.post.panels import Axis
from hpc_kjko.post.summary import meaningful

Columns = dict[str, np.ndarray]
#: The first and the last time that are shown.
Window = tuple[float, float]

FROM_THE_START: Window = (-math.inf, math.inf)
TIME = Axis("time", "1/ω_p")
#: Number of panels of a figure with one panel for each time, and number of curves in a figure of several times.
PANELS, TIMES = 6, 4
#: Number of pictures over time in a report.
FRAMES = 24


@dataclass(frozen=True)
class RunFiles:
    """A run, as the figures need it.

    Attributes:
        series: the columns of the time series that have a meaning for the case [rows] at the times shown; empty if
            there is no series.
        window: the first and the last time shown.
    """

    folder: RunFolder
    case: RunCase
    series: Columns
    window: Window = FROM_THE_START

    @classmethod
    def of(cls, folder: RunFolder, window: Window = FROM_THE_START) -> RunFiles:
        """The run in a folder.

        Raises:
            UserError: there is no readable case or time series, or no row at these times.
        """
        series = read_series(folder.series)
        if not len(series["time"]):
            raise UserError(f"{folder.series}: has no rows yet: wait for the first step of the run")
        case = RunCase(folder.case)
        return cls(folder, case, meaningful(within(series, window), case), window)

    @property
    def species(self) -> Sequence[str | None]:
        """The names of the species; [None] for a case without ``[species]``."""
        return self.case.species or [None]

    @property
    def has_walls(self) -> bool:
        return set(self.case.value("problem.boundary", ["periodic"])) != {"periodic"}

    @property
    def step_length(self) -> float:
        """The time step h, in 1/ω_p."""
        return self.case.number("time.step")

    @property
    def lengths(self) -> tuple[float, ...]:
        """The lengths of the box [dx]; empty in unbounded space."""
        given = self.case.value("problem.length", [])
        given = given if isinstance(given, list) else [given]
        return tuple(given) * self.case.box_dims if len(given) == 1 else tuple(given)

    def particles_of(self, species: str | None) -> int:
        """The number of particles of a species; None means the only species."""
        return int(self.case.number(f"species.{species}.count")) if species else self.case.particle_count

    def density_unit(self, kinds: str) -> str:
        """The unit of the density of some coordinates, integrated over all others.

        Args:
            kinds: the kinds of the coordinates, for example "xv" for f(x, v_1).
        """
        return density_unit(kinds, len(self.lengths))

    @property
    def title(self) -> str:
        """A short description of the run, in one line."""
        return self.title_of(None)

    def title_of(self, species: str | None) -> str:
        """A short description of the run or of one of its species with its own κ and N, in one line."""
        case = self.case
        kind, strength = case.word("problem.kind").replace("_", " "), case.strength_words
        particles = case.particle_count
        if species:
            kind, particles = f"{species}: {kind}", int(case.number(f"species.{species}.count"))
            if case.collision_strength and not case.collide_together:
                strength = f"κ = {case.number(f'species.{species}.collision_strength'):g}"
        return f"{kind}, {case.dims}, {strength}, N = {particles}, h = {case.number('time.step'):g}"

    @functools.cached_property
    def _contents(self) -> dict[int, set[str]]:
        return list_contents(self.folder.snapshots)

    def steps_with(self, what: str) -> list[int]:
        """Steps of the snapshots that hold "fields", "histograms" or "particles", at the times shown."""
        steps = [step for step, contents in self._contents.items() if what in contents]
        slack = 1e-9 * self.step_length
        return [step for step in steps if self.window[0] - slack <= step * self.step_length <= self.window[1] + slack]

    def snapshots(
        self, steps: Sequence[int], *, fields: bool = False, species: str | None = None, rows: slice | None = None
    ) -> Iterator[Snapshot]:
        """Read the undamaged snapshots of some steps one after the other; a warning names damaged ones.

        Args:
            steps: the steps.
            fields: read density, potential and E too.
            species: the name of the species.
            rows: the particles to read; None for no particles.
        """
        for step in steps:
            with skipping_damaged():
                yield read_snapshot(self.folder.snapshots, step, rows, fields=fields, species=species)


def within(series: Columns, window: Window) -> Columns:
    """The rows of a series at the times of a window.

    Raises:
        UserError: there are no such rows.
    """
    time = series["time"]
    slack = 1e-9 * abs(time[-1])
    inside = (time >= window[0] - slack) & (time <= window[1] + slack)
    if not inside.any():
        raise UserError(
            f"--from {window[0]:g} --to {window[1]:g}: the run has no row there; it has t = {time[0]:g} to {time[-1]:g}"
        )
    return {name: values[inside] for name, values in series.items()}


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the steps, including the first and the last one."""
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def of_species(species: str | None) -> str:
    """The words for a species in a title; empty without a species."""
    return f" of {species}" if species else ""


def suffix(species: str | None) -> str:
    """The end of a file name for a species; empty without a species."""
    return f"_{species}" if species else ""


def coordinate(kind: str, axis: int, dims: int) -> str:
    """The symbol of a coordinate: x and v in 1D1V, otherwise x_1, v_1, …

    Args:
        dims: the number of space and velocity dimensions together.
    """
    return kind if dims <= 2 else f"{kind}_{axis + 1}"


def coordinate_axis(kind: str, axis: int, dims: int) -> Axis:
    """The axis of a coordinate."""
    return Axis(coordinate(kind, axis, dims), "v_th/ω_p" if kind == "x" else "v_th")


def top_of(values: Sequence[np.ndarray], percentile: float) -> float:
    """The upper end of a colour scale: the largest over all arrays of this percentile of their positive values."""
    filled = [of_one[of_one > 0] for of_one in values if (of_one > 0).any()]
    return max((float(np.percentile(of_one, percentile)) for of_one in filled), default=0.0)


def quantile(values: np.ndarray, part: float) -> float:
    """The quantile of the finite values; 0 if there are none."""
    values = values[np.isfinite(values)]
    return float(np.quantile(values, part)) if values.size else 0.0


def edges_of(centres: np.ndarray) -> np.ndarray:
    """Edges [n + 1] of cells around ascending points [n]. They lie in the middle between the points."""
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def centres_of(edges: np.ndarray) -> np.ndarray:
    """Centres [n] of cells with the edges [n + 1]."""
    return 0.5 * (edges[1:] + edges[:-1])
