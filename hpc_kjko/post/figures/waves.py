"""Figures of the electric field: its energy, and what waves it is made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpc_kjko.post.figures.energies import energy_unit
from hpc_kjko.post.figures.runfiles import TIME, RunFiles, spread
from hpc_kjko.post.panels import Axis, Curve, Panel, Picture

#: Times of the spectrum.
TIMES = 4


def field_energy(run: RunFiles) -> Iterator[Picture]:
    """½ ∫ |E|² dx against time, logarithmic; nothing without a field."""
    if run.series and run.series["field_energy"].any():
        y = Axis("field energy ½∫|E|²dx", energy_unit(run), log=True)
        panel = Panel(TIME, y, curves=(Curve(run.series["time"], run.series["field_energy"]),))
        yield Picture(
            "field_energy", "Energy of the electric field", "Energy of the electric field against time", (panel,)
        )


def spectrum(run: RunFiles) -> Iterator[Picture]:
    """Field energy by wavenumber at several times; nothing without snapshots of the field, or between walls."""
    if run.has_walls:  # the waves of the spectrum are those of a periodic box
        return
    curves = []
    for snapshot in run.snapshots(spread(run.steps_with("fields"), TIMES), fields=True):
        assert snapshot.electric is not None and snapshot.spacing is not None
        periods = tuple(snapshot.spacing * snapshot.electric.shape[:-1])
        wavenumber, energy = field_spectrum(snapshot.electric, periods)
        curves.append(Curve(wavenumber, np.where(energy > 1e-30, energy, np.nan), f"t = {snapshot.time:g}"))
    if curves:
        panel = Panel(Axis("k", "ω_p/v_th"), Axis("field energy", energy_unit(run), log=True), curves=tuple(curves))
        yield Picture("spectrum", "Spectrum of the field", "Field energy by wavenumber, at several times", (panel,))


def field_spectrum(electric: np.ndarray, periods: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers, and the field energy ½∫|E|²dx of the waves of each; in more dimensions than one of whole shells.

    Args:
        electric: E [*cells, dx].
        periods: lengths of the box [dx].

    Returns:
        |k| [n], from the smallest on, and the energies [n], which add up to the field energy without the mean field's.
    """
    cells = electric.shape[:-1]
    waves = np.fft.fftn(electric, axes=range(len(cells)), norm="forward")
    energy = 0.5 * np.prod(periods) * (np.abs(waves) ** 2).sum(-1)
    axes = [2 * np.pi * np.fft.fftfreq(n, length / n) for n, length in zip(cells, periods, strict=True)]
    wavenumber = np.sqrt(sum(k**2 for k in np.meshgrid(*axes, indexing="ij")))
    smallest = 2 * np.pi / max(periods)
    shell = np.rint(wavenumber / smallest).astype(int).ravel()
    return smallest * np.arange(1, shell.max() + 1), np.bincount(shell, energy.ravel())[1:]
