"""Constants shared by kernels, their launch and their torch twins. They are defined in math/constants.hpp and read from
it.
"""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = Path(__file__).with_name("math").joinpath("constants.hpp").read_text(encoding="utf-8")


def _values(name: str) -> tuple[float, ...]:
    """The values of a name in the header, which C++ writes as one number, or as several in braces."""
    found = re.search(rf"^constexpr \w+ {name}(?:\[\])? = {{?([^;}}]+)}}?;$", _TEXT, re.MULTILINE)
    if found is None:
        raise ValueError(f"math/constants.hpp has no {name}")
    numbers = (number.strip() for number in found[1].split(","))
    return tuple(float.fromhex(number) if number.startswith("0x") else float(number) for number in numbers)


def _integer(name: str) -> int:
    return int(_values(name)[0])


#: Widths of hidden layers for which the objective has kernels; the largest numbers of inputs and of velocity
#: dimensions.
WIDTHS = tuple(map(int, _values("WIDTHS")))
MOST_INPUTS, MOST_VELOCITY_DIMS = _integer("MOST_INPUTS"), _integer("MOST_VELOCITY_DIMS")
#: The largest number of layers, and the largest width, of networks that the CPU kernel of the field takes.
MOST_FIELD_LAYERS, MOST_FIELD_WIDTH = _integer("MOST_FIELD_LAYERS"), _integer("MOST_FIELD_WIDTH")
#: The slope of leaky_relu below 0.
LEAKY_SLOPE = _values("LEAKY_SLOPE")[0]
#: Below this determinant the objective continues log det smoothly.
CONTINUE_BELOW = _values("CONTINUE_BELOW")[0]
#: Adding and then subtracting this many units rounds a float64 number to whole units.
ROUNDING_SHIFT = _values("ROUNDING_SHIFT")[0]
#: The largest number of particles in a sum in single precision, and in a sum of moments.
CHUNK, MOMENTS_CHUNK = _integer("CHUNK"), _integer("MOMENTS_CHUNK")
#: Number of threads of a CUDA thread block that handle one particle each.
PARTICLE_THREADS = _integer("PARTICLE_THREADS")
