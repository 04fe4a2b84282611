"""Rates of waves: what is fitted to a known wave, and what theory a run knows of its own."""

import numpy as np
import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.files.series import SeriesWriter
from hpc_kjko.files.wavetheory import WaveTheory, read_theory, theory_attributes
from hpc_kjko.post import rates
from hpc_kjko.reference.dispersion import (
    SpeciesTerm,
    bernstein_frequencies,
    landau_rate,
    landau_root,
    species_root,
    two_stream_growth_rate,
)
from hpc_kjko.reference.grid_1d1v import solve
from hpc_kjko.reference.landau_waves import damping
from hpc_kjko.reference.roots import bath_root, branch_of, dougherty_root, kappa_root
from hpc_kjko.running.wave_theory import theory_of

TIME = np.arange(0, 40, 0.1)


def noise(seed: int, size: float) -> np.ndarray:
    """Complex noise that is correlated over a time unit, as that of particles is."""
    random, found = np.random.default_rng(seed), np.zeros(len(TIME), complex)
    for i in range(1, len(TIME)):
        found[i] = 0.9 * found[i - 1] + size * complex(*random.normal(size=2))
    return found


def saturating(seed: int) -> np.ndarray:
    amplitude = 0.01 * np.exp(0.25 * TIME)
    return np.abs(amplitude / np.sqrt(1 + amplitude**2) + noise(seed, 3e-4)) ** 2


def standing(seed: int) -> np.ndarray:
    return (0.1 * np.exp(-0.153 * TIME) * np.cos(1.4156 * TIME) + noise(seed, 1e-4).real) ** 2


def travelling(seed: int) -> np.ndarray:
    return np.abs(0.1 * np.exp(-0.153 * TIME) + noise(seed, 2e-4)) ** 2


@pytest.mark.parametrize(
    ("wave", "rate", "points"),
    [(saturating, 0.25, "rows"), (standing, -0.153, "maxima"), (travelling, -0.153, "rows")],
)
def test_a_rate_is_found_before_saturation_and_above_the_noise_with_its_error(wave, rate, points):
    found = [rates.fit(TIME, wave(seed)) for seed in range(8)]
    assert all(one.is_clear and one.points == points for one in found)
    assert np.mean([one.rate for one in found]) == pytest.approx(rate, rel=0.02)
    assert np.mean([abs(one.rate - rate) < 3 * one.error for one in found]) >= 0.75
    assert max(one.error for one in found) < 0.05 * abs(rate)
    assert max(one.window[1] for one in found) < 30  # not where it is saturated, or noise
    if points == "maxima":
        assert found[0].frequency == pytest.approx(1.4156, abs=3 * found[0].frequency_error)


def test_a_rate_is_found_between_a_larger_transient_and_a_slow_saturation():
    found = []
    for seed in range(8):
        transient = 4 * np.exp(-0.3 * TIME) * np.cos(1.3 * TIME + seed)
        amplitude = 0.01 * (np.exp(0.2 * TIME) + transient) + noise(seed, 1e-3).real
        found.append(rates.fit(TIME, amplitude**2 / (1 + amplitude**2)))
    assert all(one.is_clear for one in found)
    assert np.mean([one.rate for one in found]) == pytest.approx(0.2, rel=0.03)
    assert np.mean([abs(one.rate - 0.2) < 3 * one.error for one in found]) >= 0.75


def test_a_wave_that_neither_grows_nor_is_damped_has_an_upper_limit():
    for wave in (0.1 * np.cos(0.7 * TIME), 0.1 * np.cos(0.7 * TIME) + 0.06 * np.cos(1.0 * TIME)):  # the second beats
        found = rates.fit(TIME, (wave + noise(0, 1e-3).real) ** 2)
        assert not found.is_clear and abs(found.rate) < 3 * found.error < 0.1
        assert "no rate of growth or damping: " in rates.Measured(found, None, None, found.why_not).text
    assert not rates.fit(TIME, np.abs(noise(3, 1e-3)) ** 2).is_clear
    assert rates.fit(TIME[:5], saturating(0)[:5]) is None


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (0.1 * np.cos(0.2 * TIME), "has only 2 maxima, but a fit needs 4"),
        (np.minimum(0.01 * np.exp(3 * TIME), 1.0), "close to saturation at t = 1.2. A fit needs 12 rows before that"),
        (1 + 0.002 * TIME, "changes only by a factor of 1.08 in the whole series"),
        (0.1 * np.exp(-0.2 * TIME) + 0.08 * np.exp(-0.05 * (TIME - 30) ** 2), "but it grows again later"),
        (np.abs(noise(3, 1e-3)), "are not evenly spaced"),
    ],
)
def test_what_keeps_a_wave_from_having_a_rate_is_said(wave, why):
    found = rates.measured({"time": TIME, "field_energy": wave**2}, None)
    assert why in found.text and found.why_not == found.rate.why_not


