"""A run against another one, against the grid solver, or against a table of the user's: column by column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import torch

from hpc_kjko import config, usercode
from hpc_kjko.diagnostics import collision_strength
from hpc_kjko.errors import UserError
from hpc_kjko.fields import ExternalField
from hpc_kjko.problems.beams import PerturbedBeams
from hpc_kjko.problems.density import Density
from hpc_kjko.reference.grid_1d1v import GridSolution, solve
from hpc_kjko.runfolder import RunFolder
from hpc_kjko.series import read_series
from hpc_kjko.storage import warn_once

#: What is compared unless columns are named. Of mass and momentum, which theory keeps, relative errors say little.
COLUMNS = ("kinetic_energy", "field_energy", "potential_energy", "entropy", "free_energy", "kl")

#: Cells beyond both ends of x that a spline knows; log f is not followed further down than this part of the largest f.
AROUND, FAINTEST = 8, 1e-13

#: The word that stands for the grid solver in place of a reference.
GRID = "grid"

#: The grid reaches as far as this times the problem's window, and at least to 8.
_REACH_X, _REACH_V, _REACH = 1.45, 1.15, 8.0

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A column of a run and of its reference at the same times.

    Attributes:
        time, values, reference: [n].
        relative_l2: ‖values − reference‖ / ‖reference‖; infinite if only the reference vanishes.
        largest: the largest |values − reference|; at: its time.
    """

    column: str
    time: np.ndarray
    values: np.ndarray
    reference: np.ndarray

    @property
    def relative_l2(self) -> float:
        distance, norm = np.linalg.norm(self.values - self.reference), np.linalg.norm(self.reference)
        return float(distance / norm) if norm else math.inf if distance else 0.0

    @property
    def largest(self) -> float:
        return float(np.abs(self.values - self.reference).max())

    @property
    def at(self) -> float:
        return float(self.time[np.abs(self.values - self.reference).argmax()])


def reference_of(folder: RunFolder, other: str) -> Columns:
    """The columns of a reference for the run in ``folder``.

    Args:
        other: a run folder, a CSV file with a column ``time``, or "grid" for the grid solver on the run's own case.

    Raises:
        UserError: there is no such thing, it is damaged, or the grid solver cannot do the case.
    """
    if other == GRID:
        return _grid_columns(folder)
    path = Path(other)
    if path.is_dir():
        there = RunFolder(path)
        there.status()
        return read_series(there.series)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    raise UserError(f'{other}: give a run folder, a .csv file, or "{GRID}" for the grid solver')


def differences(ours: Columns, theirs: Columns, names: Sequence[str] = ()) -> list[Difference]:
    """Columns of a run and of its reference where both have times, at the times of the coarser of the two.

    The finer one is interpolated between its rows. Columns that nobody named and that vanish in both are left out.

    Raises:
        UserError: they have no such column in common, or no times.
    """
    for name in names:
        for columns, whose in ((ours, "the run"), (theirs, "the reference")):
            if name not in columns:
                raise UserError(f"--column {name}: {whose} has no such column; it has {', '.join(columns)}")
    shared = [
        name for name in ours if name in theirs and name not in ("step", "time") and not name.startswith("seconds")
    ]
    chosen = list(names) or [name for name in COLUMNS if name in shared]
    if not chosen:
        common = f"name one with --column: {', '.join(shared)}" if shared else "there is nothing to compare"
        raise UserError(f"run and reference share none of the columns {', '.join(COLUMNS)}: {common}")
    time = _common_times(ours["time"], theirs["time"])
    found = [
        Difference(name, time, np.interp(time, ours["time"], ours[name]), np.interp(time, theirs["time"], theirs[name]))
        for name in chosen
    ]
    return [one for one in found if names or one.values.any() or one.reference.any()] or found


