"""The linear theory of the wave of a run. The run stores it in ``series.h5``, for figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_kjko.files.storage import reading

_PREFIX = "wave_"
#: A wave with a smaller rate, in ω_p, neither grows nor is damped.
_STEADY = 1e-5


@dataclass(frozen=True)
class Branch:
    """Modes of one branch: wavenumbers [n] in ω_p/v_th, angular frequencies [n] and growth rates of the field [n] in
    ω_p."""

    label: str
    wavenumber: np.ndarray
    frequency: np.ndarray
    rate: np.ndarray


@dataclass(frozen=True)
class WaveTheory:
    """Linear theory of a small wave E ~ e^{γt} cos(k·x − ωt).

    Attributes:
        vector: k [dx], in ω_p/v_th.
        relation: the dispersion relation that gives γ and ω, in words; empty if there is none.
        missing: a sentence that says why γ and ω are not known, or what they neglect.
        rate, frequency: γ and ω, in ω_p; None if the wave has no single γ and ω.
        time, energy: for a wave without a single rate, its energy as a function of time [n], 1 at t = 0.
        branches: the modes with other wavenumbers in the box.
    """

    vector: np.ndarray
    relation: str = ""
    missing: str = ""
    rate: float | None = None
    frequency: float | None = None
    time: np.ndarray = field(default_factory=lambda: np.empty(0))
    energy: np.ndarray = field(default_factory=lambda: np.empty(0))
    branches: tuple[Branch, ...] = ()

    @property
    def outcome(self) -> str:
        """Growth or damping in words, with γ and ω; empty if theory has no single rate."""
        if self.rate is None or self.frequency is None:
            return ""
        trend = "growing" if self.rate > _STEADY else "damped" if self.rate < -_STEADY else "neither growing nor damped"
        rate, frequency = (round(value, 4) + 0.0 for value in (self.rate, self.frequency))  # without −0.0
        return f"{trend}, γ = {rate:.4f} and ω = {frequency:.4f}".replace("-", "−")

    @property
    def wavenumber(self) -> float:
        """|k|, in ω_p/v_th."""
        return float(np.linalg.norm(self.vector))


def theory_attributes(theory: WaveTheory) -> dict[str, Any]:
    """Attributes that store the theory of the wave in a series."""
    words: dict[str, Any] = {
        "relation": theory.relation,
        "missing": theory.missing,
        "rate": theory.rate,
        "frequency": theory.frequency,
    }
    words |= {"labels": [branch.label for branch in theory.branches]}
    found: dict[str, Any] = {f"{_PREFIX}theory": json.dumps(words), f"{_PREFIX}vector": theory.vector}
    if len(theory.time):
        found[f"{_PREFIX}history"] = np.stack([theory.time, theory.energy])
    for number, branch in enumerate(theory.branches):
        found[f"{_PREFIX}branch_{number}"] = np.stack([branch.wavenumber, branch.frequency, branch.rate])
    return found


def read_theory(path: Path | str) -> WaveTheory | None:
    """The theory of the wave of a run; None if the run stored none, as in older versions of hpc_kjko.

    Raises:
        UserError: the file is missing or is not a time series.
    """
    with reading(Path(path), "time series", "give the series.h5 of a run folder", swmr=True) as file:
        if f"{_PREFIX}theory" not in file.attrs:
            return None
        text = file.attrs[f"{_PREFIX}theory"]
        words = json.loads(text.decode() if isinstance(text, bytes) else text)
        labels, history = words.pop("labels"), f"{_PREFIX}history"
        if history in file.attrs:
            words["time"], words["energy"] = file.attrs[history]
        numbers = [file.attrs[f"{_PREFIX}branch_{number}"] for number in range(len(labels))]
        branches = tuple(Branch(label, *found) for label, found in zip(labels, numbers, strict=True))
        return WaveTheory(file.attrs[f"{_PREFIX}vector"], branches=branches, **words)
