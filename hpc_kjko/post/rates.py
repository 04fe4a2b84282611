"""Growth and damping rates of a wave, fitted to its energy, with a window and a standard error found by one rule.

The rule, for an energy W ~ e^{2γt} whatever comes before and after:

1. The logarithm of the amplitude, ½ log W, is fitted by straight lines over many windows, to two kinds of points. One
   is all rows, as for a wave that grows. A window of rows holds one deep maximum at most, and is longer than the
   distance of maxima, or twice that if there are four. The other kind is the maxima of W between deep minima, as of a
   standing wave that oscillates. The maxima are those of parabolas through three points, and follow each other at
   regular distances. Of growth that has saturated, rows count up to a third of the largest amplitude.
2. The best windows have lines that cover the largest range in units of what they miss:
   |slope| · length / (s + s₀), with the root mean square residual s and s₀ = 0.015. A start that is not yet one mode,
   saturation and a noise floor bend the curve, so they fall out. They also make it flatter. So of all windows with four
   fifths of the best score the steepest is taken.
3. The standard error is the largest of three. One is that of a jackknife: the window is cut into up to ten pieces, and
   the fit is repeated without each, so residuals may be correlated in time. One is a quarter of the difference of the
   slopes of the window's halves. For independent residuals it is as large, and larger if the curve is bent. One is the
   scatter of the slopes of the windows with four fifths of the best score. In waves that were made up single rates are
   off by up to 1.7 times the standard error (root mean square).
4. If the line covers less than eight times s, or less than a factor of two in the amplitude, there is no growth or
   damping to be seen; nor if a wave that was damped comes back, or was there before it grew, at more than the amplitude
   in the middle of the window: beats do so. Then a sentence says why, and the line is fitted to the whole series, as an
   upper limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpc_kjko.files.wavetheory import WaveTheory
from hpc_kjko.post import summary

#: What is said of a wave without a rate, before the reason.
NO_RATE = "no rate of growth or damping"
#: Added to the residual, so that a short window of smooth data does not win.
_TOLERANCE = 0.015
#: Windows begin and end at so many different times.
_ENDS = 48
#: A window has so many rows at least, or so many maxima.
_FEWEST_ROWS, _FEWEST_MAXIMA = 12, 4
#: Minima between maxima of a standing wave are below their neighbours by this factor in energy at least.
_DEEP = 3.0
#: Distances of the maxima of one wave differ by less than this, as a standard deviation over their mean.
_IRREGULAR = 0.25
#: Growth is fitted up to the largest amplitude over this, if the wave has saturated.
_BELOW = 3.0
#: Pieces of the jackknife.
_PIECES = 10
#: A range of so many residuals, and of so large a factor, is a rate.
_CLEAR, _FACTOR = 8.0, 2.0
#: A window is at least this part of the series.
_SHORTEST = 1 / 16
#: Windows whose score is at least this part of the best are as good.
_AS_GOOD = 0.8


@dataclass(frozen=True)
class Rate:
    """A fitted rate.

    Attributes:
        rate, error: γ of the field, and its standard error, in ω_p.
        window: the first and the last time fitted.
        height: log of the line's amplitude √W at the middle of the window.
        points: what was fitted: all rows of the window, or maxima.
        frequency, frequency_error: ω from the distance of maxima, in ω_p; None where the wave does not oscillate.
        why_not: why this is no rate of growth or damping, but a limit; empty if it is one.
    """

    rate: float
    error: float
    window: tuple[float, float]
    height: float
    points: Literal["rows", "maxima"]
    frequency: float | None
    frequency_error: float | None
    why_not: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether the amplitude changes by more than the line misses."""
        return not self.why_not

    def text(self, expected: float | None = None, digits: int = 2) -> str:
        """γ with its error in as many digits as it has, and what is expected."""
        places = max(0, digits - 1 - math.floor(math.log10(self.error))) if self.error > 0 else 4
        places = min(places, 5)
        theory = "" if expected is None else f", theory {expected:.{max(places, 4)}f}"
        return f"γ = {self.rate:.{places}f} ± {self.error:.{places}f}{theory}".replace("-", "−")

    def energy(self, time: np.ndarray) -> np.ndarray:
        """W of the fitted line at times [n]."""
        return np.exp(2 * (self.height + self.rate * (time - sum(self.window) / 2)))


