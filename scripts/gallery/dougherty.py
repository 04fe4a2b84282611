r"""Like-particle collisions that keep energy: two streams without a bath

With the Dougherty operator particles collide with each other and not with a bath. Momentum and energy stay, so the
beams heat up as they merge. Together with the energy-conserving Ampère field the whole step keeps the total energy to
round-off, while the wave grows, saturates and heats the plasma.

The total energy changes by {energy:.1e} of itself over {steps:.0f} steps, the momentum by {momentum:.1e} of the
thermal one: the energy-conserving push keeps the momentum only approximately. The entropy $-\int f\log f$ grows by
{entropy:.3f} for each particle.

To make it yours: `physics.collision_operator = "dougherty"`, and `field = "ampere"` with `energy_conserving = true`.
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
