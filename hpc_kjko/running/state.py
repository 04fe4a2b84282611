"""What is known at one time level."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpc_kjko.collisions import CollisionReport
from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import ExternalField, MeshField
from hpc_kjko.particles.state import Particles
from hpc_kjko.species import Plasma


@dataclass(frozen=True)
class State:
    """Everything known at one time level t^n.

    Attributes:
        species: all species with their particles.
        field: that of those very positions.
        collisions: of each species, what the last collision step did.
        drive_energy: what a driven field has given the particles since t = 0.
    """

    time: float
    species: Plasma
    field: MeshField | ExternalField
    collisions: tuple[CollisionReport, ...]
    drive_energy: float = 0.0

    @property
    def particles(self) -> Particles:
        """Those of the only species.

        Raises:
            UserError: there are several.
        """
        if len(self.species) > 1:
            names = ", ".join(one.name for one in self.species)
            raise UserError(
                f"state.particles needs a case without [species], and this one has {names}: use state.species"
            )
        return self.species[0].particles

    @property
    def collision(self) -> CollisionReport:
        """What the last collision step did, of all species together."""
        return CollisionReport.together(self.collisions)

    def of(self, number: int) -> State:
        """The same with one species alone, by its number."""
        part, field = slice(number, number + 1), self.field
        if isinstance(field, MeshField):
            field = replace(field, densities=field.densities[part])
        return replace(self, species=self.species[part], field=field, collisions=self.collisions[part])
