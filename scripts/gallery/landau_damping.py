r"""Landau damping, with and without collisions

A Langmuir wave in a Maxwellian plasma is damped even without collisions, by particles that move with the wave.
Collisions with a bath increase the damping. Theory gives both rates. Without collisions it is the zero of the
dielectric function, with collisions the least damped eigenvalue of the linearised kinetic equation. Here
$k\lambda_D = 0.5$. To measure a rate, $|A\,e^{{\gamma t}}\cos(\omega t + \phi)|$ is fitted to the amplitude of the wave
between $t = 1.5$ and $t = 8$ (dashed).

| run | $\gamma$ | theory | $\omega$ | theory |
| --- | --- | --- | --- | --- |
| without collisions | {free:.4f} | {free_theory:.4f} | {free_frequency:.4f} | {free_frequency_theory:.4f} |
| $\kappa = 0.1$ | {damped:.4f} | {damped_theory:.4f} | {damped_frequency:.4f} | {damped_frequency_theory:.4f} |

The measured damping rates are wrong by a few percent. One reason is that the first period also contains faster damped
parts of the solution. With collisions the wave soon falls towards the noise of the particles, so a later fit would not
be better.

**Change it.** `kjko run jobs/landau_damping.toml --set problem.length=15.7` changes the wavenumber.
"""

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

from hpc_kjko import Case, run
from hpc_kjko.reference.dispersion import landau_rate, landau_root


def wave(time, height, rate, frequency, phase):
    return np.abs(height * np.exp(rate * time) * np.cos(frequency * time + phase))


def example(folder, quick):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    root, numbers = landau_root(0.5), {}
    theory = {"free": (root.imag, root.real), "damped": landau_rate(0.5, 0.1)}
    for name, kappa, count in (("free", 0.0, 131072), ("damped", 0.1, 8192 if quick else 65536)):
        changes = {"particles.count": count, "physics.collision_strength": kappa, "time.step": 0.2}
        changes |= {"time.end": 8.0 if quick else 12.0, "output.every": 0, "output.histogram_every": 0}
        energy = run(Case.load("jobs/landau_damping.toml", changes), folder / name).series.wave_energy
        (line,) = axes.semilogy(energy.time, energy, label=f"κ = {kappa:g}")
        part = np.sqrt(energy.sel(time=slice(1.5, 8.0)))
        found, _ = curve_fit(wave, part.time, part, p0=(float(np.sqrt(energy[0])), -0.2, 1.4, 0.0))
        numbers |= {name: found[1], f"{name}_frequency": abs(found[2])}
        numbers |= {f"{name}_theory": theory[name][0], f"{name}_frequency_theory": theory[name][1]}
        label = "fits" if name == "damped" else None
        axes.semilogy(part.time, wave(part.time, *found) ** 2, "--", color="black", lw=1, label=label)
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="energy of the wave  [n̄ m v$_{th}$³/ω$_p$]", ylim=(1e-5, None))
    axes.legend()
    return figure, {name: float(value) for name, value in numbers.items()}
