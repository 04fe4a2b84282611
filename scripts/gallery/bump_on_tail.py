r"""The bump-on-tail instability

A small beam of fast electrons on the tail of a Maxwellian makes waves grow. These waves move a little more slowly than
the beam. The growth rate follows from the dispersion relation of two Maxwellians, $1 = \sum_s (\omega_s^2/k^2) \int
\partial_v f_s / (v - \omega/k)\,dv$.

Between $t = {first:.3g}$ and $t = {last:.3g}$ the field of the wave grows at the rate $\gamma = {rate:.4f} \pm
{error:.4f}$. Theory gives {theory:.4f}. The [rule of `kjko inspect`](../howto/rate_of_a_wave.md) finds the window, the
rate and its standard error. The right panel shows the vortex of the trapped particles.

**Change it.** Change the beam in `PROBLEM`, and the same numbers in the call of `species_root`, which is the theory.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.post import rates
from hpc_kjko.reference.dispersion import SpeciesTerm, species_root

PROBLEM = {"kind": "bump_on_tail", "bump_density": 0.1, "bump_velocity": 4.5, "bump_thermal_speed": 0.5}


def example(folder, quick):
    k = 0.3
    length = 2 * np.pi / k
    case = Case.from_table(
        {
            "problem": {**PROBLEM, "length": length, "amplitude": 0.002},
            "physics": {"collision_strength": 0.0},
            "particles": {"count": 16384 if quick else 131072},
            "grid": {"cells": [32], "shape_order": 2},
            "time": {"step": 0.1, "end": 24.0 if quick else 40.0},
            "output": {"every": 0, "particles_every": 240 if quick else 400, "histogram_every": 0},
        }
    )
    result = run(case, folder / "run")
    wave = result.series.wave_energy
    fit = rates.fit(wave.time.values, wave.values)
    theory = species_root(k, [SpeciesTerm(-1.0, 1.0, 0.9, 1.0), SpeciesTerm(-1.0, 1.0, 0.1, 0.25, drift=4.5)]).imag
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(wave.time, wave, label="run")
    # the fitted line is drawn wider, so that it is seen below the line of theory through its middle
    part = wave.time.sel(time=slice(*fit.window))
    left.semilogy(part, fit.energy(part), color="C2", lw=5, alpha=0.5, label="fitted line")
    left.semilogy(part, np.exp(2 * (fit.height + theory * (part - np.mean(fit.window)))), "k--", label="theory")
    left.set(xlabel="time  [1/ω$_p$]", ylabel="energy of the wave  [n̄ m v$_{th}$³/ω$_p$]")
    left.legend()
    # f from the log f of every fifth particle; every second one would be in the same half of phase space
    some = result.particles.isel(time=-1, particle=slice(None, None, 5))
    log_f = some.log_f / np.log(10)
    # particles near the ends of the periodic box are repeated beyond the other end
    x = np.concatenate([some.x_1 - length, some.x_1, some.x_1 + length])
    near = (x > -0.05 * length) & (x < 1.05 * length)
    v, log_f = (np.tile(values, 3)[near] for values in (some.v_1, log_f))
    image = right.tripcolor(x[near], v, log_f, cmap="magma", shading="gouraud", vmin=-4, rasterized=True)
    figure.colorbar(image, ax=right, label="log$_{10}$ of f(x, v)  [n̄/v$_{th}$]", extend="min")
    right.set_facecolor("black")
    right.set(xlabel="x  [v$_{th}$/ω$_p$]", ylabel="v  [v$_{th}$]", title=f"t = {float(some.time):g}")
    right.set(xlim=(0, length), ylim=(-4.5, 6))
    first, last = fit.window
    return figure, {"rate": fit.rate, "error": fit.error, "theory": float(theory), "first": first, "last": last}
