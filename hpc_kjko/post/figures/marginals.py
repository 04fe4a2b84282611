"""Figures of the marginals of f: the distribution of each coordinate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from hpc_kjko.errors import DamagedFile
from hpc_kjko.files.binned import Marginal
from hpc_kjko.files.series import read_equilibrium
from hpc_kjko.post.figures.noise import noisy_note, waves_above_noise
from hpc_kjko.post.figures.runfiles import TIMES, RunFiles, centres_of, coordinate_axis, of_species, spread, suffix
from hpc_kjko.post.panels import Axis, Curve, Panel, Picture


def marginals(run: RunFiles, species: str | None = None) -> Iterator[Picture]:
    """Marginals of every coordinate at several times, and that of the equilibrium; nothing without snapshots of them.

    Thick curves contain only the Fourier modes that are larger than the noise of the particles, thin curves are the
    histograms. With a mesh the marginals of x are left out, because the density on the mesh shows the same.
    """
    snapshots = list(run.snapshots(spread(run.steps_with("histograms"), TIMES), species=species))
    if not snapshots:
        return
    known: dict[tuple[str, int], Marginal] = {}
    collides = run.case.strength_of(species) if species else run.case.collision_strength
    with contextlib.suppress(DamagedFile):  # the code that reads the series reports this
        equilibrium = read_equilibrium(run.folder.series) if collides else []
        known = {(marginal.kind, marginal.axis): marginal for marginal in equilibrium}
    panels = []
    dims = len(snapshots[0].marginals)
    for number, first in enumerate(snapshots[0].marginals):
        if first.kind == "x" and run.steps_with("fields"):
            continue
        curves, noises, ends_at_walls = [], [], run.has_walls and first.kind == "x"
        for snapshot in snapshots:
            found = snapshot.marginals[number]
            edges = _edges(found)
            # a case with one species: normalised by the mass ∫f; several species: by the mass inside the window
            whole = (found.values * np.diff(edges)).sum()
            mass = run.series["mass"][0] if run.series and species is None else whole
            raw = found.values / mass
            mean = float(raw.mean())
            waves, noise = waves_above_noise(raw / mean - 1, 0, run.particles_of(species), ends_at_walls)
            noises.append(noise)
            smooth = mean * np.maximum(1 + waves, 0)
            curves.append(Curve(centres_of(edges), smooth, f"t = {snapshot.time:g}", raw=raw))
        if (wanted := known.get((first.kind, first.axis))) is not None:
            curves.append(Curve(centres_of(_edges(wanted)), wanted.values, "equilibrium", "reference"))
        least, most = (float(end([end(curve.y) for curve in curves])) for end in (np.min, np.max))
        highest = max(most, *(float(curve.raw.max()) for curve in curves if curve.raw is not None))
        if first.kind == "x" and least > 0.5 * most:  # the density is close to its mean, so show the relative change
            curves = [_about_its_mean(curve) for curve in curves]
            y, mean = Axis("n/⟨n⟩ − 1"), 1.0
        else:
            unit = "ω_p/v_th" if first.kind == "x" else "1/v_th"
            y = Axis("probability density", unit, limits=(0.0, 1.05 * highest or 1.0))
        note = noisy_note("a histogram", mean * max(noises)) if noises else ""
        panels.append(Panel(coordinate_axis(first.kind, first.axis, dims), y, curves=tuple(curves), note=note))
    yield Picture(
        f"marginals{suffix(species)}",
        f"Marginal distributions{of_species(species)}",
        f"Distribution{of_species(species)} of each coordinate, at several times",
        tuple(panels),
    )


def _about_its_mean(curve: Curve) -> Curve:
    """The density divided by its mean, minus 1."""
    mean = curve.y.mean()
    raw = None if curve.raw is None else curve.raw / mean - 1
    return dataclasses.replace(curve, y=curve.y / mean - 1, raw=raw)


def _edges(marginal: Marginal) -> np.ndarray:
    return np.linspace(*marginal.range, len(marginal.values) + 1)
