"""The settings of the functional for kernels, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Settings that are the same for every particle. ``Settings`` of math/settings.hpp has the same attributes.

    Attributes:
        activation: of the hidden layers of the control field.
        logdet: ℓ in the functional: log det(I + h ∇v u) or h ∇v·u.
        step: h.
        collision_strength: κ, which moments do not use.
        temperature: T.
        together: size of a piece: the number of particles that are added before their sum is rounded to ``unit``
            (:mod:`hpc_kjko.particles.exact`).
        unit: 0 for no rounding.
        finer: for moments: the fraction of the unit to which the remainder of log det is rounded.
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
        """The same settings, with at most ``most`` particles in a piece."""
        return replace(self, together=min(self.together, most))

    @property
    def tanh(self) -> bool:
        """Whether the activation is tanh; otherwise it is leaky_relu."""
        return self.activation == "tanh"

    @property
    def exact(self) -> bool:
        """Whether ℓ is log det(I + h ∇v u); otherwise it is h ∇v·u."""
        return self.logdet == "exact"
