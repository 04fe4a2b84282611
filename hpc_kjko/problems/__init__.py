"""Physical problems: initial densities, potentials and domains. One file a problem, one line here."""

from hpc_kjko.problems.base import PeriodicProblem, Problem
from hpc_kjko.problems.confined import Confined
from hpc_kjko.problems.custom import CustomProblem, check_own_problem, own_problem
from hpc_kjko.problems.density import Density, Equilibrium, GaussianDensity
from hpc_kjko.problems.gaussian import Gaussian
from hpc_kjko.problems.periodic import Periodic
from hpc_kjko.problems.plasma import LandauDamping, TwoStream

__all__ = [
    "KINDS",
    "CustomProblem",
    "Density",
    "Equilibrium",
    "GaussianDensity",
    "PeriodicProblem",
    "Problem",
    "check_own_problem",
    "own_problem",
]

#: What ``[problem] kind`` may be.
KINDS: dict[str, type[Problem]] = {
    "two_stream": TwoStream,
    "landau_damping": LandauDamping,
    "gaussian": Gaussian,
    "confined": Confined,
    "periodic": Periodic,
}
