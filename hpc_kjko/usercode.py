"""Python of the user's own, named in a case file as "module:name"."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hpc_kjko.errors import SolverFailure, UserError


def is_reference(text: str) -> bool:
    """Whether a case means code of the user's by this, and nothing built in."""
    return ":" in text


#: Files of the modules that hold the user's code.
_FILES: set[str] = set()


@functools.cache
def load(reference: str, key: str) -> Any:
    """The object that "module:name" refers to, from the Python path or else from the current folder.

    Args:
        reference: ``"module:name"``; the module may be dotted.
        key: the key of the case that holds it, for messages.

    Raises:
        UserError: the reference is not of that form, or its module or name cannot be had.
    """
    given = f'{key} = "{reference}"'
    module_name, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(f'{given}: write code of your own as "module:name"')
    _add_current_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as failure:
        # The module may be there and import, in its turn, one that is not.
        if f"{module_name}.".startswith(f"{failure.name}."):
            raise UserError(
                f"{given}: there is no module {failure.name}, neither on the Python path nor in the current folder"
            ) from None
        raise UserError(f"{given}: importing {module_name} failed ({_in_one_line(failure)})") from failure
    except (Exception, SystemExit) as failure:
        raise UserError(f"{given}: importing {module_name} failed ({_in_one_line(failure)})") from failure
    _FILES.add(str(getattr(module, "__file__", None)))
    if not hasattr(module, name):
        raise UserError(f"{given}: the module {module_name} has no {name}")
    return getattr(module, name)


def call(function: Callable[..., Any], *arguments: Any, given: str) -> Any:
    """``function(*arguments)``.

    Args:
        given: which key holds the function and what it says, for messages.

    Raises:
        UserError: the function raised; the message says where.
        SolverFailure: the function's own.
    """
    try:
        return function(*arguments)
    except SolverFailure:
        raise
    except Exception as failure:
        frames = traceback.extract_tb(failure.__traceback__)[1:2]  # the first is the call above
        where = "".join(f", in line {frame.lineno} of {os.path.basename(frame.filename)}" for frame in frames)
        raise UserError(f"{given}: it raised {_in_one_line(failure)}{where}") from failure


def blame(failure: BaseException) -> str | None:
    """What to say of an exception that came through code of the user's; None if it did not."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename in _FILES]
    if not frames:
        return None
    return f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}: raised {_in_one_line(failure)}"


def _add_current_folder() -> None:
    """Behind all other folders: a file that lies about must not hide an installed module."""
    importlib.invalidate_caches()
    try:
        here = os.getcwd()
    except OSError:
        return
    if here not in sys.path:
        sys.path.append(here)


def _in_one_line(failure: BaseException) -> str:
    text = " ".join(f"{type(failure).__name__}: {failure}".split()).rstrip(":")
    return text if len(text) <= 200 else f"{text[:199]}…"
