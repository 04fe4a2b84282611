r"""Landau damping, with and without collisions

A Langmuir wave in a Maxwellian plasma is damped even without collisions, by particles that move with the wave.
Collisions with a bath increase the damping. Theory gives both rates. Without collisions it is the zero of the
dielectric function, with collisions the least damped eigenvalue of the linearised kinetic equation. Here
$k\lambda_D = 0.5$. The [rule of `kjko inspect`](../howto/rate_of_a_wave.md) fits a line to the maxima of the wave's
energy (wide and pale). The dashed lines have the rates of theory.

| | without collisions | $\kappa = 0.1$ |
| --- | --- | --- |
| $\gamma$ | {free:.4f} ± {free_error:.4f} | {damped:.4f} ± {damped_error:.4f} |
| theory | {free_theory:.4f} | {damped_theory:.4f} |
| $\omega$ | {free_frequency:.3f} ± {free_frequency_error:.3f} | {damped_frequency:.3f} ± {damped_frequency_error:.3f} |
| theory | {free_frequency_theory:.3f} | {damped_frequency_theory:.3f} |

The measured damping is three to five percent too fast. The first maxima also contain faster damped parts of the
solution. With collisions the wave soon falls towards the noise of the particles, so a later fit would not be better.

**Change it.** `kjko run jobs/landau_damping.toml --set problem.length=15.7` changes the wavenumber.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.post import rates
from hpc_kjko.reference.dispersion import landau_rate, landau_root


def example(folder, quick):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    root, numbers = landau_root(0.5), {}
    theory = {"free": (root.imag, root.real), "damped": landau_rate(0.5, 0.1)}
    for name, kappa, count in (("free", 0.0, 131072), ("damped", 0.1, 8192 if quick else 65536)):
        changes = {"particles.count": count, "physics.collision_strength": kappa, "time.step": 0.1}
        changes |= {"time.end": 12.0, "output.every": 0, "output.histogram_every": 0}
        energy = run(Case.load("jobs/landau_damping.toml", changes), folder / name).series.wave_energy
        (line,) = axes.semilogy(energy.time, energy, label=f"κ = {kappa:g}")
        fit = rates.fit(energy.time.values, energy.values)
        numbers |= {name: fit.rate, f"{name}_error": fit.error}
        numbers |= {f"{name}_frequency": fit.frequency, f"{name}_frequency_error": fit.frequency_error}
        numbers |= {f"{name}_theory": theory[name][0], f"{name}_frequency_theory": theory[name][1]}
        axes.semilogy(fit.window, fit.energy(np.array(fit.window)), color=line.get_color(), lw=5, alpha=0.4)
        slope = np.exp(2 * (fit.height + theory[name][0] * (np.array(fit.window) - np.mean(fit.window))))
        axes.semilogy(fit.window, slope, "k--", lw=1, label="theory" if name == "damped" else None)
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="energy of the wave  [n̄ m v$_{th}$³/ω$_p$]", ylim=(1e-5, None))
    axes.legend()
    return figure, {name: float(value) for name, value in numbers.items()}
