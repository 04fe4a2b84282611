"""The output of a run: the time series in every step, snapshots and checkpoints at their intervals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hpc_kjko.case.config import Case
from hpc_kjko.errors import DamagedFile
from hpc_kjko.fields.base import MeshField
from hpc_kjko.files.binned import Binned
from hpc_kjko.files.histograms import marginals, marginals_of_density, phase_space_histograms
from hpc_kjko.files.output import write_snapshot
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import SeriesWriter, equilibrium_attributes
from hpc_kjko.files.wavetheory import theory_attributes
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running.diagnostics import units_of
from hpc_kjko.running.simulation import Simulation

logger = logging.getLogger(__name__)


class Recorder:
    """Writes the files of a run into its folder. All methods are collective; only rank 0 writes the series.

    Args:
        folder: the run folder, which must exist.
        comm: the ranks.
        header: the case and its provenance, which every file contains.
        resumed_at: after a restart, the step of the checkpoint. Later rows of the series are removed. If the series
            cannot be read, it is renamed and a new one begins.
    """

    def __init__(self, folder: RunFolder, comm: Communicator, header: dict[str, Any], resumed_at: int | None = None):
        self.folder, self.comm, self.header = folder, comm, header
        self._resumed_at = resumed_at
        self._series: SeriesWriter | None = None
        self._last_checkpoint = resumed_at
        if resumed_at is not None:
            with comm.together():
                if comm.is_root:
                    self._series = self._resumed_series(resumed_at)
                    folder.clean_up(resumed_at)

    def record(self, simulation: Simulation, row: dict[str, float]) -> None:
        """Append a row to the series and write the outputs that are due in this step."""
        step = simulation.step_index
        if step == self._resumed_at:
            return  # this step was written before the restart
        with self.comm.together():
            if self.comm.is_root:
                if self._series is None:
                    units = units_of(row, simulation.case)
                    known = simulation.case.equilibrium()
                    wanted = marginals_of_density(simulation.case.problem, known) if known else []
                    attributes = self.header | equilibrium_attributes(wanted)
                    attributes |= _theory(simulation.case)
                    self._series = SeriesWriter(self.folder.series, list(row), units, attributes=attributes)
                self._series.append(row)
        due = _due_outputs(simulation)
        if any(due.values()):
            state = simulation.state
            field = state.field if isinstance(state.field, MeshField) else None
            write_snapshot(
                self.folder.snapshots,
                self.comm,
                step=step,
                time=simulation.time,
                time_step=simulation.case.time.step,
                run_attributes=self.header,
                names=[one.name for one in state.species],
                species=state.species if due["particles"] else (),
                meshes=field if due["meshes"] else None,
                binned=self._binned(simulation) if due["histograms"] else (),
            )
        if step and _due(step, simulation.case.output.checkpoint_every):
            self.checkpoint(simulation)

    def _binned(self, simulation: Simulation) -> list[Binned]:
        """Histograms and marginals of each species. Collective."""
        found = []
        for plan, species in zip(simulation.plans, simulation.state.species, strict=True):
            histograms = phase_space_histograms(species.particles, plan.start, self.comm)
            found.append(Binned(histograms, marginals(species.particles, plan.start, self.comm)))
        return found

    def checkpoint(self, simulation: Simulation) -> Path:
        """Write the complete state, unless this step already has a checkpoint. The series is written first."""
        with self.comm.together():
            if self._series:
                self._series.flush()
        if self._last_checkpoint != simulation.step_index:
            simulation.save(self.folder.checkpoints, self.header)
            self._last_checkpoint = simulation.step_index
        return self.folder.checkpoints / f"step{simulation.step_index:08d}.h5"

    def _resumed_series(self, step: int) -> SeriesWriter | None:
        """The series of the earlier run for a restart at ``step``; None if it cannot be read and a new one must
        begin."""
        path = self.folder.series
        try:
            series, last = SeriesWriter.resume(path, step, self.header)
        except DamagedFile as failure:
            kept = f"; the damaged file is kept as {self.folder.put_series_aside(step)}" if path.exists() else ""
            logger.warning("%s%s", failure, kept)
            return None
        if last < step:
            logger.warning("%s ends at step %d: the rows of steps %d to %d are lost", path, last, last + 1, step)
        return series

    def close(self) -> None:
        """Write buffered rows. Not collective, because a rank that fails closes alone."""
        if self._series:
            self._series.close()


def _theory(case: Case) -> dict[str, Any]:
    """The linear theory of the wave, as attributes; empty if the case has no self-consistent field."""
    if case.physics.field == "external":
        return {}
    from hpc_kjko.running.wave_theory import theory_of  # imported here because it loads large parts of SciPy

    theory = theory_of(case)
    return theory_attributes(theory) if theory is not None else {}


def _due_outputs(simulation: Simulation) -> dict[str, bool]:
    """The outputs in the snapshot of a step. The last step has all that are switched on, and so has each step with
    particles."""
    output, step = simulation.case.output, simulation.step_index
    every = {"meshes": output.every, "histograms": output.histogram_every, "particles": output.particles_every}
    if not isinstance(simulation.state.field, MeshField):
        every["meshes"] = 0
    is_whole = step == simulation.case.time.steps or _due(step, output.particles_every)
    return {name: cadence > 0 and (is_whole or _due(step, cadence)) for name, cadence in every.items()}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
