"""The mass of a fitted density, if it can be computed: an integral over phase space that uses no particles.

Relaxation keeps the mean of log f, so the errors of all steps add up in it. But ∫f is known, and near equilibrium ∫e^ψ̄
can be estimated. Let q be the Gaussian with the moments of the particles, uniform in the x of a box. Then ∫e^ψ̄ is the
mean of e^ψ̄/q over points drawn from q. The closer f is to a Gaussian, the smaller the estimated error, and the larger
the fraction of the result that is used. For beams this fraction is nearly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from hpc_kjko.particles.state import uniform_points

#: Quiet points of phase space. Their own seed keeps them from being the first particles of a run.
POINTS, SEED = 4096, 0x5EED
#: If the error of log ∫e^ψ̄ has this value, half of the result is used.
SURE = 1e-3


class Normalisation:
    """Integrals over the phase space of a problem.

    Args:
        lengths: of the box [dx], or None in unbounded space. With walls it is the box inside the walls. Beyond the
            walls are only mirror images, where no particle determines ψ̄.
        dims: dx + dv.
        mass: ∫f.
    """

    def __init__(self, lengths: tuple[float, ...] | None, dims: int, mass: float, device: torch.device):
        points = torch.from_numpy(uniform_points("quiet", SEED, 0, POINTS, dims)).to(device)
        lengths = lengths or ()
        self._x = points[:, : len(lengths)] * torch.tensor(lengths, dtype=torch.float64, device=device)
        self._normal = torch.special.ndtri(points[:, len(lengths) :])
        self._log_volume, self._log_mass = math.log(math.prod(lengths)), math.log(mass)

    def excess(
        self, log_density: Callable[[torch.Tensor], torch.Tensor], mean: np.ndarray, square: np.ndarray
    ) -> float:
        """log(∫e^ψ̄/mass), times the fraction of it that is trusted.

        Args:
            log_density: ψ̄ [n] at places (x, v) [n, dims].
            mean, square: E[y] and E[y yᵀ] over the particles. y are the coordinates that are not in a box.
        """
        covariance = square - np.outer(mean, mean)
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 0.0
        to = {"dtype": torch.float64, "device": self._normal.device}
        y = torch.tensor(mean, **to) + self._normal @ torch.tensor(root, **to).T
        log_q = -0.5 * (self._normal**2).sum(1) - float(np.log(np.diag(root)).sum())
        log_q -= 0.5 * len(mean) * math.log(2 * math.pi) + self._log_volume
        ratio = torch.exp(log_density(torch.cat([self._x, y], dim=1)) - log_q - self._log_mass)
        average, spread = torch.stack([ratio.mean(), ratio.std()]).tolist()
        error = spread / math.sqrt(POINTS) / average if average > 0 else math.inf
        return math.log(average) / (1 + (error / SURE) ** 2) if math.isfinite(error) else 0.0
