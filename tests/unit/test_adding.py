"""The pages on adding to the package, run: a start, an operator, a map, a solver and a kernel's use, in one case."""

import math
import re
from pathlib import Path

import pytest

from hpc_kjko.case.config import from_table
from hpc_kjko.case.method import SOLVER_DEFAULTS
from hpc_kjko.inner.solvers import SOLVERS
from hpc_kjko.operators import OPERATORS
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import KINDS, STARTS
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.running.diagnostics import measure
from hpc_kjko.running.simulation import Simulation

DOCS = Path(__file__).parents[2] / "docs" / "howto"
PAGES = [DOCS / f"new_{part}.md" for part in ("start", "operator", "stage", "solver", "kernel")]


@pytest.fixture
def registries():
    """The names of all parts, which are those of before after the test."""
    all_of_them = (STARTS, KINDS, OPERATORS, MAPS, SOLVERS, SOLVER_DEFAULTS)
    before = [dict(registry) for registry in all_of_them]
    yield
    for registry, names in zip(all_of_them, before, strict=True):
        registry.clear()
        registry.update(names)


def test_the_pages_can_be_followed_in_one_case(registries):
    """The temperature relaxes to the bath's, twice what the case says, as its exact solution has it."""
    for page in PAGES:
        (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        exec(compile(block, str(page), "exec"), {"__name__": page.stem})
    case = from_table(
        {
            "problem": {"kind": "laplace", "amplitude": 0.05},
            "physics": {"collision_operator": "hot_bath", "collision_strength": 0.5},
            "particles": {"count": 4096},
            "grid": {"cells": 16},
            "time": {"step": 0.1, "end": 3.0, "integrator": "suzuki"},
            "method": {"solver": "cooling", "hidden": [16], "iterations": 5, "first_iterations": 100},
        }
    )
    simulation = Simulation.start(case, Communicator())
    first = measure(simulation.diagnostics, simulation.state, simulation.comm)
    for _ in range(case.time.steps):
        simulation.state = simulation.advance()
        simulation.step_index += 1
    last = measure(simulation.diagnostics, simulation.state, simulation.comm)
    assert first["temperature_1"] == pytest.approx(1.0, rel=0.02)
    assert last["temperature_1"] == pytest.approx(2 - math.exp(-2 * 0.5 * 3.0), rel=0.05)
    assert case.method.solver == "cooling" and len(simulation.stages) > 9
