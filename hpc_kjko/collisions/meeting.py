"""The particles of all species in the collision blocks of a step, and the moments that every block conserves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.collisions.blocks import Blocks
from hpc_kjko.collisions.pairs import Members
from hpc_kjko.errors import SolverFailure
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles, passes

#: ∇v log f [n, d] at particles, and its Jacobian [n, d, d].
Score = tuple[torch.Tensor, torch.Tensor]
#: If the thermal energy of a collision block is a smaller fraction of its energy than this, it is only a rounding
#: error.
ROUNDING = 1e-24
#: The approximate number of particles that are corrected at a time.
AT_ONCE = 2**14


@dataclass(frozen=True)
class Meeting:
    """The particles of all species of this rank, and their rows in the collision blocks that are summed on this rank.

    Attributes:
        plasma: the particles of each species before they collide.
        masses: of a particle of each species.
        blocks: which particles collide with each other.
        v: for each species, the velocities in the order of the blocks [n, d].
        weights: their weights [n].
        numbers: the block of each particle [n].
    """

    plasma: Sequence[Particles]
    masses: Sequence[float]
    blocks: Blocks
    v: list[np.ndarray]
    weights: list[np.ndarray]
    numbers: list[np.ndarray]

    @classmethod
    def of(cls, plasma: Sequence[Particles], masses: Sequence[float], blocks: Blocks) -> Meeting:
        """Distribute the particles to the collision blocks. Collective."""
        v, weights = [], []
        for particles, dealt in zip(plasma, blocks.species, strict=True):
            v.append(dealt.gathered(particles.v.cpu().numpy()).astype(float))
            weights.append(dealt.gathered(particles.weight.cpu().numpy()).astype(float))
        return cls(plasma, masses, blocks, v, weights, [dealt.block for dealt in blocks.species])

    def gathered(self, of_species: Sequence[Sequence[torch.Tensor]]) -> list[np.ndarray]:
        """Columns of the particles of each species, as float64 rows in the order of the blocks. Collective."""
        return [
            dealt.gathered(torch.cat([column.double() for column in columns], dim=1).cpu().numpy())
            for dealt, columns in zip(self.blocks.species, of_species, strict=True)
        ]

    def returned(self, of_species: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Rows in the order of the blocks, as rows of the particles of each species. Collective."""
        return [
            torch.from_numpy(dealt.returned(rows)).to(particles.v.device)
            for particles, dealt, rows in zip(self.plasma, self.blocks.species, of_species, strict=True)
        ]

    def members(self, there: Sequence[Particles], scores: Sequence[Score]) -> list[Members]:
        """The particles at their present velocities, for sums over pairs. Collective.

        Args:
            there: the particles of each species.
            scores: of the particles of each species.
        """
        found = []
        for particles, (score, hessian), density, mass, dealt in zip(
            there, scores, self.densities, self.masses, self.blocks.species, strict=True
        ):
            device = particles.v.device
            v, of_f, slope = (
                torch.from_numpy(dealt.gathered(column.cpu().numpy())).to(device, torch.float64)
                for column in (particles.v, score, hessian)
            )
            found.append(Members(v, of_f / mass, slope / mass, torch.from_numpy(density).to(device), mass, dealt.edges))
        return found

    @property
    def densities(self) -> list[np.ndarray]:
        """The contribution of each particle to the density of its species in its block [n]."""
        per_volume = self.blocks.per_volume
        return [weight * per_volume[number] for weight, number in zip(self.weights, self.numbers, strict=True)]

    def among_likes(self, species: int) -> np.ndarray:
        """The factors of the sums over like pairs of a species [n]."""
        mean = self.blocks.density[species] / self.blocks.per_volume
        return among_likes(self.weights[species], self.numbers[species], mean)

    def moved(self, changes: Sequence[np.ndarray], comm: Communicator) -> tuple[list[Particles], float]:
        """All particles moved by changes [n, d + 1] of v and log f. The changes are first corrected so that every block
        conserves its momentum and energy. Also returns the smallest factor with which velocities were scaled.
        Collective.

        Raises:
            SolverFailure: on every rank, if a velocity is not finite.
        """
        edges = [dealt.edges for dealt in self.blocks.species]
        smallest = restore(self.v, changes, self.weights, edges, self.masses)
        if comm.any(not all(np.isfinite(change).all() for change in changes)):
            raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        moved = []
        for particles, back in zip(self.plasma, self.returned(changes), strict=True):
            log_f = particles.log_f + back[:, -1].to(particles.log_f)
            moved.append(particles.move((particles.v.double() + back[:, :-1]).to(particles.v), log_f))
        return moved, comm.min(smallest)


