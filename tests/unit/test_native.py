"""The native module where it is installed, and the choice between it and torch."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_kjko import kernels
from hpc_kjko.kernels import constants

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


@pytest.fixture
def no_module(monkeypatch):
    """An install without a compiler."""
    monkeypatch.setattr(kernels, "_kernels", None)
    monkeypatch.setattr(kernels, "_why_not", "installed without a C++ compiler")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.delenv("KJKO_KERNELS", raising=False)


@needs_module
def test_build_info_is_sane():
    info = kernels.build_info()
    assert info["compiler"] and re.match(r"\d+\.\d+", info["compiler_version"])
    assert info["isa"] in {"x86-64-v4", "x86-64-v3", "x86-64-v2", "generic"}
    assert info["max_threads"] >= 1
    if not info["openmp"]:
        assert info["max_threads"] == 1


@needs_module
def test_module_is_of_the_installed_version():
    assert kernels.build_info()["version"] == importlib.metadata.version("hpc_kjko")


@needs_module
def test_a_lower_instruction_set_can_be_asked_for():
    describe = [sys.executable, "-c", "from hpc_kjko import kernels; print(kernels.describe())"]
    said = {
        level: subprocess.run(describe, env=os.environ | {"KJKO_ISA": level}, capture_output=True, text=True)
        for level in ("x86-64-v2", "pentium")
    }
    if kernels.build_info()["isa"] != "generic":
        assert "native kernels (x86-64-v2, " in said["x86-64-v2"].stdout
    assert said["pentium"].returncode and "ValueError: KJKO_ISA='pentium' is not a level" in said["pentium"].stderr


@needs_module
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
def test_the_kernels_of_lower_levels(level):
    """A machine runs only its highest level by itself: here a part of the kernels' tests runs at the others."""
    if level == kernels.build_info()["isa"]:
        pytest.skip("what the tests run at anyway")
    families = ("field", "objective", "pairs", "potential")
    files = [Path(__file__).with_name(f"test_native_{family}.py") for family in families]
    some = "1D3V and (double_precision and 32 or moments_of and 48) or 3D3V and any_number or tanh_to or not_finite"
    some += " or pairs and (against or near or equilibrium) or potential and (single_precision or training)"
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", some, *files]
    said = subprocess.run(run, env=os.environ | {"KJKO_ISA": level}, capture_output=True, text=True)
    if "is not a level of this machine" in said.stdout + said.stderr:
        pytest.skip("this machine has no such level")
    assert said.returncode == 0, said.stdout[-3000:]


@needs_module
def test_native_is_the_default():
    assert kernels.backend() is kernels.Backend.NATIVE
    info = kernels.build_info()
    assert kernels.describe().startswith(f"native kernels ({info['isa']}, ")
    assert ("no OpenMP" in kernels.describe()) is (not info["openmp"])


@needs_module
@pytest.mark.parametrize("threads, phrase", [(1, "OpenMP 1 thread)"), (2, "OpenMP 2 threads)")])
def test_describe_counts_threads(monkeypatch, threads, phrase):
    info = kernels.build_info() | {"openmp": True, "max_threads": threads}
    monkeypatch.setattr(kernels, "build_info", lambda: info)
    assert kernels.describe().endswith(phrase)


@needs_module
def test_torch_can_be_chosen(monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "torch")
    assert kernels.backend() is kernels.Backend.TORCH
    assert kernels.describe() == "pure-Python fallback (chosen by KJKO_KERNELS=torch)"


def test_without_module(no_module):
    assert not kernels.available()
    assert kernels.backend() is kernels.Backend.TORCH
    assert kernels.describe() == "pure-Python fallback (no native module: installed without a C++ compiler)"


def test_native_asked_for_but_missing(no_module, monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "native")
    with pytest.raises(ImportError, match="without a C\\+\\+ compiler.*Install a C\\+\\+ compiler"):
        kernels.describe()
    with pytest.raises(ImportError, match="no native module"):
        kernels.build_info()


def test_unknown_choice_is_refused_with_advice(monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "cuda")
    with pytest.raises(ValueError, match="'cuda'.*use 'native' or 'torch'"):
        kernels.backend()


def test_constants_are_those_of_the_header():
    assert constants.WIDTHS == (16, 32, 48, 64) and constants.MOST_INPUTS == 15
    assert constants.ROUNDING_SHIFT == 1.5 * 2.0**52 and constants.LEAKY_SLOPE == 0.01
    with pytest.raises(ValueError, match="constants.hpp has no MOST_PATIENCE"):
        constants._values("MOST_PATIENCE")
