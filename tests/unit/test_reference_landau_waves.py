"""Waves under Landau collisions: the matrix against integrals, pairs and other oracles, waves against both limits."""

import numpy as np
import pytest
from scipy.special import eval_chebyt, eval_genlaguerre, eval_legendre, gammaln, ndtri, roots_genlaguerre, roots_hermite
from scipy.stats import qmc

from hpc_kjko.reference import landau_waves
from hpc_kjko.reference.dispersion import landau_root
from hpc_kjko.reference.landau import COULOMB, Bkw, isotropisation_rate, maxwell_covariance, pair_sum
from hpc_kjko.reference.landau_linear import small_anisotropy
from hpc_kjko.reference.landau_waves import collision_blocks, damping, field_history

K = 0.5


def polynomial(n, degree, v):
    """phi_nl at v, shape (..., d), of norm 1 over the Maxwellian; its sign is that of the highest power."""
    dims = v.shape[-1]
    square = (v**2).sum(axis=-1)
    speed = np.sqrt(square)
    cosine = v[..., 0] / np.where(speed > 0, speed, 1.0)
    angular = eval_legendre(degree, cosine) if dims == 3 else eval_chebyt(degree, cosine)
    mean_square = 1 / (2 * degree + 1) if dims == 3 else (0.5 if degree else 1.0)
    power = degree + dims / 2 - 1
    log_norm = degree * np.log(2) + gammaln(n + power + 1) - gammaln(n + 1) - gammaln(dims / 2)
    radial = (-1) ** n * eval_genlaguerre(n, power, square / 2) * speed**degree
    return radial * angular / np.sqrt(mean_square * np.exp(log_norm))


def gradient(n, degree, v, width=1e-5):
    return np.stack(
        [
            (polynomial(n, degree, v + step) - polynomial(n, degree, v - step)) / (2 * width)
            for step in width * np.eye(v.shape[-1])
        ],
        axis=-1,
    )


# ---- the matrix


