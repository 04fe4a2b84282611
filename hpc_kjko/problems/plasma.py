"""Periodic plasmas with a perturbed density: the two-stream instability and Landau damping."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from hpc_kjko.problems.beams import Amplitude, PerturbedBeams
from hpc_kjko.schema import Lengths, NonNegative


class TwoStream(PerturbedBeams):
    """Two counter-streaming beams: the two-stream instability (paper's section 4.2)."""

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    kind: Literal["two_stream"]
    length: Lengths = (31.4159265,)
    beam_velocity: NonNegative = 2.4
    """v_b, the drift ±v_b of the two beams."""
    amplitude: Amplitude = 0.005

    @property
    def beam_speed(self) -> float:
        return self.beam_velocity


class LandauDamping(PerturbedBeams):
    """A perturbed Maxwellian: Landau damping of a Langmuir wave."""

    default_field: ClassVar[Literal["poisson", "external"]] = "poisson"

    kind: Literal["landau_damping"]
    length: Lengths = (4 * math.pi,)
    amplitude: Amplitude = 0.01
