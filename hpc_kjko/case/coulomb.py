"""The strength C of Coulomb collisions, from the plasma parameters in [physics.landau]."""

from __future__ import annotations

from typing import Any

from hpc_kjko.case.sections import LandauSettings
from hpc_kjko.errors import UserError
from hpc_kjko.schema import validate
from hpc_kjko.units import Units

#: Relative tolerance of C in a resolved case, which also has the plasma parameters. Constants may be revised.
_TOLERANCE = 1e-6


def with_collision_strength(physics: dict[str, Any]) -> dict[str, Any]:
    """[physics] with C set from the plasma parameters in [physics.landau]. Without them the table is unchanged.

    Args:
        physics: the table of a case. It may contain C as well (a resolved case does) if the two agree.

    Returns:
        The table with ``collision_strength``.

    Raises:
        UserError: C in the table differs from that of the plasma, the parameters are not a plasma, or [physics.landau]
            is wrong.
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
