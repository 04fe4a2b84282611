"""The oracles of Landau collisions: against other integrals, the pair sum on quadrature points, and invariants."""

import numpy as np
import pytest
from scipy.integrate import quad, simpson
from scipy.linalg import eigh_tridiagonal
from scipy.special import gammainc, ndtri, roots_hermitenorm
from scipy.stats import qmc

from hpc_kjko.reference.gaussian import gaussian_entropy
from hpc_kjko.reference.landau import (
    COULOMB,
    MAXWELL,
    Bkw,
    bi_maxwellian_relaxation,
    isotropisation_rate,
    maxwell_covariance,
    pair_sum,
    two_temperature_rate,
    two_temperature_relaxation,
)
from hpc_kjko.reference.landau_linear import small_anisotropy, small_temperature_difference

PLANE = Bkw(dims=2, strength=1 / 16, amplitude=0.5)
SPACE = Bkw(dims=3, strength=1 / 24, amplitude=1.0)


def gauss_points(points, dims):
    """Points (n, dims) and weights (n,) that integrate polynomials against the standard Maxwellian exactly."""
    x, weights = roots_hermitenorm(points)
    v = np.stack(np.meshgrid(*[x] * dims, indexing="ij"), axis=-1).reshape(-1, dims)
    products = np.stack(np.meshgrid(*[weights / np.sqrt(2 * np.pi)] * dims, indexing="ij"), axis=-1)
    return v, products.reshape(-1, dims).prod(axis=1)


def quiet_maxwellian(count, dims, seed=0):
    return ndtri(qmc.Sobol(dims, rng=seed).random(count))


