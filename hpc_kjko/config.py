"""The case file: TOML into frozen sections, every default filled in, every mistake named.

The names here are the public contract of a case.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import Field, SerializeAsAny, model_validator

from hpc_kjko import usercode
from hpc_kjko.errors import UserError
from hpc_kjko.problems import KINDS, CustomProblem, PeriodicProblem, Problem, check_own_problem, own_problem
from hpc_kjko.problems.density import Density
from hpc_kjko.schema import (
    Cadence,
    Count,
    Counts,
    Names,
    NonNegative,
    Positive,
    Section,
    unknown_key,
    validate,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


#: Keys of a case to change: ``section.key=value`` as on a command line, or values by ``section.key``.
Overrides = Sequence[str] | Mapping[str, Any]

if TYPE_CHECKING:
    OneOrTwo = Literal[1, 2]
else:  # for a Literal True and 1.0 would do as well
    OneOrTwo = Annotated[int, Field(ge=1, le=2)]


class Physics(Section):
    """Collisions, with a bath or of the particles with their like, and the force that acts on the particles."""

    collision_operator: Literal["bath", "dougherty"] = "bath"
    collision_strength: NonNegative = 0.01
    temperature: Positive = 1.0
    field: Literal["poisson", "ampere", "external"]
    initial_field: Literal["poisson", "zero"] = "poisson"

    @model_validator(mode="after")
    def _consistent(self) -> Physics:
        if self.initial_field != "poisson" and self.field != "ampere":
            raise ValueError(
                f'physics.initial_field = "{self.initial_field}" needs physics.field = "ampere": '
                "only there is E a state of its own"
            )
        return self


class ParticleSettings(Section):
    """The ensemble: how many particles, how they are drawn, how they are stored."""

    count: Count = 100_000
    start: Literal["quiet", "random", "grid"] = "quiet"
    weights: Literal["equal", "density"] = "equal"
    control_variate: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["float32", "float64"] = "float64"

    @model_validator(mode="after")
    def _consistent(self) -> ParticleSettings:
        if self.start == "grid" and self.weights == "density":
            raise ValueError(
                'particles.weights = "density" places particles uniformly, and particles.start = "grid" by the '
                'density: use particles.start = "random" or "quiet" with it'
            )
        return self


class GridSettings(Section):
    """The mesh of the self-consistent field, and of the moments of the Dougherty operator."""

    cells: Annotated[Counts, Field(min_length=1)]
    shape_order: OneOrTwo = 1
    solver: Literal["root", "replicated", "distributed"] = "root"


class TimeSettings(Section):
    """The step, the end, and the symplectic map of the conservative part."""

    step: Positive = 0.1
    end: Positive = 50.0
    integrator: Literal["euler", "verlet", "forest_ruth"] = "verlet"
    energy_conserving: bool = False

    @model_validator(mode="after")
    def _whole_number_of_steps(self) -> TimeSettings:
        ratio = self.end / self.step
        if not ratio <= 1e9:
            raise ValueError(f"time.end = {self.end:g} is {ratio:g} steps of time.step = {self.step:g}: at most 1e9")
        if ratio < 0.5 or abs(ratio - round(ratio)) > 1e-6:
            near = max(1, round(ratio)) * self.step
            raise ValueError(
                f"time.end = {self.end:g} is not a whole number of time.step = {self.step:g}: "
                f"time.end = {near:.10g} would be"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of steps from 0 to the end."""
        return round(self.end / self.step)


#: From so many particles on varpro's learning rate is its default. Fewer are overfitted at that rate, step by step, by
#: hidden layers that follow their noise: it falls as the noise rises, with the square root of their number.
ENOUGH_PARTICLES = 32768
#: The collision methods that need no code of the user's.
COLLISIONS = ("jko", "score_matching", "velocity_matching", "langevin", "none")
#: Defaults of [method] that depend on the solver: few hidden steps suffice where the output layer is exact.
SOLVER_DEFAULTS: dict[str, dict[str, Any]] = {
    "varpro": {"iterations": 30, "first_iterations": 100, "learning_rate": 1e-2, "skip": True, "held_out": True},
    "adam": {"iterations": 50, "first_iterations": 500, "learning_rate": 5e-3, "skip": False, "held_out": False},
}


