"""Growth and damping rates of a wave, fitted to its energy. One rule finds the window and the standard error.

The rule, for an energy that follows W ~ e^{2γt} in some interval:

1. The logarithm of the amplitude, ½ log W, is fitted by straight lines over many windows. There are two kinds of
   points. The first kind is all rows, for a wave that grows. Such a window contains at most one maximum between deep
   minima. It is longer than the distance of the maxima, or twice that distance if there are four maxima. It is also
   longer than a period of plasma oscillations, 2π/ω_p, which the start of a wave excites. The second kind is the maxima
   of W between deep minima, for a standing wave that oscillates. Their times and heights are those of parabolas through
   three points, and their distances must be regular. If growth has saturated, only rows up to a third of the largest
   amplitude count. At least half of the points must be above twice the noise of the particles.
2. The score of a window is the range of its line in units of the residual: |slope| · length / (s + s₀), with the root
   mean square residual s and s₀ = 0.015. A start with several modes, saturation and noise bend the curve, so
   such windows have low scores. Bending also makes the line flatter. So the steepest line is taken among the windows
   with at least four fifths of the best score.
3. The standard error is the largest of three estimates. (a) A jackknife: the window is divided into up to ten pieces,
   and the fit is repeated without each piece, so the residuals may be correlated in time. (b) A quarter of the
   difference between the slopes of the two halves of the window. For independent residuals this is as large as (a), and
   it is larger if the curve is bent. (c) The scatter of the slopes of the windows with four fifths of the best score.
   In tests with synthetic waves the errors of single rates were up to 1.7 standard errors (root mean square).
4. If the line covers less than eight times s, or less than a factor of two in the amplitude, no growth or damping can
   be seen. The same holds if γ is smaller than three standard errors, or if the wave is larger after damping, or before
   growth, than in the middle of the window, as beats are. Then a sentence gives the reason, and the line is fitted to
   the whole series, as an upper limit.
5. Theory may have a history instead of a rate. It is fitted in the same window. If it covers less than eight times its
   own s there, it has no rate to compare with. A rate that differs from that of theory by three standard errors or more
   is called different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpc_kjko.files.wavetheory import WaveTheory
from hpc_kjko.post import summary

#: Message for a wave without a rate. The reason follows it.
NO_RATE = "no rate of growth or damping"
#: Added to the residual. Otherwise short windows of smooth data would have the best score.
_TOLERANCE = 0.015
#: Number of different times at which windows begin and end.
_ENDS = 48
#: Smallest number of rows, or of maxima, in a window.
_FEWEST_ROWS, _FEWEST_MAXIMA = 12, 4
#: The minima between maxima of a standing wave are lower in energy by at least this factor.
_DEEP = 3.0
#: Largest standard deviation of the distances of the maxima, divided by their mean, for a regular wave.
_IRREGULAR = 0.25
#: If a wave has saturated, its growth is fitted up to the largest amplitude divided by this number.
_BELOW = 3.0
#: Largest number of pieces of the jackknife.
_PIECES = 10
#: A rate is clear if the line covers so many residuals, and the amplitude changes by at least this factor.
_CLEAR, _FACTOR = 8.0, 2.0
#: Smallest length of a window, as a fraction of the series.
_SHORTEST = 1 / 16
#: Smallest length of a window of rows, in 1/ω_p: a period of plasma oscillations.
_PERIOD = 2 * math.pi
#: Smallest fraction of the points of a window that are above the noise.
_ABOVE = 0.5
#: A rate, or its difference from theory, is significant from this number of standard errors on.
_SIGNIFICANT = 3.0
#: Larger differences are not given in standard errors, because such errors are too small to be believed.
_MANY = 100.0
#: Windows with at least this fraction of the best score are considered equally good.
_AS_GOOD = 0.8


@dataclass(frozen=True)
class Rate:
    """A fitted rate.

    Attributes:
        rate, error: γ of the field and its standard error, in ω_p.
        window: the first and the last time of the fit.
        height: log of the amplitude √W of the line at the middle of the window.
        points: the points of the fit: all rows of the window, or maxima.
        frequency, frequency_error: ω from the distances of maxima, and its standard error, in ω_p. None if the wave
            does not oscillate.
        why_not: the reason why this is an upper limit and not a rate of growth or damping; empty for a rate.
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
        """Whether growth or damping can be seen."""
        return not self.why_not

    def text(self, expected: float | None = None, digits: int = 2) -> str:
        """γ with its error, with as many digits as the error justifies, and the expected value."""
        places = max(0, digits - 1 - math.floor(math.log10(self.error))) if self.error > 0 else 4
        places = min(places, 5)
        theory = "" if expected is None else f", theory {expected:.{max(places, 4)}f}"
        return f"γ = {self.rate:.{places}f} ± {self.error:.{places}f}{theory}".replace("-", "−")

    def energy(self, time: np.ndarray) -> np.ndarray:
        """W of the fitted line at times [n]: [n]."""
        return np.exp(2 * (self.height + self.rate * (time - sum(self.window) / 2)))