def random_particles(count, dims, seed=0):
    """Velocities, scores, weights: as particles have them, with scores that are the gradient of nothing."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)), rng.normal(size=(count, dims)), rng.uniform(0.5, 1.5, count) / count


def covariance_rate(v, velocity, weights):
    product = np.einsum("i,ij,ik->jk", weights, v, velocity)
    return product + product.T


# ---- isotropisation


def isotropisation_by_angle(parallel, perpendicular):
    """C <z_x (A Sigma^-1 z)_x> with z normal of covariance 2 Sigma: |z| by hand, its direction by quadrature."""

    def integrand(u):
        inverse = u**2 / parallel + (1 - u**2) / perpendicular
        return u**2 * (1 - u**2) / inverse**2

    integral = 2 * quad(integrand, 0, 1, epsabs=0, epsrel=1e-12, limit=200)[0]
    constant = 16 * np.pi / ((4 * np.pi) ** 1.5 * np.sqrt(parallel) * perpendicular)
    return constant * (1 / parallel - 1 / perpendicular) * integral


def test_isotropisation_as_known():
    assert isotropisation_rate(2, 0.5, 1) == pytest.approx(-0.448472, abs=5e-7)
    assert isotropisation_rate(1, 4, 0.5) == pytest.approx(0.5 * 0.236056, abs=5e-7)
    assert isotropisation_rate(1.3, 1.3, 1) == 0


@pytest.mark.parametrize("ratio", [1e-3, 0.3, 0.599, 0.601, 0.97, 1 - 1e-7, 1 + 1e-7, 1.02, 1.399, 1.401, 5, 1e3])
def test_isotropisation_is_the_integral_over_pairs(ratio):
    parallel = 0.7
    perpendicular = ratio * parallel
    expected = isotropisation_by_angle(parallel, perpendicular)
    assert isotropisation_rate(parallel, perpendicular, 2.0) == pytest.approx(2 * expected, rel=3e-9)


def test_isotropisation_has_no_step_where_its_form_changes():
    """Two neighbouring ratios, of which one has the series and one the closed form."""
    for limit in (0.6, 1.4):
        below, above = isotropisation_rate(1, np.array([limit - 1e-9, limit + 1e-9]), 1) / (limit - 1)
        assert below == pytest.approx(above, rel=1e-8)


def test_isotropisation_takes_arrays():
    parallel = np.array([[2.0], [1.0]])
    rates = isotropisation_rate(parallel, [0.5, 4.0, 1.0], 1)
    assert rates.shape == (2, 3)
    assert rates[1, 1] == isotropisation_rate(1, 4, 1)


@pytest.mark.parametrize("start", [(2.0, 0.5), (1.0, 4.0)])
def test_relaxation_follows_the_rate_at_constant_energy(start):
    times = np.array([3.0, 0.0, 1.0, 1.001, 0.999])
    parallel, perpendicular = bi_maxwellian_relaxation(*start, 0.7, times)
    assert (parallel[1], perpendicular[1]) == pytest.approx(start, rel=1e-14)
    assert np.allclose(parallel + 2 * perpendicular, start[0] + 2 * start[1], rtol=1e-14)
    rate = (parallel[3] - parallel[4]) / 0.002
    assert rate == pytest.approx(isotropisation_rate(parallel[2], perpendicular[2], 0.7), rel=1e-6)


def test_relaxation_ends_at_the_linear_rate():
    """The difference of the temperatures keeps its relative accuracy until it has gone."""
    times = np.array([20.0, 30.0, 300.0])
    parallel, perpendicular = bi_maxwellian_relaxation(2.0, 0.5, 1.0, times)
    linear = 3 * 4 / (15 * np.sqrt(np.pi))
    decay = (parallel - perpendicular)[1] / (parallel - perpendicular)[0]
    assert np.log(decay) == pytest.approx(-10 * linear, rel=1e-3)
    assert parallel[2] == pytest.approx(1, abs=1e-15)


# ---- a small anisotropy, without a closure


def test_one_polynomial_is_the_closure():
    times = np.array([0.0, 1.0, 5.0])
    step = 1e-6
    parallel, perpendicular = bi_maxwellian_relaxation(1.5 + 2 * step, 1.5 - step, 0.3, times)
    closure = (parallel - perpendicular) / (3 * step)
    assert small_anisotropy(1.5, 0.3, times, order=1) == pytest.approx(closure, rel=1e-6)


def test_two_polynomials_have_braginskii_s_viscosity():
    """0.96 n T tau, tau = 3 sqrt(pi) / 2 C: one polynomial would give 5/6."""
    times = np.linspace(0, 80, 4001)
    viscosity = simpson(small_anisotropy(1.0, 1.0, times, order=2), x=times) / (1.5 * np.sqrt(np.pi))
    assert viscosity == pytest.approx(0.96, abs=5e-4)


def test_small_anisotropy_starts_as_the_closure_and_lags_behind():
    times = np.array([0.0, 1e-3, 0.5, 2, 5, 15])
    slow = small_anisotropy(1.0, 1.0, times, order=10)
    assert slow == pytest.approx(small_anisotropy(1.0, 1.0, times, order=8), rel=1e-4)
    closure = small_anisotropy(1.0, 1.0, times, order=1)
    assert slow[0] == pytest.approx(1, rel=1e-14)
    assert (1 - slow[1]) / (1 - closure[1]) == pytest.approx(1, rel=1e-3)
    assert (np.diff(slow / closure) > 0).all()
    assert np.all(slow[2:] / closure[2:] > [1.002, 1.05, 1.25, 4])


def test_the_second_polynomial_acts_as_pairs_do():
    """f = M (1 + e L_1 Y) has an isotropic temperature and becomes anisotropic: by the pairs of a quiet sample."""
    strength, size = 1.0, 0.05
    v = quiet_maxwellian(2048, 3)
    square, axis = (v**2).sum(axis=1), v[:, 0] ** 2 - (v**2).mean(axis=1)
    factor = 1 + size * (3.5 - square / 2) * axis
    gradient = (3.5 - square / 2)[:, None] * (2 * v * [1, 0, 0] - 2 / 3 * v) - v * axis[:, None]
    weights = factor / len(v)
    velocity, _ = pair_sum(v, -v + size * gradient / factor[:, None], weights, COULOMB, strength)
    rate = np.diag(covariance_rate(v, velocity, weights))
    measured = rate[0] - rate[1:].mean()
    # Of c0(t), c0(0) = 1, in d(c0)/dt = -F00 c0 - F01 c1 the second derivative is F00^2 + F01^2.
    times = np.array([0.0, 1e-3, 2e-3])
    closure_rate = 12 / (15 * np.sqrt(np.pi))
    second = np.diff(small_anisotropy(1.0, 1.0, times, order=2), 2)[0] / 1e-6
    coupling = np.sqrt(second - closure_rate**2)
    # Norms of the two polynomials are as 1 to sqrt(7/2); the anisotropy of M Y is 2.
    assert abs(measured) == pytest.approx(2 * size * np.sqrt(3.5) * coupling, rel=0.05)


# ---- BKW


@pytest.mark.parametrize("solution, time", [(PLANE, 0.0), (PLANE, 4.0), (SPACE, 5.6), (SPACE, 20.0)])
def test_bkw_has_its_moments(solution, time):
    surface = 2 * np.pi if solution.dims == 2 else 4 * np.pi
    direction = np.ones(solution.dims) / np.sqrt(solution.dims)

    def moment(power):
        return quad(
            lambda r: surface * r ** (solution.dims - 1 + power) * solution.density(r * direction, time),
            0,
            14,
            epsabs=1e-13,
        )[0]

    assert moment(0) == pytest.approx(1, rel=1e-10)
    assert moment(2) == pytest.approx(solution.dims, rel=1e-10)
    assert moment(4) == pytest.approx(solution.fourth_moment(time), rel=1e-10)


@pytest.mark.parametrize("solution, time", [(PLANE, 1.0), (SPACE, 7.0)])
def test_bkw_derivatives(solution, time):
    v = quiet_maxwellian(16, solution.dims)
    assert np.log(solution.density(v, time)) == pytest.approx(solution.log_density(v, time), rel=1e-12)
    step = 1e-5
    for axis, shift in enumerate(step * np.eye(solution.dims)):
        slope = (solution.log_density(v + shift, time) - solution.log_density(v - shift, time)) / (2 * step)
        assert solution.score(v, time)[:, axis] == pytest.approx(slope, abs=1e-8)
        bend = (solution.score(v + shift, time) - solution.score(v - shift, time)) / (2 * step)
        assert solution.hessian(v, time)[:, axis] == pytest.approx(bend, abs=1e-8)
    slope = (solution.log_density(v, time + step) - solution.log_density(v, time - step)) / (2 * step)
    assert solution.log_density_rate(v, time) == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("solution, time", [(PLANE, 1.0), (PLANE, 12.0), (SPACE, 7.0)])
def test_bkw_solves_the_landau_equation(solution, time):
    """On Gauss points the pair sum is the integral: along a particle log f changes by d_t log f + V . s."""
    v, weights = gauss_points(7, solution.dims)
    v = v * np.sqrt(solution.width(time))
    gaussian = np.exp(-(v**2).sum(axis=1) / (2 * solution.width(time))) / (2 * np.pi * solution.width(time)) ** (
        solution.dims / 2
    )
    weights = weights * solution.density(v, time) / gaussian
    score = solution.score(v, time)
    velocity, rate = pair_sum(v, score, weights, MAXWELL, solution.strength, solution.hessian(v, time))
    expected = solution.log_density_rate(v, time) + (velocity * score).sum(axis=1)
    assert np.abs(expected).max() > 1e-3
    assert rate == pytest.approx(expected, abs=1e-11)


def test_bkw_knows_when_it_begins():
    assert PLANE.density(np.zeros(2), 0.0) == 0
    assert PLANE.log_density(np.zeros(2), 0.0) == -np.inf
    assert SPACE.density(np.zeros(3), 6 * np.log(2.5)) == pytest.approx(0, abs=1e-14)
    with pytest.raises(ValueError, match="take a later time"):
        SPACE.density(np.zeros(3), 5.49)
    far = np.full(3, 40.0)
    assert SPACE.density(far, 6.0) == 0 and np.isfinite(SPACE.log_density(far, 6.0))


# ---- moments for Maxwell molecules


@pytest.mark.parametrize("dims", [2, 3])
def test_covariance_relaxes_as_the_pair_sum_says(dims):
    """On Gauss points the pair sum is the integral, for a Gaussian and for another f."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(dims, dims))
    x, weights = gauss_points(6, dims)
    v = x @ root.T
    inverse = np.linalg.inv(root @ root.T)
    bump = 1 + 0.2 * x[:, 0] ** 4 / 3 + 0.1 * x[:, 1] * x[:, 0]
    bump_gradient = np.zeros_like(x)
    bump_gradient[:, 0] = 0.8 * x[:, 0] ** 3 / 3 + 0.1 * x[:, 1]
    bump_gradient[:, 1] = 0.1 * x[:, 0]
    for factor, gradient in [(np.ones(len(v)), np.zeros_like(v)), (bump, bump_gradient)]:
        score = -v @ inverse + gradient @ np.linalg.inv(root) / factor[:, None]
        total = (weights * factor).sum()
        velocity, _ = pair_sum(v, score, weights * factor / total, MAXWELL, 0.3)
        sigma = np.einsum("i,ij,ik->jk", weights * factor / total, v, v)
        step = 1e-4
        expected = (maxwell_covariance(sigma, 0.3, np.array([step]))[0] - sigma) / step
        measured = covariance_rate(v, velocity, weights * factor / total)
        assert measured == pytest.approx(expected, abs=1e-3 * np.abs(expected).max())
        assert measured == pytest.approx(4 * 0.3 * (np.trace(sigma) * np.eye(dims) - dims * sigma), abs=1e-10)


