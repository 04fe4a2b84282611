"""The mass of a fitted density: an integral over phase space."""

import math

import numpy as np
import pytest
import torch

from hpc_kjko.inner.solvers.normalisation import Normalisation

CPU = torch.device("cpu")


def gaussian(mean, covariance, mass, periods=()):
    """log of mass times a Gaussian, uniform in the first, periodic coordinates."""
    inverse = torch.tensor(np.linalg.inv(covariance))
    level = math.log(mass / math.prod(periods)) - 0.5 * np.linalg.slogdet(2 * np.pi * np.array(covariance))[1]

    def log_density(places):
        y = places[:, len(periods) :] - torch.tensor(mean)
        return level - 0.5 * ((y @ inverse) * y).sum(1)

    return log_density


MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
SQUARE = COVARIANCE + np.outer(MEAN, MEAN)


@pytest.mark.parametrize("off", [0.3, -0.01])
@pytest.mark.parametrize("periods", [None, (3.0,), (3.0, 4.0, 5.0)])
def test_of_a_gaussian_the_excess_is_known_to_rounding(off, periods):
    mass = 7.0
    exact = gaussian(MEAN, COVARIANCE, mass, periods or ())
    found = Normalisation(periods, 2 + len(periods or ()), mass, CPU)
    assert found.excess(lambda places: exact(places) + off, MEAN, SQUARE) == pytest.approx(off, abs=1e-12)


def test_near_a_gaussian_most_of_it_is_believed_and_of_beams_nothing():
    """A wave of 5 %, and beams at ±2.4: their mass is right to 10⁻⁴, but only the first may count on that."""
    period, normal = 2 * math.pi, gaussian([0.0], [[1.0]], 2 * math.pi, (2 * math.pi,))

    def wave(places):
        return normal(places) + torch.log1p(0.05 * torch.cos(places[:, 0]) * places[:, 1]) + 0.02

    def beams(places):
        one, other = (normal(places + torch.tensor([0.0, drift])) for drift in (2.4, -2.4))
        return torch.logaddexp(one, other) - math.log(2) + 0.02

    found = Normalisation((period,), 2, period, CPU)
    near = found.excess(wave, np.zeros(1), np.ones((1, 1)))
    assert 0.5 * 0.02 < near < 0.02
    far = found.excess(beams, np.zeros(1), np.array([[1 + 2.4**2]]))
    assert 0 < far < 0.05 * 0.02


@pytest.mark.parametrize("spoilt", [math.inf, -math.inf, math.nan])
def test_a_density_without_a_mass_has_no_excess(spoilt):
    normal = gaussian([0.0], [[1.0]], 1.0)
    found = Normalisation(None, 1, 1.0, CPU)
    assert found.excess(lambda places: normal(places) + spoilt, np.zeros(1), np.ones((1, 1))) == 0
    assert found.excess(normal, np.zeros(1), np.zeros((1, 1))) == 0  # particles that all stand in one place
