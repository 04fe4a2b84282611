"""The discrete kinetic JKO functional, which a collision step minimises.

    J(u) = (1/N) Σ_i [ h/(2κ) |u_i|² + ½ |v_i + h u_i|² − T ℓ_i ],    ℓ_i = log det(I + h ∇v u)  or  h ∇v·u

It is taken at the pushed state. With the linear ℓ it is the paper's eq. (18) (arXiv:2603.23901). Second order in h
needs the exact ℓ.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hpc_kjko.inner.control import ControlField, determinant
from hpc_kjko.inner.potential import PotentialField, combined, filled, padded
from hpc_kjko.kernels.constants import CONTINUE_BELOW
from hpc_kjko.kernels.objective import fused
from hpc_kjko.kernels.objective import objective as fused_objective
from hpc_kjko.kernels.potential import Terms
from hpc_kjko.kernels.settings import Settings
from hpc_kjko.operators import Operator
from hpc_kjko.particles.exact import UNIT, in_order, rounded
from hpc_kjko.particles.state import BLOCK, passes

Field = TypeVar("Field", bound=ControlField | PotentialField)


class Objective(nn.Module, Generic[Field]):
    """The part of a functional of the control field that belongs to this rank, as the module that
    DistributedDataParallel wraps.

    ``forward`` returns the *sum* over the particles of this rank. Each particle counts with its share of the total
    mass. So the sum of the gradients of all ranks is the gradient of the mean over all particles, even if ranks have
    unequal numbers of particles. Value and gradient are float64 sums of pieces that are rounded before they are added
    (:mod:`hpc_kjko.particles.exact`). So they have the same bits on any number of ranks. ``gradient`` holds the
    gradient that ``backward`` has accumulated, and :meth:`clear_gradient` clears it. The ``grad`` of the parameters,
    from automatic differentiation, is the gradient of this rank in their precision. :meth:`evaluate` returns value and
    gradient at once.

    Args:
        control: the field or the functions that are trained.
        together: size of a piece: the number of particles that are added before the sum is rounded.
    """

    def __init__(self, control: Field, together: int = BLOCK):
        super().__init__()
        self.control: Field = control
        self.together: int = together
        #: Weights and biases of the layers, then the skip if there is one.
        layers = [parameter for layer in control.layers for parameter in layer.parameters()]
        self.trained = [*layers, *([control.skip] if control.skip is not None else [])]
        self.clear_gradient()

    def forward(self, step: float, *rows: Any) -> torch.Tensor:
        """The sum over some particles, for a step of size ``step``; a scalar, float64.

        Args:
            rows: arguments of :meth:`part`, tensors [n, ...] or None.
        """
        return _Sum.apply(self, (step, *rows), torch.is_grad_enabled(), *self.trained)

    @abstractmethod
    def part(self, step: float, *rows: Any) -> torch.Tensor:
        """The sum over some particles, for automatic differentiation. Each objective defines its own ``rows``."""

    def clear_gradient(self) -> None:
        """Set the gradient to zero."""
        sizes, device = [parameter.numel() for parameter in self.trained], self.trained[0].device
        self.gradient = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self._parts = dict(zip(self.trained, self.gradient.split(sizes), strict=True))

    def set_gradient(self, gradient: torch.Tensor) -> None:
        """Store a gradient in the ``trained`` parameters, in their precision. It holds the gradients of all of them,
        one after the other.
        """
        parts = gradient.to(self.trained[0].dtype).split([parameter.numel() for parameter in self.trained])
        for parameter, part in zip(self.trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def gradient_of(self, parameter: nn.Parameter) -> torch.Tensor:
        """The accumulated gradient with respect to one of the ``trained`` parameters, from the particles of this rank;
        float64.
        """
        return self._parts[parameter].view_as(parameter)

    def evaluate(self, step: float, *rows: Any, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value and, if wanted, the gradient with respect to all ``trained`` parameters, one after the other;
        float64.
        """
        trained, value = self.trained, torch.zeros((), dtype=torch.float64, device=self.gradient.device)
        gradient = torch.zeros_like(self.gradient)
        with in_order(self.together):
            for some in passes(len(rows[0]), self.together):
                with torch.set_grad_enabled(with_gradient):
                    pieces: list[Any] = [tensor[some] if tensor is not None else None for tensor in rows]
                    part = self.part(step, *pieces)
                value += rounded(part.detach().double(), UNIT)
                if with_gradient:
                    parts = torch.autograd.grad(part, trained, materialize_grads=True)
                    gradient += rounded(torch.cat([p.flatten() for p in parts]).double(), UNIT)
        return value, gradient if with_gradient else None