def test_covariance_keeps_energy_and_gains_entropy():
    times = np.linspace(0, 3, 7)
    sigma = maxwell_covariance(np.array([[2.0, 0.3], [0.3, 0.5]]), 0.1, times)
    assert np.trace(sigma, axis1=1, axis2=2) == pytest.approx(2.5, rel=1e-14)
    assert (np.diff([gaussian_entropy(s) for s in sigma]) < 0).all()
    assert sigma[-1] - 1.25 * np.eye(2) == pytest.approx((sigma[0] - 1.25 * np.eye(2)) * np.exp(-2.4), rel=1e-12)
    with pytest.raises(ValueError, match="symmetric"):
        maxwell_covariance(np.array([[1.0, 0.1], [0.0, 1.0]]), 0.1, times)


# ---- two species

IONS = {"temperatures": (1.0, 0.4), "masses": (1.0, 5.0), "densities": (1.0, 0.7), "charges": (-1.0, 2.0)}


def heating_by_test_particles(temperatures, masses, densities, charges, strength):
    """dT_a/dt from the energy loss of a test particle in a Maxwellian, averaged over a.

    nu_energy = 2 [ (m_a/m_b) psi(x) - psi'(x) ] nu_0, x = m_b v^2 / 2 T_b, in the NRL Plasma Formulary.
    """
    (t_a, t_b), (m_a, m_b), (_, n_b), (q_a, q_b) = temperatures, masses, densities, charges

    def loss(v):
        x = m_b * v**2 / (2 * t_b)
        nu_0 = 2 * strength * q_a**2 * q_b**2 * n_b / (m_a**2 * v**3)
        nu = 2 * (m_a / m_b * gammainc(1.5, x) - 2 * np.sqrt(x / np.pi) * np.exp(-x)) * nu_0
        f = 4 * np.pi * v**2 * (m_a / (2 * np.pi * t_a)) ** 1.5 * np.exp(-m_a * v**2 / (2 * t_a))
        return 0.5 * m_a * v**2 * nu * f

    return -2 / 3 * quad(loss, 0, 12 * np.sqrt(t_a / m_a), epsabs=1e-13, limit=200)[0]


