"""The meaning of each column of the time series, for readers of a run and for the page docs/reference/series.md."""

from __future__ import annotations

import re

#: Meanings by column name. A column for several directions has the number 1 here. The first sentence is the summary.
MEANINGS: dict[str, str] = {
    "step": "Number of the step.",
    "time": "Time t, in 1/ω_p.",
    "mass": "m ∫f. With a mesh it is the mass of the deposited density.",
    "momentum_1": "m ∫v f, in each direction.",
    "temperature_1": (
        "m (⟨v_i²⟩ − ⟨v_i⟩²) of all particles, in each direction. With several species there is no total, only one for "
        "each species."
    ),
    "kinetic_energy": "∫½m|v|²f.",
    "field_energy": "½∫|E|²dx.",
    "wave_energy": (
        "The part of the field energy in the wave of `problem.mode`. With several species it is the wave of "
        "the first species that has an `amplitude`."
    ),
    "potential_energy": "∫φf of an external φ.",
    "drive_energy": "The energy that the driven field has given to the particles since t = 0.",
    "entropy": (
        "∫f log f. Its sign is opposite to that of the physical entropy, −∫f log f, so collisions lower this column."
    ),
    "free_energy": (
        "The sum of the energies and T · `entropy` (the paper's eq. 39). Runs with `dougherty` or `landau` do not "
        "have it."
    ),
    "kl": (
        "Mean of log f − log f∞. f∞ is the equilibrium in the external potential, or the homogeneous "
        "Maxwellian of a plasma. Runs with `dougherty` do not have it."
    ),
    "marginal_l1_x_1": (
        "L¹ distance between the histogram of the position, with 160 bins, and the exact density (`gaussian`). If the "
        "exact density is not known, the equilibrium takes its place. One column for each coordinate."
    ),
    "marginal_l1_v_1": "The same for each velocity.",
    "mean_error": "Error of the mean of (x, v), in the max norm (`gaussian`).",
    "covariance_error": "Error of the covariance of (x, v), in the max norm (`gaussian`).",
    "gauss_residual": "max |∇·E − (n − n̄)| (`ampere`).",
    "control_variate_beta": (
        "∫βf_M dv / n̄, the fraction of the density that the control variate knows. It is near 1 at equilibrium. "
        "Only with `particles.control_variate`."
    ),
    "weight_variance": (
        "Mean w². The noise of the field energy of independent particles is multiplied by this number."
    ),
    "collision_field_energy": (
        "The change of the field energy in the collision step, which comes from the weights of the control variate."
    ),
    "dissipation": (
        "(m/κ)∫|u|²f. With `dougherty` it is (1/κ)∫|u|²/Θ f. With `landau` and `jko` it is ∫uᵀ(C D)⁻¹u f. At "
        "t = 0 it belongs to the exact control field of the initial density, and it is 0 with `landau`."
    ),
    "drift_error": (
        "Mean |u − u*|², the paper's eq. 38 (`gaussian`). u* is taken at (x̃, v^{n+1}, t^{n+1}), and with "
        "`order = 2` at the midpoint."
    ),
    "min_eigenvalue": (
        "Smallest eigenvalue of I + h sym ∇v u over all particles. If it is not positive, the step is "
        "fitted again or split."
    ),
    "objective": "The JKO functional of the accepted step.",
    "inner_iterations": "Iterations of the inner solver.",
    "substeps": "1, or the number of pieces into which the step was split; 0 without collisions.",
    "retries": (
        "Number of repeated fits, with more regularisation. A fit is repeated if the step was not invertible, the "
        "certificate was −1, or held-out particles disagreed with the fitted density. With `landau` and `jko` it is 1 "
        "if u was multiplied by a number below 1."
    ),
    "collision_energy": "The kinetic energy that collisions gave to all particles in this step, exactly.",
    "collision_energy_total": (
        "The sum of `collision_energy` since t = 0. With `time.energy_conserving` it is the whole change of kinetic + "
        "field energy."
    ),
    "sparse_nodes": (
        "With `dougherty`, the fraction of mesh nodes with less mass than 4 average particles; these nodes use "
        "mostly U and Θ of the whole box. With `landau`, the fraction of cells with fewer than two particles."
    ),
    "certificate": (
        "1 if held-out particles show that the free energy fell in the collision by more than three standard "
        "errors, −1 if it rose by more than three, else 0. Zero is normal near equilibrium. With `dougherty` and "
        "`landau` ∫f log f takes the place of the free energy. With `landau` there is one certificate for all species "
        "together. It is 0 if a species that collides has fewer than 16 held-out particles. Only with "
        "`method.held_out`."
    ),
    "collision_free_energy": (
        "The change of the free energy that the certificate tests, times ∫f. With `dougherty` and `landau` it is the "
        "change of ∫f log f."
    ),
    "collision_free_energy_error": "The standard error of `collision_free_energy`.",
    "collision_free_energy_total": "Sum of `collision_free_energy` since t = 0.",
    "collision_free_energy_total_error": "Sum of `collision_free_energy_error` since t = 0.",
    "log_f_residual": (
        "Root mean square, over all particles, of the difference between the fitted density and the carried log f "
        "(`regression`). If its root mean square over the steps so far is above 0.03, the "
        "entropy is not reliable, and `kjko inspect` says so."
    ),
    "log_f_moved": "Root mean square of the change of log f by relaxation in this step (`regression`).",
    "entropy_moved_total": "The change of `entropy` by relaxation since t = 0 (`regression`).",
    "disagreement": (
        "T h ∫f times the mean of ∇·u + u·∇ψ̄ over the particles that certify (`regression`). It is 0 up to "
        "noise if the fitted density is that of the particles."
    ),
    "disagreement_error": "The standard error of `disagreement`.",
    "wave_error": (
        "Error of the wave's momentum and energy by collisions, divided by their largest amplitude (`jko` with a bath "
        "and a quiet start). Above 0.01 the field energy is not reliable, and `kjko inspect` says so."
    ),
    "seconds": (
        "Wall-clock time of the step on rank 0, in seconds: push, field and collisions. It does not include the start "
        "of the run, diagnostics and files. `kjko inspect` shows the time of the whole run."
    ),
    "seconds_push": "The part of `seconds` for drifts, fields and kicks.",
    "seconds_collide": "The part of `seconds` for collisions; 0 without collisions.",
}


def meaning_of(column: str, species: tuple[str, ...] = ()) -> str:
    """The meaning of a column; empty for a column of the user's own diagnostic.

    Args:
        column: the name of the column in the series.
        species: the names of the species of the run. A column may begin with one of them.
    """
    for name in species:
        column = column.removeprefix(f"{name}_")
    return MEANINGS.get(re.sub(r"_\d$", "_1", column), "")
