r"""Coulomb collisions: temperatures along and across become one

A plasma is hotter along one axis than across it, $T_\parallel = 2$ and $T_\perp = \tfrac12$. Coulomb collisions
between its own electrons (the Landau operator, $\gamma = -3$) bring the temperatures together. They keep the energy
and the momentum exactly, and the entropy grows. The dashed lines solve the equation of the temperatures of a
bi-Maxwellian.

The early rate $dT_\parallel/dt$ is {rate:.4f} of $C$; theory says {theory:.4f}. Later the distribution is no longer
bi-Maxwellian, and the lines part a little. The energy changes by {energy:.1e} of itself.

To make it yours: `physics.collision_operator = "landau"` in any case, with `kjko units` for the strength of your
plasma.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.reference.landau import bi_maxwellian_relaxation


def example(folder, quick):
    changes = {"particles.count": 2048 if quick else 16384, "time.end": 0.15 if quick else 3.0}
    changes |= {"output.particles_every": 1 if quick else 5, "output.histogram_every": 0}
    result = run(Case.load("jobs/coulomb.toml", changes), folder / "run")
    particles = result.particles
    along = particles.v_1.var("particle")
    across = 0.5 * (particles.v_2.var("particle") + particles.v_3.var("particle"))
    parallel, perpendicular = bi_maxwellian_relaxation(float(along[0]), float(across[0]), 1.0, along.time.values)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(along.time, along, label="along")
    axes.plot(across.time, across, label="across")
    axes.plot(along.time, parallel, "k--", lw=1, label="bi-Maxwellian theory")
    axes.plot(along.time, perpendicular, "k--", lw=1)
    axes.set(xlabel="time  [1/C]", ylabel="temperature  [T]")
    axes.legend()
    early = slice(0, 4 if quick else 2)
    slopes = [np.polyfit(along.time[early], values[early], 1)[0] for values in (along.values, parallel)]
    energy = result.series.kinetic_energy
    change = float(abs(energy[-1] / energy[0] - 1))
    return figure, {"rate": float(slopes[0]), "theory": float(slopes[1]), "energy": change}
