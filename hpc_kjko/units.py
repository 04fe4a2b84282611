"""The code's units for a plasma of given density and temperature, and how strong Coulomb collisions are in it.

In the code n̄, T, m and q of a reference species are 1, and so are ω_p, λ_D and v_th = √(T/m). Here these are in SI
units:

    ω_p = √(n̄ q²/(ε₀ m)),   λ_D = √(ε₀ T/(n̄ q²)) = v_th/ω_p.

A number of a case times the unit of its quantity is that quantity in SI units. Two numbers are left of a plasma:
N_D = n̄ λ_D³, the particles in a cube of the Debye length, and lnΛ, the Coulomb logarithm. They give

    C = lnΛ/(8π N_D),

in units of ω_p, the strength of Landau's collision operator (`reference.landau`). Between species a and b it is
C q_a² q_b².

Sources: the NRL Plasma Formulary (J. D. Huba), "Collisions and transport"; CODATA 2022 for the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_kjko.errors import UserError

#: CODATA 2022: e in C, m_e in kg, ε₀ in F/m, c in m/s. (A module of constants would bring SciPy, which takes time.)
ELEMENTARY_CHARGE = 1.602176634e-19
ELECTRON_MASS = 9.1093837139e-31
VACUUM_PERMITTIVITY = 8.8541878188e-12
LIGHT_SPEED = 299792458.0

#: Charges in elementary charges and masses in electron masses (CODATA 2022) of what plasmas are made of.
SPECIES = {
    "electrons": (-1.0, 1.0),
    "protons (H)": (1.0, 1836.152673426),
    "deuterons (D)": (1.0, 3670.482967655),
    "tritons (T)": (1.0, 5496.92153551),
    "alpha particles (He)": (2.0, 7294.29954171),
}

#: NRL's basic collision rates in units of C: ν_e of electrons with ions of charge 1, and ν_i of like ions.
ELECTRON_RATE = 2 / 3 * math.sqrt(2 / math.pi)
ION_RATE = 2 / (3 * math.sqrt(math.pi))
#: NRL's rate ν_T in units of C, for nearly equal temperatures of like particles: d(T⊥ − T∥)/dt = −3 ν_T (T⊥ − T∥).
ISOTROPISATION_RATE = 4 / (15 * math.sqrt(math.pi))

#: Numbers that no plasma exceeds, on either side: products of those between are numbers too.
SMALLEST, LARGEST = 1e-30, 1e40
#: More rounds than the density of a given C takes to have all its digits.
_ROUNDS = 500


@dataclass(frozen=True)
class Units:
    """What is 1 in the code, in SI units.

    Raises:
        UserError: a number that is not positive or that no plasma has, a thermal speed of light or more, or fewer than
            one particle in a cube of the Debye length; on use of `log_lambda`, a plasma for which there is none.
    """

    density: float  #: n̄ of the reference species, in 1/m³
    temperature: float  #: T of the reference species, in eV
    mass: float = 1.0  #: m of the reference species, in electron masses
    charge: float = 1.0  #: q of the reference species in size, in elementary charges

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require_positive(name, value)
        if self.velocity >= LIGHT_SPEED:
            raise UserError(
                f"temperature = {self.temperature:g} eV is a thermal speed of {self.velocity / LIGHT_SPEED:.3g} c: the "
                "code is not relativistic, take a lower one"
            )
        if self.debye_number < 1:
            raise UserError(
                f"density = {self.density:g} 1/m³ and temperature = {self.temperature:g} eV are not a plasma of weak "
                f"collisions: N_D = {self.debye_number:.2g} particles are in a cube of the Debye length; take a lower "
                "density or a higher temperature"
            )

    @classmethod
    def of_collision_strength(
        cls,
        strength: float,
        temperature: float,
        log_lambda: float | None = None,
        mass: float = 1.0,
        charge: float = 1.0,
    ) -> Units:
        """The units for a plasma in which Coulomb collisions have a given strength, from which its density follows.

        Args:
            strength: C, in ω_p.
            temperature: T, in eV.
            log_lambda: lnΛ; without it that of the NRL Plasma Formulary.
            mass: m, in electron masses.
            charge: q in size, in elementary charges.

        Raises:
            UserError: as for the class, or collisions that are too strong for a plasma.
        """
        _require_positive("collision_strength", strength)
        if log_lambda is not None:
            _require_positive("log_lambda", log_lambda)
        thin = cls(1.0, temperature, mass, charge)  # of which N_D is known: n̄ goes as 1/N_D²
        units = thin
        try:
            for _ in range(_ROUNDS):  # with the formula for lnΛ, ln n̄ comes nearer by a factor lnΛ in each
                ratio = thin.debye_number * 8 * math.pi * strength / (log_lambda or units.log_lambda)
                found = thin.density * ratio * ratio
                if math.isclose(found, units.density, rel_tol=1e-14):
                    break
                units = cls(found, temperature, mass, charge)
        except UserError as failure:
            raise UserError(
                f"collision_strength = {strength:g} is that of no plasma at this temperature: {failure}"
            ) from None
        return units

    @property
    def frequency(self) -> float:
        """ω_p of the reference species, in rad/s."""
        return math.sqrt(self.density * self._charge**2 / (VACUUM_PERMITTIVITY * self._mass))

    @property
    def time(self) -> float:
        """1/ω_p, in s."""
        return 1 / self.frequency

    @property
    def length(self) -> float:
        """λ_D of the reference species, in m."""
        return math.sqrt(VACUUM_PERMITTIVITY * self._temperature / (self.density * self._charge**2))

    @property
    def velocity(self) -> float:
        """v_th = √(T/m), in m/s."""
        return math.sqrt(self._temperature / self._mass)

    @property
    def potential(self) -> float:
        """T/q, in V."""
        return self._temperature / self._charge

    @property
    def electric_field(self) -> float:
        """T/(q λ_D), in V/m, which gives the reference species the acceleration v_th ω_p."""
        return self.potential / self.length

    @property
    def magnetic_field(self) -> float:
        """m ω_p/q, in T, in which the reference species gyrates with ω_p."""
        return self._mass * self.frequency / self._charge

    @property
    def debye_number(self) -> float:
        """N_D = n̄ λ_D³, the particles of the reference species in a cube of the Debye length."""
        return self.density * self.length**3

    @property
    def is_of_electrons(self) -> bool:
        """Whether the reference species has the mass and, in size, the charge of electrons."""
        return self.mass == self.charge == 1.0

    @property
    def log_lambda(self) -> float:
        """The NRL Plasma Formulary's lnΛ for collisions of the reference species with its like.

        With n in cm⁻³, T in eV, and Z the charge of ions,

            electrons:  23.5 − ln(n^½ T^(−5/4)) − [10⁻⁵ + (ln T − 2)²/16]^½,
            ions:       23 − ln(Z² T⁻¹ (2 n Z²/T)^½).

        Raises:
            UserError: it is below 1, where collisions are not weak.
        """
        n, t = self.density * 1e-6, self.temperature
        if self.is_of_electrons:
            found = 23.5 - math.log(math.sqrt(n) / t**1.25) - math.sqrt(1e-5 + (math.log(t) - 2) ** 2 / 16)
        else:
            found = 23.0 - math.log(self.charge**2 / t * math.sqrt(2 * n * self.charge**2 / t))
        if found < 1:
            raise UserError(
                f"the NRL Plasma Formulary has lnΛ = {found:.2g} for a density of {self.density:.3g} 1/m³ and {t:g} "
                "eV, below 1, where collisions are not weak: take a lower density, or give lnΛ"
            )
        return found

    def collision_strength(self, log_lambda: float) -> float:
        """C = lnΛ/(8π N_D), in ω_p.

        Raises:
            UserError: lnΛ is not positive.
        """
        _require_positive("log_lambda", log_lambda)
        return log_lambda / (8 * math.pi * self.debye_number)

    @property
    def _mass(self) -> float:
        """m, in kg."""
        return self.mass * ELECTRON_MASS

    @property
    def _charge(self) -> float:
        """q, in C."""
        return self.charge * ELEMENTARY_CHARGE

    @property
    def _temperature(self) -> float:
        """T, in J."""
        return self.temperature * ELEMENTARY_CHARGE


def _require_positive(name: str, value: float) -> None:
    if not SMALLEST <= value <= LARGEST:
        raise UserError(f"{name} = {value:g}: it must be a number above 0, between {SMALLEST:g} and {LARGEST:g}")