def test_a_run_is_compared_with_the_same_fit_of_theorys_wave():
    """Where beams relax there is no single rate."""
    energy = np.exp(2 * (0.3 * TIME - 0.002 * TIME**2))
    theory = WaveTheory(np.array([0.2]), "theory", time=TIME[::2], energy=energy[::2])
    found = rates.measured({"time": TIME, "field_energy": energy, "wave_energy": 3 * energy}, theory)
    assert found.expected == pytest.approx(found.rate.rate, rel=0.01) and "theory 0." in found.text
    assert found.remark == "Theory: theory; both values of γ are means over the window."


def beams_in_a_bath(end: float) -> WaveTheory:
    """Theory of a wave that oscillates at first and grows later, at a rate of 0.2 that falls to 0.14 at t = 22."""
    return theory_of(case_of("two_stream", strength=0.01, length=31.4159265, end=end))


def excited(seed: int, rows: int) -> np.ndarray:
    """Plasma oscillations with ω = 1 that noise excites and that are damped with γ = -0.2: W [rows]."""
    random, found = np.random.default_rng(seed), np.zeros(rows, complex)
    for i in range(1, rows):
        found[i] = 0.98 * np.exp(0.1j) * found[i - 1] + complex(*random.normal(size=2))
    return np.abs(found) ** 2


def test_noise_has_no_rate():
    """Its amplitude rises and falls, but seldom on a line for a whole plasma period."""
    for rows in (150, 200):
        found = [rates.fit(TIME[:rows], excited(seed, rows)) for seed in range(20)]
        assert not [one for one in found if one.is_clear]


def test_a_part_of_an_oscillation_is_no_growth():
    """The wave of the beams oscillates at first. The steepest part of the oscillation is not its growth."""
    theory = beams_in_a_bath(25.0)
    assert rates.fit(theory.time, theory.energy).rate == pytest.approx(0.16, abs=0.02)
    short = rates.fit(TIME[TIME < 6], np.exp(0.8 * TIME[TIME < 6]))
    assert "shorter than a period of plasma oscillations" in short.why_not
    assert rates.fit(TIME[TIME < 7], np.exp(0.8 * TIME[TIME < 7])).rate == pytest.approx(0.4)


def test_a_rate_is_compared_with_theory_only_where_theory_follows_a_line():
    theory = beams_in_a_bath(40.0)
    for window, follows in (((10.0, 16.8), False), ((11.0, 14.7), False), ((22.0, 35.0), True), ((41.0, 50.0), False)):
        like = rates.Rate(0.2, 0.01, window, 0.0, "rows", None, None)
        expected, why_not = rates.slope_within(theory.time, theory.energy, like)
        assert (expected is not None) == follows == (not why_not), window
    grown = np.exp(2 * 0.25 * TIME) * (TIME < 25) + np.exp(2 * 0.25 * 25) * (TIME >= 25)
    found = rates.measured({"time": TIME, "field_energy": grown, "wave_energy": grown}, beams_in_a_bath(14.0))
    assert found.rate.is_clear and found.expected is None and "theory" not in found.text
    assert "Theory has no rate to compare" in found.remark and found.note == found.why_not_expected


def test_growth_of_noise_has_no_rate():
    """A wave that grows up to its noise is noise. A window in which it is above the noise has its own rate."""
    wave = saturating(0)
    without = rates.fit(TIME, wave)
    assert rates.fit(TIME, wave, np.full(len(TIME), 1e-6)) == without
    found = rates.fit(TIME, wave, np.full(len(TIME), 0.4))
    assert not found.is_clear and "it is below 2 times the noise of the wave" in found.why_not
    above = rates.fit(TIME, wave, np.where(TIME < 10, 1.0, 1e-6))  # the noise is large only until t = 10
    assert above.is_clear and above.rate == pytest.approx(without.rate, rel=0.01)
    assert above.window[0] > without.window[0] and sum(above.window) / 2 > 9.9


def test_a_rate_must_exceed_its_errors():
    uncertain = rates._insignificance(rates.Rate(0.288, 0.157, (1.0, 14.5), 0.0, "rows", None, None))
    assert "γ = 0.29 ± 0.16, and a rate must be larger than 3 standard errors" in uncertain


