"""The case file: TOML into frozen sections, every default filled in, every mistake named.

The names here are the public contract of a case.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from hpc_kjko import casefile, usercode
from hpc_kjko.case.coulomb import with_collision_strength
from hpc_kjko.case.idle import idle_in, idle_keys
from hpc_kjko.case.method import with_defaults
from hpc_kjko.case.model import Sections
from hpc_kjko.case.possible import fitting_grid, require_possible
from hpc_kjko.case.sections import ParticleSettings
from hpc_kjko.case.species_section import SpeciesSettings, species_sections
from hpc_kjko.errors import UserError
from hpc_kjko.operators import OPERATORS, Bath
from hpc_kjko.problems import KINDS, Plasma, Problem, UserStart, check_own_problem, own_problem
from hpc_kjko.schema import unknown_key, validate, whole_number

#: Keys of a case to change: ``section.key=value`` as on a command line, or values by ``section.key``.
Overrides = Sequence[str] | Mapping[str, Any]

#: Keys that each species has for itself, and keys of [problem] that all share.
NOT_BESIDE_SPECIES = (
    "particles.count",
    "physics.temperature",
    "physics.collision_strength",
    "physics.collision_operator",
)
OF_THE_BOX = ("kind", "length", "boundary", "space_dims", "velocity_dims")


class Case(Sections):
    """A whole run. Build it with :meth:`load` or :meth:`from_table`, which fill in what depends on the problem."""

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

    def table(self) -> dict[str, Any]:
        """The case as nested plain values, every default written out (what TOML and the output files hold).

        Keys that have no effect in it are left out.
        """
        table = self.model_dump(mode="json", exclude_none=True)
        if self.species:
            alone = not _pairs(table["physics"])
            table["species"] = {name: one.table(collides_alone=alone) for name, one in self.species.items()}
            table["problem"] = {key: table["problem"][key] for key in OF_THE_BOX}
            for key in _not_beside_species(self.physics.collision_operator):
                section, _, name = key.partition(".")
                del table[section][name]
        else:
            del table["species"]
        for section, keys, _ in idle_keys(self):
            table[section] = {key: value for key, value in table[section].items() if key not in keys}
        return table

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
        return target.strip(), casefile.parse(f"value = {literal}")["value"]
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
    physics = with_collision_strength({"field": problem.default_field, **table.get("physics", {})})
    sections = {**table, "physics": physics}
    if species:
        # the strongest collisions and all particles, for what is said of a case as a whole
        if not _pairs(physics):
            physics["collision_strength"] = max(one.collision_strength for one in species.values())
        sections["particles"] = {**table.get("particles", {}), "count": sum(one.count for one in species.values())}
    name = physics.get("collision_operator", "bath")
    operator = OPERATORS.get(name, Bath) if isinstance(name, str) else Bath
    starts = [one.start for one in species.values()] or [problem]
    stays_homogeneous = all(start.is_homogeneous for start in starts) and physics.get("drive") is None
    operators = [operator, *(OPERATORS[one.collision_operator] for one in species.values())]
    is_local = any(one.frame == "local" for one in operators)
    local_moments = is_local and problem.periods and not stays_homogeneous
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
    count = whole_number(sections.get("particles", {}).get("count"))
    if species:
        count = min(one.count for one in species.values())
    sections["method"] = with_defaults(
        table.get("method", {}),
        without_collisions=physics.get("collision_strength") == 0,
        particles=count if isinstance(count, int) and count > 0 else ParticleSettings().count,
        operator=next(name for name, kind in OPERATORS.items() if kind is operator),
    )
    case = validate(Case, {**sections, "problem": problem, "species": species})
    require_possible(case)
    grid = fitting_grid(case)
    fitting = case.model_copy(update={"grid": grid if needs_grid or case.particles.start == "grid" else None})
    if idle := tuple(idle_in(table, fitting)):
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
        raise UserError(
            f'[species] needs problem.kind = "plasma", not "{problem.kind}": each species has a start of its own'
        )
    if not table["species"]:
        raise UserError("[species] is empty: name a species, as in [species.electrons], or leave it out")
    physics = table.get("physics", {})
    apart = _not_beside_species(physics.get("collision_operator"))
    given = {f"{section}.{key}" for section in ("problem", "particles", "physics") for key in table.get(section, {})}
    for key in sorted(given):
        if key in apart or (key.startswith("problem.") and key.partition(".")[2] not in OF_THE_BOX):
            name = next(iter(table["species"]))
            raise UserError(f"{key} is not allowed with [species]: give it for each species, as in [species.{name}]")
    if table.get("particles", {}).get("control_variate"):
        raise UserError("particles.control_variate = true is not possible with [species]: leave it out")
    box = {key: getattr(problem, key) for key in OF_THE_BOX if key != "kind"}
    found = species_sections(table["species"], box, of_a_run=of_a_run)
    if _pairs(physics):
        _require_possible_strengths(table, physics)
    return found


def _pairs(physics: Mapping[str, Any]) -> bool:
    """Whether the operator of a [physics] table is a sum over pairs of the particles of all species."""
    name = physics.get("collision_operator")
    return isinstance(name, str) and name in OPERATORS and OPERATORS[name].sums_pairs


def _not_beside_species(operator: Any) -> tuple[str, ...]:
    """Keys that each species has for itself."""
    return NOT_BESIDE_SPECIES[:2] if _pairs({"collision_operator": operator}) else NOT_BESIDE_SPECIES


def _require_possible_strengths(table: Mapping[str, Any], physics: Mapping[str, Any]) -> None:
    """Refuse strengths of collisions that species, or pairs of them, do not have where all collide with all.

    Raises:
        UserError: naming the key.
    """
    operator, names = physics["collision_operator"], list(table["species"])
    for name, keys in table["species"].items():
        for key in ("collision_operator", "collision_strength"):
            if key in keys:
                raise UserError(
                    f'species.{name}.{key} is not allowed with physics.collision_operator = "{operator}", which acts '
                    "between all species: leave it out, and use physics.collision_strength"
                )
    landau = physics.get("landau")
    pairs = landau.get("pairs") if isinstance(landau, Mapping) else None
    if not isinstance(pairs, Mapping):
        return  # nothing there, or what its model will refuse
    if pairs and physics.get("collision_strength") == 0:
        raise UserError(
            "physics.collision_strength = 0 switches all collisions off, those of physics.landau.pairs too: give the "
            "pairs that do not collide the strength 0 instead"
        )
    for pair in pairs:
        first, dash, second = pair.partition("-")
        if not (dash and first in names and second in names):
            raise UserError(
                f"physics.landau.pairs.{pair}: give two species, as {names[0]}-{names[-1]}; this case has "
                f"{', '.join(names)}"
            )
        if first != second and f"{second}-{first}" in pairs:
            raise UserError(f"physics.landau.pairs has {first}-{second} and {second}-{first}: leave one of them out")


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
