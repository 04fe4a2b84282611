r"""A driven wave: resonance of a cold plasma

An external field $E_0 \cos(kx - \omega t)$ drives a nearly cold plasma at its plasma frequency. Linear response says
that the field of the plasma grows in proportion to time, $|E| = \tfrac12 E_0\,t$. The dashed line shows this growth.

The measured amplitude has the slope {slope:.4f} $E_0$, and theory gives 0.5. The small oscillations about the line
have twice the plasma frequency. Linear response has them, too. The case uses the energy-conserving scheme. So kinetic
and field energy together gain the energy that the drive gives, with a relative error of {balance:.1e}.

**Change it.** `physics.drive` takes any number of waves, or a field E(x, t) of your own.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run

EXACT = {"physics.field": "ampere", "time.energy_conserving": True}


def example(folder, quick):
    changes = {"species.electrons.count": 8192 if quick else 65536, "grid.cells": [64], **EXACT}
    changes["output.every"] = 4 if quick else 1
    result = run(Case.load("jobs/driven_wave.toml", {**changes, "time.end": 8.0 if quick else 20.0}), folder / "run")
    field, series = result.fields.E_1, result.series
    amplitude = 2 * np.abs(np.fft.fft(field.values, axis=1)[:, 1]) / field.sizes["x_1"] / 1e-3
    late = field.time.values > 4
    slope = np.polyfit(field.time.values[late], amplitude[late], 1)[0]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(field.time, amplitude, label="run")
    axes.plot(field.time, 0.5 * field.time, "k--", lw=1, label="½ t")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="amplitude of the wave  [E$_0$]")
    axes.legend()
    gained = (series.kinetic_energy + series.field_energy).values
    given = float(series.drive_energy[-1])
    return figure, {"slope": float(slope), "balance": abs(gained[-1] - gained[0] - given) / abs(given)}
