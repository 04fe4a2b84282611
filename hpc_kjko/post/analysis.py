"""Measures f from the snapshots of a run: moments, marginals, histograms, and distances from known densities.

Each rank reads its own row blocks, in slabs of limited size. The results are equal, bit for bit, on any
number of ranks: the float64 sums of a row block do not depend on the rank, and they are rounded before
they are added (see ``exact``).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_kjko.case.config import Case
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.binned import Binned
from hpc_kjko.files.column_units import unit_of
from hpc_kjko.files.histograms import (
    BINS,
    MARGINAL_BINS,
    bins_of_density,
    histograms_of,
    local_histograms,
    local_marginals,
    marginal_errors,
    marginals_of,
)
from hpc_kjko.files.output import ParticleFile, list_particles, particle_file, write_snapshot
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter
from hpc_kjko.files.storage import partial_name, warn_once, writing
from hpc_kjko.operators import OPERATORS
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import summed
from hpc_kjko.particles.state import BLOCK, PASS, Particles, Shard, equal_weights, passes
from hpc_kjko.post.compare import grid_densities
from hpc_kjko.problems import Problem
from hpc_kjko.problems.density import Density, GaussianDensity
from hpc_kjko.running.assembly import exact_solution
from hpc_kjko.running.extensions import collision_class
from hpc_kjko.species import ONLY

#: Number of averaged logarithms of densities: that of the particles, and those that are known.
LOGS = 4


@dataclass(frozen=True)
class Measured:
    """The measurements of one snapshot: a row of numbers by name, and densities."""

    row: dict[str, float]
    binned: Binned


class Analysis:
    """Measures the particles of one species in the snapshots of a run.

    The known density is the exact solution if there is one, otherwise a reference if there is one, otherwise the
    equilibrium. Columns that a run cannot have are left out, as in its time series.

    Args:
        species: the name of the species; None in a case without ``[species]``.
        references: other known densities, by step.

    Raises:
        UserError: the user's own code that the case names cannot be loaded.
    """

    def __init__(
        self,
        case: Case,
        comm: Communicator,
        references: Mapping[int, Density] | None = None,
        species: str | None = None,
    ):
        self._references = references or {}
        self.problem: Problem = case.problem
        self.comm, self._species, self._particle_mass = comm, species, 1.0
        self._exact: Callable[[float], Density] | None = exact_solution(case)
        self._equilibrium = case.equilibrium()
        if species is not None:
            settings = case.species[species]
            self.problem, self._particle_mass = settings.start, settings.mass
            operators = settings.collision_operator, case.physics.collision_operator
            if all(OPERATORS[name].frame == "bath" for name in operators):
                self._equilibrium = self.problem.equilibrium(settings.temperature / settings.mass)
        self._tracks_log_f = collision_class(case.method.collision).tracks_log_f
        low, high = torch.tensor([*self.problem.window[0], *self.problem.window[1]], dtype=torch.float64).T
        self._centre, self._reach = (low + high) / 2, (high - low) / 2
        kinds = (("x", self.problem.space_dims), ("v", self.problem.velocity_dims))
        self._coordinates = [f"{kind}_{axis + 1}" for kind, dims in kinds for axis in range(dims)]

    @property
    def species(self) -> str:
        """The name of the species in files."""
        return self._species or ONLY

    def measure(self, folder: Path | str, step: int) -> Measured:
        """Measure the snapshot of a step. Collective.

        Returns:
            The measurements, equal on every rank.

        Raises:
            DamagedFile: on all ranks, if the file is damaged.
            UserError: on all ranks, if the file has numbers that are not finite.
        """
        dims = len(self._coordinates)
        with self.comm.together():
            sums = np.zeros(1 + dims + dims * dims + LOGS)
            in_histograms = np.zeros((self.problem.space_dims, BINS, BINS))
            in_marginals = np.zeros((dims, MARGINAL_BINS))
            with particle_file(folder, step, self._species) as file:
                known = self._known(step, file.time)
                mine = Shard.of(file.total, self.comm.rank, self.comm.size)
                for first in range(mine.start, mine.stop, PASS):
                    particles = self._particles(file, Shard(first, min(first + PASS, mine.stop), file.total))
                    for rows in passes(len(particles.x), BLOCK):
                        terms = self._block_sums(particles, rows, known)
                        if not np.isfinite(terms).all():
                            raise UserError(
                                f"{folder}: the particles of step {step} are not finite from row {first + rows.start} "
                                "on: move this snapshot out of the folder"
                            )
                        sums += terms
                    in_histograms += local_histograms(particles, self.problem)
                    in_marginals += local_marginals(particles, self.problem)
        in_histograms, in_marginals = (self.comm.sum(found) / file.total for found in (in_histograms, in_marginals))
        row = {"step": float(step), "time": file.time} | self._moments(self.comm.sum(sums), known)
        if known:
            errors = marginal_errors(in_marginals, bins_of_density(self.problem, next(iter(known.values()))))
            row |= {f"marginal_l1_{name}": error for name, error in zip(self._coordinates, errors, strict=True)}
        mass, problem = self.problem.mass, self.problem
        binned = Binned(histograms_of(mass * in_histograms, problem), marginals_of(mass * in_marginals, problem))
        return Measured(row, binned)

    def _known(self, step: int, time: float) -> dict[str, Density]:
        exact = {"exact": self._exact(time)} if self._exact else {}
        reference = {"reference": self._references[step]} if step in self._references else {}
        return exact | reference | ({"equilibrium": self._equilibrium} if self._equilibrium else {})

    def _particles(self, file: ParticleFile, shard: Shard) -> Particles:
        rows = file.rows(slice(shard.start, shard.stop))
        x, v, log_f = (torch.from_numpy(rows[name]) for name in ("position", "velocity", "log_f"))
        if not self._tracks_log_f:
            log_f = torch.zeros_like(log_f)
        problem, equal = self.problem, file.has_equal_weights
        weight = equal_weights(problem.mass, shard) if equal else torch.from_numpy(rows["weighting"])
        return Particles(x, v, log_f, weight, shard, problem.mass, problem.periods, has_equal_weights=equal)

    def _block_sums(self, particles: Particles, rows: slice, known: dict[str, Density]) -> np.ndarray:
        """Sums over a row block of share · (1, y, y yᵀ, log f, log of each known density). Unused entries are zero.

        y is (x, v) as a fraction of the window. So its averages are of order 1, and rounding in ``exact`` loses little.
        """
        x, v, log_f = (getattr(particles, name)[rows] for name in ("x", "v", "log_f"))
        y = (torch.cat([x, v], dim=1).double() - self._centre) / self._reach
        logs = [log_f.double(), *(density.log_density(x, v).double() for density in known.values())]
        logs += [torch.zeros_like(logs[0])] * (LOGS - len(logs))
        products = (y[:, :, None] * y[:, None, :]).flatten(1)
        columns = torch.cat([torch.ones_like(y[:, :1]), y, products, torch.stack(logs, dim=1)], dim=1)
        return summed(particles.shares()[rows, None] * columns).numpy()

    def _moments(self, sums: np.ndarray, known: dict[str, Density]) -> dict[str, float]:
        """The columns that follow from the sums of all row blocks."""
        names, dims, mass = self._coordinates, len(self._coordinates), self.problem.mass
        share, first, second, logs = (
            sums[0],
            sums[1 : 1 + dims],
            sums[1 + dims : -LOGS].reshape(dims, dims),
            sums[-LOGS:],
        )
        centre, reach = self._centre.numpy(), self._reach.numpy()
        mean = centre + reach * first
        covariance = np.outer(reach, reach) * (second - np.outer(first, first))
        v_squares = (np.diag(covariance) + mean**2)[self.problem.space_dims :]
        row = {"mass": self._particle_mass * mass * share}
        row["kinetic_energy"] = 0.5 * self._particle_mass * mass * v_squares.sum()
        row |= {f"mean_{name}": value for name, value in zip(names, mean, strict=True)}
        for i, j in zip(*np.triu_indices(dims), strict=True):
            row[f"covariance_{names[i]}_{names[j]}"] = covariance[i, j]
        exact = known.get("exact")
        if isinstance(exact, GaussianDensity):
            row["mean_error"] = np.abs(mean - exact.mean).max()
            row["covariance_error"] = np.abs(covariance - exact.covariance).max()
        if self._tracks_log_f:
            row["entropy"] = mass * logs[0]
            row |= {f"kl_{name}": logs[0] - cross for name, cross in zip(known, logs[1:], strict=False)}
        return {name: float(value) for name, value in row.items()}


def analyse(
    folder: RunFolder, case: Case, comm: Communicator, header: dict[str, Any], *, against_grid: bool = False
) -> list[Path]:
    """Measure all snapshots with particles and write the results into ``folder.analysis``. Collective.

    ``moments.h5`` and ``moments.csv`` have one row per snapshot. ``data%08d.h5``, in the openPMD standard, has the
    histograms and marginals of a snapshot, and ``marginals.csv`` has all marginals. With several species each has its
    own folder of these files. Damaged snapshots are skipped with a warning.

    Args:
        folder: the run folder.
        case: the case of the run.
        comm: the ranks.
        header: provenance of the analysis for every HDF5 file; that of rank 0 is used.
        against_grid: measure also the distance from f of the grid solver, which rank 0 computes if it can.

    Returns:
        The files that were written.

    Raises:
        UserError: on all ranks, if no undamaged snapshot has particles, or the results cannot be written.
    """
    with comm.together():
        steps = list_particles(folder.snapshots) if comm.is_root else []
        if comm.is_root and not steps:
            raise UserError(f"{folder.snapshots}: holds no particles: run the case with output.particles_every above 0")
        references = {}
        if comm.is_root and against_grid:
            densities = grid_densities(folder, case, [step * case.time.step for step in steps])
            references = dict(zip(steps, densities, strict=True))
    steps, references = comm.bcast((steps, references))
    files: list[Path] = []
    for species in case.species or (None,):
        with comm.together():
            analysis = Analysis(case, comm, references, species)
        into = folder.analysis / species if species else folder.analysis
        files += _analysed(analysis, folder, into, steps, case.time.step, header)
    return files


def _analysed(
    analysis: Analysis, folder: RunFolder, into: Path, steps: list[int], time_step: float, header: dict[str, Any]
) -> list[Path]:
    """Write the files of one analysis for all steps. Collective."""
    comm, name = analysis.comm, analysis.species
    files, rows, lines = [], [], []
    for step in steps:
        try:
            measured = analysis.measure(folder.snapshots, step)
        except DamagedFile as failure:  # on all ranks
            if comm.is_root:
                warn_once(f"skipped: {failure}")
            continue
        files.append(
            write_snapshot(
                into,
                comm,
                step=step,
                time=measured.row["time"],
                time_step=time_step,
                run_attributes=header,
                names=[name],
                binned=[measured.binned],
            )
        )
        rows.append(measured.row)
        lines += _marginal_lines(measured)
    if not rows:
        raise UserError(f"{folder.snapshots}: all snapshots with particles are damaged")
    with comm.together():
        if comm.is_root:
            units = {name: unit_of(name, len(analysis.problem.periods or ())) for name in rows[0]}
            files += _write_tables(into, rows, units, lines, header)
    return files


def _marginal_lines(measured: Measured) -> list[list[Any]]:
    """The lines of marginals.csv: step, time, coordinate, centre of the bin, density."""
    lines = []
    for marginal in measured.binned.marginals:
        (low, high), bins = marginal.range, len(marginal.values)
        centres = low + (np.arange(bins) + 0.5) * ((high - low) / bins)
        start = [int(measured.row["step"]), measured.row["time"], f"{marginal.kind}_{marginal.axis + 1}"]
        lines += [[*start, *pair] for pair in zip(centres.tolist(), marginal.values.tolist(), strict=True)]
    return lines


def _write_tables(
    folder: Path,
    rows: Sequence[dict[str, float]],
    units: dict[str, str],
    marginal_lines: list[list[Any]],
    header: dict[str, Any],
) -> list[Path]:
    series = SeriesWriter(folder / "moments.h5", list(rows[0]), units, attributes=header)
    for row in rows:
        series.append(row)
    series.close()
    tables: dict[str, list[list[Any]]] = {
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
