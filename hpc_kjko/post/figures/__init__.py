"""The figures of a run as data, made from its files alone. Each module answers some questions.

* ``waves``: how fast does the wave grow, where is the field, what waves is it made of?
* ``energies``: where does the energy go, how far is equilibrium, how long does it take?
* ``space``: where are the particles, and what are potential and field there?
* ``marginals``, ``phase_space``: what does f look like? ``planes`` finds f as a function of two coordinates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from hpc_kjko.post.figures import energies, marginals, phase_space, space, waves
from hpc_kjko.post.figures.runfiles import FRAMES, RunFiles
from hpc_kjko.post.panels import Picture


def pictures_of(run: RunFiles, *, log: bool = False, places: Sequence[float] = ()) -> Iterator[Picture]:
    """Yield all figures for which the run has data. The field energy comes first, the wall-clock time last.

    Damaged snapshots are left out, and a warning names them.

    Args:
        run: the files of the run.
        log: use logarithmic scales for f, even if linear scales show everything.
        places: x of the cuts through phase space; by default quarters of the box or, without a box, of the particles.
    """
    yield from waves.field_energy(run)
    yield from energies.energies(run)
    yield from energies.temperatures(run)
    yield from energies.relative_entropy(run)
    yield from waves.field(run)
    yield from space.fields(run, run.species)
    for species in run.species:
        yield from marginals.marginals(run, species)
        yield from phase_space.phase_space(run, species, log=log, places=places)
    yield from energies.seconds(run)


def frames_of(run: RunFiles, most: int, *, log: bool = False) -> Iterator[list[Picture]]:
    """Yield series of pictures over time with the same axes and colours: phase space and, in 2D and 3D, the density.

    Args:
        run: the files of the run.
        most: the largest number of pictures in a series.
        log: use logarithmic scales for f.
    """
    for species in run.species:
        for frames in (
            list(phase_space.phase_space_frames(run, species, most, log=log)),
            list(space.density_frames(run, species, most)),
        ):
            if len(frames) > 1:
                yield frames


def for_a_page(run: RunFiles) -> Iterator[list[Picture]]:
    """Yield the figures for a page. Panels with the same axes form a series, which the page shows with a slider.

    Phase space and, in 2D and 3D, the density are series of many times.
    """
    series = {frames[0].name.rpartition("_")[0]: frames for frames in frames_of(run, FRAMES)}
    for picture in pictures_of(run):
        frames = series.get(picture.name, [])
        if not picture.shared:
            yield [picture]
        elif not (frames and _are_alike(frames[0], picture)):
            yield [dataclasses.replace(picture, panels=(panel,)) for panel in picture.panels]
        if frames:
            yield frames


def _are_alike(frame: Picture, picture: Picture) -> bool:
    """Whether the images of two pictures were made in the same way, so that only the number of times differs."""
    first, second = (one.panels[0].image for one in (frame, picture))
    return first is not None and second is not None and first.values.shape == second.values.shape
