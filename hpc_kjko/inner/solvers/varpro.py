"""Variable projection: the output layer of the control field is found in closed form. In between, Adam trains the
hidden layers.

With features g(z) the field is u = C g, and the JKO functional per unit of h is, with a = 1/κ + h,

    J(C)/h = ½ a tr(C G Cᵀ) + tr(C bᵀ) − (T/h) E[ℓ],    G = E[g gᵀ],  b_k = E[v_k g]

For the linear ℓ it is quadratic in C. For the exact ℓ, damped Newton steps are made. With B = (I + h ∇v u)⁻¹ and q_k =
Σ_j B_jk ∂g/∂v_j, row k of the gradient is a C_k G + b_k − T E[q_k], and the matrix block (k, m) of the Hessian is a G
δ_km + h T E[q_m q_kᵀ]. The use in this functional is ours. The idea of variable projection is by G. H. Golub and V.
Pereyra, doi:10.1137/0710036.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.control import determinant
from hpc_kjko.inner.objective import JKOObjective, linear_part
from hpc_kjko.inner.solvers.base import Sample, Solver, TrainingData
from hpc_kjko.inner.solvers.trainer import Trainer
from hpc_kjko.kernels.objective import fused, moments
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import FINER, MOMENTS_UNIT, in_order, rounded, rounded_finely
from hpc_kjko.particles.state import passes

#: Ridges on the coefficients of the hidden features, in units of a · mean diag G. The last one leaves only the affine
#: field. With smaller ridges, coefficients of thousands cancel on the fitted particles but move other particles far
#: away.
RIDGES = (*(10.0**k for k in range(-5, 2)), 1e3, math.inf)
#: After a failed fit, the smallest ridge of the next fit is this many times larger.
STIFFER = 1e3
#: A step may raise J by this fraction, because of rounding.
TOLERANCE = 1e-10
#: Newton's method ends with a step that promises to lower J by less than this fraction. The next would promise its
#: square.
LAST_STEP = 1e-4
#: Negative curvature beyond this, in units of the largest, is more than a rounding error.
NEGATIVE = 1e-5
MAX_NEWTON = 20
#: Adam steps between two evaluations of the held-out objective, and the number of such rounds without gain that end
#: training.
ROUND, PATIENCE = 10, 3
#: The learning rate of the output layer in these steps, as a fraction of that of the hidden layers.
OUTPUT_RATE = 0.2


@dataclass(frozen=True)
class Moments:
    """Sums over a sample at some C. J and its derivatives are computed from them.

    Attributes:
        gram: G [M, M]; load: b [dv, M]. Both are independent of C.
        curvature: E[q_m q_kᵀ], arranged as in the Hessian [dv M, dv M], at the C where Newton's method began.
        pull: E[q_k] [dv, M]; log_det: E[ℓ], −∞ if the map reverses orientation at some particle.
    """

    gram: np.ndarray
    load: np.ndarray
    curvature: np.ndarray
    pull: np.ndarray
    log_det: float

    @property
    def is_empty(self) -> bool:
        """Whether the sample has no particles. Then the mean of 1 · 1 is not 1."""
        return not self.gram[-1, -1] > 0


@dataclass(frozen=True)
class _Functional:
    """J/h on a sample, as a function of C [dv, M]."""

    step: float
    a: float
    temperature: float

    def value(self, c: np.ndarray, at: Moments) -> float:
        quadratic = 0.5 * self.a * np.sum((c @ at.gram) * c) + np.sum(c * at.load)
        return float(quadratic - self.temperature / self.step * at.log_det)

    def gradient(self, c: np.ndarray, at: Moments) -> np.ndarray:
        return self.a * c @ at.gram + at.load - self.temperature * at.pull

    def hessian(self, at: Moments) -> np.ndarray:
        """The Hessian of J. In several dimensions it is made convex: −log det has negative curvature along
        antisymmetric ∇v u.
        """
        hessian = self.a * np.kron(np.eye(len(at.load)), at.gram) + self.step * self.temperature * at.curvature
        if len(at.load) == 1:
            return hessian
        values, vectors = np.linalg.eigh(hessian)
        if values[0] > -NEGATIVE * values[-1]:
            return hessian
        return (vectors * np.abs(values)) @ vectors.T


class VarproSolver(Solver):
    """The output layer minimises J exactly, for the hidden layers that Adam has trained.

    Adam trains the hidden layers and, slowly, an output layer C of its own. It resumes from both in the next time step.
    The exact C follows the noise of the present particles, and it is zero where the affine field is best. The hidden
    layers would learn less from it (docs/research.md). Each Adam step uses the gradient on one fold of the particles
    after another, through the objective that DistributedDataParallel wraps. Training begins with the affine field. The
    parameters of the round with the lowest held-out objective are kept. Then C is solved for once, on all fitted
    particles. The ridge is the one with the lowest held-out objective. u ≡ 0 and the affine field are among the
    candidates. G and the gradient are float64 sums.

    A cold start keeps its last round instead. From a Gaussian nothing is better than the affine field. To go back to it
    would leave the next steps with random, untrained features. All other steps keep their best round: one bad round
    near equilibrium would lose the trained features for good.
    """

    def __init__(
        self,
        objective: JKOObjective,
        comm: Communicator,
        *,
        iterations: int,
        first_iterations: int,
        learning_rate: float,
    ):
        self.comm, self.control = comm, objective.control
        self.operator = objective.operator
        self.logdet = objective.logdet
        self.iterations, self.first_iterations = iterations, first_iterations
        #: The C that Adam has reached, once it has made steps.
        self._trained_coefficients: torch.Tensor | None = None
        *hidden, output = self.control.layers
        #: The coefficients with a ridge: all but those of the affine field.
        self._shrunk = np.arange(self.control.coefficients.shape[1]) < (output.in_features if hidden else 0)
        self._has_features = bool(hidden)
        features = [parameter for layer in hidden for parameter in layer.parameters()]
        rest = [*output.parameters(), *([self.control.skip] if self.control.skip is not None else [])]
        rates = [
            {"params": features, "lr": learning_rate},
            {"params": rest, "lr": learning_rate * OUTPUT_RATE},
        ]
        self.trainer = Trainer(objective, comm, [group for group in rates if group["params"]])
        self._together, self._settings = objective.together, objective.settings

    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        iterations = (self.first_iterations if self.trainer.is_cold else self.iterations) if self._has_features else 0
        made = self._project(data, step, affine=True) if self.trainer.is_cold and iterations else 0
        return made + self._train(data, step, iterations) + self._project(data, step, stiffer)

    def _train(self, data: TrainingData, step: float, iterations: int) -> int:
        """Make Adam steps until the held-out objective has not fallen for long; returns the number of steps."""
        if not iterations:
            return 0
        cold, before = self.trainer.is_cold, self.trainer.steps_made
        if self._trained_coefficients is not None:
            self.control.coefficients = self._trained_coefficients
        lowest, best, best_at = math.inf, [], 0
        if data.held_out:
            lowest, best = self.trainer.value([data.select], step), self.trainer.kept()
        for first in range(0, iterations, ROUND):
            made = min(first + ROUND, iterations)
            for k in range(first, made):
                fold = data.folds[(before + k) % len(data.folds)]
                self.trainer.backward([fold.rows()], step, factor=data.factor)
                self.trainer.descend()
            if not data.held_out:
                continue
            value = self.trainer.value([data.select], step)
            if value < lowest:
                lowest, best, best_at = value, self.trainer.kept(), made
            elif made - best_at >= PATIENCE * ROUND:
                break
        if data.held_out and not cold:
            self.trainer.restore(best)
        self._trained_coefficients = self.control.coefficients
        return made

    def state(self) -> dict[str, np.ndarray]:
        if self._trained_coefficients is None:
            return self.trainer.state()
        return {**self.trainer.state(), "trained_coefficients": self._trained_coefficients.cpu().numpy()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.trainer.load(arrays)
        trained = arrays.get("trained_coefficients")
        self._trained_coefficients = None if trained is None else torch.from_numpy(np.array(trained))

    @torch.no_grad()
    def _project(self, data: TrainingData, step: float, stiffer: int = 0, affine: bool = False) -> int:
        """Set the output layer to the minimiser; returns the number of passes over the particles."""
        functional = _Functional(step, 1 / self.operator.collision_strength + step, self.operator.temperature)
        c = self.control.coefficients.double().cpu().numpy()
        fit, select = self._moments(data, c, step)
        made = 1
        if not (math.isfinite(fit.log_det) and math.isfinite(select.log_det)):
            c = np.zeros_like(c)
            fit, select = self._moments(data, c, step)
            made += 1
        rounding = 0.1 * torch.finfo(data.select.z.dtype).eps * self.operator.temperature / step
        hessian = functional.hessian(fit)  # kept: gram and curvature are those of the starting point
        ridge = math.inf if affine else self._best_ridge(functional, c, fit, select, hessian, stiffer)
        for _ in range(MAX_NEWTON):
            change, penalty = self._newton_step(functional, c, fit, hessian, ridge)
            self.comm.bcast_array(change)
            now = functional.value(c, fit) + 0.5 * np.sum(penalty * c * c)
            if not math.isfinite(now) or not np.isfinite(change).all():
                raise SolverFailure("the objective is no longer finite: reduce time.step or method.learning_rate")
            promised = 0.5 * change.ravel() @ hessian @ change.ravel()
            if promised <= LAST_STEP * abs(now) + rounding:  # another pass would bring no gain
                c, log_det = c + change, select.log_det + step * float(np.sum(select.pull * change))
                select = replace(select, log_det=log_det)
                break
            for halvings in range(MAX_NEWTON):
                trial = c + 0.5**halvings * change
                fit_there, select_there = self._moments(data, trial, step, (fit, select))
                made += self.logdet == "exact"
                value = functional.value(trial, fit_there) + 0.5 * np.sum(penalty * trial * trial)
                # For a new ridge, J may be higher at the first step than at the start. So this step is taken without a
                # test.
                downhill = value <= now + TOLERANCE * abs(now) or (ridge == math.inf and c[:, self._shrunk].any())
                if downhill and math.isfinite(value) and math.isfinite(select_there.log_det):
                    break
            c, fit, select = trial, fit_there, select_there
            if self.logdet == "linear":
                break
        if not select.is_empty and functional.value(c, select) > 0:  # u ≡ 0 is better
            c = np.zeros_like(c)
        self.control.coefficients = torch.from_numpy(c).to(self.control.coefficients)
        return made

    def _best_ridge(
        self,
        functional: _Functional,
        c: np.ndarray,
        fit: Moments,
        select: Moments,
        hessian: np.ndarray,
        stiffer: int,
    ) -> float:
        """The ridge with the lowest held-out objective, by the quadratic model of the held-out particles at C."""
        ridges = [ridge for ridge in RIDGES if ridge >= RIDGES[0] * STIFFER**stiffer]
        if select.is_empty or not self._shrunk.any():
            return ridges[0]
        gradient, held_out = functional.gradient(c, select).ravel(), functional.hessian(select)
        changes = [self._newton_step(functional, c, fit, hessian, ridge)[0].ravel() for ridge in ridges]
        values = [functional.value(c, select) + gradient @ move + 0.5 * move @ held_out @ move for move in changes]
        return ridges[int(self.comm.bcast(int(np.argmin(values))))]  # the last bits may differ between machines

    def _newton_step(
        self, functional: _Functional, c: np.ndarray, fit: Moments, hessian: np.ndarray, ridge: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The Newton step with a ridge, and the weight of the ridge on each coefficient: both [dv, M]."""
        gradient = functional.gradient(c, fit).ravel()
        shrunk = np.broadcast_to(self._shrunk, c.shape).ravel()
        jitter = 1e-12 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
        if ridge == math.inf:
            change = np.where(shrunk, -c.ravel(), 0.0)
            left = gradient + hessian @ change
            change[~shrunk] = -np.linalg.solve((hessian + jitter)[np.ix_(~shrunk, ~shrunk)], left[~shrunk])
            return change.reshape(c.shape), np.zeros_like(c)
        unit = functional.a * np.diag(fit.gram)[self._shrunk].mean() if shrunk.any() else 0.0
        penalty = ridge * unit * shrunk
        change = -np.linalg.solve(hessian + jitter + np.diag(penalty), gradient + penalty * c.ravel())
        return change.reshape(c.shape), penalty.reshape(c.shape)

    def _moments(
        self, data: TrainingData, c: np.ndarray, step: float, known: tuple[Moments, Moments] | None = None
    ) -> tuple[Moments, Moments]:
        """The moments of the fitted and of the held-out particles, by one pass and one allreduce.

        If ``known`` has the moments at another C, only the sums that depend on C are computed (without the curvature).
        """
        dv, m = c.shape
        if known and self.logdet == "linear":
            fitted, held_out = (replace(at, log_det=step * float(np.sum(c * at.pull))) for at in known)
            return fitted, held_out
        shapes = [(dv, m), (3,)] + ([] if known else [(m, m), (dv, m), (dv * m, dv * m)])
        first, *others = (self._local(fold, c, step, not known) for fold in data.folds)
        total = sum(others, first)
        local = torch.stack([total, self._local(data.select, c, step, not known)]).cpu().numpy()
        edges = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        found = []
        for sums, before in zip(self.comm.sum(local), known or (None, None), strict=True):
            pull, (log_det, rest, turned), *whole = (
                part.reshape(shape) for part, shape in zip(np.split(sums, edges), shapes, strict=True)
            )
            if self.logdet == "linear":
                log_det, rest = step * np.sum(c * pull), 0.0
            log_det = -math.inf if turned else float(log_det + rest)
            if before:
                found.append(replace(before, pull=pull, log_det=log_det))
            else:
                gram, load, outer = whole
                curvature = outer.reshape(dv, m, dv, m).transpose(2, 1, 0, 3).reshape(dv * m, dv * m)
                found.append(Moments(gram, load, 0.5 * (curvature + curvature.T), pull, log_det))
        fitted, held_out = found
        return fitted, held_out

    def _local(self, sample: Sample, c: np.ndarray, step: float, whole: bool) -> torch.Tensor:
        """The sums of this rank for :meth:`_moments`, as a flat float64 array on its device."""
        hidden = self.control.layers[0].weight
        if sample.tangents is None and fused(self.control.widths, sample.z, sample.v, sample.share, hidden):
            return self._local_fused(sample, c, step, whole)
        with in_order(self._together):
            return self._local_in_pieces(sample, c, step, whole)

    def _local_in_pieces(self, sample: Sample, c: np.ndarray, step: float, whole: bool) -> torch.Tensor:
        """The sums of :meth:`_local` in torch."""
        dv, m = c.shape
        device = sample.z.device
        coefficients = torch.from_numpy(c).to(sample.z)
        double: dict[str, Any] = {"dtype": torch.float64, "device": device}
        pull, counts = torch.zeros(dv, m, **double), torch.zeros(3, **double)
        gram, load = torch.zeros(m, m, **double), torch.zeros(dv, m, **double)
        outer = torch.zeros(dv * m, dv * m, **double)
        for rows in passes(len(sample.z), self._together):
            z, v, share, tangents, known = sample.rows(rows)
            g, q = self.control.basis(z, tangents)
            if whole and known is not None:
                through = ((share * known).double() @ q.flatten(1).double()).view(dv, m)
                load += rounded(self.operator.temperature * through, MOMENTS_UNIT)
            if self.logdet == "exact":
                # In double precision: for an affine field 1 + h ∇v u is the same number at all particles, and so is its
                # rounding error.
                matrix = linear_part(torch.einsum("njm,km->nkj", q, coefficients).double(), step)
                det = determinant(matrix)
                turned = det <= 0
                counts[:2] += rounded_finely((share * torch.log(torch.where(turned, 1.0, det))).sum())
                counts[2] += turned.sum()
                q = q / det[:, None, None].to(q) if dv == 1 else torch.linalg.inv(matrix).transpose(1, 2).to(q) @ q
            pull += rounded((share.double() @ q.flatten(1).double()).view(dv, m), MOMENTS_UNIT)
            if whole:
                weighted = share[:, None] * g
                gram += rounded(weighted.double().T @ g.double(), MOMENTS_UNIT)
                load += rounded(v.double().T @ weighted.double(), MOMENTS_UNIT)
                if self.logdet == "exact":
                    flat = q.flatten(1)
                    outer += rounded(((share[:, None] * flat).T @ flat).double(), MOMENTS_UNIT)
        parts = (pull, counts, *((gram, load, outer) if whole else ()))
        return torch.cat([part.ravel() for part in parts])

    def _local_fused(self, sample: Sample, c: np.ndarray, step: float, whole: bool) -> torch.Tensor:
        """The sums of :meth:`_local` from the native kernel."""
        *hidden, output = self.control.layers
        width = output.in_features
        w3, skip, b3 = (part.contiguous() for part in torch.from_numpy(c).to(sample.z).tensor_split([width, -1], dim=1))
        parameters = [p for layer in hidden for p in layer.parameters()] + [w3, b3[:, 0]]
        if self.control.skip is not None:
            parameters.append(skip)
        settings = self._settings(step, MOMENTS_UNIT, FINER)
        return moments((sample.z, sample.v, sample.share, sample.known), parameters, settings, whole=whole)