def test_a_rate_that_differs_from_theory_says_by_how_many_errors():
    rate = rates.Rate(0.135, 0.027, (2.0, 14.0), 0.0, "rows", None, None)
    theory = WaveTheory(np.array([0.2]), "theory", rate=0.2258, frequency=0.0)
    assert rates.Measured(rate, theory, 0.2258).text.endswith("0.2258; it differs from theory by 3.4 standard errors")
    assert rates.Measured(rate, theory, 0.2258).note == "γ differs from theory by 3.4 standard errors"
    assert not rates.Measured(rate, theory, 0.2).note and not rates.Measured(rate, theory, None).note
    opposite = ", and theory has the opposite sign: repeat with other seeds or more particles"
    assert rates.Measured(rate, theory, -0.05).difference == f"differs from theory by 6.9 standard errors{opposite}"
    assert opposite not in rates.Measured(rate, theory, -0.00001).text  # printed as 0
    exact = rates.Measured(rates.Rate(0.1, 1e-9, (2.0, 14.0), 0.0, "rows", None, None), theory, 0.2258)
    assert exact.difference == "differs from theory by more than 100 standard errors"


def case_of(kind: str, operator: str = "bath", strength: float = 0.0, **keys):
    physics = {"collision_operator": operator, "collision_strength": strength}
    if field := keys.pop("magnetic_field", None):
        physics["magnetic_field"] = field
    time = {"step": 0.1, "end": keys.pop("end", 10.0)}
    problem = {"kind": kind, "length": 4 * np.pi, "amplitude": 0.01, **keys}
    sizes = {"particles": {"count": 1024}, "grid": {"cells": [32]}, "time": time}
    return from_table({"problem": problem, "physics": physics, **sizes})


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (case_of("landau_damping"), landau_root(0.5)),
        (case_of("maxwellian", mean_velocity=1.0), landau_root(0.5) + 0.5),
        (case_of("maxwellian", "bath", 0.1), complex(*landau_rate(0.5, 0.1)[::-1])),
        (case_of("maxwellian", "dougherty", 0.1, velocity_dims=2), dougherty_root(0.5, 0.1, 1.0, 2)),
        (case_of("maxwellian", "landau", 0.1, velocity_dims=3), damping(0.5, 0.1)),
        (case_of("bi_maxwellian", temperatures=[2.0, 1.0], velocity_dims=2), landau_root(0.5, np.sqrt(2))),
        (case_of("two_stream", length=31.4159265), 1j * two_stream_growth_rate(2 * np.pi / 31.4159265, 2.4, 1.0)),
        (case_of("kappa", kappa_index=1e5), landau_root(0.5)),
        (case_of("maxwellian", velocity_dims=3, magnetic_field=[0.5, 0, 0]), landau_root(0.5)),
        (
            case_of("maxwellian", velocity_dims=2, magnetic_field=[0, 0, 0.5], end=30.0),
            bernstein_frequencies(0.5, 0.5, [SpeciesTerm(1, 1, 1, 1)])[0],
        ),
    ],
    ids=lambda value: "" if isinstance(value, complex) else None,
)
def test_a_run_knows_the_dispersion_relation_of_its_start(case, expected, tmp_path):
    found = theory_of(case)
    assert complex(found.frequency, found.rate) == pytest.approx(expected, abs=2e-5)
    attributes = theory_attributes(found)
    SeriesWriter(tmp_path / "series.h5", ["time"], {"time": "1"}, attributes=attributes).close()
    read = read_theory(tmp_path / "series.h5")
    assert (read.rate, read.frequency, read.relation) == (found.rate, found.frequency, found.relation)
    assert [branch.label for branch in read.branches] == [branch.label for branch in found.branches]
    assert np.array_equal(read.vector, found.vector)


def test_a_run_says_why_it_knows_no_theory():
    assert "oblique" in theory_of(case_of("maxwellian", velocity_dims=3, magnetic_field=[0.3, 0, 0.5])).missing
    assert "too strong" in theory_of(case_of("kappa", "dougherty", 0.5)).missing
    relaxing = theory_of(case_of("bump_on_tail", "bath", 0.1, length=20.0))
    assert relaxing.rate is None and relaxing.energy[0] == 1 and "the bath changes" in relaxing.relation
    assert theory_of(from_table({"problem": {"kind": "gaussian", "space_dims": 1}, "particles": {"count": 64}})) is None


def test_theory_of_another_plasma_is_not_given():
    """Of a plasma hotter along the wave than across it, with collisions that make it isotropic; of species of another
    plasma frequency; of magnetic fields too weak to turn a particle."""
    for operator in ("dougherty", "landau"):
        case = case_of("bi_maxwellian", operator, 0.1, temperatures=[2.0, 1.0, 1.0], velocity_dims=3)
        assert "too strong" in theory_of(case).missing and theory_of(case).rate is None
    weak = case_of("maxwellian", velocity_dims=2, magnetic_field=[0, 0, 0.01])
    assert "gyrated" in theory_of(weak).missing
    hot = case_of("bi_maxwellian", temperatures=[2.0, 1.0], velocity_dims=2, magnetic_field=[0, 0, 0.5], end=30.0)
    assert "across" in theory_of(hot).missing

    def species(**keys):
        return from_table(
            {
                "problem": {"kind": "plasma", "length": 4 * np.pi},
                "species": {"electrons": {"charge": -1.0, "mass": 1.0, "count": 1024, "amplitude": 0.01, **keys}},
                "grid": {"cells": [32]},
                "time": {"step": 0.1, "end": 10.0},
            }
        )

    assert "plasma frequency" in theory_of(species(initial="kappa", density=4.0)).missing
    assert theory_of(species(initial="kappa")).rate == pytest.approx(kappa_root(0.5, 3.0).imag, rel=0.5)


