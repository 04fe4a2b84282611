"""The oracles against each other, against closed forms, and against conservation laws."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.signal import argrelmax

from hpc_kjko.reference.dispersion import (
    dielectric_function,
    hermite_eigenvalues,
    landau_rate,
    landau_root,
    two_stream_growth_rate,
)
from hpc_kjko.reference.gaussian import (
    gaussian_entropy,
    gaussian_equilibrium,
    gaussian_log_density,
    gaussian_moments,
    gaussian_relative_entropy,
)
from hpc_kjko.reference.grid_1d1v import solve

STIFFNESS_3D = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 1.5]])


def maxwellian(v, temperature=1.0):
    return np.exp(-(v**2) / (2 * temperature)) / np.sqrt(2 * np.pi * temperature)


def perturbed_maxwellian(wavenumber, amplitude, drift=0.0, temperature=1.0):
    return lambda x, v: (1 + amplitude * np.cos(wavenumber * x)) * maxwellian(v - drift, temperature)


def two_stream(wavenumber, amplitude, beam_velocity):
    return lambda x, v: (
        (1 + amplitude * np.cos(wavenumber * x)) * 0.5 * (maxwellian(v - beam_velocity) + maxwellian(v + beam_velocity))
    )


def wave_rate(solution, begin, end):
    """(gamma, omega) of E ~ e^{gamma t} cos(omega t), from the maxima of the log of the field energy."""
    window = (solution.times >= begin) & (solution.times <= end)
    log_energy = np.log(solution.field_energy[window])
    i = argrelmax(log_energy)[0]
    before, at, after = log_energy[i - 1], log_energy[i], log_energy[i + 1]
    offset = 0.5 * (before - after) / (before - 2 * at + after)
    peak_time = solution.times[window][i] + offset * (solution.times[1] - solution.times[0])
    peak = at - 0.25 * (before - after) * offset
    return 0.5 * np.polyfit(peak_time, peak, 1)[0], np.pi / np.polyfit(np.arange(len(i)), peak_time, 1)[0]


# ---- dispersion relation


def test_two_stream_growth_rate_value_and_limits():
    assert two_stream_growth_rate(0.2, 2.4, 1.0) == pytest.approx(0.22584, abs=5e-6)
    # Cold beams grow fastest at k v0 = sqrt(3/8), at 1/sqrt(8).
    assert two_stream_growth_rate(np.sqrt(3 / 8), 1.0, 1e-3) == pytest.approx(np.sqrt(1 / 8), rel=1e-5)
    # Only k sigma and v0/sigma matter.
    scaled = two_stream_growth_rate(0.4, 1.2, 0.5)
    assert scaled == pytest.approx(two_stream_growth_rate(0.2, 2.4, 1.0), rel=1e-12)


def test_two_stream_growth_rate_is_a_zero_of_the_velocity_integral():
    """epsilon = 1 - int f0 / (omega - kv)^2 dv, by quadrature: no plasma dispersion function."""
    k, v0 = 0.2, 2.4
    omega = 1j * two_stream_growth_rate(k, v0, 1.0)
    real, _ = quad(lambda v: (maxwellian(v - v0) / (omega - k * v) ** 2).real, -12, 18, limit=200)
    assert real == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("wavenumber, beam_velocity", [(0.2, 1.25), (0.6, 2.4)])
def test_two_stream_stable_raises(wavenumber, beam_velocity):
    with pytest.raises(ValueError, match="no growing mode"):
        two_stream_growth_rate(wavenumber, beam_velocity, 1.0)


def test_landau_root_value_and_limits():
    root = landau_root(0.5)
    assert root == pytest.approx(1.415662 - 0.153359j, abs=1e-6)
    assert landau_root(0.25, 2.0) == pytest.approx(root, abs=1e-12)
    # Bohm-Gross and one more term: omega^2 = 1 + 3 k^2/omega^2 + 15 k^4/omega^4 = 1 + 3 k^2 + 6 k^4 + O(k^6).
    assert landau_root(0.03).real ** 2 == pytest.approx(1 + 3 * 0.03**2 + 6 * 0.03**4, abs=1e-7)


@pytest.mark.parametrize("wavenumber", [0.3, 0.5, 1.0, 3.0, 10.0])
def test_landau_root_is_the_least_damped(wavenumber):
    """The argument principle counts the zeros with Re omega > 0: none above the root, one just below."""
    root = landau_root(wavenumber)
    margin = 1e-2 * abs(root.imag)

    def zeros_above(floor):
        right, top = 6 * root.real, 5.0
        corners = [1j * floor, right + 1j * floor, right + 1j * top, 1j * top, 1j * floor]
        path = np.concatenate([np.linspace(a, b, 4000) for a, b in zip(corners, corners[1:], strict=False)])
        angle = np.unwrap(np.angle(dielectric_function(path + 1e-6, wavenumber, [(1.0, 0.0, 1.0)])))
        return (angle[-1] - angle[0]) / (2 * np.pi)

    assert zeros_above(root.imag + margin) == pytest.approx(0.0, abs=1e-6)
    assert zeros_above(root.imag - margin) == pytest.approx(1.0, abs=1e-6)


def test_collisional_landau_rate():
    gamma, omega = landau_rate(0.5, 0.1)
    assert gamma == pytest.approx(-0.2107, abs=5e-5)
    assert omega == pytest.approx(1.3643, abs=5e-5)
    assert landau_rate(0.25, 0.1, 4.0) == pytest.approx((gamma, omega), abs=1e-10)


@pytest.mark.parametrize("collision_strength", [0.02, 0.1, 0.3])
def test_collisional_landau_rate_against_the_response_function(collision_strength):
    """1 + int_0^inf G(t) e^{-lambda t} dt = 0, since n(t) = -int_0^t G(t - s) n(s) ds.

    G is the response of an Ornstein-Uhlenbeck process to a kick, G = g exp(-k^2 T (t - g) / kappa) with
    g(t) = (1 - e^{-kappa t}) / kappa: no Hermite functions.
    """
    k, kappa = 0.5, collision_strength
    decay = complex(*landau_rate(k, kappa))

    def integrand(t):
        g = -np.expm1(-kappa * t) / kappa
        return g * np.exp(-(k**2) * (t - g) / kappa - decay * t)

    real, _ = quad(lambda t: integrand(t).real, 0, 300, limit=500, epsabs=1e-12)
    imag, _ = quad(lambda t: integrand(t).imag, 0, 300, limit=500, epsabs=1e-12)
    assert abs(1 + real + 1j * imag) < 1e-9


def test_weak_collisions_tend_to_landau_linearly():
    root = landau_root(0.5)
    gap = [abs(complex(*landau_rate(0.5, kappa)) - complex(root.imag, root.real)) for kappa in (0.04, 0.02)]
    assert gap[0] / gap[1] == pytest.approx(2.0, rel=0.05)
    assert landau_rate(0.5, 0.0) == (root.imag, root.real)


def test_hermite_eigenvalues_are_damped_and_come_in_pairs():
    eigenvalues = hermite_eigenvalues(0.5, 0.3, modes=60)
    assert eigenvalues.shape == (60,)
    assert (np.diff(eigenvalues.real) <= 0).all() and eigenvalues[0].real < 0
    assert np.abs(eigenvalues[:4, None] - eigenvalues.conj()[None, :]).min(axis=1).max() < 1e-10


@pytest.mark.parametrize("collision_strength", [0.0, 1e-5])
def test_hermite_refuses_vanishing_collisions(collision_strength):
    with pytest.raises(ValueError, match="positive|landau_root"):
        hermite_eigenvalues(0.5, collision_strength)


def test_overdamped_wave_has_no_rate():
    with pytest.raises(ValueError, match="no converged oscillating mode"):
        landau_rate(0.2, 3.0)


# ---- grid solver


def test_grid_two_stream_growth():
    k, v0 = 0.2, 2.4
    initial = two_stream(k, 1e-6, v0)
    run = solve(initial, 2 * np.pi / k, 0.0, 1.0, 42.0, 0.1, cells=(8, 128), velocity_max=10.0)
    window = run.times > 30
    growth = 0.5 * np.polyfit(run.times[window], np.log(run.field_energy[window]), 1)[0]
    assert growth == pytest.approx(two_stream_growth_rate(k, v0, 1.0), rel=0.005)


@pytest.mark.parametrize("collision_strength, end", [(0.0, 22.0), (0.1, 16.0)])
def test_grid_landau_damping(collision_strength, end):
    k = 0.5
    initial = perturbed_maxwellian(k, 1e-3)
    run = solve(initial, 2 * np.pi / k, collision_strength, 1.0, end, 0.05, cells=(8, 128))
    gamma, omega = wave_rate(run, 4.0, end)
    expected_gamma, expected_omega = landau_rate(k, collision_strength)
    assert gamma == pytest.approx(expected_gamma, rel=0.01)
    assert omega == pytest.approx(expected_omega, rel=0.002)


def test_grid_has_no_recurrence():
    """Without the filter the damped wave would come back from the grid at t = 2 pi/(k dv) = 50."""
    k = 0.5
    run = solve(perturbed_maxwellian(k, 1e-4), 2 * np.pi / k, 0.0, 1.0, 60.0, 0.1, cells=(8, 64))
    assert run.field_energy[run.times > 40].max() < 1e-5 * run.field_energy[0]


@pytest.mark.parametrize("collision_strength", [0.0, 1.0])
def test_grid_is_second_order_in_the_step(collision_strength):
    k = 0.5
    initial = perturbed_maxwellian(k, 0.3, drift=0.5, temperature=0.8)

    def final(step):
        run = solve(initial, 2 * np.pi / k, collision_strength, 1.0, 4.0, step, (16, 64), velocity_max=6.5)
        return run.final

    reference = final(0.02)
    steps = np.array([0.4, 0.2, 0.1])
    errors = [np.abs(final(step) - reference).max() for step in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 1.95 < slope < 2.15


def test_grid_converges_with_the_velocity_spacing():
    """Collisions alone: d<v>/dt = -kappa <v>, d<v^2>/dt = 2 kappa (T - <v^2>), to second order in dv."""
    errors = []
    for n_v in (64, 128):
        run = solve(perturbed_maxwellian(1.0, 0.0, 1.0, 0.5), 1.0, 1.0, 1.0, 1.0, 0.1, cells=(4, n_v))
        momentum, energy = np.exp(-run.times), 0.5 * (1 + 0.5 * np.exp(-2 * run.times))
        errors.append([np.abs(run.momentum - momentum).max(), np.abs(run.kinetic_energy - energy).max()])
    assert max(errors[1]) < 2e-3
    assert np.log2(np.divide(errors[0], errors[1])) == pytest.approx([2.0, 2.0], abs=0.1)


def test_grid_collisionless_invariants():
    """Nonlinear damping keeps mass and momentum to rounding, the energy to second order in the step."""
    k = 0.5
    initial = perturbed_maxwellian(k, 0.5, drift=0.2)
    energy_error = []
    for step in (0.1, 0.05):
        run = solve(initial, 2 * np.pi / k, 0.0, 1.0, 15.0, step, cells=(16, 384))
        assert np.ptp(run.mass) < 1e-12 * run.mass[0]
        assert np.ptp(run.momentum) < 1e-12 * run.mass[0]
        energy_error.append(np.ptp(run.kinetic_energy + run.field_energy) / run.kinetic_energy[0])
    assert energy_error[1] < 5e-4
    assert energy_error[0] / energy_error[1] == pytest.approx(4.0, rel=0.1)


def test_grid_collisions_keep_mass_and_lower_the_free_energy():
    """The mass is kept to rounding, f stays positive, the momentum decays at kappa, dF/dt < 0."""
    k, kappa = 0.5, 0.1
    initial = perturbed_maxwellian(k, 0.5, drift=0.2)
    run = solve(initial, 2 * np.pi / k, kappa, 1.0, 20.0, 0.1, cells=(16, 128))
    assert np.ptp(run.mass) < 1e-12 * run.mass[0]
    assert run.final.min() > 0
    assert run.momentum == pytest.approx(run.momentum[0] * np.exp(-kappa * run.times), rel=6e-3)
    assert np.diff(run.free_energy).max() < 0
    assert run.free_energy == pytest.approx(run.kinetic_energy + run.field_energy + run.entropy, rel=1e-14)


@pytest.mark.parametrize("collision_strength", [0.0, 2.0])
def test_grid_maxwellian_is_stationary(collision_strength):
    initial = perturbed_maxwellian(1.0, 0.0, temperature=0.7)
    run = solve(initial, 2 * np.pi, collision_strength, 0.7, 10.0, 0.1, cells=(8, 96), velocity_max=6.5)
    assert np.abs(run.final - initial(run.x[:, None], run.v[None, :])).max() < 1e-11
    assert np.abs(run.relative_entropy).max() < 1e-10
    assert run.entropy[0] == pytest.approx(2 * np.pi * gaussian_entropy(0.7), rel=1e-10)


def test_grid_against_the_exact_gaussian():
    """A given quadratic potential on a box wide enough; error of second order in the step."""
    mean, covariance = np.array([1.5, -0.5]), np.array([[0.5, 0.1], [0.1, 0.3]])
    times = np.array([0.0, 0.8, 1.6, 3.2])
    temperature = 0.8
    moments = list(zip(*gaussian_moments(mean, covariance, 1.0, 1.0, temperature, times), strict=True))
    equilibrium = gaussian_equilibrium(1.0, temperature)
    exact_kl = [gaussian_relative_entropy(m, c, *equilibrium) for m, c in moments]

    def density(x, v, mean, covariance):
        return np.exp(gaussian_log_density(np.stack(np.broadcast_arrays(x, v), axis=-1), mean, covariance))

    errors = []
    for step in (0.2, 0.1):
        run = solve(
            lambda x, v: density(x, v, mean, covariance),
            14.0,
            collision_strength=1.0,
            temperature=temperature,
            end=3.2,
            step=step,
            cells=(64, 192),
            velocity_max=7.0,
            acceleration=lambda x: -x,
            potential=lambda x: 0.5 * x**2,
            left=-7.0,
            snapshot_times=times,
        )
        exact = [density(run.x[:, None], run.v[None, :], m, c) for m, c in moments]
        errors.append(np.abs(run.snapshots - exact).max())
        kl = run.relative_entropy[np.rint(times / step).astype(int)]
        assert kl == pytest.approx(exact_kl, abs=0.25 * step**2)
        # F = T KL - T log Z, Z = int exp(-(v^2 + x^2)/2T) = 2 pi T
        free_energy = temperature * (run.relative_entropy - np.log(2 * np.pi * temperature))
        assert run.free_energy == pytest.approx(free_energy, abs=1e-8)
        assert np.diff(run.free_energy).max() < 0
    assert errors[1] < 6e-4
    assert errors[0] / errors[1] > 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"velocity_max": 3.0}, "velocity_max"),
        ({"initial_density": lambda x, v: 2 * maxwellian(v) + 0 * x}, "mean density"),
        ({"step": 0.3}, "multiple"),
        ({"snapshot_times": [2.0]}, "snapshot"),
        ({"potential": lambda x: x}, "acceleration"),
        ({"collision_strength": -1.0}, "collision_strength"),
        ({"temperature": 9.0, "collision_strength": 5.0}, "enlarge velocity_max"),
    ],
)
def test_grid_refuses(change, message):
    arguments = dict(
        initial_density=perturbed_maxwellian(0.5, 0.01),
        length=4 * np.pi,
        collision_strength=0.0,
        temperature=1.0,
        end=1.0,
        step=0.1,
        cells=(8, 32),
    )
    with pytest.raises(ValueError, match=message):
        solve(**(arguments | change))


# ---- Gaussian moments


@pytest.mark.parametrize("collision_strength", [0.0, 0.4])
@pytest.mark.parametrize("stiffness", [np.eye(1), STIFFNESS_3D], ids=["1d", "3d"])
def test_gaussian_moments_against_an_ode_solver(stiffness, collision_strength):
    temperature = 0.7
    d = len(stiffness)
    rng = np.random.default_rng(1)
    root = rng.normal(size=(2 * d, 2 * d))
    mean, covariance = rng.normal(size=2 * d), root @ root.T

    def rhs(t, y):
        (x, v), sigma = y[: 2 * d].reshape(2, d), y[2 * d :].reshape(2 * d, 2 * d)
        half = np.concatenate([sigma[d:], -stiffness @ sigma[:d] - collision_strength * sigma[d:]])
        dsigma = half + half.T
        dsigma[d:, d:] += 2 * collision_strength * temperature * np.eye(d)
        return np.concatenate([v, -stiffness @ x - collision_strength * v, dsigma.ravel()])

    times = np.array([0.0, 0.3, 2.0, 7.0])
    start = np.concatenate([mean, covariance.ravel()])
    ode = solve_ivp(rhs, (0, 7), start, t_eval=times, rtol=1e-11, atol=1e-12, method="DOP853").y.T
    means, covariances = gaussian_moments(mean, covariance, stiffness, collision_strength, temperature, times)
    assert means == pytest.approx(ode[:, : 2 * d], abs=1e-8)
    assert covariances.reshape(len(times), -1) == pytest.approx(ode[:, 2 * d :], abs=1e-8)


def test_gaussian_equilibrium_is_reached_and_kept():
    mean, covariance = gaussian_equilibrium(STIFFNESS_3D, 0.7)
    times = [1e-3, 1.0, 1e3]
    _, kept = gaussian_moments(mean, covariance, STIFFNESS_3D, 0.5, 0.7, times)
    assert kept == pytest.approx(np.broadcast_to(covariance, kept.shape), abs=1e-12)
    means, covariances = gaussian_moments(np.ones(6), 0.1 * np.eye(6), STIFFNESS_3D, 0.5, 0.7, times)
    assert means[-1] == pytest.approx(mean, abs=1e-12)
    assert covariances[-1] == pytest.approx(covariance, abs=1e-12)
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_equilibrium(-1.0, 0.7)


def test_gaussian_relative_entropy_decays_at_the_dissipation_rate():
    """dKL/dt = -(kappa/T) int |v + T d_v log f|^2 f; for a Gaussian the integrand is quadratic."""
    kappa, temperature = 1.3, 0.7
    mean0, covariance0 = np.array([1.5, -0.5]), np.array([[0.5, 0.1], [0.1, 0.3]])
    dt = 1e-4
    means, covariances = gaussian_moments(mean0, covariance0, 2.0, kappa, temperature, [1 - dt, 1.0, 1 + dt])
    equilibrium = gaussian_equilibrium(2.0, temperature)
    kl = [gaussian_relative_entropy(m, c, *equilibrium) for m, c in zip(means, covariances, strict=True)]
    # v + T d_v log f = v - T e_v . Sigma^-1 (z - mu)
    slope = np.array([0.0, 1.0]) - temperature * np.linalg.inv(covariances[1])[1]
    dissipation = means[1][1] ** 2 + slope @ covariances[1] @ slope
    assert (kl[2] - kl[0]) / (2 * dt) == pytest.approx(-kappa / temperature * dissipation, rel=1e-6)
    assert gaussian_relative_entropy(*equilibrium, *equilibrium) == pytest.approx(0.0, abs=1e-14)


def test_gaussian_density_entropy_and_kl_by_quadrature():
    mean, covariance = np.array([0.4, -0.2]), np.array([[0.5, 0.1], [0.1, 0.3]])
    other_mean, other_covariance = np.zeros(2), np.diag([1.0, 0.7])
    s = np.linspace(-6, 6, 241)
    z = np.stack(np.meshgrid(s, s, indexing="ij"), axis=-1)
    cell = (s[1] - s[0]) ** 2
    log_f = gaussian_log_density(z, mean, covariance)
    log_g = gaussian_log_density(z, other_mean, other_covariance)
    f = np.exp(log_f)
    assert log_f.shape == (241, 241)
    assert f.sum() * cell == pytest.approx(1.0, abs=1e-12)
    assert (f * log_f).sum() * cell == pytest.approx(gaussian_entropy(covariance), abs=1e-12)
    kl = gaussian_relative_entropy(mean, covariance, other_mean, other_covariance)
    assert (f * (log_f - log_g)).sum() * cell == pytest.approx(kl, abs=1e-12)


def test_gaussian_moments_refuses_mismatched_shapes():
    with pytest.raises(ValueError, match="stiffness is 3x3"):
        gaussian_moments(np.zeros(2), np.eye(2), STIFFNESS_3D, 1.0, 1.0, [1.0])
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_moments(np.zeros(4), np.eye(4), [[1.0, 0.5], [0.0, 1.0]], 1.0, 1.0, [1.0])


def test_theory_that_every_run_asks_for_loads_no_integrators_and_root_finders():
    """Theory runs before the first step. Loading these modules would take longer than the theory itself."""
    code = """
import sys
from hpc_kjko.reference.dispersion import SpeciesTerm, linear_field_history, species_root
species_root(0.3, [SpeciesTerm(1, 1, 0.9, 1), SpeciesTerm(1, 1, 0.1, 0.25, 4.5)])
linear_field_history(0.2, 0.01, 1.0, [(0.5, 2.4, 1.0), (0.5, -2.4, 1.0)], [0.0, 1.0], 100)
assert not {"scipy.integrate", "scipy.optimize", "scipy.sparse.linalg"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
