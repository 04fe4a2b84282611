"""Units of the columns of a time series and of densities, in symbols.

The symbols are those of docs/reference/units.md: n̄, m, q and T of the reference species, ω_p, and v_th, the thermal
speed at T = 1. In a periodic box ∫f is the volume times n̄, and in unbounded space it is 1. So the unit of a quantity
that is summed over all particles depends on the number of space dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_SUPERSCRIPTS = ("", "", "²", "³", "⁴", "⁵", "⁶")


class _Quantity(NamedTuple):
    """Powers of m, v_th and ω_p in a unit, and whether the quantity is an integral over f."""

    mass: int
    speed: int
    frequency: int
    is_integral: bool


_ENERGY, _ENTROPY = _Quantity(1, 2, 0, True), _Quantity(0, 0, 0, True)
#: Quantities by patterns of their columns, of which the first one that fits counts. Other columns are pure numbers.
_QUANTITIES = {
    "time": _Quantity(0, 0, -1, False),
    "mass": _Quantity(1, 0, 0, True),
    r"momentum_\d": _Quantity(1, 1, 0, True),
    r"temperature_\d": _Quantity(1, 2, 0, False),
    "entropy|entropy_moved_total": _ENTROPY,
    "dissipation": _Quantity(1, 2, 1, True),
    "objective": _Quantity(0, 2, 0, False),
    "drift_error": _Quantity(0, 2, 2, False),
    "disagreement(_error)?|.*energy(_error|_total|_total_error)?": _ENERGY,
}
#: Columns that show the decrease of the free energy in a bath. Other collisions change ∫f log f instead.
_OF_A_BATH = re.compile("dissipation|disagreement(_error)?|collision_free_energy.*|objective")


def unit_of(column: str, box_dims: int, bath: bool = True) -> str:
    """The unit of a column; "1" for a pure number.

    Args:
        column: the name, without that of a species.
        box_dims: number of space dimensions of a periodic box; 0 in unbounded space.
        bath: whether collisions are those with a bath.
    """
    if column.startswith("seconds"):
        return "s"
    if column == "gauss_residual":
        return "q n̄"
    if moment := re.fullmatch(r"(?:mean|covariance)_([xv])_\d(?:_([xv])_\d)?", column):
        kinds = "".join(filter(None, moment.groups()))
        return in_symbols({"v_th": len(kinds), "ω_p": -kinds.count("x")})
    quantity = next((found for pattern, found in _QUANTITIES.items() if re.fullmatch(pattern, column)), None)
    if quantity is None:
        return "1"
    mass, speed, frequency, is_integral = quantity
    if not bath and _OF_A_BATH.fullmatch(column):
        mass, speed = 0, 0
    dims = box_dims if is_integral else 0
    powers = {"n̄": int(dims > 0), "m": mass, "v_th": speed + dims, "ω_p": frequency - dims}
    return in_symbols(powers)


def density_unit(kinds: str, box_dims: int) -> str:
    """The unit of the density of some coordinates, integrated over all others.

    Args:
        kinds: the kinds of the coordinates, for example "xv" for f(x, v_1).
        box_dims: as in :func:`unit_of`.
    """
    left = box_dims - kinds.count("x")  # number of space dimensions that are integrated over; negative without a box
    return in_symbols({"n̄": int(box_dims > 0), "v_th": left - kinds.count("v"), "ω_p": -left})


def in_symbols(powers: Mapping[str, int]) -> str:
    """A product of powers of symbols, as in "n̄ m v_th³/ω_p"; "1" if all powers are 0."""
    above, below = (
        [f"{name}{_SUPERSCRIPTS[abs(power)]}" for name, power in powers.items() if power * sign > 0] for sign in (1, -1)
    )
    under = " ".join(below) if len(below) < 2 else f"({' '.join(below)})"
    return "/".join([" ".join(above) or "1", *([under] if below else [])])
