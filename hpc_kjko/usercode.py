"""Python of the user's own, named in a case file as "module:name"."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import site
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_kjko.errors import SolverFailure, UserError, nearest, one_of


def is_reference(text: str) -> bool:
    """Whether a case means code of the user's by this, and nothing built in."""
    return ":" in text


#: Files of the modules that hold the user's code.
_FILES: set[str] = set()
#: Where modules are looked for at last: beside the case, or where a run has kept them.
_LAST: list[str] = []
#: The longest text of an exception that is shown whole.
_LONGEST = 400


@functools.cache
def load(reference: str, key: str) -> Any:
    """The object that "module:name" refers to, from the Python path, the current folder, or that of :func:`look_in`.

    Args:
        reference: ``"module:name"``; the module may be dotted.
        key: the key of the case that holds it, for messages.

    Raises:
        UserError: the reference is not of that form, or its module or name cannot be had.
    """
    given = f'{key} = "{reference}"'
    module_name, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise UserError(
            f'{given}: write code of your own as "module:name", such as "mine:{name}" for {name} in the file mine.py'
        )
    folders = _add_folders()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as failure:
        # The module may be there and import, in its turn, one that is not.
        if f"{module_name}.".startswith(f"{failure.name}."):
            places = ["on the Python path", "in the current folder", *(f"in {folder}" for folder in folders[1:])]
            missing = f"{given}: there is no module {failure.name}, neither {' nor '.join(places)}"
            raise UserError(f"{missing}{_advice_on(module_name, name, folders)}") from None
        raise UserError(_failed_import(given, module_name, failure)) from failure
    except (Exception, SystemExit) as failure:
        raise UserError(_failed_import(given, module_name, failure)) from failure
    _FILES.add(str(getattr(module, "__file__", None)))
    if not hasattr(module, name):
        where = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
        own = [known for known, what in vars(module).items() if getattr(what, "__module__", None) == module_name]
        advice = f": {one_of(name, own)}" if own else ""
        raise UserError(f"{given}: the module {module_name} has no {name}{where}{advice}")
    return getattr(module, name)


def _advice_on(module_name: str, name: str, folders: list[str]) -> str:
    """What to write in place of a module that is not there; empty if nothing is known."""
    if module_name.endswith(".py"):
        return f': leave out .py, as in "{module_name.removesuffix(".py")}:{name}"'
    near = nearest(module_name, [module.name for module in pkgutil.iter_modules(folders)])
    return f": did you mean {near}?" if near else ""


def _failed_import(given: str, module_name: str, failure: BaseException) -> str:
    """The sentence for a module that raises when it is imported."""
    what, where = _in_one_line(failure), _users_line(failure)
    if isinstance(failure, SyntaxError) and failure.filename:
        what, where = f"SyntaxError: {failure.msg}", f", in line {failure.lineno} of {_base(failure.filename)}"
    return f"{given}: importing {module_name} failed: {what}{where}"


def other_signature(function: Callable[..., Any], count: int) -> str:
    """The arguments of a function, as in "(x)", if it cannot be called with so many; empty if it can."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # one in C
        return ""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return str(signature)
    return ""


#: What torch says of a tensor that was given to a function of numpy or math.
_OTHER_MATHEMATICS = ("numpy() on Tensor", "tensor to numpy", "'numpy.ndarray' and 'Tensor'", "to Python scalars")


def call(function: Callable[..., Any], *arguments: Any, given: str) -> Any:
    """``function(*arguments)``.

    Args:
        given: which key holds the function and what it says, for messages.

    Raises:
        UserError: the function raised; the message says where in the user's code. What is one already stays as it is.
        SolverFailure: the function's own.
    """
    try:
        return function(*arguments)
    except (SolverFailure, UserError):
        raise
    except (Exception, SystemExit) as failure:  # one rank must not leave alone
        what = f"it raised {_in_one_line(failure)}"
        if any(sign in str(failure) for sign in _OTHER_MATHEMATICS):
            mixes = "it mixes torch tensors with numpy, math or plain numbers: use torch.cos, torch.exp and so on"
            what = f"{mixes} ({_in_one_line(failure)})"
        raise UserError(f"{given}: {what}{_users_line(failure)}") from failure


def blame(failure: BaseException) -> str | None:
    """What to say of an exception that came through code of the user's; None if it did not."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename in _FILES]
    if not frames:
        return None
    return f"{_base(frames[-1].filename)}, line {frames[-1].lineno}: raised {_in_one_line(failure)}"


