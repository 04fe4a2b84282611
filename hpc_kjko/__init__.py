"""Deep kinetic JKO: deterministic particles for kinetic Fokker-Planck equations, distributed over MPI ranks.

    from hpc_kjko import Case, open_run, run

    case = Case.load("jobs/two_stream.toml", {"physics.collision_strength": 0.1})
    result = run(case, "runs/mine")  # here, or on the ranks of mpirun
    result.series.field_energy.plot()

Importing the package loads neither torch nor MPI. They are loaded when one of these names is first used.
"""

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_kjko.api import Case, Run, SolverFailure, UserError, open_run, restart, run

# Threads that wait for work spin for about 50 microseconds and then sleep. By default GNU's OpenMP lets them spin 300
# times longer, unless it has more threads than cores itself. Then on cores that other programs use, two threads can be
# many times slower than one. OpenMP reads this when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = version("hpc_kjko")
__all__ = ["Case", "Run", "SolverFailure", "UserError", "__version__", "open_run", "restart", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hpc_kjko' has no attribute {name!r}")
    from hpc_kjko import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
