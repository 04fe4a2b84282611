"""The results of a validation: rows of docs/validation.json, from which the page docs/validation.md is made."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "validation.json"


@dataclass(frozen=True)
class Record:
    """One quantity of one case.

    Attributes:
        case: the case that was run.
        quantity: the quantity that was measured, and the reference.
        target: the target, in words; "–" if there is none.
        measured: the measured number, with its error if it has one.
        met: whether the target was met.
    """

    case: str
    quantity: str
    target: str
    measured: str
    met: bool


#: The results of this process.
measured: list[Record] = []


def record(case: str, quantity: str, target: str, value: str, met: bool) -> bool:
    """Keep a row for the page, and return whether the target was met."""
    measured.append(Record(case, quantity, target, value, bool(met)))
    return bool(met)


def refusal(names: Iterable[str], path: Path = PAGE) -> str:
    """A sentence that says why rows of some validations cannot be written; empty if they can."""
    grouped = {name for group in json.loads(path.read_text(encoding="utf-8")) for name in group["validations"]}
    if without := [name for name in names if name not in grouped]:
        return f'{", ".join(without)}: in no group of {path.name}: add the name to the "validations" of a group'
    if not _commit():
        return "the commit of the measurement is not known: run it in a git checkout"
    return ""


def write(rows: list[tuple[str, Record]], path: Path = PAGE) -> None:
    """Write rows. A row replaces that of the same case and quantity, or is added at the end of its validation's group.

    Args:
        rows: the name of the validation and its result, for each row.
        path: the JSON file.
    """
    groups: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    here = {"date": date.today().isoformat(), "commit": _commit(), "machine": _machine()}
    for validation, row in rows:
        new = asdict(row) | here
        (group,) = (one for one in groups if validation in one["validations"])
        for number, old in enumerate(group["rows"]):
            if (old["case"], old["quantity"]) == (row.case, row.quantity):
                group["rows"][number] = new
                break
        else:
            group["rows"].append(new)
    path.write_text(json.dumps(groups, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit(folder: Path = PAGE.parent) -> str:
    """Seven digits, and + if tracked files outside docs/ have uncommitted changes; empty outside a git checkout."""

    def said(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        return ""
    changed = said("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs")
    return said("rev-parse", "--verify", "HEAD")[:7] + ("+" if changed else "")


def _machine() -> str:
    """The name of the processor, as reported by Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
