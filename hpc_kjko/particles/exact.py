"""Sums with the same bits in any order, and so on any number of ranks and threads.

The sum of float64 numbers is exact, whatever is added first, while all of them are whole multiples of one unit and
every partial sum is less than 2^53 units. So what is summed is rounded to units beforehand: the sums are those of
64-bit fixed point numbers, in the arithmetic that MPI, torch and numpy add in. Beyond 2^53 units they are still sums,
with rounding errors like any other. The idea: J. Demmel, H. D. Nguyen, doi:10.1109/ARITH.2013.9.

Terms are those of single particles, of blocks of them, or of :func:`rows_together`: rows that a kernel or a matrix
product adds up in single precision, the same rows in the same order on any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from hpc_kjko.kernels.constants import ROUNDING_SHIFT
from hpc_kjko.particles.state import BLOCK, fold_rows, one_thread

#: Unit of densities (n̄ = 1), of averages over particles, of the JKO functional and of its gradient: up to 2^9 they are
#: exact. What is rounded of a single one of N particles is N 2^-45 of 1, and averages out.
UNIT = 2.0**-44
#: Part of that unit that what it leaves is rounded to, where an average may be small: to 2^-80.
FINE = 2.0**-36
#: Unit of variable projection's moments, up to 2^13, and the part of it that the rest of log det is rounded to: of an
#: affine field log det is the same number at every particle, and what is rounded of it does not average out.
MOMENTS_UNIT, FINER = 2.0**-40, 2.0**-20
#: Unit of numbers of particles, where one of average weight counts as 1.
COUNT_UNIT = 2.0**-20

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def rounded(values: Array, unit: float) -> Array:
    """The whole multiples of ``unit``, a power of two, nearest to float64 values; what is not finite stays so.

    0 rounds nothing.
    """
    shift = ROUNDING_SHIFT * unit
    return (values + shift) - shift


def rounded_finely(values: torch.Tensor) -> torch.Tensor:
    """Whole multiples of MOMENTS_UNIT, and of a finer unit for what these leave: two numbers that are summed each."""
    coarse = rounded(values, MOMENTS_UNIT)
    return torch.stack([coarse, rounded(values - coarse, FINER * MOMENTS_UNIT)])


def summed(terms: torch.Tensor) -> torch.Tensor:
    """Σ_i of what each particle adds to an average, terms [n] or [n, k] of a rank's rows: float64 scalar or [k].

    Blocks are added up before they are rounded, by halves: an order that does not depend on how many there are.
    """
    return rounded(_of_blocks(terms), UNIT).sum(0)


def summed_finely(terms: torch.Tensor) -> torch.Tensor:
    """The same as two numbers [2] or [2, k], to be added when they are summed over ranks: small averages to 2^-80."""
    blocks = _of_blocks(terms)
    coarse = rounded(blocks, UNIT)
    return torch.stack([coarse.sum(0), rounded(blocks - coarse, FINE * UNIT).sum(0)])


def _of_blocks(terms: torch.Tensor) -> torch.Tensor:
    """Sums over blocks of rows [blocks, ...], float64."""
    rows = -(-len(terms) // BLOCK) * BLOCK
    padded = torch.zeros(rows, *terms.shape[1:], dtype=torch.float64, device=terms.device)
    padded[: len(terms)] = terms
    blocks = padded.view(-1, BLOCK, *terms.shape[1:])
    while blocks.shape[1] > 1:
        blocks = blocks[:, : blocks.shape[1] // 2] + blocks[:, blocks.shape[1] // 2 :]
    return blocks[:, 0]


@contextlib.contextmanager
def in_order(together: int) -> Iterator[None]:
    """Matrix products of ``together`` rows that add up in one order: on one thread, if they are no more than a block.

    With more threads torch adds in another order; more rows are not meant to have the same bits (and gain by threads).
    """
    with one_thread() if together <= BLOCK else contextlib.nullcontext():
        yield


def counts(shares: torch.Tensor, total: int) -> torch.Tensor:
    """How many particles of average weight each of ``total`` is [n], from its share of the mass: to be added up.

    Shares that are all alike would be rounded all alike, and their sum be off.
    """
    return rounded(shares * total, COUNT_UNIT)


def rows_together(total: int) -> int:
    """How many consecutive rows of a fold are added up first, of an ensemble of ``total`` particles.

    Whole blocks of particles are dealt to ranks, and a block holds whole multiples of so many rows of every fold.
    """
    return max(fold_rows(total), BLOCK // 8)
