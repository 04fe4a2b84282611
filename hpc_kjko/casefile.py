"""Case files as text and plain tables: what reads them needs neither the models of a case nor torch.

The models (``config``) check a case that is to be run. A run folder's own ``case.toml`` has passed that check, and has
every key that has an effect written out, so verbs that only look at a run read it here.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_kjko.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The name of the only species of a case that names none.
ONLY = "markers"


def parse(text: str) -> dict[str, Any]:
    """TOML text as nested tables."""
    return tomllib.loads(text)


def read(path: Path) -> dict[str, Any]:
    """A TOML file as nested tables.

    Raises:
        UserError: the file is missing, or it is not TOML in UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as failure:
        advice = ""
        if path.is_dir():
            advice = ": give the file, or 'kjko restart' a folder in which a run has begun"
        elif near := nearest(path.name, [other.name for other in path.parent.glob("*.toml")]):
            advice = f": did you mean {path.with_name(near)}?"
        raise UserError(f"{path}: cannot read this case file ({failure.strerror}){advice}") from None
    text = _decoded(path, raw).replace("\r\n", "\n")
    try:
        return parse(text)
    except (ValueError, RecursionError) as failure:
        raise UserError(f"{path}: not a TOML file: {failure}{_quotes(text, str(failure))}") from None


def _quotes(text: str, failure: str) -> str:
    """The advice for a word without quotes, where that is what TOML does not understand; else empty."""
    place = re.search(r"Invalid value \(at line (\d+)", failure)
    line = text.split("\n")[int(place[1]) - 1] if place else ""
    word = re.fullmatch(r"\s*([\w.-]+)\s*=\s*([A-Za-z_][\w.:-]*)\s*(#.*)?", line)
    if not word:
        return ""
    if word[2] in ("True", "False"):
        return f": write {word[1]} = {word[2].lower()}"
    return f': a text needs quotes, as in {word[1]} = "{word[2]}"'


def _decoded(path: Path, raw: bytes) -> str:
    """The text of a file in UTF-8, with or without the byte order mark that some editors put before it."""
    every_other = max(raw[::2].count(0), raw[1::2].count(0))  # as of mostly Latin letters in UTF-16
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or every_other > len(raw) // 4:
        raise UserError(f"{path}: is not UTF-8 text (it looks like UTF-16): save it as UTF-8")
    if b"\0" in raw:
        raise UserError(f"{path}: is not a text file: give a case in TOML")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = raw.count(b"\n", 0, failure.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text: save the file as UTF-8") from None


def differing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Sections and keys in which two cases, as nested tables, are not the same."""
    for section in sorted(first.keys() | second.keys()):
        ours, theirs = (table.get(section, {}) for table in (first, second))
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                yield section, key


class RunCase:
    """The case of a run folder, by ``section.key``.

    Args:
        path: the ``case.toml`` that the run wrote.

    Raises:
        UserError: here and in every method, naming the file, if it is damaged.
    """

    def __init__(self, path: Path):
        self.path, self.table = path, read(path)

    def value(self, key: str, default: Any = None) -> Any:
        """What the case holds there; ``default`` where it holds nothing."""
        *path, name = key.split(".")
        table: Any = self.table
        for part in path:
            table = table.get(part) if isinstance(table, dict) else None
        return table.get(name, default) if isinstance(table, dict) else default

    def number(self, key: str) -> float:
        """A number that every case has."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._damaged(key, "a number")
        return value

    def word(self, key: str) -> str:
        """A text that every case has."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self._damaged(key, "a text")
        return value

    @property
    def collision_strength(self) -> float:
        """κ; 0 without collisions, where the case has no such key."""
        if self._is_without_collisions:
            return 0.0
        if self.species and not self.collide_together:
            return max(self.number(f"species.{name}.collision_strength") for name in self.species)
        return self.number("physics.collision_strength")

    def strength_of(self, species: str) -> float:
        """κ of a species, or of all collisions where all species collide with all."""
        if self._is_without_collisions or self.collide_together:
            return self.collision_strength
        return self.number(f"species.{species}.collision_strength")

    @property
    def strength_words(self) -> str:
        """The collision strength with its symbol: "κ = 0.01", or "C = 1", the factor of Landau's operator."""
        symbol = "C" if self.collision_operator == "landau" else "κ"
        return f"{symbol} = {self.collision_strength:g}"

    @property
    def collision_method(self) -> str:
        """How collisions are made: "none" where there are none, whatever the case says."""
        return self.word("method.collision") if self.collision_strength else "none"

    @property
    def collide_together(self) -> bool:
        """Whether all species collide with all, and have no collisions of their own."""
        return bool(self.species) and self.value("physics.collision_operator") is not None

    @property
    def collision_operator(self) -> str:
        """What particles collide with; "bath" without collisions, where the case has no such key."""
        if self._is_without_collisions or (self.species and not self.collide_together):
            return "bath"
        return self.word("physics.collision_operator")

    @property
    def particle_count(self) -> int:
        """Number of particles of all species and ranks."""
        if self.species:
            return sum(int(self.number(f"species.{name}.count")) for name in self.species)
        return int(self.number("particles.count"))

    @property
    def species(self) -> list[str]:
        """The names of the species; none where the case names none."""
        table = self.table.get("species", {})
        return list(table) if isinstance(table, dict) else []

    @property
    def _is_without_collisions(self) -> bool:
        return self.value("method.collision") == "none"

    @property
    def dims(self) -> str:
        """Dimensions of the problem, as in "1D1V"."""
        return f"{self.number('problem.space_dims')}D{self.number('problem.velocity_dims')}V"

    @property
    def steps(self) -> int:
        """Number of steps from 0 to the end."""
        if not self.number("time.step") > 0:
            raise self._damaged("time.step", "a positive number")
        return round(self.number("time.end") / self.number("time.step"))

    def _damaged(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.path}: {key} must be {wanted}: put back the case.toml that the run wrote")
