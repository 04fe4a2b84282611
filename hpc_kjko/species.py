"""A species of a plasma: its charge, its mass and its particles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_kjko.casefile import ONLY
from hpc_kjko.particles.state import Particles


@dataclass(frozen=True)
class Species:
    """Particles of one kind, of all kinds that a plasma has.

    Attributes:
        name: as the case has it.
        charge: q of a particle, in units of the elementary charge.
        mass: m of a particle, in units of the mass of the reference species.
        particles: this rank's.
    """

    name: str
    charge: float
    mass: float
    particles: Particles

    @property
    def charge_to_mass(self) -> float:
        """q/m: the acceleration in a field of strength 1."""
        return self.charge / self.mass

    def moved(self, particles: Particles) -> Species:
        """The species with its particles elsewhere in phase space."""
        return replace(self, particles=particles)


#: All species of a run, in the order of the case.
Plasma = tuple[Species, ...]


def plasma_of(particles: Particles) -> Plasma:
    """A plasma of one species with q = m = 1, as a case has that names none."""
    return (Species(ONLY, 1.0, 1.0, particles),)


def moved(plasma: Sequence[Species], particles: Sequence[Particles]) -> Plasma:
    """All species with their particles elsewhere in phase space."""
    return tuple(species.moved(rows) for species, rows in zip(plasma, particles, strict=True))
