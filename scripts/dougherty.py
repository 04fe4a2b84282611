"""Collisions that conserve momentum and energy, compared with the grid solver and exact rates, for validate.py."""

from __future__ import annotations

import numpy as np
from experiments import Experiments, relative_l2, transverse_temperatures
from records import record


def dougherty(runs: Experiments) -> bool:
    """Collisions within one species: field energy within 5 % of the grid solver, momentum and energy conserved to
    1e-12.

    Temperatures become equal at the rate 2κ, and in 10⁴ steps ∫f log f never rises with certainty."""
    passed = True
    for name in ("dougherty_two_stream", "dougherty_poisson", "dougherty_landau"):
        series, reference = runs.series(name), runs.reference(name)
        wanted = {
            key: np.interp(series["time"], reference.times, getattr(reference, key))
            for key in ("field_energy", "entropy")
        }
        field = relative_l2(series["field_energy"], wanted["field_energy"])
        entropy = np.abs(series["entropy"] / wanted["entropy"] - 1).max()
        energy = series["kinetic_energy"] + series["field_energy"]
        momentum = np.abs(series["momentum_1"] - series["momentum_1"][0]).max() / series["mass"][0]
        collided = np.abs(series["collision_energy"]).max() / energy[0]
        print(
            f"{name}: field energy, relative L2 {field:.4f}; largest error of entropy {entropy:.5f}; largest change of "
            f"momentum / mass {momentum:.1e}, of energy {np.abs(energy / energy[0] - 1).max():.1e}, in one collision "
            f"{collided:.1e}; violated {int((series['certificate'] < 0).sum())}; {series['seconds'].sum():.0f} s"
        )
        at = [round(t * (len(wanted["entropy"]) - 1)) for t in (0.25, 0.5, 0.75, 1.0)]
        for label, values in (("run ", series["field_energy"]), ("grid", wanted["field_energy"])):
            print(f"  {label} at quarters of the run: {' '.join(f'{values[i]:.4g}' for i in at)}")
        passed &= record(name, "field energy against the grid, relative L²", "≤ 5 %", f"{field:.1%}", field <= 0.05)
        quantity = "energy that one collision adds, relative"
        passed &= record(name, quantity, "< 1e-12", f"{collided:.1e}", collided < 1e-12)
        if name == "dougherty_two_stream":
            change = np.abs(energy / energy[0] - 1).max()
            passed &= record(name, "total energy, relative change", "< 1e-12", f"{change:.1e}", change < 1e-12)
        if name == "dougherty_poisson":
            quantity = "momentum / mass, largest change"
            passed &= record(name, quantity, "< 1e-12", f"{momentum:.1e}", momentum < 1e-12)
    name = "dougherty_isotropy"
    series, transverse = runs.series(name), transverse_temperatures(runs, name).mean(1)
    total = 2 * series["kinetic_energy"] / series["mass"]
    apart = total[: len(transverse)] - 3 * transverse
    rate = -np.polyfit(series["time"][: len(apart)], np.log(apart), 1)[0]
    print(f"{name}: T_1 − T_2 falls at the rate {rate:.4f}, 2 kappa = {2 * runs.case(name).physics.collision_strength}")
    wanted = 2 * runs.case(name).physics.collision_strength
    row = (name, "rate at which the temperatures become equal, which is 2κ", f"{wanted:g} within 2 %", f"{rate:.4f}")
    passed &= record(*row, abs(rate / wanted - 1) < 0.02)
    series = runs.series("dougherty_long")
    energy = series["kinetic_energy"] + series["field_energy"]
    changes, start, end = np.diff(series["entropy"]), series["entropy"][0], series["entropy"][-1]
    below = (maxwellian_entropy(series) - series["entropy"]) / series["mass"][0]
    print(
        f"dougherty_long: {len(changes)} steps; violated {int((series['certificate'] < 0).sum())}; ∫f log f falls in "
        f"{int((changes < 0).sum())} of them, largest rise in a step {changes.max():.2g}, above its lowest before "
        f"{(series['entropy'] - np.minimum.accumulate(series['entropy'])).max():.2g}, "
        f"from {start:.4f} to {end:.4f} (Maxwellian: {maxwellian_entropy(series):.4f}), "
        f"at most {below.max():.4f} a particle below it; "
        f"energy kept to {np.abs(energy / energy[0] - 1).max():.1e}; {series['seconds'].sum():.0f} s"
    )
    by_chance = len(changes) / 741  # without a change, so many steps rise by three standard errors
    violated = int((series["certificate"] < 0).sum())
    case, quantity = "dougherty_long, 10⁴ steps", "steps in which ∫f log f rises by over three standard errors"
    passed &= record(
        case,
        quantity,
        f"{by_chance:.0f} are expected by chance",
        f"{violated}",
        violated <= by_chance + 3 * by_chance**0.5,
    )
    quantity = "∫f log f per particle, largest fall below the Maxwellian's"
    passed &= record(case, quantity, "≤ 0.001", f"{below.max():.1e}", below.max() <= 0.001)
    return bool(passed)


def maxwellian_entropy(series: dict[str, np.ndarray]) -> float:
    """∫f log f of the homogeneous 1V Maxwellian with the same energy as the run."""
    energy = (series["kinetic_energy"] + series["field_energy"])[0]
    return float(-0.5 * series["mass"][0] * np.log(2 * np.pi * np.e * 2 * energy / series["mass"][0]))
