"""Separate the waves of a density from the noise of its particles."""

from __future__ import annotations

import numpy as np

#: The expected number of waves that are noise and that a curve keeps by chance.
_BY_CHANCE = 0.15


def noisy_note(raw: str, noise: float) -> str:
    """The note of a panel with thick curves of the modes above the noise, and thin curves of the raw values."""
    return f"Thin: {raw}, with noise of ±{noise:.1g}. Thick: only the Fourier modes above this noise."


def waves_above_noise(values: np.ndarray, order: int, particles: int, has_walls: bool) -> tuple[np.ndarray, float]:
    """Find the waves of a density that are larger than the noise of the particles, and the level of this noise.

    Each wave is kept unchanged or removed. The noise of independent particles has the same expected energy in all
    waves, apart from the factor of the shape function. The level of the noise is the median over the shorter half of
    the waves. If the level of independent particles is smaller, this level is used. Therefore a quiet start keeps its
    small waves, and a steep edge of the density does not count as noise. Waves of the shorter half must exceed the
    noise of independent particles, because noise enters a quiet start at short waves first.

    The probability to keep a wave of noise falls as 1/k², because the waves of E are those of the density divided by
    k. If there is only noise, about one curve in five keeps a wave, mostly the longest.

    Args:
        values: the density in units of its mean, on the nodes of a mesh [n].
        order: the order of the shape function that deposited the density; 0 for a histogram.
        particles: the number of particles.
        has_walls: whether the mesh ends at walls. The density has a mirror image beyond a wall.

    Returns:
        The mean plus the waves that were kept [n], and the standard deviation of the noise at a node.
    """
    whole = np.concatenate([values, values[::-1]]) if has_walls else values
    waves = np.fft.rfft(whole, norm="forward")
    phase = 2 * np.pi * np.arange(len(waves)) / len(whole)
    shape = {
        0: np.ones(len(waves)),
        1: (2 + np.cos(phase)) / 3,
        2: (33 + 26 * np.cos(phase) + np.cos(2 * phase)) / 60,
    }[order]
    energy = np.abs(waves) ** 2 / shape
    # energies have a chi-squared distribution: with one degree of freedom between walls (real waves), else with two
    independent, median = (0.5 / particles, 0.455) if has_walls else (1 / particles, np.log(2))
    half = len(waves) // 2
    level = min(independent, float(np.median(energy[half:])) / median)
    number = np.maximum(1, np.arange(len(waves)))
    seldom = np.log(number**2 * np.pi**2 / 6 / _BY_CHANCE) * (2 if has_walls else 1)
    kept = energy > seldom * np.where(np.arange(len(waves)) < half, level, independent)
    kept[0] = True
    smooth = np.fft.irfft(np.where(kept, waves, 0), len(whole), norm="forward")[: len(values)]
    both = np.full(len(waves), 2.0)  # k and −k
    both[0] = 0.0
    if len(whole) % 2 == 0:
        both[-1] = 1.0
    return smooth, float(np.sqrt(level * (both * shape).sum()))
