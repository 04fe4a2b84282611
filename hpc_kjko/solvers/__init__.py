"""How the inner problem of a JKO step is minimised. One file a solver, one line here."""

from hpc_kjko.solvers.adam import AdamSolver

SOLVERS = {"adam": AdamSolver}
