"""Warnings from the time series: the fit misses log f, collisions change the wave, steps are split into pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

Columns = dict[str, np.ndarray]

#: If the fit misses log f by 0.04 all the time, the entropy changes wrongly by 0.05 in some time units; with 0.02, by
#: 0.01 (docs/research.md). A single step may miss more. So the mean over SOME steps and over all steps so far counts.
FIT_OFF, SOME = 0.03, 10
#: The limit for SOME steps in a row, because a long run may become wrong only at its end.
LATELY_OFF = 0.06
#: The largest acceptable fraction of steps without the fitted density.
UNUSED = 0.05
#: A certificate is wrong by chance in one step out of this number: three standard errors.
IN_CHANCE = 741
#: A run is warned about if SOME steps in a row have at least this number of pieces each.
IN_PIECES = 8
IN_PIECES_SINCE = (
    "collision steps are split into many pieces from t = {:g} on, because the log f of particles has become rough, and "
    "the run will become very slow; do not trust it after that; use more particles or a smaller time.step"
)
#: The largest acceptable relative error of the wave's momentum or energy by collisions. The field energy is then wrong
#: by several times as much (docs/explanation/checks.md).
WAVE_OFF = 0.01


def fit_remarks(columns: Columns) -> list[str]:
    """Sentences if the fitted density misses the log f of the particles, or could not be used."""
    if "log_f_residual" not in columns:
        return []
    none = np.zeros(len(columns["time"]))  # for sums over pairs, which make no other fit and no pieces
    steps, unused = len(none) - 1, int((columns.get("retries", none)[1:] > 0).sum())
    found = []
    if unused > UNUSED * steps:
        found.append(
            f"in {unused} of {steps} steps the fitted density could not be used, and the control field was made from a "
            "few moments only: do not trust the entropy; use a smaller time.step, method.order = 1 or more particles"
        )
    pieces = _means(columns.get("substeps", none)[1:])
    found += [IN_PIECES_SINCE.format(since) for since, _ in _beyond(columns, pieces, IN_PIECES)]
    squares = columns["log_f_residual"][1:] ** 2  # without the first row, which belongs to the start
    so_far = np.sqrt(np.cumsum(squares) / np.arange(1, len(squares) + 1))[min(SOME, len(squares)) - 1 :]
    lately = np.sqrt(_means(squares))
    missed = [
        f"the fitted density misses log f by up to {most:.2g} (root mean square over particles and {over}), and by "
        f"more than {limit:g} from t = {since:g} on: do not trust the entropy after that; use wider method.hidden, "
        "more method.iterations, a smaller time.step or the default method.learning_rate"
        for values, limit, over in ((so_far, FIT_OFF, "steps so far"), (lately, LATELY_OFF, "ten steps"))
        for since, most in _beyond(columns, values, limit)
    ]
    return found + missed[:1]


def certificate_remarks(columns: Columns) -> list[str]:
    """Sentences if collisions raise the free energy (or ∫f log f) of held-out particles, or if it was not tested."""
    if "certificate" not in columns or not len(columns["certificate"]) > 1:
        return []
    verdicts, steps = columns["certificate"][1:], len(columns["certificate"]) - 1
    chance = steps / IN_CHANCE
    if (violated := int((verdicts < 0).sum())) > chance + 3 * np.sqrt(chance):
        raised = (
            "the free energy" if "free_energy" in columns else "∫f log f"
        )  # as the operator conserves energy or not
        return [
            f"in {violated} of {steps} steps collisions raised {raised} of the held-out particles by more than three "
            f"standard errors (by chance this happens in one step of {IN_CHANCE}): use a smaller time.step or more "
            "particles"
        ]
    collided = np.zeros(1) if "substeps" not in columns else columns["substeps"][1:]
    if collided.any() and not columns["collision_free_energy_total_error"][-1] > 0:
        return [
            "no step could be certified, because a species that collides has fewer than 16 held-out particles, an "
            "eighth of all: use more particles"
        ]
    return []


def _means(values: np.ndarray) -> np.ndarray:
    """Means over SOME consecutive values, or over all values if there are fewer."""
    number = min(SOME, len(values))
    return np.convolve(values, np.full(number, 1 / number), "valid") if number else values


class Pieces:
    """Reports, once in a run, that its steps are split into many pieces."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=SOME)
        self._told = False

    def __call__(self, row: dict[str, float]) -> str:
        """The warning, in the row from which on the steps have many pieces; in all other rows an empty text."""
        self._last.append(row.get("substeps", 1.0))
        if self._told or len(self._last) < SOME or sum(self._last) <= IN_PIECES * SOME:
            return ""
        self._told = True
        return IN_PIECES_SINCE.format(row["time"])


def _beyond(columns: Columns, values: np.ndarray, limit: float) -> Iterator[tuple[float, float]]:
    """Yield the time at which the last rows first exceed a limit, and the largest value; nothing if they never do."""
    if (values > limit).any():
        since = columns["time"][-len(values) :][np.flatnonzero(values > limit)[0]]
        yield float(since), float(values.max())


def wave_remarks(columns: Columns) -> list[str]:
    """A sentence if collisions have changed the wave in another way than the operator does."""
    return [
        f"collisions have changed the momentum or the energy of the wave with a relative error of up to {most:.2g}, "
        f"and of more than {WAVE_OFF:g} from t = {since:g} on: do not trust the field energy after that; use more "
        "particles, wider method.hidden or a smaller time.step"
        for since, most in _beyond(columns, columns.get("wave_error", np.zeros(0)), WAVE_OFF)
    ]
