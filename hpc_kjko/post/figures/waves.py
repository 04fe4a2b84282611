"""Figures of the electric field: the rate of its wave, the field in space and time, and its spectrum."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile
from hpc_kjko.files.output import open_snapshot, skipping_damaged
from hpc_kjko.files.wavetheory import WaveTheory, read_theory
from hpc_kjko.post import rates
from hpc_kjko.post.figures.energies import energy_unit
from hpc_kjko.post.figures.runfiles import TIME, RunFiles, coordinate_axis, edges_of, quantile
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture
from hpc_kjko.post.summary import NOISE_OF, noise_floors

#: Largest number of times at which the field is read.
MOST_TIMES = 2048
#: Number of modes whose energies are drawn.
MODES = 4
#: An axis of energies begins below this quantile of the values. Smaller ones than _ROUNDING of the largest are rounding
#: errors.
_LOWEST, _ROUNDING = 0.02, 1e-24
#: Smallest number of times for a frequency spectrum.
_FEWEST = 24
#: Samples must resolve frequencies up to this factor above those of the waves.
_NYQUIST = 1.2
#: The colour scale of a spectrum ends at this fraction of the largest value.
_DECADES = 1e-5
#: The largest frequency, and the number of the largest wavenumber, in a spectrum without theory.
_HIGHEST, _SHORTEST = 3.0, 12

E_UNIT = "m v_th ω_p/q"


def theory_of(run: RunFiles) -> WaveTheory | None:
    """The theory of the wave of a run; None if the run has none, or if the series is damaged."""
    with contextlib.suppress(DamagedFile):  # the code that reads the series reports this
        return read_theory(run.folder.series)
    return None


def field_energy(run: RunFiles) -> Iterator[Picture]:
    """½ ∫ |E|² dx of the whole field and of the wave against time, their noise, the fitted rate and that of theory.

    Nothing without a field.
    """
    series = run.series
    if not series or not _is_shown(series["field_energy"]).any():
        return
    time, status = series["time"], run.folder.status()
    floors = noise_floors(status, series)
    curves = []
    for name, label in (("field_energy", "whole field"), ("wave_energy", "the wave")):
        if name in series:
            curves.append(Curve(time, _finite(series[name]), label))
        if name in floors:
            curves.append(Curve(time, floors[name], NOISE_OF[name], "noise"))
    title = note = ""
    window = None
    found = rates.measured(series, theory_of(run), status)
    if found is not None:
        title, note = found.text, found.remark
        if found.rate is None or found.why_not:
            title = rates.NO_RATE[0].upper() + rates.NO_RATE[1:]
            note = f"{found.why_not[0].upper()}{found.why_not[1:]}. {note}"
        else:
            window = found.rate.window
            inside = time[(time >= window[0]) & (time <= window[1])]
            curves.append(Curve(inside, found.rate.energy(inside), "fitted line", "fit"))
        curves += _theory_curves(found, time, rates.wave_energy(series))
    limits = energy_limits([series["field_energy"], rates.wave_energy(series)])
    y = Axis("field energy ½∫|E|²dx", energy_unit(run), log=True, limits=limits)
    panel = Panel(TIME, y, title, tuple(curves), window=window, note=note)
    text = "Energy of the electric field against time"
    yield Picture("field_energy", "Energy of the electric field", f"{text}: {title}" if title else text, (panel,))


def _theory_curves(found: rates.Measured, time: np.ndarray, energy: np.ndarray) -> Iterator[Curve]:
    """The wave of theory from the start, or a line with the rate of theory through the middle of the fitted line.

    The line is a little longer than the fitted one. If there is no fitted line, it starts at the first value of the
    wave, because theory does not give the later values.
    """
    theory = found.theory
    if theory is not None and len(theory.time):
        if time[0] == 0:
            inside = time[time <= theory.time[-1]]  # at the times of the rows, so that a page shows all values together
            values = energy[0] * np.interp(inside, theory.time, theory.energy)
            yield Curve(inside, _finite(values), "theory", "reference")
    elif found.expected is None:
        return
    elif found.rate is None or found.why_not:
        if energy[0] > 0:
            with np.errstate(over="ignore"):
                values = energy[0] * np.exp(2 * found.expected * (time - time[0]))
            yield Curve(time, _finite(values), "theory, from the first value", "reference")
    else:
        first, last = found.rate.window
        beyond = 0.15 * (last - first)
        inside = time[(time >= first - beyond) & (time <= last + beyond)]
        values = np.exp(2 * (found.rate.height + found.expected * (inside - 0.5 * (first + last))))
        yield Curve(inside, values, "theory", "reference")


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _is_shown(values: np.ndarray) -> np.ndarray:
    """Which values can be shown on a logarithmic scale."""
    return (values > 0) & np.isfinite(values)


def energy_limits(energies: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """The limits of a logarithmic axis of energies [rows] against time; None if no energy is positive.

    The upper one is twice the largest value, the lower one half a low quantile. For this quantile each value is
    replaced by the median of itself and its two neighbours. So single small values do not stretch the axis, such as a
    minimum of a standing wave, or the first row of a wave that a quiet start does not contain.
    """
    highest = max((float(one[_is_shown(one)].max(initial=0.0)) for one in energies), default=0.0)
    if not highest:
        return None
    lasting = []
    for one in energies:
        values = np.where(_is_shown(one) & (one > _ROUNDING * highest), one, 0.0)
        around = np.pad(values, 1, mode="reflect" if len(values) > 1 else "edge")
        lasting.append(np.median([around[:-2], around[1:-1], around[2:]], axis=0))
    return quantile(np.concatenate([one[one > 0] for one in lasting]), _LOWEST) / 2, 2 * highest


@dataclass(frozen=True)
class FieldHistory:
    """E along the wave vector at the times of the snapshots, averaged over all directions perpendicular to it.

    Attributes:
        time: the times [n], in 1/ω_p.
        electric: E [n, cells].
        length: the period along the wave vector.
        wavenumber: the first wavenumbers of the box [MODES].
        energy: the energies of these modes [n, MODES].
        is_oblique: whether the wave vector is not along x_1.
    """

    time: np.ndarray
    electric: np.ndarray
    length: float
    wavenumber: np.ndarray
    energy: np.ndarray
    is_oblique: bool = False


def history_of(run: RunFiles) -> FieldHistory | None:
    """The field at up to MOST_TIMES evenly spaced times; None if there are fewer than two snapshots of it."""
    steps = run.steps_with("fields")
    every = max(1, int(run.case.value("output.every", 1)))
    regular = [step for step in steps if step % every == 0]
    steps = regular[:: -(-len(regular) // MOST_TIMES)] if len(regular) > 1 else steps
    theory = None if run.has_walls else theory_of(run)
    times, lines, energies = [], [], []
    for step in steps:
        with skipping_damaged(), open_snapshot(run.folder.snapshots, step) as iteration:
            components = [component[()] for component in iteration["meshes/E"].values()]
            spacing = iteration["meshes/E"].attrs["gridSpacing"]
            electric = np.stack(components, axis=-1)
            periods = tuple(spacing * electric.shape[:-1])
            wavenumber, energy = field_spectrum(electric, periods)
            times.append(float(iteration.attrs["time"]))
            line, length, is_oblique = along_wave(
                electric, periods, theory.vector if theory else np.zeros(len(periods))
            )
            lines.append(line)
            energies.append(energy[:MODES])
    if len(times) < 2:
        return None
    lines, energies = np.array(lines), np.array(energies)  # type: ignore[assignment]
    return FieldHistory(np.array(times), lines, length, wavenumber[:MODES], energies, is_oblique)  # type: ignore[arg-type]


def along_wave(electric: np.ndarray, periods: tuple[float, ...], vector: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """E along a wave vector, averaged over the planes perpendicular to it.

    The mean over x_2 and x_3 would remove a wave that also travels along these directions. For an oblique wave only the
    modes of the box along k are kept: multiples of the smallest one.

    Args:
        electric: E [*cells, dx].
        periods: lengths of the box [dx].
        vector: k [dx], or zeros for x_1.

    Returns:
        E at the centres of equal cells [n], its period along k, and whether k is oblique.
    """
    cells, lengths = np.array(electric.shape[:-1]), np.array(periods)
    modes = np.rint(vector * lengths / (2 * np.pi)).astype(int)
    modes //= max(1, int(np.gcd.reduce(modes)))
    resolved = min(((n - 1) // (2 * abs(m)) for n, m in zip(cells, modes, strict=True) if m), default=0)
    if not modes[1:].any() or not resolved:
        return electric[..., 0].reshape(len(electric), -1).mean(axis=1), float(periods[0]), False
    smallest = 2 * np.pi * modes / lengths
    k = float(np.linalg.norm(smallest))
    waves = np.fft.fftn(electric @ (smallest / k), norm="forward")
    number = np.arange(resolved + 1)
    points = 2 * (resolved + 1)
    # E is given at half a cell from the origin, and is needed at half a (new) cell from the origin
    shift = np.exp(1j * number * (np.pi / points - 0.5 * smallest @ (lengths / cells)))
    found = waves[tuple(number * m for m in modes)] * shift
    return np.fft.irfft(found, points, norm="forward"), 2 * np.pi / k, True


def field(run: RunFiles) -> Iterator[Picture]:
    """E(x, t), the energies of its first modes, and its spectrum of wavenumbers and frequencies.

    Nothing without snapshots of the field.
    """
    found = history_of(run)
    if found is None:
        return
    dims = int(run.case.number("problem.space_dims"))
    edges = np.linspace(0, found.length, found.electric.shape[1] + 1)
    largest = quantile(np.abs(found.electric), 0.995) or 1.0
    name, title = ("E", "E(x, t)") if dims == 1 else ("⟨E_1⟩", "E_1(x_1, t), mean over the other directions")
    space = coordinate_axis("x", 0, 2 if dims == 1 else 3)
    if found.is_oblique:
        name, title = "⟨E·k⟩/|k|", "E along the wave vector k, mean over the directions across it"
        space = Axis("x·k/|k|", space.unit)
    image = Image(edges_of(found.time), edges, found.electric, f"{name}  [{E_UNIT}]", (-largest, largest), signed=True)
    theory = None if run.has_walls else theory_of(run)
    spectrum, why = (None, "") if run.has_walls else _spectrum(found, theory, run.case)
    panels = [Panel(TIME, space, title, image=image, note=why)]
    if not run.has_walls:
        curves = [
            Curve(found.time, _finite(energy), f"k = {k:.3g}")
            for k, energy in zip(found.wavenumber, found.energy.T, strict=True)
        ]
        y = Axis("field energy", energy_unit(run), log=True, limits=energy_limits(list(found.energy.T)))
        panels.append(Panel(TIME, y, "First modes", tuple(curves)))
        if spectrum:
            panels.append(spectrum)
    text = "The electric field against x and time, and the energies of its first waves"
    yield Picture("field", "Electric field", text, tuple(panels))


def _spectrum(found: FieldHistory, theory: WaveTheory | None, case: RunCase) -> tuple[Panel | None, str]:
    """|E(k, ω)|² over the box and all times with the dispersion curves, or a sentence that says why it is missing."""
    time, modes, highest = found.time, found.electric.shape[1] // 2, _highest(theory)
    step = float(np.diff(time).mean())
    if why := _too_coarse(case, theory, len(time), step):
        return None, why
    if not np.allclose(np.diff(time), step, rtol=1e-3):
        return None, "A spectrum of ω needs E at evenly spaced times, but some snapshots are missing."
    taper = np.hanning(len(time) + 2)[1:-1, None]
    power = np.abs(np.fft.fft2(taper * (found.electric - found.electric.mean(axis=1, keepdims=True)))) ** 2
    half = len(time) // 2
    # e^{i(kx − ωt)} with ω ≤ 0 and ω ≥ 0: waves in both directions
    forth = power[: half + 1, 1:modes]
    back = power[np.arange(0, -half - 1, -1), 1:modes]
    power = forth + back
    smallest = 2 * math.pi / found.length
    shown = min(modes - 1, _SHORTEST)
    if theory and theory.branches:
        largest = max(_most(branch.wavenumber) for branch in theory.branches)
        shown = min(modes - 1, max(2, round(1.1 * largest / smallest)))
    frequency = 2 * math.pi * np.arange(half + 1) / (step * len(time))
    kept = frequency <= max(_HIGHEST, 1.3 * highest)
    values = power[kept][:, :shown]
    k_edges = smallest * (np.arange(shown + 1) + 0.5)
    w_edges = (np.arange(kept.sum() + 1) - 0.5) * (frequency[1] - frequency[0])
    top = float(values.max()) or 1.0
    image = Image(
        k_edges, w_edges, np.maximum(values.T / top, 1e-30), "|E(k, ω)|², largest = 1", (_DECADES, 1.0), log=True
    )
    curves = []
    for branch in theory.branches if theory else ():
        inside = (branch.wavenumber >= k_edges[0]) & (branch.wavenumber <= k_edges[-1])
        curves.append(Curve(branch.wavenumber[inside], np.abs(branch.frequency[inside]), branch.label, "reference"))
    if len(curves) > 1:  # one label for all curves
        curves = [Curve(one.x, one.y, "theory" if one is curves[0] else "", "reference") for one in curves]
    k_axis = Axis("k", "ω_p/v_th", limits=(float(k_edges[0]), float(k_edges[-1])))
    w_axis = Axis("ω", "ω_p", limits=(float(w_edges[0]), float(w_edges[-1])))  # waves with ω = 0 are inside
    return Panel(k_axis, w_axis, "Spectrum", tuple(curves), image), ""


def sampling_remark(case: RunCase, theory: WaveTheory | None) -> str:
    """A sentence that says why the snapshots of a case cannot resolve its waves, and which ``output.every`` can.

    It is empty if they can, with an external field, and without a periodic box.
    """
    has_walls = set(case.value("problem.boundary", ["periodic"])) != {"periodic"}
    if case.word("physics.field") == "external" or case.value("problem.length") is None or has_walls:
        return ""
    every = int(case.number("output.every"))
    return _too_coarse(case, theory, case.steps // every + 1 if every else 0, every * case.number("time.step"))


def _too_coarse(case: RunCase, theory: WaveTheory | None, times: int, step: float) -> str:
    """A sentence that says why E at these times gives no spectrum of ω, and which ``output.every`` would; or empty."""
    highest, h = _highest(theory), case.number("time.step")
    largest = int(math.pi / (_NYQUIST * highest * h))
    if largest < 1:
        return f"A spectrum of ω up to {highest:.2g} needs time.step = {math.pi / (_NYQUIST * highest):.2g} or less."
    every = min(largest, max(1, case.steps // (_FEWEST - 1)))
    advice = f"run with output.every = {every}{' or less' if every > 1 else ''}"
    if times < _FEWEST:
        there = f"there {'is' if times == 1 else 'are'} only {times}" if times else "there are none"
        joined = "or" if case.steps >= _FEWEST - 1 else "and"
        if int(case.number("output.every")) <= every:  # the run or the chosen window is short
            return f"A spectrum of ω needs E at {_FEWEST} times or more, but {there}: use a longer run or other times."
        return f"A spectrum of ω needs E at {_FEWEST} times or more, but {there}: {advice}, {joined} longer."
    if math.pi / step < _NYQUIST * highest:
        return (
            f"A spectrum of ω needs E at shorter intervals: snapshots every {step:g} resolve frequencies below "
            f"{math.pi / step / _NYQUIST:.2g}, but waves of this box have up to {highest:.2g}: {advice}."
        )
    return ""


def _highest(theory: WaveTheory | None) -> float:
    """The largest frequency that a spectrum must show: that of the branches of theory, but at least well above ω_p."""
    of_branches = [_most(np.abs(branch.frequency)) for branch in theory.branches] if theory else []
    return max([_HIGHEST / 2, *of_branches])


def _most(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else 0.0


def field_spectrum(electric: np.ndarray, periods: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers, and the field energy ½∫|E|²dx of the waves with each. In 2D and 3D they are shells of |k|.

    Args:
        electric: E [*cells, dx].
        periods: lengths of the box [dx].

    Returns:
        |k| [n], ascending, and the energies [n]. Their sum is the field energy without that of the mean field.
    """
    cells = electric.shape[:-1]
    waves = np.fft.fftn(electric, axes=range(len(cells)), norm="forward")
    energy = 0.5 * np.prod(periods) * (np.abs(waves) ** 2).sum(-1)
    axes = [2 * np.pi * np.fft.fftfreq(n, length / n) for n, length in zip(cells, periods, strict=True)]
    wavenumber = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))
    smallest = 2 * np.pi / max(periods)
    shell = np.rint(wavenumber / smallest).astype(int).ravel()
    return smallest * np.arange(1, shell.max() + 1), np.bincount(shell, energy.ravel())[1:]