@dataclass(frozen=True)
class Measured:
    """The rate of a run's wave beside that of theory.

    Attributes:
        rate: what was fitted; None if there is no line at all, for there are too few rows.
        theory: what the run knows of the wave; None where it knows nothing.
        expected: γ of theory; of a wave without a single rate, that of the same fit to theory's wave.
        why_not: why there is no rate, in a sentence without its full stop; empty if there is one.
    """

    rate: Rate | None
    theory: WaveTheory | None
    expected: float | None
    why_not: str = ""

    @property
    def text(self) -> str:
        """One line: γ, its error and theory's; or why there is none."""
        if self.rate is None or self.why_not:
            return f"{NO_RATE}: {self.why_not}"
        return self.rate.text(self.expected)

    @property
    def frequency_text(self) -> str:
        """ω, its error and theory's; empty where the wave does not oscillate regularly."""
        rate = self.rate
        if rate is None or rate.frequency is None or rate.frequency_error is None:
            return ""
        theory = "" if self.theory is None or self.theory.frequency is None else f", theory {self.theory.frequency:.4f}"
        return f"ω = {rate.frequency:.3f} ± {rate.frequency_error:.3f}{theory}"

    @property
    def remark(self) -> str:
        """What the theory is, or why there is none, in a sentence; with its numbers if nothing was fitted."""
        if self.theory is None:
            return "The run has left no theory of its wave."
        numbers = self.theory.outcome if self.why_not else ""
        parts = [part for part in (numbers, self.theory.relation, self.theory.missing) if part]
        words = "; ".join(parts)
        return f"Theory: {words}." if self.theory.relation else f"No theory: {words}."


def measured(
    columns: dict[str, np.ndarray], theory: WaveTheory | None, status: dict[str, Any] | None = None
) -> Measured | None:
    """The rate of a run's wave, or why it has none; None without a field.

    Args:
        columns: of the time series.
        status: what ``run.json`` says, for the noise floor of the particles.
    """
    if "wave_energy" not in columns and not columns["field_energy"].any():
        return None
    time, energy = columns["time"], wave_energy(columns)
    found = fit(time, energy)
    expected = None if theory is None else theory.rate
    if found is None:
        rows = int(_usable(energy).sum())
        there = f"{rows} row{'' if rows == 1 else 's'} with energy in the wave"
        return Measured(None, theory, expected, f"the series has {there}, and a fit needs {_FEWEST_ROWS}")
    why_not = found.why_not
    name = "wave_energy" if "wave_energy" in columns else "field_energy"
    floor = summary.noise_floors(status or {}, columns).get(name)
    if why_not and floor is not None and (noisy := (energy < summary.NOISY * floor).mean()) > 0.5:
        why_not = (
            f"in {100 * noisy:.0f} % of its rows it is below {summary.NOISY:g} times the noise floor of the particles: "
            "use more of them, a larger amplitude or particles.control_variate = true"
        )
    if not why_not and theory is not None and expected is None and len(theory.time):
        expected = slope_within(theory.time, theory.energy, found)
    return Measured(found, theory, expected, why_not)


