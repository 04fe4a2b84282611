r"""Bernstein waves across a magnetic field

An electron wave that travels across a uniform magnetic field is not damped. Its frequencies lie near the harmonics of
the gyrofrequency $\Omega$. They are the zeros of Bernstein's dielectric function. The figure shows the spectrum of $E$
at the wavenumber of the wave, for a long run with $\Omega = 0.5\,\omega_p$ and $k\rho = 1$, where $\rho$ is the
gyroradius. Dashed lines are the frequencies of theory.

The highest peak is at $\omega = {peak:.3f}$. The nearest frequency of theory is {theory:.3f}. A run of this length can
distinguish frequencies that differ by {resolution:.3f}.

**Change it.** `physics.magnetic_field = [0.0, 0.0, 0.5]` works in any case with two or three velocity dimensions.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.reference.dispersion import SpeciesTerm, bernstein_frequencies


def example(folder, quick):
    changes = {"particles.count": 4096 if quick else 32768, "time.end": 60.0 if quick else 200.0}
    changes |= {"grid.cells": [32], "output.every": 8 if quick else 2}
    result = run(Case.load("jobs/bernstein.toml", changes), folder / "run")
    field = result.fields.E_1
    wave = np.fft.fft(field.values, axis=1)[:, 1] / field.sizes["x_1"]
    step = float(field.time[1] - field.time[0])
    spectrum = np.abs(np.fft.rfft(wave.imag * np.hanning(len(wave))))
    frequency = 2 * np.pi * np.fft.rfftfreq(len(wave), step)
    theory = np.array(bernstein_frequencies(0.5, 0.5, [SpeciesTerm(-1.0, 1.0, 1.0, 1.0)], 4))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    peak = frequency[np.where(frequency > 0.3, spectrum, 0.0).argmax()]
    axes.semilogy(frequency, spectrum / spectrum.max(), label="run")
    for number, one in enumerate(theory):
        axes.axvline(one, color="black", ls="--", lw=1, label="theory" if number == 0 else None)
    label = "spectrum of E at k = 0.5 ω$_p$/v$_{th}$, largest = 1"
    axes.set(xlabel="ω  [ω$_p$]", ylabel=label, xlim=(0, 2.2), ylim=(1e-4, 2))
    figure.legend(loc="outside upper right", ncols=2)
    nearest = theory[np.abs(theory - peak).argmin()]
    resolution = 2 * np.pi / (step * len(wave))
    return figure, {"peak": float(peak), "theory": float(nearest), "resolution": resolution}
