"""What every section of a case has in common: strict types, no unknown keys, and errors that give advice."""

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

#: Sizes of the floating-point numbers in a case, other than 0.
SMALLEST, LARGEST = 1e-12, 1e12


def whole_number(value: Any) -> Any:
    """A float without a fraction, such as 1e6, as the integer that it is; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: Integers, which may be written as 1e6.
Whole = Annotated[int, BeforeValidator(whole_number)]
Count = Annotated[Whole, Field(ge=1, le=10**12)]
Cadence = Annotated[Whole, Field(ge=0, le=10**12)]
Dimension = Annotated[Whole, Field(ge=1, le=3)]
if TYPE_CHECKING:
    OneOrTwo = Literal[1, 2]
else:  # for a Literal True and 1.0 would do as well
    OneOrTwo = Annotated[Whole, Field(ge=1, le=2)]


def as_tuple(value: Any) -> Any:
    """TOML arrays become tuples (sections are immutable); a scalar becomes a tuple of one."""
    if isinstance(value, list | tuple):
        return tuple(as_tuple(entry) if isinstance(entry, list) else entry for entry in value)
    return (value,)


def among(names: Collection[str]) -> Any:
    """The type of a key whose value is one of some names; later ones are known too."""

    def known(value: str) -> str:
        if value not in names:
            *others, last = (repr(name) for name in names)
            raise PydanticCustomError("among", f"should be {', '.join(others)} or {last}")
        return value

    return Annotated[str, AfterValidator(known)]


def _rows_as_tuples(value: Any) -> Any:
    """A TOML array of arrays becomes a tuple of tuples."""
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
    """The floating-point numbers in a value of a key."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)


class Section(BaseModel):
    """One table of a case file: frozen, strict, finite numbers only, unknown keys are errors."""

    # A run starts sooner without validators of sections that no case has.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    #: Keys whose numbers are in units of their own.
    of_any_size: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*")
    @classmethod
    def _of_sensible_size(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers in normalised units are near 1: squares and ratios of others leave single precision."""
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
    """Build a section from a table.

    Args:
        model: the section's class.
        data: the table as TOML gives it.
        where: dotted name of the table, for messages ("" for a whole case).

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
        return f"{key} is missing: every case needs it"
    if error["type"] in ("value_error", "model_type"):
        return message if error["type"] == "value_error" else f"{key} must be a table of keys"
    if error["type"] == "int_type":
        message = "should be a whole number"
    given = repr(error["input"])
    given = given if len(given) < 60 else f"{given[:50]}…"
    return f"{key} = {given}: {'it ' if message.startswith(('should', 'must')) else ''}{message}"


def unknown_key(key: str, known: list[str]) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    return f"{key} is not a known key: {one_of(key.rpartition('.')[2], known)}"


def section_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation of a field allows, if it is one."""
    for kind in (annotation, *get_args(annotation)):
        if inspect.isclass(kind) and issubclass(kind, Section):
            return kind
    return None


def meaning(model: type[Section], name: str) -> str:
    """What a field is for: the first paragraph of the text below it."""
    return next(iter(explanation(model, name)), "")


def explanation(model: type[Section], name: str) -> list[str]:
    """The paragraphs of the text below a field, in the model or else in the nearest one that it comes from.

    The first says what the field is for, as `kjko cases` shows it. The others are for the documentation.
    """
    kinds = (kind for kind in model.__mro__ if issubclass(kind, Section))
    return next((found for kind in kinds if (found := _texts(kind).get(name))), [])


@functools.cache
def _texts(model: type[Section]) -> dict[str, list[str]]:
    """The texts below the fields of a class, by name: from its source, as only lists of keys want them."""
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
