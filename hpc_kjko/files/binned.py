"""Binned densities in snapshots: histograms and marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Bins along each axis of a phase-space histogram.
BINS = 128
#: Bins of a marginal, as in the paper.
MARGINAL_BINS = 160


@dataclass(frozen=True)
class Histogram:
    """Phase-space density of (x_i, v_i) in a window, integrated over all other coordinates.

    The integral of ``values`` [BINS, BINS] is the mass inside the window. ``x_range`` and ``v_range`` are (low, high).
    """

    axis: int
    values: np.ndarray
    x_range: tuple[float, float]
    v_range: tuple[float, float]


@dataclass(frozen=True)
class Marginal:
    """Density of one coordinate in a window, integrated over all other coordinates.

    The integral of ``values`` [MARGINAL_BINS] is the mass inside the window ``range``. ``kind`` is "x" or "v".
    """

    kind: Literal["x", "v"]
    axis: int
    values: np.ndarray
    range: tuple[float, float]


@dataclass(frozen=True)
class Binned:
    """Histograms (one per space dimension) and marginals (x first, then v) of one species."""

    histograms: list[Histogram]
    marginals: list[Marginal]
