"""Sums with the same bits in any order, and so on any number of ranks and threads.

A sum of float64 numbers is exact in any order if all numbers are whole multiples of one unit and every partial sum is
less than 2^53 units. So each term is rounded to such a unit before the sum. These are sums of 64-bit fixed-point
numbers, in the arithmetic in which MPI, torch and numpy add. Beyond 2^53 units they are still sums, with the usual
rounding errors. The idea is by J. Demmel and H. D. Nguyen, doi:10.1109/ARITH.2013.9.

A term belongs to a single particle, to a row block of particles, or to a piece of particles (:func:`rows_together`). A
kernel or a matrix product adds the rows of a piece in single precision. These are the same rows in the same order on
any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from hpc_kjko.kernels.constants import ROUNDING_SHIFT
from hpc_kjko.particles.state import BLOCK, fold_rows, one_thread

#: Unit of densities (n̄ = 1), of averages over particles, of the JKO functional and of its gradient. Sums are exact up
#: to 2^9. The rounding error of one of N particles is N 2^-45 of 1, and averages out.
UNIT = 2.0**-44
#: The remainder of a rounded value is rounded to this fraction of UNIT, if the average may be small: to 2^-80.
FINE = 2.0**-36
#: Unit of the moments of variable projection, up to 2^13; and the fraction of it to which the remainder of log det is
#: rounded. The log det of an affine field is the same number at every particle, so its rounding error does not average
#: out. The same holds for the average of a constant over N particles, whose error is at most N 2^-51: 4e-7 for 10⁹.
MOMENTS_UNIT, FINER = 2.0**-40, 2.0**-20
#: Unit for numbers of particles. A particle of average weight counts as 1. Sums are exact up to 2^33 particles, and up
#: to 2^53 particles of equal weight.
COUNT_UNIT = 2.0**-20

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def rounded(values: Array, unit: float) -> Array:
    """The whole multiples of ``unit``, a power of two, that are nearest to float64 values. Values that are not finite
    stay unchanged.

    A unit of 0 rounds nothing.
    """
    shift = ROUNDING_SHIFT * unit
    return (values + shift) - shift


def rounded_finely(values: torch.Tensor) -> torch.Tensor:
    """Values as whole multiples of MOMENTS_UNIT, and their remainders as multiples of a finer unit. Each is summed
    separately.
    """
    coarse = rounded(values, MOMENTS_UNIT)
    return torch.stack([coarse, rounded(values - coarse, FINER * MOMENTS_UNIT)])


def summed(terms: torch.Tensor) -> torch.Tensor:
    """The contribution of a rank to an average: Σ_i of terms [n] or [n, k]; float64 scalar or [k].

    Row blocks are added before they are rounded. They are added by halves, an order that does not depend on their
    number.
    """
    return rounded(_of_blocks(terms), UNIT).sum(0)


def summed_finely(terms: torch.Tensor) -> torch.Tensor:
    """:func:`summed` as two numbers [2] or [2, k], which are added after the sum over ranks. Small averages are
    accurate to 2^-80.
    """
    blocks = _of_blocks(terms)
    coarse = rounded(blocks, UNIT)
    return torch.stack([coarse.sum(0), rounded(blocks - coarse, FINE * UNIT).sum(0)])


def _of_blocks(terms: torch.Tensor) -> torch.Tensor:
    """Sums over row blocks [row blocks, ...], float64."""
    rows = -(-len(terms) // BLOCK) * BLOCK
    padded = torch.zeros(rows, *terms.shape[1:], dtype=torch.float64, device=terms.device)
    padded[: len(terms)] = terms
    blocks = padded.view(-1, BLOCK, *terms.shape[1:])
    while blocks.shape[1] > 1:
        blocks = blocks[:, : blocks.shape[1] // 2] + blocks[:, blocks.shape[1] // 2 :]
    return blocks[:, 0]


@contextlib.contextmanager
def in_order(together: int) -> Iterator[None]:
    """A context in which a matrix product of ``together`` rows is added in one order: on one thread, if these are at
    most BLOCK rows.

    With more threads torch adds in another order. Products of more rows need not have the same bits, and gain from
    threads.
    """
    with one_thread() if together <= BLOCK else contextlib.nullcontext():
        yield


def counts(shares: torch.Tensor, total: int) -> torch.Tensor:
    """How many particles of average weight each particle counts as [n], from its share of the mass, for exact sums.

    Equal shares would all have the same rounding error, so their sum would be wrong. These numbers avoid that.
    """
    return rounded(shares * total, COUNT_UNIT)


def rows_together(total: int) -> int:
    """The size of a piece: how many consecutive rows of a fold are added before rounding, for ``total`` particles.

    Whole row blocks of particles are dealt to ranks, and a row block contains whole pieces of every fold.
    """
    return max(fold_rows(total), BLOCK // 8)
