"""What a run has to show: figures as data, made from its files alone. Each module answers one question."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_kjko.post.figures import distributions, energies, waves
from hpc_kjko.post.figures.runfiles import RunFiles
from hpc_kjko.post.panels import Picture


def pictures_of(run: RunFiles) -> Iterator[Picture]:
    """All figures that a run has data for; the field's energy first, the wall clock last.

    A snapshot that is damaged is left out, and a warning names it.
    """
    yield from waves.field_energy(run)
    yield from energies.energies(run)
    yield from energies.relative_entropy(run)
    for species in run.species:
        yield from distributions.marginals(run, species)
        yield from distributions.phase_space(run, species)
    yield from waves.field(run)
    yield from energies.seconds(run)


def for_a_page(run: RunFiles) -> Iterator[list[Picture]]:
    """The same for a page: phase space as pictures of many times, which a slider moves through."""
    for picture in pictures_of(run):
        if not picture.name.startswith("phase_space"):
            yield [picture]
    for species in run.species:
        if frames := list(distributions.phase_space_frames(run, species)):
            yield frames
