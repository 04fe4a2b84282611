r"""Example 3 of the paper: two streams in a periodic potential

Two streams of opposite velocity merge into one Maxwellian. Their density becomes that of Boltzmann, $n(x) \propto
e^{{-V(x)}}$. The particles move in a periodic box with the potential $V(x) = \tfrac12 \cos 2\pi x$. They collide with a
bath of temperature 1.

The relative entropy falls from {start:.2f} to {end:.4f}. At the end, averages of the density over an eighth of the box
differ from those of the Boltzmann density by at most {density_error:.3f} of the mean. This is the noise of {count:.0f}
particles.

**Change it.** The potential in `jobs/e3_periodic_ratchet.toml`, `potential = "ratchet"`, has no mirror symmetry.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run


def example(folder, quick):
    count = 2048 if quick else 32768
    changes = {"particles.count": count, "time.end": 1.0 if quick else 5.0, "time.step": 0.05}
    result = run(Case.load("jobs/e3_periodic_cosine.toml", {**changes, "output.histogram_every": 20}), folder / "run")
    density, velocity, kl = result.marginals.f_x_1, result.marginals.f_v_1, result.series.kl
    smooth = density.coarsen(x_1=8).mean(), velocity.coarsen(v_1=2).mean()  # wider bins have less noise
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, marginal in zip((left, right), smooth, strict=True):
        for time in (0, marginal.sizes["time"] // 4, -1):
            one = marginal.isel(time=time)
            axes.plot(one[one.dims[0]], one, label=f"t = {float(one.time):g}")
    x = density.x_1.values
    boltzmann = np.exp(-0.5 * np.cos(2 * np.pi * x))
    boltzmann /= boltzmann.mean()
    left.plot(x, boltzmann, "k--", lw=1, label="Boltzmann")
    left.set(xlabel="x  [v$_{th}$/ω$_p$]", ylabel="density  [n̄]")
    right.set(xlabel="v  [v$_{th}$]", ylabel="density of velocities  [1/v$_{th}$]")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    last = density.isel(time=-1)
    coarse = (last / last.mean() - boltzmann).values.reshape(8, -1).mean(1)
    numbers = {"start": float(kl[0]), "end": float(kl[-1]), "density_error": float(np.abs(coarse).max())}
    return figure, {**numbers, "count": count}