class _Sum(torch.autograd.Function):
    """The value of an objective as a function of the trained parameters."""

    @staticmethod
    def forward(
        ctx: Any, objective: Objective[Any], arguments: tuple[Any, ...], with_gradient: bool, *trained: torch.Tensor
    ) -> torch.Tensor:
        value, ctx.found = objective.evaluate(*arguments, with_gradient=with_gradient)
        ctx.objective, ctx.like = objective, trained
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = ctx.found * outer
        ctx.objective.gradient += gradient
        parts = gradient.split([parameter.numel() for parameter in ctx.like])
        return None, None, None, *(p.view_as(like).to(like) for p, like in zip(parts, ctx.like, strict=True))


class JKOObjective(Objective[ControlField]):
    """J(u) − J(0). The constant J(0) = mean ½|v|² is subtracted because it is much larger than the differences between
    fields.
    """

    def __init__(
        self,
        control: ControlField,
        *,
        operator: Operator,
        logdet: Literal["exact", "linear"],
        together: int = BLOCK,
    ):
        super().__init__(control, together)
        self.operator, self.logdet = operator, logdet

    def part(self, step: float, *rows: Any) -> torch.Tensor:
        """The sum over some particles.

        Args:
            rows: the inputs z of the control field [n, ...]; the pushed velocities ṽ [n, dv], or with a control variate
                its drag; the share of the total mass that each particle has [n]; ∂z/∂ṽ_j [n, dv, inputs], or None if
                the last inputs are the velocity; the part of ∇v·u whose average a control variate knows [n], or None.
        """
        z, v, share, tangents, known = rows
        control = self.control
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
        running = step / (2 * self.operator.collision_strength) * (u * u).sum(1)
        kinetic = step * ((v + 0.5 * step * u) * u).sum(1)  # ½|v + h u|² − ½|v|²
        if known is not None:
            log_det = log_det - step * known * divergence
        return (share * (running + kinetic - self.operator.temperature * log_det)).sum()

    def evaluate(self, step: float, *rows: Any, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        z, v, share, tangents, known = (*rows, None, None)[:5]  # usually there are no tangents and no control variate
        control = self.control
        if tangents is not None or not fused(control.widths, z, v, share, control.layers[0].weight):
            return super().evaluate(step, z, v, share, tangents, known, with_gradient=with_gradient)
        settings = self.settings(step, UNIT)
        return fused_objective((z, v, share, known), self.trained, settings, with_gradient=with_gradient)

    def settings(self, step: float, unit: float, finer: float = 0.0) -> Settings:
        """The settings of the functional for a kernel, whose sums are rounded to ``unit``."""
        return Settings(
            self.control.activation,
            self.logdet,
            step,
            self.operator.collision_strength,
            self.operator.temperature,
            self.together,
            unit,
            finer,
        )


class DensityObjective(Objective[PotentialField]):
    """Half the mean square of log f − ψ, for ψ = Σ_m c_m g_m and the log f that the particles carry. Its hidden layers
    are trained. c is the best fit for these layers, so the derivative along c is 0, and the gradient is the one at
    fixed c.

    Args:
        mass: ∫f.
        lengths: of the box in which particles are [dx], inside its walls; None in unbounded space.
    """

    def __init__(
        self,
        control: PotentialField,
        *,
        operator: Operator,
        mass: float,
        lengths: tuple[float, ...] | None,
        together: int = BLOCK,
    ):
        super().__init__(control, together)
        self.operator, self.mass, self.lengths = operator, mass, lengths

    def part(self, step: float, *rows: Any) -> torch.Tensor:
        """The sum over some particles.

        Args:
            rows: the inputs z of ψ [n, inputs]; the target values of ψ [n]; the weight of each particle [n]; the
                coefficients of ψ [M].
        """
        z, wanted, share, c = rows
        missed = self.control.functions(z).double() @ c - wanted
        return 0.5 * (share.double() * missed * missed).sum()

    def evaluate(self, step: float, *rows: Any, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        z, wanted, share, c = rows
        if (network := self.control.network).takes(z):
            value, gradient = network.training(z, Terms(share.double(), self.together, UNIT), wanted, c)
            return value, gradient if with_gradient else None
        layers = self.control.hidden_layers(z)
        missed = combined(torch.cat([layers[-1], self.control.monomials(z)], dim=1).double(), c) - wanted
        weighted = share.double() * missed
        pieces = functools.partial(in_pieces, together=self.together)
        value = rounded(0.5 * torch.bmm(pieces(weighted[:, None]).mT, pieces(missed[:, None])), UNIT).sum()
        if not with_gradient:
            return value, None
        gradients: list[torch.Tensor] = []
        pull = weighted[:, None].to(z) * c[: self.control.width].to(z)
        above: nn.Linear | None = None
        for layer, h, before in reversed(list(zip(self.control.layers, layers, [z, *layers], strict=False))):
            if above is not None:
                pull = (padded(pull) @ above.weight)[: len(z)]
            pull = pull * (1 - h * h)
            inputs = torch.cat([before, torch.ones_like(before[:, :1])], dim=1)
            sums = rounded(torch.bmm(pieces(pull).mT, pieces(inputs)).double(), UNIT).sum(0)
            gradients = [sums[:, :-1].flatten(), sums[:, -1], *gradients]
            above = layer
        return value, torch.cat(gradients)


def in_pieces(rows: torch.Tensor, together: int) -> torch.Tensor:
    """Rows [n, k] as pieces that are added before rounding [pieces, together, k]; zeros fill up the last piece."""
    if together > BLOCK:  # too large a piece for the same bits on any number of ranks
        together = min(together, max(len(rows), 1))
    return filled(rows, together).view(-1, together, rows.shape[1])


def continued_log(determinants: torch.Tensor) -> torch.Tensor:
    """log d. Below d = 0.1 it is continued by its second-order Taylor polynomial at that point: C², concave, finite for
    any d.

    So an optimiser that overshot can return. Only the objective uses this continuation. A step that is taken has its
    true determinant, which is checked for every particle.
    """
    d0 = CONTINUE_BELOW
    below = (determinants - d0) / d0
    continuation = math.log(d0) + below - 0.5 * below**2
    return torch.where(determinants < d0, continuation, torch.log(determinants.clamp(min=d0)))


def linear_part(jacobian: torch.Tensor, step: float) -> torch.Tensor:
    """Linear part I + h ∇v u of the map v ← v + h u, from ∇v u [n, dv, dv]."""
    return torch.eye(jacobian.shape[1], dtype=jacobian.dtype, device=jacobian.device) + step * jacobian


def tracked_log_det(jacobian: torch.Tensor, step: float, logdet: Literal["exact", "linear"]) -> torch.Tensor:
    """ℓ of a step that is taken: log det(I + h ∇v u) or h ∇v·u, [n]. log f falls by ℓ.

    It is NaN where the map reverses orientation. Such a step must not be taken.
    """
    if logdet == "linear":
        return step * jacobian.diagonal(dim1=1, dim2=2).sum(1)
    return torch.log(determinant(linear_part(jacobian, step)))
