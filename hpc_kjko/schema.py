"""The base of all sections of a case: strict types, no unknown keys, and error messages that give advice."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from hpc_kjko.errors import UserError, one_of

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

    def known(value: str) -> str:
        if value not in names:
            *others, last = (repr(name) for name in names)
            raise PydanticCustomError("among", f"should be {', '.join(others)} or {last}")
        return value

    return Annotated[str, AfterValidator(known)]


def _rows_as_tuples(value: Any) -> Any:
    """Convert a TOML array of arrays to a tuple of tuples."""
    if isinstance(value, list | tuple):
        return tuple(tuple(row) if isinstance(row, list) else row for row in value)
    return value


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
        raise UserError("\n".join(_sentence(error, model, where) for error in mistakes)) from None
    except (OverflowError, RecursionError, MemoryError):
        raise UserError(f"{where or 'the case'}: a number or a table in it is too large") from None


def _sentence(error: Any, model: type[Section], where: str) -> str:
    path = [where] if where else []
    path += [f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]]
    key = ".".join(path).replace(".[", "[") or "case"
    if error["type"] == "extra_forbidden":
        return unknown_key(key, _keys_at(model, error["loc"][:-1]))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("tuple", "array")
    message = message.replace("a valid ", "a ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "missing":
        return f"{key} is missing: this key is required"
    if error["type"] in ("value_error", "model_type"):
        return message if error["type"] == "value_error" else f"{key} must be a table of keys"
    if error["type"] == "int_type":
        message = "should be a whole number"
    given = repr(error["input"])
    given = given if len(given) < 60 else f"{given[:50]}…"
    return f"{key} = {given}: {'it ' if message.startswith(('should', 'must')) else ''}{message}"


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist. It names the most similar key that exists."""
    return f"{key} is not a known key: {one_of(key.rpartition('.')[2], known)}"


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