def swapped(species):
    return {name: values[::-1] for name, values in species.items()}


@pytest.mark.parametrize("species", [IONS, swapped(IONS), {**IONS, "masses": (1.0, 1.0)}, {**IONS, "masses": (1, 400)}])
def test_spitzer_s_rate_is_that_of_test_particles(species):
    rate = two_temperature_rate(**species, strength=0.2)
    assert rate[0] == pytest.approx(heating_by_test_particles(**species, strength=0.2), rel=1e-9)
    assert rate[1] == pytest.approx(heating_by_test_particles(**swapped(species), strength=0.2), rel=1e-9)
    assert rate @ species["densities"] == pytest.approx(0, abs=1e-15)


def both_species(x, weights, temperatures, masses, densities, charges):
    """Arguments of `pair_sum` for two Maxwellians: standard points x[0], x[1] and their weights."""
    points = [x_s * np.sqrt(t / m) for x_s, t, m in zip(x, temperatures, masses, strict=True)]
    score = [-m / t * v for v, t, m in zip(points, temperatures, masses, strict=True)]
    each = [np.full(len(x_s), value) for values in (masses, charges) for x_s, value in zip(x, values, strict=True)]
    return {
        "v": np.concatenate(points),
        "score": np.concatenate(score),
        "weights": np.concatenate([n * w for n, w in zip(densities, weights, strict=True)]),
        "masses": np.concatenate(each[:2]),
        "charges": np.concatenate(each[2:]),
    }


