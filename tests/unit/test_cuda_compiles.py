"""Kernels of the GPU through its compiler, which needs no GPU: they compile, and stay in registers."""

import ctypes
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch

from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import pairs as cuda_pairs
from hpc_kjko.kernels.cuda import particles as cuda_particles
from hpc_kjko.kernels.cuda import potential as cuda_potential


def nvrtc():
    """NVIDIA's run-time compiler from its wheel, which needs no driver; None without it."""
    for name in ("nvidia.cu13.lib", "nvidia.cuda_nvrtc.lib"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        folder = Path(next(iter(found.submodule_search_locations))) if found else None
        libraries = sorted(folder.glob("libnvrtc.so.*")) if folder else []
        if libraries:
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(libraries[0]))
    return None


def compiled(kernel, arch):
    """The log of a compilation with the assembler's report, and the machine code."""
    library, program = nvrtc(), ctypes.c_void_p()
    options = [*kernel.options, f"-arch={arch}", "--ptxas-options=-v"]
    options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    library.nvrtcCreateProgram(ctypes.byref(program), kernel.source.encode(), b"kernel.cu", 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(options), options)

    def text(what):
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    log = text("ProgramLog").decode()
    assert not failed, log
    code = text("CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log, code


def assert_in_registers(log, most, spilt=0):
    """Next to nothing spilt, and as many blocks at a time as are meant to fit.

    A few registers are the price of one block more at a time, which on an H200 was faster; see
    docs/benchmarks/2026-11-26-gpu.md.
    """
    stores = re.findall(r"(\d+) bytes spill stores", log)
    assert stores and all(int(bytes_) <= spilt for bytes_ in stores), log
    assert all(int(used) <= most for used in re.findall(r"Used (\d+) registers", log)), log


needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="pip install nvidia-cuda-nvrtc")


#: (width, tanh, velocity_dims, closed)
COMPILED = [
    *itertools.product(["sm_80", "sm_90"], [(32, True, 1, False), (32, True, 2, True), (32, True, 3, False)]),
    ("sm_90", (16, True, 2, False)),
    ("sm_80", (48, False, 3, True)),
    ("sm_90", (64, True, 1, False)),
]


@needs_nvrtc
@pytest.mark.parametrize("arch, network", COMPILED, ids=str)
def test_the_objective_compiles_and_stays_in_registers(arch, network):
    kernel = cuda_network.objective_kernel(*network)
    log, code = compiled(kernel, arch)
    assert_in_registers(log, 65536 // int(dict(kernel.constants)["KJKO_RESIDENT_THREADS"]), 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, kernel",
    [
        ("sm_80", cuda_network.moments_kernels(32, True, 3)[0]),
        ("sm_90", cuda_network.moments_kernels(32, True, 1)[0]),
        ("sm_90", cuda_network.moments_kernels(64, False, 3)[1]),
        ("sm_80", cuda_network.field_kernel(torch.float64, 32, True, 3)),
        ("sm_90", cuda_network.field_kernel(torch.float64, 64, True, 2)),
        ("sm_90", cuda_network.field_kernel(torch.float32, 32, True, 1)),
    ],
)
def test_moments_and_the_field_compile_and_stay_in_registers(arch, kernel):
    log, code = compiled(kernel, arch)
    assert_in_registers(log, 255, 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "name, dtype, dims, order", [("deposit", torch.float32, 1, 1), ("gather", torch.float64, 3, 2)]
)
def test_the_kernels_of_particles_compile(name, dtype, dims, order, arch):
    log, code = compiled(cuda_particles.particle_kernel(name, dtype, ([4] * dims, [1.0] * dims, order)), arch)
    assert_in_registers(log, 168)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, dims, alike, exponent, single_precision",
    [
        ("sm_80", 3, True, -3.0, True),
        ("sm_90", 3, True, -3.0, True),
        ("sm_90", 3, False, -2.5, True),
        ("sm_80", 2, False, 1.0, True),
        ("sm_90", 2, True, -1.0, False),
    ],
)
def test_sums_over_pairs_compile_and_stay_in_registers(arch, dims, alike, exponent, single_precision):
    log, code = compiled(cuda_pairs.pair_kernel(dims, alike, exponent, single_precision), arch)
    assert_in_registers(log, 128, 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, name, dtype, dims, most, spilt",
    [
        ("sm_80", "values", torch.float32, 3, 128, 0),
        ("sm_90", "missed", torch.float32, 3, 128, 0),
        ("sm_90", "slopes", torch.float32, 3, 128, 0),
        ("sm_80", "carry", torch.float32, 3, 128, 120),
        ("sm_90", "carry", torch.float64, 3, 128, 200),
        ("sm_90", "carry", torch.float32, 1, 128, 80),
        ("sm_80", "normal", torch.float32, 3, 255, 0),
        ("sm_90", "derivatives", torch.float32, 3, 255, 0),
        ("sm_90", "barrier", torch.float32, 3, 255, 80),
        ("sm_80", "tied", torch.float32, 3, 255, 0),
        ("sm_90", "training", torch.float32, 3, 128, 80),
    ],
)
def test_the_potential_compiles_and_stays_in_registers(arch, name, dtype, dims, most, spilt):
    """Those of the default's two layers of 64."""
    log, code = compiled(cuda_potential.potential_kernel(f"potential_{name}", dtype, 64, dims), arch)
    assert_in_registers(log, most, spilt)
    assert b"shape" in code
