"""The Stein control variate: less sampling noise from particles that know their own density.

Every particle carries f at its place in phase space, and the Maxwellian f_M of the bath is known everywhere. Let r =
f_M/f. Then particles that sample f give Σ m_i r_i φ(z_i) ≈ ∫ f_M φ for any φ. The exact value of this average is known.
So a multiple β(|v|) of it may be subtracted from any sum over particles, and its exact value added again:

    Σ m_i w_i φ(z_i) + ∫ β f_M φ,    w_i = 1 − β(|v_i|) r_i

This has the same expectation for every β that does not depend on x, and little noise where w is small. β f_M is
homogeneous and even in v. So the added term is a constant in the density, and nothing in the current.

β is continuous and piecewise linear in |v|. A single number for all speeds, E[r]/E[r²], could be spoilt by one particle
in the tail with a wrong log f. There r may be thousands, and β would fall to zero for all particles. With β(|v|) it
falls to zero at that speed only. If f is homogeneous but not yet Maxwellian, β f_M follows its mean over x.

The estimator: A. B. Owen, *Monte Carlo theory, methods and examples*, section 8.9. In particle-in-cell codes it is
known as δf: S. J. Allfrey, R. Hatzky, doi:10.1016/S0010-4655(03)00288-0. β as a function of speed is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.state import Particles, passes, passes_over

#: Distance of the nodes of β, and the speed from which on β = 0, in units of √T. Few particles are faster.
SPACING, LAST = 0.125, 6.0
NODES = np.arange(0.0, LAST, SPACING)
#: The window of the β of an objective: 1 up to the first speed, 0 from the second on. log f is least accurate in the
#: tail.
WINDOW = np.interp(NODES, (3.0, 4.0), (1.0, 0.0))
#: β is used in objectives if the mean of w² is at most this.
NEAR = 0.05
#: log r is limited to this, so that the square of r does not overflow.
LARGEST = 300.0


@dataclass(frozen=True)
class Beta:
    """β(|v|) as its values at the NODES [m].

    Attributes:
        values: β at the NODES [m].
        temperature: T of the bath.
        weight_variance: mean of w² over the particles for which β was found, weighted by m². The noise energy of
            independent particles is reduced by this factor.
    """

    values: np.ndarray
    temperature: float
    weight_variance: float

    def mean(self, velocity_dims: int) -> float:
        """∫ β f_M dv / ∫ f_M dv: the fraction of the mean density that is known instead of sampled."""
        speed = np.linspace(0, LAST, 64 * len(NODES))
        maxwellian = speed ** (velocity_dims - 1) * np.exp(-0.5 * speed**2)
        beta = np.interp(speed, NODES, self.values)  # beyond the last node the Maxwellian is negligible
        return float(np.sum(beta * maxwellian) / np.sum(maxwellian))

    def weights(self, particles: Particles, rows: slice) -> torch.Tensor:
        """w [n] of some particles, float64."""
        ratio, node, right = _ratio_and_place(particles, rows, self.temperature)
        below, above = self._around(node)
        return 1 - ratio * torch.lerp(below, above, right)

    def drag(self, particles: Particles, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The quantities that replace v and 1 in the mean of v·g − T ∇v·g over particles, for any vector field g of
        phase space.

        By Stein's identity ∫ f_M (v·βg − T ∇v·βg) = 0. So the mean of v·g − T ∇v·g equals the mean of

            drag·g − (1 − known) T ∇v·g,    drag = w v + T r ∇v β,    known = β r = 1 − w

        Returns:
            drag [n, dv] and known [n], float64.
        """
        ratio, node, right = _ratio_and_place(particles, rows, self.temperature)
        below, above = self._around(node)
        known = ratio * torch.lerp(below, above, right)
        speed = SPACING * (node + right)
        slope = torch.where(speed > 0, (above - below) / (SPACING * speed), 0.0)  # T ∇v β = slope v
        return (1 - known + ratio * slope)[:, None] * particles.v[rows].double(), known

    def _around(self, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.from_numpy(np.append(self.values, [0.0, 0.0])).to(node.device)
        return values[node], values[node + 1]


class ControlVariate:
    """Finds β for an ensemble, on all ranks together."""

    def __init__(self, temperature: float, comm: Communicator):
        self.temperature, self.comm = temperature, comm

    def masses(self, particles: Particles) -> torch.Tensor:
        """The weights that particles deposit instead of their masses: m w [n], float64, with the β of least noise.
        Collective.

        The difference to the masses is a homogeneous density.
        """
        beta = self.least_noise(self.comm.sum(self.moments(particles)))
        return torch.cat([particles.weight[rows] * beta.weights(particles, rows) for rows in passes_over(particles.v)])

    def drag(self, particles: Particles, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`Beta.drag` of all particles of this rank, with the β of an objective. Collective."""
        beta = self.near_equilibrium(self.comm.sum(self.moments(particles)))
        pieces = [beta.drag(particles, rows) for rows in passes(len(particles.v), chunk)]
        drag, known = zip(*pieces, strict=True)
        return torch.cat(drag), torch.cat(known)

    def moments(self, particles: Particles) -> np.ndarray:
        """The sums of this rank from which β is found. h_j are the hat functions of the nodes.

        Returns:
            [4, m]: Σ m² r h_j, Σ m² r² h_j², Σ m² r² h_j h_{j+1}, and Σ m² in all entries of the last row.
        """
        size = len(NODES) + 2  # entries at LAST and beyond are dropped
        sums = torch.zeros(4, size, dtype=torch.float64, device=particles.v.device)
        for rows in passes_over(particles.v):
            square = particles.weight[rows] ** 2
            ratio, node, right = _ratio_and_place(particles, rows, self.temperature)
            first, second = square * ratio, square * ratio * ratio
            for row, shift, terms in (
                (0, 0, first * (1 - right)),
                (0, 1, first * right),
                (1, 0, second * (1 - right) ** 2),
                (1, 1, second * right**2),
                (2, 0, second * right * (1 - right)),
            ):
                sums[row] += torch.bincount(node + shift, weights=terms, minlength=size)
            sums[3] += square.sum()
        return sums[:, : len(NODES)].cpu().numpy()

    def least_noise(self, moments: np.ndarray) -> Beta:
        """The β that minimises Σ (m w)², from the :meth:`moments` of all ranks."""
        load, diagonal, beside, _ = moments
        # In units of the diagonal, which is larger by orders of magnitude at a node beside a particle with a wrong log
        # f.
        unit = np.sqrt(np.where(diagonal > 0, diagonal, math.inf))
        coupling = beside[:-1] / (unit[:-1] * unit[1:])
        matrix = (1 + 1e-10) * np.eye(len(unit)) + np.diag(coupling, 1) + np.diag(coupling, -1)
        return self._beta(np.linalg.solve(matrix, load / unit) / unit, moments)

    def near_equilibrium(self, moments: np.ndarray) -> Beta:
        """The multiple of the WINDOW with the least Σ (m w)², or 0 if the remaining mean of w² is at least NEAR.

        This β is for objectives, which use ∇β. A β that follows the noise at its nodes would add more noise than it
        removes. Far from equilibrium r is large where particles are few. There the field would get worse in favour of
        all other places, and the error of log f would be permanent.
        """
        load, diagonal, beside, _ = moments
        square = WINDOW @ (diagonal * WINDOW) + 2 * WINDOW[:-1] @ (beside[:-1] * WINDOW[1:])
        beta = self._beta((WINDOW @ load / square if square > 0 else 0.0) * WINDOW, moments)
        return beta if beta.weight_variance < NEAR else self._beta(np.zeros_like(WINDOW), moments)

    def _beta(self, values: np.ndarray, moments: np.ndarray) -> Beta:
        load, diagonal, beside, whole = moments
        square = values @ (diagonal * values) + 2 * values[:-1] @ (beside[:-1] * values[1:])
        return Beta(values, self.temperature, float((whole[0] - 2 * values @ load + square) / whole[0]))


def _ratio_and_place(
    particles: Particles, rows: slice, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """r = f_M/f [n] of some particles; the node below the speed of each [n]; and the fraction of the way from there to
    the next node [n].
    """
    v = particles.v[rows].double()
    energy = 0.5 * (v * v).sum(1) / temperature
    normalisation = 0.5 * v.shape[1] * math.log(2 * math.pi * temperature)
    ratio = torch.exp((-energy - normalisation - particles.log_f[rows].double()).clamp(max=LARGEST))
    speed = torch.sqrt(2 * energy).clamp(max=LAST) / SPACING
    node = speed.long()
    return ratio, node, speed - node
