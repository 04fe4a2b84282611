"""The user's own collision methods and diagnostics, which a case names as "module:name" (see ``usercode``).

An exception in the user's code ends the run with a message of one sentence; see docs/howto/index.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpc_kjko import collisions, usercode
from hpc_kjko.case.config import Case
from hpc_kjko.collisions import METHODS, Collision, CollisionReport, CollisionSettings
from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import FieldSolver
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles
from hpc_kjko.push.integrators import PHASES
from hpc_kjko.running import diagnostics
from hpc_kjko.running.assembly import SpeciesPlan
from hpc_kjko.running.columns import Diagnostic
from hpc_kjko.running.state import State


def collision_class(name: str) -> type[Collision]:
    """The class of a collision method: a built-in one, or the user's own.

    Raises:
        UserError: the user's class cannot be loaded, or it is not a collision method.
    """
    if not usercode.is_reference(name):
        return METHODS[name]
    given, found = f'method.collision = "{name}"', usercode.load(name, "method.collision")
    if not (isinstance(found, type) and issubclass(found, Collision)):
        raise UserError(f"{given}: it must be a subclass of hpc_kjko.collisions.Collision")
    if found.__abstractmethods__:
        raise UserError(f"{given}: it has no {', '.join(sorted(found.__abstractmethods__))}")
    return found


def collision_of(settings: CollisionSettings, comm: Communicator) -> Collision:
    """The collision step of a species. With κ = 0 it does nothing. Collective.

    Raises:
        UserError: on all ranks, if the user's method cannot be loaded.
    """
    name = settings.method.collision
    given = f'method.collision = "{name}"'
    with comm.together():
        kind = collision_class(name)
        if settings.control_variate and not kind.tracks_log_f:
            raise UserError(f"particles.control_variate = true needs collisions that track log f, and {given} does not")
    if not usercode.is_reference(name):
        return collisions.collision_of(settings, comm, kind)

    def own(settings: CollisionSettings, comm: Communicator) -> Collision:
        made: Collision = usercode.call(kind, settings, comm, given=given)
        for name in ("prepare", "step", "state", "load"):
            vars(made)[name] = functools.partial(_checked, getattr(made, name), name, given)
        return made

    return collisions.collision_of(settings, comm, own)


def _checked(method: Callable[..., Any], name: str, given: str, *arguments: Any) -> Any:
    """Call a method of the user's collision class and check what it returns."""
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
    case: Case,
    plans: Sequence[SpeciesPlan],
    steps: Sequence[Collision],
    field_solver: FieldSolver[Any],
    comm: Communicator,
) -> list[Diagnostic]:
    """The diagnostics of a run, followed by the user's own. Collective.

    Raises:
        UserError: on all ranks, if one cannot be loaded, is not a diagnostic, or has a column that already exists.
    """
    found = diagnostics.series_diagnostics(case, plans, steps, field_solver)
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
    """A diagnostic of the user's: ``name(case)`` has columns, local and finish, as every Diagnostic.

    Raises:
        UserError: it cannot be loaded, or it does not do what a diagnostic must do.
    """

    def __init__(self, reference: str, case: Case):
        self.given = f'output.diagnostics = "{reference}"'
        make = usercode.load(reference, "output.diagnostics")
        wanted = f"{self.given}: it must be a class (or a function) that takes the case, with columns, local and finish"
        if not callable(make):
            raise UserError(wanted)
        if other := usercode.other_signature(make, 1):
            raise UserError(f"{wanted}, but its arguments are {other}")
        self._own = usercode.call(make, case, given=self.given)
        for name in ("columns", "local", "finish"):
            if not hasattr(self._own, name):
                raise UserError(f"{self.given}: a diagnostic has columns, local and finish, but this one has no {name}")
        columns = self._own.columns
        if not (isinstance(columns, tuple | list) and columns and all(isinstance(name, str) for name in columns)):
            raise UserError(f'{self.given}: columns must be names, such as ("skewness",), but they are {columns!r}')
        self.columns = tuple(columns)

    def local(self, state: State) -> np.ndarray:
        sums = usercode.call(self._own.local, state, given=self.given)
        return self._numbers(sums, "local must return the rank's sums as an array of numbers").ravel()

    def finish(self, sums: np.ndarray, state: State) -> tuple[float, ...]:
        wanted = f"finish must return {len(self.columns)} number(s), for {', '.join(self.columns)}"
        values = self._numbers(usercode.call(self._own.finish, sums, state, given=self.given), wanted)
        if values.shape != (len(self.columns),):
            raise UserError(f"{self.given}: {wanted}, but it returned {values.size}")
        return tuple(values.tolist())

    def _numbers(self, values: Any, wanted: str) -> np.ndarray:
        try:
            return np.asarray(values, np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{self.given}: {wanted}, but it returned a {type(values).__name__}") from None
