r"""Section 4.2 of the paper: the two-stream instability with weak and with strong collisions

Two electron beams pass through each other, and a small wave grows until it traps the particles. The beams have the
velocities $\pm 2.4$. The trapped particles form a vortex in phase space. Collisions with a bath at the rate $\kappa$
act against the growth. At $\kappa = 0.01$ the wave grows and saturates. At $\kappa = 1$ the beams merge before the wave
can grow.

With weak collisions the field energy grows by a factor of {growth:.0f}. The wave oscillates almost until it saturates,
so the [rule of `kjko inspect`](../howto/rate_of_a_wave.md) gives no growth rate. A wave with a smaller amplitude would
have one. So the whole curve is compared instead. The dashed lines are a grid solver for the same equation. Over the
whole run the field energy differs from that of the grid solver by {error:.1%} (relative $L^2$ norm). With strong
collisions the wave decays to the noise of the particles, at {floor:.0e}. The grid solver has no such noise.

**Change it.** `kjko run jobs/two_stream.toml --set physics.collision_strength=0.005`
"""

import numpy as np
from matplotlib.figure import Figure

from hpc_kjko import Case, run
from hpc_kjko.post import rates
from hpc_kjko.post.compare import grid_solution


def example(folder, quick):
    changes = {"particles.count": 2048 if quick else 32768, "time.end": 5.0 if quick else 40.0}
    changes |= {"time.step": 0.2, "grid.cells": [32 if quick else 64], "output.histogram_every": 0}
    changes |= {"output.particles_every": 25 if quick else 200}
    changes |= {"problem.amplitude": 0.05 if quick else 0.01}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = {}
    for name, kappa, colour in (("weak", 0.01, "C0"), ("strong", 1.0, "C1")):
        case = Case.load("jobs/e5_two_stream_weak.toml", {**changes, "physics.collision_strength": kappa})
        result = run(case, folder / name)
        energy = result.series.field_energy
        grid = grid_solution(result.case, cells=(64, 256) if quick else (128, 1024))
        wanted = np.interp(energy.time, grid.times, grid.field_energy)
        left.semilogy(energy.time, energy, color=colour, label=f"κ = {kappa:g}")
        left.semilogy(energy.time, wanted, "k--", lw=1, label="grid solver" if name == "strong" else None)
        if name == "weak":
            numbers["growth"] = float(energy.max() / energy[0])
            numbers["error"] = float(np.linalg.norm(energy - wanted) / np.linalg.norm(wanted))
            wave = result.series.wave_energy
            numbers["has_rate"] = float(rates.fit(wave.time.values, wave.values).is_clear)
            # f is interpolated from the log f of every third particle
            some = result.particles.isel(time=-1, particle=slice(None, None, 3))
            # particles near the ends of the periodic box are repeated beyond the other end
            (length,) = result.case.problem.periods
            x = np.concatenate([some.x_1 - length, some.x_1, some.x_1 + length])
            near = (x > -0.05 * length) & (x < 1.05 * length)
            v, f = (np.tile(values, 3)[near] for values in (some.v_1, np.exp(some.log_f)))
            image = right.tripcolor(x[near], v, f, cmap="magma", shading="gouraud", vmin=0, rasterized=True)
            figure.colorbar(image, ax=right, label="f(x, v)  [n̄/v$_{th}$]")
            right.set_facecolor("black")
            right.set(xlabel="x  [v$_{th}$/ω$_p$]", ylabel="v  [v$_{th}$]", title=f"κ = 0.01, t = {float(some.time):g}")
            right.set(xlim=(0, length))
    left.set(xlabel="time  [1/ω$_p$]", ylabel="field energy ½∫E²dx  [n̄ m v$_{th}$³/ω$_p$]", ylim=(1e-5, 3))
    left.legend()
    return figure, {**numbers, "floor": float(energy[-20:].mean())}
