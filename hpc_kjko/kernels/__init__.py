"""Native kernels, and the choice between them and their torch twins.

The compiled module `_kernels` is optional. An installation without a C++ compiler lacks it, and torch then does
everything. The environment variable KJKO_KERNELS selects the kernels, and is read at each call. If it is not set,
native kernels are used if there are any. `torch` never uses them. `native` always uses them, and is an error if there
are none. The native kernels for a GPU are those of `cuda`, which need CuPy but no compiled module.
"""

import importlib
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from hpc_kjko.kernels.constants import MOST_INPUTS, MOST_VELOCITY_DIMS, WIDTHS

_VARIABLE = "KJKO_KERNELS"
_NOTE = Path(__file__).with_name("_not_built.txt")  # setup.py writes it if the build failed


class Backend(Enum):
    """Which kernels are used."""

    NATIVE = "native"
    TORCH = "torch"


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and the reason why it is missing."""
    name = f"{__name__}._kernels"
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        if _NOTE.is_file():
            return None, _NOTE.read_text(encoding="utf-8").strip()
        return None, "not built for this Python; pip install builds it"
    except ImportError as error:  # the file exists but does not load, for example because a shared library is missing
        return None, f"it does not load: {error}"


_kernels, _why_not = _load()


def available() -> bool:
    """Whether the compiled module is installed and loads."""
    return _kernels is not None


def backend() -> Backend:
    """The backend in use: that of KJKO_KERNELS if it is set, otherwise native if available."""
    if "KJKO_ISA=" in _why_not:
        raise ValueError(_why_not.removeprefix("it does not load: "))
    wanted = _wanted()
    if wanted is None:
        return Backend.NATIVE if available() else Backend.TORCH
    if wanted is Backend.NATIVE:
        require()
    return wanted


def has_network(widths: Sequence[int]) -> bool:
    """Whether a network of these widths (inputs, hidden layers, dv) has the kernels that are compiled for each width:
    those of the objective, of the moments and, on a GPU, of the field.
    """
    if len(widths) != 4:
        return False
    inputs, first, second, dv = widths
    return first == second and first in WIDTHS and inputs <= MOST_INPUTS and dv <= MOST_VELOCITY_DIMS


def cuda_wanted(possible: bool) -> bool:
    """Whether the kernels for a GPU are used, if ``possible``.

    Raises:
        ImportError: they are not possible, but KJKO_KERNELS asks for them.
    """
    wanted = _wanted()
    if wanted is Backend.NATIVE and not possible:
        raise ImportError(
            f"The native kernels were asked for, but there is no CuPy to compile those of the GPU: install "
            f"'hpc_kjko[cuda13]' or [cuda12], or unset {_VARIABLE} to run in torch.",
            name="cupy",
        )
    return possible and wanted is not Backend.TORCH


def _wanted() -> Backend | None:
    """The value of KJKO_KERNELS."""
    wanted = os.environ.get(_VARIABLE)
    if wanted and wanted not in {b.value for b in Backend}:
        raise ValueError(f"{_VARIABLE}={wanted!r} is not known: use 'native' or 'torch', or unset it.")
    return Backend(wanted) if wanted else None


def require() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: there is none; the message says how to get it.
    """
    if _kernels is None:
        raise ImportError(
            f"The native kernels were asked for, but hpc_kjko has no native module: {_why_not}. "
            f"Install a C++ compiler and then the package again, or unset {_VARIABLE} to run in torch.",
            name=f"{__name__}._kernels",
        )
    return _kernels


def build_info() -> dict[str, Any]:
    """How the compiled module was built, and the instruction sets of this CPU.

    Raises:
        ImportError: there is no compiled module.
    """
    return require().build_info()


def describe() -> str:
    """A short text for logs: which kernels run and, without native ones, why."""
    if backend() is Backend.NATIVE:
        info = build_info()
        threads = info["max_threads"]
        openmp = f"OpenMP {threads} thread{'s' * (threads != 1)}" if info["openmp"] else "no OpenMP"
        return f"native kernels ({info['isa']}, {openmp})"
    if available():
        return f"pure-Python fallback (chosen by {_VARIABLE}=torch)"
    return f"pure-Python fallback (no native module: {_why_not})"
