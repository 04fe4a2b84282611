"""What particles collide with, as values: one class an operator, one line in OPERATORS.

All but Landau's are of the form ∂t f = κ ∇v·((v − U) f + Θ ∇v f): velocities move along u* = −κ (v − U + Θ ∇v log f).
U and Θ are those of a bath, or the local mean velocity and temperature of the particles themselves. Landau's is a sum
over pairs of particles, to which the same with its own factor is no more than a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # readers of files do without torch
    import torch


@dataclass(frozen=True)
class Operator:
    """A collision operator, in the frame in which it is at rest (U = 0).

    Attributes:
        collision_strength: κ, in ω_p.
        temperature: Θ in that frame, the variance that a velocity relaxes to: T/m of a bath.
    """

    #: Where U = 0: in the frame of a bath, or in that of the particles around.
    frame: ClassVar[Literal["bath", "local"]]
    #: Integrals of f that collisions do not change, apart from ∫f.
    conserves: ClassVar[tuple[str, ...]]
    #: What falls by the operator's H-theorem, in words.
    falls: ClassVar[str]
    #: Whether it is a sum over pairs of particles, which methods with a control field of one particle cannot do.
    sums_pairs: ClassVar[bool] = False

    collision_strength: float
    temperature: float

    def control(self, v: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """u* = −κ (v + Θ s) at velocities v [n, dv] with s = ∇v log f [n, dv]: [n, dv].

        With the Jacobians ∂v/∂v and ∂s/∂v [n, dv, dv] in place of v and s it is ∂u*/∂v.
        """
        return -self.collision_strength * (v + self.temperature * score)


@dataclass(frozen=True)
class Bath(Operator):
    """A bath at rest at the temperature T: U = 0, Θ = T. The free energy falls."""

    frame = "bath"
    conserves = ()
    falls = "the free energy"


@dataclass(frozen=True)
class Dougherty(Operator):
    """Particles and their like: U and Θ are their local mean velocity and temperature, so momentum and energy stay.

    A. Lenard, I. B. Bernstein, doi:10.1103/PhysRev.112.1456; J. P. Dougherty, doi:10.1063/1.1711282.
    """

    frame = "local"
    conserves = ("momentum", "energy")
    falls = "∫f log f"


@dataclass(frozen=True)
class Landau(Operator):
    """Coulomb collisions of the particles of a plasma with each other, as a sum over pairs.

    Attributes:
        collision_strength: the rate at which velocities of this species relax.
        exponent: γ of A(z) = |z|^γ (|z|² I − z zᵀ).
        block: approximate number of particles of a species in a collision block.
        factors: the factor C of the collisions with each species, charges included, in the order of the species.
    """

    frame = "local"
    conserves = ("momentum", "energy")
    falls = "∫f log f"
    sums_pairs = True

    exponent: float = -3.0
    block: int = 512
    factors: tuple[float, ...] = ()


#: What ``physics.collision_operator`` may be.
OPERATORS: dict[str, type[Operator]] = {"bath": Bath, "dougherty": Dougherty, "landau": Landau}
