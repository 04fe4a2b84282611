"""The oracles of several species: against one species, closed forms, other integrals, each other, and invariants."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.signal import argrelmax

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
from hpc_kjko.reference.grid_1d1v import GridSpecies, TooNarrow, solve, solve_species

ELECTRONS = SpeciesTerm(charge=-1, mass=1, density=1, temperature=1)
DRIFTING = SpeciesTerm(charge=-1, mass=1, density=1, temperature=1, drift=4)
COLD_IONS = SpeciesTerm(charge=1, mass=100, density=1, temperature=0.1)
LIGHT_IONS = SpeciesTerm(charge=1, mass=25, density=1, temperature=1)


def maxwellian(term, v):
    variance = term.temperature / term.mass
    return term.density * np.exp(-((v - term.drift) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def on_grid(term, wavenumber, amplitude, half_width=8.0, velocity_cells=128, **collisions):
    """A Maxwellian with a wave in its density, on a grid of so many thermal speeds to both sides of its drift."""
    half_range = half_width * term.thermal_speed
    return GridSpecies(
        lambda x, v: (1 + amplitude * np.cos(wavenumber * x)) * maxwellian(term, v),
        term.charge,
        term.mass,
        term.density,
        (term.drift - half_range, term.drift + half_range),
        velocity_cells,
        **collisions,
    )


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


# ---- grid solver


@pytest.mark.parametrize("operator, collision_strength", [("bath", 0.0), ("bath", 0.3), ("dougherty", 0.3)])
def test_one_species_is_the_one_species_solver(operator, collision_strength):
    term, times = SpeciesTerm(1, 1, 1, 0.8), [0.5, 2.0]
    only = on_grid(term, 0.5, 0.3, 8.0, 64, collision_strength=collision_strength, collision_operator=operator)
    new = solve_species([only], 4 * np.pi, 2.0, 0.1, 16, snapshot_times=times)
    old = solve(
        only.initial_density,
        4 * np.pi,
        collision_strength,
        1.0,
        2.0,
        0.1,
        (16, 64),
        only.velocity_range[1],
        collision_operator=operator,
        snapshot_times=times,
    )
    assert (new.final[0] == old.final).all() and (new.snapshots[0] == old.snapshots).all()
    assert (new.x == old.x).all() and (new.v[0] == old.v).all() and (new.times == old.times).all()
    assert (new.number[0] == old.mass).all() and (new.momentum[0] == old.momentum).all()
    assert (new.kinetic_energy[0] == old.kinetic_energy).all() and (new.field_energy == old.field_energy).all()
    assert (new.entropy[0] == old.entropy).all()


def test_halves_of_a_species_make_the_whole():
    term = SpeciesTerm(-1, 1, 1, 1)
    whole = solve_species([on_grid(term, 0.5, 0.4)], 4 * np.pi, 3.0, 0.1, 16)
    halves = solve_species([on_grid(SpeciesTerm(-1, 1, 0.5, 1), 0.5, 0.4)] * 2, 4 * np.pi, 3.0, 0.1, 16)
    assert halves.final[0] + halves.final[1] == pytest.approx(whole.final[0], abs=1e-13)
    assert halves.field_energy == pytest.approx(whole.field_energy, rel=1e-12)


def test_charge_mass_and_density_scale():
    """The same q^2 n / m and T / m move alike; energies go with the mass."""
    one = solve_species([on_grid(SpeciesTerm(1, 1, 1, 1), 0.5, 0.4)], 4 * np.pi, 3.0, 0.1, 16)
    two = solve_species([on_grid(SpeciesTerm(-2, 8, 2, 8), 0.5, 0.4)], 4 * np.pi, 3.0, 0.1, 16)
    assert two.final[0] == pytest.approx(2 * one.final[0], abs=1e-13)
    assert two.kinetic_energy == pytest.approx(16 * one.kinetic_energy, rel=1e-12)
    assert two.field_energy == pytest.approx(16 * one.field_energy, rel=1e-12)


def test_buneman_growth():
    k, terms = 0.3, [DRIFTING, LIGHT_IONS]
    species = [on_grid(DRIFTING, k, 1e-6, 9.0), on_grid(LIGHT_IONS, k, 0.0, 7.0)]
    run = solve_species(species, 2 * np.pi / k, 60.0, 0.1, 8)
    window = run.times > 35
    growth = 0.5 * np.polyfit(run.times[window], np.log(run.field_energy[window]), 1)[0]
    assert growth == pytest.approx(species_root(k, terms).imag, rel=0.002)


def test_ion_acoustic_wave():
    """After the electrons' wave and the ions' transient are damped away."""
    k, terms = 0.5, [ELECTRONS, COLD_IONS]
    species = [on_grid(ELECTRONS, k, 1e-5), on_grid(COLD_IONS, k, 1e-5, velocity_cells=64)]
    run = solve_species(species, 2 * np.pi / k, 400.0, 0.2, 8)
    window = run.times > 200
    log_energy = np.log(run.field_energy[window])
    i = argrelmax(log_energy)[0]
    before, at, after = log_energy[i - 1], log_energy[i], log_energy[i + 1]
    offset = 0.5 * (before - after) / (before - 2 * at + after)
    peak_time = run.times[window][i] + 0.2 * offset
    gamma = 0.5 * np.polyfit(peak_time, at - 0.25 * (before - after) * offset, 1)[0]
    omega = np.pi / np.polyfit(np.arange(len(i)), peak_time, 1)[0]
    root = species_root(k, terms)
    assert gamma == pytest.approx(root.imag, rel=0.005)
    assert omega == pytest.approx(root.real, rel=0.001)


def test_two_species_invariants():
    """Without collisions numbers and momentum are kept to rounding, the energy to second order in the step."""
    k, ions = 0.5, SpeciesTerm(1, 4, 1, 1)
    species = [on_grid(SpeciesTerm(-1, 1, 1, 1, 1.5), k, 0.3, 10.0, 384), on_grid(ions, k, -0.2, 10.0, 192)]
    errors = []
    for step in (0.1, 0.05):
        run = solve_species(species, 2 * np.pi / k, 10.0, step, 16)
        assert np.ptp(run.number, axis=1).max() < 1e-12 * run.number[0, 0]
        assert np.ptp(run.momentum.sum(axis=0)) < 1e-12 * run.number[0, 0]
        assert np.ptp(run.momentum[0]) > 0.1  # which goes to the ions and back
        assert run.total_energy == pytest.approx(run.kinetic_energy.sum(axis=0) + run.field_energy, rel=1e-14)
        errors.append(np.ptp(run.total_energy) / run.total_energy[0])
    assert errors[1] < 5e-4
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_every_species_relaxes_to_its_bath():
    """Uniform species: d<v>/dt = -kappa <v>, d<v^2>/dt = 2 kappa (T/m - <v^2>), to second order in dv."""
    errors = []
    for n_v in (128, 256):
        warmed = on_grid(SpeciesTerm(-1, 1, 1, 0.5), 1.0, 0.0, 12.0, n_v, collision_strength=0.5, temperature=1.0)
        cooled = on_grid(SpeciesTerm(1, 4, 0.5, 1, 0.5), 1.0, 0.0, 8.0, n_v, collision_strength=1.0, temperature=0.6)
        run = solve_species([warmed, cooled], 1.0, 1.0, 0.1, 4)
        assert run.momentum[0] == pytest.approx(np.zeros(11), abs=1e-12)
        # The second has m n <v> = 1 and m n <v^2> / 2 = 0.5 at first; n T / 2 is 0.5 and 0.15.
        momentum = np.exp(-run.times)
        energies = 0.5 - 0.25 * np.exp(-run.times), 0.15 + 0.35 * np.exp(-2 * run.times)
        assert run.kinetic_energy[:, 0] == pytest.approx([0.25, 0.5], rel=1e-9)
        errors.append(
            [
                np.abs(run.momentum[1] - momentum).max(),
                np.abs(run.kinetic_energy[0] - energies[0]).max(),
                np.abs(run.kinetic_energy[1] - energies[1]).max(),
            ]
        )
    assert max(errors[1]) < 1e-3
    assert np.log2(np.divide(errors[0], errors[1])) == pytest.approx([2.0, 2.0, 2.0], abs=0.1)


def test_common_bath_lowers_the_free_energy():
    k, ions = 0.5, SpeciesTerm(1, 4, 1, 1)
    bath = dict(collision_strength=0.2, temperature=1.0)
    species = [on_grid(SpeciesTerm(-1, 1, 1, 0.8, 0.3), k, 0.4, **bath), on_grid(ions, k, -0.2, **bath)]
    run = solve_species(species, 2 * np.pi / k, 10.0, 0.1, 16)
    free_energy = run.total_energy + run.entropy.sum(axis=0)
    assert np.diff(free_energy).max() < 0
    assert np.ptp(run.number, axis=1).max() < 1e-12 * run.number[0, 0]
    # Two Maxwellians at rest: n log n - n/2 log(2 pi e T/m), and n T / 2 of kinetic energy.
    equilibrium = run.x.size * (run.x[1] - run.x[0]) * (1 - 0.5 * np.log(2 * np.pi * np.e) * 2 + 0.5 * np.log(4))
    assert equilibrium < free_energy[-1] < equilibrium + 0.1 * (free_energy[0] - equilibrium)


# ---- walls


def test_a_particle_bounces():
    """A blob without charge against its images: f(x - vt) unfolded at the walls."""
    length, time = 10.0, 6.0

    def blob(x, v):
        return np.exp(-((x - 6) ** 2) / 0.5 - (v - 1.5) ** 2 / 0.02)

    density = np.pi * np.sqrt(0.5 * 0.02) / length
    one = GridSpecies(blob, 0.0, 2.0, density, (-3.0, 3.0), 256)
    run = solve_species([one], length, time, 0.1, 64, walls=True)
    x, v = run.x[:, None], run.v[0][None, :]
    exact = sum(blob(x - v * time + shift, v) + blob(-x + v * time + shift, -v) for shift in (-20, 0, 20))
    assert run.final[0] == pytest.approx(exact, abs=1e-4)
    assert run.final[0].shape == (64, 256) and run.x[-1] < length
    assert run.momentum[0, -1] == pytest.approx(-run.momentum[0, 0], rel=1e-6)
    assert run.number[0] == pytest.approx(density * length, rel=1e-6)
    assert run.kinetic_energy[0] == pytest.approx(run.kinetic_energy[0, 0], rel=1e-6)


def test_a_wave_between_walls_is_half_of_a_periodic_one():
    k = 0.5
    species = [on_grid(SpeciesTerm(-1, 1, 1, 1), k, 0.3), on_grid(SpeciesTerm(1, 4, 1, 1), k, 0.0)]
    whole = solve_species(species, 2 * np.pi / k, 5.0, 0.1, 32)
    half = solve_species(species, np.pi / k, 5.0, 0.1, 16, walls=True)
    assert half.field_energy == pytest.approx(whole.field_energy / 2, rel=1e-10, abs=1e-14)
    assert half.kinetic_energy == pytest.approx(whole.kinetic_energy / 2, rel=1e-12)
    assert half.final[0] == pytest.approx(whole.final[0][:16], abs=1e-13)
    # A box that does not begin at 0 has its walls at its own ends.
    shifted = [
        GridSpecies(
            lambda x, v, one=one: one.initial_density(x - 1, v),
            one.charge,
            one.mass,
            velocity_range=one.velocity_range,
            velocity_cells=one.velocity_cells,
        )
        for one in species
    ]
    moved = solve_species(shifted, np.pi / k, 5.0, 0.1, 16, left=1.0, walls=True)
    assert moved.field_energy == pytest.approx(half.field_energy, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(density=2.0), "mean density"),
        (dict(velocity_range=(-3.0, 8.0)), "velocity_range"),
        (dict(velocity_range=(8.0, -8.0)), "velocity_range"),
        (dict(mass=0.0), "mass"),
        (dict(collision_strength=-1.0), "collision_strength"),
        (dict(velocity_cells=2), "cells"),
    ],
)
def test_species_refused(change, message):
    arguments = dict(initial_density=lambda x, v: maxwellian(ELECTRONS, v) + 0 * x, velocity_cells=32) | change
    with pytest.raises(ValueError, match=message):
        solve_species([GridSpecies(**arguments)], 4 * np.pi, 1.0, 0.1, 8)


def test_species_box_refused():
    with pytest.raises(ValueError, match="at least one species"):
        solve_species([], 1.0, 1.0, 0.1)
    with pytest.raises(ValueError, match="symmetric"):
        solve_species([on_grid(DRIFTING, 0.5, 0.0)], 1.0, 1.0, 0.1, walls=True)
    with pytest.raises(ValueError, match="length"):
        solve_species([on_grid(ELECTRONS, 0.5, 0.0)], 0.0, 1.0, 0.1)
    heated = on_grid(ELECTRONS, 0.5, 0.0, 5.0, collision_strength=5.0, temperature=9.0)
    with pytest.raises(TooNarrow, match="enlarge velocity_range"):
        solve_species([heated], 4 * np.pi, 1.0, 0.1, 8)
