"""Kernels of GPUs: whether they are taken, how they are compiled, and how one is launched in torch's stream.

Their texts are the headers and the `*.cu` beside this file; CuPy compiles them with NVRTC when they are first launched,
so no nvcc is needed. What they do with torch's tensors is in `network` and `particles`, which take tensors on the CPU
through the same arguments and the same text in the native module, thread after thread: for tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.kernels import cuda_wanted, require

#: Where `math` and `cuda` are, from which files are named.
FOLDER = Path(__file__).parents[1]
#: Kernels of networks in which threads multiply by themselves.
THREADS_MULTIPLY = ("potential_derivatives", "potential_barrier")


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


#: Constants that make kernels multiply on tensor cores. Empty, except within :func:`on_tensor_cores`.
_tensor_constants: dict[str, str] = {}


@contextlib.contextmanager
def on_tensor_cores() -> Iterator[None]:
    """Kernels of networks make their products on tensor cores within this, where their text can (cuda/tensor.hpp).

    They have not run on a GPU yet, so that only tests and scripts/bench_gpu.py ask for them.
    """
    _tensor_constants["KJKO_TENSOR"] = "true"
    try:
        yield
    finally:
        _tensor_constants.clear()


def tensor_constants(kernel: str) -> dict[str, str]:
    """What a kernel of a network is compiled with besides, by its name."""
    return {} if kernel in THREADS_MULTIPLY else _tensor_constants


class Shape(NamedTuple):
    """``Shape`` of cuda/shape.hpp."""

    threads: int
    resident: int
    shared_bytes: int
    tile: int
    sum_numbers: int
    more_numbers: int
    groups: int
    linear_groups: int


class Kernel(NamedTuple):
    """A kernel in ``file``, with the constants that it is compiled for, in the order of their names there."""

    file: str
    name: str
    constants: tuple[tuple[str, str], ...]
    fused: bool = True  # multiply-adds

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

    @property
    def _network(self) -> tuple[str, int, bool, int, bool, bool, bool]:
        """How the native module knows a kernel of a network."""
        known = dict(self.constants)
        width, velocity_dims = int(known["KJKO_WIDTH"]), int(known["KJKO_VELOCITY_DIMS"])
        tanh, closed = known["KJKO_ACTIVATION"] == "Tanh", known.get("KJKO_CLOSED") == "true"
        double, tensor = known.get("KJKO_REAL") == "double", known.get("KJKO_TENSOR") == "true"
        return self.name, width, tanh, velocity_dims, closed, double, tensor

    def shape(self, device: torch.device) -> Shape:
        """What the compiled kernel says of itself.

        Raises:
            UserError: it does not compile for this GPU.
        """
        if device.type == "cpu":
            return _shape(require().device_shape(*self._network))
        import cupy

        with cupy.cuda.Device(device.index):
            return _compiled(self, device.index)[1]

    def launch(
        self, blocks: int, call: ctypes.Structure, device: torch.device, groups: int = 1, backwards: bool = False
    ) -> None:
        """Run it on a GPU, asynchronously: so many blocks of threads for each of the ``groups``.

        On the CPU the same text runs, to its end.

        Args:
            backwards: on the CPU, whether the threads run from the last one to the first: nothing may depend on it.

        Raises:
            UserError: it does not compile for this GPU.
        """
        if device.type == "cpu":
            if "KJKO_WIDTH" in dict(self.constants):
                require().device_launch(*self._network, bytes(call), blocks, groups, backwards)
            else:
                getattr(require(), f"device_{self.name}")(bytes(call), backwards)
            return
        import cupy

        stream = torch.cuda.current_stream(device)
        with cupy.cuda.Device(device.index), _stream(stream):
            function, shape = _compiled(self, device.index)
            arguments = np.frombuffer(bytes(call), np.dtype((np.void, ctypes.sizeof(call))))  # one struct, by value
            function((blocks, groups), (shape.threads,), (arguments,), shared_mem=shape.shared_bytes)


def _shape(memory: bytes) -> Shape:
    return Shape(*np.frombuffer(memory, np.int32).tolist())


def _stream(stream: torch.cuda.Stream) -> Any:
    """torch's stream as CuPy's: by the protocol that both have, where they do."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)


@functools.cache
def _compiled(kernel: Kernel, device: int) -> tuple[Any, Shape]:
    """The kernel on a device, which is the current one, and what it says of itself."""
    import cupy

    try:
        module = cupy.RawModule(code=kernel.source, options=kernel.options)
        function = module.get_function(kernel.name)
        numbers = cupy.ndarray((len(Shape._fields),), np.int32, module.get_global("shape")).get()
        shape = _shape(numbers.tobytes())
        function.max_dynamic_shared_size_bytes = shape.shared_bytes
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError) as failure:
        raise UserError(
            f"CuPy cannot compile the kernels for this GPU ({str(failure).strip().splitlines()[-1]}): install the CuPy "
            "that fits torch's CUDA (hpc_kjko[cuda12] or [cuda13]), or set KJKO_KERNELS=torch"
        ) from failure
    return function, shape


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block of threads may have on a GPU."""
    import cupy

    return int(cupy.cuda.Device(device.index).attributes["MaxSharedMemoryPerBlockOptin"])


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def name_of(dtype: torch.dtype) -> str:
    """A precision's name in CUDA C++."""
    return "float" if dtype == torch.float32 else "double"
