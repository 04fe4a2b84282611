"""Kernels of GPUs: whether they are taken, how they are compiled, and how one is launched in torch's stream.

Their texts are the headers and the `*.cu` beside this file; CuPy compiles them with NVRTC when they are first launched,
so no nvcc is needed. What they do with torch's tensors is in `network` and `particles`, which take tensors on the CPU
through the same arguments and the same text in the native module, thread after thread: for tests.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.kernels import cuda_wanted

#: Where `math` and `cuda` are, from which files are named.
FOLDER = Path(__file__).parents[1]


@functools.cache
def available() -> bool:
    """Whether CuPy is installed and sees a GPU."""
    return torch.cuda.is_available() and importlib.util.find_spec("cupy") is not None


def take(*tensors: torch.Tensor) -> bool:
    """Whether these are on a GPU and kernels for it are in use: unless KJKO_KERNELS=torch, where CuPy is installed.

    Raises:
        ImportError: KJKO_KERNELS=native asks for them, and there is no CuPy.
    """
    return all(tensor.is_cuda for tensor in tensors) and cuda_wanted(available())


def describe() -> str:
    """One phrase for logs: what a GPU here runs."""
    if not torch.cuda.is_available():
        return "no GPU"
    if not available():
        return "torch, for there is no CuPy: pip install 'hpc_kjko[cuda13]' or [cuda12]"
    if not cuda_wanted(True):
        return "torch, chosen by KJKO_KERNELS"
    import cupy

    return f"kernels compiled by CuPy {cupy.__version__}"


class Kernel(NamedTuple):
    """A kernel in ``file``, with the constants that it is compiled for, in the order of their names there."""

    file: str
    name: str
    constants: tuple[tuple[str, str], ...]
    fused: bool = True  # multiply-adds

    @property
    def resident(self) -> int:
        """How many of its blocks a multiprocessor has room for at a time, by their registers; 1 if it does not say."""
        return int(dict(self.constants).get("KJKO_RESIDENT", 1))

    @property
    def source(self) -> str:
        """CUDA C++, with a digest of all headers: CuPy's cache on disk knows a kernel by this text."""
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*/*.hpp"))))
        return (FOLDER / self.file).read_text(encoding="utf-8") + f"// {digest.hexdigest()}\n"

    @property
    def options(self) -> tuple[str, ...]:
        """What NVRTC is told."""
        constants = ("KJKO_LEVEL", "device"), *self.constants
        defined = (f"-D{name}={value}" for name, value in constants)
        return "-std=c++17", "-default-device", f"-fmad={str(self.fused).lower()}", f"-I{FOLDER}", *defined

    def launch(self, blocks: int, threads: int, call: ctypes.Structure, device: torch.device, groups: int = 1) -> None:
        """Run it on a GPU, asynchronously: ``blocks`` of ``threads`` for each of the ``groups``.

        Raises:
            UserError: it does not compile for this GPU.
        """
        import cupy

        stream = torch.cuda.current_stream(device)
        with cupy.cuda.Device(device.index), _stream(stream):
            function, shared_bytes = _compiled(self, device.index)
            arguments = np.frombuffer(bytes(call), np.dtype((np.void, ctypes.sizeof(call))))  # one struct, by value
            function((blocks, groups), (threads,), (arguments,), shared_mem=shared_bytes)


def _stream(stream: torch.cuda.Stream) -> Any:
    """torch's stream as CuPy's: by the protocol that both have, where they do."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)


@functools.cache
def _compiled(kernel: Kernel, device: int) -> tuple[Any, int]:
    """The kernel on a device, which is the current one, and the bytes of shared memory that its blocks need."""
    import cupy

    try:
        module = cupy.RawModule(code=kernel.source, options=kernel.options)
        function = module.get_function(kernel.name)
        shared_bytes = int(cupy.ndarray((1,), np.int32, module.get_global("shared_bytes")).get()[0])
        function.max_dynamic_shared_size_bytes = shared_bytes
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError) as failure:
        raise UserError(
            f"CuPy cannot compile the kernels for this GPU ({str(failure).strip().splitlines()[-1]}): install the CuPy "
            "that fits torch's CUDA (hpc_kjko[cuda12] or [cuda13]), or set KJKO_KERNELS=torch"
        ) from failure
    return function, shared_bytes


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def name_of(dtype: torch.dtype) -> str:
    """A precision's name in CUDA C++."""
    return "float" if dtype == torch.float32 else "double"
