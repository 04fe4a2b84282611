"""``kjko units``: convert the parameters of a plasma to normalised units, and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from hpc_kjko.casefile import RunCase
from hpc_kjko.cli.opening import DONE
from hpc_kjko.errors import UserError
from hpc_kjko.terminal import show_pairs, show_table
from hpc_kjko.units import ELECTRON_RATE, ION_RATE, ISOTROPISATION_RATE, LIGHT_SPEED, SPECIES, Units

#: Keys of a case that have a unit: the attribute of Units with its value, and the name of the unit.
_UNIT_OF = {
    "problem.length": ("length", "m"),
    "time.step": ("time", "s"),
    "time.end": ("time", "s"),
    "physics.magnetic_field": ("magnetic_field", "T"),
    "physics.drive.amplitude": ("electric_field", "V/m"),
    "physics.drive.frequency": ("frequency", "rad/s"),
}


def units(options: argparse.Namespace) -> int:
    """Convert density, temperature and Coulomb logarithm of a plasma to normalised units, and back."""
    case = RunCase(options.case) if options.case else None
    plasma, log_lambda, whose = _plasma(options, case)
    strength = plasma.collision_strength(log_lambda)
    kind = "electrons" if plasma.is_of_electrons else f"mass {plasma.mass:g} m_e, charge {plasma.charge:g} e"
    one = {
        "density n": f"{plasma.density:.6g} 1/m³",
        "temperature T": f"{plasma.temperature:.6g} eV",
        "frequency ω_p": f"{plasma.frequency:.6g} rad/s",
        "time 1/ω_p": f"{plasma.time:.6g} s",
        "length λ_D": f"{plasma.length:.6g} m",
        "velocity v_th": f"{plasma.velocity:.6g} m/s ({plasma.velocity / LIGHT_SPEED:.2g} c)",
        "potential T/q": f"{plasma.potential:.6g} V",
        "electric field T/(q λ_D)": f"{plasma.electric_field:.6g} V/m",
        "magnetic field m ω_p/q": f"{plasma.magnetic_field:.6g} T",
    }
    show_table(["1 in the code", "in SI units"], list(one.items()), title=f"The reference species: {kind}\n")
    print()
    show_pairs(
        {
            "N_D = n λ_D³": f"{plasma.debye_number:.6g} particles in a cube of the Debye length",
            "lnΛ": f"{log_lambda:.6g}, {whose}",
            "C = lnΛ/(8π N_D)": f"{strength:.6g} ω_p",
        },
        title="Coulomb collisions\n",
    )
    basic = ("electrons by ions, ν_e", ELECTRON_RATE) if plasma.is_of_electrons else ("like ions, ν_i", ION_RATE)
    rates = [basic, ("isotropisation, ν_T", ISOTROPISATION_RATE)]
    rows = [
        [name, *(f"{number:.4g}" for number in (rate, rate * plasma.frequency, 1 / rate, plasma.time / rate))]
        for name, rate in ((name, factor * strength) for name, factor in rates)
    ]
    print()
    show_table(["rates, as in the NRL", "in ω_p", "in 1/s", "time in 1/ω_p", "time in s"], rows)
    rows = [
        [name, f"{charge / plasma.charge:.6g}", f"{mass / plasma.mass:.8g}"] for name, (charge, mass) in SPECIES.items()
    ]
    print()
    show_table(["species", "species.NAME.charge", "species.NAME.mass"], rows)
    print(f'\nKeys of a case\n\nphysics.collision_operator = "landau"\nphysics.collision_strength = {strength:.7g}')
    if options.magnetic_field:
        print(f"physics.magnetic_field = [0.0, 0.0, {options.magnetic_field / plasma.magnetic_field:.7g}]")
    if options.length:
        print(f"problem.length = {options.length / plasma.length:.7g}")
    if options.time:
        print(f"time.end = {options.time / plasma.time:.7g}")
    if case:
        print()
        show_table(["key", "in the case", "in SI units"], list(_in_si(case, plasma)), title=f"{case.path}\n")
    return DONE


def _plasma(options: argparse.Namespace, case: RunCase | None) -> tuple[Units, float, str]:
    """The plasma of the options, or else that of a case: its units, its lnΛ, and the source of lnΛ in words."""
    given = {name: getattr(options, name) for name in ("density", "temperature", "log_lambda")}
    whole = given["density"] and given["temperature"]  # the options describe a plasma other than that of the case
    if case and options.collision_strength is None and not whole:
        of_case = {name: _numbers(case, f"physics.landau.{name}") for name in given}
        if all(of_case.values()):
            given = {name: of_case[name][0] if value is None else value for name, value in given.items()}
    density, temperature, log_lambda = given.values()
    if temperature is None or (density is None) == (options.collision_strength is None):
        raise UserError(
            "kjko units needs --temperature in eV and either --density in 1/m³ or --collision-strength (see 'kjko "
            "units --help')"
        )
    if density is None:
        strength = options.collision_strength
        plasma = Units.of_collision_strength(strength, temperature, log_lambda, options.mass, options.charge)
    else:
        plasma = Units(density, temperature, options.mass, options.charge)
    if log_lambda is not None:
        return plasma, log_lambda, "as given"
    kind = "electron-electron" if plasma.is_of_electrons else "ion-ion"
    return plasma, plasma.log_lambda, f"of the NRL Plasma Formulary ({kind})"


def _in_si(case: RunCase, plasma: Units) -> Iterator[list[str]]:
    """Rows of a table: each key of the case with a unit, its value in the case, and its value in SI units."""
    keys = {key: (getattr(plasma, name), unit) for key, (name, unit) in _UNIT_OF.items()}
    for name in case.species:
        keys[f"species.{name}.density"] = (plasma.density, "1/m³")
        keys[f"species.{name}.temperature"] = (plasma.temperature, "eV")
    for key, (one, unit) in keys.items():
        if numbers := _numbers(case, key):
            here, there = (", ".join(f"{number * by:.6g}" for number in numbers) for by in (1, one))
            yield [key, here, f"{there} {unit}"]


def _numbers(case: RunCase, key: str) -> list[float]:
    """The numbers of a key of a case; empty if the case does not have the key."""
    value = case.value(key, [])
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > sys.float_info.max:
            raise UserError(f"{case.path}: {key} must be a number, or a list of numbers")
    return numbers
