"""The solvers of the inner problem of a collision step. Each solver has one file, and one line here."""

from collections.abc import Callable
from typing import Any

from hpc_kjko.case.method import Method
from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers.adam import AdamSolver
from hpc_kjko.inner.solvers.base import Solver
from hpc_kjko.inner.solvers.regression import RegressionSolver
from hpc_kjko.inner.solvers.varpro import VarproSolver
from hpc_kjko.parallel.comm import Communicator

SOLVERS: dict[str, Callable[..., Solver]] = {"adam": AdamSolver, "varpro": VarproSolver, "regression": RegressionSolver}


def solver_of(method: Method, objective: Objective[Any], comm: Communicator) -> Solver:
    """The solver that a case asks for, for the objective of its collision step. Collective."""
    return SOLVERS[method.solver](
        objective,
        comm,
        iterations=method.iterations,
        first_iterations=method.first_iterations,
        learning_rate=method.learning_rate,
    )


__all__ = ["SOLVERS", "AdamSolver", "RegressionSolver", "Solver", "VarproSolver", "solver_of"]
