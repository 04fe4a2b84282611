"""Particles in a periodic potential (the paper's Example 3)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from hpc_kjko.problems.beams import PerturbedBeams
from hpc_kjko.problems.custom import CustomProblem
from hpc_kjko.problems.perturbed import Amplitude
from hpc_kjko.schema import Dimension, Lengths, NonNegative


class Periodic(CustomProblem, PerturbedBeams):
    """Two beams in the potential `A Σ_j cos(2π x_j/L_j)` ("cosine") or `A Σ_j [sin(2π x_j/L_j) + ½ sin(4π x_j/L_j)]`
    ("ratchet").
    """

    named_potentials: ClassVar[tuple[str, ...]] = ("cosine", "ratchet")
    named_densities: ClassVar[tuple[str, ...]] = ("beams",)

    kind: Literal["periodic"]
    space_dims: Dimension = 1
    velocity_dims: Dimension = Field(default_factory=lambda data: data.get("space_dims", 1))
    length: Lengths = (1.0,)
    beam_velocity: NonNegative = 1.5
    """v_b, the drift ±v_b of the two beams."""
    amplitude: Amplitude = 0.5
    potential_name: str = Field("cosine", alias="potential")
    """The potential: `cosine`, `ratchet`, or `module:name`.

    `cosine`: A Σ_j cos(2πx_j/L_j).

    `ratchet`: A Σ_j [sin(2πx_j/L_j) + ½ sin(4πx_j/L_j)].

    `module:name`: a function of your own."""
    potential_amplitude: float = 0.5
    """A of the potential."""
    initial_density: str = "beams"
    """f0: `beams`, or `module:name`."""

    @property
    def beam_speed(self) -> float:
        return self.beam_velocity

    @property
    def is_homogeneous(self) -> bool:
        return False

    def own_potential(self, x: torch.Tensor) -> torch.Tensor:
        phase = 2 * math.pi * x / torch.tensor(self.periods, dtype=x.dtype, device=x.device)
        if self.potential_name == "cosine":
            return self.potential_amplitude * torch.cos(phase).sum(1)
        return self.potential_amplitude * (torch.sin(phase) + 0.5 * torch.sin(2 * phase)).sum(1)

    def own_sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        return PerturbedBeams.sample(self, points, temperature)

    def own_log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        return PerturbedBeams.log_density(self, x, v, temperature)

    def other_directions(self, temperature: float) -> list[tuple[float, float]] | None:
        return None if self.starts_from_user_code else super().other_directions(temperature)
