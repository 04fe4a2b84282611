"""Means over the particles that certify a step. These particles take no part in the fit."""

from __future__ import annotations

import functools

import numpy as np
import torch

from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import counts, summed_finely
from hpc_kjko.particles.state import BLOCK, CERTIFY, Particles, Shard, folds, passes_over

#: With fewer held-out particles the standard error is not meaningful, and there is no certificate.
FEWEST = 16


def over_certifying(values: torch.Tensor, particles: Particles, comm: Communicator) -> tuple[float, float]:
    """The mean of values [n] over the particles that certify, and its standard error. Collective.

    Both are 0 with fewer than FEWEST such particles.
    """
    chosen, blocks = _certifying(particles.shard, values.device)
    shares, total = particles.shares(), particles.shard.total
    if blocks is not None:
        chosen, shares, values = (part.view(-1, BLOCK)[blocks].flatten() for part in (chosen, shares, values))
    counted = torch.zeros(2, dtype=torch.float64, device=values.device)
    sums = torch.zeros(2, 3, dtype=torch.float64, device=values.device)
    for rows in passes_over(values):
        number, value = counts(shares[rows], total) * chosen[rows], values[rows] * chosen[rows]
        counted += torch.stack([number.sum(), (number**2).sum()])
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


@functools.lru_cache(maxsize=8)
def _certifying(shard: Shard, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which particles of a rank certify [n]; and the row blocks with certifying particles, if all row blocks are whole.
    Sums leave out other row blocks. The result is kept, because the host waits for a GPU to know their number.
    """
    chosen = folds(shard, device) == CERTIFY
    blocks = chosen.view(-1, BLOCK).any(1).nonzero()[:, 0] if len(shard) % BLOCK == 0 else None
    return chosen, blocks
