#!/usr/bin/env python
"""Writes what ``kjko cases`` shows, from the models that check a case: hpc_kjko/post/templates/cases.txt.

    python scripts/list_cases.py

To be run again when a key, its default or its meaning changes; a test compares. The command shows the file, as it would
otherwise take seconds to load torch for a page of text. A line keeps its indentation where the command wraps it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_kjko.case import config
from hpc_kjko.case.method import SOLVER_DEFAULTS, Method
from hpc_kjko.case.sections import DriveSettings, LandauSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.collisions import METHODS
from hpc_kjko.inner.solvers import SOLVERS
from hpc_kjko.problems import KINDS
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.schema import Section, meaning, section_of

PAGE = Path(__file__).parents[1] / "hpc_kjko" / "post" / "templates" / "cases.txt"


def page() -> str:
    """The keys of a case, the built-in problems, methods, solvers and integrators."""
    lines = ["Keys of a case, with their defaults. docs/reference/case_file.md says more about each.", ""]
    for kind, problem in KINDS.items():
        case = config.from_table({"problem": {"kind": kind}}).table()
        summary = (inspect.getdoc(problem) or "").partition("\n\n")[0].replace("\n", " ")
        lines += [f'[problem] kind = "{kind}"', f"  {summary}", *_keys(problem, case["problem"])]
        lines += [f"  With this problem physics.field = {text_of(case['physics']['field'])} by default.", ""]
    case = config.from_table({"problem": {"kind": "two_stream"}}).table()
    for name, field in config.Case.model_fields.items():
        section = section_of(field.annotation)
        if name not in ("problem", "species") and section is not None:
            lines += [f"[{name}]", *_keys(section, case.get(name, {})), ""]
        if name == "species":
            lines += ["[species.NAME]", *_keys(SpeciesSettings, {}), ""]
        if name == "physics":
            lines += ["[physics.landau]", *_keys(LandauSettings, {}), ""]
            lines += ["[physics.drive]", *_keys(DriveSettings, {}), ""]
    for key, names in {"method.collision": METHODS, "method.solver": SOLVERS, "time.integrator": MAPS}.items():
        lines.append(f"{key}: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _keys(section: type[Section], defaults: dict[str, Any]) -> Iterator[str]:
    """Two lines for each key of a section: its default, and what it means."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key == "kind":
            continue
        without = "required" if field.is_required() else text_of(field.default)
        default = text_of(defaults[key]) if key in defaults else without
        if section is Method and any(key in keys for keys in SOLVER_DEFAULTS.values()):
            of_solvers = {solver: keys.get(key, field.default) for solver, keys in SOLVER_DEFAULTS.items()}
            default = ", ".join(f"{solver} {text_of(value)}" for solver, value in of_solvers.items())
        yield f"  {key} = {default}"
        yield f"      {meaning(section, name)}"


def text_of(value: Any) -> str:
    """A value as a case file writes it."""
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.writetext_of(page(), encoding="utf-8")
    print(PAGE)