@dataclass(frozen=True)
class Measured:
    """The measured rate of the wave of a run, and that of theory.

    Attributes:
        rate: the fitted rate; None if there are too few rows for a fit.
        theory: the linear theory of the wave; None if the run has none.
        expected: γ of theory. If theory has no single rate, the result of the same fit to the wave of theory.
        why_not: the reason why there is no rate, as a sentence without its full stop; empty if there is a rate.
        why_not_expected: the reason why a theory with a history has no γ in the window of the fit, likewise.
    """

    rate: Rate | None
    theory: WaveTheory | None
    expected: float | None
    why_not: str = ""
    why_not_expected: str = ""

    @property
    def is_rate(self) -> bool:
        """Whether there is a rate of growth or damping. Otherwise ``why_not`` says why there is none."""
        return self.rate is not None and not self.why_not

    @property
    def text(self) -> str:
        """One line with γ, its error, γ of theory and a significant difference, or the reason why there is no rate."""
        if self.rate is None or self.why_not:
            return f"{NO_RATE}: {self.why_not}"
        return "; it ".join(part for part in (self.rate.text(self.expected), self.difference) if part)

    @property
    def difference(self) -> str:
        """How far the rate is from that of theory, in words. Empty if it is nearer than three standard errors."""
        rate, expected = self.rate, self.expected
        if rate is None or self.why_not or expected is None or not rate.error > 0:
            return ""
        errors = abs(rate.rate - expected) / rate.error
        if errors < _SIGNIFICANT:
            return ""
        number = f"{errors:.2g}" if errors < _MANY else f"more than {_MANY:g}"
        said = f"differs from theory by {number} standard errors"
        if rate.rate * round(expected, 4) < 0:  # a rate of theory that is printed as 0 has no sign
            said += ", and theory has the opposite sign: repeat with other seeds or more particles"
        return said

    @property
    def note(self) -> str:
        """What a reader of the number γ must know: the reason why there is none, its difference from
        theory, or the reason why theory has none."""
        if self.why_not:
            return f"{NO_RATE}: {self.why_not}"
        return f"γ {self.difference}" if self.difference else self.why_not_expected

    @property
    def frequency_text(self) -> str:
        """ω, its error and ω of theory; empty if the wave does not oscillate regularly."""
        rate = self.rate
        if rate is None or rate.frequency is None or rate.frequency_error is None:
            return ""
        theory = "" if self.theory is None or self.theory.frequency is None else f", theory {self.theory.frequency:.4f}"
        return f"ω = {rate.frequency:.3f} ± {rate.frequency_error:.3f}{theory}"

    @property
    def remark(self) -> str:
        """A sentence that names the theory, or says why there is none. Without a fit it has γ and ω of theory."""
        if self.theory is None:
            return "The run has left no theory of its wave."
        numbers = self.theory.outcome if self.why_not else ""
        parts = [part for part in (numbers, self.theory.relation, self.theory.missing) if part]
        words = "; ".join(parts)
        said = f"Theory: {words}." if self.theory.relation else f"No theory: {words}."
        if len(self.theory.time) and self.expected is not None and not self.why_not:
            said = f"{said.removesuffix('.')}; both values of γ are means over the window."
        if self.why_not_expected:
            said += f" {self.why_not_expected[0].upper()}{self.why_not_expected[1:]}."
        return said


