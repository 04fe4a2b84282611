r"""Example 1: a Gaussian relaxes in a harmonic potential

In the potential $V(x) = \tfrac12 x^2$ a Gaussian stays Gaussian for all times, so the exact solution of the kinetic
Fokker–Planck equation is known. The example asks how large the error of a time step is. The control field $u$ should
be $-\kappa\,(v + T\,\nabla_v \log f)$; the drift error is the mean square of what it misses, against the exact
solution.

The paper's scheme is of the first order: halving the step divides the error of the field by {ratio:.2f}. The
second-order step of this package (midpoint rule, exact determinant) is {better:.0f} times more accurate at the same
step.

To make it yours: change `stiffness`, `mean` and `covariance` in `jobs/e1_gaussian_1d.toml`.
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run

SECOND_ORDER = {"method.order": 2, "method.logdet": "exact", "time.integrator": "verlet"}


def example(folder, quick):
    settings = {"particles.count": 512 if quick else 1024, "time.end": 0.4 if quick else 1.0}
    settings |= {"method.first_iterations": 200 if quick else 1000, "method.iterations": 100 if quick else 400}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    errors = {}
    for name, changes in {
        "paper's scheme, h = 0.2": {"time.step": 0.2},
        "paper's scheme, h = 0.1": {"time.step": 0.1},
        "second order, h = 0.1": {"time.step": 0.1, **SECOND_ORDER},
    }.items():
        case = Case.load("jobs/e1_gaussian_1d.toml", {**settings, **changes})
        series = run(case, folder / name).series
        axes.semilogy(series.time[1:], np.sqrt(series.drift_error[1:]), label=name)
        errors[name] = float(np.sqrt(series.drift_error[1:].mean()))
    axes.set(xlabel="time  [1/ω$_p$]", ylabel="error of the control field, root mean square")
    axes.legend()
    coarse, fine, second = errors.values()
    return figure, {"ratio": coarse / fine, "better": fine / second}
