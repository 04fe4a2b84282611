"""The case file: TOML into frozen sections, every default filled in, every mistake named.

The names here are the public contract of a case.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from hpc_kjko import casefile, usercode
from hpc_kjko.case.species_section import OperatorName, SpeciesSettings, species_sections
from hpc_kjko.casefile import parse
from hpc_kjko.errors import UserError
from hpc_kjko.operators import OPERATORS, Bath
from hpc_kjko.problems import (
    KINDS,
    CustomProblem,
    PeriodicProblem,
    PeriodicWave,
    Plasma,
    Problem,
    UserStart,
    check_own_problem,
    own_problem,
)
from hpc_kjko.problems.base import Mode
from hpc_kjko.problems.density import Density
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.schema import (
    LARGEST,
    Cadence,
    Count,
    Counts,
    Names,
    NonNegative,
    Positive,
    Section,
    Vector,
    Whole,
    among,
    unknown_key,
    validate,
    whole,
)

#: Keys of a case to change: ``section.key=value`` as on a command line, or values by ``section.key``.
Overrides = Sequence[str] | Mapping[str, Any]

if TYPE_CHECKING:
    OneOrTwo = Literal[1, 2]
    MapName = str
else:  # for a Literal True and 1.0 would do as well
    MapName = among(MAPS)
    OneOrTwo = Annotated[Whole, Field(ge=1, le=2)]


class DriveSettings(Section):
    """A driven wave, `E₀ cos(k·x − ωt)` along k."""

    amplitude: float
    """E₀ of the driven wave."""
    mode: Mode = (1,)
    """Periods of the driven wave in the box: one number for a wave along x_1, or one per space dimension."""
    frequency: float
    """ω of the driven wave."""
    rise: NonNegative = 0.0
    """How long the drive takes to rise, and to fall before it ends."""
    until: Positive | None = None
    """When the drive ends; without it the drive does not end."""

    @model_validator(mode="after")
    def _consistent(self) -> DriveSettings:
        if not any(self.mode):
            raise ValueError("physics.drive.mode is zero: a driven wave needs a period in the box")
        if self.until is not None and self.until < 2 * self.rise:
            raise ValueError(
                f"physics.drive.until = {self.until} leaves no time to rise and fall: it must be at least twice "
                f"physics.drive.rise = {self.rise}"
            )
        return self


def _drive(value: Any) -> Any:
    """A table of a driven wave, or the name of a field of the user's own."""
    if not isinstance(value, dict | str | DriveSettings):
        raise PydanticCustomError("drive", 'should be a table, [physics.drive], or "module:name" of a function E(x, t)')
    return validate(DriveSettings, value, "physics.drive") if isinstance(value, dict) else value


