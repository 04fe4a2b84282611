"""docs/adding.md, run: a start, an operator, a map, a solver and a kernel's use, all in one case."""

import math
import re
from pathlib import Path

import pytest

from hpc_kjko.case.method import SOLVER_DEFAULTS
from hpc_kjko.inner.solvers import SOLVERS
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import KINDS, STARTS
from hpc_kjko.push.integrators import MAPS

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"


@pytest.fixture
def registries():
    """The names of all parts, which are those of before after the test."""
    all_of_them = (STARTS, KINDS, OPERATORS, MAPS, SOLVERS, SOLVER_DEFAULTS)
    before = [dict(registry) for registry in all_of_them]
    yield
    for registry, names in zip(all_of_them, before, strict=True):
        registry.clear()
        registry.update(names)


def test_the_page_can_be_followed(registries):
    """The temperature relaxes to the bath's, twice what the case says, as its exact solution has it."""
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), found)
    first, last = found["first"], found["last"]
    assert first["temperature_1"] == pytest.approx(1.0, rel=0.02)
    assert last["temperature_1"] == pytest.approx(2 - math.exp(-2 * 0.5 * 3.0), rel=0.05)
    assert found["case"].method.solver == "cooling" and len(found["simulation"].stages) > 9
