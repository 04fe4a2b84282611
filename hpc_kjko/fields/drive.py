"""A driven electric field E(x, t), which does not depend on the particles, and the energy that it gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpc_kjko import usercode
from hpc_kjko.errors import UserError
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import summed_finely
from hpc_kjko.particles.state import passes_over
from hpc_kjko.species import Plasma, moved

#: E [n, dx] at positions x [n, dx] and a time.
ElectricField = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class WaveField:
    """E(x, t) = E₀ cos(k·x − ωt) k/|k|, ramped up from t = 0 and ramped down until it ends.

    Attributes:
        amplitude: E₀; wave_vector: k [dx]; frequency: ω.
        rise: duration of each ramp, which follows sin² of a quarter of a period; 0 for no ramp.
        until: time at which the field ends; infinite if it does not end.
    """

    amplitude: float
    wave_vector: tuple[float, ...]
    frequency: float
    rise: float
    until: float

    def __call__(self, x: torch.Tensor, time: float) -> torch.Tensor:
        k = torch.tensor(self.wave_vector, dtype=x.dtype, device=x.device)
        wave = self.amplitude * self.ramp(time) * torch.cos(x @ k - self.frequency * time)
        return wave[:, None] * (k / torch.linalg.vector_norm(k))

    def ramp(self, time: float) -> float:
        """The fraction of the amplitude at a time."""
        if time >= self.until:
            return 0.0
        nearest = min(abs(time), self.until - time)  # a stage of the first step may reach back to t < 0
        return math.sin(0.5 * math.pi * nearest / self.rise) ** 2 if nearest < self.rise else 1.0


@dataclass(frozen=True)
class UsersField:
    """E(x, t) from a function in the user's own code.

    Attributes:
        function: takes x [n, dx] and t.
        given: the name of the function in the case file.
    """

    function: Callable[..., Any]
    given: str

    def __call__(self, x: torch.Tensor, time: float) -> torch.Tensor:
        if not len(x):  # the user's code need not handle ranks without particles
            return torch.zeros_like(x)
        found = usercode.call(self.function, x.clone(), time, given=self.given)
        wanted = f"{self.given}: it must return a tensor of real numbers of the shape of x, {tuple(x.shape)}"
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided:
            raise UserError(f"{wanted}, not a {type(found).__name__}")
        if found.shape != x.shape or not found.is_floating_point():
            raise UserError(f"{wanted}, not of the shape {tuple(found.shape)} and the type {found.dtype}")
        if not torch.isfinite(found[torch.isfinite(x).all(1)]).all():
            raise UserError(f"{self.given}: it is not finite at t = {time:g}")
        return found.detach().to(x)


class Drive:
    """Kicks particles by a driven field, half before and half after the kick by their own field.

    Both halves are at the same positions and the same time, the time that the drifts before the kick have reached. If
    both fields depend on x alone, the kick is by the sum of both fields, and the maps keep their orders. With Ampère's
    law and exact energy the order is 2. Then the energy that the two halves give to the particles is, to round-off, the
    gain of kinetic and field energy together.
    """

    def __init__(self, field: ElectricField, comm: Communicator):
        self.field, self.comm = field, comm

    def at(self, plasma: Plasma, time: float) -> list[torch.Tensor]:
        """E at the particles of each species, [n, dx] each. Collective.

        Raises:
            UserError: on all ranks, if the user's function fails.
        """
        with self.comm.together():
            found = []
            for one in plasma:
                x = one.particles.x
                electric = torch.empty_like(x)
                for rows in passes_over(x):
                    electric[rows] = self.field(x[rows], time)
                found.append(electric)
        return found

    def kick(self, plasma: Plasma, electric: list[torch.Tensor], duration: float) -> tuple[Plasma, float]:
        """The particles after v ← v + (q/m) E · duration, and the kinetic energy that they gain. Collective."""
        kicked, shares = [], []
        for one, field in zip(plasma, electric, strict=True):
            particles = one.particles
            after = particles.kick(duration * one.charge_to_mass, field)
            dims, share = particles.x.shape[1], particles.shares()
            total = torch.zeros(2, dtype=torch.float64, device=share.device)
            for rows in passes_over(particles.v):
                old, new = particles.v[rows, :dims].double(), after.v[rows, :dims].double()
                given = 0.5 * ((new - old) * (new + old)).sum(1)
                total += summed_finely(share[rows] * given)
            kicked.append(after)
            shares.append(total.cpu().numpy())
        totals = self.comm.sum(np.stack(shares)).sum(1)  # sum of rounded terms: the same bits on any number of ranks
        energy = sum(one.mass * one.particles.total_weight * part for one, part in zip(plasma, totals, strict=True))
        return moved(plasma, kicked), float(energy)