def _three(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 3:
        raise PydanticCustomError("three", "should be three numbers, [B_1, B_2, B_3]")
    return value


class Physics(Section):
    """Collisions, with a bath or of the particles with their like, and the force that acts on the particles."""

    collision_operator: OperatorName = "bath"
    """What particles collide with: `bath` or `dougherty`."""
    collision_strength: NonNegative = 0.01
    """`κ = ν/ω_p ≥ 0`, the collision frequency ν in units of the plasma frequency; velocities relax in the time 1/κ;
    0 switches collisions off."""
    temperature: Positive = 1.0
    """T of the bath."""
    field: Literal["poisson", "ampere", "external"]
    """The force on the particles: `poisson`, `ampere` or `external`."""
    initial_field: Literal["poisson", "zero"] = "poisson"
    """E at t = 0 with `ampere`: `poisson`, which satisfies Gauss's law, or `zero`."""

    magnetic_field: Annotated[Vector, AfterValidator(_three)] = (0.0, 0.0, 0.0)
    """B, uniform and constant, in which particles gyrate with the frequency `(q/m) |B|`; needs two velocity dimensions
    or three."""

    drive: Annotated[DriveSettings | str | None, BeforeValidator(_drive)] = None
    """A driven electric field: the table of a wave, or `module:name` of a function E(x, t) of your own."""

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
    """Number of particles of all ranks together; choose a power of two for a quiet start."""
    start: Literal["quiet", "random", "grid"] = "quiet"
    """How particles are drawn: `quiet`, `random` or `grid`."""
    weights: Literal["equal", "density"] = "equal"
    """Masses of the particles: `equal`, or `density` with positions uniform over the box."""
    control_variate: bool = False
    """Less noise in the density and in what the collision step learns, from the known equilibrium."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of the start and of the network."""
    precision: Literal["float32", "float64"] = "float64"
    """Number format of the particles' state: `float32` halves its memory."""

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
    """Cells of the mesh: one number, or one per space dimension; at least 4."""
    shape_order: OneOrTwo = 1
    """Shape function of a particle: 1 is cloud-in-cell, 2 is triangular-shaped cloud."""
    solver: Literal["root", "replicated", "distributed"] = "root"
    """Who solves for the field: `root`, `replicated` or `distributed`."""


#: Keys that each species has for itself, and keys of [problem] that all share.
NOT_BESIDE_SPECIES = (
    "particles.count",
    "physics.temperature",
    "physics.collision_strength",
    "physics.collision_operator",
)
OF_THE_BOX = ("kind", "length", "boundary", "space_dims", "velocity_dims")
#: The most steps that a run may have.
MOST_STEPS = 10**9


def _is_whole(ratio: float) -> bool:
    """Whether an end of so many steps is taken as a whole number of them, but for rounding."""
    return ratio >= 0.5 and abs(ratio - round(ratio)) <= 1e-6


def end_after(steps: float, step: float) -> str:
    """The shortest number that is taken as ``time.end`` of the nearest whole number of steps, for advice."""
    number = int(min(max(1, round(steps)), MOST_STEPS - 1, LARGEST / step))
    texts = (f"{number * step:.{digits}g}" for digits in range(6, 18))
    ratios = ((text, float(text) / step) for text in texts)
    return next(text for text, ratio in ratios if ratio <= MOST_STEPS and _is_whole(ratio) and round(ratio) == number)


class TimeSettings(Section):
    """The step, the end, and the symplectic map of the conservative part."""

    step: Positive = 0.1
    """Time step h, in 1/ω_p."""
    end: Positive = 50.0
    """The last time: a whole number of steps."""
    integrator: MapName = "verlet"
    """Symplectic map of the push: `euler` (order 1), `verlet` (2) or `forest_ruth` (4)."""
    energy_conserving: bool = False
    """With `ampere`: kinetic + field energy is exact to round-off without collisions."""

    @model_validator(mode="after")
    def _whole_number_of_steps(self) -> TimeSettings:
        ratio = self.end / self.step
        if not ratio <= MOST_STEPS:
            raise ValueError(f"time.end = {self.end} is {ratio:g} steps of time.step = {self.step}: at most 1e9")
        if not _is_whole(ratio):
            raise ValueError(
                f"time.end = {self.end} is not a whole number of time.step = {self.step}: "
                f"time.end = {end_after(ratio, self.step)} would be"
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
    "regression": {
        "iterations": 30,
        "first_iterations": 300,
        "learning_rate": 5e-3,
        "skip": False,
        "held_out": True,
        "hidden": (64, 64),
    },
    "adam": {"iterations": 50, "first_iterations": 500, "learning_rate": 5e-3, "skip": False, "held_out": False},
}

if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = among(SOLVER_DEFAULTS)

#: Keys of [method] that only a fit in each step has, and those that only a control field has.
_OF_A_FIT = ("solver", "iterations", "first_iterations", "learning_rate", "held_out", "relaxation")
_OF_A_CONTROL_FIELD = ("form", "logdet", "hidden", "skip", "activation", "precision", "chunk")


def _count_or_auto(value: Any) -> Any:
    number = whole(value)
    if number == "auto" or (type(number) is int and 0 <= number <= 10**12):
        return number
    raise PydanticCustomError("count_or_auto", 'should be a whole number from 0 to 1e12, or "auto"')


class Method(Section):
    """The collision step and how its inner problem is solved. Defaults that depend on other keys: :func:`_method`."""

    collision: str = "jko"
    """The collision step: `jko`, `score_matching`, `velocity_matching`, `langevin`, `none`, or `module:name`."""
    form: Literal["split", "nonsplit", "nonsplit_naive"] = "split"
    """Which state the control field is fitted to: `split`, `nonsplit` or `nonsplit_naive`."""
    order: OneOrTwo = 1
    """Order in time of push and collisions together: 1 or 2."""
    logdet: Literal["exact", "linear"] = "exact"
    """The determinant of the collision step: `exact`, `log det(I + h ∇v u)`, or `linear`, `h ∇v·u`."""
    solver: SolverName = "adam"
    """How the inner problem is solved: `regression`, `varpro` or `adam`."""
    iterations: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)] = 50
    """Iterations of Adam per step; `"auto"` with `adam`: as many as held-out particles gain by."""
    first_iterations: Cadence = 500
    """Iterations of Adam in the first step."""
    learning_rate: Positive = 5e-3
    """Learning rate of Adam."""
    relaxation: Annotated[float, Field(ge=0)] = 2.0
    """With `regression`: log f goes over to the fitted density, tied to the sample, at this rate times
    `collision_strength`."""
    held_out: bool = False
    """Keep a quarter of the particles out of the fit: half of them choose, half certify each step."""
    hidden: Counts = (32, 32)
    """Widths of at most two hidden layers; `[]` is the affine field."""
    skip: bool = False
    """a linear term from v (and x in unbounded space) to u beside the network."""
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    """Activation of the network: `tanh` or `leaky_relu` (slope 0.01)."""
    precision: Literal["float32", "float64"] = "float32"
    """Number format of the inner solve; particles are moved in `particles.precision`."""
    chunk: Count = 16384
    """Particles moved at a time."""

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
        if self.solver != "adam" and self.collision not in ("jko", "none"):
            raise ValueError(
                f'method.solver = "{self.solver}" is for the JKO step, not for "{self.collision}": use "adam"'
            )
        if self.solver != "adam" and self.iterations == "auto":
            raise ValueError(f'method.iterations = "auto" is for method.solver = "adam": give {self.solver} a number')
        if self.solver == "regression":
            for key, wanted in (("form", "split"), ("logdet", "exact"), ("activation", "tanh")):
                if getattr(self, key) != wanted:
                    raise ValueError(
                        f'method.solver = "regression" needs method.{key} = "{wanted}", not "{getattr(self, key)}"'
                    )
            if not self.hidden:
                raise ValueError(
                    'method.solver = "regression" needs a hidden layer: give method.hidden one or two widths'
                )
        if self.first_iterations == 0 and self.solver == "adam":
            raise ValueError(
                'method.first_iterations = 0 trains nothing in the first step: give method.solver = "adam" at least 1'
            )
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
    """Passes through the whole run with the field found so far."""
    iterations: Count = 40
    """Iterations of Adam after each pass, on the states of all times."""
    learning_rate: Positive = 1e-2
    """Learning rate of Adam."""


