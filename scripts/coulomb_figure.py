#!/usr/bin/env python
"""docs/coulomb.png: the effect of Coulomb collisions on temperatures, two species and a wave, with theory.

    python scripts/coulomb_figure.py [--out DIR] [--ranks N]

Runs are kept in DIR/runs (see experiments.py). The figure is written to DIR/figures.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from experiments import Experiments
from paper_figures import BLUE, GREEN, GRID, RED, TIME, draw_one

from hpc_kjko.reference.landau import bi_maxwellian_relaxation, two_temperature_relaxation
from hpc_kjko.reference.landau_waves import field_history

WAVES = {0.01: BLUE, 0.1: GREEN, 0.4: RED}


def draw(runs: Experiments) -> plt.Figure:
    """Draw isotropisation, two temperatures, and Landau damping."""
    figure, (isotropy, species, waves) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    series = runs.series("coulomb")
    time, closed = series["time"], bi_maxwellian_relaxation(2.0, 0.5, 1.0, series["time"])
    across = 0.5 * (series["temperature_2"] + series["temperature_3"])
    for values, theory, label, color in (
        (series["temperature_1"], closed[0], "along", RED),
        (across, closed[1], "across", BLUE),
    ):
        isotropy.plot(time, values, color=color, label=f"T {label}")
        isotropy.plot(time, theory, **GRID, ls="--")
    isotropy.set(xlabel="C t", ylabel="temperature")
    isotropy.set_title("one species, T = (2, ½, ½)\ndashed: if f stays bi-Maxwellian")
    isotropy.legend()

    series, case = runs.series("two_temperatures"), runs.case("two_temperatures")
    names = list(case.species)
    found = [np.mean([series[f"{name}_temperature_{k}"] for k in (1, 2, 3)], axis=0) for name in names]
    masses, charges = ([getattr(case.species[name], key) for name in names] for key in ("mass", "charge"))
    theory = two_temperature_relaxation([one[0] for one in found], masses, [1.0, 1.0], charges, 1.0, series["time"])
    for values, wanted, name, color in zip(found, theory.T, names, (RED, BLUE), strict=True):
        species.plot(series["time"], values, color=color, label=f"T of {name}")
        species.plot(series["time"], wanted, **GRID, ls="--")
    species.set(xlabel="C t", ylabel="temperature")
    species.set_title(f"two species, mass ratio {masses[1]:g}\ndashed: Spitzer's rate at every time")
    species.legend()

    for strength, color in WAVES.items():
        name = f"coulomb_wave_{strength}_0"
        series, case = runs.series(name), runs.case(name)
        k, exponent = 2 * np.pi / case.problem.periods[0], case.physics.landau.exponent
        amplitude = np.sqrt(series["wave_energy"] / series["wave_energy"][0])
        waves.semilogy(series["time"], amplitude, color=color, lw=4, alpha=0.45, label=f"C = {strength:g}")
        linear = np.abs(field_history(k, strength, series["time"], exponent=exponent, dims=2))
        waves.semilogy(series["time"], linear, color=color, lw=1.2, ls="--")
    waves.set(xlabel=TIME, ylabel="|E$_k$| / its first value", ylim=(1e-2, 1.2))
    waves.set_title("Landau damping, 2V, γ = −2\ndashed: linear theory")
    waves.legend(loc="upper right")
    return figure


if __name__ == "__main__":
    draw_one("coulomb", draw, __doc__)
