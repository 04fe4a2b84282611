"""The control field from the log-density that the particles carry: a regression, then the functional in closed form.

With ψ fitted to the carried log f, Stein's identity E[∇v·u] = −E[u·∇v log f] takes the noise of positions out of the
linear part of the functional: for every u that is a gradient of the functions g,

    J(u)/h = mean[ ½ a |u|² + (v + T ∇v ψ̄)·u − (T/h) log det(I + h ∇v u) + T ∇v·u ],    a = 1/κ + h

has the expectation of the JKO functional if ∇v ψ̄ = ∇v log f. What is left of sampling noise is of the order h |∇v u|².

ψ̄ is ψ corrected by monomials of v alone so that on their gradients the functional is, but for terms of the order h,
the plain one of the sample itself (implicit score matching, A. Hyvärinen, J. Mach. Learn. Res. 6 (2005) 695): nothing
else ties the sample's moments to ψ, and temperature would drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpc_kjko.errors import SolverFailure
from hpc_kjko.inner.control import determinant
from hpc_kjko.inner.objective import DensityObjective, in_pieces, linear_part
from hpc_kjko.inner.potential import CACHED, combined
from hpc_kjko.inner.solvers.base import Sample, Solver, TrainingData
from hpc_kjko.inner.solvers.normalisation import Normalisation
from hpc_kjko.inner.solvers.trainer import Trainer
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import MOMENTS_UNIT, in_order, rounded
from hpc_kjko.particles.state import at_once, passes

#: For the conditioning of normal equations, in units of their diagonal: the data have no noise. The other is for what
#: rounding may leave in sums.
RIDGE, ROUNDING = 1e-8, 1e-10
#: A log f that a fit misses by more than this is an outlier to it. Its weight falls with the square of the distance.
OUTLYING = 0.5
#: The step of Newton's method that changes u by less than this part of it, in mean square, is the last.
CONVERGED = 1e-3
MAX_NEWTON, MAX_REWEIGHTED = 20, 4
#: The hidden layers are left as they are once ψ misses log f by no more than this, root mean square over a batch.
FAITHFUL = 2e-3
#: What E|∇v∇v (ψ + ½|v|²/T)|² costs beside the squares that ψ misses, in units of T²: this times (κ h')² with the step
#: h' of the functional, and at most. For the field u along that gradient it is this part of E|h' ∇v u|². Diffusion
#: leaves nothing in log f that is narrower than √(κh'T): such structure is roughness, and makes more of itself. Of a
#: mode p the fit keeps 1/(1 + 0.1 (κh'T p²)²), an error of the order of the step's own.
BENT, MOST_BENT = 0.1, 0.004
#: c and k are solved for on no more than so many batches, others in every step: log f has no noise. What ties ψ̄ to the
#: sample is averaged over all particles.
FITTED_BATCHES = 16


@dataclass(frozen=True)
class Sums:
    """What the functional is made of, of the functions that depend on v: averages over the fitted particles.

    Attributes:
        gram: E[∇g·∇g] [M, M]; bending: E[∇∇g : ∇∇g] [M, M].
        laplacian: E[Δg] [M].
        mass: the part of the whole mass that these particles have.
    """

    gram: np.ndarray
    bending: np.ndarray
    laplacian: np.ndarray
    mass: float


@dataclass(frozen=True)
class BestDensity:
    """The c of penalised least squares over some particles.

    Attributes:
        coefficients: c of all of ψ's functions, float64.
        shares: those that c was found with, smaller where an earlier one missed by more than OUTLYING.
        mass: the sum of those over all ranks.
        residual: root mean square of what is missed, with these shares.
    """

    coefficients: torch.Tensor
    shares: list[torch.Tensor]
    mass: float
    residual: float


class RegressionSolver(Solver):
    """Fits ψ to the carried log f, then finds the minimiser of the functional among the gradients of ψ's functions.

    The hidden layers take some of Adam's steps on the mean of (ψ − log f)², each on another batch of the particles, at
    the c that is best for that batch: log f is exact at every particle, so a part of them tells as much as all do.
    Then c is solved for on all fitted particles, with little weight for those whose log f is far off, and k, the
    coefficients of Φ, by Newton's method.
    """

    def __init__(
        self,
        objective: DensityObjective,
        comm: Communicator,
        *,
        iterations: int,
        first_iterations: int,
        learning_rate: float,
    ):
        self.comm, self.control = comm, objective.control
        self.operator = objective.operator
        self.iterations, self.first_iterations = iterations, first_iterations
        self._normalisation = Normalisation(
            objective.lengths, self.control.space_dims + self.control.velocity_dims, objective.mass, comm.device
        )
        #: Particles handled at a time: whole pieces of those that are added up together.
        pieces = max(1, at_once(CACHED, objective.trained[0].device) // objective.together)
        self._at_once = pieces * objective.together
        #: How many fits were made: it says which batches c and k are solved for on.
        self._turn = 0
        self.trainer = Trainer(objective, comm, learning_rate)
        self._together = objective.together
        #: Whether the last step used ψ.
        self.trusted = True
        #: c of ψ + ½|v|²/T, which is what is fitted: near equilibrium it is a constant. And that of ψ̄, of the functions
        #: of v.
        self.density, self.corrected = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        #: By how much ψ̄'s coefficients of monomials of v alone, and its constant, exceed ψ's.
        self._correction, self._constant = torch.zeros(0, dtype=torch.float64), 0.0

    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        made, self.trusted = 0, not stiffer
        self._turn += self.trusted
        if self.trusted:
            wanted = [self._wanted(fold) for fold in data.folds]
            made = self._train(data, wanted, self.first_iterations if self.trainer.is_cold else self.iterations)
        fitted = self._fitted(len(data.folds))
        samples = [data.folds[k] for k in fitted]
        sums = self._averages(samples)
        if self.trusted:
            bent = min(BENT * (self.operator.collision_strength * step) ** 2, MOST_BENT)
            self.density = self._best_density(
                [(self._functions_of(data.folds[k].z), wanted[k], data.folds[k].share) for k in fitted],
                bent * self.operator.temperature**2 * sums.bending[: self.control.shared, : self.control.shared],
            ).coefficients
        self._tie([*data.folds, *data.certify])
        return made + self._fit_field(samples, sums, step)

    def _fitted(self, number: int) -> list[int]:
        """Which of the batches c and k are solved for on in this step: the next ones in turn."""
        return [(self._turn * FITTED_BATCHES + k) % number for k in range(min(number, FITTED_BATCHES))]

    @torch.no_grad()
    def log_densities(self, z: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ψ and ψ̄ [n] at inputs z and velocities v: with the same mean over all particles, but for what is known of
        ∫e^ψ̄; float64."""
        fitted = combined(self.control.functions(z).double(), self.density) - self._energy(v)
        return fitted, fitted + combined(self.control.velocity_monomials(z.double()), self._correction) + self._constant

    def _energy(self, v: torch.Tensor) -> torch.Tensor:
        """½|v|²/T [n], float64."""
        return 0.5 * (v.double() ** 2).sum(1) / self.operator.temperature

    def state(self) -> dict[str, np.ndarray]:
        found = {"density": self.density, "field": self.control.coefficients}
        arrays = {f"regression/{name}": tensor.cpu().numpy().copy() for name, tensor in found.items()}
        return {**self.trainer.state(), **arrays, "regression/turn": np.array(self._turn)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.trainer.load(arrays)
        self._turn = int(arrays["regression/turn"])
        self.density = torch.from_numpy(np.array(arrays["regression/density"])).to(self.control.coefficients)
        self.control.coefficients.copy_(torch.from_numpy(np.array(arrays["regression/field"])))

    def _functions_of(self, z: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """g [n, M] at some of the inputs z, float64."""
        return lambda rows: self.control.functions(z[rows]).double()

    # -- the density -------------------------------------------------------------------------------------------------

    def _wanted(self, sample: Sample) -> torch.Tensor:
        """log f + ½|v|²/T [n], float64."""
        assert sample.log_f is not None
        return sample.log_f + self._energy(sample.v)

    def _train(self, data: TrainingData, wanted: list[torch.Tensor], iterations: int) -> int:
        """Adam's steps on the hidden layers, each on a batch; returns how many were made."""
        before, width = self.trainer.steps_made, self.control.width
        monomials: dict[int, torch.Tensor] = {}  # of each batch: the same in all steps
        for k in range(before, before + iterations):
            number = k % len(data.folds)
            fold, log_f = data.folds[number], wanted[number]
            if number not in monomials:
                monomials[number] = self.control.monomials(fold.z).double()
            with torch.no_grad():
                layers = self.control.hidden_layers(fold.z)
                g = torch.cat([layers[-1].double(), monomials[number]], dim=1)
            best = self._best_density([(g.__getitem__, log_f, fold.share)])
            if not best.mass > 0:  # a batch of few particles, all elsewhere
                continue
            c = best.coefficients
            left = log_f - combined(monomials[number], c[width:])
            # by a whole number: the gradient stays a multiple of the unit that sums are rounded to
            self.trainer.backward([(fold.z, left, best.shares[0], c[:width], *layers)], 0.0, factor=len(data.folds))
            self.trainer.descend()
            if best.residual <= FAITHFUL:
                return k + 1 - before
        return iterations

    @torch.no_grad()
    def _best_density(
        self,
        samples: Sequence[tuple[Callable[[slice], torch.Tensor], torch.Tensor, torch.Tensor]],
        penalty: np.ndarray | None = None,
    ) -> BestDensity:
        """The c of penalised least squares over some particles, again and again while outliers pull at it. Collective.

        Args:
            samples: g [n, M] at some rows, float64; what is wanted [n]; shares [n].
            penalty: of the coefficients of functions that depend on v, a quadratic form; none in the fits that train.
        """
        trusted = [share.double() for *_, share in samples]
        for attempt in range(MAX_REWEIGHTED):
            (normal,) = self._summed(
                self._normal, [(g, wanted, share) for (g, wanted, _), share in zip(samples, trusted, strict=True)]
            )
            gram, load = normal[:, :-1], normal[:, -1]
            mass = float(gram[-1, -1])  # E[1·1]
            if penalty is not None:
                gram[: len(penalty), : len(penalty)] += mass * penalty
            c = torch.from_numpy(self._solved(gram, load)).to(self.control.coefficients)
            missed = [self._missed(c, g, wanted) for g, wanted, _ in samples]
            square, outliers = self._summed(self._sums_missed, list(zip(missed, trusted, strict=True)))
            if not outliers or attempt == MAX_REWEIGHTED - 1:
                break
            trusted = [
                share.double() * (OUTLYING / part.clamp(min=OUTLYING)).square()
                for (*_, share), part in zip(samples, missed, strict=True)
            ]
        return BestDensity(c, trusted, mass, math.sqrt(float(square[0, 0]) / mass) if mass > 0 else 0.0)

    def _missed(self, c: torch.Tensor, g: Callable[[slice], torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        pieces = passes(len(wanted), self._at_once)
        return torch.cat([(combined(g(rows), c) - wanted[rows]).abs() for rows in pieces])

    def _sums_missed(self, missed: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        """The sum of squares, and how many are outliers."""
        square = self._products((share * missed)[:, None], missed[:, None])
        return [square, (missed > OUTLYING).sum()[None].double()]

    def _normal(self, g: torch.Tensor, wanted: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        """E[g gᵀ] and E[g log f], beside each other."""
        return [self._products(share[:, None] * g, torch.cat([g, wanted[:, None]], dim=1))]

    # -- the field ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _tie(self, samples: list[Sample]) -> None:
        """Set the coefficients of ψ̄ + ½|v|²/T so that E[∇m·∇ψ̄] = −E[Δm], for every monomial m of v alone.

        Without ψ, where it is not trusted, they are the coefficients of these monomials alone.
        """
        known = np.zeros(len(self.control.coefficients))
        if self.trusted:
            known[: self.control.shared] = self.density[: self.control.shared].cpu().numpy()
        low, coefficients = self.control.of_velocity, torch.from_numpy(known).to(self.control.coefficients)
        at = torch.from_numpy(low - self.control.width).to(coefficients.device)
        axes, of_box = self.control.velocity_dims, 2 * len(self.control.periods or ())  # inputs of a periodic x

        def sums(z: torch.Tensor, v: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            first, second = (part[..., at].double() for part in self.control.monomial_derivatives(z))
            share = share.double()[:, None, None]
            others = [v.double()[..., None], self.control.gradient(z, coefficients).double()[..., None]]
            gram = self._products(share * first, torch.cat([first, *others], dim=2))
            laplacian = self._products(share, second[:, :axes].sum(1, keepdim=True))[0]
            own = torch.cat([self.control.velocity_monomials(z.double()), torch.ones_like(share[:, 0])], dim=1)
            y = torch.cat([z.double()[:, of_box:], torch.ones_like(share[:, 0])], dim=1)
            moments = self._products(share[:, 0] * y, y)
            return [gram, laplacian, self._products(share[:, 0], own)[0], moments]

        found = self._summed(sums, [(sample.z, sample.v, sample.share) for sample in samples])
        products, laplacian, (*mean, mass), moments = found
        gram, drag, along = products[:, :-2], products[:, -2], products[:, -1]
        correction = self._solved(gram, drag / self.operator.temperature - laplacian - along)
        known[low] += correction
        self.corrected = torch.from_numpy(known).to(self.control.coefficients)
        if self.trusted:
            self._correction = torch.from_numpy(correction).to(self.control.coefficients)
            self._constant = -float(correction @ np.array(mean)) / float(mass)
            self._constant -= self._excess_mass(moments[-1, :-1] / mass, moments[:-1, :-1] / mass)

    def _excess_mass(self, mean: np.ndarray, square: np.ndarray) -> float:
        """What is known of log(∫e^ψ̄/∫f), from E[y] and E[y yᵀ] of coordinates other than a box's. Collective."""

        def tied(places: torch.Tensor) -> torch.Tensor:
            x, v = places[:, : self.control.space_dims], places[:, self.control.space_dims :]
            z = self.control.features(x, v).to(self.control.layers[0].weight.dtype)
            return self.log_densities(z, v)[1]

        with in_order(self._together):
            return float(self.comm.bcast(self._normalisation.excess(tied, mean, square)))

    @torch.no_grad()
    def _fit_field(self, samples: list[Sample], sums: Sums, step: float) -> int:
        """Set k, the coefficients of Φ, to the minimiser; returns the number of passes over the particles.

        Where ψ is not trusted, u is a gradient of monomials of v alone.
        """
        mass, corrected = sums.mass, self.corrected.cpu().numpy()
        a = 1 / self.operator.collision_strength + step
        force = self.operator.temperature * (sums.gram @ corrected + sums.laplacian)
        hessian = a * sums.gram + step * self.operator.temperature * sums.bending
        free = np.full(len(corrected), self.trusted)
        free[self.control.of_velocity] = True

        def newton(gradient: np.ndarray) -> np.ndarray:
            change = np.zeros_like(gradient)
            change[free] = -self._solved(hessian[np.ix_(free, free)], gradient[free])
            return change

        # From u ≡ 0, where J is 0 and no pass is needed to know its gradient.
        k, lowest, made = np.zeros_like(corrected), 0.0, 1
        change = newton(force - self.operator.temperature * sums.laplacian)
        for _ in range(MAX_NEWTON):
            if not np.isfinite(change).all():
                raise SolverFailure("the objective is no longer finite: reduce time.step or method.learning_rate")
            trial = k + change
            if self.comm.bcast(bool(change @ sums.gram @ change <= CONVERGED**2 * (k @ sums.gram @ k))):
                k = trial  # what is left is smaller by h |∇v u| than this was
                break
            pull, log_det = self._pull(samples, trial, step, mass)
            made += 1
            value = 0.5 * a * trial @ sums.gram @ trial + trial @ force - self.operator.temperature / step * log_det
            if not self.comm.bcast(bool(value <= lowest + ROUNDING * self.operator.temperature / step)):
                change = 0.5 * change
                continue
            k, lowest = trial, value
            change = newton(a * sums.gram @ k + force - self.operator.temperature * pull)
        self.comm.bcast_array(k)
        self.control.coefficients.copy_(torch.from_numpy(k))
        return made

    @torch.no_grad()
    def _averages(self, samples: list[Sample]) -> Sums:
        found = self._summed(self._field_sums, [(sample.z, sample.share) for sample in samples])
        gram, bending, laplacian, (mass,) = found
        return Sums(gram / mass, bending / mass, laplacian / mass, float(mass))

    def _field_sums(self, z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
        first, second = (part.double() for part in self.control.derivatives(z))
        share, axes = share.double()[:, None, None], self.control.velocity_dims
        twice = torch.tensor([1.0] * axes + [2.0] * (second.shape[1] - axes), device=z.device)  # the mixed ones
        bending = self._products(share * twice[:, None] * second, second)
        laplacian = self._products(share, second[:, :axes].sum(1, keepdim=True))
        gram = self._products(share * first, first)
        return [gram, bending, laplacian[0], self._products(share, torch.ones_like(share))[0]]

    def _pull(self, samples: list[Sample], k: np.ndarray, step: float, mass: float) -> tuple[np.ndarray, float]:
        """E[tr (I + h ∇v u)⁻¹ ∇∇g] [M] and E[log det(I + h ∇v u)] at the field of k: the latter −∞ where the map turns
        orientation at some particle."""
        coefficients = torch.from_numpy(k).to(self.control.coefficients)

        def sums(z: torch.Tensor, share: torch.Tensor) -> list[torch.Tensor]:
            second, share = self.control.derivatives(z)[1].double(), share.double()
            matrix = linear_part(self.control.matrix(combined(second, coefficients)), step)
            det = determinant(matrix)
            turned = ~(det > 0)
            matrix[turned] = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
            log_det = torch.log(torch.where(turned, 1.0, det))
            inverse = 1 / matrix if matrix.shape[1] == 1 else torch.linalg.inv(matrix)
            later, earlier = self.control.pairs.to(z.device)
            weights = torch.where(later == earlier, 1.0, 2.0) * inverse[:, later, earlier]
            pull = self._products((share[:, None] * weights)[:, :, None], second)
            total = self._products(share[:, None, None], log_det[:, None, None])
            return [pull[0], total[0], turned.sum()[None].double()]

        pull, log_det, turned = self._summed(sums, [(sample.z, sample.share) for sample in samples])
        return pull / mass, -np.inf if turned[0] > 0 else float(log_det[0]) / mass

    # -- sums --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _summed(
        self, function: Callable[..., list[torch.Tensor]], samples: Sequence[tuple[Any, ...]]
    ) -> list[np.ndarray]:
        """Sums over the particles of all ranks, of what ``function`` returns for some of them. Collective.

        Args:
            samples: arguments of the function for all rows, the last a tensor [n]; some may be functions of rows.
        """
        total: list[torch.Tensor] = []
        with in_order(self._together):
            for sample in samples:
                for rows in passes(len(sample[-1]), self._at_once):
                    found = function(*(part(rows) if callable(part) else part[rows] for part in sample))
                    total = [one + other for one, other in zip(total, found, strict=True)] if total else found
        summed = self.comm.sum(torch.cat([part.flatten() for part in total]).cpu().numpy())
        edges = np.cumsum([part.numel() for part in total])[:-1]
        return [part.reshape(like.shape) for part, like in zip(np.split(summed, edges), total, strict=True)]

    def _products(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Σ over particles (and what else each has) of products [k, m], from [n, ..., k] and [n, ..., m], float64.

        The rows of a piece are added up by one matrix product, then rounded.
        """
        pieces = [in_pieces(part.flatten(1), self._together) for part in (left, right)]
        one, other = (
            part.view(len(part), -1, like.shape[-1]) for part, like in zip(pieces, (left, right), strict=True)
        )
        return rounded(torch.bmm(one.mT, other), MOMENTS_UNIT).sum(0)

    def _solved(self, matrix: np.ndarray, load: np.ndarray) -> np.ndarray:
        """The solution of normal equations, the same on all ranks. Collective."""
        unit = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
        scaled = matrix / unit[:, None] / unit + np.diag(RIDGE + ROUNDING / unit**2)
        if not np.isfinite(scaled).all():
            raise SolverFailure(
                "log f, a velocity or the network is no longer finite: reduce time.step or method.learning_rate"
            )
        solution = np.linalg.solve(scaled, load / unit) / unit
        self.comm.bcast_array(solution)  # last bits may differ between machines
        return solution
