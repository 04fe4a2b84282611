"""Units in the files are those of the figures and of docs/reference/units.md."""

from pathlib import Path

import h5py
import pytest

from hpc_kjko import Case
from hpc_kjko.files.column_units import density_unit, in_symbols, unit_of
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.post import figures
from hpc_kjko.post.figures.runfiles import RunFiles
from hpc_kjko.running.diagnostics import units_of
from hpc_kjko.units import Units


def in_si(unit: str, plasma: Units) -> float:
    """A unit in SI units, from the values of its symbols."""
    symbols = {
        "n̄": plasma.density,
        "m": plasma.velocity**-2 * plasma.temperature * 1.602176634e-19,
        "v_th": plasma.velocity,
        "ω_p": plasma.frequency,
    }
    value, powers = 1.0, "²³⁴⁵⁶"
    above, _, below = unit.partition("/")
    for part, sign in ((above, 1), (below.strip("()"), -1)):
        for factor in part.split():
            power = powers.find(factor[-1]) + 2 if factor[-1] in powers else 1
            value *= symbols.get(factor.rstrip(powers), 1.0) ** (sign * power)
    return value


@pytest.mark.parametrize(
    ("column", "in_1d", "in_3d", "unbounded"),
    [
        ("time", "1/ω_p", "1/ω_p", "1/ω_p"),
        ("mass", "n̄ m v_th/ω_p", "n̄ m v_th³/ω_p³", "m"),
        ("momentum_2", "n̄ m v_th²/ω_p", "n̄ m v_th⁴/ω_p³", "m v_th"),
        ("field_energy", "n̄ m v_th³/ω_p", "n̄ m v_th⁵/ω_p³", "m v_th²"),
        ("collision_energy_total", "n̄ m v_th³/ω_p", "n̄ m v_th⁵/ω_p³", "m v_th²"),
        ("collision_free_energy_total_error", "n̄ m v_th³/ω_p", "n̄ m v_th⁵/ω_p³", "m v_th²"),
        ("dissipation", "n̄ m v_th³", "n̄ m v_th⁵/ω_p²", "m v_th² ω_p"),
        ("entropy", "n̄ v_th/ω_p", "n̄ v_th³/ω_p³", "1"),
        ("temperature_1", "m v_th²", "m v_th²", "m v_th²"),
        ("drift_error", "v_th² ω_p²", "v_th² ω_p²", "v_th² ω_p²"),
        ("covariance_x_1_v_1", "v_th²/ω_p", "v_th²/ω_p", "v_th²/ω_p"),
        ("kl", "1", "1", "1"),
        ("seconds_push", "s", "s", "s"),
    ],
)
def test_units_follow_from_the_quantity_and_the_dimensions(column, in_1d, in_3d, unbounded):
    assert [unit_of(column, dims) for dims in (1, 3, 0)] == [in_1d, in_3d, unbounded]


def test_units_have_the_values_of_kjko_units():
    """An energy of the box is n T λ_D^dx, and ½∫|E|²dx has the same unit."""
    plasma = Units(density=1e19, temperature=100.0)
    joule = plasma.temperature * 1.602176634e-19
    for dims in (1, 2, 3):
        energy = plasma.density * joule * plasma.length**dims
        assert in_si(unit_of("kinetic_energy", dims), plasma) == pytest.approx(energy, rel=1e-6)
        field = 8.8541878128e-12 * plasma.electric_field**2 * plasma.length**dims
        assert energy == pytest.approx(field, rel=1e-6)
    assert in_si(density_unit("xv", 1), plasma) == pytest.approx(plasma.density / plasma.velocity)


def test_collisions_without_a_bath_change_the_entropy():
    """Species with their own operators have the units of these."""
    assert unit_of("collision_free_energy", 1, bath=False) == unit_of("entropy", 1)
    assert unit_of("dissipation", 2, bath=False) == in_symbols({"n̄": 1, "v_th": 2, "ω_p": -1})
    species = {"charge": 1.0, "mass": 1.0, "count": 1024, "collision_strength": 0.1}
    case = Case.from_table(
        {
            "problem": {"kind": "plasma"},
            "species": {"ions": species | {"collision_operator": "dougherty"}, "rest": species},
        }
    )
    units = units_of(["mass", "ions_mass", "ions_dissipation", "rest_dissipation"], case)
    assert list(units.values()) == ["n̄ m v_th/ω_p", "n̄ m v_th/ω_p", "n̄ v_th", "n̄ m v_th³"]


def test_the_file_and_the_figures_have_the_same_unit(a_run):
    with h5py.File(a_run / "series.h5") as file:
        unit = file["field_energy"].attrs["unit"].decode()
        assert file["time"].attrs["unit"].decode() == "1/ω_p" and file["kl"].attrs["unit"] == b"1"
    run = RunFiles.of(RunFolder(a_run))
    drawn = {picture.name: picture for picture in figures.pictures_of(run)}
    assert drawn["field_energy"].panels[0].y.unit == drawn["energies"].panels[0].y.unit == unit == "n̄ m v_th³/ω_p"


def test_the_symbols_are_explained():
    page = (Path(__file__).parents[2] / "docs/reference/units.md").read_text()
    for symbol in (r"\bar n", r"\omega_p", r"v_\mathrm{th}"):
        assert symbol in page
