"""Physical problems: initial densities, potentials and domains. One file a problem, one line here."""

from hpc_kjko.problems.base import Problem
from hpc_kjko.problems.gaussian import Gaussian
from hpc_kjko.problems.plasma import LandauDamping, TwoStream

#: What ``[problem] kind`` may be.
KINDS: dict[str, type[Problem]] = {
    "two_stream": TwoStream,
    "landau_damping": LandauDamping,
    "gaussian": Gaussian,
}