def _users_line(failure: BaseException) -> str:
    """The last line of the user's that an exception went through, to end a sentence; empty if it went through none."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if _is_users(Path(frame.filename))]
    return f", in line {frames[-1].lineno} of {_base(frames[-1].filename)}" if frames else ""


def _is_users(file: Path) -> bool:
    """Whether a file of a traceback is neither of this package, nor of Python, nor of what is installed."""
    others = [Path(__file__).parent, *_installed()]
    return not (file.name.startswith("<") or any(folder in file.resolve().parents for folder in others))


def _base(file: str) -> str:
    return os.path.basename(file)


def look_in(folder: Path) -> None:
    """Look for modules in a folder too, at last, in place of one that was given before.

    Args:
        folder: where the case lies, or where a run keeps its modules; it need not exist.
    """
    if _LAST == [str(folder.resolve())]:
        return
    for before in _LAST:
        if before in sys.path:
            sys.path.remove(before)
        # another case may have modules of the same names, and they are others
        for name, module in list(sys.modules.items()):
            if os.path.dirname(getattr(module, "__file__", None) or "") == before:
                del sys.modules[name]
    load.cache_clear()
    _LAST[:] = [str(folder.resolve())] if folder.is_dir() else []


def files_of(table: Any) -> dict[str, Path]:
    """The files that the modules need which a case names, for a copy of them to be kept.

    These are the module's file, or all Python files of its package, and whatever lies beside it and is imported by
    them, in any of their functions. Installed packages and data files are left out, and so are cells of a notebook.

    Args:
        table: the case as nested tables; its modules have been imported.

    Returns:
        The files, by their path below the folder that holds the module.
    """
    found: dict[str, Path] = {}
    for module in _modules_in(table):
        beside, waiting, seen = _source_of(module)[0], [module], {"hpc_kjko"}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            folder, files = _source_of(name)
            if folder is None or folder != beside:
                continue
            for file in files:
                found[file.relative_to(folder).as_posix()] = file
                waiting += _imported_by(file)
    return found


def _modules_in(table: Any) -> set[str]:
    """First names of the modules in a case's references to code of the user's that has been imported."""
    if isinstance(table, dict):
        return set().union(*map(_modules_in, table.values()))
    if isinstance(table, list | tuple):
        return set().union(*map(_modules_in, table))
    module = table.partition(":")[0] if isinstance(table, str) and is_reference(table) else ""
    return {module.partition(".")[0]} if module in sys.modules else set()


def _source_of(name: str) -> tuple[Path | None, list[Path]]:
    """The folder that holds a module or a package, by its first name, and its files in it.

    There is no folder of what is installed, is built into Python, or was typed into a notebook.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # such as __main__
        spec = None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None, []
    packages = [Path(path).resolve() for path in spec.submodule_search_locations or ()]
    files = [file for package in packages for file in sorted(package.rglob("*.py"))]
    files = files or [Path(spec.origin or "").resolve()]
    folder = packages[0].parent if packages else files[0].parent
    is_installed = any(place in (folder, *folder.parents) for place in _installed())
    return (None, []) if is_installed else (folder, files)


def _installed() -> set[Path]:
    """Folders of Python's own modules and of installed ones."""
    places = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return {Path(place).resolve() for place in (*places, *site.getsitepackages(), site.getusersitepackages())}


def _imported_by(file: Path) -> set[str]:
    """First names of the modules that a Python file imports, anywhere in it; none of another kind of file."""
    if file.suffix != ".py":
        return set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a file of the package that nobody imports
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def _add_folders() -> list[str]:
    """Behind all other folders: a file that lies about must not hide an installed module. The current one first."""
    importlib.invalidate_caches()
    folders = list(_LAST)
    with contextlib.suppress(OSError):  # the current folder may be gone
        folders = list(dict.fromkeys([os.getcwd(), *_LAST]))
    sys.path += [folder for folder in folders if folder not in sys.path]
    return folders


def _in_one_line(failure: BaseException) -> str:
    text = f"{type(failure).__name__}: {failure}".rstrip(": ")
    return textwrap.shorten(text, _LONGEST, placeholder=" …")
