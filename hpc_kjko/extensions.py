"""Code of the user's own as the collision method or beside the diagnostics: "module:name" in the case (``usercode``).

What it does wrong, and Python tells of, ends a run as a mistake of the user's in one sentence; see docs/extending.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_kjko import collisions, diagnostics, usercode
from hpc_kjko.collisions import METHODS, Collision, CollisionReport, CollisionSettings
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.diagnostics import Diagnostic, State
from hpc_kjko.errors import UserError
from hpc_kjko.fields import FieldSolver
from hpc_kjko.integrators import PHASES
from hpc_kjko.mesh import Grid
from hpc_kjko.operators import OPERATORS
from hpc_kjko.particles import BLOCK, Particles, uniform_points
from hpc_kjko.problems import PeriodicWave


def collision_class(case: Case) -> type[Collision]:
    """The class of a case's collision method.

    Raises:
        UserError: it is the user's and cannot be had, or is no collision method.
    """
    name = case.method.collision
    if not usercode.is_reference(name):
        return METHODS[name]
    given, found = f'method.collision = "{name}"', usercode.load(name, "method.collision")
    if not (isinstance(found, type) and issubclass(found, Collision)):
        raise UserError(f"{given}: it must be a subclass of hpc_kjko.collisions.Collision")
    if found.__abstractmethods__:
        raise UserError(f"{given}: it has no {', '.join(sorted(found.__abstractmethods__))}")
    if case.particles.control_variate and not found.tracks_log_f:
        raise UserError(f"particles.control_variate = true needs collisions that track log f, and {given} does not")
    return found


def collision_of(case: Case, settings: CollisionSettings, comm: Communicator) -> Collision:
    """The collision step of a case; κ = 0 has none. Collective.

    Raises:
        UserError: on all ranks, where the method is the user's and cannot be had.
    """
    with comm.together():
        kind = collision_class(case)
    if not usercode.is_reference(case.method.collision):
        return collisions.collision_of(settings, comm, METHODS[case.method.collision])
    given = f'method.collision = "{case.method.collision}"'

    def own(settings: CollisionSettings, comm: Communicator) -> Collision:
        made: Collision = usercode.call(kind, settings, comm, given=given)
        for name in ("prepare", "step", "state", "load"):
            vars(made)[name] = functools.partial(_checked, getattr(made, name), name, given)
        return made

    return collisions.collision_of(settings, comm, own)


def collision_settings(case: Case, grid: Grid | None, comm: Communicator) -> CollisionSettings:
    """What a case has for its collision step, on its mesh. Collective.

    Raises:
        UserError: on all ranks, where the operator needs a temperature that the start does not have.
    """
    physics, problem = case.physics, case.problem
    kind, temperature = OPERATORS[physics.collision_operator], physics.temperature
    if kind.frame == "local":
        with comm.together():
            temperature = _initial_temperature(case)
    wave_vector: tuple[float, ...] | None = None
    if isinstance(problem, PeriodicWave) and case.particles.start == "quiet" and kind.frame == "bath":
        # a random start is too noisy for a wave, and in the local frame collisions exchange nothing with one
        wave_vector = tuple(float(k) for k in problem.wave_vector)
    return CollisionSettings(
        operator=kind(physics.collision_strength, temperature),
        problem=problem,
        method=case.method,
        velocity_matching=case.velocity_matching,
        count=case.particles.count,
        seed=case.particles.seed,
        control_variate=case.particles.control_variate,
        wave_vector=wave_vector,
        grid=grid,
        end=case.time.end,
        steps=case.time.steps,
        reproducible=case.run.reproducible,
    )


def _initial_temperature(case: Case) -> float:
    """|v − U|²/dv of the initial density, from some of its quiet points: a unit, the same in every part of a run."""
    problem = case.problem
    points = uniform_points("quiet", 0, 0, BLOCK, problem.space_dims + problem.velocity_dims)
    temperature = float(problem.sample(points, case.physics.temperature)[1].var(axis=0).mean())
    if not temperature > 0:
        raise UserError(
            f'physics.collision_operator = "{case.physics.collision_operator}" needs a plasma with a temperature, and '
            "all velocities of this problem's start are alike"
        )
    return temperature


def _checked(method: Callable[..., Any], name: str, given: str, *arguments: Any) -> Any:
    """A method of the user's collision, with what it returns looked at."""
    found = usercode.call(method, *arguments, given=given)
    if name == "step":
        pushed, wanted = arguments[0], "step must return the particles, as many as before, and a CollisionReport"
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], CollisionReport)
        if not (pair and isinstance(found[0], Particles) and found[0].v.shape == pushed.v.shape):
            raise UserError(f"{given}: {wanted}")
        if found[0].log_f.shape != pushed.log_f.shape:
            raise UserError(f"{given}: {wanted}: its log_f must be [n]")
    if name == "state" and not (
        isinstance(found, dict) and all(isinstance(array, np.ndarray) for array in found.values())
    ):
        raise UserError(f"{given}: state must return a dictionary of numpy arrays, {{}} if it keeps nothing")
    return found


def series_diagnostics(
    case: Case, collision: Collision, field_solver: FieldSolver[Any], comm: Communicator
) -> list[Diagnostic]:
    """The diagnostics of a run, those of the user's last. Collective.

    Raises:
        UserError: on all ranks, where one cannot be had, is no diagnostic, or has a column that is there already.
    """
    found = diagnostics.series_diagnostics(case, collision, field_solver)
    with comm.together():
        for reference in case.output.diagnostics:
            own = OwnDiagnostic(reference, case)
            taken = {"step", "time", "seconds", *PHASES, *(name for one in found for name in one.columns)}
            for name in own.columns:
                if name in taken:
                    raise UserError(f"{own.given}: the series has a column {name} already: give it another name")
            found.append(own)
    return found


class OwnDiagnostic:
    """A diagnostic that the user wrote: ``name(case)`` has columns, local and finish, as any Diagnostic.

    Raises:
        UserError: it cannot be had, or does not do what a diagnostic must.
    """

    def __init__(self, reference: str, case: Case):
        self.given = f'output.diagnostics = "{reference}"'
        make = usercode.load(reference, "output.diagnostics")
        wanted = f"{self.given}: it must be a class (or a function) that takes the case, with columns, local and finish"
        if not callable(make):
            raise UserError(wanted)
        if other := usercode.other_signature(make, 1):
            raise UserError(f"{wanted}, its arguments are {other}")
        self._own = usercode.call(make, case, given=self.given)
        for name in ("columns", "local", "finish"):
            if not hasattr(self._own, name):
                raise UserError(f"{self.given}: a diagnostic has columns, local and finish, this one has no {name}")
        columns = self._own.columns
        if not (isinstance(columns, tuple | list) and columns and all(isinstance(name, str) for name in columns)):
            raise UserError(f'{self.given}: columns must be names, such as ("skewness",), they are {columns!r}')
        self.columns = tuple(columns)

    def local(self, state: State) -> np.ndarray:
        sums = usercode.call(self._own.local, state, given=self.given)
        return self._numbers(sums, "local must return the rank's sums as an array of numbers").ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        wanted = f"finish must return {len(self.columns)} number(s), for {', '.join(self.columns)}"
        values = self._numbers(usercode.call(self._own.finish, sums, state, given=self.given), wanted)
        if values.shape != (len(self.columns),):
            raise UserError(f"{self.given}: {wanted}, it returned {values.size}")
        return tuple(values.tolist())

    def _numbers(self, values: Any, wanted: str) -> np.ndarray:
        try:
            return np.asarray(values, np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{self.given}: {wanted}, it returned a {type(values).__name__}") from None
