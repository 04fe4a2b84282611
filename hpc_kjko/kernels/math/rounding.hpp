// Rounding of the terms of sums to whole multiples of a unit (hpc_kjko/particles/exact.py). Such sums do not depend on
// the order of their terms.
#pragma once

#include "math/constants.hpp"
#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

// Adding and subtracting this rounds to a unit; 0 rounds nothing.
KJKO_MATH double shift_of(double unit) { return ROUNDING_SHIFT * unit; }

KJKO_MATH double rounded(double term, double shift) { return (term + shift) - shift; }

// A number rounded to whole units, and the remainder rounded to a finer unit.
struct Fine {
    double coarse, rest;
};
KJKO_MATH Fine rounded_finely(double number, double unit, double finer) {
    const double coarse = rounded(number, shift_of(unit));
    return {coarse, rounded(number - coarse, shift_of(finer * unit))};
}

}  // namespace kjko::KJKO_LEVEL
