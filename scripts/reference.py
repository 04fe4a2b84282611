#!/usr/bin/env python
"""Writes the parts of the documentation that follow from the code: keys, columns, verbs, the table of validations.

    python scripts/reference.py

Run it again after a change of a key, a column, an option or docs/validation.json; a test compares. In a page such a
part begins with ``<!-- generated: NAME -->`` and ends with ``<!-- end -->``. The script also writes the page of ``kjko
cases``, hpc_kjko/post/templates/cases.txt. It writes only files that change.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hpc_kjko.case import config
from hpc_kjko.case.method import SOLVER_DEFAULTS, Method
from hpc_kjko.case.sections import DriveSettings, LandauSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.cli.main import VERBS, parser
from hpc_kjko.collisions import METHODS
from hpc_kjko.files.column_meanings import MEANINGS
from hpc_kjko.inner.solvers import SOLVERS
from hpc_kjko.problems import KINDS
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.running.driver import CHANGEABLE
from hpc_kjko.schema import Section, explanation, meaning, section_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CASES = ROOT / "hpc_kjko" / "post" / "templates" / "cases.txt"
_PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: A symbol with a subscript, such as v_th or 2πx_j, but not a name such as two_stream.
_SUBSCRIPT = re.compile(r"(?<![A-Za-z_])([^\W\d_])_([A-Za-z0-9∞]{1,4})(?![A-Za-z0-9_])")
NO_BREAK = "\N{NON-BREAKING HYPHEN}"
#: The case file at the top of docs/reference/case_file.md.
EXAMPLE: dict[str, dict[str, Any]] = {
    "problem": {"kind": "two_stream", "beam_velocity": 2.4},
    "physics": {"collision_strength": 0.01},
    "particles": {"count": 32768},
    "time": {"step": 0.1, "end": 30.0},
}
#: Width of a usage, which fits into a page of the site.
_USAGE = 88
#: Column at which comments begin in the example.
_COMMENT = 28
#: Keys that all problems have. They are listed once.
_COMMON = ("kind", "space_dims", "velocity_dims", "boundary")


def with_generated_parts(text: str) -> str:
    """The text of a page, with its generated parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}\n{_made(found[2])}\n\n{found[3]}", text)


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [page for page in sorted(DOCS.rglob("*.md")) if "<!-- generated: " in page.read_text(encoding="utf-8")]


def _made(what: str) -> str:
    kind, _, name = what.partition(" ")
    makers: dict[str, Callable[[], str]] = {
        "example": _example,
        "keys": lambda: _keys_of(name),
        "problems": _problems,
        "columns": _columns,
        "verbs": _verbs,
        "restart": _restart,
        "validation": _summary if name == "summary" else _validation,
    }
    return makers[kind]()


# -- keys ------------------------------------------------------------------------------------------------------------


def _example() -> str:
    """A short case file, with the meaning of each key as a comment."""
    problem = KINDS[EXAMPLE["problem"]["kind"]]
    config.from_table(EXAMPLE)  # an error here says what is wrong with the example
    lines = []
    for name, keys in EXAMPLE.items():
        section = problem if name == "problem" else section_of(config.Case.model_fields[name].annotation)
        assert section is not None
        lines.append(f"[{name}]")
        for key, value in keys.items():
            comment = meaning(section, key).replace("`", "").partition(". ")[0].removesuffix(".")
            lines.append(f"{f'{key} = {text_of(value)}'.ljust(_COMMENT)}# {comment}")
    return "\n".join(["```toml", "# Two counter-streaming beams with weak collisions", *lines, "```"])


def _keys_of(name: str) -> str:
    apart: dict[str, type[Section]] = {"species": SpeciesSettings, "landau": LandauSettings, "drive": DriveSettings}
    if name in apart:
        return _table(apart[name], {}, [])
    section = section_of(config.Case.model_fields[name].annotation)
    assert section is not None
    case = config.from_table({"problem": {"kind": "two_stream"}}).table()
    return _table(section, case.get(name, {}), [])


