"""The time loop: one run from its case to its files, on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hpc_kjko import checkpoint, config, diagnostics
from hpc_kjko.collisions import CollisionReport, StepStart
from hpc_kjko.comm import Communicator
from hpc_kjko.consistency import require_consistent_start
from hpc_kjko.diagnostics import State
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.extensions import collision_of, collision_settings, series_diagnostics
from hpc_kjko.fields import field_solver_of, grid_of
from hpc_kjko.integrators import MAPS, PHASES, compose
from hpc_kjko.particles import Particles, Shard, draw, equal_weights
from hpc_kjko.problems import is_users_own
from hpc_kjko.recorder import Recorder

Outcome = Literal["finished", "stopped"]


class Simulation:
    """A run: its state at time t^n, and how it gets to t^{n+1}.

    Build one with :meth:`start` or :meth:`resume`, then call :meth:`run`. All methods are collective.
    """

    def __init__(self, case: config.Case, comm: Communicator):
        comm.select_device(case.run.device)
        self.case, self.comm = case, comm
        self.stages = compose(MAPS[case.time.integrator], case.method.order)
        self.grid = grid_of(case)
        self.field_solver = field_solver_of(case, self.grid, comm)
        self.settings = collision_settings(case, self.grid, comm)
        self.collision = collision_of(case, self.settings, comm)
        self.diagnostics = series_diagnostics(case, self.collision, self.field_solver, comm)
        self.step_index, self.seconds = 0, dict.fromkeys(PHASES, 0.0)
        self.state: State

    @classmethod
    def start(cls, case: config.Case, comm: Communicator) -> Simulation:
        """A run at t = 0: particles drawn from the problem's initial density.

        Raises:
            UserError: that density makes no finite state, or it is the user's own and not that of the particles which
                it draws (on every rank).
        """
        simulation = cls(case, comm)
        with comm.together():
            if comm.is_root and is_users_own(case.problem):
                require_consistent_start(case)
            particles = draw(
                case.problem,
                Shard.of(case.particles.count, comm.rank, comm.size),
                start=case.particles.start,
                weights=case.particles.weights,
                cells=case.grid.cells if case.grid else None,
                seed=case.particles.seed,
                temperature=case.physics.temperature,
                dtype=getattr(torch, case.particles.precision),
                device=comm.device,
            )
        diagnostics.require_finite_potential(simulation.field_solver, particles, comm)
        field = simulation.field_solver.start(particles)
        report = diagnostics.initial_report(particles, case, simulation.settings.operator, simulation.collision, comm)
        simulation.state = State(0.0, particles, field, report)
        for name, value in simulation._row(simulation.state, 0, seconds=0.0).items():
            if not math.isfinite(value):
                raise UserError(f"{name} is not finite at t = 0: look at the numbers of [problem] and [physics]")
        return simulation

    @classmethod
    def resume(cls, case: config.Case, comm: Communicator, saved: checkpoint.Checkpoint) -> Simulation:
        """A run as a checkpoint left it, on this run's number of ranks."""
        simulation = cls(case, comm)
        tensors: dict[str, Any] = {
            name: torch.from_numpy(rows).to(comm.device) for name, rows in saved.particles.items()
        }
        equal = "weight" not in tensors
        tensors.setdefault("weight", equal_weights(case.problem.mass, saved.shard, comm.device))
        whole: dict[str, Any] = {"shard": saved.shard, "mass": case.problem.mass, "periods": case.problem.periods}
        particles = Particles(**tensors, **whole, has_equal_weights=equal)
        simulation.collision.load(saved.state)
        simulation.step_index = saved.header["step"]
        report = CollisionReport.loaded(saved.header["collision"])
        field = simulation.field_solver.resume(particles, saved.state)
        simulation.state = State(simulation.time, particles, field, report)
        return simulation

    @property
    def time(self) -> float:
        """t^n = n h."""
        return self.step_index * self.case.time.step

    def run(
        self,
        recorder: Recorder,
        *,
        on_step: Callable[[dict[str, float]], None] = lambda row: None,
        stop: Callable[[], bool] = lambda: False,
        deadline: float = math.inf,
    ) -> Outcome:
        """Step to the end, writing what is due.

        Args:
            recorder: writes series, snapshots and checkpoints.
            on_step: told each row of the series, on every rank.
            stop: asked on every rank after each step; one True stops all ranks, with a checkpoint.
            deadline: from then on by rank 0's ``time.monotonic()`` the same happens.

        Returns:
            "finished", or "stopped" before the end.

        Raises:
            SolverFailure: on every rank, after a checkpoint of the last good step.
        """

        def halted() -> bool:
            return self.comm.any(stop() or (self.comm.is_root and time.monotonic() > deadline))

        if self.step_index == 0:
            recorder.record(self, self._row(self.state, 0, seconds=0.0))
            if not self.prepare(halted):
                recorder.checkpoint(self)
                return "stopped"
        while self.step_index < self.case.time.steps:
            started = time.perf_counter()
            before = self.collision.state()
            try:
                state = self.advance()
                row = self._row(state, self.step_index + 1, time.perf_counter() - started)
                diagnostics.require_finite(row)
            except (SolverFailure, UserError) as failure:
                if isinstance(failure, UserError) and self.comm.size > 1 and not failure.shared:
                    raise  # the other ranks know nothing of it, and would not join in a checkpoint
                self.collision.load(before)
                kept = recorder.checkpoint(self)
                raise type(failure)(f"step {self.step_index + 1}: {failure} (last good step: {kept})") from None
            self.state, self.step_index = state, self.step_index + 1
            recorder.record(self, row)
            on_step(row)
            if self.step_index < self.case.time.steps and halted():
                recorder.checkpoint(self)
                return "stopped"
        recorder.checkpoint(self)
        return "finished"

    def advance(self) -> State:
        """The state at t^{n+1} from the state at t^n, which is left as it is.

        The stages are those of the composition: drifts move x, and the field follows; kicks use it; the collision step
        sees the pushed state (x̃, ṽ) and moves v only.
        """
        h, start = self.case.time.step, StepStart(self.step_index, self.time, self.state.particles)
        particles, field, report = self.state.particles, self.state.field, self.state.collision
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        for stage in self.stages:
            duration, started = stage.fraction * h, time.perf_counter()
            if stage.action == "drift":
                field, particles = self.field_solver.drift(field, particles, duration)
            elif stage.action == "kick":
                field, particles = self.field_solver.kick(field, particles, duration)
            else:
                pushed, (particles, report) = particles, self.collision.step(particles, duration, start)
                field, jump = self.field_solver.after_collision(field, pushed, particles)
                report = replace(report, collision_field_energy=jump).with_energy(pushed, particles, self.comm)
            self.seconds[stage.phase] += time.perf_counter() - started
        return State((self.step_index + 1) * h, particles, field, report.following(self.state.collision))

    def prepare(self, halted: Callable[[], bool] = lambda: False) -> bool:
        """What the collisions want done before the first step; False if halted before it was done."""

        def rehearse() -> bool:
            state, stopped = self.state, False
            while self.step_index < self.case.time.steps and not stopped:
                self.state = self.advance()
                self.step_index += 1
                stopped = halted()
            self.state, self.step_index = state, 0
            return not stopped

        return self.collision.prepare(rehearse)

    def save(self, folder: Path, header: dict[str, Any]) -> Path:
        """Write the whole state as a checkpoint into ``folder``; ``header`` holds the case and its provenance."""
        particles = self.state.particles
        names = ["x", "v", "log_f"] + ["weight"] * (not particles.has_equal_weights)
        rows = {name: getattr(particles, name).cpu().numpy() for name in names}
        now = {"step": self.step_index, "time": self.time, "collision": asdict(self.state.collision)}
        state = {**self.collision.state(), **self.field_solver.state(self.state.field)}
        return checkpoint.save(folder, self.comm, particles.shard, rows, state, {**header, **now})

    def _row(self, state: State, step: int, seconds: float) -> dict[str, float]:
        measured = diagnostics.measure(self.diagnostics, state, self.comm)
        return dict(step=float(step), time=step * self.case.time.step, **measured, seconds=seconds, **self.seconds)
