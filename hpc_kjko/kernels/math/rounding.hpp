// Terms of sums rounded to whole multiples of a unit (hpc_kjko/particles/exact.py): such sums do not depend on their
// order.
#pragma once

#include "math/constants.hpp"
#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

// What rounds to a unit; 0 rounds nothing.
KJKO_MATH double shift_of(double unit) { return ROUNDING_SHIFT * unit; }

KJKO_MATH double rounded(double term, double shift) { return (term + shift) - shift; }

// A number to whole units, and what this leaves of it to a finer unit.
struct Fine {
    double coarse, rest;
};
KJKO_MATH Fine rounded_finely(double number, double unit, double finer) {
    const double coarse = rounded(number, shift_of(unit));
    return {coarse, rounded(number - coarse, shift_of(finer * unit))};
}

}  // namespace kjko::KJKO_LEVEL
