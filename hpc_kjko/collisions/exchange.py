"""The exchange of momentum and energy between species in a step of any length, by a separate implicit step.

Heavy and light particles exchange energy far more slowly than they collide. A field with frozen coefficients finds only
a small part of this exchange in each round. But the exchange is between a few numbers: the moments X_a = (energy,
momentum) of the species in a collision block. The sums over pairs give their rates R_a. If all species were
Maxwellians, the rates would be

    R_a = −Σ_b N_ab (λ_a − λ_b),    λ_a = (−1/T_a, U_a/T_a),    N_ab = C_ab Σ_ij w_i w_j (v_i, 1)ᵀ A(z) (v_i, 1)

N_ab is the same for both species, because A z = 0: one gains what the other loses. λ is the derivative of ∫f log f with
respect to X, and N is positive. So this is a gradient flow. For other distributions R differs from this formula. In an
implicit step this difference is frozen, at its value for the present particles. The step is the minimum of a convex
function of all λ,

    Σ_a [ψ_a(λ_a) − c_a·λ_a] + ½h Σ_{a<b} (λ_a − λ_b)·N_ab (λ_a − λ_b),    c_a = X_a + h R_a + h Σ_b N_ab (λ_a' − λ_b')

Here ψ_a is the function of a Maxwellian whose derivative is X_a. λ' belongs to the particles at which R and N are
computed. There is one minimum, with positive temperatures, for any h. When the iteration has converged, N drops out,
and X_a changes by h R_a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.collisions.meeting import Meeting
from hpc_kjko.collisions.pairs import Members

#: Newton's method ends when a step would lower the function by less than this fraction of the density of the collision
#: block.
CONVERGED, MAX_NEWTON, MAX_HALVED = 1e-22, 200, 60
#: A species has a temperature in a collision block if its thermal energy there is at least this fraction of its energy.
SPREAD = 1e-12


@dataclass(frozen=True)
class Exchange:
    """The rates at which the species of each collision block exchange energy and momentum, at the present velocities.

    Attributes:
        masses: of a particle of each species [species].
        densities: of the species in the blocks [blocks, species].
        moments: X [blocks, species, d + 1], the energy first.
        rates: R [blocks, species, d + 1].
        conductance: N_ab [blocks, species, species, d + 1, d + 1], without N_aa.
    """

    masses: np.ndarray
    densities: np.ndarray
    moments: np.ndarray
    rates: np.ndarray
    conductance: np.ndarray

    @classmethod
    def of(
        cls,
        meeting: Meeting,
        members: Sequence[Members],
        velocities: Sequence[np.ndarray],
        between: dict[tuple[int, int], torch.Tensor],
    ) -> Exchange:
        """The rates at the present velocities of the members.

        Args:
            velocities: V of each species [n, d].
            between: for each (a, b) with a < b: C_ab D_i [n, d, d] of the particles of species a, from collisions with
                species b.
        """
        v, masses = [one.v.cpu().numpy() for one in members], np.array(meeting.masses)
        gains = [np.concatenate([_along(there, one), one], axis=1) for there, one in zip(v, velocities, strict=True)]
        rates = masses[:, None] * _of_blocks(meeting, gains)
        blocks, species, numbers = rates.shape
        conductance = np.zeros((blocks, species, species, numbers, numbers))
        for (a, b), metric in between.items():
            pulled = (metric @ members[a].v[..., None])[..., 0].cpu().numpy()
            whole = np.empty((len(pulled), numbers, numbers))
            whole[:, :1, 0] = _along(v[a], pulled)
            whole[:, 0, 1:] = whole[:, 1:, 0] = pulled
            whole[:, 1:, 1:] = metric.cpu().numpy()
            found = _sums(whole.reshape(len(whole), -1), meeting.densities[a], meeting.numbers[a], blocks)
            conductance[:, a, b] = conductance[:, b, a] = found.reshape(blocks, numbers, numbers)
        densities = _of_blocks(meeting, [np.ones((len(there), 1)) for there in v])[..., 0]
        return cls(masses, densities, moments_of(meeting, v), rates, conductance)

    def after(self, before: np.ndarray, duration: float) -> np.ndarray:
        """X after an implicit step that starts from ``before`` [blocks, species, d + 1].

        A species without a temperature in a block, such as a single particle, exchanges nothing there.
        """
        blocks, species, numbers = before.shape
        warm = self._warm(before) & self._warm(self.moments)
        nobody = np.array([0.5 * (numbers - 1), *np.zeros(numbers - 1)])  # a placeholder with density and temperature 1
        old, there, rates = (
            np.where(warm[..., None], given, instead)
            for given, instead in ((before, nobody), (self.moments, nobody), (self.rates, 0.0))
        )
        plasma = _Maxwellians(np.where(warm, self.densities, 1.0), self.masses)
        met = np.where((warm[:, :, None] & warm[:, None])[..., None, None], duration * self.conductance, 0.0)
        matrix = -met.transpose(0, 1, 3, 2, 4)
        for a in range(species):
            matrix[:, a, :, a] += met[:, a].sum(1)
        matrix = matrix.reshape(blocks, species * numbers, -1)
        given = (old + duration * rates).reshape(blocks, -1) + _product(matrix, plasma.natural(there))
        found, ends = plasma.natural(old), np.zeros(blocks, dtype=bool)
        for _ in range(MAX_NEWTON):
            slope = plasma.moments(found) + _product(matrix, found) - given
            second = matrix + plasma.curvature(found)
            unit = 1 / np.sqrt(second.diagonal(axis1=1, axis2=2))
            change = -unit * _solved(unit[:, :, None] * second * unit[:, None], unit * slope)
            lowers = -(slope * change).sum(1)
            length = np.where(ends, 0.0, 1.0)
            for _ in range(MAX_HALVED):
                trial = found + length[:, None] * change
                onward = ((plasma.moments(trial) + _product(matrix, trial) - given) * change).sum(1)
                far = (length > 0) & ~(plasma.exist(trial) & (onward <= 0.5 * lowers))
                if not far.any():
                    break
                length = np.where(far, 0.5 * length, length)
            found = found + length[:, None] * change
            ends |= lowers <= CONVERGED * plasma.densities.sum(1)
            if ends.all():
                break
        return np.where(warm[..., None], plasma.moments(found).reshape(before.shape), before)

    def _warm(self, moments: np.ndarray) -> np.ndarray:
        """Whether the species have a temperature in a block [blocks, species]."""
        energy, inertia = moments[..., 0], self.masses * self.densities
        return thermal_energy(moments, inertia) > SPREAD * energy


@dataclass(frozen=True)
class _Maxwellians:
    """Maxwellian species of densities [blocks, species] and masses [species]. The numbers λ, or X, of a block are one
    row.
    """

    densities: np.ndarray
    masses: np.ndarray

    def _rows(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of the numbers of each species, and the others."""
        apart = values.reshape(*self.densities.shape, -1)
        return apart[..., 0], apart[..., 1:]

    def _joined(self, first: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.concatenate([first[..., None], others], axis=-1).reshape(len(first), -1)

    def exist(self, natural: np.ndarray) -> np.ndarray:
        """Whether all temperatures are positive [blocks]."""
        return np.all(self._rows(natural)[0] < 0, axis=1)

    def natural(self, moments: np.ndarray) -> np.ndarray:
        """λ from X."""
        inertia, momentum = self.masses * self.densities, self._rows(moments)[1]
        per_particle = thermal_energy(moments.reshape(*self.densities.shape, -1), inertia) / self.densities
        inverse = 0.5 * momentum.shape[-1] / per_particle
        return self._joined(-inverse, inverse[..., None] * momentum / inertia[..., None])

    def moments(self, natural: np.ndarray) -> np.ndarray:
        """X from λ."""
        first, others = self._rows(natural)
        temperature = -1 / first
        velocity = temperature[..., None] * others
        energy = 0.5 * (velocity.shape[-1] * temperature + self.masses * (velocity**2).sum(-1))
        return self._joined(self.densities * energy, (self.masses * self.densities)[..., None] * velocity)

    def curvature(self, natural: np.ndarray) -> np.ndarray:
        """∂X/∂λ [blocks, s (d + 1), s (d + 1)]."""
        first, others = self._rows(natural)
        (blocks, species), numbers = self.densities.shape, others.shape[-1] + 1
        temperature, inertia = -1 / first, self.masses * self.densities
        velocity = temperature[..., None] * others
        whole = np.zeros((blocks, species, numbers, species, numbers))
        for a in range(species):
            t, u, heavy = temperature[:, a], velocity[:, a], inertia[:, a]
            square = 0.5 * (numbers - 1) * self.densities[:, a] * t**2 + heavy * t * (u**2).sum(1)
            whole[:, a, 0, a, 0] = square
            whole[:, a, 0, a, 1:] = whole[:, a, 1:, a, 0] = (heavy * t)[:, None] * u
            whole[:, a, 1:, a, 1:] = (heavy * t)[:, None, None] * np.eye(numbers - 1)
        return whole.reshape(blocks, species * numbers, -1)


def thermal_energy(moments: np.ndarray, inertia: np.ndarray) -> np.ndarray:
    """The thermal energy, which is the energy without that of the mean velocity, from X [..., d + 1] and the mass
    density [...].
    """
    square = (moments[..., 1:] ** 2).sum(-1)
    return moments[..., 0] - np.divide(0.5 * square, inertia, out=np.zeros_like(square), where=inertia > 0)


def moments_of(meeting: Meeting, v: Sequence[np.ndarray]) -> np.ndarray:
    """X of each species in each collision block, at velocities [n, d]: [blocks, species, d + 1]."""
    terms = [np.concatenate([0.5 * _along(one, one), one], axis=1) for one in v]
    return np.array(meeting.masses)[:, None] * _of_blocks(meeting, terms)


def given_moments(
    meeting: Meeting, v: Sequence[np.ndarray], moments: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """The changes of the velocities of each species [n, d + 1] that give it the moments X in each collision block. The
    last column is the factor that scales velocities about their mean. Also returns whether X has positive temperatures
    [blocks].
    """
    densities = _of_blocks(meeting, [np.ones((len(one), 1)) for one in v])[..., 0]
    inertia, old = np.array(meeting.masses) * densities, moments_of(meeting, v)
    wide = thermal_energy(old, inertia) > SPREAD * old[..., 0]
    ratio = np.divide(
        thermal_energy(moments, inertia), thermal_energy(old, inertia), out=np.ones_like(inertia), where=wide
    )
    scale = np.sqrt(np.maximum(ratio, 0.0))
    heavy = np.where(inertia > 0, inertia, 1.0)[..., None]
    mean, middle = moments[..., 1:] / heavy, old[..., 1:] / heavy
    changes = []
    for species, (one, number) in enumerate(zip(v, meeting.numbers, strict=True)):
        by = scale[number, species, None]
        shift = mean[number, species] - middle[number, species]
        changes.append(np.concatenate([shift + (by - 1) * (one - middle[number, species]), by], axis=1))
    return changes, (ratio > 0).all(1)


def _of_blocks(meeting: Meeting, terms: Sequence[np.ndarray]) -> np.ndarray:
    """Sums over the particles of each species in each collision block, weighted by their densities: [blocks, species,
    k].
    """
    blocks = len(meeting.blocks.per_volume)
    given = zip(terms, meeting.densities, meeting.numbers, strict=True)
    return np.stack([_sums(part, density, number, blocks) for part, density, number in given], axis=1)


def _sums(terms: np.ndarray, density: np.ndarray, number: np.ndarray, blocks: int) -> np.ndarray:
    return np.stack([np.bincount(number, density * column, blocks) for column in terms.T], axis=1)


def _along(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Scalar products of vectors [n, d], as a column."""
    return (one * other).sum(1, keepdims=True)


def _product(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (matrix @ rows[..., None])[..., 0]


def _solved(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.linalg.solve(matrix, rows[..., None])[..., 0]
