"""What figures are made from: the files of a run, at the times that are shown."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError
from hpc_kjko.files.output import Snapshot, list_contents, read_snapshot, skipping_damaged
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.post.panels import Axis
from hpc_kjko.post.summary import meaningful

Columns = dict[str, np.ndarray]
#: The first and the last time shown.
Window = tuple[float, float]

FROM_THE_START: Window = (-math.inf, math.inf)
TIME = Axis("time", "1/ω_p")
_POWERS = ("", "", "²", "³", "⁴", "⁵", "⁶")


@dataclass(frozen=True)
class RunFiles:
    """A run as figures see it.

    Attributes:
        series: the columns of its time series that say something of its case [rows], at the times shown; empty if it
            has none.
        window: the first and the last time shown.
    """

    folder: RunFolder
    case: RunCase
    series: Columns
    window: Window = FROM_THE_START

    @classmethod
    def of(cls, folder: RunFolder, window: Window = FROM_THE_START) -> RunFiles:
        """The run of a folder.

        Raises:
            UserError: it holds no readable case or time series, or no row at these times.
        """
        series = read_series(folder.series)
        if not len(series["time"]):
            raise UserError(f"{folder.series}: has no rows yet: wait for the first step of the run")
        case = RunCase(folder.case)
        return cls(folder, case, meaningful(within(series, window), case), window)

    @property
    def species(self) -> Sequence[str | None]:
        """The names of the species; None where the case names none."""
        return self.case.species or [None]

    @property
    def has_walls(self) -> bool:
        return set(self.case.value("problem.boundary", ["periodic"])) != {"periodic"}

    @property
    def step_length(self) -> float:
        """The time step h."""
        return self.case.number("time.step")

    @property
    def lengths(self) -> tuple[float, ...]:
        """Those of the box [dx]; none in unbounded space."""
        value = self.case.value("problem.length")
        if value is None:
            return ()
        given = value if isinstance(value, list) else [value]
        return tuple(given) if len(given) > 1 else tuple(given) * int(self.case.number("problem.space_dims"))

    def particles_of(self, species: str | None) -> int:
        """How many there are of a species; of the only one for None."""
        return int(self.case.number(f"species.{species}.count")) if species else self.case.particle_count

    def density_unit(self, kinds: str) -> str:
        """The unit of the density of some coordinates, with all others integrated out.

        Args:
            kinds: of the coordinates: "xv" for f(x, v_1).
        """
        left = len(self.lengths) - kinds.count("x")  # directions of space that are integrated over, or −1 without a box
        powers = {"n̄": bool(self.lengths), "v_th": left - kinds.count("v"), "ω_p": -left}
        above, below = (
            [f"{name}{_POWERS[abs(power)]}" for name, power in powers.items() if power * sign > 0] for sign in (1, -1)
        )
        under = " ".join(below) if len(below) < 2 else f"({' '.join(below)})"
        return "/".join([" ".join(above) or "1", *([under] if below else [])])

    @property
    def title(self) -> str:
        """Which run it is, in a line."""
        return self.title_of(None)

    def title_of(self, species: str | None) -> str:
        """Which run it is, or which of its species with its own κ and N, in a line."""
        case = self.case
        kind, strength = case.word("problem.kind").replace("_", " "), case.collision_strength
        particles = case.particle_count
        if species:
            kind, particles = f"{species}: {kind}", int(case.number(f"species.{species}.count"))
            if strength and not case.collide_together:
                strength = case.number(f"species.{species}.collision_strength")
        return f"{kind}, {case.dims}, κ = {strength:g}, N = {particles}, h = {case.number('time.step'):g}"

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
        """Those of some steps that are sound, one after the other; a warning names one that is not.

        Args:
            fields: whether with density, potential and E.
            rows: which particles; None for none.
        """
        for step in steps:
            with skipping_damaged():
                yield read_snapshot(self.folder.snapshots, step, rows, fields=fields, species=species)


def within(series: Columns, window: Window) -> Columns:
    """The rows of a series at the times of a window.

    Raises:
        UserError: there are none.
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
    """Not more than ``most`` of the steps, the first and the last among them."""
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def of_species(species: str | None) -> str:
    """What a species adds to a title."""
    return f" of {species}" if species else ""


def suffix(species: str | None) -> str:
    """What a species adds to the name of a file."""
    return f"_{species}" if species else ""


def coordinate(kind: str, axis: int, dims: int) -> str:
    """The symbol of a coordinate: x and v in 1D1V, else x_1, v_1, …

    Args:
        dims: dimensions of space and velocity together.
    """
    return kind if dims <= 2 else f"{kind}_{axis + 1}"


def coordinate_axis(kind: str, axis: int, dims: int) -> Axis:
    """The axis of a coordinate."""
    return Axis(coordinate(kind, axis, dims), "v_th/ω_p" if kind == "x" else "v_th")


def top_of(values: Sequence[np.ndarray], percentile: float) -> float:
    """The top of colours: a percentile of what is above zero in each, the largest of all. Noise alone is beyond it."""
    filled = [of_one[of_one > 0] for of_one in values if (of_one > 0).any()]
    return max((float(np.percentile(of_one, percentile)) for of_one in filled), default=0.0)


def quantile(values: np.ndarray, part: float) -> float:
    """What this part of the finite values is below; 0 if there are none."""
    values = values[np.isfinite(values)]
    return float(np.quantile(values, part)) if values.size else 0.0


def edges_of(centres: np.ndarray) -> np.ndarray:
    """Edges [n + 1] of cells around rising points [n], in the middle between them."""
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
