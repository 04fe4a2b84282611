"""The base of all sections of a case: strict types, no unknown keys, and error messages that give advice."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from hpc_kjko.errors import UserError, did_you_mean, likely, listed, misspelt

#: The full names of all sections and keys of a case, for advice on a key in a wrong section. ``hpc_kjko.case.model``
#: adds them.
EVERY_KEY: set[str] = set()
#: The smallest and largest absolute value of a non-zero floating-point number in a case.
SMALLEST, LARGEST = 1e-12, 1e12


def whole_number(value: Any) -> Any:
    """Convert a float without a fraction, such as 1e6, to an integer; return any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: Integers. A case may write them as 1e6.
Whole = Annotated[int, BeforeValidator(whole_number)]
Count = Annotated[Whole, Field(ge=1, le=10**12)]
Cadence = Annotated[Whole, Field(ge=0, le=10**12)]
Dimension = Annotated[Whole, Field(ge=1, le=3)]
if TYPE_CHECKING:
    OneOrTwo = Literal[1, 2]
else:  # a Literal would also accept True and 1.0
    OneOrTwo = Annotated[Whole, Field(ge=1, le=2)]


def as_tuple(value: Any) -> Any:
    """Convert a TOML array to a tuple (sections are immutable), and a single value to a tuple of length one."""
    if isinstance(value, list | tuple):
        return tuple(as_tuple(entry) if isinstance(entry, list) else entry for entry in value)
    return (value,)