def _problems() -> str:
    tables = {kind: config.from_table({"problem": {"kind": kind}}).table() for kind in KINDS}
    first = KINDS["two_stream"]
    rows = {"kind": "required", "space_dims": "1", "velocity_dims": "1", "boundary": '`"periodic"`'}
    common = [_row(key, default, explanation(first, key)) for key, default in rows.items()]
    lines = ["## Keys of every problem", "", _with_head(common)]
    for kind, problem in KINDS.items():
        paragraphs = (inspect.getdoc(problem) or "").split("\n\n")
        lines += ["", f"## `{kind}`", "", *_joined(" ".join(part.split()) for part in paragraphs)]
        field = tables[kind]["physics"]["field"]
        lines += [f'The default of `physics.field` is `"{field}"`.', ""]
        lines.append(_table(problem, tables[kind]["problem"], _COMMON))
    return "\n".join(lines)


def _joined(paragraphs: Iterable[str]) -> Iterator[str]:
    for text in paragraphs:
        yield _with_subscripts(re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text.replace("``", "`")))
        yield ""


def _with_subscripts(text: str) -> str:
    """Text with symbols such as v_th as v<sub>th</sub>. Code between backticks is unchanged."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else _SUBSCRIPT.sub(r"\1<sub>\2</sub>", part) for part in parts)


def _with_head(rows: list[str]) -> str:
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _table(section: type[Section], defaults: dict[str, Any], without: Iterable[str]) -> str:
    lines = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key in without:
            continue
        required = field.is_required() and key not in defaults
        default = "required" if required else _value(defaults.get(key, field.default))
        if section is Method and any(key in keys for keys in SOLVER_DEFAULTS.values()):
            of_solvers = {solver: keys.get(key, field.default) for solver, keys in SOLVER_DEFAULTS.items()}
            default = "<br>".join(f"{solver} {_value(value)}" for solver, value in of_solvers.items())
        paragraphs = list(explanation(section, name))
        for number, part in enumerate(paragraphs):
            if part.startswith("Default: "):  # a default that depends on other keys, described by its first sentence
                default, _, more = part.removeprefix("Default: ").removesuffix(".").partition(". ")
                paragraphs[number : number + 1] = [f"{more}."] if more else []
        lines.append(_row(key, default, paragraphs))
    return _with_head(lines)


def _row(key: str, default: str, paragraphs: list[str]) -> str:
    return f"| `{key}` | {_with_subscripts(default)} | {_cell('<br>'.join(paragraphs))} |"


def _cell(text: str) -> str:
    """A text for a cell of a table. Bars and stars are escaped, and symbols get subscripts.

    Code with a bar loses its backticks, because code would show the backslash.
    """

    def escaped(found: re.Match[str]) -> str:
        part = found[0]
        if part[0] == "`" and "|" not in part:
            return part
        return _with_subscripts(re.sub(r"([|*])", r"\\\1", part.strip("`")))

    return re.sub(r"`[^`]*`|[^`]+", escaped, text)


def _value(value: Any) -> str:
    """A default as a page shows it: as in a case file, except multiples of π and lists of one number."""
    if isinstance(value, list | tuple) and len(value) == 1 and not isinstance(value[0], list | tuple):
        (value,) = value
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "a table"
    if isinstance(value, float) and value and math.isclose(value / math.pi, round(value / math.pi), rel_tol=1e-12):
        multiple = round(value / math.pi)
        return f"{'' if multiple == 1 else multiple}π"
    if isinstance(value, str | bool):
        return f"`{json.dumps(value)}`"
    return text_of(value)


def _restart() -> str:
    lines = []
    for section, keys in CHANGEABLE.items():
        lines.append(f"* `[{section}]`: {', '.join(f'`{key}`' for key in sorted(keys))}")
    return "\n".join(lines)


# -- the page of kjko cases --------------------------------------------------------------------------------------------


def page_of_cases() -> str:
    """The page that ``kjko cases`` shows: keys of a case, built-in problems, methods, solvers and integrators.

    The command shows a file, because loading torch for a page of text would take seconds. The command wraps long lines
    and keeps their indentation.
    """
    lines = ["Keys of a case, with their defaults. docs/reference/case_file.md has the details.", ""]
    for kind, problem in KINDS.items():
        case = config.from_table({"problem": {"kind": kind}}).table()
        summary = (inspect.getdoc(problem) or "").partition("\n\n")[0].replace("\n", " ")
        lines += [f'[problem] kind = "{kind}"', f"  {summary}", *_lines_of(problem, case["problem"])]
        lines += [f"  With this problem physics.field = {text_of(case['physics']['field'])} by default.", ""]
    case = config.from_table({"problem": {"kind": "two_stream"}}).table()
    for name, field in config.Case.model_fields.items():
        section = section_of(field.annotation)
        if name not in ("problem", "species") and section is not None:
            lines += [f"[{name}]", *_lines_of(section, case.get(name, {})), ""]
        if name == "species":
            lines += ["[species.NAME]", *_lines_of(SpeciesSettings, {}), ""]
        if name == "physics":
            lines += ["[physics.landau]", *_lines_of(LandauSettings, {}), ""]
            lines += ["[physics.drive]", *_lines_of(DriveSettings, {}), ""]
    for key, names in {"method.collision": METHODS, "method.solver": SOLVERS, "time.integrator": MAPS}.items():
        lines.append(f"{key}: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _lines_of(section: type[Section], defaults: dict[str, Any]) -> Iterator[str]:
    """Two lines for each key of a section: its default and its meaning."""
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
    """A value in the form of a case file."""
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


# -- columns and verbs -----------------------------------------------------------------------------------------------


def _columns() -> str:
    lines = ["| column | meaning |", "| --- | --- |"]
    for name, text in MEANINGS.items():
        shown = f"`{name}` …" if name.endswith("_1") else f"`{name}`"
        lines.append(f"| {shown} | {_cell(text)} |")
    return "\n".join(lines)


def _verbs() -> str:
    lines = []
    (verbs,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, of_verb in verbs.items():
        verb = VERBS[name]
        usage = " ".join(of_verb.format_usage().removeprefix("usage: ").split())
        options = re.sub(r"\[[^]]*\]", lambda option: option[0].replace(" ", "\N{NO-BREAK SPACE}"), usage)
        usage = textwrap.fill(options, _USAGE, subsequent_indent="    ", break_on_hyphens=False).replace(
            "\N{NO-BREAK SPACE}", " "
        )
        lines += [f"## kjko {name}", "", verb.text, "", "```text", usage, "```", ""]
        rows = [action for action in of_verb._actions if action.dest != "help"]
        if rows:
            lines += ["| argument | meaning |", "| --- | --- |"]
            for action in rows:
                lines.append(f"| {_argument(action)} | {_sentence(action.help or '')} |")
            lines.append("")
        lines += [f"For example `{verb.example}`. See [{_title(verb.page)}](../{verb.page}).", ""]
    return "\n".join(lines).strip()


def _argument(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    if not action.option_strings:
        return f"`{value}`"
    return f"`{action.option_strings[-1]}{' ' + str(value) if action.nargs != 0 and value else ''}`"


def _sentence(text: str) -> str:
    text = _cell(text).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _title(page: str) -> str:
    (title,) = re.findall(r"\A# (.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return title


# -- validation ------------------------------------------------------------------------------------------------------


def _groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = json.loads((DOCS / "validation.json").read_text(encoding="utf-8"))
    return groups


def _summary() -> str:
    """A row for each group of docs/validation.json, and the targets that are missed."""
    lines = ["| topic | quantities | targets met | error / allowed error |", "| --- | ---: | ---: | ---: |"]
    missed, every = [], []
    for group in _groups():
        rows, link = group["rows"], f"[{group['title']}](#{_anchor(group['title'])})"
        every += rows
        lines.append(f"| {link} | {_counts(rows)} |")
        missed += [f"| {link} | {' | '.join(_cells(row))} |" for row in rows if not row["met"]]
    lines.append(f"| all | {_counts(every)} |")
    head = ["| topic | case | quantity | target | measured |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, "", f"These {len(missed)} quantities miss their target:", "", *head, *missed])


def _counts(rows: list[dict[str, Any]]) -> str:
    """Cells of the summary: how many quantities, how many of the targets are met, and the worst ratio."""
    asked = [row for row in rows if row["target"] != "–"]
    ratios = [ratio for row in asked if (ratio := ratio_of(row["target"], row["measured"])) is not None]
    worst = "–" if not ratios else "< 0.01" if max(ratios) < 0.01 else f"{max(ratios):.2g}"
    return f"{len(rows)} | {sum(row['met'] for row in asked)} of {len(asked)} | {worst}"


def _cells(row: dict[str, Any]) -> list[str]:
    """Cells of a row of docs/validation.json: case, quantity, target and measured number."""
    return [
        _cell(row[name]).replace(" %", "\N{NO-BREAK SPACE}%") for name in ("case", "quantity", "target", "measured")
    ]


def ratio_of(target: str, measured: str) -> float | None:
    """The largest error of a row divided by the allowed error: at most 1 if the target is met.

    Args:
        target: "≤ a", "≥ a", "a within b %", "within b %" or "a ± b"; lists of a are for lists of measured numbers.
        measured: numbers; those in brackets and those after ± do not count.

    Returns:
        The ratio; for "≥ a" it is a divided by the smallest number. None if the target has another form.
    """
    found = _numbers(measured)
    if target[0] in "≤<":
        limits = _numbers(target)
        limits = limits * len(found) if len(limits) == 1 else limits
        return max(abs(one) / limit for one, limit in zip(found, limits, strict=True))
    if target[0] == "≥":
        (limit,) = _numbers(target)
        return limit / min(found) if limit > 0 else max(0.0, min(found) / limit)
    wanted, word, allowed = target.partition(" ± " if "±" in target else "within ")
    if not word:
        return None
    (tolerance,), exact = _numbers(allowed), _numbers(wanted)
    if not exact:
        return max(map(abs, found)) / tolerance
    return max(abs(one - exact[0]) for one in found) / (tolerance * (abs(exact[0]) if "%" in allowed else 1))


def _numbers(text: str) -> list[float]:
    """The first number of each part of a list, without those in brackets and those after ±; 2 % is 0.02."""
    text = re.sub(r"\([^)]*\)|± *\S+", "", text).replace("−", "-")
    found = [re.search(r"-?\d+(\.\d+)?(e-?\d+)?", part) for part in re.split("[,;]", text)]
    return [(0.01 if "%" in text else 1) * float(number[0]) for number in found if number]


def _anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _validation() -> str:
    """A table for each group of docs/validation.json, with its figure if it has one."""
    lines = []
    for group in _groups():
        lines += [f"## {group['title']}", "", group["text"], ""]
        if "figure" in group:
            lines += [f"![{group['title'].replace('`', '')}]({group['figure']})", "", f"*{group['caption']}*", ""]
        lines.append("| case | quantity | target | measured | date, commit | machine |")
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for row in group["rows"]:
            of = f"{row['date'].replace('-', NO_BREAK)} `{row['commit']}`"
            case, quantity, target, measured = _cells(row)
            measured = measured if row["met"] else f"**{measured}**, missed"
            lines.append(f"| {case} | {quantity} | {target} | {measured} | {of} | {row['machine']} |")
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    """Write the files that are not up to date, and print their names."""
    made = {page: with_generated_parts(page.read_text(encoding="utf-8")) for page in pages()}
    for path, text in {CASES: page_of_cases(), **made}.items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
