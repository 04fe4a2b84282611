"""What the snapshots of a run say of its density: moments, marginals, histograms, distances from what is known.

All ranks read, each its own blocks, a bounded slab at a time. The numbers have the same bits on any number of ranks:
histograms count whole units of mass, and all else is the exact sum, rounded once, of one float64 number for each block
of BLOCK particles.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions import METHODS
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.diagnostics import (
    BINS,
    MARGINAL_BINS,
    Histogram,
    Marginal,
    exact_solution,
    histograms_of,
    local_histograms,
    local_marginals,
    marginal_errors,
    marginals_of,
    unit_of,
)
from hpc_kjko.errors import UserError
from hpc_kjko.output import ParticleFile, list_particles, particle_file, write_snapshot
from hpc_kjko.particles import BLOCK, PASS, Particles, Shard, equal_weights, passes
from hpc_kjko.problems import Problem
from hpc_kjko.problems.density import Density, GaussianDensity
from hpc_kjko.runfolder import RunFolder
from hpc_kjko.series import SeriesWriter
from hpc_kjko.storage import partial_name, writing

#: A weight is this part of the whole mass, times a whole number: sums stay below 2⁵³, where float64 is exact.
_UNIT = 2.0**-52


class ExactSum:
    """Sums of float64 numbers without rounding, which therefore do not depend on the order of the terms.

    Numbers are added up by exponent as integers, each mantissa in two halves, so that 2³⁶ of them fit.
    """

    _LOWEST, _EXPONENTS, _HALF = -1074, 2100, 26  # of frexp, which gives subnormal numbers one as low as -1073

    def __init__(self, size: int):
        self._halves = np.zeros((2, self._EXPONENTS, size), np.int64)

    def add(self, terms: np.ndarray) -> None:
        """Add finite numbers [size]."""
        fraction, exponent = np.frexp(terms)
        mantissa = np.ldexp(fraction, 53).astype(np.int64)
        place = exponent - self._LOWEST, np.arange(len(terms))
        self._halves[0][place] += mantissa >> self._HALF
        self._halves[1][place] += mantissa & (2**self._HALF - 1)

    def total(self, comm: Communicator) -> np.ndarray:
        """The sums over all ranks [size], correctly rounded. Collective."""
        halves = comm.sum(self._halves)
        totals = [0] * halves.shape[2]
        for exponent, column in zip(*np.nonzero(halves.any(0)), strict=True):
            upper, lower = (int(half) for half in halves[:, exponent, column])
            totals[column] += ((upper << self._HALF) + lower) << int(exponent)
        unit = 1 << (53 - self._LOWEST)
        return np.array([total / unit for total in totals])


@dataclass(frozen=True)
class Measured:
    """What is measured of one snapshot: a row of numbers by name, and densities."""

    row: dict[str, float]
    histograms: list[Histogram]
    marginals: list[Marginal]


class Analysis:
    """Measures the particles of a run's snapshots.

    The known density is the exact solution where the problem has one, else the equilibrium; of what a run cannot have
    there is no column, as in its time series.

    Raises:
        UserError: code of the user's that the case names cannot be had.
    """

    def __init__(self, case: Case, comm: Communicator):
        self.problem: Problem = case.problem
        self.comm = comm
        self._exact: Callable[[float], Density] | None = exact_solution(case)
        self._equilibrium = case.problem.equilibrium(case.physics.temperature)
        self._tracks_log_f = METHODS[case.method.collision].tracks_log_f
        kinds = (("x", case.problem.space_dims), ("v", case.problem.velocity_dims))
        self._coordinates = [f"{kind}_{axis + 1}" for kind, dims in kinds for axis in range(dims)]

    def measure(self, folder: Path | str, step: int) -> Measured:
        """Measure the snapshot of a step. Collective.

        Returns:
            The same on every rank.

        Raises:
            UserError: on all ranks, when the file is damaged or holds numbers that are not finite.
        """
        dims = len(self._coordinates)
        with self.comm.together():
            sums = ExactSum(1 + dims + dims * dims + 3)
            histograms = np.zeros((self.problem.space_dims, BINS, BINS))
            marginals = np.zeros((dims, MARGINAL_BINS))
            with particle_file(folder, step) as file:
                known = self._known(file.time)
                mine = Shard.of(file.total, self.comm.rank, self.comm.size)
                for first in range(mine.start, mine.stop, PASS):
                    particles = self._particles(file, Shard(first, min(first + PASS, mine.stop), file.total))
                    for rows in passes(len(particles.x), BLOCK):
                        terms = _block_sums(particles, rows, known)
                        if not np.isfinite(terms).all():
                            raise UserError(
                                f"{folder}: the particles of step {step} are not finite from row {first + rows.start} "
                                "on: move this snapshot out of the folder"
                            )
                        sums.add(terms)
                    counted = self._in_units(particles)
                    histograms += local_histograms(counted, self.problem)
                    marginals += local_marginals(counted, self.problem)
                unit = self.problem.mass * (1 / file.total if file.has_equal_weights else _UNIT)
        histograms, marginals = (unit * self.comm.sum(units) for units in (histograms, marginals))
        row = {"step": float(step), "time": file.time}
        row |= self._moments(sums.total(self.comm), known) | self._errors(marginals, known)
        return Measured(row, histograms_of(histograms, self.problem), marginals_of(marginals, self.problem))

    def _known(self, time: float) -> dict[str, Density]:
        exact = {"exact": self._exact(time)} if self._exact else {}
        return exact | ({"equilibrium": self._equilibrium} if self._equilibrium else {})

    def _particles(self, file: ParticleFile, shard: Shard) -> Particles:
        rows = file.rows(slice(shard.start, shard.stop))
        # copies, so that blocks begin at the same alignment however the rows were dealt
        x, v, log_f = (torch.from_numpy(rows[name]).clone() for name in ("position", "velocity", "log_f"))
        if not self._tracks_log_f:
            log_f = torch.zeros_like(log_f)
        problem, equal = self.problem, file.has_equal_weights
        weight = equal_weights(problem.mass, shard) if equal else torch.from_numpy(rows["weighting"]).clone()
        return Particles(x, v, log_f, weight, shard, problem.mass, problem.periods, has_equal_weights=equal)

    def _in_units(self, particles: Particles) -> Particles:
        """The particles with whole numbers for weights, whose sums are exact."""
        if particles.has_equal_weights:
            weight = equal_weights(float(particles.shard.total), particles.shard)
        else:
            weight = torch.round(particles.weight / (particles.mass * _UNIT))
        parts = {name: getattr(particles, name) for name in ("x", "v", "log_f", "shard", "mass", "periods")}
        return Particles(**parts, weight=weight, has_equal_weights=particles.has_equal_weights)

    def _moments(self, sums: np.ndarray, known: dict[str, Density]) -> dict[str, float]:
        """Columns made of the sums of all blocks."""
        names, dims, mass = self._coordinates, len(self._coordinates), self.problem.mass
        share, mean, second, rest = sums[0], sums[1 : 1 + dims], sums[1 + dims : -3], sums[-3:]
        covariance = second.reshape(dims, dims) - np.outer(mean, mean)
        v_squares = np.diag(second.reshape(dims, dims))[self.problem.space_dims :]
        row = {"mass": mass * share, "kinetic_energy": 0.5 * mass * v_squares.sum()}
        row |= {f"mean_{name}": value for name, value in zip(names, mean, strict=True)}
        for i, j in zip(*np.triu_indices(dims), strict=True):
            row[f"covariance_{names[i]}_{names[j]}"] = covariance[i, j]
        exact = known.get("exact")
        if isinstance(exact, GaussianDensity):
            row["mean_error"] = np.abs(mean - exact.mean).max()
            row["covariance_error"] = np.abs(covariance - exact.covariance).max()
        if self._tracks_log_f:
            row["entropy"] = mass * rest[0]
            row |= {f"kl_{name}": rest[0] - cross for name, cross in zip(known, rest[1:], strict=False)}
        return {name: float(value) for name, value in row.items()}

    def _errors(self, masses: np.ndarray, known: dict[str, Density]) -> dict[str, float]:
        if not known:
            return {}
        errors = marginal_errors(masses, self.problem.mass, self.problem, next(iter(known.values())))
        return {f"marginal_l1_{name}": error for name, error in zip(self._coordinates, errors, strict=True)}


def _block_sums(particles: Particles, rows: slice, known: dict[str, Density]) -> np.ndarray:
    """Sums over a block of share · (1, z, z zᵀ, log f, log of each known density) with z = (x, v); zeros fill up."""
    x, v, log_f = (getattr(particles, name)[rows] for name in ("x", "v", "log_f"))
    z, share = torch.cat([x, v], dim=1).double(), particles.shares()[rows]
    logs = [log_f.double(), *(density.log_density(x, v).double() for density in known.values())]
    logs += [torch.zeros_like(share)] * (3 - len(logs))
    products = (z[:, :, None] * z[:, None, :]).flatten(1)
    columns = torch.cat([torch.ones_like(z[:, :1]), z, products, torch.stack(logs, dim=1)], dim=1)
    return (share[:, None] * columns).T.contiguous().sum(1).numpy()


def analyse(folder: RunFolder, case: Case, comm: Communicator, header: dict[str, Any]) -> list[Path]:
    """Measure all snapshots with particles into ``folder.analysis``. Collective.

    ``moments.h5`` and ``moments.csv`` have a row for each snapshot; ``data%08d.h5``, in the openPMD standard, its
    histograms and marginals; ``marginals.csv`` all marginals.

    Args:
        folder: the run's; case: its case.
        header: what the analysis says of itself, into every HDF5 file, rank 0's.

    Returns:
        The files.

    Raises:
        UserError: on all ranks, when there are no particles, a file is damaged, or the results cannot be written.
    """
    with comm.together():
        steps = list_particles(folder.snapshots) if comm.is_root else []
        if comm.is_root and not steps:
            raise UserError(f"{folder.snapshots}: holds no particles: run the case with output.particles_every above 0")
        analysis = Analysis(case, comm)
    files, rows, lines = [], [], []
    for step in comm.bcast(steps):
        measured = analysis.measure(folder.snapshots, step)
        files.append(
            write_snapshot(
                folder.analysis,
                comm,
                step=step,
                time=measured.row["time"],
                time_step=case.time.step,
                run_attributes=header,
                histograms=measured.histograms,
                marginals=measured.marginals,
            )
        )
        rows.append(measured.row)
        lines += _marginal_lines(measured)
    with comm.together():
        if comm.is_root:
            files += _write_tables(folder.analysis, rows, lines, header)
    return files


def _marginal_lines(measured: Measured) -> list[list[Any]]:
    """Lines of marginals.csv: step, time, coordinate, centre of the bin, density."""
    lines = []
    for marginal in measured.marginals:
        (low, high), bins = marginal.range, len(marginal.values)
        centres = low + (np.arange(bins) + 0.5) * ((high - low) / bins)
        start = [int(measured.row["step"]), measured.row["time"], f"{marginal.kind}_{marginal.axis + 1}"]
        lines += [[*start, *pair] for pair in zip(centres.tolist(), marginal.values.tolist(), strict=True)]
    return lines


def _write_tables(
    folder: Path, rows: Sequence[dict[str, float]], marginal_lines: list[list[Any]], header: dict[str, Any]
) -> list[Path]:
    units = {name: unit_of(name) for name in rows[0]}
    series = SeriesWriter(folder / "moments.h5", list(rows[0]), units, attributes=header)
    for row in rows:
        series.append(row)
    series.close()
    tables = {
        "moments.csv": [list(rows[0]), *(list(row.values()) for row in rows)],
        "marginals.csv": [["step", "time", "coordinate", "centre", "density"], *marginal_lines],
    }
    for name, lines in tables.items():
        partial = partial_name(folder / name)
        with writing(folder / name):
            with open(partial, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)
            partial.replace(folder / name)
    return [folder / "moments.h5", *(folder / name for name in tables)]
