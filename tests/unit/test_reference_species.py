"""The oracles of several species: against one species, closed forms, and other integrals."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from hpc_kjko.reference import dispersion
from hpc_kjko.reference.dispersion import (
    SpeciesTerm,
    bernstein_frequencies,
    dielectric_function,
    landau_root,
    species_dielectric_function,
    species_root,
    two_stream_growth_rate,
)

ELECTRONS = SpeciesTerm(charge=-1, mass=1, density=1, temperature=1)
DRIFTING = SpeciesTerm(charge=-1, mass=1, density=1, temperature=1, drift=4)
COLD_IONS = SpeciesTerm(charge=1, mass=100, density=1, temperature=0.1)
LIGHT_IONS = SpeciesTerm(charge=1, mass=25, density=1, temperature=1)


def maxwellian(term, v):
    variance = term.temperature / term.mass
    return term.density * np.exp(-((v - term.drift) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


# ---- dispersion relation


@pytest.mark.parametrize(
    "wavenumber, terms, frequency, rate, digits",
    [
        (0.50, [ELECTRONS, COLD_IONS], 0.05508, -0.003534, (5e-6, 5e-7)),
        (0.30, [DRIFTING, LIGHT_IONS], None, 0.1710, (None, 5e-5)),
        (0.28, [DRIFTING, SpeciesTerm(1, 1836, 1, 1)], None, 0.04640, (None, 5e-6)),
    ],
    ids=["ion-acoustic", "buneman-25", "buneman-1836"],
)
def test_roots_as_known(wavenumber, terms, frequency, rate, digits):
    root = species_root(wavenumber, terms)
    assert root.imag == pytest.approx(rate, abs=digits[1])
    if frequency is not None:
        assert root.real == pytest.approx(frequency, abs=digits[0])


@pytest.mark.parametrize("wavenumber", [0.3, 0.5, 2.0, 10.0])
def test_one_species_has_landau_s_root(wavenumber):
    assert species_root(wavenumber, [ELECTRONS]) == pytest.approx(landau_root(wavenumber), rel=1e-10)
    # Charge and mass enter by q^2 n / m and T / m alone.
    other = SpeciesTerm(charge=2, mass=8, density=2, temperature=8)
    assert species_root(wavenumber, [other]) == pytest.approx(landau_root(wavenumber), rel=1e-10)


def test_beams_are_terms_of_one_species():
    beams = [SpeciesTerm(-1, 1, 0.5, 1, drift) for drift in (2.4, -2.4)]
    assert species_root(0.2, beams) == pytest.approx(1j * two_stream_growth_rate(0.2, 2.4, 1.0), abs=1e-10)


def test_a_moving_frame_shifts_the_frequency():
    moved = [SpeciesTerm(t.charge, t.mass, t.density, t.temperature, t.drift - 1.5) for t in (DRIFTING, LIGHT_IONS)]
    assert species_root(0.3, moved) == pytest.approx(species_root(0.3, [DRIFTING, LIGHT_IONS]) - 0.45, abs=1e-10)


def test_buneman_root_is_a_zero_of_the_velocity_integral():
    """epsilon = 1 - sum q^2/m int f0 / (omega - kv)^2 dv, by quadrature: no plasma dispersion function."""
    k, terms = 0.3, [DRIFTING, LIGHT_IONS]
    omega = species_root(k, terms)

    def integrand(v):
        return sum(t.charge**2 / t.mass * maxwellian(t, v) for t in terms) / (omega - k * v) ** 2

    integral, _ = quad(integrand, -8, 14, limit=400, points=[0, 4], complex_func=True)
    assert integral == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("mass", [25.0, 1836.0])
def test_cold_buneman_root_is_that_of_the_polynomial(mass):
    """1 = 1/(omega - ku)^2 + 1/(M omega^2)."""
    u, k = 1.0, 1.0
    terms = [SpeciesTerm(-1, 1, 1, 1e-10, u), SpeciesTerm(1, mass, 1, 1e-10)]
    shifted = np.poly1d([1, -k * u]) ** 2
    square = np.poly1d([1, 0, 0])
    roots = (shifted * square - square - shifted / mass).roots
    assert species_root(k, terms) == pytest.approx(roots[np.argmax(roots.imag)], rel=1e-7)


@pytest.mark.parametrize("zeta", [11.9 + 1j, 12.1 + 1j, 9 - 8.1j, 3 - 12j, 30 - 0.1j, -4 - 13j])
def test_cold_and_warm_formula_agree(zeta):
    """Where the asymptotic series takes over, above and below the real axis."""
    assert species_dielectric_function(np.sqrt(2) * zeta, 1.0, [ELECTRONS]) == pytest.approx(
        dielectric_function(np.sqrt(2) * zeta, 1.0, [(1.0, 0.0, 1.0)]), rel=1e-12
    )


def test_a_guess_picks_the_mode():
    """The electrons' wave, which hardly sees the ions, and the ions' wave, both to the left."""
    terms = [ELECTRONS, COLD_IONS]
    root = species_root(0.5, terms)
    assert species_root(0.5, terms, guess=1.4 - 0.2j) == pytest.approx(landau_root(0.5), rel=5e-3)
    assert species_root(0.5, terms, guess=-1.4 - 0.2j) == pytest.approx(-landau_root(0.5).conjugate(), rel=5e-3)
    assert species_root(0.5, terms, guess=-0.05) == pytest.approx(-root.conjugate(), rel=1e-10)


def test_a_guess_reaches_beyond_the_grid_of_starts():
    """The heavily damped modes of a Maxwellian have no end: zeta ~ (1 - i) sqrt(pi n)."""
    guess = 7.1 - 6.9j
    root = species_root(0.5, [ELECTRONS], guess=guess)
    assert abs(root - guess) < 0.05
    assert abs(species_dielectric_function(root, 0.5, [ELECTRONS])) < 1e-8


def test_a_missed_mode_is_noticed(monkeypatch):
    """Were Newton's method to lose the growing mode, the count of zeros would tell."""
    found = dispersion._newton
    monkeypatch.setattr(dispersion, "_newton", lambda *args: (roots := found(*args))[roots.imag < 0])
    with pytest.raises(ValueError, match="not the fastest growing"):
        species_root(0.3, [DRIFTING, LIGHT_IONS])


