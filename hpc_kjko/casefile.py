"""Case files as text and plain tables. This module needs neither the pydantic models of a case nor torch.

The models in ``hpc_kjko.case.config`` check a case before it is run. The ``case.toml`` in a run folder has passed that
check and contains all keys that have an effect. So commands that only read a run use this module.
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

#: Number of characters of a line that are shown in a message.
_SHOWN = 80
#: The name of the species in a case without ``[species]``.
ONLY = "markers"


def parse(text: str) -> dict[str, Any]:
    """Parse TOML text into nested tables.

    Raises:
        ValueError: the text is not TOML.
    """
    return tomllib.loads(text)


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file into nested tables.

    Raises:
        UserError: the file is missing, or it is not TOML in UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as failure:
        advice = ""
        if path.is_dir():
            advice = ": give the case file, or use 'kjko restart' for a folder in which a run has begun"
        elif near := nearest(path.name, [other.name for other in path.parent.glob("*.toml")]):
            advice = f": did you mean {path.with_name(near)}?"
        raise UserError(f"{path}: cannot read this case file ({failure.strerror}){advice}") from None
    text = _decoded(path, raw).replace("\r\n", "\n")
    try:
        return parse(text)
    except (ValueError, RecursionError) as failure:
        raise UserError(f"{path}: not a TOML file: {failure}{_line(text, str(failure))}") from None


def _line(text: str, failure: str) -> str:
    """The line of a TOML error, and advice if it has a text without quotes; empty if the error names no line."""
    place = re.search(r"\(at line (\d+)", failure)
    if not place:
        return ""
    line = text.split("\n")[int(place[1]) - 1]
    if not line.strip():
        return ""
    return f': "{_shortened(line.strip())}"{_quotes(line) if "Invalid value" in failure else ""}'


def _shortened(line: str) -> str:
    """A line without characters that a terminal cannot show. A long line ends in dots."""
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _quotes(line: str) -> str:
    """Advice if the value in a line is a text without quotes; empty for other values."""
    word = re.fullmatch(r"\s*([\w.-]+)\s*=\s*([A-Za-z_][\w.:-]*)\s*(#.*)?", line)
    if not word:
        return ""
    if word[2] in ("True", "False"):
        return f": write {word[1]} = {word[2].lower()}"
    return f': put the text in quotes, as in {word[1]} = "{word[2]}"'


def _decoded(path: Path, raw: bytes) -> str:
    """The text of a UTF-8 file. A byte order mark, which some editors write at the beginning, is removed."""
    # UTF-16 text in Latin letters has a zero in every second byte
    every_other = max(raw[::2].count(0), raw[1::2].count(0))
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or every_other > len(raw) // 4:
        raise UserError(f"{path}: is not UTF-8 text (it looks like UTF-16): save the file as UTF-8")
    if b"\0" in raw:
        raise UserError(f"{path}: is not a text file: give a case in TOML")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = raw.count(b"\n", 0, failure.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text: save the file as UTF-8") from None


def differing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the section and the key of every value that differs between two cases (nested tables)."""
    for section in sorted(first.keys() | second.keys()):
        ours, theirs = (table.get(section, {}) for table in (first, second))
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                yield section, key


class RunCase:
    """The case of a run folder. Values are found by their ``section.key``.

    Args:
        path: the ``case.toml`` that the run wrote.

    Raises:
        UserError: the file is damaged. The constructor and every method raise it, and the message names the file.
    """

    def __init__(self, path: Path):
        self.path, self.table = path, read(path)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default`` if the case does not have the key."""
        *path, name = key.split(".")
        table: Any = self.table
        for part in path:
            table = table.get(part) if isinstance(table, dict) else None
        return table.get(name, default) if isinstance(table, dict) else default

    def number(self, key: str) -> float:
        """The value of a key that every case has and that is a number."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._damaged(key, "a number")
        return value

    def word(self, key: str) -> str:
        """The value of a key that every case has and that is a text."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self._damaged(key, "a text")
        return value

    @property
    def collision_strength(self) -> float:
        """κ, in ω_p (the largest one of several species); 0 without collisions."""
        if self._is_without_collisions:
            return 0.0
        if self.species and not self.collide_together:
            return max(self.number(f"species.{name}.collision_strength") for name in self.species)
        return self.number("physics.collision_strength")

    def strength_of(self, species: str) -> float:
        """κ of a species. If all species collide with each other, κ of all collisions."""
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
        """The collision method. It is "none" without collisions, even if the case names a method."""
        return self.word("method.collision") if self.collision_strength else "none"

    @property
    def collide_together(self) -> bool:
        """Whether one operator acts between all species. The species then have no collision keys of their own."""
        return bool(self.species) and self.value("physics.collision_operator") is not None

    @property
    def collision_operator(self) -> str:
        """The name of the collision operator; "bath" if there are no collisions or if each species has its own."""
        if self._is_without_collisions or (self.species and not self.collide_together):
            return "bath"
        return self.word("physics.collision_operator")

    @property
    def particle_count(self) -> int:
        """Number of particles of all species on all ranks."""
        if self.species:
            return sum(int(self.number(f"species.{name}.count")) for name in self.species)
        return int(self.number("particles.count"))

    @property
    def species(self) -> list[str]:
        """The names of the species; empty for a case without ``[species]``."""
        table = self.table.get("species", {})
        return list(table) if isinstance(table, dict) else []

    @property
    def _is_without_collisions(self) -> bool:
        return self.value("method.collision") == "none"

    @property
    def dims(self) -> str:
        """Numbers of space and velocity dimensions, for example "1D1V"."""
        return f"{self.number('problem.space_dims')}D{self.number('problem.velocity_dims')}V"

    @property
    def box_dims(self) -> int:
        """Number of space dimensions of the periodic box; 0 in unbounded space."""
        return 0 if self.value("problem.length") is None else int(self.number("problem.space_dims"))

    @property
    def steps(self) -> int:
        """Number of time steps from t = 0 to ``time.end``."""
        if not self.number("time.step") > 0:
            raise self._damaged("time.step", "a positive number")
        return round(self.number("time.end") / self.number("time.step"))

    def _damaged(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.path}: {key} must be {wanted}: restore the case.toml that the run wrote")