class Output(Section):
    """Cadences in steps; 0 switches an output off. The last step leaves a checkpoint and all that is switched on."""

    every: Cadence = 10
    """Steps between snapshots of density, potential and E."""
    particles_every: Cadence = 100
    """Steps between snapshots of positions, velocities and log f."""
    histogram_every: Cadence = 10
    """Steps between phase-space histograms and marginals."""
    checkpoint_every: Cadence = 100
    """Steps between checkpoints, which are whole states; the last two are kept."""
    diagnostics: Names = ()
    """`module:name` of diagnostics of your own, one or a list."""


class Run(Section):
    """Where and for how long this job runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if every rank has one; `cpu`; `cuda`."""
    reproducible: bool = True
    """The same bits on any number of ranks and threads."""
    wall_time: Positive | None = None
    """Seconds after which the run stops with a checkpoint and exit code 75."""


class Case(Section):
    """A whole run. Build it with :meth:`load` or :meth:`from_table`, which fill in what depends on the problem."""

    problem: SerializeAsAny[Problem]
    species: dict[str, SpeciesSettings] = {}
    physics: Physics
    particles: ParticleSettings = ParticleSettings()
    grid: GridSettings | None = None
    time: TimeSettings = TimeSettings()
    method: Method = Method()
    velocity_matching: VelocityMatching | None = None
    output: Output = Output()
    run: Run = Run()

    #: Keys that were given and have no effect in this case, each with the reason: for the log.
    _idle: tuple[str, ...] = ()

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
        usercode.look_in(Path(path).parent)
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
        if OPERATORS[self.physics.collision_operator].frame != "bath" or self.species:
            return None
        return self.problem.equilibrium(self.physics.temperature)

    def table(self) -> dict[str, Any]:
        """The case as nested plain values, every default written out (what TOML and the output files hold).

        Keys that have no effect in it are left out.
        """
        table = self.model_dump(mode="json", exclude_none=True)
        if self.species:
            table["species"] = {name: species.table() for name, species in self.species.items()}
            table["problem"] = {key: table["problem"][key] for key in OF_THE_BOX}
            for key in NOT_BESIDE_SPECIES:
                section, _, name = key.partition(".")
                del table[section][name]
        else:
            del table["species"]
        for section, keys, _ in _idle_keys(self):
            table[section] = {key: value for key, value in table[section].items() if key not in keys}
        return table

    @property
    def collision_operators(self) -> tuple[str, ...]:
        """The operators of all species."""
        if not self.species:
            return (self.physics.collision_operator,)
        return tuple(species.collision_operator for species in self.species.values())

    @property
    def idle(self) -> tuple[str, ...]:
        """Sentences on the keys that were given and have no effect."""
        return self._idle

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
    return from_table(override(casefile.read(path), overrides), of_a_run=of_a_run)


