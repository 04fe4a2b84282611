"""Particle-in-cell fields on a periodic box: deposit, Poisson solve, gather; and external fields.

Nodes sit at cell centres, x_j = (j + ½) Δ. Deposit and gather use the same B-spline weights (order 1: cloud-in-cell,
order 2: triangular-shaped cloud), so a particle feels no force from itself and momentum is conserved to round-off.
C. K. Birdsall, A. B. Langdon, *Plasma Physics via Computer Simulation*, doi:10.1201/9781315275048, chapters 2 and 8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import scipy.fft
import torch

from hpc_kjko.comm import Communicator
from hpc_kjko.errors import SolverFailure
from hpc_kjko.particles import Particles, passes
from hpc_kjko.problems import Problem


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

    def deposit(self, x: torch.Tensor, weighting: float) -> torch.Tensor:
        """Density n_j = Σ_i w S(x_j − x_i) / ∏Δ of the particles x [n, dx] of this rank: [*cells] float64.

        Non-finite positions give a density of NaN everywhere, so that every rank sees it in the sum over ranks.
        """
        density = torch.zeros(math.prod(self.cells), dtype=torch.float64, device=x.device)
        for rows in passes(len(x)):
            if not torch.isfinite(x[rows]).all():
                return density.fill_(math.nan).reshape(self.cells)
            for node, shape in self._stencil(x[rows]):
                density += torch.bincount(node, weights=shape, minlength=len(density))
        return density.mul_(weighting / self.cell_volume).reshape(self.cells)

    def gather(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Mesh values [*cells, m] at the particles x [n, dx]: Σ_j S(x_j − x_i) values_j, [n, m]."""
        table = values.reshape(-1, values.shape[-1])
        gathered = torch.empty(len(x), table.shape[1], dtype=x.dtype, device=x.device)
        for rows in passes(len(x)):
            terms = (shape[:, None] * table[node] for node, shape in self._stencil(x[rows]))
            gathered[rows] = sum(terms, torch.zeros((), dtype=torch.float64, device=x.device)).to(x.dtype)
        return gathered

    def _stencil(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The nodes that each particle touches, one per term: flat index [n] and weight [n] (float64)."""
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
class MeshField:
    """A self-consistent field: density, potential [*cells] and electric field [*cells, dx], and what acts on x."""

    grid: Grid
    density: np.ndarray
    potential: np.ndarray
    electric: np.ndarray

    @property
    def energy(self) -> float:
        """Field energy ½ ∫ |E|² dx."""
        return 0.5 * float(np.sum(self.electric**2)) * self.grid.cell_volume

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """E at the particles: [n, dx]."""
        return self.grid.gather(torch.from_numpy(self.electric).to(x.device), x)


@dataclass(frozen=True)
class ExternalField:
    """The given potential of a problem."""

    problem: Problem
    energy: float = 0.0

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """−∇φ at the particles: [n, dx], by automatic differentiation of the potential."""
        acceleration = torch.empty_like(x)
        for rows in passes(len(x)):
            position = x[rows].detach().requires_grad_()
            with torch.enable_grad():
                potential = self.problem.potential(position).sum()
            if potential.requires_grad:
                (gradient,) = torch.autograd.grad(potential, position)
                acceleration[rows] = -gradient
            else:
                acceleration[rows] = 0.0
        return acceleration


class FieldSolver(Protocol):
    """What turns particles into the field that acts on them."""

    def __call__(self, particles: Particles) -> MeshField | ExternalField:
        """The field of these particles. Collective."""
        ...


class PoissonSolver:
    """−Δφ = n − n̄ on the periodic mesh, E = −∇φ, by FFT.

    The density of every rank is summed by an allreduce. With ``solver = "root"`` rank 0 solves and broadcasts E; with
    ``"replicated"`` every rank solves for itself, which saves the broadcast. The potential stays with the ranks that
    solved: elsewhere it is zero.
    """

    def __init__(self, grid: Grid, comm: Communicator, solver: Literal["root", "replicated"] = "root"):
        self.grid, self.comm, self.solver = grid, comm, solver
        axes = [2 * np.pi * np.fft.fftfreq(cells, length / cells) for cells, length in _axes(grid)]
        axes[-1] = np.abs(axes[-1][: grid.cells[-1] // 2 + 1])
        wavevector = np.stack(np.meshgrid(*axes, indexing="ij"))
        square = (wavevector**2).sum(0)
        square.flat[0] = np.inf  # neutrality: the k = 0 mode of the potential is zero
        self._inverse_laplacian = 1 / square
        # The highest mode of an even mesh has no sine partner, so its derivative is zero.
        for axis, cells in enumerate(grid.cells):
            if cells % 2 == 0:
                nyquist = [slice(None)] * wavevector.ndim
                nyquist[0], nyquist[1 + axis] = axis, cells // 2
                wavevector[tuple(nyquist)] = 0.0
        self._gradient = 1j * wavevector

    def __call__(self, particles: Particles) -> MeshField:
        """The field of the particles of all ranks. Collective.

        Raises:
            SolverFailure: a position is not finite (on every rank).
        """
        local = self.grid.deposit(particles.x, particles.weighting)
        return self.solve(self.comm.sum(local.cpu().numpy()))

    def solve(self, density: np.ndarray) -> MeshField:
        """The field of a density [*cells], the same on every rank.

        Raises:
            SolverFailure: the density is not finite.
        """
        if not np.isfinite(density).all():
            raise SolverFailure(
                "a particle's position is no longer finite: reduce time.step, or look at the last checkpoint"
            )
        potential, electric = np.zeros_like(density), np.empty((*density.shape, density.ndim))
        if self.solver == "replicated" or self.comm.is_root:
            potential_hat = self._inverse_laplacian * scipy.fft.rfftn(density)
            potential = scipy.fft.irfftn(potential_hat, s=density.shape)
            for axis, gradient in enumerate(self._gradient):
                electric[..., axis] = scipy.fft.irfftn(-gradient * potential_hat, s=density.shape)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return MeshField(self.grid, density, potential, electric)


class ExternalSolver:
    """The problem's own potential, whatever the particles do."""

    def __init__(self, problem: Problem):
        self._field = ExternalField(problem)

    def __call__(self, particles: Particles) -> ExternalField:
        """The field of the problem."""
        return self._field


def _axes(grid: Grid) -> Iterator[tuple[int, float]]:
    return zip(grid.cells, grid.lengths, strict=True)
