"""What kernels are told of the functional, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """What is the same for every particle: ``Settings`` of math/settings.hpp has the same, and says the same of it.

    Attributes:
        activation: of the control field's hidden layers.
        logdet: what ℓ in the functional is: log det(I + h ∇v u) or h ∇v·u.
        step: h.
        collision_strength: κ, which has no part in moments.
        temperature: T.
        together: particles that are added up before their sum is rounded to ``unit`` (:mod:`hpc_kjko.particles.exact`).
        unit: 0 rounds nothing.
        finer: of moments: part of the unit that what this leaves of log det is rounded to.
    """

    activation: Literal["tanh", "leaky_relu"]
    logdet: Literal["exact", "linear"]
    step: float
    collision_strength: float
    temperature: float
    together: int
    unit: float
    finer: float = 0.0

    def within(self, most: int) -> Settings:
        """The same with no more than so many particles added up together."""
        return replace(self, together=min(self.together, most))

    @property
    def tanh(self) -> bool:
        return self.activation == "tanh"

    @property
    def exact(self) -> bool:
        return self.logdet == "exact"