def measured(
    columns: dict[str, np.ndarray], theory: WaveTheory | None, status: dict[str, Any] | None = None
) -> Measured | None:
    """The rate of the wave of a run, or the reason why there is none. None if the run has no field.

    Args:
        columns: the columns of the time series.
        theory: the linear theory of the wave.
        status: the contents of ``run.json``, for the noise of the particles.
    """
    if "wave_energy" not in columns and not columns["field_energy"].any():
        return None
    time, energy = columns["time"], wave_energy(columns)
    name = "wave_energy" if "wave_energy" in columns else "field_energy"
    found = fit(time, energy, summary.noise_floors(status or {}, columns).get(name), summary.NOISE_OF[name])
    expected = None if theory is None else theory.rate
    if found is None:
        rows = int(_usable(energy).sum())
        there = f"{rows} row{'' if rows == 1 else 's'} with energy in the wave"
        return Measured(None, theory, expected, f"the series has {there}, but a fit needs {_FEWEST_ROWS}")
    why_not_expected = ""
    if found.is_clear and theory is not None and expected is None and len(theory.time):
        expected, why_not_expected = slope_within(theory.time, theory.energy, found)
    return Measured(found, theory, expected, found.why_not, why_not_expected)


def wave_energy(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The energy of the wave of a run [rows]; the energy of the whole field if the run does not measure the wave."""
    return columns.get("wave_energy", columns["field_energy"])


def fit(
    time: np.ndarray, energy: np.ndarray, floor: np.ndarray | None = None, noise_of: str = "noise of the wave"
) -> Rate | None:
    """Fit the rate of a wave. A result that is no rate says why. None if there are too few rows.

    Args:
        time: ascending times in 1/ω_p [n].
        energy: W [n].
        floor: the noise of the particles in W [n]; None if it is not known.
        noise_of: its name.
    """
    kept = _usable(energy)
    if kept.sum() < _FEWEST_ROWS:
        return None
    noise = summary.NOISY * (np.zeros(len(time)) if floor is None else floor)[kept]
    time, log = time[kept], 0.5 * np.log(energy[kept])
    peaks = maxima(time, log)
    is_above = {
        "rows": np.exp(2 * log) >= noise,
        "maxima": np.exp(2 * peaks[1]) >= np.interp(peaks[0], time, noise),
    }
    linear = _linear(log)
    # the last maximum of a saturated wave says nothing about the distances of the maxima before it
    before = peaks[0][peaks[0] < time[linear - 1]]
    windows = [
        (score, "rows", first, last)
        for score, first, last in _scores(time, log, _FEWEST_ROWS, _PERIOD, before)
        if last <= linear or log[first] > log[last - 1]
    ]
    windows += [
        (score, "maxima", first, last)
        for score, first, last in _scores(*peaks, _FEWEST_MAXIMA)
        if _is_regular(peaks[0][first:last])
    ]
    candidates = [one for one in windows if is_above[one[1]][one[2] : one[3]].mean() >= _ABOVE]
    bests = [max(one for one in candidates if one[1] == kind) for kind in {one[1] for one in candidates}]
    refusals = []
    for best, kind, *_ in sorted(bests, reverse=True):
        points = (time, log) if kind == "rows" else peaks
        good = [window for score, own, *window in candidates if own == kind and score >= _AS_GOOD * best]
        lines = [_line(*(values[slice(*window)] for values in points)) for window in good]
        slope, _, residual = lines[steepest := int(np.argmax([abs(slope) for slope, *_ in lines]))]
        t, y = (values[slice(*good[steepest])] for values in points)
        found = _rate(t, y, kind, float(np.std([slope for slope, *_ in lines])))
        if refusal := _refusal(points, good[steepest], slope, residual) or _insignificance(found):
            refusals.append(refusal)
        else:
            return found
    if (below := 1 - is_above["rows"].mean()) > 0.5 or (windows and not candidates):
        why_not = _noise(below, noise_of)
    else:
        why_not = _why_not(time, log, peaks[0], linear, refusals)
    if len(peaks[0]) >= _FEWEST_MAXIMA:
        return _rate(*peaks, "maxima", why_not=why_not)
    return _rate(time, log, "rows", why_not=why_not)


def _noise(below: float, noise_of: str) -> str:
    """The reason why a wave has no rate if it is close to its noise, in this part of its rows."""
    where = f"in {100 * below:.0f} % of the rows" if below > 0.5 else "in every part of the series that is long enough"
    return (
        f"{where} it is below {summary.NOISY:g} times the {noise_of}: "
        "use more particles, a larger amplitude or particles.control_variate = true"
    )


def _insignificance(found: Rate) -> str:
    """The reason why a rate is too uncertain; empty if it is larger than three standard errors."""
    if abs(found.rate) >= _SIGNIFICANT * found.error:
        return ""
    first, last = found.window
    return (
        f"the best line, from t = {first:.3g} to {last:.3g}, has {found.text()}, and a rate must be larger than "
        f"{_SIGNIFICANT:g} standard errors: use more particles or a smaller amplitude"
    )


def _usable(energy: np.ndarray) -> np.ndarray:
    """A mask of the rows whose energy has a finite logarithm."""
    return (energy > 0) & np.isfinite(energy)


def _refusal(points: tuple[np.ndarray, np.ndarray], window: list[int], slope: float, residual: float) -> str:
    """The reason why the line of a window gives no rate; empty if it gives one."""
    t, first, last = points[0][slice(*window)], *window
    change, at = abs(slope) * float(t[-1] - t[0]), f"from t = {t[0]:.3g} to {t[-1]:.3g}"
    if change <= math.log(_FACTOR):
        return (
            f"in the best window, {at}, its amplitude changes only by a factor of {math.exp(change):.2g}, "
            f"but a rate needs more than {_FACTOR:g}"
        )
    if change <= _CLEAR * residual:
        return (
            f"its amplitude scatters too much about a line: the best line, {at}, covers {change / residual:.2g} times "
            f"the scatter, but a rate needs {_CLEAR:g}"
        )
    if _comes_back(*points, first, last):
        if slope < 0:
            return f"it is damped {at}, but it grows again later, as beats of several waves or noise do"
        return f"it grows {at}, but it was larger before, as beats of several waves are"
    return ""


def _why_not(time: np.ndarray, log: np.ndarray, peaks: np.ndarray, linear: int, refusals: list[str]) -> str:
    """The simplest reason why no window gives a rate.

    Args:
        peaks: times of the maxima.
        linear: the row at which the wave is close to saturation.
        refusals: the reasons why the best windows give no rate, those of the best window first.
    """
    if (whole := float(np.ptp(log))) <= math.log(_FACTOR):
        return (
            f"its amplitude changes only by a factor of {math.exp(whole):.3g} in the whole series, but a rate needs "
            f"more than {_FACTOR:g}"
        )
    length = max(_PERIOD, _SHORTEST * float(time[-1] - time[0]))
    if saturates := 0 < linear < len(time):
        if not refusals:
            return (
                f"it is close to saturation at t = {time[linear]:.3g}. A fit needs {_FEWEST_ROWS} rows before that, "
                f"over a time of {length:.3g} or more: use a smaller amplitude"
            )
    if 2 <= len(peaks) < _FEWEST_MAXIMA and not saturates:
        return f"it oscillates and has only {len(peaks)} maxima, but a fit needs {_FEWEST_MAXIMA}: use a longer run"
    if refusals and linear == len(time):  # it is largest at the end, so its maxima belong to the start
        return refusals[0]
    if len(peaks) >= _FEWEST_MAXIMA and not _is_regular(peaks) and not saturates:
        return "its maxima are not evenly spaced in time: there are several waves, or the field is noise"
    if refusals:
        return refusals[0]
    if time[-1] - time[0] < _PERIOD:
        return (
            f"the series is only {time[-1] - time[0]:.3g}/ω_p long, shorter than a period of plasma oscillations, "
            "2π/ω_p: use a longer run"
        )
    return "no sufficiently long part of the series follows a line"


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
    """The row at which a wave begins to saturate; the number of rows if it does not saturate.

    A wave saturates if it is within a twentieth of its largest amplitude before the last twentieth of the rows.
    """
    top = int(np.flatnonzero(log > log.max() - 0.05)[0])
    if top >= 0.95 * len(log):
        return len(log)
    return int(np.flatnonzero(log[: top + 1] > log.max() - math.log(_BELOW))[0])


def _is_regular(time: np.ndarray) -> bool:
    """Whether the distances of the maxima are as regular as those of one wave."""
    return bool(np.diff(time).std() < _IRREGULAR * np.diff(time).mean())


def _comes_back(time: np.ndarray, log: np.ndarray, first: int, last: int) -> bool:
    """Whether the wave is larger outside the window (after damping, or before growth) than in its middle."""
    slope, middle, _ = _line(time[first:last], log[first:last])
    outside = log[last:] if slope < 0 else log[:first]
    return bool((outside > middle).any())


def slope_within(time: np.ndarray, energy: np.ndarray, like: Rate) -> tuple[float | None, str]:
    """γ of theory's wave, by the same fit: same window, and rows or maxima as in ``like``.

    Args:
        time: ascending times in 1/ω_p [n].
        energy: W of theory [n].
        like: the fit of the measured wave.

    Returns:
        γ in ω_p, and an empty text. If theory has no rate in this window: None, and the reason without its full stop.
    """
    at = f"from t = {like.window[0]:.3g} to {like.window[1]:.3g}"
    kept = _usable(energy)
    time, log = time[kept], 0.5 * np.log(energy[kept])
    if like.points == "maxima":
        time, log = maxima(time, log)
    slack = 0.5 * float(np.diff(time).mean()) if len(time) > 1 else 0.0
    inside = (time >= like.window[0] - slack) & (time <= like.window[1] + slack)
    if inside.sum() < 3:
        return None, f"theory's wave has too few {like.points} {at} for a rate to compare"
    t, y = time[inside], log[inside]
    slope, _, residual = _line(t, y)
    if residual > max(_TOLERANCE, abs(slope) * float(t[-1] - t[0]) / _CLEAR):
        return None, f"theory has no rate to compare {at}: its wave still oscillates or bends there"
    return slope, ""


def maxima(time: np.ndarray, log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times and heights of the maxima of log amplitudes [n] that have deep minima on both sides."""
    inner = np.arange(1, len(log) - 1)
    peaks = inner[(log[1:-1] >= log[:-2]) & (log[1:-1] > log[2:])]
    deep = 0.5 * math.log(_DEEP)
    kept: list[int] = []
    for peak in peaks:
        low = log[kept[-1] : peak].min() if kept else log[:peak].min()
        if log[peak] - low < deep:
            if kept and log[peak] > log[kept[-1]]:
                kept[-1] = peak  # the earlier one was noise on the way up to this maximum
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
    time: np.ndarray, log: np.ndarray, fewest: int, shortest: float = 0.0, apart: np.ndarray | None = None
) -> list[tuple[float, int, int]]:
    """Scores of windows [first, last): the range of the line in units of its residual.

    Args:
        time, log: times and log amplitudes [n].
        fewest: smallest number of points in a window.
        shortest: smallest length of a window.
        apart: times of maxima. A window contains at most one of them and is longer than their distance (twice the
            distance if there are four maxima).
    """
    n = len(time)
    if n < fewest:
        return []
    apart = np.empty(0) if apart is None else apart
    shortest = max(shortest, _SHORTEST * float(time[-1] - time[0]))
    if len(apart) > 1:  # one maximum alone may belong to the start of the wave
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
    """Slope of the line, its height at the middle of the window, and the root mean square residual."""
    middle = 0.5 * (time[0] + time[-1])
    slope, height = np.polyfit(time - middle, log, 1)
    residual = log - height - slope * (time - middle)
    return float(slope), float(height), float(np.sqrt(np.mean(residual**2)))


def _error(time: np.ndarray, log: np.ndarray) -> float:
    """The standard error of the slope: the larger of the jackknife estimate and that of the two halves."""
    pieces = np.array_split(np.arange(len(time)), min(_PIECES, len(time)))
    slopes = np.array([np.polyfit(np.delete(time, piece), np.delete(log, piece), 1)[0] for piece in pieces])
    jackknife = float(math.sqrt((len(pieces) - 1) / len(pieces) * ((slopes - slopes.mean()) ** 2).sum()))
    middle = len(time) // 2
    first, second = (float(np.polyfit(time[half], log[half], 1)[0]) for half in (slice(middle), slice(middle, None)))
    return max(jackknife, 0.25 * abs(second - first))
