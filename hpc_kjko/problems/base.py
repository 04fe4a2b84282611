"""What the solver needs to know of a physical problem."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch

from hpc_kjko.schema import Section


class Problem(Section):
    """An initial density f0(x, v), a potential, and the domain they live in.

    Positions are periodic with ``periods`` (one length per dimension) or unbounded (``periods`` is None). Densities
    follow the normalisation of the whole code: mean density 1 and ∫f = V in a periodic box of volume V, ∫f = 1 in
    unbounded space.
    """

    #: What ``physics.field`` is where the case does not say.
    default_field: ClassVar[Literal["poisson", "external"]]

    kind: str
    space_dims: int
    velocity_dims: int

    @property
    @abstractmethod
    def periods(self) -> tuple[float, ...] | None:
        """Box lengths [dx], or None in unbounded space."""

    @property
    def mass(self) -> float:
        """Total mass ∫f: the box volume, or 1 in unbounded space."""
        return float(np.prod(self.periods)) if self.periods else 1.0

    @abstractmethod
    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Map uniform points of the unit cube to phase space, so that their image has density f0 / mass.

        Args:
            points: [n, dx + dv], strictly inside (0, 1).
            temperature: bath temperature T, at which velocity directions without a structure of their own start.

        Returns:
            x [n, dx] and v [n, dv], float64.
        """

    @abstractmethod
    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        """log f0 at x [n, dx], v [n, dv]: [n]. Differentiable in v."""

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """External potential φ at x [n, dx]: [n]. Zero (free streaming) unless the problem has one."""
        return torch.zeros_like(x[:, 0])

    @property
    @abstractmethod
    def window(self) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[float, float], ...]]:
        """Where the density lives: (low, high) per x dimension and per v dimension, for histograms and figures."""