def heating(particles, velocity, dims):
    """dT/dt of each species: d n T / 2 is its energy."""
    power = particles["weights"] * particles["masses"] * (particles["v"] * velocity).sum(axis=1)
    return 2 / dims * power.reshape(2, -1).sum(axis=1) / particles["weights"].reshape(2, -1).sum(axis=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_heating_by_maxwell_molecules_is_that_of_pairs(dims):
    x, weights = gauss_points(4, dims)
    particles = both_species([x, x], [weights, weights], **IONS)
    velocity, _ = pair_sum(**particles, exponent=MAXWELL, strength=0.2)
    expected = two_temperature_rate(**IONS, strength=0.2, exponent=MAXWELL, dims=dims)
    assert heating(particles, velocity, dims) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exponent, dims", [(COULOMB, 3), (-2.0, 2), (-1.0, 3)])
def test_heating_is_that_of_pairs(exponent, dims):
    """A quiet sample: its error in the rate is up to 0.3 %."""
    count = 1024
    x = quiet_maxwellian(count, 2 * dims)
    weights = np.full(count, 1 / count)
    particles = both_species([x[:, :dims], x[:, dims:]], [weights, weights], **IONS)
    velocity, _ = pair_sum(**particles, exponent=exponent, strength=0.2)
    expected = two_temperature_rate(**IONS, strength=0.2, exponent=exponent, dims=dims)
    assert heating(particles, velocity, dims) == pytest.approx(expected, rel=0.008)


def test_two_temperatures_meet_at_constant_energy():
    times = np.array([0.0, 2.0, 2.001, 1.999, 1e4])
    temperatures = two_temperature_relaxation(**IONS, strength=0.2, times=times)
    energy = np.array(IONS["densities"]) @ IONS["temperatures"]
    assert temperatures @ IONS["densities"] == pytest.approx(energy, rel=1e-14)
    assert temperatures[0] == pytest.approx(IONS["temperatures"], rel=1e-14)
    assert temperatures[-1] == pytest.approx(energy / 1.7, rel=1e-12)
    rate = (temperatures[2] - temperatures[3]) / 0.002
    expected = two_temperature_rate(**{**IONS, "temperatures": temperatures[1]}, strength=0.2)
    assert rate == pytest.approx(expected, rel=1e-6)


def test_maxwell_molecules_of_two_species_relax_exponentially():
    """gamma = 0 with equal masses: the rate of a difference does not depend on temperatures."""
    species = {**IONS, "masses": (1.0, 1.0), "charges": (1.0, 1.0)}
    temperatures = two_temperature_relaxation(**species, strength=0.1, times=np.array([0.5]), exponent=MAXWELL)
    difference = temperatures[0, 0] - temperatures[0, 1]
    # d(T_a - T_b)/dt = -2 (d - 1) C (n_a + n_b) (T_a - T_b)
    assert difference == pytest.approx(0.6 * np.exp(-2 * 2 * 0.1 * 1.7 * 0.5), rel=1e-10)


# ---- a small difference of temperatures, without a closure


def test_equal_species_are_test_particles_of_their_sum():
    """With f_a + f_b the Maxwellian of density 2, f_a - f_b = M p has d_t p = C (v^2 M)^-1 d_v( v^2 D M d_v p ).

    D = 2 psi(x) / (x v) is the diffusion along v, x = v^2/2. Finite volumes in v, of second order.
    """
    cells, strength, times = 1500, 0.7, np.array([0.0, 0.3, 1.0, 3.0, 6.0])
    edges = np.linspace(0, 9, cells + 1)
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1]
    mass = centres**2 * np.exp(-(centres**2) / 2)
    inner = edges[1:-1]
    flow = 2 * gammainc(1.5, inner**2 / 2) * 2 * inner**2 / inner**3 * np.exp(-(inner**2) / 2)
    flow = np.concatenate([[0], strength * flow / width**2, [0]])
    rates, vectors = eigh_tridiagonal((flow[1:] + flow[:-1]) / mass, -flow[1:-1] / np.sqrt(mass[1:] * mass[:-1]))
    start = np.sqrt(mass) * (centres**2 - (mass @ centres**2) / mass.sum())
    expected = np.exp(-np.outer(times, rates)) @ (start @ vectors) ** 2 / (start @ start)
    assert expected[-1] < 0.13
    measured = small_temperature_difference(1.0, (1, 1), (1, 1), (1, -1), strength, times)
    assert measured == pytest.approx(expected, rel=2e-4)


