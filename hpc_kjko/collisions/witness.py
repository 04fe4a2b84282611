"""A check for waves: the momentum and energy that collisions give to a wave, compared with the Fokker–Planck operator.

The certificate tests whether the free energy falls. A weak wave is only a small part of the free energy, of second
order in its amplitude. So it can be wrong after steps that are all certified. But for every function m of phase space,
the operator changes ∫m f at the rate −κ ∫(v·∇m − T Δm) f, for any f. A minimiser of the JKO functional moves particles
by a u with

    E[∇m·(u + κ v̂) − κ T Δm] = 0,    v̂ where the step evaluates f,

apart from the noise of the sample. With m = v∥ and ½|v|² times cos k·x and sin k·x, these are the momentum and the
energy of the wave. Systematic errors in them add up over a run. The noise of independent particles adds up too, to more
than the signal. So the check is for a quiet start, and only as long as the wave is above the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import numpy as np
import torch

from hpc_kjko.operators import Operator

#: A moment of the wave counts while its amplitude is this many times that of the noise of independent particles.
STANDING_OUT = 3.0


@dataclass(frozen=True)
class WaveExchange:
    """The accumulated errors of the moments of the wave in the steps of a run.

    Attributes:
        excess: of each moment, the sum of its errors over all steps in which it was above the noise: first with the
            cosine, then with the sine.
        largest: the largest amplitude of the moment in these steps; 0 without such steps.
    """

    excess: tuple[float, ...] = ()
    largest: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """The largest excess as a fraction of its moment; 0 without a wave."""
        number = len(self.largest)
        moments = zip(self.excess[:number], self.excess[number:], self.largest, strict=True)
        return max((math.hypot(*excess) / largest for *excess, largest in moments if largest > 0), default=0.0)

    def following(self, before: WaveExchange) -> WaveExchange:
        """The sum of this step and all steps before it."""
        return WaveExchange(
            tuple(one + other for one, other in zip_longest(before.excess, self.excess, fillvalue=0.0)),
            tuple(max(one, other) for one, other in zip_longest(before.largest, self.largest, fillvalue=0.0)),
        )


@dataclass(frozen=True)
class WaveWitness:
    """The check for the wave of a periodic problem.

    Args:
        wave_vector: k [dx].
        operator: the collision operator.
    """

    #: How many numbers :meth:`terms` returns for each particle.
    TERMS: ClassVar[int] = 12

    wave_vector: tuple[float, ...]
    operator: Operator

    def terms(self, x: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """For each particle at x [n, dx] with velocity v̂ [n, dv], moved by u [n, dv]: the error of the rate of each
        moment, then the moments, then their squares; [n, TERMS], float64.
        """
        k = torch.tensor(self.wave_vector, dtype=torch.float64, device=x.device)
        phase, v, u = x.double() @ k, v.double(), u.double()
        along = k / torch.linalg.vector_norm(k)
        wave = torch.stack([torch.cos(phase), torch.sin(phase)], dim=1)
        strength = self.operator.collision_strength
        drag = u + strength * v
        heating = strength * self.operator.temperature * v.shape[1]
        parallel, pulled = v[:, : len(along)] @ along, drag[:, : len(along)] @ along
        given = torch.stack([pulled, (v * drag).sum(1) - heating], dim=1)
        moments = torch.stack([parallel, 0.5 * (v * v).sum(1)], dim=1)
        given, moments = ((part[:, None] * wave[:, :, None]).flatten(1) for part in (given, moments))
        return torch.cat([given, moments, moments**2], dim=1)

    def exchange(self, averages: np.ndarray, duration: float, particles: float) -> WaveExchange:
        """The errors of a step, from averages of :meth:`terms` over all particles. ``particles`` is the number of
        independent particles with the same noise.
        """
        given, moments, squares = np.split(averages, 3)
        variances = np.maximum(squares - moments**2, 0.0) / particles
        amplitude, noise = (np.sqrt(part.reshape(2, -1).sum(0)) for part in (moments**2, variances))
        seen = amplitude > STANDING_OUT * noise
        excess = duration * given.reshape(2, -1) * seen
        return WaveExchange(tuple(excess.flatten().tolist()), tuple((amplitude * seen).tolist()))
