"""Figures of the fields in space: density, potential and E, as curves, images, slices and projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpc_kjko.files.output import Snapshot
from hpc_kjko.post.figures.noise import noisy_note, waves_above_noise
from hpc_kjko.post.figures.runfiles import (
    FRAMES,
    PANELS,
    TIMES,
    RunFiles,
    coordinate_axis,
    of_species,
    quantile,
    spread,
    suffix,
)
from hpc_kjko.post.panels import Axis, Curve, Image, Panel, Picture

#: The colour scale ends at this quantile of the absolute values.
_INSIDE = 0.995

#: The integral of the squared shape function along one axis, in cells, for each order.
_SHAPE_SQUARED = {1: 2 / 3, 2: 11 / 20}

#: Titles of slices begin with this word.
_SLICE = "slice"

#: A quantity of a snapshot: its name in a file, its title, its axis, and its values [*cells].
Quantity = tuple[str, str, Axis, Callable[[Snapshot], np.ndarray]]


def fields(run: RunFiles, species: Sequence[str | None]) -> Iterator[Picture]:
    """Density perturbation of each species, potential and E at several times; nothing without a mesh.

    In one dimension they are curves, in two dimensions images. In three dimensions they are projections (the mean over
    one direction) and a slice, at the last time.
    """
    steps = run.steps_with("fields")
    if not steps:
        return
    dims = int(run.case.number("problem.space_dims"))
    draw = {1: _curves, 2: _images, 3: _projections}[dims]
    most = {1: TIMES, 2: PANELS, 3: 1}[dims]
    chosen = spread(steps, most) if dims < 3 else steps[-1:]
    for number, one in enumerate(species):
        snapshots = list(run.snapshots(chosen, fields=True, species=one))
        if snapshots:
            density, *others = _quantities(snapshots, one)
            if dims == 1:
                yield _density_curves(run, snapshots, density, one)
            else:
                yield _with_noise(draw(snapshots, density), run, one)
            if number == 0:
                yield from (draw(snapshots, quantity) for quantity in others)


def density_frames(run: RunFiles, species: str | None = None, most: int = FRAMES) -> Iterator[Picture]:
    """The density against x_1 and x_2 at up to ``most`` times, one picture for each time, with the same colours.

    In 3D it is the mean over x_3. Nothing in one dimension."""
    if int(run.case.number("problem.space_dims")) == 1:
        return
    snapshots = list(run.snapshots(spread(run.steps_with("fields"), most), fields=True, species=species))
    if not snapshots:
        return
    name, title, axis, values_of = _quantities(snapshots, species)[0]
    planes = [_mean(values_of(snapshot), 2) for snapshot in snapshots]
    largest = _largest(planes)
    for number, (snapshot, plane) in enumerate(zip(snapshots, planes, strict=True)):
        panel = _panel(snapshot, plane, (0, 1), f"t = {snapshot.time:.4g}", axis, largest)
        text = f"{title} at t = {snapshot.time:g}"
        yield _with_noise(Picture(f"{name}_{number:04d}", title, text, (panel,), time=snapshot.time), run, species)


def _quantities(snapshots: Sequence[Snapshot], species: str | None) -> list[Quantity]:
    first = snapshots[0]
    assert first.density is not None and first.electric is not None
    mean = float(first.density.mean())
    found: list[Quantity] = [
        (
            f"density{suffix(species)}",
            f"Perturbation of the density{of_species(species)}",
            Axis("n/⟨n⟩ − 1"),
            lambda snapshot: np.asarray(snapshot.density) / mean - 1,
        ),
        ("potential", "Potential", Axis("φ", "m v_th²/q"), lambda snapshot: np.asarray(snapshot.potential)),
    ]
    if first.electric.shape[-1] > 1:  # in one dimension the figure of the waves shows E
        found.append(
            (
                "electric_field",
                "Electric field along x_1",
                Axis("E_1", "m v_th ω_p/q"),
                lambda snapshot: np.asarray(snapshot.electric)[..., 0],
            )
        )
    return found


def _curves(snapshots: Sequence[Snapshot], quantity: Quantity) -> Picture:
    name, title, axis, values_of = quantity
    curves = []
    for snapshot in snapshots:
        values = values_of(snapshot)
        x = _edges(snapshot, 0)
        curves.append(Curve(0.5 * (x[1:] + x[:-1]), values, f"t = {snapshot.time:g}"))
    panel = Panel(coordinate_axis("x", 0, 2), axis, curves=tuple(curves))
    return Picture(name, title, f"{title} against x, at several times", (panel,))


def _density_curves(run: RunFiles, snapshots: Sequence[Snapshot], quantity: Quantity, species: str | None) -> Picture:
    """Thick curves with the waves of the density above the noise of the particles, and thin curves as deposited."""
    picture, noises = _curves(snapshots, quantity), []
    (panel,), curves = picture.panels, []
    order = int(run.case.value("grid.shape_order", 1))
    for curve in panel.curves:
        smooth, noise = waves_above_noise(curve.y, order, run.particles_of(species), run.has_walls)
        curves.append(dataclasses.replace(curve, y=smooth, raw=curve.y))
        noises.append(noise)
    note = noisy_note("as deposited", max(noises))
    return dataclasses.replace(picture, panels=(dataclasses.replace(panel, curves=tuple(curves), note=note),))


def _with_noise(picture: Picture, run: RunFiles, species: str | None) -> Picture:
    """Add to the density's images a note on the noise that independent particles would have at a node.

    A mean over one direction has the noise of a mesh without that direction.
    """
    order, particles, panels = int(run.case.value("grid.shape_order", 1)), run.particles_of(species), []
    layers = run.case.value("grid.cells")[-1]
    for panel in picture.panels:
        assert panel.image is not None
        is_slice = panel.title.startswith(_SLICE)
        nodes = panel.image.values.size * (layers if is_slice else 1)
        noise = np.sqrt(nodes / particles * _SHAPE_SQUARED[order] ** (3 if is_slice else 2))
        panels.append(dataclasses.replace(panel, note=f"Noise of independent particles: ±{noise:.1g}."))
    return dataclasses.replace(picture, panels=tuple(panels))


def _images(snapshots: Sequence[Snapshot], quantity: Quantity) -> Picture:
    name, title, axis, values_of = quantity
    values = [values_of(snapshot) for snapshot in snapshots]
    largest = _largest(values)
    panels = tuple(
        _panel(snapshot, plane, (0, 1), f"t = {snapshot.time:.4g}", axis, largest)
        for snapshot, plane in zip(snapshots, values, strict=True)
    )
    return Picture(name, title, f"{title} against x_1 and x_2, at several times", panels, shared=True)


def _projections(snapshots: Sequence[Snapshot], quantity: Quantity) -> Picture:
    name, title, axis, values_of = quantity
    snapshot = snapshots[-1]
    values = values_of(snapshot)
    middle = values.shape[2] // 2
    where = 0.5 * (_edges(snapshot, 2)[middle] + _edges(snapshot, 2)[middle + 1])
    planes = [(values.mean(axis=2), (0, 1), "mean over x_3"), (values.mean(axis=1), (0, 2), "mean over x_2")]
    planes.append((values[:, :, middle], (0, 1), f"{_SLICE} at x_3 = {where:.3g}"))
    panels = tuple(_panel(snapshot, plane, shown, words, axis, _largest([plane])) for plane, shown, words in planes)
    text = f"{title} at t = {snapshot.time:g}: means over one direction, and a slice"
    return Picture(name, f"{title} at t = {snapshot.time:.4g}", text, panels)


def _mean(values: np.ndarray, dims: int) -> np.ndarray:
    """The mean over all directions after the first two."""
    return values.reshape(*values.shape[:dims], -1).mean(axis=-1)


def _largest(values: Sequence[np.ndarray]) -> float:
    return quantile(np.abs(np.concatenate([one.ravel() for one in values])), _INSIDE) or 1.0


def _panel(
    snapshot: Snapshot, values: np.ndarray, shown: tuple[int, int], title: str, axis: Axis, largest: float
) -> Panel:
    label = f"{axis.label}  [{axis.unit}]" if axis.unit else axis.label
    edges = [_edges(snapshot, direction) for direction in shown]
    image = Image(edges[0], edges[1], values, label, (-largest, largest), signed=True)
    x, y = (coordinate_axis("x", direction, 3) for direction in shown)
    return Panel(x, y, title, image=image)


def _edges(snapshot: Snapshot, direction: int) -> np.ndarray:
    assert snapshot.density is not None and snapshot.spacing is not None
    return np.asarray(snapshot.spacing[direction] * np.arange(snapshot.density.shape[direction] + 1))
