"""How strong Coulomb collisions are where a case gives the plasma itself: C from [physics.landau]."""

from __future__ import annotations

from typing import Any

from hpc_kjko.case.sections import LandauSettings
from hpc_kjko.errors import UserError
from hpc_kjko.schema import validate
from hpc_kjko.units import Units

#: A resolved case has C beside the plasma that it is of; constants of nature may have got more digits since.
_TOLERANCE = 1e-6


def with_collision_strength(physics: dict[str, Any]) -> dict[str, Any]:
    """[physics] with the C of the plasma that [physics.landau] gives; as it is where that gives none.

    Args:
        physics: the table of a case. It may have both, as a resolved case has, if they agree.

    Raises:
        UserError: the plasma has another C than the table, or is none; or [physics.landau] is wrong.
    """
    landau = physics.get("landau")
    if physics.get("collision_operator") != "landau" or not isinstance(landau, dict):
        return physics
    settings: LandauSettings = validate(LandauSettings, landau, "physics.landau")
    if settings.log_lambda is None or settings.density is None or settings.temperature is None:
        return physics
    try:
        strength = Units(settings.density, settings.temperature).collision_strength(settings.log_lambda)
    except UserError as failure:
        raise UserError(f"physics.landau: {failure}") from None
    given = physics.get("collision_strength", strength)
    is_number = isinstance(given, int | float)
    if not (is_number and strength * (1 - _TOLERANCE) <= given <= strength * (1 + _TOLERANCE)):
        raise UserError(
            f"physics.collision_strength = {given!r:.60} is not the {strength:.6g} that follows from "
            "physics.landau.density: leave out one of them"
        )
    return {**physics, "collision_strength": given}
