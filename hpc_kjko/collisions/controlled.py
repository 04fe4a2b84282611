"""The common parts of collision steps that move particles along a control field."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from hpc_kjko.collisions.base import Collision, CollisionReport, CollisionSettings, StepStart
from hpc_kjko.collisions.certificate import over_certifying
from hpc_kjko.collisions.witness import WaveExchange, WaveWitness
from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.control import ControlField, smallest_eigenvalue
from hpc_kjko.inner.objective import linear_part, tracked_log_det
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.base import Batches, Sample, TrainingData
from hpc_kjko.inner.solvers.regression import FITTED_BATCHES
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.dealing import Batching, Dealing
from hpc_kjko.particles.exact import counts, rows_together, summed_finely
from hpc_kjko.particles.state import (
    BLOCK,
    CERTIFY,
    FOLDS,
    SELECT,
    Particles,
    at_once,
    folds,
    passes,
)

_FITTED = [fold for fold in range(FOLDS) if fold not in (SELECT, CERTIFY)]

#: Near equilibrium one step in 741 rises by three standard errors by chance. The same particles show the same rise
#: again if the step is fitted again, or split. Chance does not explain a rise by more standard errors than this.
NO_CHANCE = 5.0
#: A fitted density is not trusted if its error is larger than both of these: this fraction of the change of the free
#: energy in the step, and this many standard errors. By chance that happens in one step in 16000.
DISAGREEING, DISAGREEING_ERRORS = 0.5, 4.0
#: If the root mean square of log f − ψ is at most this, the fitted density is not the cause of a map that is not
#: invertible.
FITTING = 0.1
#: A step is split at most this often (into 2^6 pieces) before the run gives up.
MAX_SPLITS = 6

#: u [n, dv] and ∂u_k/∂ṽ_j [n, dv, dv] at some rows of the particles; and ∇v log f [n, dv] of the fit, or None without a
#: fit.
Field = Callable[[slice], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


#: u is a function of either kind. Both have the same inputs.
Network = ControlField | PotentialField


@dataclass(frozen=True)
class Carried:
    """The particles of a rank after a step along h u, and the diagnostics of the step.

    Attributes:
        v: [n, dv]; log_f: [n].
        change: ½|ṽ + h u|² − ½|ṽ|² − T log det(I + h ∇v u) [n].
        disagreement: T h (∇v·u + u·∇v ψ̄) [n], or None without ψ̄.
        sums: sums over the particles, each with its share, as two numbers [2, columns]. The columns are |u|², the other
            terms of the objective, the squared drift error, the change, the share, and the terms of the wave.
        smallest: smallest eigenvalue of I + h sym ∇v u.
    """

    v: torch.Tensor
    log_f: torch.Tensor
    change: torch.Tensor
    disagreement: torch.Tensor
    sums: np.ndarray
    smallest: float


class ControlledCollision(Collision):
    """v ← ṽ + h u, log f ← log f̃ − log det(I + h ∇v u), with a u that the method determines.

    Two forms of the step (``method.form``):

    * ``split`` (paper's eqs. 30-31): u is a function of the pushed state (x̃, ṽ);
    * ``nonsplit`` (eq. 18): u is a function ū of the state (x, v) before the push. For symplectic Euler, x̃ = x + h v
      and ṽ = v + h a(x̃). A change of ṽ at fixed x̃ changes (x, v) by (−h, 1). So the determinant of the map is that of
      I + h (∇v − h ∇x) ū. ``nonsplit_naive`` takes I + h ∇v ū instead, as the text of the paper reads. Its entropy has
      an error of O(h²) in each step.

    A step is rejected if I + h sym ∇v u is not positive definite at every particle. It is also rejected if the free
    energy of held-out particles rises, the method promises that it falls, and chance does not explain the rise. A
    rejected step is fitted again with stronger regularisation. If that fails too, it is split in two. If the map is not
    invertible although ψ fits the carried log f, the step is split at once. The report says what was done. The
    non-split form cannot be split, because its push is already made.
    """

    #: Whether a step that raises the free energy of held-out particles is rejected, or only reported.
    promises_decay: ClassVar[bool] = False

    def __init__(self, settings: CollisionSettings, comm: Communicator):
        method = settings.method
        self.comm, self.settings, self.problem, self.operator = comm, settings, settings.problem, settings.operator
        #: Number of particles handled at a time by full passes; a multiple of BLOCK.
        self.chunk = -(-at_once(method.chunk, comm.device) // BLOCK) * BLOCK
        #: Size of a piece: the number of particles that an objective adds before it rounds.
        self.together = rows_together(settings.count) if settings.reproducible else self.chunk
        self.order, self.logdet, self.form = method.order, method.logdet, method.form
        self.temperature = self.operator.temperature
        self.dtype = getattr(torch, method.precision)
        self.held_out = method.held_out
        #: Solvers other than Adam train the hidden layers on one fold after another, with or without held-out
        #: particles.
        self._in_folds = method.held_out or method.solver != "adam"
        #: Whether the solver uses the log-density that the particles carry. Such a solver needs no particles that
        #: choose.
        self._with_log_f = method.solver == "regression"
        self._choosing = method.held_out and not self._with_log_f
        #: Compares what a wave gains with the exact operator, for steps whose u is a minimiser.
        self.wave: WaveWitness | None = None
        if self.promises_decay and settings.wave_vector:
            self.wave = WaveWitness(settings.wave_vector, self.operator)
        self.sees_wave = self.wave is not None
        #: Removes noise from the objective, if the method uses it.
        self.variate: ControlVariate | None = None
        #: Rows sorted by fold, or by batch; where each fold or batch begins; its mass. They are the same in every step.
        self._folds: tuple[torch.Tensor, np.ndarray, np.ndarray] | None = None
        #: The factor of the shares of particles in a batch. It is set with the rows above.
        self.scale = 1
        #: Deals the batches to all ranks. It is made with the rows above.
        self._deal: Dealing | None = None

    def control_field(self, parameters: int = 0) -> ControlField:
        """A new network for this phase space, in the precision of the inner solve."""
        problem, method = self.problem, self.settings.method
        return ControlField(
            problem.torus,
            problem.space_dims,
            problem.velocity_dims,
            hidden=method.hidden,
            activation=method.activation,
            seed=self.settings.seed,
            dtype=self.dtype,
            device=self.comm.device,
            parameters=parameters,
            skip=method.skip,
        )

    @abstractmethod
    def fit(self, particles: Particles, duration: float, start: StepStart, stiffer: int) -> int:
        """Determine u for the pushed particles; returns the number of iterations. Collective.

        Args:
            stiffer: how often the fit of this same step has failed.

        Raises:
            SolverFailure: on every rank.
        """

    @abstractmethod
    def field(self, particles: Particles, duration: float, start: StepStart) -> Field:
        """The u that :meth:`fit` found, converted to the precision of the particles."""

    def relaxed(self, particles: Particles, duration: float, agreed: bool) -> tuple[Particles, dict[str, Any]]:
        """The pushed particles with the log f that they have before the move, and the entries of the report that belong
        to this change. Collective.

        Args:
            agreed: False if held-out particles disagreed with the fitted density at the first attempt.
        """
        return particles, {}

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        self.log_f_moved = torch.zeros_like(particles.log_f)
        return self._solve(particles, duration, start, splits=0)

    def _solve(
        self, particles: Particles, duration: float, start: StepStart, splits: int
    ) -> tuple[Particles, CollisionReport]:
        iterations, agreed = 0, True
        for attempt in range(2):
            iterations += self.fit(particles, duration, start, stiffer=attempt)
            relaxed, of_log_f = self.relaxed(particles, duration, agreed)
            moved, report = self._move(relaxed, duration, start, iterations)
            report = replace(replace(report, **of_log_f), retries=attempt)
            if not np.isfinite(report.min_eigenvalue):
                raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
            trouble = self._trouble(report, attempt)
            if not trouble:
                self.log_f_moved = self.log_f_moved + (relaxed.log_f - particles.log_f)
                return moved, report
            agreed = not self._disagreement(report)
            fits = self._with_log_f and report.log_f_residual <= FITTING
            if fits and not report.min_eigenvalue > 0 and splits < MAX_SPLITS:
                break  # ψ fits log f, so the fit is not the cause: the step is too long.
        if self.form != "split":
            raise SolverFailure(
                f'{trouble}, and the non-split form cannot be split: reduce time.step, or use method.form = "split"'
            )
        if splits == MAX_SPLITS:
            first_order = "use method.order = 1, whose step does not overshoot, " if self.order == 2 else ""
            raise SolverFailure(
                f"{trouble} even in {2**MAX_SPLITS} pieces: {first_order}reduce time.step or method.learning_rate, or "
                "raise particles.count"
            )
        first, one = self._solve(particles, duration / 2, start, splits + 1)
        later = replace(start, time=start.time + duration / 2)
        second, two = self._solve(first, duration / 2, later, splits + 1)
        return second, CollisionReport.of_halves(one, two, iterations, attempt)

    def _trouble(self, report: CollisionReport, attempt: int) -> str:
        """The reason to reject the step, or an empty string.

        A step that was fitted again is accepted if chance may explain the rise of the free energy. The report still
        shows the rise. With the carried log f, the second attempt fits only a few monomials, which cannot follow the
        noise. It is accepted if the free energy of all particles falls.
        """
        if not report.min_eigenvalue > 0:
            return f"the collision map is not invertible (smallest eigenvalue {report.min_eigenvalue:.3g})"
        change, error = report.collision_free_energy, report.collision_free_energy_error
        noise = attempt > 0 and (report.sample_free_energy <= 0 if self._with_log_f else change <= NO_CHANCE * error)
        if self.promises_decay and report.certificate < 0 and not noise:
            return f"the free energy of held-out particles rises (by {change:.3g} ± {error:.2g} in a collision step)"
        return self._disagreement(report) if attempt == 0 else ""

    def _disagreement(self, report: CollisionReport) -> str:
        """The reason not to trust the fitted density (held-out particles disagree with it), or an empty string."""
        wrong, error = abs(report.disagreement), report.disagreement_error
        if wrong <= max(DISAGREEING_ERRORS * error, DISAGREEING * abs(report.collision_free_energy)):
            return ""
        return f"held-out particles disagree with the fitted density (by {wrong:.3g} ± {error:.2g} in one step)"

    # -- where the network is evaluated --------------------------------------------------------------------------

    def inputs(
        self, control: Network, particles: Particles, duration: float, start: StepStart, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The inputs z of the network [n, inputs] at some rows, and ∂z/∂ṽ [n, dv, inputs]. The latter is None if the
        last inputs are simply ṽ.
        """
        if self.form == "split":
            return control.features(particles.x[rows], particles.v[rows]), None
        before = start.particles
        z = control.features(before.x[rows], before.v[rows])
        if self.form == "nonsplit_naive":
            return z, None
        assert isinstance(control, ControlField)  # the case file was checked for this
        dims, dv = before.x.shape[1], before.v.shape[1]
        tangents = torch.zeros(len(z), dv, z.shape[1], dtype=z.dtype, device=z.device)
        axes = torch.arange(dv, device=z.device)
        tangents[:, axes, z.shape[1] - dv + axes] = 1.0
        tangents[:, :dims] -= duration * control.position_derivatives(before.x[rows])
        return z, tangents

    def training_data(self, control: Network, particles: Particles, duration: float, start: StepStart) -> TrainingData:
        """Inputs z, pushed velocities ṽ, shares (and tangents) of the particles of this rank, for the inner solve.

        They are kept for all iterations of a step, which saves the cosines and sines in each. Held-out particles have
        arrays of their own.
        """
        count = len(particles.x)
        tangents: list[torch.Tensor] = []
        z = torch.empty(count, control.layers[0].in_features, dtype=self.dtype, device=particles.x.device)
        for rows in passes(count, self.chunk):
            z[rows], along = self.inputs(control, particles, duration, start, rows)
            if along is not None:
                tangents = tangents or [torch.empty(count, *along.shape[1:], dtype=self.dtype, device=z.device)]
                tangents[0][rows] = along
        v, known = particles.v.to(self.dtype), None
        if self.variate:
            v, known = (part.to(self.dtype) for part in self.variate.drag(particles, self.chunk))
        elif self.form == "split":
            v = z[:, -particles.v.shape[1] :]
        log_f = particles.log_f.double() if self._with_log_f else None
        whole = Sample(z, v, particles.shares(self.dtype), tangents[0] if tangents else None, known, log_f)
        return self._dealt(whole, particles)

    def _dealt(self, whole: Sample, particles: Particles) -> TrainingData:
        """The particles sorted by fold; for a regression by batches of these folds."""
        if not self._in_folds:
            return TrainingData.unheld(whole)
        total, device = particles.shard.total, whole.z.device
        if self._folds is None:
            chosen = (*_FITTED, SELECT) if self.held_out else tuple(range(FOLDS))
            if self._with_log_f:
                batching = Batching.of(total, chosen)
                part, number = batching.of_rows(particles.shard, device), len(batching)
                self.scale = batching.scale(FITTED_BATCHES)
                if self.held_out:
                    part, number = torch.where(part < 0, number, part), number + 1
                if (
                    self.comm.size > 1 and device.type == "cpu"
                ):  # by estimate, a GPU works faster than a message travels
                    self._deal = Dealing(batching, self.comm, rows_together(total))
            else:
                place = torch.full((FOLDS,), -1, device=device)
                place[list(chosen)] = torch.arange(len(chosen), device=device)
                part, number = place[folds(particles.shard, device)], len(chosen)
            order = torch.argsort(part, stable=True)[int((part < 0).sum()) :]
            edges = np.cumsum(np.append(0, torch.bincount(part[order], minlength=number).cpu().numpy()))
            weights = counts(particles.shares(), total)[order]
            mass = torch.bincount(part[order], weights=weights, minlength=number)
            # bincount returns integers on a rank without particles
            masses = self.comm.sum(mass.double().cpu().numpy()) / total
            self._folds = order, edges, masses
        order, edges, masses = self._folds
        if self.held_out and not masses[-1] > 0:  # with few particles, the selecting fold may be empty
            return TrainingData.unheld(whole)
        of_fitted = masses[:-1].sum() if self.held_out else 1.0

        # v is one of the inputs, unless the form or the control variate needs another one
        others = {name: t for name, t in vars(whole).items() if t is not None and name != "v"}
        if self.form != "split" or self.variate:
            others["v"] = whole.v

        def sample_of(rows: torch.Tensor, batch: int | None = None, mass: float = of_fitted) -> Sample:
            # A copy has its own, aligned memory. A view would begin at a place that depends on the ranks, and matrix
            # products would be added in another order.
            parts = {name: t[rows] for name, t in others.items()}
            if self._deal and batch is not None:
                parts = self._deal(batch, parts)
            velocities = {"v": parts["z"][:, -particles.v.shape[1] :]}
            scale = 1 if batch is None else self.scale
            return Sample(**{**velocities, **parts, "share": scale * (parts["share"] / mass)})

        if self._choosing:
            fitted = [sample_of(order[a:b]) for a, b in itertools.pairwise(edges[:-1])]
            return TrainingData.choosing(fitted, sample_of(order[edges[-2] :], mass=masses[-1]))
        fitted_edges = edges[:-1] if self.held_out else edges
        fitted_batches, everything = (Batches(sample_of, order, of) for of in (fitted_edges, edges))
        return TrainingData.in_batches(fitted_batches, everything, self.scale)

    # -- the move ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _move(
        self, particles: Particles, duration: float, start: StepStart, iterations: int
    ) -> tuple[Particles, CollisionReport]:
        """Move the particles along h u. log f follows the determinant of this map."""
        carried = self.carried(particles, duration, start)
        sums = self.comm.sum(carried.sums).sum(0)
        mean_square, mean_rest, drift_error, of_all, square_of_shares, *of_wave = sums
        found = [carried.change, carried.disagreement]
        (mean, error), (wrong, wrong_error) = (
            over_certifying(part, particles, self.comm) if self.held_out else (0.0, 0.0) for part in found
        )
        energy, fitted = self.settings.mass * particles.total_weight, duration / self.order
        report = CollisionReport(
            dissipation=energy * float(mean_square) / self.operator.collision_strength,
            min_eigenvalue=self.comm.min(carried.smallest),
            objective=float(fitted / (2 * self.operator.collision_strength) * mean_square + mean_rest),
            inner_iterations=iterations,
            substeps=1,
            drift_error=float(drift_error) if self.settings.exact else float("nan"),
            collision_free_energy=energy * mean,
            collision_free_energy_error=energy * error,
            sample_free_energy=energy * float(of_all),
            disagreement=energy * wrong,
            disagreement_error=energy * wrong_error,
            wave=self.wave.exchange(np.array(of_wave), duration, 1 / square_of_shares) if self.wave else WaveExchange(),
        )
        return particles.move(carried.v, carried.log_f), report

    def carried(self, particles: Particles, duration: float, start: StepStart) -> Carried:
        """The particles of this rank after the move along h u."""
        field = self.field(particles, duration, start)
        v, log_f, share = torch.empty_like(particles.v), torch.empty_like(particles.log_f), particles.shares()
        fitted = duration / self.order
        exact = self.settings.exact(start.time + fitted) if self.settings.exact else None
        smallest = torch.full((), np.inf, dtype=v.dtype, device=v.device)
        change, disagreement = (torch.zeros(len(v), dtype=torch.float64, device=v.device) for _ in range(2))
        columns = 5 + (self.wave.TERMS if self.wave else 0)
        averages = torch.zeros(2, columns, dtype=torch.float64, device=v.device)
        for rows in passes(len(particles.x), self.chunk):
            u, jacobian, score = field(rows)
            log_det = tracked_log_det(jacobian, duration, self.logdet)
            v[rows] = particles.v[rows] + duration * u
            log_f[rows] = particles.log_f[rows] - log_det
            if len(u):
                eigenvalues = smallest_eigenvalue(linear_part(jacobian, duration))
                smallest = torch.minimum(smallest, eigenvalues.min())  # torch.minimum keeps a NaN
            terms = torch.zeros(len(u), columns, dtype=torch.float64, device=v.device)
            terms[:, 0] = (u.double() ** 2).sum(1)
            seen = log_det if self.order == 1 else tracked_log_det(jacobian, fitted, self.logdet)
            reached = particles.v[rows] + fitted * u
            terms[:, 1] = 0.5 * (reached.double() ** 2).sum(1) - self.temperature * seen.double()
            if exact is not None:
                wanted = self.operator.control(reached, exact.score_v(particles.x[rows], reached))
                terms[:, 2] = ((u - wanted).double() ** 2).sum(1)
            exact_log_det = log_det if self.logdet == "exact" else tracked_log_det(jacobian, duration, "exact")
            work = ((particles.v[rows] + 0.5 * duration * u).double() * u).sum(1)
            change[rows] = duration * work - self.temperature * exact_log_det  # ½|ṽ + h u|² − ½|ṽ|² − T log det
            terms[:, 3] = change[rows]
            if score is not None:
                stein = (jacobian.diagonal(dim1=1, dim2=2).sum(1) + (u * score).sum(1)).double()
                disagreement[rows] = duration * self.temperature * stein
            terms[:, 4] = share[rows]
            if self.wave:
                terms[:, 5:] = self.wave.terms(particles.x[rows], reached, u)
            averages += summed_finely(share[rows, None] * terms)
        return Carried(v, log_f, change, disagreement, averages.cpu().numpy(), float(smallest))
