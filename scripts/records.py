"""What a validation has measured: rows for docs/validation.json, from which the page docs/validation.md is made."""

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
        case: what was run.
        quantity: what was measured of it, and against what.
        target: what is asked, in words; "–" if nothing is.
        measured: the number, with its error where there is one.
        met: whether it is what is asked.
    """

    case: str
    quantity: str
    target: str
    measured: str
    met: bool


#: What has been measured in this process.
measured: list[Record] = []


def record(case: str, quantity: str, target: str, value: str, met: bool) -> bool:
    """Keep a row for the page, and return whether it is what is asked."""
    measured.append(Record(case, quantity, target, value, bool(met)))
    return bool(met)


def refusal(names: Iterable[str], path: Path = PAGE) -> str:
    """Why the rows of some validations could not be written, in a sentence; empty if they can."""
    grouped = {name for group in json.loads(path.read_text(encoding="utf-8")) for name in group["validations"]}
    if without := [name for name in names if name not in grouped]:
        return f'{", ".join(without)}: in no group of {path.name}: add the name to the "validations" of one'
    if not _commit():
        return "the commit that is measured is not known: run it in a git checkout"
    return ""


def write(rows: list[tuple[str, Record]], path: Path = PAGE) -> None:
    """Put rows in the place of those of the same case and quantity, or else at the end of their validation's group.

    Args:
        rows: the name of the validation, and what it measured.
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
    """Seven digits, and + where tracked files outside docs/ are not as committed; empty outside a git checkout."""

    def said(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        return ""
    changed = said("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs")
    return said("rev-parse", "--verify", "HEAD")[:7] + ("+" if changed else "")


def _machine() -> str:
    """The processor, as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
