#!/usr/bin/env python
"""docs/operators.png: the same two-stream run with a bath, and with collisions of the particles with each other.

    python scripts/operators_figure.py [--out DIR] [--ranks N]

Runs are kept in DIR/runs (see experiments.py). The figure is written to DIR/figures.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from experiments import Experiments
from paper_figures import BLUE, GRID, RED, TIME, draw_one, snapshots_at

OPERATORS = {"bath": ("a bath, T = 1", RED), "dougherty": ("Dougherty", BLUE)}
TIMES = (20.0, 35.0, 50.0)


def draw(runs: Experiments) -> plt.Figure:
    """Draw phase space at three times, one row per operator; below it field energy, kinetic energy and ∫f log f."""
    figure, axes = plt.subplots(3, 3, figsize=(12, 9.6), layout="constrained")
    found = {name: snapshots_at(runs, f"operators_{name}", TIMES) for name in OPERATORS}
    for row, (name, (label, _)) in zip(axes, OPERATORS.items(), strict=False):
        for panel, snapshot in zip(row, found[name], strict=True):
            histogram = snapshot.histograms[0]
            extent = (*histogram.x_range, *histogram.v_range)
            look = {"cmap": "cividis", "vmin": 0, "vmax": 0.25, "aspect": "auto", "origin": "lower"}
            values = histogram.values.reshape(64, 2, 64, 2).mean((1, 3))  # less noise
            image = panel.imshow(values.T, extent=extent, **look)
            panel.grid(False)
            panel.set(title=f"{label}, t = {snapshot.time:g}", xlabel="x  [v$_{th}$/ω$_p$]", ylabel="v  [v$_{th}$]")
        figure.colorbar(image, ax=row, label="f(x, v)  [n̄/v$_{th}$]", extend="max")
    field, kinetic, entropy = axes[-1]
    for name, (label, color) in OPERATORS.items():
        series, solution = (found(f"operators_{name}") for found in (runs.series, runs.reference))
        for panel, column, plot in ((field, "field_energy", field.semilogy), (kinetic, "kinetic_energy", kinetic.plot)):
            plot(series["time"], series[column], color=color, label=label)
            panel.plot(solution.times, getattr(solution, column), **GRID, ls="--")
        entropy.plot(series["time"], series["entropy"], color=color, label=label)
        entropy.plot(solution.times, solution.entropy, **GRID, ls="--")
    field.set(xlabel=TIME, title="field energy  ½∫|E|²dx")
    kinetic.set(xlabel=TIME, title="kinetic energy  ∫½v²f")
    entropy.set(xlabel=TIME, title="∫f log f  (dashed: grid solver)")
    field.legend()
    case = runs.case("operators_dougherty")
    kappa, count, step = case.physics.collision_strength, case.particles.count, case.time.step
    figure.suptitle(
        f"Two streams, collisions with a bath and of like particles: κ = {kappa:g}, N = {count}, h = {step:g}"
    )
    return figure


if __name__ == "__main__":
    draw_one("operators", draw, __doc__)
