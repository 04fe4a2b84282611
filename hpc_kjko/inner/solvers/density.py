"""The log-density ψ is fitted to the log f that the particles carry. ψ̄ is ψ corrected to agree with the moments of the
sample.

ψ̄ differs from ψ by monomials of v alone. For fields that are gradients of these monomials, the
functional with ψ̄ equals the plain functional of the sample, up to terms of order h. This is implicit score
matching (A. Hyvärinen, J. Mach. Learn. Res. 6 (2005) 695). Without it nothing would tie the moments of the sample to ψ,
and the temperature would drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hpc_kjko.inner.objective import DensityObjective
from hpc_kjko.inner.solvers.base import Batches, Sample, TrainingData
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.normalisation import Normalisation
from hpc_kjko.inner.solvers.potential_sums import Joined, PotentialSums, Rows
from hpc_kjko.inner.solvers.trainer import Trainer
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import in_order

#: A particle whose log f differs from ψ by more than this is an outlier. Its weight falls with the square of the
#: distance.
OUTLYING = 0.5
MAX_REWEIGHTED = 4
#: The hidden layers are not trained further once the root mean square of ψ − log f over a batch is at most this.
FAITHFUL = 2e-3


@dataclass(frozen=True)
class BestDensity:
    """The coefficients c of penalised least squares over some particles.

    Attributes:
        coefficients: c of all functions of ψ, float64.
        shares: the shares with which c was found. They are smaller for outliers of an earlier c.
        mass: the sum of these shares over all ranks.
        residual: root mean square of the residuals, with these shares.
    """

    coefficients: torch.Tensor
    shares: list[torch.Tensor]
    mass: float
    residual: float


class FittedDensity:
    """ψ and ψ̄, with the hidden layers of their functions.

    Attributes:
        trusted: whether the last fit used ψ. If not, ψ̄ consists of monomials of v alone.
        coefficients: c of ψ + ½|v|²/T. This sum is fitted, because near equilibrium it is constant.
        corrected: the coefficients of ψ̄ + ½|v|²/T, for the functions that depend on v.
    """

    def __init__(self, objective: DensityObjective, comm: Communicator, sums: LeastSquares, learning_rate: float):
        self.comm, self.control, self.operator, self.sums = comm, objective.control, objective.operator, sums
        self._normalisation = Normalisation(
            objective.lengths, self.control.space_dims + self.control.velocity_dims, objective.mass, comm.device
        )
        self._of_potential = PotentialSums(self.control, sums)
        self.trainer = Trainer(objective, comm, learning_rate)
        self.trusted = True
        self.coefficients, self.corrected = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        #: The coefficients of ψ̄ minus those of ψ: for the monomials of v alone, and for the constant.
        self._correction, self._constant = torch.zeros(0, dtype=torch.float64), 0.0

    def solve(self, samples: Sequence[Sample], penalty: np.ndarray) -> None:
        """Set c to the best fit on some particles. Collective.

        Args:
            penalty: a quadratic form of the coefficients of the functions that depend on v.
        """
        fits = [(one.z, self.wanted(one), one.share) for one in samples]
        self.coefficients = self.best(fits, penalty).coefficients

    @torch.no_grad()
    def log_densities(self, z: torch.Tensor) -> torch.Tensor:
        """ψ and ψ̄ [2, n] at inputs z; float64. Both have the same mean over all particles, except for the correction
        of ∫e^ψ̄.
        """
        return self.control.values(z, self.of_both)

    @property
    def of_both(self) -> torch.Tensor:
        """The coefficients of ψ and ψ̄, including −½|v|²/T, as :meth:`PotentialField.values` takes them."""
        control, of_v = self.control, torch.from_numpy(self.control.of_velocity).to(self.coefficients.device)
        higher = 2 * control.velocity_dims
        of_v[-higher:] += control.of_density - control.shared  # they come after all functions of ψ
        both = nn.functional.pad(self.coefficients, (0, higher)).expand(2, -1).clone()
        k, m = torch.triu_indices(control.velocity_dims, control.velocity_dims)
        squares = of_v[control.velocity_dims : -higher][(k == m).to(of_v.device)]
        both[:, squares] -= 0.5 / self.operator.temperature
        both[1, of_v] += self._correction
        both[1, control.of_density - 1] += self._constant
        return both

    def _energy(self, v: torch.Tensor) -> torch.Tensor:
        """½|v|²/T [n], float64."""
        return 0.5 * (v.double() ** 2).sum(1) / self.operator.temperature

    def wanted(self, sample: Sample) -> torch.Tensor:
        """The target values log f + ½|v|²/T [n], float64."""
        assert sample.log_f is not None
        return sample.log_f + self._energy(sample.v)

    def train(self, data: TrainingData, iterations: int) -> int:
        """Make Adam steps on the hidden layers, each on one batch; returns the number of steps."""
        before = self.trainer.steps_made
        for k in range(before, before + iterations):
            fold = data.folds[k % len(data.folds)]
            log_f = self.wanted(fold)
            best = self.best([(fold.z, log_f, fold.share)])
            if not best.mass > 0:  # no particles in this fold, as with very few particles
                continue
            # A whole number as factor keeps the gradient a multiple of the unit to which sums are rounded.
            rows = (fold.z, log_f, best.shares[0], best.coefficients)
            self.trainer.backward([rows], 0.0, factor=data.factor)
            self.trainer.descend()
            if best.residual <= FAITHFUL:
                return k + 1 - before
        return iterations

    @torch.no_grad()
    def best(self, samples: Sequence[Rows], penalty: np.ndarray | None = None) -> BestDensity:
        """The c of penalised least squares over some particles. The fit is repeated while there are outliers, with
        smaller weights for them. Collective.

        Args:
            samples: of each sample inputs z, target values [n], float64, and shares [n].
            penalty: a quadratic form of the coefficients of the functions that depend on v; None in the fits that
                train.
        """
        trusted = [share.double() for *_, share in samples]
        for attempt in range(MAX_REWEIGHTED):
            rows = [(z, wanted, share) for (z, wanted, _), share in zip(samples, trusted, strict=True)]
            normal = self._of_potential.normal(rows)
            gram, load = normal[:, :-1], normal[:, -1]
            mass = float(gram[-1, -1])  # E[1·1]
            if penalty is not None:
                gram[: len(penalty), : len(penalty)] += mass * penalty
            c = torch.from_numpy(self.sums.solved(gram, load)).to(self.control.coefficients)
            missed, square, outliers = self._of_potential.missed(rows, c, OUTLYING)
            if not outliers or attempt == MAX_REWEIGHTED - 1:
                break
            trusted = [
                share.double() * (OUTLYING / part.clamp(min=OUTLYING)).square()
                for (*_, share), part in zip(samples, missed, strict=True)
            ]
        return BestDensity(c, trusted, mass, math.sqrt(square / mass) if mass > 0 else 0.0)

    @torch.no_grad()
    def tie(self, samples: Sequence[Sample] | Batches) -> None:
        """Set the coefficients of ψ̄ + ½|v|²/T so that E[∇m·∇ψ̄] = −E[Δm], for every monomial m of v alone.

        If ψ is not trusted, ψ̄ + ½|v|²/T consists of these monomials alone.
        """
        known = np.zeros(len(self.control.coefficients))
        if self.trusted:
            known[: self.control.shared] = self.coefficients[: self.control.shared].cpu().numpy()
        rows: Sequence[Rows] | Iterator[Joined]
        if isinstance(samples, Batches) and self.control.network.in_use:
            joined = samples.joined(self._of_potential.at_once)
            rows = (Joined((whole.z, whole.share), counts) for whole, counts in joined)
        else:
            rows = [(sample.z, sample.share) for sample in samples]
        found = self._of_potential.of_velocity(rows, known)
        load = found.drag / self.operator.temperature - found.laplacian - found.along
        correction = self.sums.solved(found.gram, load)
        known[self.control.of_velocity] += correction
        self.corrected = torch.from_numpy(known).to(self.control.coefficients)
        if self.trusted:
            self._correction = torch.from_numpy(correction).to(self.control.coefficients)
            mean = found.moments / found.mass
            self._constant = -float(correction @ found.mean) / found.mass
            self._constant -= self._excess_mass(mean[-1, :-1], mean[:-1, :-1])

    def _excess_mass(self, mean: np.ndarray, square: np.ndarray) -> float:
        """The estimate of log(∫e^ψ̄/∫f), from E[y] and E[y yᵀ]. y are the coordinates that are not in a box.
        Collective.
        """

        def tied(places: torch.Tensor) -> torch.Tensor:
            x, v = places[:, : self.control.space_dims], places[:, self.control.space_dims :]
            z = self.control.features(x, v).to(self.control.layers[0].weight.dtype)
            return self.log_densities(z)[1]

        with in_order(self.sums.together):
            return float(self.comm.bcast(self._normalisation.excess(tied, mean, square)))
