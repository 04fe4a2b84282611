"""The grid solver for the case of a run: columns to compare with the run, and f at some times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.ndimage
import torch

from hpc_kjko import usercode
from hpc_kjko.case import config
from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import ExternalField
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.files.storage import warn_once
from hpc_kjko.operators import OPERATORS
from hpc_kjko.post.summary import COMPARED, Columns
from hpc_kjko.problems.density import Density, normal_bins
from hpc_kjko.problems.perturbed import PerturbedWave
from hpc_kjko.reference.grid_1d1v import GridSolution, TooNarrow, solve
from hpc_kjko.running.assembly import collision_strength

#: Cells of the spline beyond both ends of x, and the smallest f (relative to the largest) at which log f is used.
AROUND, FAINTEST = 8, 1e-13

#: The grid reaches as far as the problem's window times these factors (x, v), and in v at least to _REACH.
_REACH_X, _REACH_V, _REACH = 1.45, 1.15, 8.0
#: How often the grid may be enlarged by a half, at the same spacing, if f is not negligible at its ends in v.
_WIDENINGS = 6


def grid_columns(folder: RunFolder) -> Columns:
    """The columns of the grid solution, up to the time that the run has reached.

    Raises:
        UserError: the grid solver cannot solve this case.
    """
    usercode.look_in(folder.code)
    case = config.load(folder.case)  # imports the user's code; its files are known only afterwards
    say_changed_code(folder, case)
    reached = read_series(folder.series)["time"]
    solution = _solved(folder, case, end=float(reached[-1]) if len(reached) else case.time.end)
    columns = {name: getattr(solution, name) for name in COMPARED if name != "kl"}
    return {"time": solution.times, **columns, "kl": solution.relative_entropy / solution.mass}


def say_changed_code(folder: RunFolder, case: config.Case) -> None:
    """Warn if the user's own modules, which are needed to read a run, have changed since the run."""
    for file in folder.changed_code(usercode.files_of(case.table())):
        warn_once(f"{file} has changed since the run began (the copy is in {folder.code}): the changed file is used")


def _solved(folder: RunFolder, case: config.Case, **settings: Any) -> GridSolution:
    """The grid solution for the case of a run. The settings are those of :func:`grid_solution`."""
    for there, what in (
        (case.species, "several species"),
        (case.physics.drive is not None, "a drive"),
        (case.problem.walls is not None, "walls"),
        (any(case.physics.magnetic_field), "magnetic field"),
        (OPERATORS[case.physics.collision_operator].sums_pairs, "Landau operator"),
    ):
        if there:
            raise UserError(f"{folder.path}: the grid solver has no {what}: compare with another run or a CSV file")
    if _others_at_start(case) is None:
        dims = f"{case.problem.space_dims}D{case.problem.velocity_dims}V"
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
        raise UserError(f"{folder.path}: the grid solver cannot solve this case: {failure}") from None


