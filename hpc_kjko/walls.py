"""Walls that reflect particles, at both ends of some axes of a box.

A box of length L between two walls is half of a periodic box of length 2L in which everything has its mirror image:
f(2L − x, −v) = f(x, v) along that axis. So the mesh, the spectrum and the inputs of networks are those of the larger
box, the torus, and particles stay in their half of it. Walls that insulate have an image of the same charge, and no
field through them; conducting walls have one of the opposite charge, and φ = 0 on them. In the eigenfunctions of the
torus these are the cosine and the sine transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Walls:
    """Which axes have walls, and of what kind these are.

    Attributes:
        axes: for each axis whether it has walls [dx].
        conducting: whether φ = 0 on them; else they insulate.
    """

    axes: tuple[bool, ...]
    conducting: bool = False

    @property
    def part(self) -> float:
        """The part of the torus that is inside."""
        return 0.5 ** sum(self.axes)

    def reflected(
        self, x: torch.Tensor, v: torch.Tensor, torus: tuple[float, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions on the torus [n, dx] and velocities [n, dv] as they are inside: those beyond a wall turn back.

        A reflection has the determinant 1 in size: log f does not change.
        """
        x, v = x.clone(), v.clone()
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                beyond = x[:, axis] > 0.5 * torus[axis]
                x[:, axis] = torch.where(beyond, torus[axis] - x[:, axis], x[:, axis])
                v[:, axis] = torch.where(beyond, -v[:, axis], v[:, axis])
        return x, v

    def with_images(self, values: np.ndarray, sign: float) -> np.ndarray:
        """What particles inside have left on the nodes of the torus [..., *cells], with that of their images.

        Args:
            sign: of an image, 1 or −1, for each reflection.
        """
        first = values.ndim - len(self.axes)
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                values = values + sign * np.flip(values, first + axis)
        return values

    def inside(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """The nodes inside, of values on the torus [..., *cells, ...] whose mesh axes begin with ``first``."""
        for axis, has_walls in enumerate(self.axes):
            if has_walls:
                values = np.take(values, range(values.shape[first + axis] // 2), axis=first + axis)
        return values
