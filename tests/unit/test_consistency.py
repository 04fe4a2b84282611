"""Whether sample, log_density and mass belong together: the test's power, its false alarms, and what a user sees."""

import math
import textwrap

import numpy as np
import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.cli.main import main
from hpc_kjko.problems import KINDS
from hpc_kjko.running import consistency
from hpc_kjko.running.consistency import CERTAIN, SAMPLE, require_consistent_start


def require(case):
    require_consistent_start(case, case.problem, case.physics.temperature)


def disagreement(z, log_density, periods=None):
    """The largest, in standard errors, of a sample z [n, d] with equal shares."""
    bridges = consistency._bridges(z, np.full(len(z), 1 / len(z)), periods, log_density)
    return np.abs(consistency._disagreement(bridges, 0.0)).max()


def log_normal(z, mean=0.0, variance=1.0):
    return (-0.5 * (z - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum(1)


@pytest.mark.parametrize("dims", [2, 6])
def test_what_it_finds_with_4096_particles(dims):
    last = np.eye(dims)[-1]
    claims = {
        "a mean that is off by 0.15 of the width": lambda z: log_normal(z, mean=0.15 * last),
        "a variance that is 1.3 times what is said": lambda z: log_normal(z, variance=1 - last + last / 1.3),
        "a variance that is 0.8 times what is said": lambda z: log_normal(z, variance=1 - last + last / 0.8),
        "a mass that is 5 % off": lambda z: log_normal(z) + math.log(1.05),
    }
    sample = np.random.default_rng(1).standard_normal((SAMPLE, dims))
    for text, claim in claims.items():
        assert disagreement(sample, claim) > CERTAIN, text
    assert disagreement(sample, log_normal) < 4


def beams(width, share=0.5):
    def log_density(z):
        parts = [math.log(p) - 0.5 * ((z[:, 1] - u) / width) ** 2 for p, u in ((share, 2.4), (1 - share, -2.4))]
        return np.logaddexp(*parts) - math.log(31.4 * width * math.sqrt(2 * math.pi))

    return log_density


@pytest.mark.parametrize("width", [1.0, 0.01])
def test_narrow_beams_and_heavy_tails_are_no_false_alarm(width):
    generator = np.random.default_rng(2)
    x, side = 31.4 * generator.random(SAMPLE), np.where(generator.random(SAMPLE) < 0.5, -2.4, 2.4)
    sample = np.stack([x, side + width * generator.standard_normal(SAMPLE)], axis=1)
    assert disagreement(sample, beams(width), (31.4,)) < 4
    assert disagreement(sample, beams(width, share=0.6), (31.4,)) > CERTAIN
    tails = np.stack([x, generator.standard_t(2, SAMPLE)], axis=1)
    claim = lambda z: -1.5 * np.log1p(z[:, 1] ** 2 / 2) - math.log(31.4 * 2 * math.sqrt(2))  # noqa: E731
    assert disagreement(tails, claim, (31.4,)) < 4


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_built_in_starts_are_consistent(kind):
    require(from_table({"problem": {"kind": kind}}))


@pytest.mark.parametrize("particles", [{"start": "grid"}, {"weights": "density"}])
def test_so_are_their_other_ways_to_be_drawn_in_three_dimensions(particles):
    problem = {"kind": "two_stream", "space_dims": 2, "velocity_dims": 3, "amplitude": 0.5, "mode": [1, 2]}
    require(from_table({"problem": problem, "particles": particles, "grid": {"cells": 64}}))


OWN = """
    import math
    import numpy as np
    import torch
    from scipy.special import ndtri

    class Start:
        def __init__(self, width=1.0, mean=0.0, mass=1.0, wave=0.0):
            self.width, self.mean, self.mass, self.wave = width, mean, mass, wave

        def sample(self, points, temperature):
            return points[:, :1], ndtri(points[:, 1:])

        def log_density(self, x, v, temperature):
            wave = torch.log1p(self.wave * torch.cos(2 * math.pi * x[:, 0]))
            square = ((v[:, 0] - self.mean) / self.width) ** 2
            return math.log(self.mass) + wave - 0.5 * square - math.log(self.width * math.sqrt(2 * math.pi))

    sound = Start()
    narrow = Start(width=0.5)
    shifted = Start(mean=1.0)
    heavy = Start(mass=1.3)
    wavy = Start(wave=0.5)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sound", None),
        ("narrow", "log_density is not the density of the particles that sample draws; along v_1"),
        ("shifted", "log_density is not the density of the particles that sample draws; along v_1"),
        ("wavy", "log_density is not the density of the particles that sample draws; along x_1"),
        ("heavy", "log_density integrates to 1.3 times the mass"),
    ],
)
def test_a_start_of_the_users_own_is_tested_before_anything_is_written(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_starts.py").write_text(textwrap.dedent(OWN))
    case = f"""
        [problem]
        kind = "plasma"
        length = 1.0
        initial_density = "own_starts:{name}"
        [particles]
        count = 1024
        [grid]
        cells = 8
        [method]
        hidden = []
        [time]
        end = 0.1
    """
    (tmp_path / "case.toml").write_text(textwrap.dedent(case))
    code = main(["run", "case.toml", "--out", "out"])
    error = capsys.readouterr().err
    if said is None:
        assert code == 0, error
    else:
        assert code == 2 and not (tmp_path / "out").exists()
        assert f'problem.initial_density = "own_starts:{name}": {said}' in error and len(error.splitlines()) == 1
