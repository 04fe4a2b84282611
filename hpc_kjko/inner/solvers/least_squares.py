"""Sums over particles with the same bits on any number of ranks, and the normal equations that are made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.objective import in_pieces
from hpc_kjko.inner.potential import CACHED
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import MOMENTS_UNIT, in_order, rounded
from hpc_kjko.particles.state import at_once, passes

#: Both are added to the diagonal of the normal equations. RIDGE conditions them, in units of the diagonal. It is small
#: because the data have no noise. ROUNDING covers the rounding errors of the sums.
RIDGE, ROUNDING = 1e-8, 1e-10


class LeastSquares:
    """Adds up products of functions over the particles of all ranks, and solves for coefficients.

    Args:
        together: size of a piece: the number of consecutive particles that are added before the sum is rounded.

    Attributes:
        at_once: number of particles handled at a time; a multiple of the size of a piece.
    """

    def __init__(self, comm: Communicator, together: int, device: torch.device):
        self.comm, self.together = comm, together
        self.at_once = max(1, at_once(CACHED, device) // together) * together

    @torch.no_grad()
    def summed(
        self, function: Callable[..., list[torch.Tensor]], samples: Sequence[tuple[Any, ...]]
    ) -> list[np.ndarray]:
        """The sums over the particles of all ranks of the results of ``function``, which is called for some particles
        at a time. Collective.

        Args:
            samples: arguments of the function for all rows, of each sample. The last argument is a tensor [n]; the
                others may be functions of rows.
        """
        total: list[torch.Tensor] = []
        with in_order(self.together):
            for sample in samples:
                for rows in passes(len(sample[-1]), self.at_once):
                    found = function(*(part(rows) if callable(part) else part[rows] for part in sample))
                    total = [one + other for one, other in zip(total, found, strict=True)] if total else found
        flat = torch.cat([part.flatten() for part in total]).cpu().numpy()
        return self.over_ranks(flat, [tuple(part.shape) for part in total])

    def over_ranks(self, flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Sums over the ranks of arrays that are stored one after the other in ``flat``. Collective."""
        edges = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = np.split(self.comm.sum(flat), edges)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def products(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Σ of products [k, m] over particles (and over further axes of each particle), from [n, ..., k] and [n, ...,
        m]; float64.

        The rows of a piece are added by one matrix product, then rounded.
        """
        pieces = [in_pieces(part.flatten(1), self.together) for part in (left, right)]
        one, other = (
            part.view(len(part), -1, like.shape[-1]) for part, like in zip(pieces, (left, right), strict=True)
        )
        return rounded(torch.bmm(one.mT, other), MOMENTS_UNIT).sum(0)

    def solved(self, matrix: np.ndarray, load: np.ndarray) -> np.ndarray:
        """The solution of normal equations, the same on all ranks. Collective."""
        unit = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
        scaled = matrix / unit[:, None] / unit + np.diag(RIDGE + ROUNDING / unit**2)
        if not np.isfinite(scaled).all():
            raise SolverFailure(
                "log f, a velocity or the network is no longer finite: reduce time.step or method.learning_rate"
            )
        solution = np.linalg.solve(scaled, load / unit) / unit
        self.comm.bcast_array(solution)  # the last bits may differ between machines
        return solution
