"""Labels of the columns of a time series on an axis."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hpc_kjko.post.panels import Axis

_NAMES = {
    "step": "step",
    "time": "time",
    "mass": "mass m ∫f",
    "momentum": "momentum m ∫v f",
    "temperature": "temperature m (⟨v²⟩ − ⟨v⟩²)",
    "kinetic_energy": "kinetic energy ½m ∫|v|²f",
    "field_energy": "field energy ½∫|E|²dx",
    "wave_energy": "energy of the wave ½∫|E|²dx",
    "potential_energy": "potential energy ∫φf",
    "drive_energy": "energy given by the driven field",
    "entropy": "∫ f log f",
    "free_energy": "free energy F",
    "kl": "KL divergence from equilibrium",
    "marginal_l1": "L¹ error of the marginal",
    "mean_error": "error of the mean",
    "covariance_error": "error of the covariance",
    "gauss_residual": "largest residual of Gauss's law",
    "control_variate_beta": "known fraction of the density",
    "weight_variance": "mean square of the weights",
    "collision_field_energy": "field energy changed by collisions",
    "dissipation": "dissipation",
    "drift_error": "error of the control field",
    "sparse_nodes": "fraction of nodes with few particles",
    "collision_energy": "energy given by the collision step",
    "collision_energy_total": "energy given by collisions so far",
    "certificate": "certificate (1 certified, 0 inconclusive, −1 violated)",
    "collision_free_energy": "free energy changed by the collision step",
    "collision_free_energy_error": "its standard error",
    "collision_free_energy_total": "free energy changed by collisions so far",
    "collision_free_energy_total_error": "its standard error",
    "min_eigenvalue": "smallest eigenvalue of I + h ∇v u",
    "objective": "JKO functional of the step",
    "inner_iterations": "iterations of the inner solver",
    "substeps": "pieces of the step",
    "retries": "repeated fits",
    "log_f_residual": "misfit of log f (root mean square)",
    "log_f_moved": "log f changed by relaxation (root mean square)",
    "entropy_moved_total": "∫ f log f added by relaxation so far",
    "disagreement": "disagreement of held-out particles",
    "disagreement_error": "its standard error",
    "wave_error": "error of the wave's moments by collisions",
    "seconds": "wall-clock time of the step",
}
#: The parts of the time of a step, by their columns.
PARTS_OF_A_STEP = {"seconds_push": "push and field", "seconds_collide": "collisions"}
#: Columns that change by orders of magnitude.
_LOGARITHMIC = ("field_energy", "wave_energy", "kl")


def axis_of(column: str, unit: str, species: Sequence[str] = ()) -> Axis:
    """The axis of a column of the time series, with its label and unit.

    Args:
        column: the name of the column.
        unit: the unit in the series.
        species: the names of the species of the case. Columns of a species begin with its name.
    """
    of = next((name for name in species if column.startswith(f"{name}_")), "")
    own = column.removeprefix(f"{of}_") if of else column
    label = _label(own)
    return Axis(f"{of}: {label}" if of else label, "" if unit == "1" else unit, log=own in _LOGARITHMIC)


def of_unit(axis: Axis) -> Axis:
    """The axis with only its unit as the label, for a panel with the name of the quantity above it."""
    return dataclasses.replace(axis, label=f"in {axis.unit}" if axis.unit else "", unit="")


def _label(column: str) -> str:
    if column in _NAMES:
        return _NAMES[column]
    if column in PARTS_OF_A_STEP:
        return f"wall-clock time of the step: {PARTS_OF_A_STEP[column]}"
    if numbered := re.fullmatch(r"(momentum|temperature)_(\d)", column):
        return f"{_NAMES[numbered[1]]} along {numbered[2]}"
    if of := re.fullmatch(r"marginal_l1_([xv])_(\d)", column):
        return f"{_NAMES['marginal_l1']} of {of[1]}_{of[2]}"
    return column.replace("_", " ")  # a column of the user's own diagnostic