def override(table: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of the table with each key set; values in texts are TOML, bare words are strings.

    Raises:
        UserError: an override that is not of that form.
    """
    table = copy.deepcopy(table)
    if isinstance(overrides, str):
        raise UserError(f'overrides = "{overrides}": give a list, ["{overrides}"], or a table, {{"time.end": 20.0}}')
    changes = overrides.items() if isinstance(overrides, Mapping) else map(_target_and_value, overrides)
    for target, value in changes:
        section, _, key = target.partition(".")
        if not (section and key):
            raise UserError(f"{target}: write it as section.key, for example time.end")
        *path, key = target.split(".")
        place: Any = table
        for depth, name in enumerate(path, 1):
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"{target}: [{'.'.join(path[:depth])}] is not a table in this case")
        place[key] = value
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
    species = _species_of(table, problem, of_a_run=of_a_run)
    if not of_a_run:
        if isinstance(problem, UserStart):
            problem = problem.checked()
        elif usercode.is_reference(problem.kind):
            check_own_problem(problem)
    physics = {"field": problem.default_field, **table.get("physics", {})}
    sections = {**table, "physics": physics}
    if species:
        # the strongest collisions and all particles, for what is said of a case as a whole
        physics["collision_strength"] = max(one.collision_strength for one in species.values())
        sections["particles"] = {**table.get("particles", {}), "count": sum(one.count for one in species.values())}
    operator = OPERATORS.get(physics.get("collision_operator", "bath"), Bath)
    local_moments = operator.frame == "local" and problem.periods and not problem.is_homogeneous
    needs_grid = physics["field"] != "external" or local_moments
    if needs_grid or "grid" in table:
        sections["grid"] = {"cells": 128 if problem.space_dims == 1 else 32, **table.get("grid", {})}
    collision = table.get("method", {}).get("collision")
    if collision == "velocity_matching":
        sections["velocity_matching"] = table.get("velocity_matching", {})
    elif "velocity_matching" in table:
        raise UserError(
            '[velocity_matching] needs method.collision = "velocity_matching": remove it, or choose that method'
        )
    count = whole(sections.get("particles", {}).get("count"))
    if species:
        count = min(one.count for one in species.values())
    sections["method"] = _method(
        table.get("method", {}),
        without_collisions=physics.get("collision_strength") == 0,
        particles=count if isinstance(count, int) and count > 0 else ParticleSettings().count,
    )
    case = validate(Case, {**sections, "problem": problem, "species": species})
    _require_possible(case)
    grid = _fitting_grid(case)
    fitting = case.model_copy(update={"grid": grid if needs_grid or case.particles.start == "grid" else None})
    if idle := tuple(_idle_in(table, fitting)):
        # without these keys, as all that reads the resolved case has it: a restart, and the ranks other than 0
        fitting = from_table(fitting.table(), of_a_run=of_a_run)
        fitting._idle = idle
    return fitting


def _species_of(table: dict[str, Any], problem: Problem, *, of_a_run: bool) -> dict[str, SpeciesSettings]:
    """The species of a case, in the box of its problem; none where it names none.

    Raises:
        UserError: a species is wrong, or a key has another place beside species.
    """
    if "species" not in table:
        return {}
    if not isinstance(problem, Plasma):
        raise UserError(f'[species] needs problem.kind = "plasma", not "{problem.kind}": starts are those of species')
    if not table["species"]:
        raise UserError("[species] is empty: name a species, as in [species.electrons], or leave it out")
    given = {f"{section}.{key}" for section in ("problem", "particles", "physics") for key in table.get(section, {})}
    for key in sorted(given):
        if key in NOT_BESIDE_SPECIES or (key.startswith("problem.") and key.partition(".")[2] not in OF_THE_BOX):
            name = next(iter(table["species"]))
            raise UserError(f"{key} has no place beside [species]: each has its own, as in [species.{name}]")
    if table.get("particles", {}).get("control_variate"):
        raise UserError("particles.control_variate = true is for a case of one species: leave it out beside [species]")
    if table.get("physics", {}).get("field") == "external":
        raise UserError('physics.field = "external" is for one species: beside [species] use "poisson" or "ampere"')
    box = {key: getattr(problem, key) for key in OF_THE_BOX if key != "kind"}
    return species_sections(table["species"], box, of_a_run=of_a_run)


def _idle_in(table: dict[str, Any], case: Case) -> Iterator[str]:
    """Sentences on the keys of a user's table that have no effect in the case that it makes."""
    if "grid" in table and case.grid is None:
        yield f'[grid] has no effect with physics.field = "{case.physics.field}"'
    if case.method.collision == "none":
        for name, species in table.get("species", {}).items():
            if isinstance(species, dict) and species.get("collision_strength"):
                yield f'species.{name}.collision_strength has no effect with method.collision = "none"'
    for section, keys, reason in _idle_keys(case):
        if given := [f"{section}.{key}" for key in keys if key in table.get(section, {})]:
            yield f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect with {reason}"


def _idle_keys(case: Case) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Keys that another key switches off: section, keys, and what it is that does."""
    method, problem = case.method, case.problem
    if method.collision in ("none", "langevin"):
        yield "method", (*_OF_A_FIT, *_OF_A_CONTROL_FIELD), f'method.collision = "{method.collision}"'
    elif method.solver == "regression":
        yield "method", ("skip",), 'method.solver = "regression"'
    elif method.collision != "velocity_matching":
        yield "method", ("relaxation",), f'method.solver = "{method.solver}"'
    if method.collision == "none" and not case.species:
        yield "physics", ("collision_strength", "collision_operator"), 'method.collision = "none"'
    if method.collision == "velocity_matching":
        yield "method", _OF_A_FIT, 'method.collision = "velocity_matching", which has keys of its own'
    if isinstance(problem, CustomProblem) and problem.potential_name != problem.named_potentials[0]:
        shapes = {"bump_amplitude", "bump_wavenumber"}
        if usercode.is_reference(problem.potential_name):
            shapes.add("potential_amplitude")
        if keys := tuple(sorted(shapes & type(problem).model_fields.keys())):
            yield "problem", keys, f'problem.potential = "{problem.potential_name}"'
    shapes_beams = "amplitude" in type(problem).model_fields
    if isinstance(problem, UserStart) and problem.starts_from_user_code and shapes_beams:
        yield "problem", ("amplitude", "mode"), f'problem.initial_density = "{problem.initial_density}"'


def _method(table: dict[str, Any], without_collisions: bool, particles: int) -> dict[str, Any]:
    """[method] with the defaults that depend on others of its keys.

    The JKO step is of second order and fitted to the carried log f, except where another key asks for the paper's first
    order: the linear log det, or a form that is not split. Without collisions order 2 would only push twice a step.
    """
    is_jko = table.get("collision", "jko") == "jko"
    papers = table.get("logdet") == "linear" or table.get("form", "split") != "split"
    smooth = table.get("activation", "tanh") == "tanh" and table.get("hidden", True)
    solver = table.get("solver", ("regression" if smooth and not papers else "varpro") if is_jko else "adam")
    order = 2 if is_jko and not (papers or without_collisions) else 1
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
    if any(physics.magnetic_field):
        dims = case.problem.velocity_dims
        if dims < 2 or (dims == 2 and any(physics.magnetic_field[:2])):
            other = "a field along x_3" if dims == 2 else "2 with a field along x_3"
            raise UserError(
                f"physics.magnetic_field = {list(physics.magnetic_field)} turns velocities out of "
                f"problem.velocity_dims = {dims}: use 3, or {other}"
            )
        if method.form != "split":
            raise UserError(f'physics.magnetic_field needs method.form = "split", not "{method.form}"')
    _require_possible_drive(case)
    if case.problem.walls:
        needs = None
        if physics.field == "ampere":
            needs = 'physics.field = "poisson" or "external", not "ampere"'
        elif case.grid and case.grid.solver == "distributed":
            needs = 'grid.solver = "root" or "replicated", not "distributed"'
        elif any(physics.magnetic_field):
            needs = "no physics.magnetic_field"
        elif particles.control_variate:
            needs = "particles.control_variate = false"
        elif method.form != "split":
            needs = f'method.form = "split", not "{method.form}"'
        elif isinstance(case.problem, UserStart) and case.problem.starts_from_user_code:
            needs = "one of the built-in starts"
        elif any(operator != "bath" for operator in case.collision_operators):
            needs = 'collision_operator = "bath"'
        if needs:
            raise UserError(f"problem.boundary with walls needs {needs}")
    if isinstance(case.problem, CustomProblem) and physics.field != "external":
        raise UserError(
            f'physics.field = "{physics.field}" would ignore problem.potential: use physics.field = "external", or '
            'problem.kind = "plasma"'
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
    for key, value, special in (("start", particles.start, "grid"), ("weights", particles.weights, "density")):
        if value != special:
            continue
        if case.problem.periods is None:
            raise UserError(
                f'particles.{key} = "{value}" needs a periodic box, and problem.kind = "{case.problem.kind}" is '
                "unbounded: leave it out"
            )
        for start in [species.start for species in case.species.values()] or [case.problem]:
            own_start = isinstance(start, UserStart) and start.starts_from_user_code
            if own_start or not isinstance(start, PeriodicProblem):
                raise UserError(
                    f'particles.{key} = "{value}" draws space and velocity separately, which this start does not: '
                    "leave it out"
                )
    operator = OPERATORS[physics.collision_operator]
    for name in case.collision_operators:
        if OPERATORS[name].frame == "bath":
            continue
        needs = None
        if case.problem.periods is None:
            needs = f'a periodic box, and problem.kind = "{case.problem.kind}" is unbounded: use "bath"'
        elif method.form != "split":
            needs = f'method.form = "split", not "{method.form}"'
        if needs:
            raise UserError(f'{"" if case.species else "physics."}collision_operator = "{name}" needs {needs}')
    if particles.control_variate:
        needs = None
        if operator.frame != "bath":
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


def _require_possible_drive(case: Case) -> None:
    """Refuse a driven field that the box or the method cannot do."""
    drive, method = case.physics.drive, case.method
    if drive is None:
        return
    if method.form != "split" or method.collision == "velocity_matching":
        key = "form" if method.form != "split" else "collision"
        raise UserError(f'physics.drive cannot do method.{key} = "{getattr(method, key)}": it changes with time')
    if isinstance(drive, str):
        if not usercode.is_reference(drive):
            raise UserError(
                f'physics.drive = "{drive}": give a table, [physics.drive], or "module:name" of a function E(x, t)'
            )
    elif case.problem.periods is None:
        raise UserError(f'[physics.drive] needs a periodic box, and problem.kind = "{case.problem.kind}" is unbounded')
    elif len(drive.mode) > case.problem.space_dims:
        raise UserError(
            f"physics.drive.mode has {len(drive.mode)} numbers for problem.space_dims = {case.problem.space_dims}: "
            "give one for each axis, or one for a wave along x_1"
        )


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
    starts = {f"species.{name}": species.start for name, species in case.species.items()} or {"problem": problem}
    for where, start in starts.items():
        if not isinstance(start, PeriodicWave):
            continue
        walls = start.walls.axes if start.walls else (False,) * start.space_dims
        for axis, (mode, number, wall) in enumerate(zip(start.mode, cells, walls, strict=False)):
            periods = abs(mode) / (2 if wall else 1)
            if 2 * periods >= number:
                raise UserError(
                    f"{where}.mode = {list(start.mode)} has {periods:g} periods along x_{axis + 1}, and grid.cells = "
                    f"{list(cells)} shows at most {(number - 1) // 2} of them: more cells, or a longer wave"
                )
    return grid.model_copy(update={"cells": cells})
