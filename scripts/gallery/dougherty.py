r"""Collisions of like particles: two streams without a bath

With the Dougherty operator particles collide with each other and not with a bath. Momentum and energy are conserved,
so the beams become hotter as they merge. Here collisions broaden the beams so fast that the initial wave decays
and gives its energy to the particles. With the energy-conserving Ampère field, the total energy of the whole step is
exact to round-off.

The relative change of the total energy over {steps:.0f} steps is {energy:.1e}. The mean velocity changes by
{momentum:.1e} of the thermal speed, because the energy-conserving push conserves momentum only approximately. The
entropy $-\int f\log f$ grows by {entropy:.3f} per particle.

**Change it.** Set `physics.collision_operator = "dougherty"`, `physics.field = "ampere"` and
`time.energy_conserving = true`.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run


def example(folder, quick):
    changes = {"particles.count": 4096 if quick else 32768, "time.end": 1.6 if quick else 40.0, "time.step": 0.2}
    changes |= {"problem.amplitude": 0.05, "physics.collision_strength": 0.01, "output.histogram_every": 0}
    series = run(Case.load("jobs/dougherty_two_stream.toml", changes), folder / "run").series
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("kinetic_energy", "field_energy"):
        left.plot(series.time, series[name] - series[name][0], label=name.replace("_", " "))
    total = series.kinetic_energy + series.field_energy
    left.plot(series.time, total - total[0], "k--", lw=1, label="total energy")
    left.set(xlabel="time  [1/ω$_p$]", ylabel="change since t = 0  [n̄ m v$_{th}$³/ω$_p$]")
    left.legend(loc="upper right", bbox_to_anchor=(1.0, 0.48))
    gained = -(series.entropy - series.entropy[0]) / series.mass[0]
    right.plot(series.time, gained)
    right.set(xlabel="time  [1/ω$_p$]", ylabel="gain of −∫ f log f, for each particle")
    momentum = np.abs(series.momentum_1 - series.momentum_1[0]).max() / series.mass[0]
    numbers = {"energy": float(np.abs(total / total[0] - 1).max()), "momentum": float(momentum)}
    return figure, {**numbers, "entropy": float(gained[-1]), "steps": float(series.step[-1])}
