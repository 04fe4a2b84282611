"""A species of a plasma: its charge, its mass and its particles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_kjko.casefile import ONLY
from hpc_kjko.particles.state import Particles


@dataclass(frozen=True)
class Species:
    """One species of a plasma.

    Attributes:
        name: the name in the case.
        charge: q of a particle, in units of the elementary charge.
        mass: m of a particle, in units of the mass of the reference species.
        particles: the particles on this rank.
    """

    name: str
    charge: float
    mass: float
    particles: Particles

    @property
    def charge_to_mass(self) -> float:
        """q/m: the acceleration in an electric field of strength 1."""
        return self.charge / self.mass

    def moved(self, particles: Particles) -> Species:
        """The same species with other particles, for example after a push."""
        return replace(self, particles=particles)


#: All species of a run, in the order of the case.
Plasma = tuple[Species, ...]


def plasma_of(particles: Particles) -> Plasma:
    """A plasma of one species with q = m = 1, for a case without ``[species]``."""
    return (Species(ONLY, 1.0, 1.0, particles),)


def moved(plasma: Sequence[Species], particles: Sequence[Particles]) -> Plasma:
    """The same species with other particles, one set for each species."""
    return tuple(species.moved(rows) for species, rows in zip(plasma, particles, strict=True))