class Method(Section):
    """The collision step and how its inner problem is solved. Defaults that depend on other keys: :func:`_method`."""

    collision: str = "jko"
    form: Literal["split", "nonsplit", "nonsplit_naive"] = "split"
    order: OneOrTwo = 1
    logdet: Literal["exact", "linear"] = "exact"
    solver: Literal["adam", "varpro"] = "adam"
    iterations: Cadence | Literal["auto"] = 50
    first_iterations: Cadence = 500
    learning_rate: Positive = 5e-3
    held_out: bool = False
    hidden: Counts = (32, 32)
    skip: bool = False
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    precision: Literal["float32", "float64"] = "float32"
    chunk: Count = 16384

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.collision not in COLLISIONS and not usercode.is_reference(self.collision):
            known = ", ".join(f'"{name}"' for name in COLLISIONS)
            raise ValueError(
                f'method.collision = "{self.collision}" is not known: it may be {known}, or "module:name" of your own '
                "code"
            )
        if len(self.hidden) > 2:
            raise ValueError(
                f"method.hidden has {len(self.hidden)} layers: give at most two widths, such as [32, 32] "
                "(the divergence is in closed form for those; [] is the affine field)"
            )
        if self.solver == "varpro" and self.collision not in ("jko", "none"):
            raise ValueError(f'method.solver = "varpro" is for the JKO step, not for "{self.collision}": use "adam"')
        if self.solver == "varpro" and self.iterations == "auto":
            raise ValueError('method.iterations = "auto" is for method.solver = "adam": give varpro a number')
        if self.first_iterations == 0 and self.iterations != 0:
            raise ValueError(
                "method.first_iterations = 0 leaves the features as they were drawn: set method.iterations = 0 with it"
            )
        if self.solver == "adam" and self.iterations == 0:
            raise ValueError('method.iterations = 0 trains nothing: give method.solver = "adam" at least 1')
        if self.iterations == "auto" and not self.held_out:
            raise ValueError('method.iterations = "auto" needs method.held_out = true: held-out particles choose them')
        if self.order == 2 and self.logdet == "linear":
            raise ValueError('method.order = 2 needs method.logdet = "exact": with the linear one it is first order')
        if self.order == 2 and self.collision in ("score_matching", "velocity_matching"):
            raise ValueError(f'method.order = 2: method.collision = "{self.collision}" is explicit, of order 1')
        if self.form != "split" and (self.collision not in ("jko", "score_matching") or self.order == 2):
            raise ValueError(
                f'method.form = "{self.form}" needs method.collision = "jko" or "score_matching", and method.order = 1'
            )
        return self


class VelocityMatching(Section):
    """The fixed-point iteration of ``method.collision = "velocity_matching"``."""

    outer_iterations: Count = 20
    iterations: Count = 40
    learning_rate: Positive = 1e-2


class Output(Section):
    """Cadences in steps; 0 switches an output off. The last step leaves a checkpoint and all that is switched on."""

    every: Cadence = 10
    particles_every: Cadence = 100
    histogram_every: Cadence = 10
    checkpoint_every: Cadence = 100
    diagnostics: Names = ()


class Run(Section):
    """Where and for how long this job runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    reproducible: bool = True
    wall_time: Positive | None = None


class Case(Section):
    """A whole run. Build it with :meth:`load` or :meth:`from_table`, which fill in what depends on the problem."""

    problem: SerializeAsAny[Problem]
    physics: Physics
    particles: ParticleSettings = ParticleSettings()
    grid: GridSettings | None = None
    time: TimeSettings = TimeSettings()
    method: Method = Method()
    velocity_matching: VelocityMatching | None = None
    output: Output = Output()
    run: Run = Run()

    @classmethod
    def load(cls, path: Path | str, overrides: Overrides = ()) -> Case:
        """Read a case file.

        Args:
            path: the TOML file.
            overrides: keys to change, as on the command line, ``["time.end=20.0"]``, or as a table,
                ``{"time.end": 20.0}``.

        Raises:
            UserError: the file is missing or not TOML, or a key is wrong; the message names it.
        """
        return load(Path(path), overrides)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Case:
        """A case from nested tables, as those of a file: ``{"problem": {"kind": "two_stream"}}``.

        Raises:
            UserError: one sentence per mistake.
        """
        return from_table(table)

    def equilibrium(self) -> Density | None:
        """The stationary density that collisions lead to in the problem's own potential, where it is known: with the
        Dougherty operator it depends on the energy that a run has. It may take a second or two to find: ask once."""
        if self.physics.collision_operator != "bath":
            return None
        return self.problem.equilibrium(self.physics.temperature)

    def table(self) -> dict[str, Any]:
        """The case as nested plain values, every default written out (what TOML and the output files hold)."""
        return self.model_dump(mode="json", exclude_none=True)

    def toml(self) -> str:
        """The case as TOML text that :func:`load` reads back to an equal case."""
        return tomli_w.dumps(self.table())


def load(path: Path, overrides: Overrides = (), *, of_a_run: bool = False) -> Case:
    """Read a case file and apply overrides.

    Args:
        of_a_run: the file is that of a run folder, to be read and not to be run: code of the user's that it names was
            checked when the run began, and need not be within reach now.

    Raises:
        UserError: the file is missing or not TOML, or a key is wrong; the message names it.
    """
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except OSError as failure:
        advice = ""
        if path.is_dir():
            advice = ": give the file, or 'kjko restart' a folder in which a run has begun"
        elif near := difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.toml")], n=1):
            advice = f": did you mean {path.with_name(near[0])}?"
        raise UserError(f"{path}: cannot read this case file ({failure.strerror}){advice}") from None
    except (ValueError, RecursionError) as failure:
        raise UserError(f"{path}: not a TOML file: {failure}") from None
    return from_table(override(table, overrides), of_a_run=of_a_run)


def parse(text: str) -> dict[str, Any]:
    """TOML text as nested tables."""
    return tomllib.loads(text)


def override(table: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of the table with each key set; values in texts are TOML, bare words are strings.

    Raises:
        UserError: an override that is not of that form.
    """
    table = {name: dict(section) if isinstance(section, dict) else section for name, section in table.items()}
    if isinstance(overrides, str):
        raise UserError(f'overrides = "{overrides}": give a list, ["{overrides}"], or a table, {{"time.end": 20.0}}')
    changes = overrides.items() if isinstance(overrides, Mapping) else map(_target_and_value, overrides)
    for target, value in changes:
        section, _, key = target.partition(".")
        if not (section and key):
            raise UserError(f"{target}: write it as section.key, for example time.end")
        if not isinstance(table.setdefault(section, {}), dict):
            raise UserError(f"{target}: [{section}] is not a table in this case")
        table[section][key] = value
    return table


