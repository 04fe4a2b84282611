"""A summary of the time series of a run for all verbs that read runs: conservation, certificates, timings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.operators import OPERATORS
from hpc_kjko.running.clock import PARTS
from hpc_kjko.running.remarks import IN_CHANCE, certificate_remarks, fit_remarks, wave_remarks

#: The verdict of a certificate, by its value in the series.
VERDICTS = {1: "certified", 0: "inconclusive", -1: "violated"}

#: With more particles per rank than this, most of the memory belongs to particles.
_MANY = 10**6
#: A column is mostly noise if it is below the noise of the particles in it times this number.
NOISY = 2.0

#: What the noise of the particles in a column is called.
NOISE_OF = {"field_energy": "noise of the whole field", "wave_energy": "noise of the wave"}

Columns = dict[str, np.ndarray]
#: The columns that are compared with a reference by default. Mass and momentum are conserved, so their relative errors
#: mean little.
COMPARED = ("kinetic_energy", "field_energy", "potential_energy", "entropy", "free_energy", "kl")


#: Columns that show the effect of collisions. Without collisions they have no meaning.
_OF_COLLISIONS = (
    *("kl", "free_energy", "entropy", "dissipation", "collision_energy", "collision_energy_total", "certificate"),
    *(f"collision_free_energy{of}" for of in ("", "_error", "_total", "_total_error")),
    "seconds_collide",
)
#: Columns of distances from the marginals of the equilibrium, or of the exact solution. The latter has moments too.
_OF_MARGINALS, _EXACT = "marginal_l1_", "mean_error"


def meaningful(columns: Columns, case: RunCase) -> Columns:
    """The columns that have a meaning for a case.

    Without collisions particles do not approach an equilibrium, and their ∫f log f does not change. So these columns
    are left out. The free energy is left out too, because its temperature is that of a bath, and there is no bath.
    """
    still = [f"{name}_" for name in case.species if not case.strength_of(name)]
    if not case.collision_strength:
        still.append("")
    left_out = {f"{of}{name}" for of in still for name in _OF_COLLISIONS}
    marginals = () if _EXACT in columns else tuple(f"{of}{_OF_MARGINALS}" for of in still)
    return {name: values for name, values in columns.items() if name not in left_out and not name.startswith(marginals)}


@dataclass(frozen=True)
class Drift:
    """The drift of a conserved quantity: its first and last value, and the largest change."""

    name: str
    first: float
    last: float
    largest: float

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> Drift:
        """The drift of a column [rows] with at least one row."""
        return cls(name, float(values[0]), float(values[-1]), float(np.abs(values - values[0]).max()))


def total_energy(columns: Columns) -> np.ndarray:
    """Kinetic plus field plus potential energy: [rows]."""
    return columns["kinetic_energy"] + columns["field_energy"] + columns["potential_energy"]


def missing_steps(columns: Columns) -> str:
    """The steps without a row in a series, up to its last row, as in "0 to 8"; empty if none is missing."""
    steps = columns["step"].astype(int)
    before = np.concatenate([[-1], steps[:-1]])
    gaps = [(last + 1, step - 1) for last, step in zip(before, steps, strict=True) if step > last + 1]
    return ", ".join(f"{first} to {last}" if first < last else f"{first}" for first, last in gaps)


def drifts(columns: Columns) -> list[Drift]:
    """The drifts of mass, momentum and energy, and of the part of the energy that collisions do not explain."""
    found = [Drift.of("mass", columns["mass"])]
    momenta = [name for name in columns if name.startswith("momentum_")]
    found += [Drift.of(name.replace("momentum_", "momentum along v_"), columns[name]) for name in momenta]
    energy, given, by = total_energy(columns), _given(columns), _givers(columns)
    if by:
        found.append(Drift.of(f"energy minus what {' and '.join(by)} gave", energy - given))
    found.append(Drift.of("energy", energy))
    return found


def _givers(columns: Columns) -> list[str]:
    """The known sources of energy of a plasma, in words."""
    named = {"collision_energy_total": "collisions", "drive_energy": "the drive"}
    return [words for name, words in named.items() if name in columns]


def _given(columns: Columns) -> np.ndarray:
    """The energy from the known sources since t = 0: [rows]."""
    none = np.zeros(len(columns["time"]))
    return columns.get("collision_energy_total", none) + columns.get("drive_energy", none)


@dataclass(frozen=True)
class EnergyError:
    """The error of the energy: the change that the scheme should not make.

    Attributes:
        largest: the largest change that no known source explains, relative to ``scale``.
        scale: the absolute value of the energy in the first row.
        words: the energy that ``largest`` is relative to, and the sources that it does not count, in words.
    """

    largest: float
    scale: float
    words: str

    @classmethod
    def of(cls, columns: Columns) -> EnergyError:
        """The error of a run that has at least one row."""
        energy, by = total_energy(columns), _givers(columns)
        left = energy - _given(columns)
        scale = abs(float(energy[0])) or 1.0
        words = f"relative to the energy at t = {columns['time'][0]:g}, {scale:.4g}"
        if by:
            words += f". Energy from {' and '.join(by)} is not counted as an error"
        return cls(float(np.abs(left - left[0]).max()) / scale, scale, words)


def tally(columns: Columns) -> dict[str, int] | None:
    """The number of steps with each verdict; None without certificates."""
    if "certificate" not in columns:
        return None
    verdicts = columns["certificate"][1:]
    return {name: int((verdicts == verdict).sum()) for verdict, name in VERDICTS.items()}


def tally_text(columns: Columns) -> str:
    """The numbers of steps with each verdict, as text; empty without certificates."""
    return ", ".join(f"{number} {name}" for name, number in (tally(columns) or {}).items())


def certified_quantity(case: RunCase) -> str:
    """The quantity that collisions must lower, in words."""
    return OPERATORS[case.collision_operator].falls


def verdict_meanings(quantity: str) -> dict[str, str]:
    """The meaning of each verdict. It follows from the particles that are held out of the fit.

    Args:
        quantity: the quantity that collisions must lower, in words (:func:`certified_quantity`).
    """
    return {
        "certified": f"collisions lowered {quantity} by more than three standard errors, as they must",
        "inconclusive": f"{quantity} changed by less than three standard errors. This is normal near equilibrium, "
        "where it can hardly decrease further",
        "violated": f"{quantity} rose by more than three standard errors. By chance this happens in one of {IN_CHANCE} "
        "steps; more such steps show that something is wrong",
    }


def fall(columns: Columns) -> str | None:
    """The total change of the certified quantity by collisions, from held-out particles; None without certificates."""
    if "certificate" not in columns:
        return None
    change, error = (columns[f"collision_free_energy_total{suffix}"][-1] for suffix in ("", "_error"))
    return f"{change:.6g}, with a standard error of at most {error:.2g}"


def noise_floors(status: dict[str, Any], columns: Columns) -> dict[str, np.ndarray]:
    """The noise of the particles in columns, [rows] each, from the information in ``run.json``.

    The noise of a quiet start grows with time. A control variate reduces the noise according to its weights.
    """
    floors, growths = status.get("noise_floor"), status.get("noise_growth") or {}
    if not isinstance(floors, dict):
        return {}
    if not isinstance(growths, dict):  # earlier versions wrote one number for all columns
        growths = dict.fromkeys(NOISE_OF, growths)
    part = columns.get("weight_variance", np.ones(len(columns["time"])))
    found = {}
    for name in NOISE_OF:
        if name in columns and isinstance(floor := floors.get(name), float):
            growth = growths.get(name)
            grown = np.minimum(1.0, growth * columns["time"]) if isinstance(growth, float) else 1.0
            found[name] = floor * grown * part
    return found


def remarks(status: dict[str, Any], columns: Columns) -> list[str]:
    """Sentences for the reader of the results: the warnings at the start of the run, errors of the wave, and noise."""
    warnings = status.get("warnings")
    found = list(warnings) if isinstance(warnings, list) else []
    if columns:
        found += [
            *fit_remarks(columns),
            *certificate_remarks(columns),
            *wave_remarks(columns),
            *noise_remarks(status, columns),
        ]
    return found


def noise_remarks(status: dict[str, Any], columns: Columns) -> list[str]:
    """A sentence for each column that is mostly noise at the end of the run."""
    found = []
    for name, floor in noise_floors(status, columns).items():
        above = np.flatnonzero(columns[name] > NOISY * floor)
        if columns[name].any() and (not len(above) or above[-1] < len(columns[name]) - 1):
            since = columns["time"][above[-1] + 1] if len(above) else columns["time"][0]
            found.append(
                f"{name.replace('_', ' ')} is mostly noise from t = {since:g} on: with this number of particles the "
                f"{NOISE_OF[name]} is then about {floor[-1]:.2g}; use particles.control_variate = true or more "
                "particles"
            )
    return found


def seconds_by_part(status: dict[str, Any]) -> dict[str, float]:
    """Seconds of the parts of a run, which add up to its wall-clock time, from the information in ``run.json``.

    Parts without any time are left out. The result is empty for a run of a version that did not write them.
    """
    return {PARTS.get(part, part): spent for part, spent in status.get("seconds", {}).items() if spent}


def wall_clock(status: dict[str, Any]) -> float | None:
    """The wall-clock time of a run from its start to its end, in seconds; None if it is not known.

    A run that was restarted has the sum of its parts. A running run has the time up to the last update of
    ``run.json``.
    """
    return sum(seconds_by_part(status).values()) or None


def memory(status: dict[str, Any], particles: float) -> dict[str, str]:
    """The peak memory of a rank, including Python and libraries, from the information in ``run.json``."""
    if "memory" not in status:
        return {}
    found = {"memory of rank 0": f"{status['memory'] / 1e6:.0f} MB"}
    on_each = particles / status.get("ranks", 1)
    if on_each >= _MANY:
        found["memory of all ranks"] = f"{status['memory'] / on_each:.0f} bytes per particle"
    return found
