"""Functions of phase space that are linear in coefficients: a log-density, and control fields that are gradients.

    ψ = Σ_m c_m g_m(x, v),    u = ∇v Φ,    Φ = Σ_m k_m g_m(x, v)

with the same g, the last hidden layer of a small tanh network and some monomials of v alone and times what x enters as;
ψ has functions of x alone besides, and Φ has v_k³/6 and v_k⁴/24: their averages tie it to the sample, but a ψ that is
fitted with them follows log f no better and E5's entropy is worse (docs/research.md). The exact control field
−κ (v + T ∇v log f) is a gradient in v, and a gradient's Jacobian is symmetric: −log det(I + h ∇v u) is convex in k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from hpc_kjko.inner.control import features
from hpc_kjko.kernels.potential import Network
from hpc_kjko.particles.state import at_once

#: Networks see multiples of so many rows: products of a few rows add up in another order than of many.
ROWS = 128
#: The functions and derivatives of so many particles fit into a core's cache; on a GPU many more are handled at once.
CACHED = 2048
#: And where a kernel keeps these, numbers of so many.
FUSED = 8192
#: How many times wider than a later one the first layer is drawn: beams are narrower than the bath's thermal speed.
FIRST_LAYER = 3.0


class PotentialField(nn.Module):
    """The functions g, and the control field u = ∇v Φ.

    ψ's functions are those that depend on v, ``shared`` in number, then those of x alone. Φ's are the shared ones, then
    powers of v.

    Args:
        periods: box lengths [dx], or None in unbounded space.
        space_dims, velocity_dims: dx and dv.
        hidden: widths of one or two hidden layers.
        seed: of the random layers; the same on every rank and in every precision.
    """

    #: k of Φ's functions [shared + 2 dv], float64. No buffer, which DistributedDataParallel would
    #: broadcast before every one of Adam's steps.
    coefficients: torch.Tensor
    layers: Sequence[nn.Linear]
    #: As a control field has it: nothing leads past the hidden layers but the monomials.
    skip = None

    def __init__(
        self,
        periods: tuple[float, ...] | None,
        space_dims: int,
        velocity_dims: int,
        *,
        hidden: Sequence[int],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.periods, self.space_dims, self.velocity_dims = periods, space_dims, velocity_dims
        widths = [(2 if periods else 1) * space_dims + velocity_dims, *hidden]
        layers = nn.ModuleList(nn.Linear(m, n, dtype=torch.float64) for m, n in zip(widths, widths[1:], strict=False))
        self.layers = cast("Sequence[nn.Linear]", layers)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                bound = (1 if number else FIRST_LAYER) / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
        self.to(device=device, dtype=dtype)
        self.coefficients = torch.zeros(self.shared + 2 * velocity_dims, dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        """Of the last hidden layer: the first of the functions."""
        return self.layers[-1].out_features

    @property
    def shared(self) -> int:
        """How many functions ψ and Φ share: the hidden layer, v_k, v_k v_m, then monomials of v and x."""
        dv, beside = self.velocity_dims, self._beside
        return self.width + dv + dv * (dv + 1) // 2 + dv * beside + (beside if self.periods else 0)

    @property
    def of_density(self) -> int:
        """How many functions ψ has."""
        beside = self._beside
        return self.shared + beside + (0 if self.periods else beside * (beside + 1) // 2) + 1

    @property
    def of_velocity(self) -> np.ndarray:
        """Where among Φ's functions the monomials of v alone are: v_k, v_k v_m, v_k³/6 and v_k⁴/24."""
        dv, width, shared = self.velocity_dims, self.width, self.shared
        low = np.arange(width, width + dv + dv * (dv + 1) // 2)
        return np.concatenate([low, np.arange(shared, shared + 2 * dv)])

    @property
    def _beside(self) -> int:
        """Inputs beside v."""
        return self.layers[0].in_features - self.velocity_dims

    def features(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Network inputs z of positions x [n, dx] and velocities v [n, dv], in their precision."""
        return features(x, v, self.periods)

    def hidden_layers(self, z: torch.Tensor) -> list[torch.Tensor]:
        """Every hidden layer at inputs z, the last of them last: [n, width of the layer]."""
        h, layers = padded(z), []
        for layer in self.layers:
            h = _tanh(layer(h))
            layers.append(h[: len(z)])
        return layers

    def hidden(self, z: torch.Tensor) -> torch.Tensor:
        """The last hidden layer [n, width] at inputs z."""
        return self.hidden_layers(z)[-1]

    def velocity_monomials(self, z: torch.Tensor) -> torch.Tensor:
        """Φ's functions of v alone at inputs z, in the order of :attr:`of_velocity`."""
        v = z[:, self._beside :]
        return torch.cat([v, _products(v), v**3 / 6, v**4 / 24], dim=1)

    def monomials(self, z: torch.Tensor) -> torch.Tensor:
        """The rest of ψ's functions at inputs z: those of v, then those of x alone, the last of which is 1."""
        x, v = z[:, : self._beside], z[:, self._beside :]
        parts = [v, _products(v), (v[:, :, None] * x[:, None]).flatten(1)]
        if self.periods:
            parts += [(v * v).sum(1, keepdim=True) * x, x]
        else:
            parts += [x, _products(x)]
        return torch.cat([*parts, torch.ones_like(z[:, :1])], dim=1)

    def functions(self, z: torch.Tensor) -> torch.Tensor:
        """All of ψ's g [n, M] at inputs z."""
        return torch.cat([self.hidden(z), self.monomials(z)], dim=1)

    def derivatives(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """∂g/∂v_j [n, dv, shared + 2 dv] and ∂²g/∂v_k∂v_m [n, pairs, shared + 2 dv] of Φ's functions."""
        along, bent = self._hidden_derivatives(z)
        first, second = self.monomial_derivatives(z)
        return torch.cat([along, first], -1), torch.cat([bent, second], -1)

    def first_derivatives(self, z: torch.Tensor) -> torch.Tensor:
        """∂g/∂v_j [n, dv, shared + 2 dv] of Φ's functions."""
        return torch.cat([self._hidden_slopes(z)[0][-1][: len(z)], self.monomial_derivatives(z)[0]], -1)

    @property
    def network(self) -> Network:
        """The functions as native kernels take them."""
        layers = [(layer.weight, layer.bias) for layer in self.layers]
        return Network(layers, self.velocity_dims, self.periods is not None)

    @property
    def at_once(self) -> int:
        """Particles to be handled at a time where only numbers of each are wanted."""
        weight = self.layers[0].weight
        return at_once(FUSED if self.network.takes(weight) else CACHED, weight.device)

    @torch.no_grad()
    def values(self, z: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Σ c_m g_m at inputs z, of one set of coefficients after the other: [sets, n], float64.

        Args:
            coefficients: of ψ's functions, then of v_k³/6 and v_k⁴/24 [sets, M + 2 dv]; or of ψ's alone [sets, M].
        """
        missing = self.of_density + 2 * self.velocity_dims - coefficients.shape[1]
        coefficients = nn.functional.pad(coefficients, (0, missing))
        if (network := self.network).takes(z):
            return network.values(z, coefficients)
        higher = self.velocity_monomials(z.double())[:, -2 * self.velocity_dims :]
        g = torch.cat([self.functions(z).double(), higher], dim=1)
        return torch.stack([combined(g, c) for c in coefficients])

    @torch.no_grad()
    def slopes(self, z: torch.Tensor, coefficients: torch.Tensor, bent: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """∇v Φ at inputs z, of one set of coefficients [shared + 2 dv] after the other: [sets, n, dv]; and ∇v∇v Φ of
        the first ``bent`` sets [bent, n, dv, dv]. In the precision of z, without the derivatives of each function."""
        if (network := self.network).takes(z):
            return network.slopes(z, coefficients, bent)
        layers, gradients = self.hidden_layers(z), []
        first, second = self.monomial_derivatives(z)
        bends = self._hidden_derivatives(z)[1] if bent else second[..., :0]
        for c in coefficients:
            pull = c[: self.width].to(z).expand(len(z), -1)
            for layer, h in reversed(list(zip(self.layers, layers, strict=True))):
                pull = (padded(pull * (1 - h * h)) @ layer.weight)[: len(z)]
            gradients.append(pull[:, -self.velocity_dims :] + combined(first, c[self.width :]))
        matrices = [self.matrix(combined(torch.cat([bends, second], dim=-1), c)) for c in coefficients[:bent]]
        none = z.new_empty(0, len(z), self.velocity_dims, self.velocity_dims)
        return torch.stack(gradients), torch.stack(matrices) if matrices else none

    @property
    def pairs(self) -> torch.Tensor:
        """k and m ≤ k of the second derivatives that are not alike [2, pairs]: by v_1² to v_dv², then the mixed."""
        dv = self.velocity_dims
        axes = torch.arange(dv)
        return torch.cat([torch.stack([axes, axes]), torch.tril_indices(dv, dv, -1)], dim=1)

    def monomial_derivatives(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of all but the hidden layer: [n, dv, shared + 2 dv − width] and [n, pairs, shared + 2 dv − width]."""
        dv, (later, earlier) = self.velocity_dims, self.pairs.tolist()
        first = torch.zeros(len(z), dv, len(self.coefficients) - self.width, dtype=z.dtype, device=z.device)
        second = torch.zeros(len(z), len(later), first.shape[2], dtype=z.dtype, device=z.device)
        x, v = z[:, : self._beside], z[:, self._beside :]
        axes, at = torch.arange(dv, device=z.device), 0
        first[:, axes, at + axes] = 1
        at += dv
        for k, m in torch.triu_indices(dv, dv).T.tolist():
            first[:, k, at] += v[:, m]
            first[:, m, at] += v[:, k]
            second[:, list(zip(earlier, later, strict=True)).index((k, m)), at] = 2 if k == m else 1
            at += 1
        for k in range(dv):
            first[:, k, at : at + x.shape[1]] = x
            at += x.shape[1]
        if self.periods:
            first[..., at : at + x.shape[1]] = 2 * v[:, :, None] * x[:, None]
            second[:, axes, at : at + x.shape[1]] = 2 * x[:, None]
            at += x.shape[1]
        for power in (3, 4):
            first[:, axes, at + axes] = v ** (power - 1) / math.factorial(power - 1)
            second[:, axes, at + axes] = v ** (power - 2) / math.factorial(power - 2)
            at += dv
        return first, second

    def _hidden_slopes(self, z: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Of every hidden layer, at padded inputs: its first derivatives [n, dv, width], those of what tanh is taken
        of, and the layer itself [n, width]."""
        h = padded(z)
        along = torch.eye(h.shape[1], dtype=z.dtype, device=z.device)[None, -self.velocity_dims :]
        first, inner, layers = [], [], []
        for layer in self.layers:
            inner.append(along @ layer.weight.T)
            h = _tanh(layer(h))
            along = (1 - h * h)[:, None] * inner[-1]
            first.append(along)
            layers.append(h)
        return first, inner, layers

    def _hidden_derivatives(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the last hidden layer: [n, dv, width] and [n, pairs, width]."""
        later, earlier = self.pairs.to(z.device)
        second: torch.Tensor | None = None
        for layer, along, inner, h in zip(self.layers, *self._hidden_slopes(z), strict=True):
            first, other = (along, inner) if len(later) == 1 else (along[:, later], inner[:, earlier])
            bend = (h[:, None] * first).mul_(other).mul_(-2)
            second = bend if second is None else bend.addcmul_((1 - h * h)[:, None], second @ layer.weight.T)
        assert second is not None
        return along[: len(z)], second[: len(z)]

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        """Symmetric matrices [n, dv, dv] from what they have at the pairs [n, pairs]."""
        later, earlier = self.pairs.to(values.device)
        found = values.new_empty(len(values), self.velocity_dims, self.velocity_dims)
        found[:, later, earlier] = values
        found[:, earlier, later] = values
        return found


def number_of_functions(width: int, space_dims: int, velocity_dims: int, periodic: bool) -> int:
    """How many functions ψ and Φ have together, with a last hidden layer of some width."""
    dv, beside = velocity_dims, (2 if periodic else 1) * space_dims
    of_x = 2 * beside if periodic else beside * (beside + 3) // 2
    return width + dv * (3 + beside) + dv * (dv + 1) // 2 + of_x + 1


def padded(z: torch.Tensor) -> torch.Tensor:
    """Rows of zeros below z, up to a multiple of ROWS."""
    return filled(z, ROWS)


def filled(rows: torch.Tensor, together: int) -> torch.Tensor:
    """Rows of zeros below rows [n, k], up to a multiple of ``together``: at least so many."""
    missing = -len(rows) % together if len(rows) else together
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _products(y: torch.Tensor) -> torch.Tensor:
    """y_k y_m with k ≤ m of rows y [n, d]: [n, d (d + 1)/2]."""
    k, m = torch.triu_indices(y.shape[1], y.shape[1])
    return y[:, k] * y[:, m]


def _tanh(a: torch.Tensor) -> torch.Tensor:
    """tanh to absolute rounding errors, in a third of the time that torch takes for relative ones."""
    return 2 * torch.sigmoid(2 * a) - 1


def combined(functions: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Σ_m c_m g_m [n, ...] from functions [n, ..., M]: each row by itself, so that its bits depend on no other."""
    return (functions * coefficients.to(functions.dtype)).sum(-1)
