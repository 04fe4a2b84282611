"""Densities in bins, as snapshots hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

#: Bins per axis of a phase-space histogram.
BINS = 128
#: Bins of a marginal (the paper's number).
MARGINAL_BINS = 160


@dataclass(frozen=True)
class Histogram:
    """Phase-space density of (x_i, v_i) over a window, all other coordinates integrated out.

    ``values`` [BINS, BINS] integrates to the mass inside the window; ``x_range`` and ``v_range`` are (low, high).
    """

    axis: int
    values: np.ndarray
    x_range: tuple[float, float]
    v_range: tuple[float, float]


@dataclass(frozen=True)
class Marginal:
    """Density of one coordinate over a window, all others integrated out.

    ``values`` [MARGINAL_BINS] integrates to the mass inside the window ``range``; ``kind`` is "x" or "v".
    """

    kind: Literal["x", "v"]
    axis: int
    values: np.ndarray
    range: tuple[float, float]


@dataclass(frozen=True)
class Binned:
    """Of one species, histograms of its phase space, one for each space dimension, and marginals, x first."""

    histograms: list[Histogram]
    marginals: list[Marginal]
