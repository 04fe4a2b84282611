"""The case as a collection of sections. Each section is valid alone; other modules here check them together."""

from __future__ import annotations

from pydantic import SerializeAsAny

from hpc_kjko.case.method import Method, VelocityMatching
from hpc_kjko.case.sections import GridSettings, Output, ParticleSettings, Physics, Run, TimeSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import KINDS, STARTS, Problem
from hpc_kjko.problems.density import Density
from hpc_kjko.schema import EVERY_KEY, Section, keys_of


class Sections(Section):
    """The sections of a case, and the quantities that follow from them."""

    problem: SerializeAsAny[Problem]
    species: dict[str, SpeciesSettings] = {}
    physics: Physics
    particles: ParticleSettings = ParticleSettings()
    grid: GridSettings | None = None
    time: TimeSettings = TimeSettings()
    method: Method = Method()
    velocity_matching: VelocityMatching | None = None
    output: Output = Output()
    run: Run = Run()

    def equilibrium(self) -> Density | None:
        """The stationary density in the problem's own potential, to which collisions lead; None if it is not known.

        With collisions of like particles it is not known, because it depends on the energy of the run. The computation
        may take a second or two, so call this once."""
        if OPERATORS[self.physics.collision_operator].frame != "bath" or self.species:
            return None
        return self.problem.equilibrium(self.physics.temperature)

    @property
    def collision_operators(self) -> tuple[str, ...]:
        """The names of the collision operators of all species."""
        if not self.species or OPERATORS[self.physics.collision_operator].sums_pairs:
            return (self.physics.collision_operator,)
        return tuple(species.collision_operator for species in self.species.values())


EVERY_KEY.update(keys_of(Sections))
for _kinds, _where in ((KINDS, "problem."), (STARTS, "species.NAME.")):
    for _kind in _kinds.values():
        EVERY_KEY.update(keys_of(_kind, _where))
