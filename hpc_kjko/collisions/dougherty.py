"""Like-particle collisions: the Dougherty operator, which keeps density, momentum and energy, in place of a bath.

    ∂t f = κ ∇v·((v − U) f + Θ ∇v f),    n U = ∫ v f dv,    dv · n Θ = ∫ |v − U|² f dv    (local in x)

At fixed x this is, in the peculiar velocity c = (v − U) √(T/Θ), the operator of a bath at rest at temperature T: for
every method of a collision step the same problem in other variables, with the same determinant, as dc'/dc = dv'/dv. T
is that of the initial density, so that c is of the size of v: a network sees beams as wide as they are. n, U and Θ are
invariants of the collisions themselves, so those of the pushed particles serve the midpoint as well.

A. Lenard, I. B. Bernstein, doi:10.1103/PhysRev.112.1456; J. P. Dougherty, doi:10.1063/1.1711282.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.errors import SolverFailure
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import UNIT, summed_finely
from hpc_kjko.particles.state import Particles, passes_over

#: A node with so many particles takes half of its U and Θ from the whole box, one with ten times as many a hundredth.
SPARSE = 4.0


@dataclass(frozen=True)
class Moments:
    """What collisions relax to: on the nodes of a mesh, or for the whole box.

    Attributes:
        velocity: U [*cells, dv], or [dv].
        temperature: Θ [*cells, 1], or [1].
        sparse: the part of the nodes that have fewer than SPARSE particles.
    """

    velocity: np.ndarray
    temperature: np.ndarray
    sparse: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Averages over all particles: v [dv], and |v − that|²/dv."""

    velocity: np.ndarray
    temperature: float


