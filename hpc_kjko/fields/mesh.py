"""The periodic mesh: deposit and gather with B-spline shape functions, the mass matrix, derivatives in Fourier space.

Nodes are at cell centres, x_j = (j + ½) Δ. Deposit and gather use the same B-spline weights (order 1: cloud-in-cell,
order 2: triangular-shaped cloud). So a particle feels no force from itself, and momentum is conserved to round-off. C.
K. Birdsall, A. B. Langdon, *Plasma Physics via Computer Simulation*, doi:10.1201/9781315275048, chapters 2 and 8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
import torch

from hpc_kjko.kernels import particles as kernels
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import rounded
from hpc_kjko.particles.state import drifted, passes, passes_over


@dataclass(frozen=True)
class Grid:
    """A uniform periodic mesh: ``cells`` [dx] over ``lengths`` [dx], with shape functions of ``shape_order`` 1 or 2."""

    cells: tuple[int, ...]
    lengths: tuple[float, ...]
    shape_order: Literal[1, 2] = 1

    @property
    def spacing(self) -> tuple[float, ...]:
        """Cell sizes Δ [dx]."""
        return tuple(length / cells for length, cells in zip(self.lengths, self.cells, strict=True))

    @property
    def cell_volume(self) -> float:
        """∏ Δ."""
        return math.prod(self.spacing)

    @property
    def _mesh(self) -> kernels.Mesh:
        return self.cells, self.lengths, self.shape_order

    def deposit(self, x: torch.Tensor, quantities: torch.Tensor, unit: float = 0.0) -> torch.Tensor:
        """Densities n_j = Σ_i q_i S(x_j − x_i) / ∏Δ from the quantities of the particles of this rank.

        Args:
            x: positions [n, dx].
            quantities: the quantities of each particle [m, n], such as its weight (for the density) or weight · v_1.
            unit: a power of two to which each term is rounded, so that the bits do not depend on the order of the sum
                (:mod:`hpc_kjko.particles.exact`); 0 for no rounding.

        Returns:
            [m, *cells] float64. Positions that are not finite give NaN at all nodes, so that every rank sees it in the
            sum.
        """
        if kernels.take(x):
            return kernels.deposit(self._mesh, x, quantities, unit)
        densities = torch.zeros(len(quantities), math.prod(self.cells), dtype=torch.float64, device=x.device)
        for rows in passes_over(x):
            if not torch.isfinite(x[rows]).all():
                return densities.fill_(math.nan).reshape(-1, *self.cells)
            carried = quantities[:, rows].double() / self.cell_volume
            for node, shape in self._stencil(x[rows]):
                for density, carry in zip(densities, carried, strict=True):
                    density += torch.bincount(node, weights=rounded(shape * carry, unit), minlength=len(density))
        return densities.reshape(-1, *self.cells)

    def drift(
        self, x: torch.Tensor, v: torch.Tensor, duration: float, quantities: torch.Tensor, unit: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + duration · v in the box [n, dx], and the :meth:`deposit` of quantities [m, n] at these positions."""
        if kernels.take(x):
            return kernels.drift_and_deposit(self._mesh, x, v, duration, quantities, unit)
        moved = drifted(x, v, duration, self.lengths)
        return moved, self.deposit(moved, quantities, unit)

    def gather(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Mesh values [*cells, m] at the particles x [n, dx]: Σ_j S(x_j − x_i) values_j, [n, m]."""
        if kernels.take(x):
            return kernels.gather(self._mesh, values, x)
        table = values.reshape(-1, values.shape[-1])
        gathered = torch.empty(len(x), table.shape[1], dtype=x.dtype, device=x.device)
        for rows in passes_over(x):
            terms = (shape[:, None] * table[node] for node, shape in self._stencil(x[rows]))
            gathered[rows] = sum(terms, torch.zeros((), dtype=torch.float64, device=x.device)).to(x.dtype)
        return gathered

    def kick(self, values: torch.Tensor, x: torch.Tensor, v: torch.Tensor, duration: float) -> torch.Tensor:
        """v + duration · (mesh values [*cells, dx] at the particles), for the first dx components: [n, dv]."""
        if kernels.take(x):
            return kernels.gather_and_kick(self._mesh, values, x, v, duration)
        kicked = v.clone()
        kicked[:, : len(self.cells)].add_(self.gather(values, x), alpha=duration)
        return kicked

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """Distances l − j, in nodes, between two nodes that one particle can touch, including zero.

        Of two opposite distances it has the one whose first nonzero number is positive. That makes (3^dx + 1) / 2 or
        (5^dx + 1) / 2 distances.
        """
        reach, dims = range(-self.shape_order, self.shape_order + 1), len(self.cells)
        return [offset for offset in itertools.product(reach, repeat=dims) if offset >= (0,) * dims]

    def mass_matrix(self, x: torch.Tensor, weight: torch.Tensor, unit: float = 0.0) -> torch.Tensor:
        """The part of M_jl = Σ_i w_i S(x_j − x_i) S(x_l − x_i) / ∏Δ that belongs to this rank. M is a gather followed
        by a deposit.

        Args:
            x: positions [n, dx].
            weight: of each particle [n].
            unit: as for :meth:`deposit`.

        Returns:
            The entries with l − j in ``offsets``, [len(offsets), *cells] float64; M is symmetric. Positions that are
            not finite give NaN at all nodes, as in :meth:`deposit`.
        """
        if kernels.take_mass_matrix(x):
            return kernels.mass_matrix(self._mesh, len(self.offsets), x, weight, unit)
        row_of = {offset: row for row, offset in enumerate(self.offsets)}
        # in the order of the stencil
        steps = list(itertools.product(range(self.shape_order + 1), repeat=len(self.cells)))
        entries = torch.zeros(len(row_of), math.prod(self.cells), dtype=torch.float64, device=x.device)
        for rows in passes(len(x)):  # in passes, because there are many temporary arrays
            if not torch.isfinite(x[rows]).all():
                return entries.fill_(math.nan).reshape(-1, *self.cells)
            terms = list(zip(steps, self._stencil(x[rows]), strict=True))
            for first, (step, (node, shape)) in enumerate(terms):
                carried = weight[rows] * shape / self.cell_volume
                for other_step, (_, other_shape) in terms[first:]:
                    offset = tuple(b - a for a, b in zip(step, other_step, strict=True))
                    entries[row_of[offset]] += torch.bincount(
                        node, weights=rounded(carried * other_shape, unit), minlength=entries.shape[1]
                    )
        return entries.reshape(-1, *self.cells)

    def _stencil(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The nodes that each particle touches, one after the other: flat index [n] and weight [n] (float64)."""
        per_axis = []
        for axis, (cells, spacing) in enumerate(zip(self.cells, self.spacing, strict=True)):
            position = x[:, axis].double() / spacing - 0.5
            if self.shape_order == 1:
                nearest = torch.floor(position)
                right = position - nearest
                shapes = [(0, 1 - right), (1, right)]
            else:
                nearest = torch.floor(position + 0.5)
                offset = position - nearest
                shapes = [
                    (-1, 0.5 * (0.5 - offset) ** 2),
                    (0, 0.75 - offset**2),
                    (1, 0.5 * (0.5 + offset) ** 2),
                ]
            index = nearest.long()
            per_axis.append([(torch.remainder(index + shift, cells), shape) for shift, shape in shapes])
        for corner in itertools.product(*per_axis):
            node, weight = corner[0]
            for cells, (index, shape) in zip(self.cells[1:], corner[1:], strict=True):
                node, weight = node * cells + index, weight * shape
            yield node, weight


@dataclass(frozen=True)
class MassMatrix:
    """The symmetric matrix of :meth:`Grid.mass_matrix`; ``entries`` [len(grid.offsets), *cells] are summed over
    ranks.
    """

    grid: Grid
    entries: np.ndarray

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        """M applied to each component of mesh values [*cells, m]: [*cells, m]."""
        axes, product = tuple(range(len(self.grid.cells))), np.zeros_like(values)
        for offset, entry in zip(self.grid.offsets, self.entries[..., None], strict=True):
            product += entry * np.roll(values, [-distance for distance in offset], axes)
            if any(offset):
                product += np.roll(entry * values, offset, axes)
        return product


class Spectrum:
    """Derivatives on the periodic mesh in Fourier space, for real fields (``scipy.fft.rfftn``).

    Attributes:
        gradient: i k [dx, ...]. On a mesh with an even number of cells, the highest mode has no sine partner. So the
            derivatives of all modes that contain it along some axis are zero.
        inverse_laplacian: 1/|k|², 0 at k = 0 (neutrality).
    """

    def __init__(self, grid: Grid):
        self.cells = grid.cells
        axes = [
            2 * np.pi * np.fft.fftfreq(cells, length / cells)
            for cells, length in zip(grid.cells, grid.lengths, strict=True)
        ]
        axes[-1] = np.abs(axes[-1][: grid.cells[-1] // 2 + 1])
        wavevector = np.stack(np.meshgrid(*axes, indexing="ij"))
        square = (wavevector**2).sum(0)
        square.flat[0] = np.inf
        self.inverse_laplacian = 1 / square
        for axis, cells in enumerate(grid.cells):
            if cells % 2 == 0:
                nyquist: list[slice | int] = [slice(None)] * wavevector.ndim
                nyquist[1 + axis] = cells // 2
                wavevector[tuple(nyquist)] = 0.0
        self.gradient = 1j * wavevector

    def on_nodes(self, values_hat: np.ndarray) -> np.ndarray:
        """The real field [*cells] with these Fourier coefficients."""
        return scipy.fft.irfftn(values_hat, s=self.cells)

    def divergence(self, electric: np.ndarray) -> np.ndarray:
        """∇·E [*cells] of E [*cells, dx]."""
        return self.on_nodes(self._divergence_hat(electric))

    def potential_of(self, electric: np.ndarray) -> np.ndarray:
        """φ [*cells] of zero mean whose −∇φ is the curl-free part of E [*cells, dx]."""
        return self.on_nodes(self.inverse_laplacian * self._divergence_hat(electric))

    def curl_free(self, vector: np.ndarray) -> np.ndarray:
        """The part of a vector field [*cells, dx] that is a gradient, without its mean: k (k·F̂)/|k|²."""
        potential_hat = self.inverse_laplacian * self._divergence_hat(vector)
        return np.stack([self.on_nodes(-gradient * potential_hat) for gradient in self.gradient], axis=-1)

    def resolved(self, density: np.ndarray) -> np.ndarray:
        """The part of a density [*cells] that is the divergence of a field on this mesh. It omits the mean and all
        other modes whose derivatives are zero.
        """
        moved = (self.gradient != 0).any(0)
        return self.on_nodes(np.where(moved, scipy.fft.rfftn(density), 0))

    def _divergence_hat(self, electric: np.ndarray) -> np.ndarray:
        return sum(g * scipy.fft.rfftn(electric[..., axis]) for axis, g in enumerate(self.gradient))


class SlabSpectrum:
    """The Poisson equation with the planes of the mesh along the first axis distributed over ranks, in two or three
    dimensions.

    Each rank transforms its planes along the other axes. Then ranks exchange data so that each has some columns along
    the first axis, and transforms these.
    """

    def __init__(self, grid: Grid, comm: Communicator):
        whole = Spectrum(grid)
        self.comm, self.cells = comm, grid.cells
        self.planes = _dealt(grid.cells[0], comm.size)
        self.columns = _dealt(whole.inverse_laplacian.shape[1], comm.size)
        mine = self.columns[comm.rank]
        self.inverse_laplacian = whole.inverse_laplacian[:, mine].copy()
        self.gradient = whole.gradient[:, :, mine].copy()

    def solve(self, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """φ [*cells] and E = −∇φ [*cells, dx] of a density [*cells]. All three are complete on every rank.
        Collective.
        """
        potential_hat = self.inverse_laplacian * self._forward(density[self.planes[self.comm.rank]])
        parts = [self._back(hat) for hat in (potential_hat, *(-gradient * potential_hat for gradient in self.gradient))]
        found = self.comm.join(np.stack(parts, axis=-1), np.empty((*self.cells, len(parts))))
        return found[..., 0].copy(), found[..., 1:].copy()

    def _forward(self, planes: np.ndarray) -> np.ndarray:
        axes = tuple(range(1, planes.ndim))
        hat = scipy.fft.rfftn(planes, axes=axes)
        mine = self.columns[self.comm.rank]
        shapes = [(_size(rows), _size(mine), *hat.shape[2:]) for rows in self.planes]
        return scipy.fft.fft(np.concatenate(self.comm.exchange([hat[:, c] for c in self.columns], shapes)), axis=0)

    def _back(self, columns: np.ndarray) -> np.ndarray:
        columns = scipy.fft.ifft(columns, axis=0)
        mine = self.planes[self.comm.rank]
        shapes = [(_size(mine), _size(c), *columns.shape[2:]) for c in self.columns]
        hat = np.concatenate(self.comm.exchange([columns[rows] for rows in self.planes], shapes), axis=1)
        return scipy.fft.irfftn(hat, s=self.cells[1:], axes=tuple(range(1, hat.ndim)))


def _dealt(count: int, size: int) -> list[slice]:
    """``count`` indices in ``size`` contiguous parts of nearly equal length."""
    return [slice(count * rank // size, count * (rank + 1) // size) for rank in range(size)]


def _size(part: slice) -> int:
    return part.stop - part.start
