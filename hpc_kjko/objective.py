"""The discrete kinetic JKO functional: what a collision step minimises.

    J(u) = (1/N) Σ_i [ h/(2κ) |u_i|² + ½ |v_i + h u_i|² − T ℓ_i ],    ℓ_i = log det(I + h ∇v u)  or  h ∇v·u

at the pushed state: the paper's eq. (18) (arXiv:2603.23901) for the linear ℓ; the exact one is needed for second order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from hpc_kjko.control import ControlField, determinant
from hpc_kjko.native.objective import fused
from hpc_kjko.native.objective import objective as fused_objective

#: Below this determinant the objective continues log det smoothly, so that an optimiser that overshot finds back.
#: Only the objective does: a step that is taken has its true determinant, checked for every particle.
CONTINUE_BELOW = 0.1


class JKOObjective(nn.Module):
    """This rank's part of J(u) − J(0), as the module that DistributedDataParallel wraps.

    ``forward`` returns the local *sum* over particles, each with its share of the whole mass, so that summing the
    gradients of all ranks gives the gradient of the mean over all particles, however unequal the shards are. The
    constant J(0) = mean ½|v|² is left out: it would drown the differences between fields in single precision.
    """

    def __init__(
        self,
        control: ControlField,
        *,
        collision_strength: float,
        temperature: float,
        logdet: Literal["exact", "linear"],
    ):
        super().__init__()
        self.control = control
        self.collision_strength, self.temperature = collision_strength, temperature
        self.logdet = logdet

    def forward(
        self,
        step: float,
        z: torch.Tensor,
        v: torch.Tensor,
        share: torch.Tensor,
        tangents: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The part of some particles, for a step of size ``step``; a scalar.

        Args:
            z: inputs of the control field [n, ...].
            v: pushed velocities ṽ [n, dv]; with a control variate its drag.
            share: the part of the whole mass that each particle is [n].
            tangents: ∂z/∂ṽ_j [n, dv, inputs] where it is not simply the velocity among the inputs.
            known: the part of ∇v·u that a control variate knows the average of [n].
        """
        control = self.control
        if tangents is None and fused(control.widths, z, v, share, control.layers[0].weight):
            return fused_objective(
                (z, v, share, known),
                [*control.layers.parameters(), *([control.skip] if control.skip is not None else [])],
                activation=control.activation,
                logdet=self.logdet,
                step=step,
                collision_strength=self.collision_strength,
                temperature=self.temperature,
            )
        if tangents is None and (self.logdet == "linear" or control.velocity_dims == 1):
            u, divergence = control.with_divergence(z)
            log_det = step * divergence if self.logdet == "linear" else continued_log(1 + step * divergence)
        else:
            u, jacobian = control.with_jacobian(z, tangents)
            divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
            if self.logdet == "linear":
                log_det = tracked_log_det(jacobian, step, "linear")
            else:
                log_det = continued_log(determinant(linear_part(jacobian, step)))
        running = step / (2 * self.collision_strength) * (u * u).sum(1)
        kinetic = step * ((v + 0.5 * step * u) * u).sum(1)  # ½|v + h u|² − ½|v|²
        if known is not None:
            log_det = log_det - step * known * divergence
        return (share * (running + kinetic - self.temperature * log_det)).sum()


def continued_log(determinants: torch.Tensor) -> torch.Tensor:
    """log d, continued below d = 0.1 by its second-order Taylor polynomial there: C², concave, finite for any d."""
    d0 = CONTINUE_BELOW
    below = (determinants - d0) / d0
    continuation = torch.log(torch.tensor(d0)).to(determinants) + below - 0.5 * below**2
    return torch.where(determinants < d0, continuation, torch.log(determinants.clamp(min=d0)))


def linear_part(jacobian: torch.Tensor, step: float) -> torch.Tensor:
    """Linear part I + h ∇v u of the map v ← v + h u, from ∇v u [n, dv, dv]."""
    return torch.eye(jacobian.shape[1], dtype=jacobian.dtype, device=jacobian.device) + step * jacobian


def tracked_log_det(jacobian: torch.Tensor, step: float, logdet: Literal["exact", "linear"]) -> torch.Tensor:
    """ℓ as a step that is taken has it, by which log f falls: log det(I + h ∇v u) or h ∇v·u, [n].

    NaN where the map is not orientation-preserving: such a step must not be taken.
    """
    if logdet == "linear":
        return step * jacobian.diagonal(dim1=1, dim2=2).sum(1)
    return torch.log(determinant(linear_part(jacobian, step)))
