"""Collision operators: what the particles collide with. Each operator is one class and one line in OPERATORS.

All operators except Landau's have the form ∂t f = κ ∇v·((v − U) f + Θ ∇v f). Velocities then move with
u* = −κ (v − U + Θ ∇v log f). U and Θ are the mean velocity and the temperature (T/m) of a bath, or the local ones of
the particles themselves. Landau's operator is a sum over pairs of particles. For it, this form with a rate of its own
serves only to compare sizes and time scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # programs that only read files do not load torch
    import torch


@dataclass(frozen=True)
class Operator:
    """A collision operator, in the frame where it is at rest (U = 0).

    Attributes:
        collision_strength: κ, in ω_p.
        temperature: Θ in that frame: the variance to which each velocity component relaxes, T/m for a bath.
    """

    #: The frame in which U = 0: that of the bath, or that of the local mean velocity of the particles.
    frame: ClassVar[Literal["bath", "local"]]
    #: Integrals of f, other than ∫f, that collisions conserve.
    conserves: ClassVar[tuple[str, ...]]
    #: The quantity that decreases by the H-theorem of the operator, in words.
    falls: ClassVar[str]
    #: Whether the operator is a sum over pairs. Methods whose control field depends on one particle cannot treat it.
    sums_pairs: ClassVar[bool] = False

    collision_strength: float
    temperature: float

    def control(self, v: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """u* = −κ (v + Θ s) at velocities v [n, dv] with s = ∇v log f [n, dv]: [n, dv].

        The same formula gives ∂u*/∂v [n, dv, dv] if the Jacobians ∂v/∂v and ∂s/∂v [n, dv, dv] take the places of v and
        s.
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
    """Collisions within one species. U and Θ are its local mean velocity and temperature.

    Momentum and energy are conserved.

    A. Lenard, I. B. Bernstein, doi:10.1103/PhysRev.112.1456; J. P. Dougherty, doi:10.1063/1.1711282.
    """

    frame = "local"
    conserves = ("momentum", "energy")
    falls = "∫f log f"


@dataclass(frozen=True)
class Landau(Operator):
    """Coulomb collisions between all particles of a plasma, as a sum over pairs.

    Attributes:
        collision_strength: the rate at which velocities of this species relax, in ω_p.
        exponent: γ of A(z) = |z|^γ (|z|² I − z zᵀ).
        block: the approximate number of particles of a species in a collision block.
        factors: the factors C for collisions with each species, in the order of the species. They include the charges.
    """

    frame = "local"
    conserves = ("momentum", "energy")
    falls = "∫f log f"
    sums_pairs = True

    exponent: float = -3.0
    block: int = 512
    factors: tuple[float, ...] = ()


#: The possible values of ``physics.collision_operator``.
OPERATORS: dict[str, type[Operator]] = {"bath": Bath, "dougherty": Dougherty, "landau": Landau}
