r"""Example 1 of the paper: a Gaussian relaxes in a harmonic potential

How large is the error of a time step? In the potential $V(x) = \tfrac12 x^2$ a Gaussian stays Gaussian, so the exact
solution of the kinetic Fokker–Planck equation is known. The exact control field is $u = -\kappa\,(v + T\,\nabla_v \log
f)$. The figure shows the root mean square of the difference between $u$ and this exact field.

The scheme of the paper is of first order: half the step divides the error by {ratio:.2f}. The second-order step of this
package uses the midpoint rule and the exact determinant. At the same step its error, averaged over time, is
{better:.0f} times smaller.

**Change it.** Change `stiffness`, `mean` and `covariance` in `jobs/e1_gaussian_1d.toml`.
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