class DoughertyCollision(Collision):
    """A method's collision step in the local rest frame, then v ← U + r (v − U'), log f ← log f − dv log r, which gives
    n, U and Θ back what the step's own errors took.

    r = √(Θ/Θ') and U, U' before and after are gathered from the mesh like the field: what they restore at a node is
    smoothed by the shape functions, twice. A last shift and scale of all velocities, by as little as that leaves,
    restores total momentum and kinetic energy to round-off. The correction never raises ∫f log f at fixed n, U and Θ:
    by Gibbs' inequality it takes the divergence from their Maxwellian down. By that divergence the step is certified,
    on held-out particles, as the moments of these few alone are not kept.

    Args:
        method: the collision step of a bath that is made in the rest frame.
    """

    def __init__(
        self,
        settings: CollisionSettings,
        comm: Communicator,
        method: Callable[[CollisionSettings, Communicator], Collision],
    ):
        self.comm, self.temperature = comm, settings.operator.temperature
        at_rest = Bath(settings.operator.collision_strength, self.temperature)
        # This operator gives no wave momentum or energy, and what its step gives in the rest frame is taken back.
        self.method = method(replace(settings, operator=at_rest, mass=1.0, wave_vector=None), comm)
        self.tracks_log_f, self.has_control = self.method.tracks_log_f, self.method.has_control
        self.held_out, self.fits_log_f = self.method.held_out, self.method.fits_log_f
        self.grid = settings.grid
        self.unit = UNIT if settings.reproducible else 0.0

    def prepare(self, rehearse: Callable[[], bool]) -> bool:
        return self.method.prepare(rehearse)

    def rest_frame(self, particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
        return self._at(self._moments(particles, self._totals(particles)), particles)

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        totals = self._totals(particles)
        before = self._moments(particles, totals)
        velocity, thermal = self._at(before, particles)
        growth = particles.v.shape[1] * torch.log(thermal[:, 0]) if self.fits_log_f else 0.0  # of log f in that frame
        at_rest = particles.move((particles.v - velocity) / thermal, particles.log_f + growth)
        collided, report = self.method.step(at_rest, duration, start)
        if not self.comm.any(not torch.equal(collided.v, at_rest.v)):  # u ≡ 0: rounding errors are not to be certified
            still = particles.move(particles.v, particles.log_f + self.method.log_f_moved)
            return still, replace(report, sparse_nodes=before.sparse)
        collided = collided.move(torch.addcmul(velocity, thermal, collided.v), collided.log_f - growth)
        if self.grid:
            collided = self._restore_locally(collided, before, velocity)
        collided = self._restore(collided, totals)
        change, error = 0.0, 0.0
        if self.held_out:
            peculiar = (collided.v - velocity) / thermal
            energy = 0.5 * ((peculiar - at_rest.v) * (peculiar + at_rest.v)).double().sum(1) / self.temperature
            by_map = collided.log_f - particles.log_f - self.method.log_f_moved
            change, error = over_certifying(energy + by_map.double(), particles, self.comm)
        change, error = particles.total_weight * change, particles.total_weight * error
        entropy: dict[str, Any] = {"collision_free_energy": change, "collision_free_energy_error": error}
        for name in ("dissipation", "disagreement", "disagreement_error"):
            entropy[name] = getattr(report, name) / self.temperature
        return collided, replace(report, sparse_nodes=before.sparse, **entropy)

    def state(self) -> dict[str, np.ndarray]:
        return self.method.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.method.load(arrays)

    # -- the moments ---------------------------------------------------------------------------------------------

    def _totals(self, particles: Particles) -> Totals:
        """Of the particles of all ranks. Collective."""
        shares, dims = particles.shares(), particles.v.shape[1]
        sums = torch.zeros(2, dims + 1, dtype=torch.float64, device=shares.device)
        for rows in passes_over(particles.v):
            v = particles.v[rows].double()
            carried = torch.cat([v, (v * v).sum(1, keepdim=True)], dim=1)
            sums += summed_finely(shares[rows, None] * carried)
        *mean, square = self.comm.sum(sums.cpu().numpy()).sum(0)
        temperature = float(square - np.square(mean).sum()) / dims
        if temperature <= 0:
            raise SolverFailure("all particles have the same velocity, and so no temperature: raise particles.count")
        return Totals(np.array(mean), temperature)

    def _moments(self, particles: Particles, totals: Totals) -> Moments:
        """n, U and Θ of the particles of all ranks. Collective.

        Where a node has next to no particles, U and Θ go smoothly over to those of the whole box.
        """
        if not self.grid:
            return Moments(totals.velocity, np.array([totals.temperature]))
        v, weight = particles.v.double(), particles.weight
        carried = torch.cat([weight[None], weight * v.T, (weight * (v * v).sum(1))[None]])
        density, *momentum, square = self.comm.sum(self.grid.deposit(particles.x, carried, self.unit).cpu().numpy())
        if not np.isfinite(square).all():
            raise SolverFailure("a position or velocity is no longer finite: reduce time.step")
        occupied = np.where(density > 0, density, 1.0)
        mean = np.stack(momentum, axis=-1) / occupied[..., None]
        spread = np.maximum(square / occupied - (mean**2).sum(-1), 0.0) / v.shape[1]
        number = density * (particles.shard.total * self.grid.cell_volume / particles.total_weight)  # of average weight
        own = (number**2 / (number**2 + SPARSE**2))[..., None]
        return Moments(
            own * mean + (1 - own) * totals.velocity,
            own * spread[..., None] + (1 - own) * totals.temperature,
            float((number < SPARSE).mean()),
        )

    def _at(self, moments: Moments, particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
        """U [n, dv] and √(Θ/T) [n, 1] at the particles."""
        thermal = np.sqrt(moments.temperature / self.temperature)
        return self._gathered(np.concatenate([moments.velocity, thermal], axis=-1), particles)

    def _gathered(self, values: np.ndarray, particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [*cells, dv + 1], or [dv + 1], at the particles: the first dv [n, dv] and the last [n, 1]."""
        table = torch.from_numpy(values).to(particles.x.device)
        found = (
            self.grid.gather(table, particles.x)
            if self.grid
            else table.to(particles.v.dtype).expand(len(particles.v), -1)
        )
        return found[:, :-1], found[:, -1:]

    # -- the correction ------------------------------------------------------------------------------------------

    def _restore_locally(self, collided: Particles, before: Moments, velocity: torch.Tensor) -> Particles:
        """Collided particles with n, U and Θ as before, as well as the mesh can. Collective."""
        after = self._moments(collided, self._totals(collided))
        ratio = np.sqrt(before.temperature / after.temperature)
        moved, growth = self._gathered(np.concatenate([after.velocity, ratio], axis=-1), collided)
        return _rescaled(collided, moved, velocity, growth)

    def _restore(self, collided: Particles, totals: Totals) -> Particles:
        """Collided particles with momentum and kinetic energy as before. Collective."""
        now = self._totals(collided)
        values = np.concatenate([now.velocity, totals.velocity, [np.sqrt(totals.temperature / now.temperature)]])
        numbers = torch.from_numpy(values).to(collided.v)
        dims = len(totals.velocity)
        return _rescaled(collided, numbers[:dims], numbers[dims:-1], numbers[-1:])


def _rescaled(particles: Particles, old: torch.Tensor, new: torch.Tensor, growth: torch.Tensor) -> Particles:
    """v ← new + growth (v − old), with the log-density of the moved particles."""
    log_f = particles.log_f - particles.v.shape[1] * torch.log(growth[..., 0])
    return particles.move(torch.addcmul(new, growth, particles.v - old), log_f)
