"""Coulomb collisions as a minimising movement: an implicit step in Landau's own metric, for steps of any length.

Landau's operator is ∂t f = C ∇v·∫ A(v − v') (f' ∇v f − f ∇v'f') dv' (:mod:`~hpc_kjko.collisions.landau`), and with
D = A∗f the velocity of its particles is V = −C (D ∇v log f − ∇·D). An implicit step from ṽ to v' = ṽ + h u has
u = V' with V' that of the particles after the step. The iterate u_k of it is the minimiser of

    J(u)/h = mean[ ½ uᵀ((C D')⁻¹ + h/Θ) u + ((ṽ − v')/Θ + s − s' − (C D')⁻¹ V')·u + ∇v·u − (1/h) log det(I + h S) ]

with D', V' and s' = ∇v ψ̄' at v' = ṽ + h u_{k−1}, s = ∇v ψ̄ at ṽ, and S the symmetric part of ∇v u
(:mod:`~hpc_kjko.inner.solvers.free_field`). With u_0 = 0 it is the step of minimising movements in the metric of the
frozen D, the part −(v − U)/Θ of D⁻¹∇·D in a potential and the rest as a known force. Where u_k is u_{k−1}, what
contains Θ is gone. V' is the sum over pairs: it vanishes pair by pair if ψ̄' is a Maxwellian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.blocks import Blocks, blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.controlled import MAX_SPLITS
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.landau import among_likes, restore
from hpc_kjko.collisions.pairs import Members, pair_fields
from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.control import smallest_eigenvalue
from hpc_kjko.inner.objective import linear_part, tracked_log_det
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.free_field import FreeField, Steered
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order, summed_finely
from hpc_kjko.particles.state import Particles, passes

#: D and V are found again until that moves particles by less than this part of a thermal speed, root mean square; not
#: at all if the whole step does so by less than that part.
SETTLED, SMALL = 0.01, 0.002
#: They are not found again where that moves particles by no less than this part of what the time before did: what is
#: left is the noise of the fits. So often at most, and if it then is more than that part of a thermal speed the step is
#: split.
STALLED, MAX_CORRECTED, UNSETTLED = 0.7, 8, 0.2
#: A field that leaves I + h S a smaller eigenvalue than this at some particle, fitted or not, is multiplied by a number
#: that leaves this much; if the number would be smaller than the second one V is left out, and else the step split.
LEAST, SHORTENED = 0.02, 0.8
#: What is added to D, as a part of its mean eigenvalue: a particle that met few others has none along some direction.
FLAT = 0.01


@dataclass(frozen=True)
class _Met:
    """What others do to the particles of this rank, in float64.

    Attributes:
        inverse: (C D)⁻¹ [n, d, d].
        velocity: V [n, d]; slope: ∂V_k/∂v_l [n, d, d].
    """

    inverse: torch.Tensor
    velocity: torch.Tensor
    slope: torch.Tensor


@dataclass(frozen=True)
class _Field:
    """A minimiser at the particles of this rank, in float64.

    Attributes:
        u: [n, d]; jacobian: ∂u_k/∂v_l [n, d, d].
        objective: J of the minimiser.
        shortened: what it was multiplied with.
    """

    u: torch.Tensor
    jacobian: torch.Tensor
    objective: float
    shortened: float


@dataclass(frozen=True)
class _Map:
    """The field that a step is made with.

    Attributes:
        field: the last minimiser.
        score: s [n, d], of the density at ṽ.
        dissipation: mean uᵀ(C D)⁻¹u.
        iterations: of the fits and of Newton's method.
        settled: whether finding D and V again has come to an end.
    """

    field: _Field
    score: torch.Tensor
    dissipation: float
    iterations: int
    settled: bool


class LandauJKOCollision(Collision):
    """v ← ṽ + h u, log f ← log f̃ − log det(I + h ∇v u), then each block's momentum and energy are restored.

    With ``method.order = 2`` D, V and s' are those of the midpoint ṽ + ½h u, and the functional sees h/2.

    Where the map is not invertible at some particle, V of the start is left out of its functions, then it is shortened,
    or the step split in two. It is split, too, where D and V do not settle.
    """

    fits_log_f = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.settings, self.comm, self.operator = settings, comm, settings.operator
        #: Fits the density; its own control field is not made.
        self.density = JKOCollision(settings, comm)
        self.held_out, self.order = self.density.held_out, settings.method.order
        assert isinstance(self.density.control, PotentialField)
        self.field = FreeField(self.density.control, comm, self.density.sums)

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        self.log_f_moved = torch.zeros_like(particles.log_f)
        return self._solve(particles, duration, start, splits=0)

    def _solve(
        self, particles: Particles, duration: float, start: StepStart, splits: int
    ) -> tuple[Particles, CollisionReport]:
        made = self.density.fit_density(particles, duration, start)
        before, of_log_f = self.density.relaxed(particles, duration, agreed=True)
        operator, settings = self.operator, self.settings
        blocks = blocks_of_cells([before], settings.grid, operator.block, [settings.seed], start.index, self.comm)
        found = self._map(before, duration, start, blocks)
        trouble = ""
        if not found.settled:
            trouble = "the coefficients of the collisions do not settle"
        elif found.field.shortened < SHORTENED:
            trouble = "the collision map is far from invertible at some particle"
        if not trouble:
            self.log_f_moved = self.log_f_moved + (before.log_f - particles.log_f)
            after = self._moved(before, found, duration, blocks)
            return after, self._report(before, after, found, made, duration, blocks.sparse, of_log_f)
        if splits == MAX_SPLITS:
            raise SolverFailure(
                f"{trouble} even in {2**MAX_SPLITS} pieces: reduce time.step, or raise particles.count or "
                "physics.landau.block"
            )
        first, one = self._solve(particles, duration / 2, start, splits + 1)
        later = replace(start, time=start.time + duration / 2)
        second, two = self._solve(first, duration / 2, later, splits + 1)
        return second, CollisionReport.of_halves(one, two, iterations=made + found.iterations)

    # -- the field -----------------------------------------------------------------------------------------------

    def _map(self, before: Particles, duration: float, start: StepStart, blocks: Blocks) -> _Map:
        """The field that D, V and s' belong to as they are where it leads. Collective."""
        fitted, temperature = duration / self.order, self.operator.temperature
        z, score, share = self._inputs(before), self.density.score(before)[0].double(), before.shares()
        own = met = self._met(before, before, blocks)
        led, led_score, made, shift, bare = torch.zeros_like(score), score, 0, math.inf, False
        for corrected in range(MAX_CORRECTED + 1):
            force = score - led_score - led / temperature - (met.inverse @ met.velocity[..., None])[..., 0]
            field, passes_made = self._minimised(z, share, force, met.inverse, own, duration)
            made += passes_made
            if field.shortened < SHORTENED and not bare:
                own, bare = replace(own, velocity=0 * own.velocity, slope=0 * own.slope), True
                field, passes_made = self._minimised(z, share, force, met.inverse, own, duration)
                made += passes_made
            u = field.u
            terms = torch.stack(
                [((fitted * u - led) ** 2).sum(1), (u * (met.inverse @ u[..., None])[..., 0]).sum(1)], dim=1
            )
            changed, dissipation = self.comm.sum(summed_finely(share[:, None] * terms).cpu().numpy()).sum(0)
            led = fitted * u
            shift, last = math.sqrt(changed / temperature), shift
            ends = shift < (SETTLED if corrected else SMALL) or STALLED * last < shift < UNSETTLED
            if corrected == MAX_CORRECTED or (ends and corrected >= self.order - 1):
                break
            log_f = before.log_f - tracked_log_det(field.jacobian, fitted, "exact").to(before.log_f)
            there = before.move((before.v.double() + led).to(before.v), log_f)
            made += self.density.fit_density(there, duration, start, again=True)
            met, led_score = self._met(before, there, blocks), self.density.score(there)[0].double()
        return _Map(field, score, float(dissipation), made, shift <= UNSETTLED)

    def _minimised(
        self,
        z: torch.Tensor,
        share: torch.Tensor,
        force: torch.Tensor,
        inverse: torch.Tensor,
        own: _Met,
        duration: float,
    ) -> tuple[_Field, int]:
        """The field for some force and (C D)⁻¹, and the number of passes over the fitted particles. Collective.

        J is convex and 0 without a field: so what is between that and its minimiser lowers it, too.
        """
        fitted, temperature, rate = duration / self.order, self.operator.temperature, self.operator.collision_strength
        metric = inverse + torch.eye(force.shape[1], dtype=force.dtype, device=force.device) * (fitted / temperature)
        samples = [
            Steered(*(part[rows] for part in (z, metric, force, own.velocity, own.slope, share)))
            for rows in self.density.solved_on()
        ]
        made, objective = self.field.minimise(samples, fitted, rate * temperature / (1 + rate * fitted))
        u, jacobian = torch.empty_like(own.velocity), torch.empty_like(own.slope)
        for rows in passes(len(z), self.density.chunk):
            u[rows], jacobian[rows] = self.field.at(z[rows], own.velocity[rows], own.slope[rows])
        smallest = self._smallest(jacobian, duration)
        shortened = 1.0 if smallest >= LEAST or math.isnan(smallest) else (1 - LEAST) / (1 - smallest)
        return _Field(shortened * u, shortened * jacobian, objective, shortened), made

    @torch.no_grad()
    def _inputs(self, particles: Particles) -> torch.Tensor:
        """Inputs of the functions [n, inputs]."""
        return self.density.control.features(particles.x, particles.v).to(self.density.dtype)

    def _smallest(self, jacobian: torch.Tensor, duration: float) -> float:
        """The smallest eigenvalue of I + h S at any particle. Collective."""
        here = smallest_eigenvalue(linear_part(jacobian, duration))
        return self.comm.min(float(here.min()) if len(here) else math.inf)

    @torch.no_grad()
    def _met(self, before: Particles, there: Particles, blocks: Blocks) -> _Met:
        """What particles do to each other at ``there``, to which ψ̄ has been fitted. Collective."""
        (dealt,), dims, device = blocks.species, there.v.shape[1], there.v.device
        score, hessian = self.density.score(there)
        whole = [there.v, score, hessian.flatten(1), before.weight[:, None]]
        rows = dealt.gathered(torch.cat([part.double() for part in whole], dim=1).cpu().numpy())
        weight, number = rows[:, -1].copy(), dealt.block
        v, of_score, bent = torch.from_numpy(rows[:, :-1]).to(device).split([dims, dims, dims**2], dim=1)
        density = torch.from_numpy(weight * blocks.per_volume[number]).to(device)
        members = Members(v, of_score, bent.unflatten(1, (dims, dims)), density, mass=1.0, edges=dealt.edges)
        with in_order(self.density.together):
            found = pair_fields(members, self.operator.exponent)
        of_pairs = torch.cat([part.flatten(1) for part in found], dim=1).cpu().numpy()
        strength = self.operator.factors[self.settings.number]
        factor = strength * among_likes(weight, number, blocks.density[0] / blocks.per_volume)
        back = torch.from_numpy(dealt.returned(factor[:, None] * of_pairs)).to(device)
        metric, velocity, slope = back.split([dims**2, dims, dims**2], dim=1)
        metric, slope = (part.unflatten(1, (dims, dims)) for part in (metric, slope))
        mean = metric.diagonal(dim1=1, dim2=2).mean(1)
        alone = self.operator.collision_strength * self.operator.temperature  # of one that meets nobody: any will do
        flat = torch.where(mean > 0, FLAT * mean, alone)
        inverse = torch.linalg.inv(metric + flat[:, None, None] * torch.eye(dims, dtype=back.dtype, device=device))
        return _Met(inverse, velocity, slope)

    # -- the move ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _moved(self, before: Particles, found: _Map, duration: float, blocks: Blocks) -> Particles:
        """The particles moved, each block's momentum and energy restored. Collective."""
        (dealt,), dims = blocks.species, before.v.shape[1]
        log_det = tracked_log_det(found.field.jacobian, duration, "exact")
        whole = [before.v.double(), before.weight[:, None].double(), duration * found.field.u, -log_det[:, None]]
        rows = dealt.gathered(torch.cat(whole, dim=1).cpu().numpy())
        v, weight, change = np.split(rows, [dims, dims + 1], axis=1)
        if self.comm.any(not np.isfinite(change[:, :dims]).all()):
            raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        change = change.copy()
        restore([v], [change], [weight[:, 0]], [dealt.block], [1.0])
        back = torch.from_numpy(dealt.returned(change)).to(before.v.device)
        v_after = (before.v.double() + back[:, :dims]).to(before.v)
        return before.move(v_after, before.log_f + back[:, dims].to(before.log_f))

    def _report(
        self,
        before: Particles,
        after: Particles,
        found: _Map,
        made: int,
        duration: float,
        sparse: float,
        of_log_f: dict[str, Any],
    ) -> CollisionReport:
        """What a step did that is taken. Collective."""
        change, mass = (after.log_f - before.log_f).double(), before.total_weight
        stein = duration * (found.field.jacobian.diagonal(dim1=1, dim2=2).sum(1) + (found.field.u * found.score).sum(1))
        mean, error = over_certifying(change, before, self.comm) if self.held_out else (0.0, 0.0)
        wrong, wrong_error = over_certifying(stein, before, self.comm) if self.held_out else (0.0, 0.0)
        return CollisionReport(
            dissipation=mass * found.dissipation,
            min_eigenvalue=self._smallest(found.field.jacobian, duration),
            objective=found.field.objective,
            inner_iterations=made + found.iterations,
            substeps=1,
            retries=int(found.field.shortened < 1),
            collision_free_energy=mass * mean,
            collision_free_energy_error=mass * error,
            disagreement=mass * wrong,
            disagreement_error=mass * wrong_error,
            sparse_nodes=sparse,
            **of_log_f,
        )

    def state(self) -> dict[str, np.ndarray]:
        return self.density.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.density.load(arrays)
