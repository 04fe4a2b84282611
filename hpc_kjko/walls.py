"""Reflecting walls at both ends of some axes of the box.

A box of length L between two walls is one half of a periodic box of length 2L that is mirror symmetric:
f(2L − x, −v) = f(x, v) along that axis. The mesh, the spectrum and the inputs of the networks belong to this larger
periodic box, called the torus here. The particles stay in their half of it. At insulating walls the image charge has
the same sign, and the normal field is zero. At conducting walls the image charge has the opposite sign, and φ = 0.
On the torus this corresponds to a cosine transform and a sine transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Walls:
    """The axes that have walls, and the kind of the walls.

    Attributes:
        axes: for each of the dx axes, whether it has walls.
        conducting: True for conducting walls (φ = 0), False for insulating walls.
    """

    axes: tuple[bool, ...]
    conducting: bool = False

    @property
    def part(self) -> float:
        """The fraction of the torus between the walls."""
        return 0.5 ** sum(self.axes)

    def reflected(
        self, x: torch.Tensor, v: torch.Tensor, torus: tuple[float, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reflect particles that are beyond a wall: positions [n, dx] on the torus and velocities [n, dv].

        The Jacobian determinant of a reflection is −1, so log f does not change.

        Returns:
            Positions [n, dx] between the walls and velocities [n, dv].
        """
        x, v = x.clone(), v.clone()
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                beyond = x[:, axis] > 0.5 * torus[axis]
                x[:, axis] = torch.where(beyond, torus[axis] - x[:, axis], x[:, axis])
                v[:, axis] = torch.where(beyond, -v[:, axis], v[:, axis])
        return x, v

    def with_images(self, values: np.ndarray, sign: float) -> np.ndarray:
        """Add the image charges to what the particles have deposited on the nodes of the torus [..., *cells].

        Args:
            sign: the sign of the image charge for each reflection, 1 or −1.

        Returns:
            The values with their images [..., *cells].
        """
        first = values.ndim - len(self.axes)
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                values = values + sign * np.flip(values, first + axis)
        return values

    def inside(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """The values on the nodes between the walls, from values on the torus [..., *cells, ...].

        Args:
            first: the index of the first mesh axis of ``values``.
        """
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                values = np.take(values, range(values.shape[first + axis] // 2), axis=first + axis)
        return values
