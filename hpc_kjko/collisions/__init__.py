"""Collision steps: one file a method, one interface (:class:`~hpc_kjko.collisions.base.Collision`), one line here."""

from hpc_kjko.collisions.base import Collision, CollisionReport
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.none import NoCollision
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case

METHODS: dict[str, type[Collision]] = {"jko": JKOCollision, "none": NoCollision}


def collision_of(case: Case, comm: Communicator) -> Collision:
    """The collision step of a case; κ = 0 has none. Collective."""
    return METHODS[case.method.collision if case.physics.collision_strength > 0 else "none"](case, comm)


__all__ = ["METHODS", "Collision", "CollisionReport", "collision_of"]
