"""Tests whether ``sample``, ``log_density`` and ``mass`` of an initial density agree with each other.

A start has a sampler and a log-density, and all results for the entropy need them to agree. Let f0/M be the normalised
density. Let q be any density from which samples can be drawn and which can be evaluated, and φ any bounded function.
Then

    E_sample[ φ q/(f0/M + q) ] = E_q[ φ (f0/M)/(f0/M + q) ]

holds for all φ if and only if the sample has the density f0/M (bridge sampling: X.-L. Meng and W. H. Wong, Statistica
Sinica 6 (1996) 831). Both sides are means of bounded terms, so their standard errors are reliable for any tails of the
density. Here q is a smoothed copy of one half of the sample, and the identity is tested on the other half. Then the two
halves change roles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy  # its submodules are loaded only when they are used
import torch

from hpc_kjko.case import config
from hpc_kjko.errors import UserError
from hpc_kjko.particles.state import Shard, draw
from hpc_kjko.problems import Problem, UserStart

#: Number of particles that are drawn for the test.
SAMPLE = 4096
#: A start is refused if the disagreement is above so many standard errors. By chance this happens to one correct start
#: in a hundred thousand.
CERTAIN = 5.0
#: Number of neighbours that set the smoothing width, and the largest width in units of the width of the whole sample.
_NEIGHBOURS, _WIDEST = 24, 0.5
#: The functions φ are constant beyond this distance, in widths of the sample.
_FAR = 3.0
#: Number of points whose distances to all others are computed at a time.
_CHUNK = 256


def require_consistent_start(case: config.Case, problem: Problem, temperature: float, key: str = "problem") -> None:
    """Test an initial density at the temperature T/m, on particles that are drawn only for the test.

    The sensitivity with 4096 particles, for a Gaussian in two to six dimensions of phase space: the test finds a mean
    that is wrong by 0.15 of the width, a variance that is 1.3 times or 0.8 times the stated one, and a mass that is
    wrong by 5 %. It does not see errors that concern fewer than about a hundredth of the particles.

    Args:
        case: the case.
        problem: the initial density.
        temperature: T/m.
        key: the section of the case that names the initial density.

    Raises:
        UserError: sample and density disagree. The message names ``log_density`` or ``mass``, and the coordinate.
    """
    particles = draw(
        problem,
        Shard.of(SAMPLE, 0, 1),
        start="grid" if case.particles.start == "grid" else "random",
        weights=case.particles.weights,
        cells=case.grid.cells if case.grid else None,
        seed=2**62,  # a seed that a run is unlikely to use
        temperature=temperature,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    log_mass = math.log(problem.mass / problem.mean_density)

    def log_density(z: np.ndarray) -> np.ndarray:
        x, v = torch.from_numpy(z).split([problem.space_dims, problem.velocity_dims], dim=1)
        with torch.no_grad():  # the user's density may have trainable parameters
            found = problem.log_density(x.contiguous(), v.contiguous(), temperature)
        return np.nan_to_num(found.double().numpy() - log_mass, nan=-np.inf, posinf=np.inf)

    z = torch.cat([particles.x, particles.v], dim=1).numpy()
    bridges = _bridges(z, particles.shares().numpy(), problem.periods, log_density)
    disagreement = _disagreement(bridges, 0.0)
    if np.abs(disagreement).max() <= CERTAIN:
        return
    given = f'problem.kind = "{problem.kind}"'
    if isinstance(problem, UserStart):
        given = f'{key}.{"initial_density" if key == "problem" else "initial"} = "{problem.initial_density}"'
    log_excess = _log_excess(bridges)
    rest = np.abs(_disagreement(bridges, log_excess))
    if rest.max() <= CERTAIN:
        raise UserError(
            f"{given}: log_density integrates to {math.exp(log_excess):.3g} times the mass, which is "
            f"{problem.mass / problem.mean_density:.6g}: subtract {log_excess:.3g} from log_density, or correct mass"
        )
    names = [f"x_{j + 1}" for j in range(problem.space_dims)] + [f"v_{j + 1}" for j in range(problem.velocity_dims)]
    where = names[(int(rest[1:].argmax())) // 2]
    raise UserError(
        f"{given}: log_density is not the density of the particles that sample draws; along {where} they differ by "
        f"{rest[1:].max():.0f} standard errors: correct one of the two"
    )


class _Bridge:
    """Compares one half of a sample with a smoothed copy of the other half.

    Args:
        fitted, tested: the two halves [n, d], in widths of the whole sample.
        shares: their weights [n], which add up to 1.
        lengths: periods of the leading coordinates that are periodic.
        log_density: computes log f0/M [n] at positions [n, d] in phase space.
        seed: seed of the positions that are drawn from the copy.
    """

    def __init__(
        self,
        fitted: np.ndarray,
        fitted_shares: np.ndarray,
        tested: np.ndarray,
        tested_shares: np.ndarray,
        lengths: np.ndarray,
        log_density: Callable[[np.ndarray], np.ndarray],
        seed: int,
    ):
        self._centres, self._shares, self._lengths = fitted, fitted_shares, lengths
        self._widths = self._smoothing()
        generator = np.random.default_rng(seed)
        chosen = generator.choice(len(fitted), size=len(tested), p=fitted_shares)
        drawn = fitted[chosen] + self._widths[chosen, None] * generator.standard_normal(tested.shape)
        drawn[:, : len(lengths)] %= lengths
        # logarithms of q/(f0/M)
        self._tested = self._log_copy(tested) - log_density(tested)
        self._drawn = self._log_copy(drawn) - log_density(drawn)
        self._tested_shares = tested_shares
        self._seen = [self._functions(places) for places in (tested, drawn)]

    def difference(self, log_excess: float) -> tuple[np.ndarray, np.ndarray]:
        """Left side minus right side of the identity for each φ, with f0/exp(log_excess) for f0, and its variance."""
        weight, seen = scipy.special.expit(self._tested + log_excess), self._seen[0]
        left = self._tested_shares @ (weight[:, None] * seen)
        left_variance = self._tested_shares**2 @ (weight[:, None] * seen - left) ** 2
        weighted = scipy.special.expit(-self._drawn - log_excess)[:, None] * self._seen[1]
        return left - weighted.mean(0), left_variance + weighted.var(0) / len(weighted)

    def _smoothing(self) -> np.ndarray:
        """Width of the Gaussian around each centre [n]. It follows the distance of the neighbours, so narrow beams stay
        narrow."""
        periodic = len(self._lengths)
        places, box = self._centres.copy(), np.zeros(self._centres.shape[1])  # 0 means not periodic
        places[:, :periodic] %= self._lengths
        box[:periodic] = self._lengths
        farthest = scipy.spatial.KDTree(places, boxsize=box).query(places, k=_NEIGHBOURS + 1)[0][:, -1]
        return np.clip(farthest / math.sqrt(places.shape[1]), 1e-12, _WIDEST)

    def _log_copy(self, places: np.ndarray) -> np.ndarray:
        """log q at positions [n, d]: [n]."""
        dims, found = places.shape[1], np.empty(len(places))
        log_height = np.log(self._shares) - dims * np.log(self._widths) - 0.5 * dims * math.log(2 * math.pi)
        for start in range(0, len(places), _CHUNK):
            rows = slice(start, start + _CHUNK)
            exponent = np.zeros((len(places[rows]), len(self._centres)))
            for axis in range(dims):
                apart = places[rows, axis, None] - self._centres[:, axis]
                if axis < len(self._lengths):
                    apart -= self._lengths[axis] * np.round(apart / self._lengths[axis])
                exponent -= np.square(apart, out=apart)
            exponent *= 0.5 / self._widths**2
            exponent += log_height
            largest = exponent.max(1, keepdims=True)
            exponent -= largest
            found[rows] = largest[:, 0] + np.log(np.exp(exponent, out=exponent).sum(1))
        return found

    def _functions(self, places: np.ndarray) -> np.ndarray:
        """The functions φ at positions [n, d]: the constant 1, and two functions of each coordinate: [n, 1 + 2d]."""
        found = [np.ones(len(places))]
        for axis, coordinate in enumerate(places.T):
            if axis < len(self._lengths):
                phase = 2 * math.pi * coordinate / self._lengths[axis]
                found += [np.cos(phase), np.sin(phase)]
            else:
                near = np.clip(coordinate, -_FAR, _FAR)
                found += [near, near**2 - 1]
        return np.stack(found, axis=1)


def _bridges(
    z: np.ndarray,
    shares: np.ndarray,
    periods: tuple[float, ...] | None,
    log_density: Callable[[np.ndarray], np.ndarray],
) -> list[_Bridge]:
    """Compare each half of a sample z [n, d] with a copy of the other half."""
    centre, width = z.mean(0), np.maximum(z.std(0), 1e-300)
    lengths = np.asarray(periods or ())
    centre[: len(lengths)], width[: len(lengths)] = 0.0, lengths / math.sqrt(12)

    def scaled_log_density(places: np.ndarray) -> np.ndarray:
        return log_density(centre + width * places) + np.log(width).sum()

    halves = [((z[first::2] - centre) / width, shares[first::2] / shares[first::2].sum()) for first in (0, 1)]
    scaled = lengths / width[: len(lengths)]
    return [
        _Bridge(*fitted, *tested, scaled, scaled_log_density, seed)
        for seed, (fitted, tested) in enumerate((halves, halves[::-1]))
    ]


def _disagreement(bridges: list[_Bridge], log_excess: float) -> np.ndarray:
    """The difference of both sides for each φ, from both bridges together, in standard errors."""
    differences, variances = zip(*(bridge.difference(log_excess) for bridge in bridges), strict=True)
    return np.sum(differences, axis=0) / np.sqrt(np.maximum(np.sum(variances, axis=0), 1e-300))


def _log_excess(bridges: list[_Bridge]) -> float:
    """log of the factor by which f0 is too large, as estimated from the sample."""

    def excess(log_excess: float) -> float:
        return float(sum(bridge.difference(log_excess)[0][0] for bridge in bridges))

    try:
        return float(scipy.optimize.brentq(excess, -60.0, 60.0))
    except ValueError:  # the sample and the density do not overlap
        return 0.0