def test_no_search_goes_astray():
    """Whatever the plasma, the root found is certified, and it is a zero."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        k = 10 ** rng.uniform(-1.5, 0.5)
        terms = [
            SpeciesTerm(charge, 10 ** rng.uniform(0, 3), 10 ** rng.uniform(-2, 0), 10 ** rng.uniform(-2, 1), drift)
            for charge, drift in zip((-1, 1, 2), rng.uniform(-6, 6, 3), strict=True)
        ]
        root = species_root(k, terms)
        strength = sum((t.plasma_frequency / (k * t.thermal_speed)) ** 2 for t in terms)
        assert abs(species_dielectric_function(root, k, terms)) < 1e-9 * (1 + strength)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: species_root(0.0, [ELECTRONS]), "wavenumber"),
        (lambda: species_root(0.5, [SpeciesTerm(0, 1, 1, 1)]), "charged"),
        (lambda: SpeciesTerm(1, -1, 1, 1), "mass"),
        (lambda: bernstein_frequencies(0.5, 0.0, [ELECTRONS]), "magnetic_field"),
        (lambda: bernstein_frequencies(0.5, 1.0, []), "charged"),
        (lambda: bernstein_frequencies(0.5, 1.0, [DRIFTING]), "drift"),
    ],
)
def test_dispersion_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Bernstein waves


def gyro_orbit_dielectric(frequency, wavenumber, magnetic_field, terms):
    """1 + sum_a int_0^inf G_a(t) e^{i omega t} dt of free gyration: no Bessel functions, no harmonics.

    A kick in the velocity along k has moved a particle by sin(Omega t)/Omega after t. Gyration blurs the density it
    makes by the variance 2 sigma^2 (1 - cos Omega t)/Omega^2 of the displacement. So with Gauss's law
    G = omega_a^2 sin(Omega t)/Omega exp(-l (1 - cos Omega t)). Its period turns the integral into one over a turn.
    """

    def response(t, gyro, blur):
        return np.sin(gyro * t) / gyro * np.exp(-blur * (1 - np.cos(gyro * t)) + 1j * frequency * t)

    total = 1.0
    for term in terms:
        gyro = abs(term.charge) * magnetic_field / term.mass
        blur = (wavenumber * term.thermal_speed / gyro) ** 2
        turn = 2 * np.pi / gyro
        integral, _ = quad(response, 0, turn, args=(gyro, blur), complex_func=True, limit=400)
        total += term.plasma_frequency**2 * integral / (1 - np.exp(1j * frequency * turn))
    assert abs(total.imag) < 1e-6 * (1 + abs(total.real))
    return total.real


@pytest.mark.parametrize("magnetic_field", [0.4, 1.0])
@pytest.mark.parametrize("wavenumber", [0.3, 1.0, 2.5])
def test_bernstein_frequencies_against_the_gyro_orbit(wavenumber, magnetic_field):
    """Between harmonics the two dielectric functions vanish at the same frequency."""
    frequencies = bernstein_frequencies(wavenumber, magnetic_field, [ELECTRONS], count=3)
    for n, frequency in enumerate(frequencies, start=1):
        low, high = (n + 1e-3) * magnetic_field, (n + 1 - 1e-3) * magnetic_field
        arguments = (wavenumber, magnetic_field, [ELECTRONS])
        if low < frequency < high:  # else the harmonic hardly couples
            expected = brentq(gyro_orbit_dielectric, low, high, args=arguments, xtol=1e-10)
            assert frequency == pytest.approx(expected, rel=1e-7)
        else:
            assert wavenumber < 1 and n == 3


def test_bernstein_waves_of_two_species_against_the_gyro_orbit():
    """The lowest one lies above the gyrofrequency of the ions; others cross harmonics of the electrons."""
    ions = SpeciesTerm(1, 4, 1, 0.5)
    terms = [ELECTRONS, ions]
    frequencies = bernstein_frequencies(0.8, 1.0, terms, count=6)
    assert (np.diff(frequencies) > 0).all()
    for frequency in frequencies:
        below, above = (gyro_orbit_dielectric(frequency + d, 0.8, 1.0, terms) for d in (-1e-6, 1e-6))
        assert below < 0 < above


@pytest.mark.parametrize("magnetic_field", [0.5, 1.3])
def test_long_bernstein_waves(magnetic_field):
    """For k -> 0: the upper hybrid frequency, wherever it lies among the harmonics, and harmonics from the second."""
    expected = np.sort([np.hypot(1, magnetic_field), *(magnetic_field * np.arange(2, 5))])
    frequencies = bernstein_frequencies(1e-3, magnetic_field, [ELECTRONS], count=4)
    assert frequencies == pytest.approx(expected, rel=1e-5)


def test_short_bernstein_waves_are_harmonics():
    assert bernstein_frequencies(30.0, 0.5, [ELECTRONS], count=3) == pytest.approx([0.5, 1.0, 1.5], rel=1e-4)


def test_cold_plasma_has_both_hybrid_frequencies():
    """1 = sum omega_a^2 / (omega^2 - Omega_a^2): two frequencies, the others are harmonics."""
    field, ions = 0.7, SpeciesTerm(1, 2.5, 1, 1e-8)
    squares = [field**2, (field / 2.5) ** 2]
    hybrid = np.poly1d(squares, True) - np.poly1d([squares[1]], True) - np.poly1d([squares[0]], True) / 2.5
    frequencies = bernstein_frequencies(0.5, field, [SpeciesTerm(-1, 1, 1, 1e-8), ions], count=8)
    for expected in np.sqrt(hybrid.roots):
        assert np.abs(frequencies - expected).min() < 1e-6
    harmonics = np.union1d(field * np.arange(1, 5), field / 2.5 * np.arange(1, 12))
    assert sum(np.abs(harmonics - frequency).min() > 1e-6 for frequency in frequencies) == 2
