"""A start from a function f0(x, v) alone: normalised, drawn from and refused where it is no density."""

import math

import numpy as np
import pytest
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.problems.quasirandom import Sobol
from hpc_kjko.problems.tabulated import TabulatedDensity

L = 4 * math.pi


def start_of(function, dv=1, periods=(L,), dx=1):
    return TabulatedDensity(function, periods, dx, dv, math.prod(periods or (1.0,)), "problem.initial_density")


def drawn(start, dims, count=2**16):
    return start.sample(Sobol(dims, seed=3).points(0, count), 1.0)


def bump_on_tail(x, v):
    bump = 0.1 * torch.exp(-((v[:, 0] - 4.5) ** 2) / 0.5) / 0.5
    return (1 + 0.3 * torch.cos(0.5 * x[:, 0])) * (0.9 * torch.exp(-(v[:, 0] ** 2) / 2) + bump)


def test_a_bump_on_tail_has_its_moments_its_wave_and_its_density():
    start = start_of(bump_on_tail)
    x, v = drawn(start, 2)
    assert v.mean() == pytest.approx(0.45, abs=1e-4)
    assert (v**2).mean() == pytest.approx(0.9 + 0.1 * (4.5**2 + 0.25), abs=2e-3)
    assert abs(np.exp(-0.5j * x).mean()) == pytest.approx(0.15, abs=1e-4)
    assert (v > 3).mean() == pytest.approx(0.9 * 0.00135 + 0.1 * 0.99865, abs=1e-4)
    at = torch.tensor([[0.0]], dtype=torch.float64)
    exact = math.log(1.3 * (0.9 + 0.2 * math.exp(-40.5)) / math.sqrt(2 * math.pi))
    assert start.log_density(at, at, 1.0).item() == pytest.approx(exact, abs=1e-6)
    assert 6 < start.reach < 7


def test_what_is_no_product_is_drawn_jointly_and_the_rest_apart():
    """Velocities along x_1 drift with x; v_2 depends on v_1; v_3 on nothing."""

    def sheared(x, v):
        drift = 0.5 * torch.sin(0.5 * x[:, 0])
        return torch.exp(-((v[:, 0] - drift) ** 2 + (v[:, 1] - 0.3 * v[:, 0]) ** 2 + 2 * v[:, 2] ** 2) / 2)

    start = start_of(sheared, dv=3)
    assert [table.axes for table in start._tables] == [(0, 1, 2), (3,)]
    x, v = drawn(start, 4)
    drift = 0.5 * np.sin(0.5 * x[:, 0])
    assert np.cov(v[:, 0], drift)[0, 1] == pytest.approx(0.125, abs=2e-3)
    assert (v**2).mean(0) == pytest.approx([1.125, 1 + 0.09 * 1.125, 0.5], rel=2e-3)
    assert (v[:, 0] * v[:, 1]).mean() == pytest.approx(0.3 * 1.125, rel=5e-3)
    assert abs((v[:, 2] * v[:, 0]).mean()) < 2e-3


def test_a_beam_beyond_a_gap_is_found():
    """A tenth of the plasma at twenty thermal speeds: f0 is below 1e-40 in between."""

    def far(x, v):
        beam = 0.1 * torch.exp(-2 * (v[:, 0] - 20) ** 2) / 0.5
        return 0.9 * torch.exp(-(v[:, 0] ** 2) / 2) + beam

    _, v = drawn(start_of(far), 2)
    assert (v > 10).mean() == pytest.approx(0.1, abs=1e-3)
    assert 21 < start_of(far).reach < 24


def test_a_wave_that_only_a_few_particles_carry_is_drawn():
    """The core, where f0 is largest, knows nothing of x."""

    def start(x, v):
        beam = 0.1 * torch.exp(-2 * (v[:, 0] - 5.5) ** 2) / 0.5
        return 0.9 * torch.exp(-(v[:, 0] ** 2) / 2) + beam * (1 + 0.01 * torch.cos(0.5 * x[:, 0]))

    x, v = drawn(start_of(start), 2, 2**18)
    assert 2 * np.cos(0.5 * x[v > 4]).mean() == pytest.approx(0.01, rel=0.2)


def test_a_cold_beam_far_out_and_a_power_law_are_found():
    cold = start_of(lambda x, v: torch.exp(-0.5 * ((v[:, 0] - 7.5) / 0.01) ** 2))
    _, v = drawn(cold, 2)
    assert v.mean() == pytest.approx(7.5, abs=1e-4) and v.std() == pytest.approx(0.01, rel=1e-2)
    kappa = start_of(lambda x, v: (1 + v[:, 0] ** 2 / 6) ** -3)
    _, v = drawn(kappa, 2)
    assert (v**2).mean() == pytest.approx(2.0, rel=2e-2)  # ∫v²(1 + v²/6)⁻³ / ∫(1 + v²/6)⁻³