def _target_and_value(text: str) -> tuple[str, Any]:
    target, equals, literal = text.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {text}: write it as section.key=value, for example --set time.end=20.0")
    try:
        return target.strip(), parse(f"value = {literal}")["value"]
    except (ValueError, RecursionError):
        return target.strip(), literal.strip()


def from_table(table: dict[str, Any], *, of_a_run: bool = False) -> Case:
    """A case from nested tables; ``of_a_run`` as for :func:`load`.

    Raises:
        UserError: one sentence per mistake.
    """
    known = list(Case.model_fields)
    for name, section in table.items():
        if name not in known:
            raise UserError(unknown_key(name, known))
        if not isinstance(section, dict):
            raise UserError(f"{name} must be a table: write it as [{name}]")
    problem = _problem(table.get("problem", {}))
    if not of_a_run:
        if isinstance(problem, CustomProblem):
            problem.check_user_code()
        elif usercode.is_reference(problem.kind):
            check_own_problem(problem)
    physics = {"field": problem.default_field, **table.get("physics", {})}
    sections = {**table, "physics": physics}
    local_moments = physics.get("collision_operator") == "dougherty" and problem.periods and not problem.is_homogeneous
    if physics["field"] != "external" or local_moments or "grid" in table:
        sections["grid"] = {"cells": 128 if problem.space_dims == 1 else 32, **table.get("grid", {})}
    collision = table.get("method", {}).get("collision")
    if collision == "velocity_matching":
        sections["velocity_matching"] = table.get("velocity_matching", {})
    elif "velocity_matching" in table:
        raise UserError(
            '[velocity_matching] needs method.collision = "velocity_matching": remove it, or choose that method'
        )
    count = table.get("particles", {}).get("count")
    sections["method"] = _method(
        table.get("method", {}),
        without_collisions=physics.get("collision_strength") == 0,
        particles=count if isinstance(count, int) and count > 0 else ParticleSettings().count,
    )
    case = validate(Case, {**sections, "problem": problem})
    _require_possible(case)
    return case.model_copy(update={"grid": _fitting_grid(case)})


def _method(table: dict[str, Any], without_collisions: bool, particles: int) -> dict[str, Any]:
    """[method] with the defaults that depend on others of its keys.

    The JKO step is of second order with variable projection, except where another key asks for the paper's first order:
    the linear log det, or a form that is not split. Without collisions order 2 would only push twice a step.
    """
    is_jko = table.get("collision", "jko") == "jko"
    first = without_collisions or table.get("logdet") == "linear" or table.get("form", "split") != "split"
    solver = table.get("solver", "varpro" if is_jko else "adam")
    order = 2 if is_jko and not first else 1
    defaults = SOLVER_DEFAULTS.get(solver, {}) if isinstance(solver, str) else {}
    if solver == "varpro":
        few = min(1.0, math.sqrt(particles / ENOUGH_PARTICLES))
        defaults = defaults | {"learning_rate": float(f"{few * defaults['learning_rate']:.2g}")}
    return {"solver": solver, "order": order, **defaults, **table}


