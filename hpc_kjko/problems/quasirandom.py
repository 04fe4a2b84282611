"""A scrambled Sobol sequence with random access: any range of rows at the cost of this range, up to 2^64 points.

SciPy's ``qmc.Sobol`` cannot fast-forward its 64-bit sequence, and computes every point that it skips. That is too slow
for a rank whose particles start at row 10⁹. Unscrambled, the points are those of SciPy (a test compares them bit for
bit).

S. Joe, F. Y. Kuo, doi:10.1137/070709359 (direction numbers); J. Matoušek, doi:10.1006/jcom.1998.0489 (scrambling).
"""

from __future__ import annotations

import functools

import numpy as np

BITS = 64
#: Number of rows whose numbers differ in the last bits only.
SPAN = 1024

# Joe and Kuo's primitive polynomials (degree, coefficients) and initial direction numbers of dimensions 2 to 6.
_POLYNOMIALS = ((1, 0, (1,)), (2, 1, (1, 3)), (3, 1, (1, 3, 1)), (3, 2, (1, 1, 1)), (4, 1, (1, 1, 3, 3)))


class Sobol:
    """The first ``dims`` ≤ 6 coordinates of the Sobol sequence, linear-matrix scrambled and shifted by ``seed``.

    ``seed = None`` leaves the sequence as Sobol made it.
    """

    def __init__(self, dims: int, seed: int | None):
        self._directions = np.stack([_direction_numbers(axis) for axis in range(dims)])
        self._shift = np.zeros(dims, dtype=np.uint64)
        if seed is not None:
            generator = np.random.Generator(np.random.Philox(key=seed))
            rows = generator.integers(0, 2**64, size=(dims, BITS), dtype=np.uint64)
            self._shift = generator.integers(0, 2**64, size=dims, dtype=np.uint64)
            self._directions = _scramble(self._directions, rows)

    def points(self, first: int, count: int) -> np.ndarray:
        """Rows [first, first + count) of the sequence: [count, dims] float64 in [0, 1], stored axis by axis."""
        digits = np.empty((len(self._shift), count), dtype=np.uint64)
        at = first
        while at < first + count:
            begin = at - at % SPAN
            end = min(begin + SPAN, first + count)
            low, rows = self._low[:, at - begin : end - begin], slice(at - first, end - first)
            np.bitwise_xor(low, self._high(begin)[:, None], out=digits[:, rows])
            at = end
        return (digits * 2.0**-BITS).T

    @functools.cached_property
    def _low(self) -> np.ndarray:
        """The contribution of the last bits of the number of a row to its digits [dims, SPAN]."""
        index = np.arange(SPAN, dtype=np.uint64)
        gray = index ^ (index >> np.uint64(1))
        digits = np.zeros((len(self._shift), SPAN), dtype=np.uint64)
        for bit in range(SPAN.bit_length() - 1):
            digits ^= ((gray >> np.uint64(bit)) & np.uint64(1)) * self._directions[:, bit : bit + 1]
        return digits

    def _high(self, begin: int) -> np.ndarray:
        """The digits [dims] of a row whose number is a multiple of SPAN. Gray codes add up as these numbers do."""
        gray = begin ^ (begin >> 1)
        chosen = [bit for bit in range(gray.bit_length()) if gray >> bit & 1]
        return np.bitwise_xor.reduce(self._directions[:, chosen], axis=1) ^ self._shift


def _direction_numbers(axis: int) -> np.ndarray:
    """v_1 … v_64 of one coordinate, as 64-bit binary fractions."""
    if axis == 0:
        numbers = [1] * BITS
    else:
        degree, coefficients, initial = _POLYNOMIALS[axis - 1]
        numbers = list(initial)
        for k in range(degree, BITS):
            number = numbers[k - degree] ^ (numbers[k - degree] << degree)
            for j in range(1, degree):
                if (coefficients >> (degree - 1 - j)) & 1:
                    number ^= numbers[k - j] << j
            numbers.append(number)
    return np.array([number << (BITS - 1 - k) for k, number in enumerate(numbers)], dtype=np.uint64)


def _scramble(directions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Multiply each direction number by a random lower triangular bit matrix with unit diagonal, per coordinate."""
    scrambled = np.zeros_like(directions)
    for row in range(BITS):
        diagonal = np.uint64(1 << (BITS - 1 - row))
        above = np.uint64((2**64 - 1) ^ ((1 << (BITS - row)) - 1))  # the digits more significant than this one
        parity = directions & ((rows[:, row, None] & above) | diagonal)
        for fold in (32, 16, 8, 4, 2, 1):
            parity = parity ^ (parity >> np.uint64(fold))
        scrambled |= (parity & np.uint64(1)) * diagonal
    return scrambled
