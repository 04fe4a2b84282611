r"""Example 2 of the paper: relaxation in a potential with two wells

Does the solution reach the equilibrium, and does its relative entropy fall in every step, as theory says? Particles
start as a Gaussian on one side of $V(x) = \tfrac12 x^2 + 0.3 \cos \pi x$. They collide with a bath of temperature
$T = 1$. The equilibrium $f_\infty \propto e^{{-V(x) - v^2/2}}$ is not Gaussian in $x$.

The relative entropy $\mathrm{{KL}}(f\,|\,f_\infty)$ falls in every step, from {start:.2f} to {end:.4f} at $t =
{time:g}$. The particles carry $\log f$. So KL is an average over the particles, and no histogram is needed. The right
panel shows the density in $x$ at the start and at the end.

**Change it.** Name a potential of your own as `"module:name"` ([how to](../howto/own_problem.md#a-potential-alone)).
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run


def example(folder, quick):
    changes = {"particles.count": 1024 if quick else 32768, "time.end": 1.0 if quick else 5.0}
    result = run(Case.load("jobs/e2_confined.toml", changes), folder / "run")
    kl, density = result.series.kl, result.marginals.f_x_1.coarsen(x_1=2).mean()
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(kl.time, kl.where(kl > 0))
    left.set(xlabel="time  [1/ω$_p$]", ylabel="KL(f | f$_∞$)")
    for time in (0, -1):
        one = density.isel(time=time)
        right.plot(one.x_1, one, label=f"t = {float(one.time):g}")
    x = density.x_1.values
    equilibrium = np.exp(-(0.5 * x**2 + 0.3 * np.cos(np.pi * x)))
    right.plot(x, equilibrium / np.trapezoid(equilibrium, x), "k--", lw=1, label="equilibrium")
    right.set(xlabel="x  [v$_{th}$/ω$_p$]", ylabel="density  [ω$_p$/v$_{th}$]")
    right.legend()
    numbers = {"start": float(kl[0]), "end": float(kl[-1]), "time": float(kl.time[-1])}
    return figure, {**numbers, "largest_rise": float(np.diff(kl).max())}
