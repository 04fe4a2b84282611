"""Keys that have no effect because of another key. The resolved case leaves them out, and the log names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpc_kjko import usercode
from hpc_kjko.case.model import Sections
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import CustomProblem, UserStart

#: Keys of [method] for a fit in each step, and keys for a control field.
_OF_A_FIT = ("solver", "iterations", "first_iterations", "learning_rate", "held_out", "relaxation")
_OF_A_CONTROL_FIELD = ("form", "logdet", "hidden", "skip", "activation", "precision", "chunk")


def idle_in(table: dict[str, Any], case: Sections) -> Iterator[str]:
    """Yield sentences about keys in the user's table that have no effect in the resulting case."""
    if "grid" in table and case.grid is None:
        yield f'[grid] has no effect with physics.field = "{case.physics.field}"'
    if case.method.collision == "none":
        for name, species in table.get("species", {}).items():
            if isinstance(species, dict) and species.get("collision_strength"):
                yield f'species.{name}.collision_strength has no effect with method.collision = "none"'
    for section, keys, reason in idle_keys(case):
        if given := [f"{section}.{key}" for key in keys if key in table.get(section, {})]:
            yield f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect with {reason}"


def idle_keys(case: Sections) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield the keys without effect: the section, the keys, and the setting that is the reason."""
    method, problem = case.method, case.problem
    if method.collision in ("none", "langevin", "binary"):
        yield "method", (*_OF_A_FIT, *_OF_A_CONTROL_FIELD), f'method.collision = "{method.collision}"'
    elif method.collision == "pair_sum":
        yield "method", ("skip", "logdet"), 'method.collision = "pair_sum"'
    elif method.solver == "regression":
        yield "method", ("skip",), 'method.solver = "regression"'
    elif method.collision != "velocity_matching":
        yield "method", ("relaxation",), f'method.solver = "{method.solver}"'
    if not OPERATORS[case.physics.collision_operator].sums_pairs:
        yield "physics", ("landau",), f'physics.collision_operator = "{case.physics.collision_operator}"'
    elif method.collision == "none":
        yield "physics", ("landau",), 'method.collision = "none"'
    together = OPERATORS[case.physics.collision_operator].sums_pairs
    if method.collision == "none" and (together or not case.species):
        yield "physics", ("collision_strength", "collision_operator"), 'method.collision = "none"'
    if method.collision == "velocity_matching":
        yield "method", _OF_A_FIT, 'method.collision = "velocity_matching", which has its own keys'
    if isinstance(problem, CustomProblem) and problem.potential_name != problem.named_potentials[0]:
        shapes = {"bump_amplitude", "bump_wavenumber"}
        if usercode.is_reference(problem.potential_name):
            shapes.add("potential_amplitude")
        if keys := tuple(sorted(shapes & type(problem).model_fields.keys())):
            yield "problem", keys, f'problem.potential = "{problem.potential_name}"'
    shapes_beams = "amplitude" in type(problem).model_fields
    if isinstance(problem, UserStart) and problem.starts_from_user_code and shapes_beams:
        yield "problem", ("amplitude", "mode"), f'problem.initial_density = "{problem.initial_density}"'
