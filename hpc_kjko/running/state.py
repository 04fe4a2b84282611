"""The state of a run at one time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpc_kjko.collisions import CollisionReport
from hpc_kjko.errors import UserError
from hpc_kjko.fields.base import ExternalField, MeshField
from hpc_kjko.particles.state import Particles
from hpc_kjko.species import Plasma


@dataclass(frozen=True)
class State:
    """Everything that is known at the time t^n.

    Attributes:
        species: all species with their particles.
        field: the field at the positions of these particles.
        collisions: for each species, the report of the last collision step.
        drive_energy: the energy that the driven field has given to the particles since t = 0.
    """

    time: float
    species: Plasma
    field: MeshField | ExternalField
    collisions: tuple[CollisionReport, ...]
    drive_energy: float = 0.0

    @property
    def particles(self) -> Particles:
        """The particles of the only species.

        Raises:
            UserError: the case has several species.
        """
        if len(self.species) > 1:
            names = ", ".join(one.name for one in self.species)
            raise UserError(
                f"state.particles needs a case without [species], and this one has {names}: use state.species"
            )
        return self.species[0].particles

    @property
    def collision(self) -> CollisionReport:
        """The report of the last collision step, for all species together."""
        return CollisionReport.together(self.collisions)

    def of(self, number: int) -> State:
        """The same state with only one species, chosen by its index."""
        part, field = slice(number, number + 1), self.field
        if isinstance(field, MeshField):
            field = replace(field, densities=field.densities[part])
        return replace(self, species=self.species[part], field=field, collisions=self.collisions[part])