@pytest.mark.parametrize("exponent", [-3.0, -2.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_blocks_are_the_integral_over_pairs_in_the_plane(exponent, degree):
    """(u x d/du G)^2 in polar coordinates of u: its angle by a Fourier series, |u| by Gauss, w by Gauss."""
    count, angles = 3, 32
    squares, weights = roots_genlaguerre(20, 2 + exponent / 2)
    points, point_weights = roots_hermite(14)
    angle = 2 * np.pi * np.arange(angles) / angles
    u = np.sqrt(2 * squares)[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    u = u[:, :, None, None]
    w = np.sqrt(2) * np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1)

    def turned(n):
        both = polynomial(n, degree, (w + u) / np.sqrt(2)) + polynomial(n, degree, (w - u) / np.sqrt(2))
        frequencies = 1j * np.fft.fftfreq(angles, 1 / angles)[:, None, None]
        return np.fft.ifft(frequencies * np.fft.fft(both, axis=1), axis=1).real

    # G is even in u, so that what is turned has |u|^4 in its square, which is with the weight.
    turned_of = [turned(n) for n in range(count)]
    measure = (weights / squares**2)[:, None, None, None] * np.outer(point_weights, point_weights) / (np.pi * angles)
    expected = [[2 ** (exponent + 1) * (measure * g * h).sum() for g in turned_of] for h in turned_of]
    block = collision_blocks(exponent, 2, 8)[degree][:count, :count]
    assert np.allclose(block, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dims, exponent, degree", [(2, -2.0, 1), (2, -3.0, 3), (3, COULOMB, 1), (3, -1.0, 3)])
def test_blocks_act_as_pairs_do(dims, exponent, degree):
    """Of M (1 + e g) with particles of M and a score to first order in e, which alone makes pairs collide."""
    n = 1 if degree == 1 else 0
    v = ndtri(qmc.Sobol(dims, rng=3).random(2048))
    velocity, _ = pair_sum(v, -v + gradient(n, degree, v), np.full(len(v), 1 / len(v)), exponent, 0.7)
    block = collision_blocks(exponent, dims, 10)[degree]
    for m in (n, n + 1):
        measured = (velocity * gradient(m, degree, v)).sum(axis=1).mean()
        assert measured == pytest.approx(-0.7 * block[n, m], abs=0.04 * 0.7 * block[n, n])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("exponent", [-3.0, -2.5, 0.0])
def test_density_momentum_and_energy_are_kept_and_nothing_else(dims, exponent):
    blocks = collision_blocks(exponent, dims, 30)
    lowest = [np.linalg.eigvalsh(block)[:3] for block in blocks[:-4]]
    assert not blocks[0][:2].any() and not blocks[0][:, :2].any()
    assert not blocks[1][0].any() and not blocks[1][:, 0].any()
    assert lowest[0][2] > 0.01 and lowest[1][1] > 0.01
    assert all(rates[0] > 0.01 for rates in lowest[2:])
    assert all(np.allclose(block, block.T, rtol=1e-12) for block in blocks)


def test_maxwell_molecules_have_the_rates_of_the_exact_solutions():
    for dims in (2, 3):
        blocks = collision_blocks(0.0, dims, 30)
        assert all(np.allclose(block, np.diag(np.diag(block)), atol=1e-11) for block in blocks)
        stress = maxwell_covariance(np.diag([2.0] + [1.0] * (dims - 1)), 1.0, np.array([0.0, 0.1]))
        decay = np.diff(stress[:, 0, 0] - stress[:, 1, 1]) / (stress[0, 0, 0] - stress[0, 1, 1])
        assert np.exp(-0.1 * blocks[2][0, 0]) == pytest.approx(1 + decay[0], rel=1e-12)
        # The fourth moment is (1 - (1 - K)^2) of that of the Maxwellian.
        bkw = Bkw(dims, 1.0, 0.1)
        ratio = ((1 - bkw.width(0.2)) / (1 - bkw.width(0.0))) ** 2
        assert np.exp(-0.2 * blocks[0][2, 2]) == pytest.approx(ratio, rel=1e-12)


def test_coulomb_collisions_have_the_small_anisotropy_of_the_other_oracle():
    rates, vectors = np.linalg.eigh(collision_blocks(COULOMB, 3, 24)[2])
    times = np.array([0.0, 0.5, 3.0, 10.0])
    decay = np.exp(-0.4 * np.outer(times, rates)) @ vectors[0] ** 2
    assert decay == pytest.approx(small_anisotropy(1.0, 0.4, times, order=12), rel=1e-12)
    closure = isotropisation_rate(1.0, 1.0 + 1e-7, 1.0) / 1e-7 * 1.5
    assert collision_blocks(COULOMB, 3, 2)[2][0, 0] == pytest.approx(closure, rel=1e-6)


@pytest.mark.parametrize("exponent", [-3.0, -2.0, -0.5, 0.0])
def test_one_polynomial_has_the_prandtl_number_of_any_gas(exponent):
    blocks = collision_blocks(exponent, 3, 4)
    assert blocks[1][1, 1] == pytest.approx(2 / 3 * blocks[2][0, 0], rel=1e-13)


@pytest.mark.parametrize("dims", [2, 3])
def test_elements_do_not_depend_on_the_order(dims):
    for low, high in zip(collision_blocks(-2.5, dims, 21), collision_blocks(-2.5, dims, 70), strict=False):
        assert np.allclose(low, high[: len(low), : len(low)], rtol=3e-11, atol=0)


# ---- waves


def collisionless_history(times):
    """a(t) = exp(-k^2 t^2/2) - int (t - s) exp(-k^2 (t - s)^2/2) a(s) ds, by the trapezoidal rule and extrapolation."""
    found = []
    for count in (1600, 3200):
        t = np.linspace(0, times[-1], count + 1)
        kernel = t * np.exp(-((K * t) ** 2) / 2)
        a = np.exp(-((K * t) ** 2) / 2)
        for i in range(1, count + 1):
            a[i] -= t[1] * (kernel[i:0:-1] @ a[:i] - 0.5 * kernel[i] * a[0])
        found.append(np.interp(times, t, a))
    return found[1] + (found[1] - found[0]) / 3


def test_no_collisions_are_landau_damping():
    assert damping(K, 0.0) == pytest.approx(landau_root(K), rel=2e-8)
    assert damping(0.3, 0.0, -2.0, 2) == pytest.approx(landau_root(0.3), rel=2e-8)
    times = np.linspace(0, 40, 81)
    for dims in (2, 3):
        assert field_history(K, 0.0, times, dims=dims) == pytest.approx(collisionless_history(times), abs=3e-7)


def test_few_collisions_tend_to_landau_linearly():
    gaps = [damping(K, strength, -2.0, 2) - landau_root(K) for strength in (0.004, 0.002)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("dims", [2, 3])
def test_many_collisions_are_a_gas_with_viscosity_and_heat_conduction(dims):
    """Of Maxwell molecules, whose stress and heat flux have one rate each. The next order is smaller by 1/C^2."""
    strength = 30.0
    viscosity = 1 / (4 * dims * strength)
    conduction = (dims + 2) / 2 / ((8 if dims == 3 else 4) * strength)
    frequency = np.sqrt(1 + (dims + 2) / dims * K**2)
    viscous = 2 * (dims - 1) / dims * viscosity * K**2
    damped = 0.5 * (viscous + (2 / dims * K**2 / frequency) ** 2 * conduction)
    omega = damping(K, strength, 0.0, dims)
    assert omega.real == pytest.approx(frequency, rel=1e-5)
    assert omega.imag == pytest.approx(-damped, rel=1e-4)


# By an order of 120 without absorption.
@pytest.mark.parametrize(
    "dims, exponent, strength, expected",
    [
        (2, 0.0, 0.1, 1.30962122200 - 0.12757376955j),
        (3, 0.0, 0.02, 1.36325188872 - 0.15018815694j),
        (2, -2.0, 0.4, 1.3468980555 - 0.1618866496j),
        (3, -3.0, 0.4, 1.3731086 - 0.1691023j),
    ],
)
def test_damping_as_found_without_absorption(dims, exponent, strength, expected):
    assert damping(K, strength, exponent, dims) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("dims, exponent, strength", [(2, -3.0, 0.1), (3, -3.0, 0.02)])
def test_damping_is_converged(dims, exponent, strength):
    assert damping(K, strength, exponent, dims) == pytest.approx(damping(K, strength, exponent, dims, 80), abs=1.5e-6)


@pytest.mark.parametrize("dims, exponent, strength", [(2, -2.0, 0.1), (3, -3.0, 0.4), (3, 0.0, 0.05)])
def test_the_field_becomes_the_least_damped_wave(dims, exponent, strength):
    times = np.linspace(20, 30, 41)
    field = field_history(K, strength, times, exponent, dims)
    omega = damping(K, strength, exponent, dims)
    wave = np.exp(-1j * omega * times)
    basis = np.stack([wave.real, wave.imag], axis=1)
    left = field - basis @ np.linalg.lstsq(basis, field, rcond=None)[0]
    assert np.abs(left).max() < 5e-4 * np.abs(field).max()

    rates = np.linalg.eigvals(landau_waves._matrix(K, strength, exponent, dims, 30).toarray())
    oscillating = rates[rates.imag < -1e-3]
    assert 1j * oscillating[np.argmax(oscillating.real)] == pytest.approx(omega, abs=2e-4)


def test_a_history_at_any_times():
    times = np.array([7.3, 0.0, 2.2, 2.2, 30.0])
    field = field_history(K, 0.1, times, -2.0, 2)
    assert field[1] == 1 and field[2] == field[3]
    assert field == pytest.approx(
        field_history(K, 0.1, np.linspace(0, 44.0, 441), -2.0, 2)[[73, 0, 22, 22, 300]], abs=1e-8
    )
    assert field == pytest.approx(field_history(K, 0.1, times, -2.0, 2, order=80), abs=3e-8)
    assert field_history(K, 0.1, np.zeros(2)).tolist() == [1, 1] and field_history(K, 0.1, np.zeros(0)).shape == (0,)
    # n'' = -(k^2 + 1) n at first: of pressure and field, and collisions do nothing yet
    start = field_history(K, 0.4, np.array([0.0, 1e-2]))
    assert start[1] == pytest.approx(1 - 0.5e-4 * (1 + K**2), abs=1e-8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: damping(0.0, 0.1), "wavenumber must be positive"),
        (lambda: damping(K, -0.1), "strength"),
        (lambda: damping(K, 0.1, dims=4), "dims"),
        (lambda: damping(K, 0.1, -4.0, 2), "exponent"),
        (lambda: damping(K, 0.1, order=201), "order"),
        (lambda: damping(1.5, 0.05), "give a higher order"),
        (lambda: field_history(K, 0.1, np.array([-1.0])), "times"),
        (lambda: collision_blocks(1.5, 3, 10), "exponent"),
    ],
)
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
