"""Collision steps: one file a method, one interface (:class:`~hpc_kjko.collisions.base.Collision`), one line here.

A method is that of a bath; :mod:`~hpc_kjko.collisions.dougherty` makes of it one that conserves momentum and energy."""

from collections.abc import Callable

from hpc_kjko.collisions.base import Collision, CollisionReport, StepStart
from hpc_kjko.collisions.dougherty import DoughertyCollision
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.langevin import LangevinCollision
from hpc_kjko.collisions.none import NoCollision
from hpc_kjko.collisions.score_matching import ScoreMatchingCollision
from hpc_kjko.collisions.velocity_matching import VelocityMatchingCollision
from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case

METHODS: dict[str, type[Collision]] = {
    "jko": JKOCollision,
    "score_matching": ScoreMatchingCollision,
    "velocity_matching": VelocityMatchingCollision,
    "langevin": LangevinCollision,
    "none": NoCollision,
}


def collision_of(
    case: Case, comm: Communicator, method: Callable[[Case, Communicator], Collision] | None = None
) -> Collision:
    """The collision step of a case, by one of METHODS or a given one; κ = 0 has none. Collective."""
    if case.physics.collision_strength == 0:
        return NoCollision(case, comm)
    method = method or METHODS[case.method.collision]
    if case.physics.collision_operator == "dougherty" and method is not NoCollision:
        return DoughertyCollision(case, comm, method)
    return method(case, comm)


__all__ = ["METHODS", "Collision", "CollisionReport", "StepStart", "collision_of"]
