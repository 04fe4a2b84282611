"""scripts/drawn.py: cases that a seed alone decides, and what is said of their runs."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np

from hpc_kjko.case.config import from_table

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from drawn import CASES, METHODS, Errors, draw, table_of
from experiments import RUNS


def test_a_seed_alone_decides_the_cases(tmp_path):
    names = draw(7, tmp_path / "a")
    assert len(names) == CASES == len(set(names))
    draw(7, tmp_path / "b"), draw(8, tmp_path / "c")
    first, again, other = (sorted((tmp_path / folder).iterdir()) for folder in "abc")
    assert [path.read_text() for path in first] == [path.read_text() for path in again]
    assert not {path.read_text() for path in first} & {path.read_text() for path in other}
    assert all(f"{name}_{method}" in RUNS for name in names for method in METHODS)


def test_every_case_is_one_that_runs_and_the_ranges_are_used():
    random = np.random.default_rng(0)
    cases = [from_table(table_of(random)) for _ in range(200)]
    assert {case.problem.velocity_dims for case in cases} == {1, 3}
    strengths = np.log10([case.physics.collision_strength for case in cases])
    assert strengths.min() < -2.4 and strengths.max() > -0.1 and abs(np.median(strengths) + 1.26) < 0.3


def test_what_is_asked():
    good = Errors(field=0.09, entropy=0.02, allowed=0.03, uncertified=0)
    assert good.is_good and "9.0 %" in str(good) and "!" not in str(good)
    assert dataclasses.replace(good, field=float("nan")).is_good
    assert not dataclasses.replace(good, field=0.11).is_good
    worse = dataclasses.replace(good, entropy=0.04)
    assert not worse.is_good and "!" in str(worse)
    failed = Errors(field=math.inf, entropy=math.inf, allowed=0.03, uncertified=None)
    assert not failed.is_good and "gave up" in str(failed)
