"""Collision steps. Each method has one file and one line here. All have one interface
(:class:`~hpc_kjko.collisions.base.Collision`).

A method is written for a bath. :mod:`~hpc_kjko.collisions.dougherty` turns it into a method that conserves momentum and
energy.
"""

from collections.abc import Callable

from hpc_kjko.collisions.base import (
    Collision,
    CollisionReport,
    CollisionSettings,
    PairCollision,
    StepStart,
    collide,
)
from hpc_kjko.collisions.binary import BinaryCollision
from hpc_kjko.collisions.dougherty import DoughertyCollision
from hpc_kjko.collisions.jko import JKOCollision
from hpc_kjko.collisions.landau import LandauCollision
from hpc_kjko.collisions.landau_jko import LandauJKOCollision
from hpc_kjko.collisions.langevin import LangevinCollision
from hpc_kjko.collisions.none import NoCollision
from hpc_kjko.collisions.score_matching import ScoreMatchingCollision
from hpc_kjko.collisions.velocity_matching import VelocityMatchingCollision
from hpc_kjko.parallel.comm import Communicator

METHODS: dict[str, type[Collision]] = {
    "jko": JKOCollision,
    "score_matching": ScoreMatchingCollision,
    "velocity_matching": VelocityMatchingCollision,
    "pair_sum": LandauCollision,
    "binary": BinaryCollision,
    "langevin": LangevinCollision,
    "none": NoCollision,
}


def collision_of(
    settings: CollisionSettings,
    comm: Communicator,
    method: Callable[[CollisionSettings, Communicator], Collision],
) -> Collision:
    """The collision step of an operator, by the given method (one of METHODS, or a class like them). κ = 0 gives no
    collisions. Collective.
    """
    if settings.operator.collision_strength == 0 or method is NoCollision:
        return NoCollision(settings, comm)
    if settings.operator.frame == "local" and not settings.operator.sums_pairs:
        return DoughertyCollision(settings, comm, method)
    if settings.operator.sums_pairs and method is JKOCollision:
        return LandauJKOCollision(settings, comm)
    return method(settings, comm)


__all__ = [
    "METHODS",
    "Collision",
    "CollisionReport",
    "CollisionSettings",
    "PairCollision",
    "StepStart",
    "collide",
    "collision_of",
]
