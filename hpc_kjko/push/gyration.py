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
    """dv/dt = v × Ω for a given time, Ω = (q/m) B.

    v turns about Ω by the angle −|Ω| t. The map of (x, v) is linear, and symplectic with the vector potential of the
    field. Its determinant is 1, so log f does not change. With this map as the drift, a composition keeps its order. A
    straight drift followed by a rotation would have an E × B velocity with the relative error (Ωh/2) cot(Ωh/2) − 1.

    Attributes:
        mean: maps v to the mean velocity during the time [dv, dv].
        turn: maps v to the velocity after the time [dv, dv].
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
        # (1 − cos)/angle from half the angle: the difference would lose digits for a short step
        sine = math.sin(0.5 * angle)
        mean = along + (math.sin(angle) / angle) * across + (2 * sine * sine / angle) * cross
        turn = along + math.cos(angle) * across + math.sin(angle) * cross
        part = slice(0, velocity_dims)
        return cls(mean[part, part], turn[part, part])

    def velocities(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean velocities during the time, and the velocities after it, [n, dv] each, in the type of v [n, dv]."""
        mean, after = torch.empty_like(v), torch.empty_like(v)
        for rows in passes_over(v):
            before = v[rows].double()
            for found, matrix in ((mean, self.mean), (after, self.turn)):
                # Term by term: the bits of a matrix product would depend on the number of particles.
                for axis, row in enumerate(matrix):
                    total = before[:, 0] * row[0]
                    for other in range(1, len(row)):
                        total = total + before[:, other] * row[other]
                    found[rows, axis] = total.to(v.dtype)
        return mean, after