class GridDensity(Density):
    """f of the grid solver at one time, interpolated by a cubic spline of log f.

    Args:
        solution: the grid solution.
        snapshot: the index of the time in the solution.
        is_periodic: whether x is periodic. If not, f outside the grid has its value at the border.
        others: mean and variance of v_2, … at that time, [m] each. These velocities are normal and independent.
    """

    def __init__(self, solution: GridSolution, snapshot: int, is_periodic: bool, others: tuple[np.ndarray, np.ndarray]):
        self._others = others
        f = solution.snapshots[snapshot]
        self._axes = {"x": solution.x, "v": solution.v}
        self.mass = float(f.sum() * self._spacing("x") * self._spacing("v"))
        self._marginals = {"x": f.sum(1) * self._spacing("v"), "v": f.sum(0) * self._spacing("x")}
        log_f = np.log(np.maximum(f, FAINTEST * f.max()))
        around = np.pad(log_f, ((AROUND, AROUND), (0, 0)), mode="wrap" if is_periodic else "edge")
        self._spline = scipy.ndimage.spline_filter(around, order=3, mode="nearest")

    def log_density(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mean, variance = (torch.from_numpy(part).to(v) for part in self._others)
        exponents = -0.5 * ((v[:, 1:] - mean) ** 2 / variance + torch.log(2 * math.pi * variance))
        return self._between_cells(x, v) + exponents.sum(1)

    def score_v(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mean, variance = (torch.from_numpy(part).to(v) for part in self._others)
        spacing = self._spacing("v")
        change = self._between_cells(x, v + 0.5 * spacing) - self._between_cells(x, v - 0.5 * spacing)
        return torch.cat([change[:, None] / spacing, (mean - v[:, 1:]) / variance], dim=1)

    def marginal(self, kind: Literal["x", "v"], axis: int, edges: np.ndarray) -> np.ndarray:
        if kind == "v" and axis > 0:
            mean, variance = (float(part[axis - 1]) for part in self._others)
            return normal_bins(edges, mean, math.sqrt(variance))
        centres, half = self._axes[kind], 0.5 * self._spacing(kind)
        cumulative = np.append(0.0, np.cumsum(self._marginals[kind])) * 2 * half / self.mass
        return np.diff(np.interp(edges, np.append(centres - half, centres[-1] + half), cumulative))

    def _between_cells(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """log f as a function of x_1 and v_1 only: [n]."""
        places = [self._place("x", x) + AROUND, self._place("v", v)]
        found = scipy.ndimage.map_coordinates(self._spline, places, order=3, mode="nearest", prefilter=False)
        return torch.from_numpy(found).to(x)

    def _spacing(self, kind: str) -> float:
        return float(self._axes[kind][1] - self._axes[kind][0])

    def _place(self, kind: str, at: torch.Tensor) -> np.ndarray:
        """First coordinates of ``at`` [n, d] in units of cells, measured from the centre of the first cell: [n]."""
        return (at[:, 0].double().cpu().numpy() - self._axes[kind][0]) / self._spacing(kind)


def grid_densities(folder: RunFolder, case: config.Case, times: Sequence[float]) -> list[GridDensity]:
    """f of the grid solver at some times, for the case of a run.

    Raises:
        UserError: the grid solver cannot solve this case.
    """
    end = max(case.time.step, *times)
    solution = _solved(folder, case, end=end, snapshot_times=tuple(times))
    mean, variance = _others_at(case, np.array(times))
    is_periodic = case.problem.periods is not None
    return [GridDensity(solution, i, is_periodic, (mean[i], variance[i])) for i in range(len(times))]


def _others_at_start(case: config.Case) -> list[tuple[float, float]] | None:
    """Mean and variance of v_2, … at the start, if they stay normal and independent of x_1, v_1 and each other.

    None if the grid solver needs them (with the Dougherty operator, whose temperature includes all directions).
    """
    problem = case.problem
    physics = case.physics
    if problem.space_dims == problem.velocity_dims == 1:
        return []
    if problem.space_dims > 1 or any(physics.magnetic_field) or not isinstance(problem, PerturbedWave):
        return None
    if OPERATORS[physics.collision_operator].frame == "local":
        return None
    return problem.other_directions(case.physics.temperature)


def _others_at(case: config.Case, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [n, m] of v_2, … at times [n]. No force acts on these velocities, and the bath relaxes them."""
    others = _others_at_start(case)
    assert others is not None  # otherwise the grid solver has refused the case
    start = np.array(others).reshape(-1, 2)
    left = np.exp(-collision_strength(case) * times)[:, None]
    temperature = case.physics.temperature
    return left * start[:, 0], temperature + left**2 * (start[:, 1] - temperature)


def _with_others(solution: GridSolution, case: config.Case) -> GridSolution:
    """A solution for x_1 and v_1, with the energy and the entropy of v_2, … added to its series."""
    temperature = case.physics.temperature
    mean, variance = _others_at(case, solution.times)
    energy = 0.5 * solution.mass * (mean**2 + variance).sum(1)
    entropy = -0.5 * solution.mass * (1 + np.log(2 * math.pi * variance)).sum(1)
    log_partition = 0.5 * mean.shape[1] * math.log(2 * math.pi * temperature)
    return dataclasses.replace(
        solution,
        kinetic_energy=solution.kinetic_energy + energy,
        entropy=solution.entropy + entropy,
        free_energy=solution.free_energy + energy + temperature * entropy,
        relative_entropy=solution.relative_entropy + entropy + energy / temperature + solution.mass * log_partition,
    )


def grid_solution(
    case: config.Case,
    *,
    end: float | None = None,
    snapshot_times: tuple[float, ...] = (),
    cells: tuple[int, int] = (128, 1024),
    substeps: int = 2,
) -> GridSolution:
    """An independent solution of a 1D1V case, by the grid solver of ``hpc_kjko.reference``.

    The case may also have v_2, … if these stay normal and independent. They count in the energies and entropies of the
    series, and f is that of x_1 and v_1.

    Args:
        case: the case.
        end: the end time, a whole number of steps (default ``time.end``).
        snapshot_times: the times at which f is kept.
        cells: number of cells in x and in v.
        substeps: number of solver steps for each step of the case.

    Raises:
        ValueError: f is not negligible at the ends of even a larger grid, or a time is not a whole number of steps.
        UserError: the problem is the user's own and cannot be loaded.
    """
    problem, physics = case.problem, case.physics
    if problem.velocity_dims > 1:
        assert isinstance(problem, PerturbedWave)  # only such a problem has other velocities that are known
        problem = problem.first_direction()
    (window_x,), (window_v,) = problem.window
    velocity_max = max(_REACH, _REACH_V * window_v[1], _REACH * math.sqrt(physics.temperature))
    is_local = OPERATORS[physics.collision_operator].frame == "local"
    if is_local and isinstance(problem, PerturbedWave):
        # beams end as one Maxwellian with the temperature that follows from their energy
        velocity_max = max(velocity_max, _REACH * math.sqrt(problem.variances(physics.temperature)[0]))
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

    for _ in range(_WIDENINGS):
        try:
            solution = solve(
                density,
                length,
                collision_strength(case),
                physics.temperature,
                case.time.end if end is None else end,
                case.time.step / substeps,
                cells=cells,
                velocity_max=velocity_max,
                collision_operator="dougherty" if is_local else "bath",
                left=left,
                snapshot_times=snapshot_times,
                **given,
            )
            return _with_others(solution, case)
        except TooNarrow as failure:
            narrow = failure
            velocity_max, cells = 1.5 * velocity_max, (cells[0], cells[1] * 3 // 2)
    raise narrow
