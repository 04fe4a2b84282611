"""The control field u(x, v): a small network with its exact velocity divergence and Jacobian.

Its inputs are features z of (x, v): (cos 2πx/L, sin 2πx/L) for a periodic coordinate or x itself otherwise, then v. Let
W1v be the columns of the first layer that multiply v. Then the divergence of a network with two hidden layers is
exactly

    ∇v·u = s'(a2)ᵀ [ W2 ∘ (W1v W3)ᵀ ] s'(a1)

This is one H × H product per particle for any dv. It needs no backward pass for each component and no stochastic trace.
A linear skip S from v (and from x, if it is not periodic) to the output adds the trace of its v columns.

The field is linear in its output layer: u = C g with g = (s(a2), skipped inputs, 1). :meth:`ControlField.basis` returns
g with its velocity derivatives, for solvers that find C in closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import nn

from hpc_kjko.kernels.constants import LEAKY_SLOPE
from hpc_kjko.kernels.field import field, fused


class ControlField(nn.Module):
    """u = W3 s(W2 s(W1 z + b1) + b2) + S z + b3, linear output of size dv; ``hidden = []`` is the affine field.

    The output layer starts at zero. So training starts from u ≡ 0, which is feasible for every density.

    Args:
        periods: box lengths [dx], or None in unbounded space.
        space_dims, velocity_dims: dx and dv.
        hidden: widths of at most two hidden layers.
        activation: "tanh" or "leaky_relu" (slope 0.01).
        seed: of the random first layers; the same on every rank and in every precision.
        parameters: number of further inputs that precede the features, such as time.
        skip: whether S is there. The field of an equilibrium is linear in v, so with S the network learns only the
            rest.
    """

    def __init__(
        self,
        periods: tuple[float, ...] | None,
        space_dims: int,
        velocity_dims: int,
        *,
        hidden: Sequence[int] = (32, 32),
        activation: Literal["tanh", "leaky_relu"] = "tanh",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        parameters: int = 0,
        skip: bool = False,
    ):
        super().__init__()
        self.periods, self.velocity_dims = periods, velocity_dims
        self.activation = activation
        inputs = parameters + (2 if periods else 1) * space_dims + velocity_dims
        widths = [inputs, *hidden, velocity_dims]
        layers = nn.ModuleList(nn.Linear(m, n, dtype=torch.float64) for m, n in zip(widths, widths[1:], strict=False))
        self.layers: Sequence[nn.Linear] = cast("Sequence[nn.Linear]", layers)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers[:-1]:
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            self.layers[-1].weight.zero_()
            self.layers[-1].bias.zero_()
        skipped = velocity_dims if periods else space_dims + velocity_dims
        self.skip = nn.Parameter(torch.zeros(velocity_dims, skipped, dtype=torch.float64)) if skip and hidden else None
        self.to(device=device, dtype=dtype)

    def features(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Network inputs z of positions x [n, dx] and velocities v [n, dv], in the precision of x and v."""
        return features(x, v, self.periods)

    def position_derivatives(self, x: torch.Tensor) -> torch.Tensor:
        """∂z/∂x_j [n, dx, inputs] of the features at positions x [n, dx]."""
        dims = x.shape[1]
        derivative = torch.zeros(len(x), dims, self.layers[0].in_features, dtype=x.dtype, device=x.device)
        axes = torch.arange(dims, device=x.device)
        if self.periods is None:
            derivative[:, axes, axes] = 1.0
        else:
            wavenumber = 2 * math.pi / torch.tensor(self.periods, dtype=x.dtype, device=x.device)
            derivative[:, axes, axes] = -wavenumber * torch.sin(wavenumber * x)
            derivative[:, axes, dims + axes] = wavenumber * torch.cos(wavenumber * x)
        return derivative

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """u [n, dv] at features z [n, inputs]."""
        h = z
        for layer in self.layers[:-1]:
            h = self._activate(layer(h))[0]
        return self._output(h, z)

    def with_divergence(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u [n, dv] and ∇v·u [n] at features z [n, inputs]."""
        *hidden, output = self.layers
        h, slopes = z, []
        for layer in hidden:
            h, slope = self._activate(layer(h))
            slopes.append(slope)
        into_v = self.layers[0].weight[:, -self.velocity_dims :]
        if not hidden:
            divergence = into_v.diagonal().sum().expand(len(z))
        elif len(hidden) == 1:
            divergence = slopes[0] @ (into_v * output.weight.T).sum(1)
        else:
            coupling = hidden[1].weight * (into_v @ output.weight).T
            divergence = ((slopes[0] @ coupling.T) * slopes[1]).sum(1)
        if self.skip is not None:
            divergence = divergence + self.skip[:, -self.velocity_dims :].diagonal().sum()
        return self._output(h, z), divergence

    def with_jacobian(self, z: torch.Tensor, tangents: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """u [n, dv] and its Jacobian ∂u_k/∂v_j [n, k, j] at features z [n, inputs], by dv forward tangents.

        Args:
            tangents: ∂z/∂v_j [n, dv, inputs], if the last inputs are not simply v.
        """
        if tangents is None and fused(self.widths, z, self.layers[0].weight):
            layers = [(layer.weight, layer.bias) for layer in self.layers]
            return field(z, layers, self.skip, activation=self.activation)
        h, along = self._hidden(z, tangents)
        along = [t @ self.layers[-1].weight.T for t in along]
        if self.skip is not None:
            skipped = self._skipped_tangents(tangents)
            along = [t + s @ self.skip.T for t, s in zip(along, skipped, strict=True)]
        jacobian = torch.stack([t.expand(len(z), -1) for t in along], dim=2)
        return self._output(h, z), jacobian

    def basis(self, z: torch.Tensor, tangents: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """g [n, M] with u = C g, and ∂g/∂v_j [n, dv, M], at features z.

        The columns are those of :attr:`coefficients`: the last hidden layer, the skipped inputs, 1.
        """
        h, along = self._hidden(z, tangents)
        g, derivatives = [h], [[t.expand(len(z), -1)] for t in along]
        if self.skip is not None:
            g.append(z[:, -self.skip.shape[1] :])
            for parts, skipped in zip(derivatives, self._skipped_tangents(tangents), strict=True):
                parts.append(skipped.expand(len(z), -1))
        g.append(torch.ones_like(z[:, :1]))
        for parts in derivatives:
            parts.append(torch.zeros_like(z[:, :1]))
        return torch.cat(g, dim=1), torch.stack([torch.cat(parts, dim=1) for parts in derivatives], dim=1)

    @property
    def widths(self) -> list[int]:
        """The sizes of the inputs, the hidden layers and the output."""
        return [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]

    @property
    def coefficients(self) -> torch.Tensor:
        """C [dv, M]: output weights, skip, bias."""
        output = self.layers[-1]
        parts = [output.weight, *([self.skip] if self.skip is not None else []), output.bias[:, None]]
        return torch.cat([part.detach() for part in parts], dim=1)

    @coefficients.setter
    def coefficients(self, values: torch.Tensor) -> None:
        output = self.layers[-1]
        width = output.in_features
        with torch.no_grad():
            output.weight.copy_(values[:, :width])
            output.bias.copy_(values[:, -1])
            if self.skip is not None:
                self.skip.copy_(values[:, width:-1])

    def _hidden(self, z: torch.Tensor, tangents: torch.Tensor | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The input of the output layer, and its derivative along each v_j ([1, width] if it is the same for every
        particle).
        """
        if tangents is None:
            identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
            along = [row[None, :] for row in identity[-self.velocity_dims :]]
        else:
            along = list(tangents.unbind(1))
        for layer in self.layers[:-1]:
            z, slope = self._activate(layer(z))
            along = [slope * (t @ layer.weight.T) for t in along]
        return z, along

    def _skipped_tangents(self, tangents: torch.Tensor | None) -> list[torch.Tensor]:
        """The derivative of the skipped inputs along each v_j."""
        assert self.skip is not None
        if tangents is not None:
            return list(tangents[:, :, -self.skip.shape[1] :].unbind(1))
        identity = torch.eye(self.skip.shape[1], dtype=self.skip.dtype, device=self.skip.device)
        return [row[None, :] for row in identity[-self.velocity_dims :]]

    def _output(self, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        u = self.layers[-1](h)
        return u if self.skip is None else u + z[:, -self.skip.shape[1] :] @ self.skip.T

    def _activate(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s(a) and s'(a). For leaky_relu the slope is piecewise constant: autograd sees no gradient through it."""
        if self.activation == "tanh":
            s = torch.tanh(a)
            return s, 1 - s * s
        return nn.functional.leaky_relu(a, LEAKY_SLOPE), torch.full_like(a, LEAKY_SLOPE).masked_fill_(a > 0, 1.0)


def features(x: torch.Tensor, v: torch.Tensor, periods: tuple[float, ...] | None) -> torch.Tensor:
    """Network inputs of positions x [n, dx] and velocities v [n, dv]: cosines and sines of a periodic x, then v."""
    if periods is None:
        return torch.cat([x, v], dim=1)
    phase = x * _wave_numbers(periods, x.dtype, x.device)
    return torch.cat([torch.cos(phase), torch.sin(phase), v], dim=1)


@functools.lru_cache(maxsize=8)
def _wave_numbers(periods: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """2π over the lengths of a box [dx]. The result is kept, because sending it to a GPU takes time in every step."""
    return 2 * math.pi / torch.tensor(periods, dtype=dtype, device=device)


def determinant(matrix: torch.Tensor) -> torch.Tensor:
    """det of [n, d, d] matrices, d ≤ 3, in closed form with its sign: [n]."""
    m = matrix.unbind(1)
    if matrix.shape[1] == 1:
        return m[0][:, 0]
    if matrix.shape[1] == 2:
        return m[0][:, 0] * m[1][:, 1] - m[0][:, 1] * m[1][:, 0]
    return (torch.linalg.cross(m[0], m[1]) * m[2]).sum(1)


def smallest_eigenvalue(matrix: torch.Tensor) -> torch.Tensor:
    """Smallest eigenvalue of the symmetric part of [n, d, d] matrices, d ≤ 3, in closed form: [n].

    For d = 3 the trigonometric solution of the characteristic cubic: O. K. Smith, doi:10.1145/355578.366316.
    """
    symmetric = 0.5 * (matrix + matrix.transpose(1, 2))
    dims = matrix.shape[1]
    mean = symmetric.diagonal(dim1=1, dim2=2).mean(1)
    if dims == 1:
        return mean
    deviation = symmetric - mean[:, None, None] * torch.eye(dims, dtype=matrix.dtype, device=matrix.device)
    spread = torch.sqrt((deviation**2).sum((1, 2)) / (dims * (dims - 1)))
    if dims == 2:
        return mean - spread
    unit = deviation / torch.where(spread > 0, spread, torch.ones_like(spread))[:, None, None]
    angle = torch.acos((0.5 * determinant(unit)).clamp(-1, 1)) / 3
    return mean + 2 * spread * torch.cos(angle + 2 * math.pi / 3)
