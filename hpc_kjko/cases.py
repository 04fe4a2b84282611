"""``kjko cases``: every key of a case with its default and its meaning, from the models that check a case."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from hpc_kjko import config
from hpc_kjko.collisions import METHODS
from hpc_kjko.integrators import MAPS
from hpc_kjko.problems import KINDS
from hpc_kjko.schema import Section, meaning, section_of
from hpc_kjko.solvers import SOLVERS
from hpc_kjko.terminal import width, wrapped


def cases(options: argparse.Namespace) -> int:
    """List the keys of a case, the built-in problems, methods, solvers and integrators."""
    print("Keys of a case, with their defaults. docs/configuration.md says more about each.\n")
    for kind, problem in KINDS.items():
        case = config.from_table({"problem": {"kind": kind}}).table()
        print(f'[problem] kind = "{kind}"')
        _show((inspect.getdoc(problem) or "").partition("\n\n")[0], 2)
        _show_keys(problem, case["problem"], f"  (with physics.field = {_text(case['physics']['field'])} by default)\n")
    case = config.from_table({"problem": {"kind": "two_stream"}}).table()
    for name, field in config.Case.model_fields.items():
        section = section_of(field.annotation)
        if name != "problem" and section is not None:
            print(f"[{name}]")
            _show_keys(section, case.get(name) or section().model_dump(mode="json"))
    print(f"method.collision: {', '.join(METHODS)}")
    print(f"method.solver: {', '.join(SOLVERS)}")
    print(f"time.integrator: {', '.join(MAPS)}")
    return 0


def _show_keys(section: type[Section], defaults: dict[str, Any], last: str = "") -> None:
    """Print the keys of a section, with these defaults, and some text."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key == "kind":
            continue
        default = _text(defaults.get(key))
        if section is config.Method and key in config.SOLVER_DEFAULTS["adam"]:
            default = ", ".join(f"{solver} {_text(keys[key])}" for solver, keys in config.SOLVER_DEFAULTS.items())
        print(f"  {key} = {default}")
        _show(meaning(section, name), 6)
    print(last)


def _show(text: str, indent: int) -> None:
    for line in wrapped(text, width() - indent):
        print(f"{' ' * indent}{line}")


def _text(value: Any) -> str:
    """A value as a case file writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