def among_likes(weight: np.ndarray, number: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The factors of the sums over like pairs [n]. A particle collides with all others of its collision block, but not
    with itself. The factor makes their weight, on average, equal to the mean mass of a block of its cell [blocks].
    """
    # astype because bincount counts in integers if it gets no numbers
    total, square = (np.bincount(number, one, len(mean)).astype(float) for one in (weight, weight**2))
    others = total**2 - square
    return np.divide(mean * total, others, out=np.zeros_like(total), where=others > 0)[number]


def restore(
    before: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    edges: Sequence[np.ndarray],
    masses: Sequence[float],
) -> float:
    """Correct the changes [n, d + 1] of v and log f of all species so that every collision block conserves momentum and
    energy. Returns the smallest factor with which velocities were scaled.

    The velocities of a block are shifted, and scaled about their mean.

    Args:
        before: velocities before the step, of each species [n, d].
        changes: of each species [n, d + 1]; corrected in place.
        weights: of each species [n].
        edges: where the blocks begin in the rows of each species [blocks + 1].
        masses: of a particle of each species.
    """
    blocks, smallest = len(edges[0]) - 1, 1.0
    largest = max(sum(len(v) for v in before) // max(1, blocks), 1)
    for some in passes(blocks, max(1, AT_ONCE // largest)):
        rows = [slice(edge[some.start], edge[some.stop]) for edge in edges]
        v, change, weight = (
            [of_one[part] for of_one, part in zip(of_all, rows, strict=True)] for of_all in (before, changes, weights)
        )
        own = [edge[some.start : some.stop + 1] - edge[some.start] for edge in edges]
        smallest = min(smallest, _restored(v, change, weight, own, masses))
    return smallest


def _restored(
    before: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    edges: Sequence[np.ndarray],
    masses: Sequence[float],
) -> float:
    """The same as :func:`restore`, for so few collision blocks that they stay in the cache."""
    sizes = [np.diff(edge) for edge in edges]
    numbers = [np.repeat(np.arange(len(size)), size) for size in sizes]
    shares = [mass * weight for mass, weight in zip(masses, weights, strict=True)]

    def over_blocks(values: Sequence[np.ndarray]) -> np.ndarray:
        """Sums [blocks, k] of values [n, k] of all species. On machines where long double is longer than double, such
        as x86, they are rounded only once. Otherwise rounding errors of 10⁴ steps would add up.
        """
        total = np.zeros((len(sizes[0]), values[0].shape[1]), np.longdouble)
        for edge, size, value in zip(edges, sizes, values, strict=True):
            if len(value):
                total[size > 0] += np.add.reduceat(value, edge[:-1][size > 0], axis=0, dtype=np.longdouble)
        return total.astype(float)

    def means(values: Sequence[np.ndarray]) -> np.ndarray:
        sums = over_blocks([share[:, None] * value for share, value in zip(shares, values, strict=True)])
        return np.divide(sums, mass, out=np.zeros_like(sums), where=mass > 0)

    def spread(values: Sequence[np.ndarray], mean: np.ndarray) -> np.ndarray:
        return means(
            [((value - mean[number]) ** 2).sum(1, keepdims=True) for value, number in zip(values, numbers, strict=True)]
        )

    mass = over_blocks([share[:, None] for share in shares])
    moved = [v + change[:, :-1] for v, change in zip(before, changes, strict=True)]
    mean, middle = means(before), means(moved)
    old, new = spread(before, mean), spread(moved, middle)
    # if velocities differ only by rounding, there is no width to restore
    alike = old <= ROUNDING * spread(before, 0 * mean)
    # √(old/new) − 1 without cancellation. The root of a number just below 1 is rounded down more often than up, and
    # after 10⁴ steps that would be visible.
    gain = np.divide(old - new, new + np.sqrt(old * new), out=np.zeros_like(old), where=~alike & (new > 0))
    for v, after, change, number in zip(before, moved, changes, numbers, strict=True):
        apart = after - middle[number]
        change[:, :-1] = mean[number] + (apart + gain[number] * apart) - v
        change[:, -1] -= v.shape[1] * np.log1p(gain[number, 0])
    return 1 + float(gain.min(initial=0.0))
