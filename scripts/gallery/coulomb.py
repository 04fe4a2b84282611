r"""Coulomb collisions: isotropisation of temperatures

Coulomb collisions between electrons make the temperatures of all directions equal. At the start the plasma is hotter
along one axis, $T_\parallel = 2$, than across it, $T_\perp = \tfrac12$. Collisions (the Landau operator, $\gamma =
-3$) conserve energy and momentum, and the entropy grows. The dashed lines are the solution if $f$ stays bi-Maxwellian.

Up to $C\,t = 0.25$ the mean rate $dT_\parallel/dt$ is {rate:.4f} $C$, and the dashed line has {theory:.4f} $C$. Later
the distribution is no longer bi-Maxwellian, so the lines differ a little. The relative change of the energy is
{energy:.1e}.

**Change it.** Use `physics.collision_operator = "landau"` in any case with two or three velocity dimensions.
`kjko units` gives the collision strength of your plasma.
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