def test_small_difference_starts_at_spitzer_s_rate():
    step, times = 1e-5, np.array([1e-4])
    species = {**IONS, "temperatures": (1.5 + 0.7 * step, 1.5 - step)}
    rate = two_temperature_rate(**species, strength=1.0)
    del species["temperatures"]
    slow = small_temperature_difference(1.5, **species, strength=1.0, times=times)
    assert (1 - slow[0]) / times[0] == pytest.approx((rate[1] - rate[0]) / (1.7 * step), rel=1e-3)
    assert small_temperature_difference(1.5, **species, strength=0.0, times=times) == pytest.approx(1, rel=1e-14)


def test_heavy_species_follow_the_closure():
    """1836 times the mass; equal masses lag behind."""
    for mass, least, most in [(1836.0, 0.99, 1.02), (1.0, 1.15, 1.25)]:
        species = {"masses": (1.0, mass), "densities": (1.0, 1.0), "charges": (-1.0, 1.0), "strength": 1.0}
        rate = two_temperature_rate((1 + 1e-6, 1 - 1e-6), **species)
        times = np.array([-2e-6 / (rate[0] - rate[1])])
        slow = small_temperature_difference(1.0, **species, times=times)
        closure = two_temperature_relaxation((1 + 1e-6, 1 - 1e-6), **species, times=times)
        assert (closure[0, 0] - closure[0, 1]) / 2e-6 == pytest.approx(np.exp(-1), rel=1e-5)
        assert least < slow[0] * np.e < most


# ---- pair sum

SPECIES = {"masses": np.repeat([1.0, 7.0], 30), "charges": np.repeat([-1.0, 2.0], 30)}


@pytest.mark.parametrize("exponent, dims", [(COULOMB, 3), (MAXWELL, 3), (-2.0, 2), (MAXWELL, 2)])
def test_pairs_keep_momentum_and_energy_and_gain_entropy(exponent, dims):
    v, score, weights = random_particles(60, dims)
    velocity, _ = pair_sum(v, score, weights, exponent, 0.5, **SPECIES)
    momentum = (weights * SPECIES["masses"])[:, None] * velocity
    assert np.abs(momentum).max() > 1e-3
    assert momentum.sum(axis=0) == pytest.approx(0, abs=1e-14)
    assert (momentum * v).sum() == pytest.approx(0, abs=1e-14)
    # dH/dt = sum w s . V, whatever the score is
    assert (weights[:, None] * score * velocity).sum() < -1e-3


@pytest.mark.parametrize("exponent", [COULOMB, MAXWELL])
def test_pairs_leave_a_common_equilibrium_alone(exponent):
    v, _, weights = random_particles(60, 3)
    score = -SPECIES["masses"][:, None] * (v - [0.5, -0.2, 1.0]) / 0.8
    velocity, _ = pair_sum(v, score, weights, exponent, 1.0, **SPECIES)
    assert np.abs(velocity).max() < 1e-13
    # A linear score with two temperatures is no equilibrium.
    velocity, _ = pair_sum(v, score * [1, 1, 2], weights, exponent, 1.0, **SPECIES)
    assert np.abs(velocity).max() > 1e-2


def test_pair_sum_is_what_it_says():
    """By loops, with the matrix A written out; also rows in more than one block."""
    v, score, weights = random_particles(60, 3)
    masses, charges = SPECIES["masses"], SPECIES["charges"]
    hessian = np.random.default_rng(2).normal(size=(60, 3, 3))
    velocity, rate = pair_sum(v, score, weights, COULOMB, 0.4, hessian, masses, charges)
    i = 41
    expected, expected_rate = np.zeros(3), 0.0
    for j in range(60):
        if j != i:
            z = v[i] - v[j]
            length = np.linalg.norm(z)
            matrix = (length**2 * np.eye(3) - np.outer(z, z)) / length**3
            factor = 0.4 * (charges[i] * charges[j]) ** 2 / masses[i] * weights[j]
            drive = score[i] / masses[i] - score[j] / masses[j]
            expected -= factor * matrix @ drive
            expected_rate += factor * ((matrix * hessian[i]).sum() / masses[i] - 2 * z @ drive / length**3)
    assert velocity[i] == pytest.approx(expected, rel=1e-12)
    assert rate[i] == pytest.approx(expected_rate, rel=1e-12)
    copies = 40
    many = [np.tile(array, (copies, 1)) for array in (v, score)]
    repeated, _ = pair_sum(
        *many, np.tile(weights / copies, copies), COULOMB, 0.4, None, np.tile(masses, copies), np.tile(charges, copies)
    )
    assert repeated[-60:] == pytest.approx(velocity, rel=1e-10)


