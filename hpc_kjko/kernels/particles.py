"""Native passes over particles on the periodic mesh: drift, deposit, gather, kick. Their torch twins are in `mesh`.

On a GPU they are those of `cuda.particles`. There is no mass matrix on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hpc_kjko.kernels import Backend, backend, cuda, require
from hpc_kjko.kernels.cuda import particles as cuda_particles

#: A mesh in the form that the kernels take: cells, lengths, order of the shape functions.
Mesh = tuple[Sequence[int], Sequence[float], int]


def take(x: torch.Tensor) -> bool:
    """Whether the kernels are used for these positions."""
    return x.dtype in (torch.float32, torch.float64) and (_take_on_cpu(x) or cuda.take(x))


def take_mass_matrix(x: torch.Tensor) -> bool:
    """Whether :func:`mass_matrix` is used for these positions. It has no kernel for a GPU."""
    return take(x) and _take_on_cpu(x)


def _take_on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and backend() is Backend.NATIVE


def drift(x: torch.Tensor, v: torch.Tensor, duration: float, lengths: Sequence[float]) -> torch.Tensor:
    """x + duration · v, wrapped into the box: [n, dx]."""
    if x.is_cuda:
        return cuda_particles.drift(x, v, duration, lengths)
    moved = torch.empty(x.shape, dtype=x.dtype)
    require().drift(lengths, x.contiguous(), v.contiguous(), duration, moved)
    return moved


def deposit(mesh: Mesh, x: torch.Tensor, quantities: torch.Tensor, unit: float) -> torch.Tensor:
    """Densities [m, *cells] of quantities [m, n]; NaN at all nodes if a position is not finite."""
    return _deposited(mesh, x, quantities, unit)


def drift_and_deposit(
    mesh: Mesh, x: torch.Tensor, v: torch.Tensor, duration: float, quantities: torch.Tensor, unit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The drifted x [n, dx], and the densities [m, *cells] there, in one pass."""
    moved = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return moved, _deposited(mesh, x, quantities, unit, v=v.contiguous(), duration=duration, moved=moved)


def _deposited(mesh: Mesh, x: torch.Tensor, quantities: torch.Tensor, unit: float, **drift: Any) -> torch.Tensor:
    if x.is_cuda:
        return cuda_particles.deposit(mesh, x, quantities, unit, **drift)
    densities = torch.empty(len(quantities), math.prod(mesh[0]), dtype=torch.float64)
    if require().deposit(*mesh, x.contiguous(), quantities.double(), unit, densities, **drift):
        densities.fill_(math.nan)
    return densities.reshape(-1, *mesh[0])


def mass_matrix(mesh: Mesh, distances: int, x: torch.Tensor, weight: torch.Tensor, unit: float) -> torch.Tensor:
    """Entries [distances, *cells] of the mass matrix; NaN at all nodes if a position is not finite."""
    entries = torch.empty(distances, math.prod(mesh[0]), dtype=torch.float64)
    if require().mass_matrix(*mesh, x.contiguous(), weight.double()[None], unit, entries):
        entries.fill_(math.nan)
    return entries.reshape(-1, *mesh[0])


def gather(mesh: Mesh, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mesh values [*cells, m] at the particles: [n, m]."""
    if x.is_cuda:
        return cuda_particles.gather(mesh, values, x)
    gathered = torch.empty(len(x), values.shape[-1], dtype=x.dtype)
    require().gather(*mesh, x.contiguous(), _rows(values), None, 0.0, gathered)
    return gathered


def gather_and_kick(
    mesh: Mesh, values: torch.Tensor, x: torch.Tensor, v: torch.Tensor, duration: float
) -> torch.Tensor:
    """v + duration · (mesh values [*cells, dx] at the particles), on the first dx components, in one pass: [n, dv]."""
    if x.is_cuda:
        return cuda_particles.gather(mesh, values, x, v, duration)
    kicked = torch.empty(v.shape, dtype=v.dtype)
    require().gather(*mesh, x.contiguous(), _rows(values), v.contiguous(), duration, kicked)
    return kicked


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.double().reshape(-1, values.shape[-1]).contiguous()
