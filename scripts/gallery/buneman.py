r"""Two species: the Buneman instability

Electrons stream through ions at four times the electron thermal speed, and a wave grows. Here the ions are 25 times as
heavy as the electrons. The relative motion of the species drives the wave, and both species take part in it. Each
species has its own charge, mass and particles. One field moves both.

Between $t = {first:.3g}$ and $t = {last:.3g}$ the field of the wave grows at the rate $\gamma = {rate:.4f} \pm
{error:.4f}$. The dispersion relation of both species gives {theory:.4f}. The [rule of
`kjko inspect`](../howto/rate_of_a_wave.md) finds the window, the rate and its standard error.

**Change it.** A case file may have any number of `[species.NAME]` sections (`jobs/buneman.toml`).
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.post import rates
from hpc_kjko.reference.dispersion import SpeciesTerm, species_root


def example(folder, quick):
    count = 16384 if quick else 131072
    changes = {"species.electrons.count": count, "species.ions.count": count, "time.end": 26.0 if quick else 40.0}
    changes |= {"species.electrons.amplitude": 0.01 if quick else 1e-3, "grid.cells": [32]}
    changes |= {"time.step": 0.2, "output.every": 0}
    result = run(Case.load("jobs/buneman.toml", changes), folder / "run")
    energy = result.series.field_energy
    fit = rates.fit(energy.time.values, energy.values)
    terms = [SpeciesTerm(-1.0, 1.0, 1.0, 1.0, drift=4.0), SpeciesTerm(1.0, 25.0, 1.0, 1.0)]
    theory = species_root(0.3, terms).imag
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(energy.time, energy, label="run")
    # the fitted line is drawn wider, so that it is seen below the line of theory through its middle
    part = energy.time.sel(time=slice(*fit.window))
    left.semilogy(part, fit.energy(part), color="C2", lw=5, alpha=0.5, label="fitted line")
    left.semilogy(part, np.exp(2 * (fit.height + theory * (part - np.mean(fit.window)))), "k--", label="theory")
    left.set(xlabel="time  [1/ω$_p$]", ylabel="field energy ½∫E²dx  [n̄ m v$_{th}$³/ω$_p$]")
    left.legend()
    for name in result.species:
        f = result.of(name).marginals.f_v_1
        for time, look in ((0, "--"), (-1, "-")):
            one = f.isel(time=time)
            label = f"{name}, t = {float(one.time):g}"
            right.plot(one.v_1, one / one.max(), look, color="C0" if name == "electrons" else "C1", label=label)
    right.set(xlabel="v  [v$_{th}$]", ylabel="density of velocities / its maximum")
    right.legend(fontsize=8)
    first, last = fit.window
    return figure, {"rate": fit.rate, "error": fit.error, "theory": float(theory), "first": first, "last": last}
