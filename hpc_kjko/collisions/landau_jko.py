"""Coulomb collisions as minimising movements: an implicit step in the metric of the Landau operator, for steps of any
length.

The Landau operator is ∂t f = C ∇v·∫ A(v − v') (f' ∇v f − f ∇v'f') dv' (:mod:`~hpc_kjko.collisions.landau`). With D =
A∗f, its particles have the velocity V = −C (D ∇v log f − ∇·D). An implicit step from ṽ to v' = ṽ + h u has u = V',
where V' is the velocity V of the particles after the step. A fixed-point iteration finds u. The iterate u_k is the
minimiser of

    J(u)/h = mean[ ½ uᵀ((C D')⁻¹ + h/Θ) u + ((ṽ − v')/Θ + s − s' − (C D')⁻¹ V')·u + ∇v·u − (1/h) log det(I + h S) ]

Here D', V' and s' = ∇v ψ̄' are taken at v' = ṽ + h u_{k−1}, s = ∇v ψ̄ at ṽ, and S is the symmetric part of ∇v u
(:mod:`~hpc_kjko.inner.solvers.free_field`). With u_0 = 0 it is the step of minimising movements in the metric of the
frozen D. The part −(v − U)/Θ of D⁻¹∇·D is treated as a potential, and the rest as a known force. When u_k = u_{k−1},
the terms with Θ cancel. V' is the sum over pairs. It vanishes for every pair if ψ̄' is a Maxwellian.

With several species each has such a functional, with Σ_b C_ab D_ab / m_a² in place of C D, and with V' from all species
with which it collides. In each round D', V' and s' of all species are computed at the same time. Before that, each
species of a collision block gets the energy and momentum that follow from an implicit step of the exchange between
species (:mod:`~hpc_kjko.collisions.exchange`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.blocks import blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.exchange import Exchange, given_moments
from hpc_kjko.collisions.meeting import Meeting, Score
from hpc_kjko.collisions.pairs import pair_fields
from hpc_kjko.collisions.split_pairs import Attempt, SplitPairCollision
from hpc_kjko.inner.control import smallest_eigenvalue
from hpc_kjko.inner.objective import linear_part, tracked_log_det
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.free_field import FreeField, Steered
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order, summed_finely
from hpc_kjko.particles.state import Particles, passes

#: The iteration ends when a new D and V move the particles by less than SETTLED thermal speeds, root mean square. No
#: second round is made if the whole step moves them by less than SMALL thermal speeds.
SETTLED, SMALL = 0.01, 0.002
#: The iteration also ends when a round moves the particles by at least STALLED times the move of the round before. Then
#: only the noise of the fits is left. There are at most MAX_CORRECTED further rounds. If the last move is then still
#: more than UNSETTLED thermal speeds, the step is split.
STALLED, MAX_CORRECTED, UNSETTLED = 0.7, 8, 0.2
#: If I + h S has a smaller eigenvalue than LEAST at some particle, fitted or not, the field is multiplied by a number
#: so that the smallest eigenvalue is LEAST. If this number is smaller than SHORTENED, V is left out of the functions.
#: If that does not help, the step is split.
LEAST, SHORTENED = 0.02, 0.8
#: Added to D, as a fraction of its mean eigenvalue. The D of a particle that met few others may vanish along some
#: direction.
FLAT = 0.01


@dataclass(frozen=True)
class _Met:
    """The effect of collisions on the particles of a species on this rank, in float64.

    Attributes:
        inverse: D⁻¹ [n, d, d].
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
        shortened: the factor by which the field was multiplied.
    """

    u: torch.Tensor
    jacobian: torch.Tensor
    objective: float
    shortened: float


class LandauJKOCollision(SplitPairCollision):
    """v ← ṽ + h u, log f ← log f̃ − log det(I + h ∇v u). Then the momentum and energy of each collision block are
    restored.

    With ``method.order = 2`` D, V and s' are those of the midpoint ṽ + ½h u, and the functional has h/2.

    If the map is not invertible at some particle, the field is shortened, or V of the start is left out of its
    functions, or the step is split in two. The step is also split if the iteration for D and V does not converge. All
    species are split together.
    """

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        super().__init__(settings, comm)
        assert isinstance(self.density.control, PotentialField)
        self.field = FreeField(self.density.control, comm, self.density.sums)

    @property
    def advice(self) -> str:
        midpoint = "use method.order = 1, whose step does not overshoot, " if self.order == 2 else ""
        return f"{midpoint}reduce time.step, or raise particles.count or physics.landau.block"

    @classmethod
    def attempt(
        cls, steps: Sequence[Self], plasma: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> Attempt:
        first = steps[0]
        seeds, masses = [step.settings.seed for step in steps], [step.settings.mass for step in steps]
        blocks = blocks_of_cells(plasma, first.settings.grid, first.operator.block, seeds, starts[0].drawn, first.comm)
        meeting = Meeting.of(plasma, masses, blocks)
        searches, aims = _searched(steps, meeting, duration, starts)
        made = [search.made for search in searches]
        if not all(search.shift <= UNSETTLED for search in searches):
            return Attempt(made, "the coefficients of the collisions do not settle")
        changes = _changes(meeting, searches, aims, first.comm)
        if changes is None or any(search.field.shortened < SHORTENED for search in searches):
            return Attempt(made, "the collision map is far from invertible at some particle")
        collided, _ = meeting.moved(changes, first.comm)
        found = [
            (after, step.report(before, after, search, blocks.sparse))
            for step, before, after, search in zip(steps, plasma, collided, searches, strict=True)
        ]
        return Attempt(made, found=found)

    @torch.no_grad()
    def inputs(self, particles: Particles) -> torch.Tensor:
        """Inputs of the functions [n, inputs]."""
        return self.density.control.features(particles.x, particles.v).to(self.density.dtype)

    def met(self, found: torch.Tensor) -> _Met:
        """The effect of collisions on the particles of this rank, from D, V and its Jacobian as columns [n, d² + d +
        d²].
        """
        dims = self.settings.problem.velocity_dims
        metric, velocity, slope = found.split([dims**2, dims, dims**2], dim=1)
        metric, slope = (part.unflatten(1, (dims, dims)) for part in (metric, slope))
        mean = metric.diagonal(dim1=1, dim2=2).mean(1)
        # a particle that met no other: any value is allowed
        alone = self.operator.collision_strength * self.operator.temperature
        flat = torch.where(mean > 0, FLAT * mean, alone)
        eye = torch.eye(dims, dtype=found.dtype, device=found.device)
        return _Met(torch.linalg.inv(metric + flat[:, None, None] * eye), velocity, slope)

    def minimised(
        self,
        z: torch.Tensor,
        share: torch.Tensor,
        force: torch.Tensor,
        inverse: torch.Tensor,
        own: _Met,
        duration: float,
    ) -> tuple[_Field, int]:
        """The field for a force and D⁻¹, and the number of passes over the fitted particles. Collective.

        J is convex, and 0 for u = 0. So a field between 0 and the minimiser lowers J, too.
        """
        fitted, temperature, rate = duration / self.order, self.operator.temperature, self.operator.collision_strength
        metric = inverse + torch.eye(force.shape[1], dtype=force.dtype, device=force.device) * (fitted / temperature)
        share = self.density.scale * share
        samples = [
            Steered(*(part[rows] for part in (z, metric, force, own.velocity, own.slope, share)))
            for rows in self.density.solved_on()
        ]
        made, objective = self.field.minimise(samples, fitted, rate * temperature / (1 + rate * fitted))
        u, jacobian = torch.empty_like(own.velocity), torch.empty_like(own.slope)
        for rows in passes(len(z), self.density.sums.at_once):
            u[rows], jacobian[rows] = self.field.at(z[rows], own.velocity[rows], own.slope[rows])
        smallest = self.smallest(jacobian, duration)
        shortened = 1.0 if smallest >= LEAST or math.isnan(smallest) else (1 - LEAST) / (1 - smallest)
        return _Field(shortened * u, shortened * jacobian, objective, shortened), made

    def smallest(self, jacobian: torch.Tensor, duration: float) -> float:
        """The smallest eigenvalue of I + h S at any particle. Collective."""
        here = smallest_eigenvalue(linear_part(jacobian, duration))
        return self.comm.min(float(here.min()) if len(here) else math.inf)

    def report(self, before: Particles, after: Particles, found: _Search, sparse: float) -> CollisionReport:
        """The report of a step that is taken. Collective."""
        change, mass, field = (after.log_f - before.log_f).double(), before.total_weight, found.field
        stein = found.duration * (field.jacobian.diagonal(dim1=1, dim2=2).sum(1) + (field.u * found.score).sum(1))
        mean, error = over_certifying(change, before, self.comm) if self.held_out else (0.0, 0.0)
        wrong, wrong_error = over_certifying(stein, before, self.comm) if self.held_out else (0.0, 0.0)
        return CollisionReport(
            dissipation=mass * found.dissipation,
            min_eigenvalue=self.smallest(field.jacobian, found.duration),
            objective=field.objective,
            inner_iterations=found.made,
            substeps=1,
            retries=int(field.shortened < 1),
            collision_free_energy=mass * mean,
            collision_free_energy_error=mass * error,
            disagreement=mass * wrong,
            disagreement_error=mass * wrong_error,
            sparse_nodes=sparse,
        )


class _Search:
    """The iteration for the field of a species in a step.

    Attributes:
        field: the last minimiser.
        dissipation: mean uᵀD⁻¹u of it.
        score: s [n, d], of the density at ṽ.
        led: h u [n, d] of the last field that was applied (v' − ṽ).
        led_score: s' at v'.
        made: iterations of the fits and of Newton's method.
        shift: distance between the velocities v' of the last two fields, in thermal speeds.
        last: the shift of the round before.
    """

    field: _Field
    dissipation: float

    def __init__(self, step: LandauJKOCollision, before: Particles, score: torch.Tensor, duration: float, met: _Met):
        self.step, self.before, self.duration, self.own = step, before, duration, met
        self.fitted = duration / step.order
        self.z, self.share = step.inputs(before), before.shares()
        self.score = self.led_score = score.double()
        self.led = torch.zeros_like(self.score)
        self.made, self.shift, self.last, self.bare = 0, math.inf, math.inf, False

    def minimise(self, met: _Met) -> None:
        """Find the minimiser, with the effect of collisions at the last v'. Collective."""
        pushed = (met.inverse @ met.velocity[..., None])[..., 0]
        force = self.score - self.led_score - self.led / self.step.operator.temperature - pushed
        self._minimise(force, met)
        if self.field.shortened < SHORTENED and not self.bare:
            self.own, self.bare = replace(self.own, velocity=0 * self.own.velocity, slope=0 * self.own.slope), True
            self._minimise(force, met)

    def _minimise(self, force: torch.Tensor, met: _Met) -> None:
        self.field, made = self.step.minimised(self.z, self.share, force, met.inverse, self.own, self.duration)
        self.made += made

    def scale(self, change: torch.Tensor, by: torch.Tensor) -> None:
        """Add ``change`` [n, d] to v', and scale the Jacobian of the map by the factors ``by`` [n]."""
        dims = change.shape[1]
        eye = torch.eye(dims, dtype=change.dtype, device=change.device)
        whole = by[:, None, None]
        jacobian = whole * self.field.jacobian + (whole - 1) / self.fitted * eye
        self.field = replace(self.field, u=self.field.u + change / self.fitted, jacobian=jacobian)

    def lead(self, met: _Met) -> None:
        """Move v' to ṽ + h u of the present field. Collective."""
        u = self.field.u
        terms = torch.stack(
            [((self.fitted * u - self.led) ** 2).sum(1), (u * (met.inverse @ u[..., None])[..., 0]).sum(1)], dim=1
        )
        sums = self.step.comm.sum(summed_finely(self.share[:, None] * terms).cpu().numpy()).sum(0)
        self.led, self.dissipation = self.fitted * u, float(sums[1])
        self.shift, self.last = math.sqrt(sums[0] / self.step.operator.temperature), self.shift

    @property
    def there(self) -> Particles:
        """The particles at v'."""
        log_f = self.before.log_f - tracked_log_det(self.field.jacobian, self.fitted, "exact").to(self.before.log_f)
        return self.before.move((self.before.v.double() + self.led).to(self.before.v), log_f)

    def ends(self, corrected: int) -> bool:
        """Whether the iteration ends after this many corrections of D and V."""
        return self.shift < (SETTLED if corrected else SMALL) or STALLED * self.last < self.shift < UNSETTLED


def _searched(
    steps: Sequence[LandauJKOCollision], meeting: Meeting, duration: float, starts: Sequence[StepStart]
) -> tuple[list[_Search], np.ndarray | None]:
    """The converged fields of all species; and, with several species, the energy and momentum that each is to have
    after the step. Collective.
    """
    order = steps[0].order
    scores = [step.density.score(particles) for step, particles in zip(steps, meeting.plasma, strict=True)]
    met, exchange = _met(steps, meeting, meeting.plasma, scores)
    searches = [
        _Search(step, before, score, duration, one)
        for step, before, (score, _), one in zip(steps, meeting.plasma, scores, met, strict=True)
    ]
    aims, begin = None, None if exchange is None else exchange.moments
    for corrected in range(MAX_CORRECTED + 1):
        for search, one in zip(searches, met, strict=True):
            search.minimise(one)
        if exchange is not None and begin is not None:
            middle = exchange.after(begin, duration / order)
            _lead_to(middle, meeting, searches)
            aims = begin + order * (middle - begin)
        for search, one in zip(searches, met, strict=True):
            search.lead(one)
        ends = all(search.ends(corrected) for search in searches)
        if corrected == MAX_CORRECTED or (ends and corrected >= order - 1):
            break
        there = [search.there for search in searches]
        scores = []
        for step, search, particles, start in zip(steps, searches, there, starts, strict=True):
            search.made += step.fit(particles, duration, start, again=True)
            scores.append(step.density.score(particles))
            search.led_score = scores[-1][0].double()
        met, exchange = _met(steps, meeting, there, scores)
    return searches, aims


@torch.no_grad()
def _met(
    steps: Sequence[LandauJKOCollision], meeting: Meeting, there: Sequence[Particles], scores: Sequence[Score]
) -> tuple[list[_Met], Exchange | None]:
    """The effects of collisions between the particles ``there``, which have these ``scores``; and, with several
    species, the exchange between them. Collective.
    """
    members, dims = meeting.members(there, scores), there[0].v.shape[1]
    columns, between = [], {}
    for a, (step, own) in enumerate(zip(steps, members, strict=True)):
        found = np.zeros((len(own.v), 2 * dims**2 + dims))
        for b, (other, others) in enumerate(zip(steps, members, strict=True)):
            strength = step.operator.factors[other.settings.number]
            if strength == 0:
                continue
            with in_order(step.density.together):
                metric, velocity, slope = pair_fields(own, others, step.operator.exponent)
            of_pairs = torch.cat([metric.flatten(1) / own.mass, velocity, slope.flatten(1)], dim=1).cpu().numpy()
            factor = strength / own.mass * (meeting.among_likes(a) if a == b else np.ones(len(of_pairs)))
            found += factor[:, None] * of_pairs
            if a < b:
                between[a, b] = strength * metric
        columns.append(found)
    exchange = None
    if len(steps) > 1:
        exchange = Exchange.of(meeting, members, [found[:, dims**2 : dims**2 + dims] for found in columns], between)
    return [step.met(back) for step, back in zip(steps, meeting.returned(columns), strict=True)], exchange


def _lead_to(moments: np.ndarray, meeting: Meeting, searches: Sequence[_Search]) -> None:
    """Change the fields so that at v' the species have these moments in each collision block. Collective."""
    rows = meeting.gathered([(search.fitted * search.field.u,) for search in searches])
    changes, _ = given_moments(meeting, [v + change for v, change in zip(meeting.v, rows, strict=True)], moments)
    for search, back in zip(searches, meeting.returned(changes), strict=True):
        search.scale(back[:, :-1], back[:, -1])


@torch.no_grad()
def _changes(
    meeting: Meeting, searches: Sequence[_Search], aims: np.ndarray | None, comm: Communicator
) -> list[np.ndarray] | None:
    """The changes of v and log f of all species [n, d + 1], in the order of the collision blocks. None if, with several
    species, one of them would have no temperature, or if the map has no inverse. Both are possible with the midpoint
    rule. Collective.
    """
    moved = []
    for search in searches:
        log_det = tracked_log_det(search.field.jacobian, search.duration, "exact")
        moved.append((search.duration * search.field.u, -log_det[:, None]))
    changes = [rows.copy() for rows in meeting.gathered(moved)]
    if aims is None:
        return changes
    places = [v + change[:, :-1] for v, change in zip(meeting.v, changes, strict=True)]
    corrections, positive = given_moments(meeting, places, aims)
    least = min(search.step.smallest(search.field.jacobian, search.duration) for search in searches)
    if comm.any(not positive.all()) or least <= 0:
        return None
    for change, correction in zip(changes, corrections, strict=True):
        change[:, :-1] += correction[:, :-1]
        change[:, -1] -= (change.shape[1] - 1) * np.log(correction[:, -1])
    return changes