def _require_possible(case: Case) -> None:
    """Refuse a method or a start that cannot do the problem."""
    physics, method, particles = case.physics, case.method, case.particles
    if method.collision == "velocity_matching" and physics.field != "external":
        raise UserError(
            f'method.collision = "velocity_matching" cannot do physics.field = "{physics.field}": it needs the force '
            'before the run; use physics.field = "external", or method.collision = "jko"'
        )
    if method.form != "split" and case.time.integrator != "euler":
        raise UserError(
            f'method.form = "{method.form}" is for symplectic Euler: set time.integrator = "euler", '
            f'not "{case.time.integrator}"'
        )
    if isinstance(case.problem, CustomProblem) and physics.field != "external":
        raise UserError(
            f'physics.field = "{physics.field}" would ignore problem.potential: use physics.field = "external", or '
            'problem.kind = "two_stream"'
        )
    if case.grid and case.grid.solver == "distributed" and (physics.field != "poisson" or case.problem.space_dims == 1):
        raise UserError(
            f'grid.solver = "distributed" is for physics.field = "poisson" in two or three dimensions, not for '
            f'"{physics.field}" in {case.problem.space_dims}: use grid.solver = "root" or "replicated"'
        )
    if case.time.energy_conserving and physics.field != "ampere":
        raise UserError(
            f'time.energy_conserving = true cannot do physics.field = "{physics.field}": use physics.field = "ampere", '
            "where E can change in the kick"
        )
    for key, value, default in (("start", particles.start, "grid"), ("weights", particles.weights, "density")):
        if value == default and not isinstance(case.problem, PeriodicProblem):
            raise UserError(
                f'particles.{key} = "{value}" needs a periodic box, and problem.kind = "{case.problem.kind}" is '
                "unbounded: leave it out"
            )
    if physics.collision_operator == "dougherty":
        needs = None
        if case.problem.periods is None:
            needs = f'a periodic box, and problem.kind = "{case.problem.kind}" is unbounded: use "bath"'
        elif method.form != "split":
            needs = f'method.form = "split", not "{method.form}"'
        if needs:
            raise UserError(f'physics.collision_operator = "dougherty" needs {needs}')
    if particles.control_variate:
        needs = None
        if physics.collision_operator != "bath":
            needs = 'physics.collision_operator = "bath": its Maxwellian is what is known of f'
        elif physics.field == "external":
            needs = 'a self-consistent field, physics.field = "poisson" or "ampere"'
        elif method.collision in ("langevin", "none"):
            needs = f'collisions that track log f, such as method.collision = "jko", not "{method.collision}"'
        elif physics.collision_strength == 0:
            needs = "a bath to relax to, physics.collision_strength > 0"
        elif case.time.energy_conserving:
            needs = "time.energy_conserving = false: the weights change with v, and the energy of the field with them"
        if needs:
            raise UserError(f"particles.control_variate = true needs {needs}")
    if particles.start == "grid" and case.grid is None:
        raise UserError('particles.start = "grid" places particles by the cells of a mesh: add [grid]')


def _problem(table: dict[str, Any]) -> Problem:
    kinds = ", ".join(KINDS)
    if "kind" not in table:
        raise UserError(f"problem.kind is missing: every case names its problem, one of {kinds}")
    if isinstance(table["kind"], str) and usercode.is_reference(table["kind"]):
        return own_problem(table["kind"], table)
    if table["kind"] not in list(KINDS):
        raise UserError(
            f"problem.kind = {table['kind']!r} is not known: it may be one of {kinds}, "
            'or "module:name" of your own code'
        )
    return validate(KINDS[table["kind"]], table, "problem")


def _fitting_grid(case: Case) -> GridSettings | None:
    """The grid with its cells spelt out for every dimension, once it is known to suit problem and field."""
    problem, grid = case.problem, case.grid
    if problem.periods is None:
        if case.physics.field != "external":
            raise UserError(
                f'physics.field = "{case.physics.field}" needs a periodic box, and problem.kind = "{problem.kind}" is '
                'unbounded: use physics.field = "external"'
            )
        if grid is not None:
            raise UserError(f'[grid] needs a periodic box, and problem.kind = "{problem.kind}" is unbounded: remove it')
    if grid is None:
        return None
    if len(grid.cells) not in (1, problem.space_dims):
        raise UserError(
            f"grid.cells = {list(grid.cells)} does not fit problem.space_dims = {problem.space_dims}: give one number, "
            f"or {problem.space_dims}"
        )
    cells = grid.cells * problem.space_dims if len(grid.cells) == 1 else grid.cells
    if min(cells) < 4 or math.prod(cells) > 2**31:
        raise UserError(f"grid.cells = {list(cells)}: at least 4 in every direction, at most 2^31 in all")
    return grid.model_copy(update={"cells": cells})