@pytest.mark.parametrize("exponent, dims", [(COULOMB, 3), (MAXWELL, 3), (-2.0, 2)])
def test_change_of_log_f_is_minus_the_divergence(exponent, dims):
    """Particles of weight 0 sample the flow: central differences have an error of h^2 here."""
    v, score, weights = random_particles(60, dims)
    wave = np.random.default_rng(3).normal(size=(dims, dims))
    probes = quiet_maxwellian(8, dims, seed=4)

    def score_at(u):
        return -u + 0.5 * np.sin(u @ wave)

    def at(u, hessian=None):
        count = len(u)
        every = np.concatenate([u, v]), np.concatenate([score_at(u), score]), np.concatenate([np.zeros(count), weights])
        masses = np.concatenate([np.full(count, 3.0), SPECIES["masses"]])
        velocity, rate = pair_sum(*every, exponent, 0.5, hessian, masses)
        return velocity[:count], None if rate is None else rate[:count]

    step = 1e-5
    divergence = sum(
        (at(probes + shift)[0] - at(probes - shift)[0])[:, axis] / (2 * step)
        for axis, shift in enumerate(step * np.eye(dims))
    )
    hessian = np.zeros((len(probes) + 60, dims, dims))
    hessian[: len(probes)] = -np.eye(dims) + 0.5 * np.cos(probes @ wave)[:, None, :] * wave
    _, rate = at(probes, hessian)
    assert np.abs(rate).max() > 0.1
    assert rate == pytest.approx(-divergence, abs=1e-6)


@pytest.mark.parametrize("temperatures", [(2, 0.5, 0.5), (1, 4, 4)])
def test_pairs_of_a_bi_maxwellian_isotropise(temperatures):
    """A quiet sample: its error in the rate is below 0.1 %."""
    count = 2048
    v = quiet_maxwellian(count, 3) * np.sqrt(temperatures)
    weights = np.full(count, 1 / count)
    velocity, _ = pair_sum(v, -v / temperatures, weights, COULOMB, 1.0)
    rate = np.diag(covariance_rate(v, velocity, weights))
    expected = isotropisation_rate(*temperatures[:2], 1.0)
    assert rate == pytest.approx([expected, -expected / 2, -expected / 2], rel=0.004)


def test_particles_at_one_place_do_not_collide():
    v = np.zeros((2, 3))
    velocity, rate = pair_sum(v, np.eye(3)[:2], np.full(2, 0.5), COULOMB, 1.0, np.zeros((2, 3, 3)))
    assert (velocity == 0).all() and (rate == 0).all()


# ---- arguments


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: isotropisation_rate(0.0, 1.0, 1.0), "parallel must be positive"),
        (lambda: isotropisation_rate(1.0, 1.0, -1.0), "strength"),
        (lambda: bi_maxwellian_relaxation(1.0, 1.0, 1.0, np.array([-1.0])), "times"),
        (lambda: small_anisotropy(1.0, 1.0, np.zeros(1), order=21), "order"),
        (lambda: Bkw(4, 1.0, 0.1), "dims"),
        (lambda: PLANE.density(np.zeros(3), 0.0), "shape"),
        (lambda: maxwell_covariance(np.eye(1), 1.0, np.zeros(1)), "square matrix"),
        (lambda: two_temperature_rate((1, 1, 1), (1, 1), (1, 1), (1, 1), 1.0), "two numbers"),
        (lambda: two_temperature_rate((1, 1), (1, 0), (1, 1), (1, 1), 1.0), "masses must be positive"),
        (lambda: pair_sum(np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4), MAXWELL, 1.0), "score needs"),
        (lambda: pair_sum(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros(4), MAXWELL, 1.0), "d >= 2"),
    ],
)
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
