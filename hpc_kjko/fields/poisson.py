"""The field from the Poisson equation, solved after every drift."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import scipy.fft
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import FieldSolver, MeshField, charge_density, require_finite
from hpc_kjko.fields.mesh import Grid, SlabSpectrum, Spectrum
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.species import Plasma, Species, moved
from hpc_kjko.walls import Walls


class PoissonSolver(FieldSolver[MeshField]):
    """−Δφ = ρ − ρ̄ on the periodic mesh, ρ = Σ q_a n_a, E = −∇φ, by FFT. A uniform background makes the box neutral.

    One allreduce sums the densities of all ranks. With ``solver = "root"`` rank 0 solves and broadcasts E. With
    ``"replicated"`` every rank solves the whole problem, which saves the broadcast. With ``"distributed"`` each rank
    transforms a part of the mesh. Only the ranks that solve have the potential; on the others it is zero.

    Args:
        variate: removes noise from the density of the only species. Its weights change with v and log f.
        unit: the contribution of each particle to the density at a node is rounded to it
            (:mod:`~hpc_kjko.particles.exact`); 0 for no rounding.
        walls: of the box, or None. With walls ``grid`` is the mesh of the torus.
    """

    def __init__(
        self,
        grid: Grid,
        comm: Communicator,
        solver: Literal["root", "replicated", "distributed"] = "root",
        variate: ControlVariate | None = None,
        unit: float = UNIT,
        walls: Walls | None = None,
    ):
        self.grid, self.comm, self.solver, self.variate, self.unit = grid, comm, solver, variate, unit
        self.walls = walls
        self.spectrum: Spectrum | SlabSpectrum = SlabSpectrum(grid, comm) if solver == "distributed" else Spectrum(grid)

    def start(self, plasma: Plasma) -> MeshField:
        """The field of the particles of all ranks. Collective.

        Raises:
            SolverFailure: a position is not finite (on every rank).
        """
        return self.field_of(self.densities(plasma), plasma)

    def densities(self, plasma: Plasma) -> np.ndarray:
        """n_a [species, *cells] of the particles of all ranks. Collective."""
        local = [self.grid.deposit(one.particles.x, self.deposited(one)[None], self.unit_of(one)) for one in plasma]
        return self.summed(local, plasma)

    def unit_of(self, species: Species) -> float:
        """The unit to which the contribution of each particle of a species is rounded. The relative accuracy does not
        depend on the mean density.
        """
        volume = math.prod(self.grid.lengths) * (self.walls.part if self.walls else 1.0)
        return self.unit * 2.0 ** round(math.log2(species.particles.total_weight / volume))

    def deposited(self, species: Species) -> torch.Tensor:
        """The weight that each particle deposits [n]. Collective."""
        return self.variate.masses(species.particles) if self.variate else species.particles.weight

    def summed(self, local: Sequence[torch.Tensor], plasma: Plasma) -> np.ndarray:
        """n_a [species, *cells] over all ranks. If a control variate is used, a constant is added so that the total is
        that of the particles. Collective.

        Args:
            local: for each species the density of this rank [1, *cells].
        """
        densities = self.comm.sum(torch.cat(list(local)).cpu().numpy())
        return self.restored(densities, plasma)

    def restored(self, densities: np.ndarray, plasma: Plasma) -> np.ndarray:
        """Densities [species, *cells] with the constant that the control variate removed from each."""
        if not self.variate:
            return densities
        totals = [
            one.particles.total_weight / (density.size * self.grid.cell_volume) - density.mean()
            for one, density in zip(plasma, densities, strict=True)
        ]
        return np.stack([density + total for density, total in zip(densities, totals, strict=True)])

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[MeshField, Plasma]:
        if self.walls:
            reflected = moved(plasma, [self.drifted(one, duration) for one in plasma])
            return self.start(reflected), reflected
        arrived, local = [], []
        for one in plasma:
            particles = one.particles
            carried = self.deposited(one)[None]  # the drift does not change these weights
            velocity, after = self.free_motion(one, duration)
            x, density = self.grid.drift(particles.x, velocity, duration, carried, self.unit_of(one))
            arrived.append(replace(particles, x=x, v=after))
            local.append(density)
        return self.field_of(self.summed(local, plasma), plasma), moved(plasma, arrived)

    def kick(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[MeshField, Plasma]:
        return field, moved(plasma, [field.kick(one.particles, duration * one.charge_to_mass) for one in plasma])

    def after_collision(self, field: MeshField, before: Plasma, after: Plasma) -> tuple[MeshField, float]:
        if not self.variate:
            return field, 0.0
        pushed = self.reweighted(field, before)
        collided = self.reweighted(pushed, after)
        return collided, collided.energy - pushed.energy

    def reweighted(self, field: MeshField, plasma: Plasma) -> MeshField:
        """The field of the same positions with the present weights of the particles. Collective."""
        return self.start(plasma)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {"field/densities": field.densities} if self.variate else {}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> MeshField:
        if not self.variate:
            return self.start(plasma)
        return self.field_of(self.saved(arrays, "densities", (len(plasma), *self.grid.cells)), plasma)

    def saved(self, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of :meth:`state`.

        Raises:
            UserError: the array belongs to another mesh.
        """
        array = arrays[f"field/{name}"]
        if array.shape != shape:
            raise UserError(f"the checkpoint's field has the shape {array.shape}, the case {shape}")
        return array

    def field_of(self, densities: np.ndarray, plasma: Plasma) -> MeshField:
        """The field of densities [species, *cells], the same on every rank.

        Raises:
            SolverFailure: a density is not finite.
        """
        charge = charge_density(densities, plasma)
        require_finite(charge)
        if self.walls:
            if self.walls.conducting:
                background = charge.sum() / (charge.size * self.walls.part)
                charge = self.walls.with_images(charge, -1.0) - background * self._uniform
            else:
                charge = self.walls.with_images(charge, 1.0)
            densities = self.walls.with_images(densities, 1.0)
        return MeshField(self.grid, densities, charge, *self.solve(charge), walls=self.walls)

    @functools.cached_property
    def _uniform(self) -> np.ndarray:
        """The density at the nodes of the torus of a uniform density 1 inside the box, with mirror images of the
        opposite sign.
        """
        assert self.walls is not None
        found = np.ones(self.grid.cells)
        # the shape functions of the images reach the node beside a wall
        at_wall = 3 / 4 if self.grid.shape_order == 1 else 2 / 3
        for axis, (number, wall) in enumerate(zip(self.grid.cells, self.walls.axes, strict=True)):
            if wall:
                profile = np.ones(number // 2)
                profile[[0, -1]] = at_wall
                sides = np.concatenate([profile, -profile])
                found = found * sides.reshape([-1 if other == axis else 1 for other in range(len(self.grid.cells))])
        return found

    def solve(self, charge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """φ [*cells] and E [*cells, dx] of a charge density [*cells]. E is the same on every rank."""
        if isinstance(self.spectrum, SlabSpectrum):
            return self.spectrum.solve(charge)
        potential, electric = np.zeros_like(charge), np.empty((*charge.shape, charge.ndim))
        if self.solver == "replicated" or self.comm.is_root:
            potential_hat = self.spectrum.inverse_laplacian * scipy.fft.rfftn(charge)
            potential = self.spectrum.on_nodes(potential_hat)
            for axis, gradient in enumerate(self.spectrum.gradient):
                electric[..., axis] = self.spectrum.on_nodes(-gradient * potential_hat)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return potential, electric