def test_unbounded_space_and_six_dimensions():
    start = start_of(lambda x, v: torch.exp(-0.5 * ((x - 1) ** 2).sum(1) - 2 * (v**2).sum(1)), dv=3, dx=3, periods=None)
    x, v = drawn(start, 6)
    assert x.mean(0) == pytest.approx([1, 1, 1], abs=1e-3) and v.var(0) == pytest.approx([0.25] * 3, rel=5e-3)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    exact = -1.5 - 3 * math.log(2 * math.pi) + 3 * math.log(2)
    assert start.log_density(zero, zero, 1.0).item() == pytest.approx(exact, abs=1e-6)


def maxwellian(v):
    return torch.exp(-0.5 * (v**2).sum(1))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x, v: maxwellian(v) - 0.1, "f0 is negative at x_1 = .*at least 0 everywhere$"),
        (lambda x, v: maxwellian(v) / (v[:, 0] > 20), "f0 is not finite at x_1 = .*a finite number everywhere$"),
        (lambda x, v: 0 * v[:, 0], r"f0 is zero wherever it was looked for, up to .v_j. = 128:"),
        (lambda x, v: torch.ones(len(v)), "does not fall off along v_1"),
        (lambda x, v: torch.exp(-0.5 * v**2), r"must return a floating-point tensor \[n\]"),
        (lambda x, v: (v[:, 0].abs() < 1).long(), r"returned a tensor \[\d+\] of torch.int64$"),
        (lambda x, v: None, "returned None$"),
        (lambda x, v: torch.exp(-((v[:, 0] - 3) ** 2) / 1e-10), "too narrow to be resolved: widen it"),
        (lambda x, v: maxwellian(v) * (1 + 0.9 * torch.cos(4000 * x[:, 0])), "varies too fast"),
    ],
)
def test_what_is_no_density_is_refused_in_a_sentence(function, said):
    with pytest.raises(UserError, match=f"^problem.initial_density: .*{said}"):
        start_of(function)


@pytest.mark.parametrize(
    ("density", "axis"),
    [
        (lambda x, v: 1 + 0.1 * x[:, 0], "x_1"),
        (lambda x, v: 1 + 1e-3 * torch.cos(0.51 * x[:, 0]), "x_1"),
        (lambda x, v: 1 + torch.exp(-8 * x[:, 0] ** 2), "x_1"),
        (lambda x, v: 1 + 0.1 * torch.cos(0.5 * x[:, 0]) + 0.01 * torch.sin(0.55 * x[:, 1]), "x_2"),
        (lambda x, v: 1 + 0.1 * (v[:, 0] > 3) * x[:, 0], "x_1"),  # a few particles' density alone
    ],
)
def test_what_is_not_periodic_is_refused(density, axis):
    dims = 1 + (axis == "x_2")
    with pytest.raises(UserError, match=f"not periodic along {axis}, which runs from 0 to problem.length = 12.56637"):
        start_of(lambda x, v: maxwellian(v) * density(x, v), dv=dims, dx=dims, periods=(L,) * dims)


@pytest.mark.parametrize(
    "density",
    [
        lambda x, v: 1 + 0.5 * torch.sin(0.49999 * x[:, 0]),  # of a length that was rounded
        lambda x, v: 1 + 0.5 * (x[:, 0] < 5),
        lambda x, v: torch.exp(-20 * torch.sin(0.25 * x[:, 0]) ** 2),  # a clump at the seam
        lambda x, v: torch.exp(-(((v[:, 0] - torch.sin(0.5 * x[:, 0])) / 0.05) ** 2)),  # a cold beam
        lambda x, v: (1 + 1e-6 * torch.cos(0.5 * x[:, 0])).float(),
    ],
)
def test_what_is_periodic_is_not_however_steep(density):
    start_of(lambda x, v: maxwellian(v) * density(x, v))


def test_too_many_dimensions_together_ask_for_a_sampler():
    with pytest.raises(UserError, match="no product in x_1, v_1, v_2, v_3.*sample"):
        start_of(lambda x, v: torch.exp(-0.5 * (v**2).sum(1) * (1 + 0.2 * torch.cos(0.5 * x[:, 0]))), dv=3)
