"""Rates of waves with and without collisions, compared with theory and the grid solver, for validate.py."""

from __future__ import annotations

import math

import numpy as np
from experiments import RATE_SEEDS, Experiments, damped_wave, peaks_rate
from records import record

from hpc_kjko.reference.dispersion import landau_rate, landau_root, linear_field_history, two_stream_growth_rate


def e8(runs: Experiments) -> bool:
    """Landau damping with and without collisions and two-stream growth with them: within 2 %, as means over seeds.

    Damping with collisions is compared with the same fit to the grid solver's wave. That fit differs from theory by 3
    %, because the first periods contain more than the least damped wave. :func:`growth` has growth without collisions.
    """
    passed, rates, frequencies = landau(runs), [], []
    for seed in RATE_SEEDS:
        time, amplitude = mode_amplitude(runs, f"e8_landau_collisional_{seed}")
        rate, frequency = damped_wave(time, amplitude, latest=8.0)
        rates.append(rate)
        frequencies.append(frequency)
    grid = runs.reference("e8_landau_collisional_0")
    wanted = damped_wave(time, np.sqrt(np.interp(time, grid.times, grid.field_energy)), latest=8.0)
    passed &= means_agree("e8_landau_collisional: damping rate", rates, wanted[0])
    passed &= means_agree("e8_landau_collisional: frequency", frequencies, wanted[1])
    theory = landau_rate(0.5, 0.1)
    print(f"e8_landau_collisional: theory {theory[0]:.5f}, {theory[1]:.5f}")
    growth = []
    for seed in RATE_SEEDS:
        time, amplitude = mode_amplitude(runs, f"e8_growth_collisional_{seed}")
        growth.append(growth_rate(time, amplitude))
    history = linear_field_history(2 * np.pi / 31.4159265, 0.01, 1.0, [(0.5, 2.4, 1.0), (0.5, -2.4, 1.0)], time)
    return means_agree("e8_growth_collisional: growth rate", growth, growth_rate(time, history)) and passed


def landau(runs: Experiments) -> bool:
    """Landau damping rate and frequency within 2 %, from the maxima of the wave energy."""
    time, amplitude = mode_amplitude(runs, "e8_landau")
    (rate, frequency), root = peaks_rate(time, amplitude, latest=15.0), landau_root(0.5, 1.0)
    print(
        f"Landau damping: gamma = {rate:.5f} (theory {root.imag:.5f}, {rate / root.imag - 1:.2%}), "
        f"omega = {frequency:.5f} (theory {root.real:.5f}, {frequency / root.real - 1:.2%})"
    )
    passed = True
    for quantity, found, wanted in (("damping rate", rate, root.imag), ("frequency", frequency, root.real)):
        error = found / wanted - 1
        row = ("Landau damping, no collisions", quantity, f"{wanted:.5f} within 2 %", f"{found:.5f} ({error:+.2%})")
        passed &= record(*row, abs(error) <= 0.02)
    return passed


def growth(runs: Experiments) -> bool:
    """Two-stream growth rate with 2²⁰ particles, within 2 % of the dispersion relation."""
    series = runs.series("growth")
    expected = two_stream_growth_rate(2 * np.pi / 31.4159265, 2.4, 1.0)
    late = (series["time"] > 24) & (series["time"] < 35)
    rate = 0.5 * np.polyfit(series["time"][late], np.log(series["field_energy"][late]), 1)[0]
    print(f"two-stream growth rate: {rate:.5f}, dispersion relation {expected:.5f}, error {rate / expected - 1:.2%}")
    error = rate / expected - 1
    row = (
        "two-stream growth, no collisions",
        "growth rate",
        f"{expected:.5f} within 2 %",
        f"{rate:.5f} ({error:+.2%})",
    )
    return record(*row, abs(error) <= 0.02)


def mode_amplitude(runs: Experiments, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times, and the root of the wave energy. Noise in other modes would change the rate of a small wave by
    percents."""
    series = runs.series(name)
    return series["time"], np.sqrt(series["wave_energy"])


def growth_rate(time: np.ndarray, amplitude: np.ndarray) -> float:
    """The slope of the log amplitude for 10 < t < 18."""
    window = (time > 10) & (time < 18)
    return float(np.polyfit(time[window], np.log(amplitude[window]), 1)[0])


def means_agree(what: str, found: list[float], wanted: float) -> bool:
    """Whether the mean over some seeds is within 2 % of the wanted number."""
    errors = np.array(found) / wanted - 1
    scatter = errors.std(ddof=1) / math.sqrt(len(errors))
    each = ", ".join(f"{error:.1%}" for error in errors)
    print(f"{what} {np.mean(found):.5f}, wanted {wanted:.5f}: {errors.mean():.2%} ± {scatter:.2%} ({each})")
    case, _, quantity = what.partition(": ")
    mean = f"{np.mean(found):.5f} ({errors.mean():+.2%} ± {scatter:.2%})"
    return record(case, quantity, f"{wanted:.5f} within 2 %", mean, abs(errors.mean()) <= 0.02)
