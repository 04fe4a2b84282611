"""Physical problems: initial densities, potentials and domains. Each problem has one file, and one line here."""

from hpc_kjko.problems.base import PeriodicProblem, PeriodicWave, Problem
from hpc_kjko.problems.confined import Confined
from hpc_kjko.problems.custom import CustomProblem, UserStart, check_own_problem, is_users_own, own_problem
from hpc_kjko.problems.density import Density, Equilibrium, GaussianDensity
from hpc_kjko.problems.gaussian import Gaussian
from hpc_kjko.problems.periodic import Periodic
from hpc_kjko.problems.plasma import LandauDamping, Plasma, TwoStream
from hpc_kjko.problems.starts import Beams, BiMaxwellian, BumpOnTail, Kappa, Maxwellian

__all__ = [
    "KINDS",
    "STARTS",
    "CustomProblem",
    "Density",
    "Equilibrium",
    "GaussianDensity",
    "PeriodicProblem",
    "PeriodicWave",
    "Plasma",
    "Problem",
    "UserStart",
    "check_own_problem",
    "is_users_own",
    "own_problem",
]

#: The starts of a plasma, or of each of its species.
STARTS: dict[str, type[PeriodicWave]] = {
    "maxwellian": Maxwellian,
    "beams": Beams,
    "bump_on_tail": BumpOnTail,
    "bi_maxwellian": BiMaxwellian,
    "kappa": Kappa,
}
#: The values of ``kind`` in ``[problem]``.
KINDS: dict[str, type[Problem]] = {
    "two_stream": TwoStream,
    "landau_damping": LandauDamping,
    **STARTS,
    "plasma": Plasma,
    "gaussian": Gaussian,
    "confined": Confined,
    "periodic": Periodic,
}
