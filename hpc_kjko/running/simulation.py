"""The time loop of a run, on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from hpc_kjko.case import config
from hpc_kjko.collisions import CollisionReport, NoCollision, StepStart, collide
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.files import checkpoint
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles, equal_weights
from hpc_kjko.problems import is_users_own
from hpc_kjko.push.integrators import MAPS, PHASES, compose
from hpc_kjko.running import diagnostics
from hpc_kjko.running.assembly import SpeciesPlan, drive_of, field_solver_of, grid_of, plans_of
from hpc_kjko.running.clock import Clock
from hpc_kjko.running.consistency import require_consistent_start
from hpc_kjko.running.extensions import collision_of, series_diagnostics
from hpc_kjko.running.state import State
from hpc_kjko.species import Species, moved

Outcome = Literal["finished", "stopped"]


class Recording(Protocol):
    """An object that records a run: a :class:`~hpc_kjko.running.recorder.Recorder`, or a dummy in tests."""

    def record(self, simulation: Simulation, row: dict[str, float]) -> None:
        """Append a row to the series and write the outputs that are due in this step."""

    def checkpoint(self, simulation: Simulation) -> Path:
        """Write the complete state, and return its file."""


class Simulation:
    """A run: its state at time t^n, and the step to t^{n+1}.

    Build one with :meth:`start` or :meth:`resume`, then call :meth:`run`. All methods are collective.
    """

    def __init__(self, case: config.Case, comm: Communicator):
        comm.select_device(case.run.device)
        self.case, self.comm = case, comm
        self.stages = compose(MAPS[case.time.integrator], case.method.order)
        self.grid = grid_of(case)
        self.plans = plans_of(case, self.grid, comm)
        self.field_solver, self.drive = field_solver_of(case, self.grid, comm), drive_of(case, comm)
        self.collisions = tuple(collision_of(plan.collision, comm) for plan in self.plans)
        self.diagnostics = series_diagnostics(case, self.plans, self.collisions, self.field_solver, comm)
        self.collides = any(not isinstance(collision, NoCollision) for collision in self.collisions)
        self.step_index, self.seconds = 0, dict.fromkeys(PHASES, 0.0)
        self.state: State

    @classmethod
    def start(cls, case: config.Case, comm: Communicator) -> Simulation:
        """A run at t = 0, with particles drawn from the initial density of each species.

        Raises:
            UserError: on every rank, if the initial state is not finite, or if the user's own density does not agree
                with the particles that it draws.
        """
        simulation = cls(case, comm)
        with comm.together():
            for plan in simulation.plans if comm.is_root else ():
                if is_users_own(plan.start):
                    key = f"species.{plan.name}" if case.species else "problem"
                    require_consistent_start(case, plan.start, plan.temperature, key)
            plasma = tuple(plan.drawn(case, comm) for plan in simulation.plans)
        diagnostics.require_finite_potential(simulation.field_solver, plasma, comm)
        field = simulation.field_solver.start(plasma)
        reports = tuple(
            diagnostics.initial_report(species.particles, plan, collision, comm)
            for species, plan, collision in zip(plasma, simulation.plans, simulation.collisions, strict=True)
        )
        simulation.state = State(0.0, plasma, field, reports)
        for name, value in simulation._row(simulation.state, 0, seconds=0.0).items():
            if not math.isfinite(value):
                raise UserError(f"{name} is not finite at t = 0: look at the numbers of [problem] and [physics]")
        return simulation

    @classmethod
    def resume(cls, case: config.Case, comm: Communicator, saved: checkpoint.Checkpoint) -> Simulation:
        """A run in the state of a checkpoint. The number of ranks may have changed."""
        simulation = cls(case, comm)
        plasma = tuple(plan.species(_loaded(plan, saved, comm)) for plan in simulation.plans)
        simulation._load(saved.state)
        simulation.step_index = saved.header["step"]
        reports = tuple(CollisionReport.loaded(saved.header["collisions"][plan.name]) for plan in simulation.plans)
        field = simulation.field_solver.resume(plasma, saved.state)
        simulation.state = State(simulation.time, plasma, field, reports, saved.header["drive_energy"])
        return simulation

    @property
    def time(self) -> float:
        """The time t^n = n h, in 1/ω_p."""
        return self.step_index * self.case.time.step

    def run(
        self,
        recorder: Recording,
        *,
        on_step: Callable[[dict[str, float]], None] = lambda row: None,
        stop: Callable[[], bool] = lambda: False,
        deadline: float = math.inf,
        clock: Clock | None = None,
    ) -> Outcome:
        """Make the steps to the end of the run, and write the outputs that are due.

        Args:
            recorder: writes series, snapshots and checkpoints.
            on_step: called with each row of the series, on every rank.
            stop: called on every rank after each step. If it is True on one rank, all ranks stop with a checkpoint.
            deadline: all ranks stop with a checkpoint when ``time.monotonic()`` of rank 0 reaches this value.
            clock: divides the time of this rank into parts.

        Returns:
            "finished" if the run reached its end, else "stopped".

        Raises:
            SolverFailure: on every rank. A checkpoint of the last good step has been written.
        """

        def halted() -> bool:
            return self.comm.any(stop() or (self.comm.is_root and time.monotonic() > deadline))

        clock = clock or Clock()
        clock.lap("start")
        if self.step_index == 0:
            row = self._row(self.state, 0, seconds=0.0)
            clock.lap("diagnostics")
            recorder.record(self, row)
            clock.lap("files")
            prepared = self.prepare(halted)
            clock.lap("start")
            if not prepared:
                recorder.checkpoint(self)
                clock.lap("files")
                return "stopped"
        while self.step_index < self.case.time.steps:
            started = time.perf_counter()
            before = self._collision_state()
            try:
                state = self.advance()
                seconds = time.perf_counter() - started
                clock.lap("push", collisions=self.seconds["seconds_collide"])
                row = self._row(state, self.step_index + 1, seconds)
                diagnostics.require_finite(row)
                clock.lap("diagnostics")
            except (SolverFailure, UserError) as failure:
                if isinstance(failure, UserError) and self.comm.size > 1 and not failure.shared:
                    raise  # the other ranks do not know of this error, and would not take part in a checkpoint
                self._load(before)
                kept = recorder.checkpoint(self)
                raise type(failure)(f"step {self.step_index + 1}: {failure} (last good step: {kept})") from None
            self.state, self.step_index = state, self.step_index + 1
            recorder.record(self, row)
            clock.lap("files")
            on_step(row)
            stopping = self.step_index < self.case.time.steps and halted()
            clock.lap("other")
            if stopping:
                break
        recorder.checkpoint(self)
        clock.lap("files")
        return "finished" if self.step_index == self.case.time.steps else "stopped"

    def advance(self) -> State:
        """The state at t^{n+1}. The state at t^n is not changed.

        The stages follow the composition of the integrator: a drift moves x and updates the field, a kick applies the
        field to v. The collision step starts from the pushed state (x̃, ṽ) and changes only v.
        """
        h, plasma, field = self.case.time.step, self.state.species, self.state.field
        reports, energy, time_reached = list(self.state.collisions), self.state.drive_energy, self.time
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        for stage in self.stages:
            duration, started = stage.fraction * h, time.perf_counter()
            if stage.action == "drift":
                field, plasma = self.field_solver.drift(field, plasma, duration)
                time_reached += duration
            elif stage.action == "kick" and self.drive:
                driven = self.drive.at(plasma, time_reached)
                plasma, before = self.drive.kick(plasma, driven, 0.5 * duration)
                field, plasma = self.field_solver.kick(field, plasma, duration)
                plasma, after = self.drive.kick(plasma, driven, 0.5 * duration)
                energy += before + after
            elif stage.action == "kick":
                field, plasma = self.field_solver.kick(field, plasma, duration)
            else:
                pushed = plasma
                starts = [StepStart(self.step_index, self.time, before.particles) for before in self.state.species]
                collided = collide(self.collisions, [species.particles for species in pushed], duration, starts)
                plasma = moved(pushed, [particles for particles, _ in collided])
                for number, (species, (particles, report)) in enumerate(zip(pushed, collided, strict=True)):
                    reports[number] = report.with_energy(species.particles, particles, species.mass, self.comm)
                field, jump = self.field_solver.after_collision(field, pushed, plasma)
                reports = [replace(report, collision_field_energy=jump) for report in reports]
            phase = stage.phase if self.collides else "seconds_push"
            self.seconds[phase] += time.perf_counter() - started
        following = (new.following(old) for new, old in zip(reports, self.state.collisions, strict=True))
        return State((self.step_index + 1) * h, plasma, field, tuple(following), energy)

    def prepare(self, halted: Callable[[], bool] = lambda: False) -> bool:
        """Do the work of the collisions before the first step, such as training. False if it was halted."""

        def rehearse() -> bool:
            state, stopped = self.state, False
            while self.step_index < self.case.time.steps and not stopped:
                self.state = self.advance()
                self.step_index += 1
                stopped = halted()
            self.state, self.step_index = state, 0
            return not stopped

        return all(collision.prepare(rehearse) for collision in self.collisions)

    def save(self, folder: Path, header: dict[str, Any]) -> Path:
        """Write the complete state as a checkpoint into ``folder``. ``header`` holds the case and its provenance."""
        rows = {
            species.name: checkpoint.Rows(species.particles.shard, _saved(species)) for species in self.state.species
        }
        reports = zip(self.plans, self.state.collisions, strict=True)
        collisions = {plan.name: asdict(report) for plan, report in reports}
        now = {"step": self.step_index, "time": self.time, "collisions": collisions}
        now["drive_energy"] = self.state.drive_energy
        state = {**self._collision_state(), **self.field_solver.state(self.state.field)}
        return checkpoint.save(folder, self.comm, rows, state, {**header, **now})

    def _collision_state(self) -> dict[str, np.ndarray]:
        """The state of the collision steps of all species, with the name of the species in each key."""
        return {
            f"collisions/{plan.name}/{name}": array
            for plan, collision in zip(self.plans, self.collisions, strict=True)
            for name, array in collision.state().items()
        }

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        """Restore the state that :meth:`_collision_state` returned."""
        for plan, collision in zip(self.plans, self.collisions, strict=True):
            prefix = f"collisions/{plan.name}/"
            collision.load(
                {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            )

    def _row(self, state: State, step: int, seconds: float) -> dict[str, float]:
        measured = diagnostics.measure(self.diagnostics, state, self.comm)
        return dict(step=float(step), time=step * self.case.time.step, **measured, seconds=seconds, **self.seconds)


def _saved(species: Species) -> dict[str, np.ndarray]:
    """The arrays of a species that a checkpoint contains."""
    particles = species.particles
    names = ["x", "v", "log_f"] + ["weight"] * (not particles.has_equal_weights)
    return {name: getattr(particles, name).cpu().numpy() for name in names}


def _loaded(plan: SpeciesPlan, saved: checkpoint.Checkpoint, comm: Communicator) -> Particles:
    """The particles of a species from a checkpoint."""
    rows, total = saved.species[plan.name], plan.start.mass
    tensors: dict[str, Any] = {name: torch.from_numpy(array).to(comm.device) for name, array in rows.arrays.items()}
    equal = "weight" not in tensors
    tensors.setdefault("weight", equal_weights(total, rows.shard, comm.device))
    whole: dict[str, Any] = {"shard": rows.shard, "total_weight": total, "periods": plan.start.torus}
    return Particles(**tensors, **whole, has_equal_weights=equal, walls=plan.start.walls)
