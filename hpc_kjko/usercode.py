"""Functions and classes in the user's own Python files, named in a case as "module:name"."""

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
    """Whether the value of a key names the user's own code, and not a built-in choice."""
    return ":" in text


#: Files of the modules that hold the user's code.
_FILES: set[str] = set()
#: The folder that is searched last for modules: that of the case, or the one in which a run keeps its modules.
_LAST: list[str] = []
#: Texts of exceptions that are longer than this are shortened.
_LONGEST = 400


@functools.cache
def load(reference: str, key: str) -> Any:
    """Import the object that "module:name" refers to.

    The module is searched on the Python path, in the current folder, and in the folder of :func:`look_in`.

    Args:
        reference: ``"module:name"``; the module may be dotted.
        key: the key of the case with this value, for messages.

    Returns:
        The object, usually a function or a class.

    Raises:
        UserError: the reference does not have that form, or the module or the name cannot be imported.
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
        # The module itself may exist but import a module that does not exist.
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
    """Advice for a module that does not exist; empty if there is none."""
    if module_name.endswith(".py"):
        return f': leave out .py, as in "{module_name.removesuffix(".py")}:{name}"'
    near = nearest(module_name, [module.name for module in pkgutil.iter_modules(folders)])
    return f": did you mean {near}?" if near else ""


def _failed_import(given: str, module_name: str, failure: BaseException) -> str:
    """The message for a module that raises an exception when it is imported."""
    what, where = _in_one_line(failure), _users_line(failure)
    if isinstance(failure, SyntaxError) and failure.filename:
        what, where = f"SyntaxError: {failure.msg}", f", in line {failure.lineno} of {_base(failure.filename)}"
    return f"{given}: importing {module_name} failed: {what}{where}"


def other_signature(function: Callable[..., Any], count: int) -> str:
    """The signature of a function, such as "(x)", if it cannot be called with ``count`` arguments; else empty."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C has no signature
        return ""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return str(signature)
    return ""


#: Parts of torch's messages when a numpy or math function receives a tensor.
_OTHER_MATHEMATICS = ("numpy() on Tensor", "tensor to numpy", "'numpy.ndarray' and 'Tensor'", "to Python scalars")


def call(function: Callable[..., Any], *arguments: Any, given: str) -> Any:
    """Call ``function(*arguments)`` of the user and turn its exceptions into messages.

    Args:
        given: the key and its value, for messages.

    Returns:
        What the function returned.

    Raises:
        UserError: the function raised an exception. The message says where in the user's code. A UserError that the
            function raised itself is passed on.
        SolverFailure: the function raised it.
    """
    try:
        return function(*arguments)
    except (SolverFailure, UserError):
        raise
    except (Exception, SystemExit) as failure:  # a rank must not leave without the others
        what = f"it raised {_in_one_line(failure)}"
        if any(sign in str(failure) for sign in _OTHER_MATHEMATICS):
            mixes = "it mixes torch tensors with numpy, math or plain numbers: use torch.cos, torch.exp and so on"
            what = f"{mixes} ({_in_one_line(failure)})"
        raise UserError(f"{given}: {what}{_users_line(failure)}") from failure


def blame(failure: BaseException) -> str | None:
    """The message for an exception that was raised in the user's code; None if it was raised elsewhere."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename in _FILES]
    if not frames:
        return None
    return f"{_base(frames[-1].filename)}, line {frames[-1].lineno}: raised {_in_one_line(failure)}"


def _users_line(failure: BaseException) -> str:
    """The user's code line that raised the exception, as the end of a sentence; empty if it was raised elsewhere."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if _is_users(Path(frame.filename))]
    return f", in line {frames[-1].lineno} of {_base(frames[-1].filename)}" if frames else ""


def _is_users(file: Path) -> bool:
    """Whether a file is the user's own: not of this package, of Python, or of an installed package."""
    others = [Path(__file__).parent, *_installed()]
    return not (file.name.startswith("<") or any(folder in file.resolve().parents for folder in others))


def _base(file: str) -> str:
    return os.path.basename(file)


def look_in(folder: Path) -> None:
    """Search this folder last for modules. It replaces the folder of an earlier call.

    Args:
        folder: the folder of the case, or the one in which a run keeps its modules. It need not exist.
    """
    if _LAST == [str(folder.resolve())]:
        return
    for before in _LAST:
        if before in sys.path:
            sys.path.remove(before)
        # the new folder may have other modules with the same names
        for name, module in list(sys.modules.items()):
            if os.path.dirname(getattr(module, "__file__", None) or "") == before:
                del sys.modules[name]
    load.cache_clear()
    _LAST[:] = [str(folder.resolve())] if folder.is_dir() else []


def files_of(table: Any) -> dict[str, Path]:
    """The source files that a case's own modules need, so that a run can keep copies of them.

    For each module these are its file, or all Python files of its package, and every file beside it that they import.
    Installed packages, data files and notebook cells are not included.

    Args:
        table: the case as nested tables. Its modules must have been imported.

    Returns:
        The files, by their path relative to the folder of the module.
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
    """Top-level names of the imported user modules to which the values of a case refer."""
    if isinstance(table, dict):
        return set().union(*map(_modules_in, table.values()))
    if isinstance(table, list | tuple):
        return set().union(*map(_modules_in, table))
    module = table.partition(":")[0] if isinstance(table, str) and is_reference(table) else ""
    return {module.partition(".")[0]} if module in sys.modules else set()


def _source_of(name: str) -> tuple[Path | None, list[Path]]:
    """The folder that contains a module or package, and the files of that module or package.

    The folder is None for installed and built-in modules, and for code that was typed into a notebook.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # for example for __main__
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
    """Folders of Python's standard library and of installed packages."""
    places = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return {Path(place).resolve() for place in (*places, *site.getsitepackages(), site.getusersitepackages())}


def _imported_by(file: Path) -> set[str]:
    """Top-level names of all modules that a Python file imports; empty for other files."""
    if file.suffix != ".py":
        return set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # nobody imports such a file
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def _add_folders() -> list[str]:
    """Append the current folder and that of the case to the Python path. So their files never hide installed
    modules."""
    importlib.invalidate_caches()
    folders = list(_LAST)
    with contextlib.suppress(OSError):  # the current folder may have been deleted
        folders = list(dict.fromkeys([os.getcwd(), *_LAST]))
    sys.path += [folder for folder in folders if folder not in sys.path]
    return folders


def _in_one_line(failure: BaseException) -> str:
    text = f"{type(failure).__name__}: {failure}".rstrip(": ")
    return textwrap.shorten(text, _LONGEST, placeholder=" …")
