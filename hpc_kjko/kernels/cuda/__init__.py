"""Kernels for GPUs: whether they are used, how they are compiled, and how one is launched in torch's stream.

Their source texts are the headers and the `*.cu` files in this folder. CuPy compiles them with NVRTC when they are
first launched, so nvcc is not needed. `network` and `particles` hold the calls with torch tensors. For tests they also
take tensors on the CPU. Then the native module runs the same source text, one thread after another.
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

#: The folder of `math` and `cuda`; file names are relative to it.
FOLDER = Path(__file__).parents[1]
#: Kernels of networks that never use tensor cores.
THREADS_MULTIPLY = ("potential_derivatives", "potential_barrier")


@functools.cache
def available() -> bool:
    """Whether CuPy is installed and sees a GPU."""
    return torch.cuda.is_available() and importlib.util.find_spec("cupy") is not None


def take(*tensors: torch.Tensor) -> bool:
    """Whether a tensor is on a GPU and GPU kernels are used: if CuPy is installed, unless KJKO_KERNELS=torch.

    Raises:
        ImportError: KJKO_KERNELS=native asks for them, and CuPy is not installed.
    """
    return all(tensor.is_cuda for tensor in tensors) and cuda_wanted(available())


def describe() -> str:
    """A short text for logs: which kernels a GPU on this machine runs."""
    if not torch.cuda.is_available():
        return "no GPU"
    if not available():
        return "torch, because there is no CuPy: pip install 'hpc_kjko[cuda13]' or [cuda12]"
    if not cuda_wanted(True):
        return "torch, chosen by KJKO_KERNELS"
    import cupy

    return f"kernels compiled by CuPy {cupy.__version__}"


#: Constants that select products on tensor cores. Empty, except within :func:`on_tensor_cores`.
_tensor_constants: dict[str, str] = {}


@contextlib.contextmanager
def on_tensor_cores() -> Iterator[None]:
    """Within this context the kernels of networks make their products on tensor cores (cuda/tensor.hpp).

    Such kernels have not run on a GPU yet. So only tests and scripts/bench_gpu.py use this.
    """
    _tensor_constants["KJKO_TENSOR"] = "true"
    try:
        yield
    finally:
        _tensor_constants.clear()


def tensor_constants(kernel: str) -> dict[str, str]:
    """Further constants that a kernel of a network is compiled with, by the name of the kernel."""
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
    """A kernel in ``file``, with the constants for which it is compiled, in the order of their names there."""

    file: str
    name: str
    constants: tuple[tuple[str, str], ...]
    fused: bool = True  # fused multiply-add instructions

    @property
    def source(self) -> str:
        """The CUDA C++ text, with a digest of all headers, so that CuPy's cache on disk notices a change in a
        header.
        """
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*/*.hpp"))))
        return (FOLDER / self.file).read_text(encoding="utf-8") + f"// {digest.hexdigest()}\n"

    @property
    def options(self) -> tuple[str, ...]:
        """The options for NVRTC."""
        constants = ("KJKO_LEVEL", "device"), *self.constants
        defined = (f"-D{name}={value}" for name, value in constants)
        return "-std=c++17", "-default-device", f"-fmad={str(self.fused).lower()}", f"-I{FOLDER}", *defined

    @property
    def _network(self) -> tuple[str, int, bool, int, bool, bool, bool]:
        """The name of the kernel of a network in the native module."""
        known = dict(self.constants)
        width, velocity_dims = int(known["KJKO_WIDTH"]), int(known["KJKO_VELOCITY_DIMS"])
        tanh, closed = known["KJKO_ACTIVATION"] == "Tanh", known.get("KJKO_CLOSED") == "true"
        double, tensor = known.get("KJKO_REAL") == "double", known.get("KJKO_TENSOR") == "true"
        return self.name, width, tanh, velocity_dims, closed, double, tensor

    def shape(self, device: torch.device) -> Shape:
        """Registers, shared memory and threads of the compiled kernel.

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
        """Run the kernel on a GPU, asynchronously: ``blocks`` thread blocks for each of the ``groups``.

        On the CPU the same source text runs, and the call waits for its end.

        Args:
            call: the argument struct.
            backwards: on the CPU, whether the threads run from the last one to the first. Results must not depend on
                it.

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
            # one struct, passed by value
            arguments = np.frombuffer(bytes(call), np.dtype((np.void, ctypes.sizeof(call))))
            function((blocks, groups), (shape.threads,), (arguments,), shared_mem=shape.shared_bytes)


def _shape(memory: bytes) -> Shape:
    return Shape(*np.frombuffer(memory, np.int32).tolist())


def _stream(stream: torch.cuda.Stream) -> Any:
    """torch's stream as a CuPy stream, by their common protocol if both have it."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream)


@functools.cache
def _compiled(kernel: Kernel, device: int) -> tuple[Any, Shape]:
    """The kernel compiled for a device, which is the current one, and its shape."""
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
    """Bytes of shared memory that a thread block may have on a GPU."""
    import cupy

    return int(cupy.cuda.Device(device.index).attributes["MaxSharedMemoryPerBlockOptin"])


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a tensor in memory, for an argument struct; None stays None."""
    return None if tensor is None else tensor.data_ptr()


def name_of(dtype: torch.dtype) -> str:
    """The name of a precision in CUDA C++."""
    return "float" if dtype == torch.float32 else "double"
