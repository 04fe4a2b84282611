"""Collisionless waves against the kinetic dispersion relation."""

import numpy as np
import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.reference.dispersion import landau_root, two_stream_growth_rate
from hpc_kjko.running.simulation import Simulation


def mode_amplitude(table, comm, end):
    """Times and the Fourier amplitude of E along the perturbation, of a collisionless run."""
    case = from_table({**table, "method": {"collision": "none"}, "time": {"step": 0.1, "end": end}})
    simulation = Simulation.start(case, comm)
    (mode,), amplitudes = case.problem.mode, []
    for _ in range(case.time.steps + 1):
        amplitudes.append(abs(np.fft.rfft(simulation.state.field.electric[:, 0])[mode]))
        simulation.state = simulation.advance()
    return 0.1 * np.arange(case.time.steps + 1), np.array(amplitudes)


def test_two_stream_growth_rate(alone):
    """Linear phase between the decay of the other roots and saturation: within 2 % of the dispersion relation."""
    table = {"problem": {"kind": "two_stream"}, "particles": {"count": 2**16}, "grid": {"cells": 64}}
    time, amplitude = mode_amplitude(table, alone, 22.0)
    expected = two_stream_growth_rate(2 * np.pi / 31.4159265, 2.4, 1.0)
    assert expected == pytest.approx(0.22584, abs=1e-5)
    linear = (time > 12) & (time < 21)
    rate = np.polyfit(time[linear], np.log(amplitude[linear]), 1)[0]
    assert rate == pytest.approx(expected, rel=0.02)


def test_landau_damping_rate_and_frequency(alone):
    """k = 0.5: the peaks of |E_k| fall at −0.1533 within 2 % and come every half period."""
    table = {
        "problem": {"kind": "landau_damping", "amplitude": 0.05},
        "particles": {"count": 2**17},
        "grid": {"cells": 32, "shape_order": 2},
    }
    time, amplitude = mode_amplitude(table, alone, 12.0)
    root = landau_root(0.5, 1.0)
    assert (root.real, root.imag) == pytest.approx((1.4157, -0.1534), abs=1e-4)
    peaks = [i for i in range(1, len(time) - 1) if amplitude[i] > max(amplitude[i - 1], amplitude[i + 1])]
    vertices = [np.polyfit(time[i - 1 : i + 2] - time[i], np.log(amplitude[i - 1 : i + 2]), 2) for i in peaks]
    when = np.array([time[i] - b / (2 * a) for i, (a, b, _) in zip(peaks, vertices, strict=True)])[1:]
    height = np.array([c - b**2 / (4 * a) for a, b, c in vertices])[1:]
    assert len(when) >= 4
    assert np.polyfit(when, height, 1)[0] == pytest.approx(root.imag, rel=0.02)
    assert np.pi / np.diff(when).mean() == pytest.approx(root.real, rel=0.02)
