"""Numbers that kernels, their launch and their torch twins agree on: read from math/constants.hpp, where they stand."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = Path(__file__).with_name("math").joinpath("constants.hpp").read_text(encoding="utf-8")


def _values(name: str) -> tuple[float, ...]:
    """What the header says of a name: numbers as C++ writes them, one or several in braces."""
    found = re.search(rf"^constexpr \w+ {name}(?:\[\])? = {{?([^;}}]+)}}?;$", _TEXT, re.MULTILINE)
    if found is None:
        raise ValueError(f"math/constants.hpp has no {name}")
    numbers = (number.strip() for number in found[1].split(","))
    return tuple(float.fromhex(number) if number.startswith("0x") else float(number) for number in numbers)


def _integer(name: str) -> int:
    return int(_values(name)[0])


#: Widths of hidden layers that there are kernels of the objective for; the most inputs and velocity dimensions.
WIDTHS = tuple(map(int, _values("WIDTHS")))
MOST_INPUTS, MOST_VELOCITY_DIMS = _integer("MOST_INPUTS"), _integer("MOST_VELOCITY_DIMS")
#: The most layers and the largest width of the networks that the CPU's kernel of the field takes.
MOST_FIELD_LAYERS, MOST_FIELD_WIDTH = _integer("MOST_FIELD_LAYERS"), _integer("MOST_FIELD_WIDTH")
#: Of leaky_relu below 0.
LEAKY_SLOPE = _values("LEAKY_SLOPE")[0]
#: Below this determinant the objective continues log det smoothly.
CONTINUE_BELOW = _values("CONTINUE_BELOW")[0]
#: So many units added and subtracted again round a number of float64 to whole ones.
ROUNDING_SHIFT = _values("ROUNDING_SHIFT")[0]
#: The most particles to a sum in single precision, and to one of moments.
CHUNK, MOMENTS_CHUNK = _integer("CHUNK"), _integer("MOMENTS_CHUNK")
#: Threads of a block on a GPU that take a particle each.
PARTICLE_THREADS = _integer("PARTICLE_THREADS")
