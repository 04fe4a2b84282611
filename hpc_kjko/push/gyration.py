"""The free motion of a charge in a uniform magnetic field: exact, for any duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.particles.state import passes_over


@dataclass(frozen=True)
class Gyration:
    """dv/dt = v × Ω for some time, Ω = (q/m) B.

    v turns about Ω by the angle −|Ω| t. The map of (x, v) is linear, symplectic with the field's vector potential, and
    its determinant is 1: log f does not change. A drift that is this map leaves the order of a composition as it is.
    A straight drift with a rotation beside it has an E × B velocity that is wrong by (Ωh/2) cot(Ωh/2) − 1.

    Attributes:
        mean: v to the mean velocity of the time [dv, dv]; turn: v to the velocity after it [dv, dv].
    """

    mean: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(cls, rate: Sequence[float], duration: float, velocity_dims: int) -> Gyration:
        """The gyration for a duration, which may be negative.

        Args:
            rate: Ω [3]; with two velocity dimensions the last component alone may differ from zero.
            velocity_dims: 2 or 3.
        """
        vector = np.asarray(rate, np.float64)
        frequency = float(np.linalg.norm(vector))
        b = vector / frequency
        angle = frequency * duration
        along = np.outer(b, b)
        across = np.eye(3) - along
        cross = np.array([[0.0, b[2], -b[1]], [-b[2], 0.0, b[0]], [b[1], -b[0], 0.0]])  # v to v × b
        # (1 − cos)/angle by half the angle: the difference would lose its digits for a short step
        sine = math.sin(0.5 * angle)
        mean = along + (math.sin(angle) / angle) * across + (2 * sine * sine / angle) * cross
        turn = along + math.cos(angle) * across + math.sin(angle) * cross
        part = slice(0, velocity_dims)
        return cls(mean[part, part], turn[part, part])

    def velocities(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean velocities of the time and the velocities after it, [n, dv] each, in the type of v [n, dv]."""
        mean, after = torch.empty_like(v), torch.empty_like(v)
        for rows in passes_over(v):
            before = v[rows].double()
            for found, matrix in ((mean, self.mean), (after, self.turn)):
                # term by term: the sums of a matrix product would depend on how many particles there are
                for axis, row in enumerate(matrix):
                    total = before[:, 0] * row[0]
                    for other in range(1, len(row)):
                        total = total + before[:, other] * row[other]
                    found[rows, axis] = total.to(v.dtype)
        return mean, after
