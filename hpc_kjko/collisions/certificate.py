"""Means over the particles that certify a step. These particles take no part in the fit."""

from __future__ import annotations

import numpy as np
import torch

from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import COUNT_UNIT, counts, rounded, summed_finely
from hpc_kjko.particles.state import BLOCK, CERTIFY, FOLDS, Particles, Shard, fold_rows, folds, passes_over

#: With fewer held-out particles the standard error is not meaningful, and there is no certificate.
FEWEST = 16


def over_certifying(values: torch.Tensor, particles: Particles, comm: Communicator) -> tuple[float, float]:
    """The mean of values [n] over the particles that certify, and its standard error. Collective.

    Both are 0 with fewer than FEWEST such particles.
    """
    shares, shard, total = particles.shares(), particles.shard, particles.shard.total
    if fold_rows(total) == BLOCK:  # whole row blocks certify, and only these are summed
        own = _rows_of_fold(CERTIFY, shard, values.device)
        values, shares, chosen = values[own], shares[own], torch.ones(len(own), device=values.device)
    else:
        chosen = folds(shard, values.device) == CERTIFY
    counted = torch.zeros(2, dtype=torch.float64, device=values.device)
    sums = torch.zeros(2, 3, dtype=torch.float64, device=values.device)
    for rows in passes_over(values):
        number, value = counts(shares[rows], total) * chosen[rows], values[rows] * chosen[rows]
        counted += torch.stack([number.sum(), rounded(number**2, COUNT_UNIT).sum()])
        sums += summed_finely(shares[rows, None] * torch.stack([value, number * value, number * value**2], dim=1))
    number, square, *rest = comm.sum(torch.cat([counted, sums.flatten()]).cpu().numpy())
    first, *second = np.reshape(rest, (2, 3)).sum(0)
    # the number of particles of equal weight with the same error
    if not number > 0 or (effective := number**2 / square) < FEWEST:
        return 0.0, 0.0
    part = number / total  # fraction of the mass
    mean = first / part
    variance = max(second[1] - 2 * mean * second[0] + mean**2 * square / total, 0.0)
    return float(mean), float(np.sqrt(variance / total * effective / (effective - 1)) / part)


def _rows_of_fold(fold: int, shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """The rows of a rank's particles that are in a fold of whole row blocks. It does not wait for a GPU."""
    first = (fold - shard.start // BLOCK) % FOLDS * BLOCK
    starts = range(first, max(len(shard), first), FOLDS * BLOCK)
    beyond = max(starts[-1] + BLOCK - len(shard), 0) if starts else 0  # rows that the last row block does not have
    rows = torch.arange(len(starts), device=device)[:, None] * (FOLDS * BLOCK) + torch.arange(BLOCK, device=device)
    return first + rows.flatten()[: len(starts) * BLOCK - beyond]
