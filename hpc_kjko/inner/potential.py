"""Functions of phase space that are linear in coefficients: a log-density, and control fields that are gradients.

    ψ = Σ_m c_m g_m(x, v),    u = ∇v Φ,    Φ = Σ_m k_m g_m(x, v)

Both use the same functions g. These are the last hidden layer of a small tanh network, monomials of v, and products of
v with the inputs made from x. ψ also has functions of x alone. Φ also has v_k³/6 and v_k⁴/24. The averages of these two
tie Φ to the sample. But a ψ that is fitted with them follows log f no better, and the entropy of experiment E5 is worse
(docs/research.md).

The exact control field −κ (v + T ∇v log f) is a gradient in v. The Jacobian of a gradient is symmetric, so −log det(I +
h ∇v u) is convex in k.
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

#: The number of rows that a network sees is a multiple of this. A product of few rows is added in another order than a
#: product of many.
ROWS = 128
#: The functions and derivatives of this many particles fit into the cache of a core. A GPU handles many more at once.
CACHED = 2048
#: Particles at a time where a kernel keeps the functions to itself and returns a few numbers for each particle.
FUSED = 8192
#: The weights of the first layer are drawn this much wider than those of later ones: beams are narrower than the
#: thermal speed of the bath.
FIRST_LAYER = 3.0


class PotentialField(nn.Module):
    """The functions g, and the control field u = ∇v Φ.

    The functions of ψ are those that depend on v, ``shared`` in number, then those of x alone. The functions of Φ are
    the shared ones, then the powers v_k³/6 and v_k⁴/24.

    Args:
        periods: box lengths [dx], or None in unbounded space.
        space_dims, velocity_dims: dx and dv.
        hidden: widths of one or two hidden layers.
        seed: of the random layers; the same on every rank and in every precision.
    """

    #: k of the functions of Φ [shared + 2 dv], float64. It is no buffer, because DistributedDataParallel would
    #: broadcast buffers before every Adam step.
    coefficients: torch.Tensor
    layers: Sequence[nn.Linear]
    #: The attribute exists as in a control field. Only the monomials bypass the hidden layers.
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
        """The width of the last hidden layer, whose outputs are the first functions."""
        return self.layers[-1].out_features

    @property
    def shared(self) -> int:
        """The number of functions that ψ and Φ share: the hidden layer, v_k, v_k v_m, then monomials of v and x."""
        dv, beside = self.velocity_dims, self._beside
        return self.width + dv + dv * (dv + 1) // 2 + dv * beside + (beside if self.periods else 0)

    @property
    def of_density(self) -> int:
        """The number of functions of ψ."""
        beside = self._beside
        return self.shared + beside + (0 if self.periods else beside * (beside + 1) // 2) + 1

    @property
    def of_velocity(self) -> np.ndarray:
        """The indices of the monomials of v alone among the functions of Φ: v_k, v_k v_m, v_k³/6 and v_k⁴/24."""
        dv, width, shared = self.velocity_dims, self.width, self.shared
        low = np.arange(width, width + dv + dv * (dv + 1) // 2)
        return np.concatenate([low, np.arange(shared, shared + 2 * dv)])

    @property
    def _beside(self) -> int:
        """The inputs that precede v."""
        return self.layers[0].in_features - self.velocity_dims

    def features(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Network inputs z of positions x [n, dx] and velocities v [n, dv], in their precision."""
        return features(x, v, self.periods)

    def hidden_layers(self, z: torch.Tensor) -> list[torch.Tensor]:
        """All hidden layers at inputs z, from the first to the last: [n, width of the layer] each."""
        h, layers = padded(z), []
        for layer in self.layers:
            h = _tanh(layer(h))
            layers.append(h[: len(z)])
        return layers

    def hidden(self, z: torch.Tensor) -> torch.Tensor:
        """The last hidden layer [n, width] at inputs z."""
        return self.hidden_layers(z)[-1]

    def velocity_monomials(self, z: torch.Tensor) -> torch.Tensor:
        """The functions of Φ that depend on v alone, at inputs z, in the order of :attr:`of_velocity`."""
        v = z[:, self._beside :]
        return torch.cat([v, _products(v), v**3 / 6, v**4 / 24], dim=1)

    def monomials(self, z: torch.Tensor) -> torch.Tensor:
        """The other functions of ψ at inputs z: those of v, then those of x alone. The last one is 1."""
        x, v = z[:, : self._beside], z[:, self._beside :]
        parts = [v, _products(v), (v[:, :, None] * x[:, None]).flatten(1)]
        if self.periods:
            parts += [(v * v).sum(1, keepdim=True) * x, x]
        else:
            parts += [x, _products(x)]
        return torch.cat([*parts, torch.ones_like(z[:, :1])], dim=1)

    def functions(self, z: torch.Tensor) -> torch.Tensor:
        """All functions g of ψ [n, M] at inputs z."""
        return torch.cat([self.hidden(z), self.monomials(z)], dim=1)

    def derivatives(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """∂g/∂v_j [n, dv, shared + 2 dv] and ∂²g/∂v_k∂v_m [n, pairs, shared + 2 dv] of the functions of Φ."""
        along, bent = self._hidden_derivatives(z)
        first, second = self.monomial_derivatives(z)
        return torch.cat([along, first], -1), torch.cat([bent, second], -1)

    def first_derivatives(self, z: torch.Tensor) -> torch.Tensor:
        """∂g/∂v_j [n, dv, shared + 2 dv] of the functions of Φ."""
        return torch.cat([self._hidden_slopes(z)[0][-1][: len(z)], self.monomial_derivatives(z)[0]], -1)

    @property
    def network(self) -> Network:
        """The functions in the form that native kernels take."""
        layers = [(layer.weight, layer.bias) for layer in self.layers]
        return Network(layers, self.velocity_dims, self.periods is not None)

    @property
    def at_once(self) -> int:
        """The number of particles handled at a time if only a few numbers of each are wanted."""
        weight = self.layers[0].weight
        return at_once(FUSED if self.network.takes(weight) else CACHED, weight.device)

    @torch.no_grad()
    def values(self, z: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Σ c_m g_m at inputs z, for each set of coefficients: [sets, n], float64.

        Args:
            coefficients: of the functions of ψ, then of v_k³/6 and v_k⁴/24 [sets, M + 2 dv]; or of those of ψ alone
                [sets, M].
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
        """∇v Φ at inputs z for each set of coefficients [shared + 2 dv]: [sets, n, dv]; and ∇v∇v Φ for the first
        ``bent`` sets [bent, n, dv, dv]. Both are in the precision of z. The derivatives of the single functions are not
        formed.
        """
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
        """The index pairs (k, m), m ≤ k, of the second derivatives [2, pairs]: first v_1² to v_dv², then the mixed
        ones.
        """
        dv = self.velocity_dims
        axes = torch.arange(dv)
        return torch.cat([torch.stack([axes, axes]), torch.tril_indices(dv, dv, -1)], dim=1)

    def monomial_derivatives(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The derivatives of all functions but the hidden layer: [n, dv, shared + 2 dv − width] and [n, pairs, shared +
        2 dv − width].
        """
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
        """For every hidden layer, at padded inputs: its first derivatives [n, dv, width], the first derivatives of the
        argument of tanh, and the layer itself [n, width].
        """
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
        """The derivatives of the last hidden layer: [n, dv, width] and [n, pairs, width]."""
        later, earlier = self.pairs.to(z.device)
        second: torch.Tensor | None = None
        for layer, along, inner, h in zip(self.layers, *self._hidden_slopes(z), strict=True):
            first, other = (along, inner) if len(later) == 1 else (along[:, later], inner[:, earlier])
            bend = (h[:, None] * first).mul_(other).mul_(-2)
            second = bend if second is None else bend.addcmul_((1 - h * h)[:, None], second @ layer.weight.T)
        assert second is not None
        return along[: len(z)], second[: len(z)]

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        """Symmetric matrices [n, dv, dv] from their entries at the index pairs [n, pairs]."""
        later, earlier = self.pairs.to(values.device)
        found = values.new_empty(len(values), self.velocity_dims, self.velocity_dims)
        found[:, later, earlier] = values
        found[:, earlier, later] = values
        return found


def number_of_functions(width: int, space_dims: int, velocity_dims: int, periodic: bool) -> int:
    """The number of different functions in ψ and Φ together, for a last hidden layer of this width."""
    dv, beside = velocity_dims, (2 if periodic else 1) * space_dims
    of_x = 2 * beside if periodic else beside * (beside + 3) // 2
    return width + dv * (3 + beside) + dv * (dv + 1) // 2 + of_x + 1


def padded(z: torch.Tensor) -> torch.Tensor:
    """z with rows of zeros appended, up to a multiple of ROWS."""
    return filled(z, ROWS)


def filled(rows: torch.Tensor, together: int) -> torch.Tensor:
    """Rows [n, k] with rows of zeros appended, up to a multiple of ``together``, and to at least that number."""
    missing = -len(rows) % together if len(rows) else together
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _products(y: torch.Tensor) -> torch.Tensor:
    """y_k y_m with k ≤ m of rows y [n, d]: [n, d (d + 1)/2]."""
    k, m = torch.triu_indices(y.shape[1], y.shape[1])
    return y[:, k] * y[:, m]


def _tanh(a: torch.Tensor) -> torch.Tensor:
    """tanh to an absolute rounding error, in a third of the time that torch takes for a relative one."""
    return 2 * torch.sigmoid(2 * a) - 1


def combined(functions: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Σ_m c_m g_m [n, ...] from functions [n, ..., M]. Each row is computed by itself, so its bits do not depend on
    other rows.
    """
    return (functions * coefficients.to(functions.dtype)).sum(-1)
