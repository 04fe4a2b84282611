r"""The two-stream instability with three velocity dimensions

In 1D3V the field energy must be the same as in 1D1V. Velocities across the wave are Maxwellian at the temperature of
the bath, and nothing couples them to the wave. But the numerical problem is larger: the control field has three
components, and each step needs the determinant of a 3 × 3 matrix.

Over the whole run the field energies differ by {difference:.1%} (relative $L^2$ norm). This is the noise of the
particles, which are different in the two runs.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run


def example(folder, quick):
    changes = {"particles.count": 2048 if quick else 16384, "time.end": 2.0 if quick else 30.0, "time.step": 0.2}
    changes |= {"problem.amplitude": 0.05, "grid.cells": [32], "output.every": 0, "output.histogram_every": 0}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    energies = []
    for dims, look in ((3, "-"), (1, "k--")):
        case = Case.load("jobs/e6_two_stream_1d3v.toml", {**changes, "problem.velocity_dims": dims})
        energy = run(case, folder / f"{dims}v").series.field_energy
        axes.semilogy(energy.time, energy, look, label=f"1D{dims}V")
        energies.append(energy.values)
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="field energy ½∫E²dx  [n̄ m v$_{th}$³/ω$_p$]")
    axes.legend()
    three, one = energies
    return figure, {"difference": float(np.linalg.norm(three - one) / np.linalg.norm(one))}
