"""Conversion between normalised and SI units for a given density and temperature, and the strength of Coulomb
collisions.

In normalised units n̄, T, m and q of a reference species are 1, and so are ω_p, λ_D and v_th = √(T/m). In SI units

    ω_p = √(n̄ q²/(ε₀ m)),   λ_D = √(ε₀ T/(n̄ q²)) = v_th/ω_p.

To convert a number of a case to SI units, multiply it by the unit of its quantity. Two dimensionless numbers describe
the plasma: N_D = n̄ λ_D³, the number of particles in a cube of the Debye length, and lnΛ, the Coulomb logarithm. They
give the strength of Landau's collision operator (`reference.landau`) in units of ω_p,

    C = lnΛ/(8π N_D),

Between species a and b the strength is C q_a² q_b².

Sources: the NRL Plasma Formulary (J. D. Huba), "Collisions and transport"; CODATA 2022 for the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc_kjko.errors import UserError

#: CODATA 2022: e in C, m_e in kg, ε₀ in F/m, c in m/s. (The constants in SciPy would take longer to import.)
ELEMENTARY_CHARGE = 1.602176634e-19
ELECTRON_MASS = 9.1093837139e-31
VACUUM_PERMITTIVITY = 8.8541878188e-12
LIGHT_SPEED = 299792458.0

#: Common species: charge in elementary charges, mass in electron masses (CODATA 2022).
SPECIES = {
    "electrons": (-1.0, 1.0),
    "protons (H)": (1.0, 1836.152673426),
    "deuterons (D)": (1.0, 3670.482967655),
    "tritons (T)": (1.0, 5496.92153551),
    "alpha particles (He)": (2.0, 7294.29954171),
}

#: Basic collision rates of the NRL Formulary in units of C: ν_e of electrons with ions of charge 1, and ν_i of like
#: ions.
ELECTRON_RATE = 2 / 3 * math.sqrt(2 / math.pi)
ION_RATE = 2 / (3 * math.sqrt(math.pi))
#: Isotropisation rate ν_T of the NRL Formulary in units of C, for like particles with nearly equal temperatures:
#: d(T⊥ − T∥)/dt = −3 ν_T (T⊥ − T∥).
ISOTROPISATION_RATE = 4 / (15 * math.sqrt(math.pi))

#: Limits beyond any real plasma. Products of numbers between these limits do not overflow.
SMALLEST, LARGEST = 1e-30, 1e40
#: Iterations for the density at a given C: more than are needed for full accuracy.
_ROUNDS = 500


@dataclass(frozen=True)
class Units:
    """The units of the code in SI units.

    Raises:
        UserError: a number is not positive or outside the range of plasmas, the thermal speed is not below the speed of
            light, or N_D is below 1. `log_lambda` raises it when its formula is not valid for the plasma.
    """

    density: float  #: n̄ of the reference species, in 1/m³
    temperature: float  #: T of the reference species, in eV
    mass: float = 1.0  #: m of the reference species, in electron masses
    charge: float = 1.0  #: |q| of the reference species, in elementary charges

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require_positive(name, value)
        if self.velocity >= LIGHT_SPEED:
            raise UserError(
                f"temperature = {self.temperature:g} eV is a thermal speed of {self.velocity / LIGHT_SPEED:.3g} c: the "
                "code is not relativistic, use a lower temperature"
            )
        if self.debye_number < 1:
            raise UserError(
                f"density = {self.density:g} 1/m³ and temperature = {self.temperature:g} eV are not a weakly coupled "
                f"plasma: N_D = {self.debye_number:.2g} particles are in a cube of the Debye length; use a lower "
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
        """The units of a plasma with a given strength of Coulomb collisions. Its density follows from this strength.

        Args:
            strength: C, in ω_p.
            temperature: T, in eV.
            log_lambda: lnΛ; if None, the value of the NRL Plasma Formulary.
            mass: m, in electron masses.
            charge: |q|, in elementary charges.

        Raises:
            UserError: as for the class, or collisions of this strength do not occur in a weakly coupled plasma.
        """
        _require_positive("collision_strength", strength)
        if log_lambda is not None:
            _require_positive("log_lambda", log_lambda)
        thin = cls(1.0, temperature, mass, charge)  # a density with known N_D; n̄ is proportional to 1/N_D²
        units = thin
        try:
            # with the formula for lnΛ, each iteration reduces the error of ln n̄ by a factor lnΛ
            for _ in range(_ROUNDS):
                ratio = thin.debye_number * 8 * math.pi * strength / (log_lambda or units.log_lambda)
                found = thin.density * ratio * ratio
                if math.isclose(found, units.density, rel_tol=1e-14):
                    break
                units = cls(found, temperature, mass, charge)
        except UserError as failure:
            raise UserError(
                f"collision_strength = {strength:g} is not possible for a plasma at this temperature: {failure}"
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
        """T/(q λ_D), in V/m. This field gives the reference species the acceleration v_th ω_p."""
        return self.potential / self.length

    @property
    def magnetic_field(self) -> float:
        """m ω_p/q, in T. In this field the reference species gyrates with the frequency ω_p."""
        return self._mass * self.frequency / self._charge

    @property
    def debye_number(self) -> float:
        """N_D = n̄ λ_D³, the number of particles of the reference species in a cube of the Debye length."""
        return self.density * self.length**3

    @property
    def is_of_electrons(self) -> bool:
        """Whether the reference species has the mass and the absolute charge of electrons."""
        return self.mass == self.charge == 1.0

    @property
    def log_lambda(self) -> float:
        """lnΛ of the NRL Plasma Formulary for collisions within the reference species.

        With n in cm⁻³, T in eV, and Z the charge number of ions,

            electrons:  23.5 − ln(n^½ T^(−5/4)) − [10⁻⁵ + (ln T − 2)²/16]^½,
            ions:       23 − ln(Z² T⁻¹ (2 n Z²/T)^½).

        Raises:
            UserError: lnΛ is below 1. Collisions are then not weak, and the formula is not valid.
        """
        n, t = self.density * 1e-6, self.temperature
        if self.is_of_electrons:
            found = 23.5 - math.log(math.sqrt(n) / t**1.25) - math.sqrt(1e-5 + (math.log(t) - 2) ** 2 / 16)
        else:
            found = 23.0 - math.log(self.charge**2 / t * math.sqrt(2 * n * self.charge**2 / t))
        if found < 1:
            raise UserError(
                f"the NRL Plasma Formulary gives lnΛ = {found:.2g} for a density of {self.density:.3g} 1/m³ and {t:g} "
                "eV, below 1, where collisions are not weak: use a lower density, or give lnΛ"
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
        raise UserError(f"{name} = {value:g}: it must be a positive number between {SMALLEST:g} and {LARGEST:g}")