def _common_times(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Times of the one with fewer of them where both are."""
    if not (len(first) and len(second)):
        raise UserError("a series has no rows yet: wait for the first step of the run")
    slack = 1e-9 * max(abs(first[-1]), abs(second[-1]))
    low, high = max(first[0], second[0]) - slack, min(first[-1], second[-1]) + slack
    inside = [times[(times >= low) & (times <= high)] for times in (first, second)]
    coarser = min(inside, key=len)
    if not len(coarser):
        raise UserError(
            f"no time in common: the run has t = {first[0]:g} to {first[-1]:g}, the reference {second[0]:g} to "
            f"{second[-1]:g}"
        )
    return coarser


def _read_csv(path: Path) -> Columns:
    """The columns of a table with a header line, one of them ``time``, which increases."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except OSError as failure:
        raise UserError(f"{path}: cannot read this table ({failure.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise UserError(f"{path}: is not a CSV table ({failure})") from None
    header = [name.strip() for name in lines[0]] if lines else []
    if "time" not in header or len(lines) < 2:
        raise UserError(f'{path}: needs a header line with a column "time", and rows below it')
    rows = []
    for number, line in enumerate(lines[1:], 1):
        try:
            row = [float(cell) for cell in line]
        except ValueError as failure:
            raise UserError(f"{path}: row {number}: {failure}: give numbers only") from None
        if len(row) != len(header) or not np.isfinite(row).all():
            raise UserError(f"{path}: row {number} must have a finite number for each of the {len(header)} columns")
        rows.append(row)
    columns = dict(zip(header, np.array(rows).T, strict=True))
    if not (np.diff(columns["time"]) > 0).all():
        raise UserError(f"{path}: the column time must increase from row to row")
    return columns


# -- the grid solver on a case ---------------------------------------------------------------------------------------


def _grid_columns(folder: RunFolder) -> Columns:
    """Columns of the grid's solution, as far as the run has come."""
    usercode.look_in(folder.code)
    case = config.load(folder.case, of_a_run=True)
    say_changed_code(folder, case)
    reached = read_series(folder.series)["time"]
    solution = _solved(folder, case, end=float(reached[-1]) if len(reached) else case.time.end)
    columns = {name: getattr(solution, name) for name in COLUMNS if name != "kl"}
    return {"time": solution.times, **columns, "kl": solution.relative_entropy / solution.mass}


def say_changed_code(folder: RunFolder, case: config.Case) -> None:
    """Warn of modules of the user's own, needed to look at a run, that are not those of the run."""
    for file in folder.changed_code(usercode.files_of(case.table())):
        warn_once(f"{file} has changed since the run began (the copy in {folder.code}): it is used as it is now")


def _solved(folder: RunFolder, case: config.Case, **settings: Any) -> GridSolution:
    """The grid's solution of a run's own case; settings as for :func:`grid_solution`."""
    problem = case.problem
    dims = f"{problem.space_dims}D{problem.velocity_dims}V"
    if dims != "1D1V":
        raise UserError(
            f"{folder.path}: the grid solver is for 1D1V, and the run is {dims}: compare with another run or a CSV file"
        )
    if case.physics.initial_field != "poisson":
        raise UserError(
            f'{folder.path}: the grid solver has no physics.initial_field = "{case.physics.initial_field}": '
            "compare with another run or a CSV file"
        )
    try:
        return grid_solution(case, **settings)
    except ValueError as failure:
        raise UserError(f"{folder.path}: the grid solver cannot do this case: {failure}") from None


class GridDensity(Density):
    """f of the grid solver at one time, between its cells: a cubic spline of log f.

    Args:
        snapshot: which of the solution's.
        is_periodic: whether x is; else f is what it is at the border outside.
    """

    def __init__(self, solution: GridSolution, snapshot: int, is_periodic: bool):
        f = solution.snapshots[snapshot]
        self._axes = {"x": solution.x, "v": solution.v}
        self.mass = float(f.sum() * self._spacing("x") * self._spacing("v"))
        self._marginals = {"x": f.sum(1) * self._spacing("v"), "v": f.sum(0) * self._spacing("x")}
        log_f = np.log(np.maximum(f, FAINTEST * f.max()))
        around = np.pad(log_f, ((AROUND, AROUND), (0, 0)), mode="wrap" if is_periodic else "edge")
        self._spline = scipy.ndimage.spline_filter(around, order=3, mode="nearest")

    def log_density(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        places = [self._place("x", x) + AROUND, self._place("v", v)]
        found = scipy.ndimage.map_coordinates(self._spline, places, order=3, mode="nearest", prefilter=False)
        return torch.from_numpy(found).to(x)

    def score_v(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        spacing = self._spacing("v")
        change = self.log_density(x, v + 0.5 * spacing) - self.log_density(x, v - 0.5 * spacing)
        return change[:, None] / spacing

    def marginal(self, kind: Literal["x", "v"], axis: int, edges: np.ndarray) -> np.ndarray:
        centres, half = self._axes[kind], 0.5 * self._spacing(kind)
        cumulative = np.append(0.0, np.cumsum(self._marginals[kind])) * 2 * half / self.mass
        return np.diff(np.interp(edges, np.append(centres - half, centres[-1] + half), cumulative))

    def _spacing(self, kind: str) -> float:
        return float(self._axes[kind][1] - self._axes[kind][0])

    def _place(self, kind: str, at: torch.Tensor) -> np.ndarray:
        """Coordinates [n, 1] in units of cells, from the first one's centre: [n]."""
        return (at[:, 0].double().cpu().numpy() - self._axes[kind][0]) / self._spacing(kind)


def grid_densities(folder: RunFolder, case: config.Case, times: Sequence[float]) -> list[GridDensity]:
    """The grid solver's f on a run's own case at some times.

    Raises:
        UserError: the solver cannot do this case.
    """
    end = max(case.time.step, *times)
    solution = _solved(folder, case, end=end, snapshot_times=tuple(times))
    return [GridDensity(solution, number, case.problem.periods is not None) for number in range(len(times))]


def grid_solution(
    case: config.Case,
    *,
    end: float | None = None,
    snapshot_times: tuple[float, ...] = (),
    cells: tuple[int, int] = (128, 1024),
    substeps: int = 2,
) -> GridSolution:
    """An independent solution of a 1D1V case, by the grid solver of ``hpc_kjko.reference``.

    Args:
        end: a whole number of steps (default ``time.end``).
        cells: of x and v.
        substeps: steps of the solver for each of the case.

    Raises:
        ValueError: f is not negligible where the grid ends, or a time is no whole number of steps.
        UserError: the problem is the user's own, and it cannot be had.
    """
    problem, physics = case.problem, case.physics
    (window_x,), (window_v,) = problem.window
    velocity_max = max(_REACH, _REACH_V * window_v[1], _REACH * math.sqrt(physics.temperature))
    if physics.collision_operator == "dougherty" and isinstance(problem, PerturbedBeams):
        # beams end in one Maxwellian as hot as their energy has it
        velocity_max = max(velocity_max, _REACH * math.hypot(problem.thermal_speed, problem.beam_speed))
    if problem.periods is None:
        half = max(_REACH, _REACH_X * window_x[1])
        length, left = 2 * half, -half
    else:
        length, left = problem.periods[0], 0.0
    given: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    if physics.field == "external":
        field = ExternalField(problem)
        given["potential"] = lambda x: problem.potential(torch.from_numpy(x[:, None].copy())).numpy()
        given["acceleration"] = lambda x: field.acceleration(torch.from_numpy(x[:, None].copy()))[:, 0].numpy()

    def density(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, v = np.broadcast_arrays(x, v)
        positions, velocities = (torch.from_numpy(z.reshape(-1, 1).copy()) for z in (x, v))
        return problem.log_density(positions, velocities, physics.temperature).exp().numpy().reshape(x.shape)

    return solve(
        density,
        length,
        collision_strength(case),
        physics.temperature,
        case.time.end if end is None else end,
        case.time.step / substeps,
        cells=cells,
        velocity_max=velocity_max,
        collision_operator=physics.collision_operator,
        left=left,
        snapshot_times=snapshot_times,
        **given,
    )
