r"""Example 4 of the paper: relaxation in six dimensions of phase space

A histogram of six dimensions would need millions of cells, but particles that carry $\log f$ need none. The potential
is that of Example 2 of the paper along each of three axes, $V(x) = \sum_j [\tfrac12 x_j^2 + 0.3\cos \pi x_j]$. The
initial density is a product of three functions, one for each axis, so the solution stays such a product. Then its
relative entropy is three times that of Example 2.

The relative entropy in 3D3V starts at {start:.2f}. It differs from three times that in 1D1V by at most
{difference:.4f}. Both runs have {count:.0f} particles.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run


def example(folder, quick):
    count = 2048 if quick else 32768
    changes = {"particles.count": count, "time.end": 0.4 if quick else 4.0, "output.histogram_every": 0}
    one = run(Case.load("jobs/e2_confined.toml", changes), folder / "1d").series.kl
    three = run(Case.load("jobs/e4_confined_3d.toml", changes), folder / "3d").series.kl
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(three.time, three.where(three > 0), label="3D3V")
    axes.semilogy(one.time, 3 * one.where(one > 0), "k--", lw=1, label="three times 1D1V")
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="KL(f | f$_∞$)")
    axes.legend()
    difference = np.abs(three.values - 3 * one.values).max()
    return figure, {"difference": float(difference), "start": float(three[0]), "count": count}
