"""The ``[species.NAME]`` sections of a case: the particles of each species, and how they start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PrivateAttr

from hpc_kjko import usercode
from hpc_kjko.errors import UserError
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import STARTS, Plasma, Problem
from hpc_kjko.schema import Count, NonNegative, Positive, Section, among, key_of_others, unknown_key, validate

if TYPE_CHECKING:
    OperatorName = str
else:
    OperatorName = among(OPERATORS)

#: Keys of a start that belong to the box, which all species share.
_OF_THE_BOX = ("kind", "length", "boundary", "space_dims", "velocity_dims")
#: First words of columns in the time series that do not belong to a species.
_COLUMNS = {
    *("seconds", "momentum", "mass", "time", "step", "kinetic", "field", "potential", "free", "wave", "drive", "gauss"),
    *("collision", "temperature", "marginal", "control", "weight", "mean", "covariance", "log", "entropy", "min"),
    *("inner", "drift", "sparse", "density", "rho", "kl", "certificate", "disagreement"),
}
#: Valid names of species. Names of columns and of datasets in files begin with the name of a species.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class SpeciesSettings(Section):
    """One of several species: its particles, its start, and its collisions.

    The same section also holds the keys of its start, for example `amplitude`."""

    charge: Annotated[float, Field(ge=-1e6, le=1e6)]
    """q of a particle, in units of the elementary charge. A particle with charge 0 feels no field."""
    mass: Positive
    """m of a particle, in units of the mass of the reference species."""
    count: Count
    """Number of particles of all ranks together. A power of two is best for a quiet start."""
    temperature: Positive = 1.0
    """T of its bath and of a `maxwellian` start, in units of the reference temperature."""
    density: Positive = 1.0
    """Mean density, in units of the reference density."""
    initial: str = "maxwellian"
    """Its start: `maxwellian`, `beams`, `bump_on_tail`, `bi_maxwellian`, `kappa`, or `module:name` of your own f0."""
    collision_strength: NonNegative = 0.0
    """κ of its collisions, in ω_p. 0 switches them off."""
    collision_operator: OperatorName = "bath"
    """What its particles collide with: `bath`, a bath at its temperature, or `dougherty`, particles of the same
    species."""

    _start: Problem = PrivateAttr()

    @property
    def start(self) -> Problem:
        """The initial density, with the mean density, temperature and mass of this species."""
        return self._start

    def table(self, *, collides_alone: bool = True) -> dict[str, Any]:
        """The keys of this species and of its start, as in a case file.

        The collision keys are left out if one operator acts between all species (``collides_alone`` is False)."""
        start = self._start.model_dump(mode="json", exclude_none=True, exclude={*_OF_THE_BOX, "initial_density"})
        of_collisions = set() if collides_alone else {"collision_operator", "collision_strength"}
        return self.model_dump(mode="json", exclude=of_collisions) | start


def species_sections(table: Mapping[str, Any], box: Mapping[str, Any], *, of_a_run: bool) -> dict[str, SpeciesSettings]:
    """The species of a case, each with its start.

    Args:
        table: the ``[species]`` table of the case.
        box: ``length``, ``boundary``, ``space_dims`` and ``velocity_dims`` of the box.
        of_a_run: True if the case was checked when its run began; the user's own code is then not checked again.

    Raises:
        UserError: a species is wrong. The message has one sentence per mistake.
    """
    found = {}
    for name, keys in table.items():
        if not isinstance(keys, dict):
            raise UserError(f"species.{name} must be a table: give each species one, as [species.electrons]")
        if not _NAME.fullmatch(name):
            raise UserError(
                f"species.{name}: a species name has at most 32 lower-case letters, digits and underscores, and begins "
                "with a letter, as in [species.electrons]"
            )
        found[name] = _species(f"species.{name}", keys, box, of_a_run=of_a_run)
    for name in found.keys() & _COLUMNS:
        raise UserError(f"species.{name}: the series has columns of that name: use another, as [species.{name}_1]")
    for name in found:
        for other in found:
            if name != other and name.startswith(f"{other}_"):
                raise UserError(f"species.{name}: its columns would look like those of {other}: use another name")
    return found


def _species(where: str, keys: dict[str, Any], box: Mapping[str, Any], *, of_a_run: bool) -> SpeciesSettings:
    """One species with its start.

    Args:
        where: the name of the section, for messages.
    """
    own = {key: value for key, value in keys.items() if key in SpeciesSettings.model_fields}
    settings: SpeciesSettings = validate(SpeciesSettings, own, where)
    of_start = {key: value for key, value in keys.items() if key not in own}
    try:
        start = _start(where, settings.initial, of_start, box)
        start = start.of_species(settings.density, settings.temperature, settings.mass)
        settings._start = start.checked() if isinstance(start, Plasma) and not of_a_run else start
    except UserError as failure:  # these messages name keys of [problem], where the start of a single species is set
        text = str(failure).replace("problem.initial_density", f"{where}.initial").replace("problem.", f"{where}.")
        raise UserError(text.replace(f"share {where}.", "share problem.")) from None
    return settings


def _start(where: str, initial: str, keys: dict[str, Any], box: Mapping[str, Any]) -> Problem:
    """The start of a species, from its name and its keys."""
    if not usercode.is_reference(initial) and initial not in STARTS:
        known = ", ".join(f'"{name}"' for name in STARTS)
        raise UserError(
            f'{where}.initial = "{initial}" is not known: it may be {known}, or "module:name" of your own code'
        )
    kind = STARTS.get(initial, Plasma)
    for key in _OF_THE_BOX:
        if key in keys:
            advice = f'the start is {where}.initial = "…"' if key == "kind" else f"all species share problem.{key}"
            raise UserError(f"{where}.{key}: {advice}")
    own = [key for key in kind.model_fields if key not in (*_OF_THE_BOX, "initial_density")]
    for key in keys:
        if key not in own:
            unknown = unknown_key(f"{where}.{key}", [*SpeciesSettings.model_fields, *own])
            raise UserError(key_of_others(f"{where}.{key}", f"{where}.initial", initial, STARTS) or unknown)
    if kind is Plasma:
        found: Problem = validate(kind, {"kind": "plasma", **box, "initial_density": initial, **keys}, where)
    else:  # a species has no wave unless its keys set one, because other species may have one
        found = validate(kind, {"kind": initial, **box, "amplitude": 0.0, **keys}, where)
    return found
