#!/usr/bin/env python
"""Speed of the JKO functional and its gradient: automatic differentiation, torch by hand, the native kernel.

    python scripts/bench_objective.py [--quick] [--count N] [--width H] [--threads 1 2]

All variants take turns, round after round. A loop of multiply-adds also takes part, to measure the peak rate of the
machine at that time. Prints one line for each variant, `name, ms, gflops, fraction_of_peak, ratio_to_native`.
Milliseconds are those of the best round. GFLOP/s count the matrix products of the native kernel: two operations for a
multiply-add and none for tanh. This count is the same for every variant of a case. The peak is that of one thread times
the number of threads. Ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from hpc_kjko import kernels
from hpc_kjko.inner.control import LEAKY_SLOPE, ControlField
from hpc_kjko.inner.objective import CONTINUE_BELOW, JKOObjective
from hpc_kjko.operators import Bath

#: (periods, dx, dv)
SPACES = {"1D1V": ((1.0,), 1, 1), "1D3V": ((1.0,), 1, 3), "3D3V": ((1.0, 1.0, 1.0), 3, 3)}
STEP, COLLISION_STRENGTH, TEMPERATURE = 0.1, 1.0, 1.0
#: Rows of a piece that fits into the cache, for variants that are not native.
PIECE = 2048


def operations(inputs: int, width: int, dv: int, activation: str, logdet: str) -> int:
    """Operations per particle in the matrix products of the native kernel."""
    closed = logdet == "linear" and dv > 1
    tangents = 1 if closed else dv
    hidden = 3 * (1 + tangents) - (closed and activation == "leaky_relu")  # W2 and M forward, backward, gradient
    output = 3 * dv * (1 if closed else 1 + tangents)
    return 2 * (hidden * width**2 + 2 * (inputs + 1) * width + output * width)


class ByHand:
    """Value and gradient by explicit formulas, piece by piece, in existing buffers. This is the best that torch can do.

    It uses the method of hpc_kjko/kernels/cpu/objective.cpp with Jacobians, or the closed form for the linear log det.
    """

    def __init__(self, objective: JKOObjective, piece: int = PIECE):
        self.objective, control = objective, objective.control
        self.first, self.second, self.last = control.layers
        self.dv, width = control.velocity_dims, self.second.out_features
        self.tanh, self.linear = control.activation == "tanh", objective.logdet == "linear"
        self.tangents = 1 if self.linear else self.dv
        self.piece = piece
        self.x, self.y, self.g, self.t = (torch.empty(1 + self.tangents, piece, width) for _ in range(4))
        self.slope1, self.slope2, self.bend = (torch.empty(piece, width) for _ in range(3))
        self.gradient = [torch.empty_like(p) for p in objective.parameters()]

    def activate(self, a: torch.Tensor, slope: torch.Tensor) -> None:
        if self.tanh:
            torch.tanh(a, out=a)
            torch.mul(a, a, out=slope).neg_().add_(1)
        else:
            slope.fill_(LEAKY_SLOPE).masked_fill_(a > 0, 1.0)
            a.mul_(slope)

    @torch.no_grad()
    def __call__(self, z: torch.Tensor, v: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        for part in self.gradient:
            part.zero_()
        seed = torch.ones(1, len(self.second.weight)) if self.linear else self.first.weight[:, -self.dv :].T
        into_v = self.first.weight[:, -self.dv :]
        through = (into_v @ self.last.weight).T
        m = self.second.weight * through if self.linear else self.second.weight
        to_m = torch.zeros_like(m)
        total = 0.0
        for begin in range(0, len(z), self.piece):
            rows = slice(begin, begin + self.piece)
            total += self.add(z[rows], v[rows], share[rows], seed, m, to_m)
        if self.linear:
            self.gradient[self.names["w2"]] += to_m * through
            to_through = (to_m * self.second.weight).T
            self.gradient[self.names["w1"]][:, -self.dv :] += to_through @ self.last.weight.T
            self.gradient[self.names["w3"]] += into_v.T @ to_through
        return total

    @property
    def names(self) -> dict[str, int]:
        skip = int(self.objective.control.skip is not None)
        return {"skip": 0, **{name: skip + k for k, name in enumerate(("w1", "b1", "w2", "b2", "w3", "b3"))}}

    def add(self, z, v, share, seed, m, to_m) -> torch.Tensor:
        n, dv, h = len(z), self.dv, STEP
        x, y, g, t = self.x[:, :n], self.y[:, :n], self.g[:, :n], self.t[:, :n]
        slope1, slope2, bend = self.slope1[:n], self.slope2[:n], self.bend[:n]
        w2, w3, skip = self.second.weight, self.last.weight, self.objective.control.skip
        z_skip = z[:, -skip.shape[1] :]
        torch.addmm(self.first.bias, z, self.first.weight.T, out=x[0])
        self.activate(x[0], slope1)
        torch.addmm(self.second.bias, x[0], w2.T, out=y[0])
        self.activate(y[0], slope2)
        for j in range(self.tangents):
            torch.mul(slope1, seed[j], out=x[1 + j])
            torch.mm(x[1 + j], m.T, out=y[1 + j])
            torch.mul(y[1 + j], slope2, out=t[1 + j])
        u = torch.addmm(self.last.bias, y[0], w3.T).addmm_(z_skip, skip.T)
        to_u = (u * (1 / COLLISION_STRENGTH + h)).add_(v).mul_((h * share)[:, None])
        weight = -TEMPERATURE * h * share
        if self.linear:
            divergence = t[1].sum(1) + skip[:, -dv:].diagonal().sum()
            log_det, to_j = h * divergence, weight[:, None, None]
        else:
            jacobian = torch.stack([t[1 + j] @ w3.T for j in range(dv)], dim=2) + skip[:, -dv:]
            matrix = torch.eye(dv) + h * jacobian
            det = matrix[:, 0, 0] if dv == 1 else torch.linalg.det(matrix)
            below = (det - CONTINUE_BELOW) / CONTINUE_BELOW
            low = det < CONTINUE_BELOW
            log_det = torch.where(
                low, below - 0.5 * below**2 + torch.log(torch.tensor(CONTINUE_BELOW)), det.clamp(CONTINUE_BELOW).log()
            )
            slope = torch.where(low, (1 - below) / CONTINUE_BELOW, 1 / det.clamp(CONTINUE_BELOW))
            if dv == 1:
                cofactors = torch.ones_like(matrix)
            else:
                rows = matrix.unbind(1)
                cross = [torch.linalg.cross(rows[(k + 1) % 3], rows[(k + 2) % 3]) for k in range(3)]
                cofactors = torch.stack(cross, dim=1)
            to_j = (weight * slope)[:, None, None] * cofactors
        value = share * ((h / (2 * COLLISION_STRENGTH)) * (u * u).sum(1) + h * ((v + 0.5 * h * u) * u).sum(1))
        loss = (value - TEMPERATURE * share * log_det).sum()

        gradient = {name: self.gradient[k] for name, k in self.names.items()}
        torch.mm(to_u, w3, out=g[0])
        gradient["w3"].addmm_(to_u.T, y[0])
        bend.zero_()
        for j in range(self.tangents):
            if self.linear:
                g[1].copy_(weight[:, None].expand_as(g[1]))
            else:
                torch.mm(to_j[:, :, j], w3, out=g[1 + j])
                gradient["w3"].addmm_(to_j[:, :, j].T, t[1 + j])
            if self.tanh:
                bend.addcmul_(g[1 + j], y[1 + j])
            g[1 + j].mul_(slope2)
        if self.tanh:
            g[0].addcmul_(bend, y[0], value=-2)
        g[0].mul_(slope2)
        gradient["b2"].add_(g[0].sum(0))
        gradient["w2"].addmm_(g[0].T, x[0])
        torch.mm(g[0], w2, out=y[0])
        bend.zero_()
        for j in range(self.tangents):
            (to_m if self.linear else gradient["w2"]).addmm_(g[1 + j].T, x[1 + j])
            if self.tanh or not self.linear:
                torch.mm(g[1 + j], m, out=y[1 + j])
            if self.tanh:
                bend.addcmul_(y[1 + j], seed[j].expand_as(bend))
            if not self.linear:
                gradient["w1"][:, len(z[0]) - dv + j] += y[1 + j].mul_(slope1).sum(0)
        if self.tanh:
            y[0].addcmul_(bend, x[0], value=-2)
        y[0].mul_(slope1)
        gradient["w1"].addmm_(y[0].T, z)
        gradient["b1"].add_(y[0].sum(0))
        gradient["b3"].add_(to_u.sum(0))
        gradient["skip"].addmm_(to_u.T, z_skip)
        if self.linear:
            gradient["skip"][:, -dv:].diagonal().add_(weight.sum())
        else:
            gradient["skip"][:, -dv:].add_(to_j.sum(0))
        return loss


def autograd(objective: JKOObjective, piece: int | None):
    def run(z, v, share):
        objective.zero_grad()
        total = 0.0
        for begin in range(0, len(z), piece or len(z)):
            rows = slice(begin, begin + (piece or len(z)))
            loss = objective.part(STEP, z[rows], v[rows], share[rows], None, None)
            loss.backward()
            total += loss.detach()
        return total

    return run


def fused(objective: JKOObjective):
    def run(z, v, share):
        objective.zero_grad()
        objective(STEP, z, v, share).backward()

    return run


def measure(space: str, width: int, activation: str, logdet: str, count: int, threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    periods, dx, dv = SPACES[space]
    control = ControlField(periods, dx, dv, hidden=(width, width), activation=activation, skip=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        control.layers[-1].weight.copy_(0.1 * torch.randn(dv, width, generator=generator))
    objective = JKOObjective(control, operator=Bath(COLLISION_STRENGTH, TEMPERATURE), logdet=logdet)
    x, v = torch.rand(count, dx, generator=generator), torch.randn(count, dv, generator=generator)
    particles = control.features(x, v), v, torch.full((count,), 1 / count)
    by_hand = ByHand(objective)
    variants = {
        "native": fused(objective),
        "torch by hand": by_hand,
        f"autograd in pieces of {PIECE}": autograd(objective, PIECE),
        "autograd on the full batch": autograd(objective, None),
    }
    variants["native"](*particles)
    gradient = torch.cat([p.grad.ravel() for p in objective.parameters()])
    by_hand(*particles)
    torch.testing.assert_close(torch.cat([p.ravel() for p in by_hand.gradient]), gradient, rtol=1e-3, atol=1e-5)

    seconds, peaks = {name: [] for name in variants}, []
    for _ in range(rounds):
        peaks.append(kernels.require().peak_gflops(0.02) * threads)
        for name, run in variants.items():
            start = time.perf_counter()
            run(*particles)
            seconds[name].append(time.perf_counter() - start)
    giga = 1e-9 * count * operations(particles[0].shape[1], width, dv, activation, logdet)
    case = f"{space} {activation} H={width} {logdet} N={count} threads={threads}"
    for name, times in seconds.items():
        ratio = statistics.median(t / own for t, own in zip(times, seconds["native"], strict=True))
        rate = giga / min(times)
        print(f"{case} {name}, {1e3 * min(times):.3f}, {rate:.2f}, {rate / max(peaks):.3f}, {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few particles and rounds, one thread")
    parser.add_argument("--count", type=int, help="particles (default 100000)")
    parser.add_argument("--width", type=int, default=32, help="width of the hidden layers (default 32)")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (default 1 2)")
    options = parser.parse_args()
    if kernels.backend() is not kernels.Backend.NATIVE:
        sys.exit(f"No comparison is possible: {kernels.describe()}.")
    count = options.count or (20000 if options.quick else 100000)
    from benchmark import print_heading  # not at the top, because tests import this file from another folder

    print_heading("automatic differentiation in torch, as one would write it; torch by hand", options.quick)
    print("name, ms, gflops, fraction_of_peak, ratio_to_native")
    for threads in options.threads or ([1] if options.quick else [1, 2]):
        for space in ("1D1V", "3D3V") if options.quick else SPACES:
            for activation in ("tanh",) if options.quick else ("tanh", "leaky_relu"):
                for logdet in ("exact", "linear"):
                    rounds = 1 if options.quick else 7
                    measure(space, options.width, activation, logdet, count, threads, rounds)


if __name__ == "__main__":
    main()
