r"""The two-stream instability with three velocity dimensions

The same instability in 1D3V. Velocities across the wave start Maxwellian at the bath's temperature, and nothing
couples them to the wave. So the field energy must be that of 1D1V. The control field now has three components, and
the determinant of a step is that of a 3 × 3 matrix.

The field energies of the two runs differ by {difference:.1%} over the whole run (relative, in mean square). That is
the noise of the particles: the two runs draw different ones.
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
