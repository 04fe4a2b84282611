"""Particles of all species as they meet each other in the blocks of a step, and what every block keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.collisions.blocks import Blocks
from hpc_kjko.collisions.pairs import Members
from hpc_kjko.errors import SolverFailure
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles

#: The part of its energy that the spread of a block's velocities has at least, but for rounding.
ROUNDING = 1e-24


@dataclass(frozen=True)
class Meeting:
    """Particles of all species, each on its rank, and their rows in the blocks that are summed here.

    Attributes:
        plasma: the particles of each species before they collide.
        masses: of a particle of each species.
        blocks: which particles meet each other.
        v: of each species, the velocities in the order of the blocks [n, d].
        weights: their weights [n]; numbers: which block each is in [n].
    """

    plasma: Sequence[Particles]
    masses: Sequence[float]
    blocks: Blocks
    v: list[np.ndarray]
    weights: list[np.ndarray]
    numbers: list[np.ndarray]

    @classmethod
    def of(cls, plasma: Sequence[Particles], masses: Sequence[float], blocks: Blocks) -> Meeting:
        """Collective."""
        v, weights = [], []
        for particles, dealt in zip(plasma, blocks.species, strict=True):
            rows = torch.cat([particles.v.double(), particles.weight[:, None].double()], dim=1)
            there = dealt.gathered(rows.cpu().numpy())
            v.append(there[:, :-1].copy())
            weights.append(there[:, -1].copy())
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

    def members(self, there: Sequence[Particles], scores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[Members]:
        """The particles where they are now, for sums over pairs. Collective.

        Args:
            scores: ∇v log f and its Jacobian at the particles of each species.
        """
        rows = self.gathered(
            [
                (particles.v, score / mass, hessian.flatten(1) / mass)
                for particles, (score, hessian), mass in zip(there, scores, self.masses, strict=True)
            ]
        )
        found = []
        for particles, whole, density, mass, dealt in zip(
            there, rows, self.densities, self.masses, self.blocks.species, strict=True
        ):
            dims = particles.v.shape[1]
            v, score, hessian = torch.from_numpy(whole).to(particles.v.device).split([dims, dims, dims**2], dim=1)
            of_density = torch.from_numpy(density).to(particles.v.device)
            found.append(Members(v, score, hessian.unflatten(1, (dims, dims)), of_density, mass, dealt.edges))
        return found

    @property
    def densities(self) -> list[np.ndarray]:
        """What each particle adds to the density of its species in its block [n]."""
        per_volume = self.blocks.per_volume
        return [weight * per_volume[number] for weight, number in zip(self.weights, self.numbers, strict=True)]

    def among_likes(self, species: int) -> np.ndarray:
        """What sums over the like pairs of a species are to be multiplied with [n]."""
        mean = self.blocks.density[species] / self.blocks.per_volume
        return among_likes(self.weights[species], self.numbers[species], mean)

    def moved(self, changes: Sequence[np.ndarray], comm: Communicator) -> tuple[list[Particles], float]:
        """All particles moved by changes [n, d + 1] of v and log f, which are first corrected such that every block
        keeps its momentum and energy; and the smallest factor that velocities were scaled with. Collective.

        Raises:
            SolverFailure: on every rank, where a velocity is not finite.
        """
        smallest = restore(self.v, changes, self.weights, self.numbers, self.masses)
        if comm.any(not all(np.isfinite(change).all() for change in changes)):
            raise SolverFailure("a particle's velocity is no longer finite: reduce time.step")
        moved = []
        for particles, back in zip(self.plasma, self.returned(changes), strict=True):
            log_f = particles.log_f + back[:, -1].to(particles.log_f)
            moved.append(particles.move((particles.v.double() + back[:, :-1]).to(particles.v), log_f))
        return moved, comm.min(smallest)


def among_likes(weight: np.ndarray, number: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the sums over like pairs are to be multiplied with [n]: a particle meets all of its block but itself, and
    these stand, on average, for the mean mass that a block of its cell has [blocks]."""
    # as float: without any numbers bincount counts in integers
    total, square = (np.bincount(number, one, len(mean)).astype(float) for one in (weight, weight**2))
    others = total**2 - square
    return np.divide(mean * total, others, out=np.zeros_like(total), where=others > 0)[number]


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as whole multiples of a unit, of which 2¹⁷ add up without rounding, and what these leave."""
    largest = np.abs(values).max(initial=0.0)
    unit = 2.0 ** (np.ceil(np.log2(largest)) - 35) if largest > 0 and np.isfinite(largest) else 1.0
    whole = unit * np.rint(values / unit)
    return whole, values - whole


def restore(
    before: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    numbers: Sequence[np.ndarray],
    masses: Sequence[float],
) -> float:
    """Correct the changes [n, d + 1] of v and log f of all species such that the momentum and the energy of every
    block are those of before; returns the smallest factor that velocities were scaled with.

    The velocities of a block are shifted, and scaled about their mean.
    """
    count = max((int(number[-1]) + 1 for number in numbers if len(number)), default=0)
    shares = [mass * weight for mass, weight in zip(masses, weights, strict=True)]

    def over_blocks(values: Sequence[np.ndarray]) -> np.ndarray:
        """Sums [blocks, k] of values [n, k] of all species, exact but for one rounding."""
        total = np.zeros((count, values[0].shape[1]))
        for part in zip(*(_halves(value) for value in values), strict=True):
            for number, value in zip(numbers, part, strict=True):
                total += np.stack([np.bincount(number, column, count) for column in value.T], axis=1)
        return total

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
    alike = old <= ROUNDING * spread(before, 0 * mean)  # velocities that differ by rounding have no width to restore
    # √(old/new) − 1: the root of a number just below 1 is rounded down more often than up, and 10⁴ steps would show it
    gain = np.divide(old - new, new + np.sqrt(old * new), out=np.zeros_like(old), where=~alike & (new > 0))
    for v, after, change, number in zip(before, moved, changes, numbers, strict=True):
        apart = after - middle[number]
        change[:, :-1] = mean[number] + (apart + gain[number] * apart) - v
        change[:, -1] -= v.shape[1] * np.log1p(gain[number, 0])
    return 1 + float(gain.min(initial=0.0))