def test_growth_between_one_early_maximum_and_saturation_is_seen():
    """The time between the two maxima is no period of a wave: the run may be cut anywhere after it has saturated."""
    time = np.linspace(0, 60, 601)
    grown = 1e-4 * np.exp(0.4 * np.minimum(time, 26)) * np.cos(np.maximum(time - 26, 0) / 9) ** 2
    energy = grown + 2e-2 * np.exp(-0.5 * (time - 3) ** 2)  # at the start, other modes
    for end in (300, 340, 400):
        found = rates.fit(time[:end], energy[:end])
        assert found.is_clear and found.rate == pytest.approx(0.2, rel=0.05), end


def test_energies_that_blow_up_have_no_rate():
    """Only their finite rows count, and too few of them have none."""
    energy = np.exp(0.4 * TIME)
    energy[len(TIME) // 2 :] = np.inf
    assert rates.fit(TIME, energy).rate == pytest.approx(0.2, rel=0.01)
    assert rates.fit(TIME, np.full_like(TIME, np.nan)) is None


def test_collisions_of_both_kinds_have_the_limits_that_are_known():
    """As the eigenvalues of Hermite functions, as without collisions, and as sound in a gas of many collisions."""
    for wavenumber, strength, temperature in ((0.5, 0.1, 1.0), (0.3, 0.5, 2.0), (0.5, 0.01, 1.0)):
        rate, frequency = landau_rate(wavenumber, strength, temperature)
        assert bath_root(wavenumber, strength, temperature) == pytest.approx(complex(frequency, rate), abs=1e-7)
    for dims in (1, 2, 3):
        assert dougherty_root(0.5, 1e-3, 1.0, dims) == pytest.approx(landau_root(0.5), abs=1e-3)
        sound = dougherty_root(0.3, 100.0, 1.0, dims)
        assert sound.real == pytest.approx(np.sqrt(1 + (dims + 2) / dims * 0.09), abs=1e-4) and abs(sound.imag) < 1e-3
    with pytest.raises(ValueError, match="overdamped"):
        bath_root(0.5, 5.0)


def test_waves_of_like_particles_are_damped_as_on_the_grid():
    """The grid solver shares no code with the roots; the fit is that of kjko plot."""

    def start(x, v):
        return (1 + 1e-4 * np.cos(0.5 * x)) * np.exp(-0.5 * v**2) / np.sqrt(2 * np.pi)

    grid = solve(start, 4 * np.pi, 0.2, 1.0, 20.0, 0.05, (16, 128), 7.0, collision_operator="dougherty")
    found, wanted = rates.fit(grid.times, grid.field_energy), dougherty_root(0.5, 0.2)
    assert found.points == "maxima" and found.is_clear
    assert found.rate == pytest.approx(wanted.imag, rel=0.02)
    assert found.frequency == pytest.approx(wanted.real, rel=0.01)
    assert abs(wanted.imag - landau_root(0.5).imag) > 0.05  # so that collisions count


def test_waves_of_a_kappa_distribution_are_those_of_its_residue():
    """For kappa = 2, g ~ (1 + v²/T)^-2 and ∫ g' / (v − w) dv can be had in closed form in the upper half plane."""
    wavenumber, s = 0.5, 1.0
    omega = kappa_root(wavenumber, 2.0)
    w = omega / wavenumber
    # ∫ g'(v)/(v − w) dv = d/dw ∫ g(v)/(v − w) dv; closing below at v = −is: ∫ = −(w + 2is)/(w + is)²  (g of integral 1)
    slope = (w + 3j * s) / (w + 1j * s) ** 3
    assert abs(1 - slope / wavenumber**2) < 1e-8


def test_a_branch_is_followed_in_both_directions():
    wavenumbers = np.array([0.6, 0.2, 0.5, 0.9])
    terms = [SpeciesTerm(-1, 1, 1, 1)]
    from hpc_kjko.reference.dispersion import species_dielectric_function

    found = branch_of(
        lambda w, k: complex(species_dielectric_function(w, k, terms)), wavenumbers, 0.5, landau_root(0.5)
    )
    assert found == pytest.approx([landau_root(k) for k in wavenumbers], abs=1e-7)
    assert species_root(0.5, terms) == pytest.approx(found[2])
