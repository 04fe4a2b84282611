"""Coulomb collisions as a minimising movement, for steps of any length: the implicit step in Landau's own metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.blocks import Blocks, blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.landau import _per_density, _restore, _without_itself
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

SETTLED = 0.01
MAX_CORRECTED = 8
FLAT = 0.01
MAX_SPLITS = 6


@dataclass(frozen=True)
class _Met:
    """What particles [n] are moved by at some state: D, V and ∂V/∂v, float64."""

    metric: torch.Tensor
    velocity: torch.Tensor
    slope: torch.Tensor


class LandauJKOCollision(Collision):
    """x"""

    has_control = True
    fits_log_f = True

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        assert isinstance(settings.operator, Landau)
        self.settings, self.comm, self.operator = settings, comm, settings.operator
        self.density = JKOCollision(settings, comm)
        self.held_out, self.order = self.density.held_out, settings.method.order
        control = self.density.control
        assert isinstance(control, PotentialField)
        self.field = FreeField(control, comm, self.density.sums)
        self.log = []

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        self.log_f_moved = torch.zeros_like(particles.log_f)
        density, fitted = self.density, duration / self.order
        made = density.fit_density(particles, duration, start)
        before, of_log_f = density.relaxed(particles, duration, agreed=True)
        blocks = self._blocks(before, start)
        score = density.score(before)[0].double()
        here = self._met(before, before, blocks)
        theta = self.operator.temperature
        there, met, shift = before, here, torch.zeros_like(score)
        own_score, last = score, np.inf
        import time as _t
        for turn in range(MAX_CORRECTED + 1):
            inverse = torch.linalg.inv(met.metric)
            metric = inverse + fitted / theta * torch.eye(score.shape[1]).to(inverse)
            force = score - own_score - shift / theta - (inverse @ met.velocity[..., None])[..., 0]
            rows = density.solved_on()
            features = density.control.features(before.x, before.v).to(density.dtype)
            share = before.shares()
            samples = [
                Steered(features[r], metric[r], force[r], here.velocity[r], here.slope[r], share[r] * 1.0) for r in rows
            ]
            unit = self.operator.collision_strength * theta / (1 + self.operator.collision_strength * fitted)
            t0 = _t.time()
            passes_made = self.field.minimise(samples, fitted, unit)
            made += passes_made
            u, jac = self._moved(before, here)
            new = fitted * u
            change = float(((new - shift) ** 2).mean().sqrt())
            if self.log is not None:
                self.log.append((turn, passes_made, change, self.field.coefficients[-1], _t.time() - t0))
            shift = new
            if turn == MAX_CORRECTED or (change < SETTLED * math.sqrt(theta) and turn >= self.order - 1):
                break
            log_det = tracked_log_det(jac, fitted, "exact")
            there = before.move(before.v + shift.to(before.v), before.log_f - log_det.to(before.log_f))
            made += density.fit_density(there, duration, start, again=True)
            own_score = density.score(there)[0].double()
            met = self._met(before, there, blocks)
        log_det = tracked_log_det(jac, duration, "exact")
        smallest = float(smallest_eigenvalue(linear_part(jac, duration)).min())
        change = torch.cat([duration * u, -log_det[:, None]], 1)
        (dealt,) = blocks.species
        cols = torch.cat([before.v.double(), before.weight[:, None].double(), change], 1).numpy()
        g = dealt.gathered(cols)
        d = score.shape[1]
        v, w, ch = g[:, :d], g[:, d], g[:, d + 1 :].copy()
        smallest_ratio = _restore([v], [ch], [w], [dealt.block], [1.0])
        self.ratio = smallest_ratio
        back = torch.from_numpy(dealt.returned(ch))
        after = before.move(before.v + back[:, :d].to(before.v), before.log_f + back[:, d].to(before.log_f))
        gain = (after.log_f - before.log_f).double()
        mean, error = over_certifying(gain, before, self.comm) if self.held_out else (0.0, 0.0)
        mass = before.total_weight
        report = replace(CollisionReport(math.nan, smallest, math.nan, made, 1), **of_log_f,
            collision_free_energy=mass * mean, collision_free_energy_error=mass * error, sparse_nodes=blocks.sparse)
        return after, report

    def _moved(self, before, here):
        us, js = [], []
        control = self.density.control
        for rows in passes(len(before.x), self.density.chunk):
            z = control.features(before.x[rows], before.v[rows]).to(self.density.dtype)
            u, j = self.field.at(z, here.velocity[rows], here.slope[rows])
            us.append(u); js.append(j)
        return torch.cat(us), torch.cat(js)

    def _blocks(self, before, start):
        return blocks_of_cells([before], self.settings.grid, self.operator.block, [self.settings.seed], start.index, self.comm)

    def _met(self, before: Particles, there: Particles, blocks: Blocks) -> _Met:
        (dealt,), dims = blocks.species, there.v.shape[1]
        score, hessian = self.density.score(there)
        whole = [there.v, score, hessian.flatten(1), before.weight[:, None]]
        gathered = dealt.gathered(torch.cat([part.double() for part in whole], 1).cpu().numpy())
        v, score_, hess, weight = np.split(gathered, np.cumsum([dims, dims, dims**2]), axis=1)
        number = dealt.block
        unit = _per_density([weight[:, 0]], [number], blocks)
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (v, score_, hess.reshape(-1, dims, dims), weight[:, 0] * unit[number])]
        members = Members(*tensors, 1.0, dealt.edges)
        with in_order(self.density.together):
            metric, velocity, slope = pair_fields(members, self.operator.exponent)
        factor = self.operator.factors[self.settings.number] * _without_itself(weight[:, 0], number)
        rows = np.concatenate([metric.flatten(1).numpy(), velocity.numpy(), slope.flatten(1).numpy()], 1) * factor[:, None]
        back = torch.from_numpy(dealt.returned(rows))
        metric = back[:, : dims**2].reshape(-1, dims, dims)
        flat = FLAT * metric.diagonal(dim1=1, dim2=2).mean(1)
        metric = metric + flat[:, None, None] * torch.eye(dims).to(metric)
        return _Met(metric, back[:, dims**2 : dims**2 + dims], back[:, dims**2 + dims :].reshape(-1, dims, dims))

    def state(self) -> dict[str, np.ndarray]:
        return self.density.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.density.load(arrays)
