"""Like-particle collisions: the Dougherty operator, which conserves density, momentum and energy, unlike a bath.

    ∂t f = κ ∇v·((v − U) f + Θ ∇v f),    n U = ∫ v f dv,    dv · n Θ = ∫ |v − U|² f dv    (local in x)

At fixed x, in the peculiar velocity c = (v − U) √(T/Θ), this is the operator of a bath at rest at temperature T. So for
every method of a collision step it is the same problem in other variables. The determinant is also the same, because
dc'/dc = dv'/dv. T is the temperature of the initial density, so c is of the size of v, and a network sees beams of the
same width. n, U and Θ are invariants of the collisions. So the values of the pushed particles are also those of the
midpoint.

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

#: A node with this many particles takes half of its U and Θ from the whole box. A node with ten times as many takes a
#: hundredth.
SPARSE = 4.0


@dataclass(frozen=True)
class Moments:
    """The mean velocity and temperature to which collisions relax: on the nodes of a mesh, or for the whole box.

    Attributes:
        velocity: U [*cells, dv], or [dv].
        temperature: Θ [*cells, 1], or [1].
        sparse: the fraction of the nodes that have fewer than SPARSE particles.
    """

    velocity: np.ndarray
    temperature: np.ndarray
    sparse: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Averages over all particles: the mean velocity U [dv], and |v − U|²/dv."""

    velocity: np.ndarray
    temperature: float


class DoughertyCollision(Collision):
    """The collision step of a method in the local rest frame. Then v ← U + r (v − U'), log f ← log f − dv log r. This
    restores n, U and Θ, which the errors of the step have changed.

    r = √(Θ/Θ'). U, Θ before the step and U', Θ' after it are gathered from the mesh like the field. So their correction
    at a node is smoothed by the shape functions, twice. A last, small shift and scale of all velocities restores the
    total momentum and kinetic energy to round-off. The correction never raises ∫f log f at fixed n, U and Θ: by Gibbs'
    inequality it lowers the divergence from the Maxwellian with these moments. The step is certified by this divergence
    on held-out particles, because the moments of these few particles alone are not conserved.

    Args:
        method: the collision step of a bath, which is made in the rest frame.
    """

    def __init__(
        self,
        settings: CollisionSettings,
        comm: Communicator,
        method: Callable[[CollisionSettings, Communicator], Collision],
    ):
        self.comm, self.temperature = comm, settings.operator.temperature
        at_rest = Bath(settings.operator.collision_strength, self.temperature)
        # The operator gives no momentum or energy to a wave. The correction removes what the step gives it in the rest
        # frame.
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
        # of log f in the rest frame
        growth = particles.v.shape[1] * torch.log(thermal[:, 0]) if self.fits_log_f else 0.0
        at_rest = particles.move((particles.v - velocity) / thermal, particles.log_f + growth)
        collided, report = self.method.step(at_rest, duration, start)
        if not self.comm.any(not torch.equal(collided.v, at_rest.v)):  # u ≡ 0: do not certify rounding errors
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
        """The averages over the particles of all ranks. Collective."""
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

        At a node with very few particles, U and Θ go smoothly over to those of the whole box.
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
        # number of particles of average weight
        number = density * (particles.shard.total * self.grid.cell_volume / particles.total_weight)
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
        """Collided particles with n, U and Θ as before, to the accuracy of the mesh. Collective."""
        after = self._moments(collided, self._totals(collided))
        ratio = np.sqrt(before.temperature / after.temperature)
        moved, growth = self._gathered(np.concatenate([after.velocity, ratio], axis=-1), collided)
        return _rescaled(collided, moved, velocity, growth)

    def _restore(self, collided: Particles, totals: Totals) -> Particles:
        """Collided particles with the momentum and kinetic energy of before. Collective."""
        now = self._totals(collided)
        values = np.concatenate([now.velocity, totals.velocity, [np.sqrt(totals.temperature / now.temperature)]])
        numbers = torch.from_numpy(values).to(collided.v)
        dims = len(totals.velocity)
        return _rescaled(collided, numbers[:dims], numbers[dims:-1], numbers[-1:])


def _rescaled(particles: Particles, old: torch.Tensor, new: torch.Tensor, growth: torch.Tensor) -> Particles:
    """v ← new + growth (v − old), with the log-density of the moved particles."""
    log_f = particles.log_f - particles.v.shape[1] * torch.log(growth[..., 0])
    return particles.move(torch.addcmul(new, growth, particles.v - old), log_f)
