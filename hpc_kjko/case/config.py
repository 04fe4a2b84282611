"""The case file: TOML text is checked and becomes immutable sections with all defaults.

The names of sections and keys in these modules are the public interface of a case.
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
from hpc_kjko.schema import key_of_others, keys_named, unknown_key, validate, whole_number

#: Changes of keys: texts ``section.key=value`` as on the command line, or a table from ``section.key`` to the value.
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
    """A complete case. :meth:`load` and :meth:`from_table` build it with the defaults that depend on the problem."""

    #: For the log: the keys that were given but have no effect in this case, with the reason.
    _idle: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | str, overrides: Overrides = ()) -> Case:
        """Read a case file.

        Args:
            path: the TOML file.
            overrides: keys to change, either as on the command line, ``["time.end=20.0"]``, or as a table,
                ``{"time.end": 20.0}``.

        Raises:
            UserError: the file is missing or not TOML, or a key is wrong; the message names it.
        """
        usercode.look_in(Path(path).parent)
        return load(Path(path), overrides)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Case:
        """Make a case from nested tables like those of a file: ``{"problem": {"kind": "two_stream"}}``.

        Raises:
            UserError: a key is wrong or missing. The message has one sentence per mistake.
        """
        return from_table(table)

    def table(self) -> dict[str, Any]:
        """The case as nested tables of plain values with all defaults, as in TOML and in the output files.

        Keys that have no effect in this case are left out.
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
        """Sentences about the keys that were given but have no effect."""
        return self._idle

    def toml(self) -> str:
        """The case as TOML text that :func:`load` reads back to an equal case."""
        return tomli_w.dumps(self.table())


def load(path: Path, overrides: Overrides = (), *, of_a_run: bool = False) -> Case:
    """Read a case file and apply overrides.

    Args:
        of_a_run: the file is in a run folder and is only read. The user's own code was checked when the run began, and
            need not be available now.

    Raises:
        UserError: the file is missing or not TOML, or a key is wrong; the message names it.
    """
    return from_table(override(casefile.read(path), overrides), of_a_run=of_a_run)


def override(table: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of the table with changed keys. A value given as text is read as TOML, or as a string if it is not TOML.

    Raises:
        UserError: an override does not have the form section.key=value.
    """
    table = copy.deepcopy(table)
    if isinstance(overrides, str):
        raise UserError(f'overrides = "{overrides}": give a list, ["{overrides}"], or a table, {{"time.end": 20.0}}')
    changes = overrides.items() if isinstance(overrides, Mapping) else map(_target_and_value, overrides)
    for target, value in changes:
        section, _, key = target.partition(".")
        if not (section and key):
            raise UserError(
                f"{target}: write it as section.key, for example {next(iter(keys_named(target)), 'time.end')}"
            )
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
        found = keys_named(target.strip()) if equals else []
        example = f"{found[0]}={literal}" if found else "time.end=20.0"
        raise UserError(f"--set {text}: write it as section.key=value, for example --set {example}")
    try:
        return target.strip(), casefile.parse(f"value = {literal}")["value"]
    except (ValueError, RecursionError):
        return target.strip(), literal.strip()


def from_table(table: dict[str, Any], *, of_a_run: bool = False) -> Case:
    """A case from nested tables. ``of_a_run`` is explained at :func:`load`.

    Raises:
        UserError: a key is wrong or missing. The message has one sentence per mistake.
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
        # for checks of the whole case: the strongest collisions, and the particles of all species
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
        # leave these keys out, so that this case equals the resolved case that a restart and the other ranks read
        fitting = from_table(fitting.table(), of_a_run=of_a_run)
        fitting._idle = idle
    return fitting


def _species_of(table: dict[str, Any], problem: Problem, *, of_a_run: bool) -> dict[str, SpeciesSettings]:
    """The species of a case, in the box of its problem; empty for a case without ``[species]``.

    Raises:
        UserError: a species is wrong, or a key is not allowed together with ``[species]``.
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
    """Keys that each species has in its own section."""
    return NOT_BESIDE_SPECIES[:2] if _pairs({"collision_operator": operator}) else NOT_BESIDE_SPECIES


def _require_possible_strengths(table: Mapping[str, Any], physics: Mapping[str, Any]) -> None:
    """Refuse collision keys of single species or unknown pairs if one operator acts between all species.

    Raises:
        UserError: the message names the key.
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
        return  # there are no pairs, or the model refuses them
    if pairs and physics.get("collision_strength") == 0:
        raise UserError(
            "physics.collision_strength = 0 switches off all collisions, also those of physics.landau.pairs: instead, "
            "give strength 0 to the pairs that do not collide"
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
    kind = table["kind"]
    unknown = [f"problem.{key}" for key in table if key not in KINDS[kind].model_fields]
    wrong = [key_of_others(key, "problem.kind", kind, KINDS) for key in unknown]
    if any(wrong):
        raise UserError("\n".join(filter(None, wrong)))
    return validate(KINDS[kind], table, "problem")