def wave_energy(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The energy of the wave that a run is about; that of the whole field where the run does not measure it."""
    return columns.get("wave_energy", columns["field_energy"])


def fit(time: np.ndarray, energy: np.ndarray) -> Rate | None:
    """The rate of a wave, or a limit and why it is no rate; None if there are too few rows.

    Args:
        time: [n], rising; energy: W [n].
    """
    kept = _usable(energy)
    if kept.sum() < _FEWEST_ROWS:
        return None
    time, log = time[kept], 0.5 * np.log(energy[kept])
    peaks = maxima(time, log)
    linear = _linear(log)
    # the maximum of a wave that has saturated says nothing of how far apart those before it are
    before = peaks[0][peaks[0] < time[linear - 1]]
    candidates = [
        (score, "rows", first, last)
        for score, first, last in _scores(time, log, _FEWEST_ROWS, before)
        if last <= linear or log[first] > log[last - 1]
    ]
    candidates += [
        (score, "maxima", first, last)
        for score, first, last in _scores(*peaks, _FEWEST_MAXIMA)
        if _is_regular(peaks[0][first:last])
    ]
    bests = [max(one for one in candidates if one[1] == kind) for kind in {one[1] for one in candidates}]
    refusals = []
    for best, kind, *_ in sorted(bests, reverse=True):
        points = (time, log) if kind == "rows" else peaks
        good = [window for score, own, *window in candidates if own == kind and score >= _AS_GOOD * best]
        lines = [_line(*(values[slice(*window)] for values in points)) for window in good]
        slope, _, residual = lines[steepest := int(np.argmax([abs(slope) for slope, *_ in lines]))]
        t, y = (values[slice(*good[steepest])] for values in points)
        if refusal := _refusal(points, good[steepest], slope, residual):
            refusals.append(refusal)
        else:
            return _rate(t, y, kind, float(np.std([slope for slope, *_ in lines])))
    why_not = _why_not(time, log, peaks[0], linear, refusals)
    if len(peaks[0]) >= _FEWEST_MAXIMA:
        return _rate(*peaks, "maxima", why_not=why_not)
    return _rate(time, log, "rows", why_not=why_not)


def _usable(energy: np.ndarray) -> np.ndarray:
    """Rows whose energy has a finite logarithm."""
    return (energy > 0) & np.isfinite(energy)


def _refusal(points: tuple[np.ndarray, np.ndarray], window: list[int], slope: float, residual: float) -> str:
    """Why the line of a window is no rate; empty if it is one."""
    t, first, last = points[0][slice(*window)], *window
    change, at = abs(slope) * float(t[-1] - t[0]), f"from t = {t[0]:.3g} to {t[-1]:.3g}"
    if change <= math.log(_FACTOR):
        return (
            f"where its amplitude follows a line best, {at}, it changes by a factor of {math.exp(change):.2g} only, "
            f"and a rate needs more than {_FACTOR:g}"
        )
    if change <= _CLEAR * residual:
        return (
            f"its amplitude scatters too much about a line: the best one, {at}, covers {change / residual:.2g} times "
            f"the scatter, and a rate needs {_CLEAR:g}"
        )
    if _comes_back(*points, first, last):
        if slope < 0:
            return f"it is damped {at}, but comes back later, as several waves that beat do, or noise"
        return f"it grows {at}, but was larger before, as several waves that beat are"
    return ""


def _why_not(time: np.ndarray, log: np.ndarray, peaks: np.ndarray, linear: int, refusals: list[str]) -> str:
    """The plainest reason why no window has a rate.

    Args:
        peaks: times of the maxima; linear: the row at which the wave is about to saturate; refusals: of the best
            windows, the best first.
    """
    if (whole := float(np.ptp(log))) <= math.log(_FACTOR):
        return (
            f"its amplitude changes by a factor of {math.exp(whole):.3g} only in the whole series, and a rate needs "
            f"more than {_FACTOR:g}"
        )
    if saturates := 0 < linear < len(time):
        if not refusals:
            return (
                f"it is close to saturation at t = {time[linear]:.3g}, and a fit needs {_FEWEST_ROWS} rows and a "
                f"{round(1 / _SHORTEST)}th of the time before that: use a smaller amplitude"
            )
    if 2 <= len(peaks) < _FEWEST_MAXIMA and not saturates:
        return f"it oscillates and has {len(peaks)} maxima only, and a fit needs {_FEWEST_MAXIMA}: use a longer run"
    if len(peaks) >= _FEWEST_MAXIMA and not _is_regular(peaks) and not saturates:
        return "its maxima are not evenly spaced in time, as those of several waves or of noise"
    return refusals[0] if refusals else "no part of the series that is long enough follows a line"


def _rate(t: np.ndarray, y: np.ndarray, kind: str, scatter: float = 0.0, why_not: str = "") -> Rate:
    slope, height, _ = _line(t, y)
    frequency = frequency_error = None
    if kind == "maxima" and _is_regular(t):
        halves = np.diff(t)
        frequency = math.pi / float(halves.mean())
        frequency_error = frequency * float(halves.std(ddof=1) / halves.mean() / math.sqrt(len(halves)))
    points: Literal["rows", "maxima"] = "rows" if kind == "rows" else "maxima"
    window = float(t[0]), float(t[-1])
    return Rate(slope, max(scatter, _error(t, y)), window, height, points, frequency, frequency_error, why_not)


def _linear(log: np.ndarray) -> int:
    """The row at which a wave that saturates is about to; the number of rows if it does not.

    It saturates if it comes within a twentieth of its largest amplitude before the last twentieth of the rows.
    """
    top = int(np.flatnonzero(log > log.max() - 0.05)[0])
    if top >= 0.95 * len(log):
        return len(log)
    return int(np.flatnonzero(log[: top + 1] > log.max() - math.log(_BELOW))[0])


def _is_regular(time: np.ndarray) -> bool:
    """Whether maxima follow each other as those of one wave do."""
    return bool(np.diff(time).std() < _IRREGULAR * np.diff(time).mean())


def _comes_back(time: np.ndarray, log: np.ndarray, first: int, last: int) -> bool:
    """Whether there is more outside a window than in its middle: after damping, or before growth."""
    slope, middle, _ = _line(time[first:last], log[first:last])
    outside = log[last:] if slope < 0 else log[:first]
    return bool((outside > middle).any())


def slope_within(time: np.ndarray, energy: np.ndarray, like: Rate) -> float | None:
    """γ of another wave's energy [n] by the same fit: in the window of a rate, of rows or maxima.

    Returns:
        None if it has fewer than three points there.
    """
    kept = _usable(energy)
    time, log = time[kept], 0.5 * np.log(energy[kept])
    if like.points == "maxima":
        time, log = maxima(time, log)
    slack = 0.5 * float(np.diff(time).mean()) if len(time) > 1 else 0.0
    inside = (time >= like.window[0] - slack) & (time <= like.window[1] + slack)
    return _line(time[inside], log[inside])[0] if inside.sum() > 2 else None


def maxima(time: np.ndarray, log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and heights of the maxima of a logarithm of amplitudes that have deep minima beside them."""
    inner = np.arange(1, len(log) - 1)
    peaks = inner[(log[1:-1] >= log[:-2]) & (log[1:-1] > log[2:])]
    deep = 0.5 * math.log(_DEEP)
    kept: list[int] = []
    for peak in peaks:
        low = log[kept[-1] : peak].min() if kept else log[:peak].min()
        if log[peak] - low < deep:
            if kept and log[peak] > log[kept[-1]]:
                kept[-1] = peak  # noise on the way up to it
        elif not kept or log[kept[-1]] - low >= deep:
            kept.append(peak)
        elif log[peak] > log[kept[-1]]:
            kept[-1] = peak
    where, height = [], []
    for i in kept:
        a, b, c = np.polyfit(time[i - 1 : i + 2] - time[i], log[i - 1 : i + 2], 2)
        where.append(time[i] - b / (2 * a) if a < 0 else time[i])
        height.append(c - b**2 / (4 * a) if a < 0 else log[i])
    return np.array(where), np.array(height)


def _scores(
    time: np.ndarray, log: np.ndarray, fewest: int, apart: np.ndarray | None = None
) -> list[tuple[float, int, int]]:
    """Of windows [first, last): how much of a range their line covers, in units of what it misses.

    Args:
        apart: times of maxima, of which no two may be in a window, and two of whose distances are less than its length.
    """
    n = len(time)
    if n < fewest:
        return []
    apart = np.empty(0) if apart is None else apart
    shortest = _SHORTEST * float(time[-1] - time[0])
    if len(apart) > 1:  # few maxima may be of what a wave starts with
        distance = float(np.median(np.diff(apart)))
        shortest = max(shortest, distance * (2 if len(apart) >= _FEWEST_MAXIMA else 1))
    ends = np.unique(np.linspace(0, n, min(n, _ENDS) + 1).round().astype(int))
    centre, middle = time.mean(), log.mean()
    t, y = time - centre, log - middle
    sums = [np.append(0.0, np.cumsum(values)) for values in (np.ones(n), t, y, t * t, t * y, y * y)]
    found = []
    for first in ends:
        for last in ends[ends >= first + fewest]:
            length = float(time[last - 1] - time[first])
            inside = (apart >= time[first]) & (apart <= time[last - 1])
            if length < shortest or inside.sum() > 1:
                continue
            count, st, sy, tt, ty, yy = (float(total[last] - total[first]) for total in sums)
            variance, both = tt - st * st / count, ty - st * sy / count
            slope = both / variance
            square = max(0.0, yy - sy * sy / count - slope * both) / (count - 2)
            found.append((abs(slope) * length / (math.sqrt(square) + _TOLERANCE), int(first), int(last)))
    return found


def _line(time: np.ndarray, log: np.ndarray) -> tuple[float, float, float]:
    """Slope, height at the middle of the window, and root mean square residual."""
    middle = 0.5 * (time[0] + time[-1])
    slope, height = np.polyfit(time - middle, log, 1)
    residual = log - height - slope * (time - middle)
    return float(slope), float(height), float(np.sqrt(np.mean(residual**2)))


def _error(time: np.ndarray, log: np.ndarray) -> float:
    """The standard error of the slope: of a jackknife, or of the slopes of both halves."""
    pieces = np.array_split(np.arange(len(time)), min(_PIECES, len(time)))
    slopes = np.array([np.polyfit(np.delete(time, piece), np.delete(log, piece), 1)[0] for piece in pieces])
    jackknife = float(math.sqrt((len(pieces) - 1) / len(pieces) * ((slopes - slopes.mean()) ** 2).sum()))
    middle = len(time) // 2
    first, second = (float(np.polyfit(time[half], log[half], 1)[0]) for half in (slice(middle), slice(middle, None)))
    return max(jackknife, 0.25 * abs(second - first))
