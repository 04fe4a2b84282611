"""Coulomb collisions: the Landau operator as a deterministic sum over pairs, with the score of the fitted density.

    ∂t f = C ∇v·∫ A(v − v') (f' ∇v f − f ∇v' f') dv',    A(z) = |z|^γ (|z|² I − z zᵀ)    (local in x)

γ = −3 are Coulomb collisions, 0 Maxwell molecules. Particles of a cell are dealt to blocks, anew in each step, and
every particle of a block meets every other (:mod:`~hpc_kjko.collisions.pairs`). The score is ∇v ψ̄ of the density that
is fitted to the carried log f (:mod:`~hpc_kjko.inner.solvers.density`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.collisions.base import CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.blocks import Blocks, blocks_of_cells
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.pairs import Members, pair_sums
from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.potential import PotentialField, combined
from hpc_kjko.inner.solvers import RegressionSolver
from hpc_kjko.operators import Landau
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order
from hpc_kjko.particles.state import Particles, passes

#: A step that would widen a block's velocities by more than a tenth is no longer a small one.
SHRINKING = 0.9
#: The part of its energy that the spread of a block's velocities has at least, but for rounding.
ROUNDING = 1e-24


class LandauCollision(JKOCollision):
    """v ← ṽ + h V, log f ← log f̃ − h ∇v·V, then each block's momentum and energy are restored to round-off.

    With ``method.order = 2`` V is that of the midpoint, where the density is fitted again.
    """

    has_control = False
    promises_decay = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        super().__init__(settings, comm)
        assert isinstance(self.operator, Landau) and isinstance(self._solver, RegressionSolver)
        self.exponent, self.strength = self.operator.exponent, self.operator.collision_strength
        self.size = self.operator.block
        self.grid = settings.grid

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        self.log_f_moved = torch.zeros_like(particles.log_f)
        iterations = self.fit_density(particles, duration, start)
        relaxed, of_log_f = self.relaxed(particles, duration, agreed=True)
        self.log_f_moved = relaxed.log_f - particles.log_f
        blocks = blocks_of_cells(relaxed, self.grid, self.size, (self.settings.seed, start.index), self.comm)
        if self.order == 1:
            collided = self._moved(relaxed, relaxed, blocks, duration)
        else:
            half = self._moved(relaxed, relaxed, blocks, 0.5 * duration)
            iterations += self.fit_density(half, duration, start, again=True)
            collided = self._moved(relaxed, half, blocks, duration)
        change = (collided.log_f - relaxed.log_f).double()
        mean, error = over_certifying(change, particles, self.comm) if self.held_out else (0.0, 0.0)
        report = CollisionReport(
            dissipation=math.nan,
            min_eigenvalue=math.nan,
            objective=math.nan,
            inner_iterations=iterations,
            substeps=1,
            collision_free_energy=particles.total_weight * mean,
            collision_free_energy_error=particles.total_weight * error,
            sparse_nodes=blocks.sparse,
        )
        return collided, replace(report, **dict[str, Any](of_log_f))

    def fit_density(self, particles: Particles, duration: float, start: StepStart, again: bool = False) -> int:
        """Fit ψ̄ to the log f of particles, on the same batches if once more in a step; returns the number of
        iterations. Collective."""
        assert isinstance(self._solver, RegressionSolver)
        data = self.training_data(self.control, particles, duration, start)
        return self._solver.fit_density(data, duration / self.order, again=again)[0]

    @torch.no_grad()
    def _moved(self, particles: Particles, at: Particles, blocks: Blocks, duration: float) -> Particles:
        """Particles moved by the V that others, or themselves, have. Collective."""
        dims = particles.v.shape[1]
        score, hessian = self._score(at)
        whole = [at.v, score, hessian.flatten(1), particles.weight[:, None], particles.v]
        rows = torch.cat([part.double() for part in whole], dim=1).cpu().numpy()
        found, smallest, finite = [], 1.0, True
        for block, density in zip(blocks.gathered(rows), blocks.density, strict=True):
            v, s, h, w, before = (
                torch.from_numpy(part)[None] for part in np.split(block, np.cumsum([dims, dims, dims**2, 1]), axis=1)
            )
            h, weight = h.unflatten(2, (dims, dims)), w[..., 0]
            with in_order(self.together):
                members = Members(
                    v[0], s[0], h[0], self.strength * density * _of_others(weight)[0], 1.0, np.array([0, len(v[0])])
                )
                velocity, growth = (found[None] for found in pair_sums(members, members, self.exponent))
                changed, ratio = _restored(before[0], weight[0], duration * velocity[0], duration * growth[0])
            found.append(changed)
            smallest, finite = min(smallest, ratio), finite and bool(np.isfinite(changed).all())
        if self.comm.any(not finite):
            raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        if (smallest := self.comm.min(smallest)) < SHRINKING:
            raise SolverFailure(
                "a step of the pairs is too long: velocities of a block must be scaled by "
                f"{smallest:.3g} to keep its energy: reduce time.step or physics.collision_strength"
            )
        back = torch.from_numpy(blocks.returned(found, dims + 1)).to(particles.v.device)
        log_f = particles.log_f + back[:, dims].to(particles.log_f)
        return particles.move((particles.v.double() + back[:, :dims]).to(particles.v), log_f)

    def _score(self, particles: Particles) -> tuple[torch.Tensor, torch.Tensor]:
        """s = ∇v ψ̄ [n, dv] and ∇v s [n, dv, dv] at particles."""
        assert isinstance(self._solver, RegressionSolver) and isinstance(self.control, PotentialField)
        corrected, dims = self._solver.fitted.corrected, particles.v.shape[1]
        score = torch.empty_like(particles.v)
        hessian = particles.v.new_empty(len(score), dims, dims)
        eye = torch.eye(dims, dtype=score.dtype, device=score.device) / self.temperature
        for rows in passes(len(score), self.chunk):
            z = self.control.features(particles.x[rows], particles.v[rows]).to(self.dtype)
            first, second = self.control.derivatives(z)
            score[rows] = combined(first.double(), corrected).to(score) - particles.v[rows] / self.temperature
            hessian[rows] = self.control.matrix(combined(second.double(), corrected).to(score)) - eye
        return score, hessian


def _of_others(weight: torch.Tensor) -> torch.Tensor:
    """Parts [1, B] of a density, from weights: on average those of all but one particle, which the sum leaves out, add
    up to 1."""
    total = weight.sum()
    others = total**2 - (weight**2).sum()
    return weight * (total / others) if others > 0 else torch.zeros_like(weight)


def _restored(
    v: torch.Tensor, weight: torch.Tensor, change: torch.Tensor, growth: torch.Tensor
) -> tuple[np.ndarray, float]:
    """v' − v and what log f changes by [B, d + 1] for velocities v + change, with momentum and energy of before; and
    by how much the velocities were scaled for that."""
    share = (weight / weight.sum())[:, None] if weight.any() else torch.zeros_like(v[:, :1])
    mean = (share * v).sum(0)
    before = (share * (v - mean) ** 2).sum()
    moved = v + change
    middle = (share * moved).sum(0)
    after = (share * (moved - middle) ** 2).sum()
    alike = before <= ROUNDING * (share * v**2).sum()  # velocities that differ by rounding have no width to restore
    ratio = torch.ones_like(after) if alike or not after > 0 else torch.sqrt(before / after)
    found = mean + ratio * (moved - middle)
    log_f = growth - v.shape[1] * torch.log(ratio)
    return torch.cat([found - v, log_f[:, None]], dim=1).numpy(), float(ratio)
