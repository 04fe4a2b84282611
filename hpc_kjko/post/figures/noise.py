"""What of a density is more than the noise of its particles."""

from __future__ import annotations

import numpy as np

#: The probability that a curve keeps a wave that is noise.
_BY_CHANCE = 0.15


def noisy_note(raw: str, noise: float) -> str:
    """What is said of a panel whose curves have their waves alone, and thin behind them what they were found from."""
    return f"Thin: {raw}, with noise of ±{noise:.1g}. Thick: the waves that stand out of this noise."


def waves_above_noise(values: np.ndarray, order: int, particles: int, has_walls: bool) -> tuple[np.ndarray, float]:
    """The mean and the waves of a density that are more than the particles' noise, and the noise.

    A wave is kept whole or left out. Noise of independent particles has the same expected energy in each wave, but for
    the shape function. Its level is the median of the shorter half of the waves, or that of independent particles if
    this is less: so a quiet start keeps its small waves, and a cliff in the density is no noise. The shorter half must
    stand out of the noise of independent particles, as a quiet start ends in short waves first. A wave is kept by
    chance with a probability that falls as 1/k², as waves of E are those of the density over k. One curve of five that
    are noise alone keeps a wave of it, mostly the longest.

    Args:
        values: in units of the mean density, on the nodes of a mesh [n].
        order: of the shape function that has deposited them; 0 for a histogram.
        particles: how many there are.
        has_walls: whether the mesh ends at walls, beyond which the density has its image.

    Returns:
        The mean and the waves [n], and one standard deviation of the noise at a node.
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
    # the waves between walls are real: chi-squared of one degree of freedom, and of two without walls
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