def among(names: Collection[str]) -> Any:
    """The type of a key whose value must be in ``names``. Names that are added to the collection later are valid
    too."""

    def known(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise PydanticCustomError("among", f"should be {listed([repr(name) for name in names], 'or')}")
        return value

    return Annotated[str, BeforeValidator(known)]


def _rows_as_tuples(value: Any) -> Any:
    """Convert a TOML array of arrays to a tuple of tuples."""
    if not (isinstance(value, list | tuple) and all(isinstance(row, list | tuple) for row in value)):
        raise PydanticCustomError("matrix", "should be an array of rows, as in [[1.0, 0.0], [0.0, 1.0]]")
    return tuple(map(tuple, value))


def one_or_each(count: int, of: str) -> str:
    """Advice on the number of entries of an array that also takes one number for all."""
    return "give one number" if count == 1 else f"give one number, or one for each of the {count} {of} dimensions"


Lengths = Annotated[tuple[Positive, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Widths = Annotated[tuple[Annotated[float, Field(ge=1e-6)], ...], BeforeValidator(as_tuple), Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(as_tuple)]
Vector = Annotated[tuple[float, ...], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Matrix = Annotated[tuple[tuple[float, ...], ...], BeforeValidator(_rows_as_tuples)]


def _numbers(value: Any) -> Iterator[float]:
    """Yield the floating-point numbers in the value of a key."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)


class Section(BaseModel):
    """One table of a case file. It is immutable and strict: unknown keys, NaN and infinity are errors."""

    # A run starts faster if validators are built only for the sections that its case has.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    #: Keys with numbers in physical units, which may have any size.
    of_any_size: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*")
    @classmethod
    def _of_sensible_size(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse very small and very large numbers. In normalised units values are near 1; others overflow float32."""
        if info.field_name in cls.of_any_size:
            return value
        for number in _numbers(value):
            if number and not SMALLEST <= abs(number) <= LARGEST:
                raise PydanticCustomError(
                    "size",
                    f"should be between {SMALLEST:g} and {LARGEST:g} in size: units are normalised, ω_p = 1 and n̄ = 1",
                )
        return value


def validate(model: type[Section], data: dict[str, Any], where: str = "") -> Any:
    """Build a section from a table and check it.

    Args:
        model: the class of the section.
        data: the table that the TOML parser returned.
        where: the dotted name of the table for messages; "" for the whole case.

    Returns:
        An instance of ``model``.

    Raises:
        UserError: one sentence per mistake, each naming the key and what would be right.
    """
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        mistakes = [error for error in failure.errors() if error["type"] != "default_factory_not_called"]
        raise UserError("\n".join(_sentence(error, model, where, data) for error in mistakes)) from None
    except (OverflowError, RecursionError, MemoryError):
        raise UserError(f"{where or 'the case'}: a number or a table in it is too large") from None


#: Words of pydantic, and those for a reader of TOML.
_WORDS = {
    "a valid ": "a ",
    "a tuple": "an array",
    "tuple": "array",
    "a boolean": "true or false",
    "a string": "a text in quotes",
    "a dictionary": "a table",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


def _sentence(error: Any, model: type[Section], where: str, data: Any) -> str:
    path = [where] if where else []
    for part in error["loc"]:
        is_entry = isinstance(part, int)
        if not is_entry:
            path.append(str(part))
        elif isinstance(data, list | tuple):  # otherwise a single value, of which as_tuple has made an array
            path.append(f"[{part}]")
        data = _entry(data, part)
    key = ".".join(path).replace(".[", "[") or "case"
    if error["type"] == "extra_forbidden":
        return unknown_key(key, _keys_at(model, error["loc"][:-1]))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    message = message[:1].lower() + message[1:]
    if error["type"] == "missing":
        return f"{key} is missing: this key is required"
    if error["type"] in ("value_error", "model_type"):
        return message if error["type"] == "value_error" else f"{key} must be a table of keys"
    if error["type"] == "int_type":
        message = "should be a whole number"
    given = repr(error["input"])
    given = given.lower() if isinstance(error["input"], bool) else given
    given = given if len(given) < 60 else f"{given[:50]}…"
    return f"{key} = {given}: {'it ' if message.startswith(('should', 'must')) else ''}{message}"


def _entry(data: Any, part: int | str) -> Any:
    """An entry of a table, of an array, or of a section; None if there is none."""
    try:
        return getattr(data, str(part), None) if isinstance(data, Section) else data[part]
    except (KeyError, IndexError, TypeError):
        return None


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist. It names the keys that may have been meant.

    Args:
        key: the full name, with that of its section.
        known: the keys of the section.
    """
    section, _, name = key.rpartition(".")
    others = [other for other in EVERY_KEY if "." in other and other.rpartition(".")[0] != section]
    near = misspelt(name, {other.rpartition(".")[2] for other in others})
    meant = (
        misspelt(name, known)
        or [own for own in known if len(name) > 2 and name in own] + keys_named(name, others)
        or likely(name, known)
        or ([f"[{name}]"] if name in EVERY_KEY else [])
        or [other for found in near for other in keys_named(found, others)]
    )
    advice = did_you_mean(meant) if meant else f"it may be one of {', '.join(known)}"
    return f"{key} is not a known key: {advice}"


def keys_named(name: str, keys: Iterable[str] = EVERY_KEY) -> list[str]:
    """The full names of keys with this last name. Those in an inner table are left out if there are others."""
    found = sorted(key for key in keys if "." in key and key.rpartition(".")[2] == name)
    return [key for key in found if key.count(".") == min(other.count(".") for other in found)]


def key_of_others(key: str, setting: str, kind: str, kinds: Mapping[str, type[Section]]) -> str:
    """The message for a key that only other kinds of a section have; empty if no kind has it.

    Args:
        key: the full name of the key.
        setting: the full name of the key that chooses the kind.
        kind: its value.
        kinds: the section of each kind.
    """
    name = key.rpartition(".")[2]
    having = [f'"{other}"' for other, model in kinds.items() if name in model.model_fields]
    if not having:
        return ""
    is_common = len(having) > len(kinds) // 2
    advice = "leave it out" if is_common else f"it is a key of {listed(having, 'and')}"
    return f'{key} is not a key of {setting} = "{kind}": {advice}'


def keys_of(model: type[Section], where: str = "") -> Iterator[str]:
    """Yield the full names of all keys of a section, and of the sections in it."""
    for name, field in model.model_fields.items():
        yield f"{where}{name}"
        if inner := section_of(field.annotation):
            is_one_of_several = get_origin(field.annotation) is dict
            yield from keys_of(inner, f"{where}{name}.NAME." if is_one_of_several else f"{where}{name}.")


def section_of(annotation: Any) -> type[Section] | None:
    """The section class in the type annotation of a field; None if the annotation has none."""
    for kind in (annotation, *get_args(annotation)):
        if inspect.isclass(kind) and issubclass(kind, Section):
            return kind
    return None


def meaning(model: type[Section], name: str) -> str:
    """The meaning of a field: the first paragraph of the docstring below it."""
    return next(iter(explanation(model, name)), "")


def explanation(model: type[Section], name: str) -> list[str]:
    """The paragraphs of the docstring below a field, from the model or from the nearest base class that has the field.

    The first paragraph says what the field means; `kjko cases` shows it. The other paragraphs appear only in the
    documentation.
    """
    kinds = (kind for kind in model.__mro__ if issubclass(kind, Section))
    return next((found for kind in kinds if (found := _texts(kind).get(name))), [])


@functools.cache
def _texts(model: type[Section]) -> dict[str, list[str]]:
    """The docstrings below the fields of a class, by field name. They are read from the source code when needed."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    texts = {}
    for field, below in itertools.pairwise(cast("ast.ClassDef", definition).body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            paragraphs = inspect.cleandoc(str(below.value.value)).split("\n\n")
            texts[ast.unparse(field.target)] = [" ".join(part.split()) for part in paragraphs]
    return texts


def _keys_at(model: type[Section], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        sections = [kind for kind in (annotation, *get_args(annotation)) if inspect.isclass(kind)]
        sections = [kind for kind in sections if issubclass(kind, BaseModel)]
        if not sections:
            break
        (model, *_) = cast("list[type[Section]]", sections)
    return [field.alias or name for name, field in model.model_fields.items()]
