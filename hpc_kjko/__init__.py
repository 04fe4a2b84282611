"""Deep kinetic JKO: deterministic particles for kinetic Fokker-Planck equations, distributed over MPI ranks."""

from importlib.metadata import version

__version__ = version("hpc_kjko")
