"""Build of hpc_kjko: what is declarative lives in pyproject.toml, the native kernels in CMakeLists.txt.

The kernels are compiled by CMake through scikit-build-core's setuptools backend. They speed the package up
but are not needed: a build that fails, say for lack of a compiler, ends in a pure-Python install that says
so: in the build output (shown by `pip install -v .`) and at run time in `hpc_kjko.kernels.describe()`. The
environment variable KJKO_NATIVE settles it otherwise: `require` makes a failed build an error, `off` skips
it.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from scikit_build_core.errors import FailedLiveProcessError, FailedProcessError, ScikitBuildError
from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup
from setuptools.command.build import build

NATIVE = Path("hpc_kjko", "kernels")
NOTE = "_not_built.txt"  # read by hpc_kjko/kernels/__init__.py


def compiler_found() -> bool:
    """Whether a C++ compiler is on PATH: only used to word the reason after CMake has failed."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name) for name in wanted or ("c++", "g++", "clang++", "icpx", "nvc++", "CC"))


class BuildNativeOrNot(BuildCMake):
    """The CMake build, or a note in the package that says why there is none."""

    def run(self) -> None:
        policy = os.environ.get("KJKO_NATIVE", "auto")
        if policy not in ("auto", "require", "off"):
            raise SystemExit(f"KJKO_NATIVE={policy!r} is not known: use auto (the default), require or off.")
        in_tree = self.editable_mode or self.get_finalized_command("build_ext").inplace
        folder = (Path() if in_tree else Path(self.build_lib)) / NATIVE
        (folder / NOTE).unlink(missing_ok=True)

        if policy == "off":
            reason = "installed with KJKO_NATIVE=off"
        else:
            try:
                return super().run()
            except (FailedLiveProcessError, FailedProcessError, ScikitBuildError, OSError) as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                if policy == "require":
                    raise SystemExit("KJKO_NATIVE=require, but the native kernels do not build.") from None
            if compiler_found():
                reason = "installed after a failed CMake build; pip install -v shows its output"
            else:
                reason = "installed without a C++ compiler"

        # An older in-place module must not outlive the sources it was built from.
        (folder / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(reason + "\n", encoding="utf-8")
        print(f"WARNING: hpc_kjko has no native kernels and runs as pure Python ({reason}).", file=sys.stderr)


class CleanBuild(build):
    """A build from nothing: modules left in build/lib by an older version would end up in the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmake_source_dir=".", cmdclass={"build_cmake": BuildNativeOrNot, "build": CleanBuild})
