"""The code's units against CODATA and the NRL Plasma Formulary; ``kjko units``; a case that gives its plasma."""

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.constants
from hypothesis import given
from hypothesis import strategies as st

from hpc_kjko import units as module
from hpc_kjko.case.config import from_table, load
from hpc_kjko.casefile import RunCase, parse
from hpc_kjko.errors import UserError
from hpc_kjko.reference import landau
from hpc_kjko.units import ELECTRON_RATE, ION_RATE, ISOTROPISATION_RATE, SPECIES, Units

ROOT = Path(__file__).parents[2]
EDGE = Units(1e19, 100.0)  # of a tokamak: 1e13 cm⁻³
CORE = Units(1e20, 1e4)
PROTONS = Units(1e19, 100.0, SPECIES["protons (H)"][1])
ALPHAS = Units(1e19, 100.0, SPECIES["alpha particles (He)"][1], 2.0)

#: Gaussian units: e in statcoulomb, m_e in g, 1 eV in erg.
E, M, EV = 10 * scipy.constants.c * scipy.constants.e, scipy.constants.m_e * 1e3, scipy.constants.eV * 1e7


def test_constants_are_those_of_codata():
    known = scipy.constants.physical_constants
    assert module.ELEMENTARY_CHARGE == scipy.constants.e and module.LIGHT_SPEED == scipy.constants.c
    assert module.ELECTRON_MASS == pytest.approx(scipy.constants.m_e, rel=2e-9)  # of any edition
    assert module.VACUUM_PERMITTIVITY == pytest.approx(scipy.constants.epsilon_0, rel=2e-9)
    for name, of in {"protons (H)": "proton", "deuterons (D)": "deuteron", "tritons (T)": "triton"}.items():
        assert SPECIES[name] == (1.0, pytest.approx(known[f"{of}-electron mass ratio"][0], rel=1e-9))
    alpha = known["alpha particle-electron mass ratio"][0]
    assert SPECIES["alpha particles (He)"] == (2.0, pytest.approx(alpha, rel=1e-9))


def test_units_are_those_of_the_formulary():
    """Fundamental plasma parameters, with n in cm⁻³ and T in eV; rounded to three digits there."""
    n, t = 1e13, 100.0
    assert EDGE.frequency == pytest.approx(5.64e4 * math.sqrt(n), rel=2e-3)
    assert EDGE.length == pytest.approx(7.43 * math.sqrt(t / n), rel=2e-3)
    assert EDGE.velocity == pytest.approx(4.19e5 * math.sqrt(t), rel=2e-3)
    assert EDGE.debye_number == pytest.approx(1.72e9 * t**1.5 * n**-0.5 / (4 / 3 * math.pi), rel=2e-3)  # a sphere there
    assert 1.76e7 * 1e4 * EDGE.magnetic_field == pytest.approx(EDGE.frequency, rel=2e-3)  # it gyrates with ω_p
    assert PROTONS.frequency == pytest.approx(1.32e3 * math.sqrt(n), rel=4e-3)
    assert PROTONS.velocity == pytest.approx(9.79e3 * math.sqrt(t), rel=2e-3)
    assert ALPHAS.length == pytest.approx(EDGE.length / 2)


@pytest.mark.parametrize("units", [EDGE, CORE, PROTONS, ALPHAS], ids=["edge", "core", "protons", "alphas"])
def test_units_belong_together(units):
    assert units.length == pytest.approx(units.velocity * units.time)
    charge, mass = units.charge * scipy.constants.e, units.mass * scipy.constants.m_e
    assert charge * units.electric_field == pytest.approx(mass * units.velocity / units.time)
    assert units.electric_field == pytest.approx(units.velocity * units.magnetic_field)
    # Gauss's law: dE/dx = charge density, each in its unit
    gauss = charge * units.density / scipy.constants.epsilon_0
    assert units.electric_field / units.length == pytest.approx(gauss)
    assert units.potential == pytest.approx(units.electric_field * units.length)


def test_coulomb_logarithms_of_the_formulary():
    assert EDGE.log_lambda == pytest.approx(23.5 + 0.5 * math.log(1e-13) + 1.25 * math.log(100) - 0.6513, abs=1e-3)
    assert PROTONS.log_lambda == pytest.approx(23 + 1.5 * math.log(100) - 0.5 * math.log(2e13))
    assert ALPHAS.log_lambda == pytest.approx(PROTONS.log_lambda - 3 * math.log(2))


def practical(coefficient, n, t, log_lambda):
    """A rate of the Formulary: coefficient n lnΛ T^(−3/2) in s⁻¹, n in cm⁻³ and T in eV."""
    return coefficient * n * log_lambda * t**-1.5


def test_basic_rates_are_those_of_the_formulary():
    strength = EDGE.collision_strength(13.0)
    found = ELECTRON_RATE * strength * EDGE.frequency
    assert found == pytest.approx(practical(2.91e-6, 1e13, 100, 13.0), rel=2e-3)
    found = ISOTROPISATION_RATE * strength * EDGE.frequency
    assert found == pytest.approx(practical(8.2e-7, 1e13, 100, 13.0), rel=5e-3)
    for ions in (PROTONS, ALPHAS):
        scale = ions.charge**4 / math.sqrt(ions.mass / PROTONS.mass)
        strength = ions.collision_strength(13.0)
        found = ION_RATE * strength * ions.frequency
        assert found == pytest.approx(scale * practical(4.80e-8, 1e13, 100, 13.0), rel=2e-3)
        found = ISOTROPISATION_RATE * strength * ions.frequency
        assert found == pytest.approx(scale * practical(1.9e-8, 1e13, 100, 13.0), rel=2e-2)


@pytest.mark.parametrize("units", [EDGE, CORE, PROTONS], ids=["edge", "core", "protons"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0, 5.0])
def test_isotropisation_is_that_of_the_formulary_to_all_digits(units, ratio):
    """ν_T = 2√π e⁴ n lnΛ/(m^½ (k T∥)^(3/2)) A⁻² [−3 + (A + 3) φ(A)], where φ is of atan or of atanh."""
    log_lambda, a = 14.0, ratio - 1
    phi = math.atan(math.sqrt(a)) / math.sqrt(a) if a > 0 else math.atanh(math.sqrt(-a)) / math.sqrt(-a)
    energy, mass, n = units.temperature * EV, units.mass * M, units.density * 1e-6
    known = 2 * math.sqrt(math.pi) * E**4 * n * log_lambda / (math.sqrt(mass) * energy**1.5)
    known *= ((a + 3) * phi - 3) / a**2
    change = landau.isotropisation_rate(1.0, ratio, units.collision_strength(log_lambda))
    assert change / (2 * a) * units.frequency == pytest.approx(known, rel=5e-9)


def test_isotropisation_of_nearly_equal_temperatures():
    change = landau.isotropisation_rate(1.0, 1.0 + 1e-9, 1.0)
    assert change / 2e-9 == pytest.approx(ISOTROPISATION_RATE, rel=1e-6)


@pytest.mark.parametrize("ion", [name for name in SPECIES if name != "electrons"])
@pytest.mark.parametrize("units", [EDGE, CORE], ids=["edge", "core"])
def test_two_temperatures_meet_at_the_rate_of_the_formulary(ion, units):
    """dT_α/dt = ν (T_β − T_α): its 1.8e-19 is a rounded (8/3) √(2π) e⁴/eV^(3/2) = 1.754e-19."""
    (charge, ratio), share, log_lambda = SPECIES[ion], 0.5, 15.0
    strength = units.collision_strength(log_lambda)
    rates = landau.two_temperature_rate((1.0, share), (1.0, ratio), (1.0, 1 / charge), (-1.0, charge), strength)
    found = rates[0] / (share - 1) * units.frequency
    t, mass, n = units.temperature, ratio * M, units.density * 1e-6 / charge
    known = math.sqrt(M * mass) * charge**2 * n * log_lambda / (M * share * t + mass * t) ** 1.5
    assert found == pytest.approx(8 / 3 * math.sqrt(2 * math.pi) * E**4 / EV**1.5 * known, rel=5e-9)
    assert found == pytest.approx(1.8e-19 * known, rel=0.027)


@given(
    st.floats(1e8, 1e26), st.floats(0.1, 2e4), st.sampled_from([None, 5.0, 20.0]), st.sampled_from([(1, 1), (1836, 2)])
)
def test_density_comes_back_from_the_collision_strength(density, temperature, log_lambda, species):
    try:
        units = Units(density, temperature, *species)
        strength = units.collision_strength(log_lambda or units.log_lambda)
        if log_lambda is None and units.log_lambda < 1.5:
            return  # hardly a plasma: C hardly changes with the density
    except UserError:
        return
    again = Units.of_collision_strength(strength, temperature, log_lambda, *species)
    assert again.density == pytest.approx(density, rel=1e-9)
    assert (again.temperature, again.mass, again.charge) == (temperature, *species)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Units(-1.0, 1.0), "density = -1: it must be a positive number"),
        (lambda: Units(1e19, math.nan), "temperature = nan"),
        (lambda: Units(1e19, 1.0, mass=0.0), "mass = 0"),
        (lambda: Units(1e19, 1.0, charge=1e200), "charge = 1e+200"),
        (lambda: Units(1e30, 1.0), "are not a weakly coupled plasma: N_D = 0.00041"),
        (lambda: Units(1e19, 1e6), "a thermal speed of 1.4 c"),
        (lambda: Units(1e36, 2e4).log_lambda, "below 1, where collisions are not weak"),
        (lambda: EDGE.collision_strength(0.0), "log_lambda = 0"),
        (lambda: Units.of_collision_strength(10.0, 100.0), "collision_strength = 10 is not possible for a plasma"),
        (
            lambda: Units.of_collision_strength(10.0, 100.0, 15.0),
            "collision_strength = 10 is not possible for a plasma",
        ),
        (lambda: Units.of_collision_strength(0.0, 100.0), "collision_strength = 0"),
        (lambda: Units.of_collision_strength(1e-6, 100.0, -1.0), "log_lambda = -1"),
    ],
)
def test_what_is_no_plasma_is_said(call, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_commands_show(kjko_here, monkeypatch):
    page = (ROOT / "docs" / "reference" / "units.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    commands = re.findall(r"```sh\n(kjko units .*)\n```", page)
    shown = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert len(commands) == len(shown) == 2
    for line, text in zip(commands, shown, strict=True):
        assert kjko_here(*shlex.split(line)[1:]).stdout.endswith(text)
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(script, "units.md", "exec"), names)
    assert names["again"].density == pytest.approx(1e19) and f"{names['strength']:.7g}" in shown[0]


def test_the_numbers_of_the_page_s_comparison(monkeypatch):
    """Rows of the last table of docs/reference/units.md."""
    page = (ROOT / "docs" / "reference" / "units.md").read_text(encoding="utf-8").partition("## Against the NRL")[2]
    rows = [line.strip("| ").split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")][2:]
    for units, n, columns in ((EDGE, 1e13, slice(0, 2)), (CORE, 1e14, slice(2, 4))):
        log_lambda, t, deuteron = units.log_lambda, units.temperature, SPECIES["deuterons (D)"][1]
        strength, per_second = units.collision_strength(log_lambda), units.frequency
        energy = (1.0, 0.5), (1.0, deuteron), (1.0, 1.0), (1.0, 1.0)
        anisotropic = 2 * math.sqrt(math.pi) * E**4 * n * log_lambda / math.sqrt(M * (t * EV) ** 3) * (math.pi - 3)
        heat = 1.8e-19 * math.sqrt(M * M * deuteron) * n * log_lambda / (M * t / 2 + M * deuteron * t) ** 1.5
        known = [
            [ELECTRON_RATE * strength * per_second, practical(2.91e-6, n, t, log_lambda)],
            [ISOTROPISATION_RATE * strength * per_second, practical(8.2e-7, n, t, log_lambda)],
            [landau.isotropisation_rate(1.0, 2.0, strength) / 2 * per_second, anisotropic],
            [landau.two_temperature_rate(*energy, strength)[0] / -0.5 * per_second, heat],
        ]
        for row, numbers in zip(rows, known, strict=True):
            for text, number in zip(row[columns], numbers, strict=True):
                digits = len(text.partition("e")[0].replace(".", ""))
                assert float(text) == pytest.approx(number, rel=0.51 * 10 ** (1 - digits)), row


def test_the_lines_for_a_case_make_one(kjko_here, monkeypatch):
    options = ("--density", 1e19, "--temperature", 100, "--log-lambda", 10, "--magnetic-field", 2.5, "--length", 1e-3)
    result = kjko_here("units", *options, "--time", 1e-9)
    assert result.returncode == 0 and result.stderr == ""
    assert "lnΛ               10, as given\n" in result.stdout
    table = parse(result.stdout.partition("Keys of a case\n")[2])
    end = table.pop("time")["end"]
    assert end == pytest.approx(1e-9 / EDGE.time, rel=1e-5)
    table["problem"] |= {"kind": "maxwellian", "velocity_dims": 3}
    case = from_table(table)
    assert case.problem.length == (pytest.approx(1e-3 / EDGE.length, rel=1e-5),)
    assert case.physics.collision_strength == pytest.approx(EDGE.collision_strength(10.0), rel=1e-5)
    gyration = scipy.constants.e * 2.5 / scipy.constants.m_e
    assert np.allclose(case.physics.magnetic_field, [0, 0, gyration / EDGE.frequency])


def test_units_of_ions(kjko_here):
    result = kjko_here("units", "--density", 1e19, "--temperature", 100, "--mass", 1836.152673426)
    assert "ion-ion" in result.stdout and "like ions, ν_i" in result.stdout
    assert re.search(r"electrons +-1 +0\.00054461702\n", result.stdout)
    assert re.search(r"protons \(H\) +1 +1\n", result.stdout)


def test_a_case_that_gives_its_plasma_needs_no_options(kjko_here, tmp_path):
    (tmp_path / "mine.toml").write_text(from_table(PLASMA).toml())
    result = kjko_here("units", "mine.toml")
    assert result.returncode == 0, result.stderr
    assert re.search(r"lnΛ +13\.6, as given\n", result.stdout)
    assert re.search(rf"time.step +0\.1 +{0.1 * EDGE.time:.6g} s\n", result.stdout)
    assert re.search(r"physics.magnetic_field +0, 0, 2 +0, 0, 2\.02862 T\n", result.stdout)
    other = kjko_here("units", "mine.toml", "--density", 1e20, "--temperature", 1e4)
    assert "electron-electron" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "kjko units needs --temperature in eV and either --density in 1/m³ or --collision-strength"),
        ("--density 1e19", "needs --temperature"),
        ("--density 1e19 --temperature 1 --collision-strength 1", "either --density"),
        ("--density -1 --temperature 1", "--density: -1 must be a number, 0 or more"),
        ("--density 0 --temperature 1", "--density: 0 must be more than 0"),
        ("--density much --temperature 1", "--density: much must be a number"),
        ("--density 1e30 --temperature 1", "are not a weakly coupled plasma"),
        ("--density 1e36 --temperature 2e4", "lnΛ = "),
        ("--density 1e19 --temperatur 1e3 --log", "--log"),
        ("nowhere.toml --density 1e19 --temperature 100", "nowhere.toml: cannot read this case file"),
        ("wrong.toml --density 1e19 --temperature 100", "wrong.toml: time.step must be a number"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, says, kjko_here, tmp_path):
    (tmp_path / "wrong.toml").write_text('[time]\nstep = "long"\n')
    result = kjko_here("units", *arguments.split())
    assert result.returncode == 2 and says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("temperature", "code"), [("1e3", 0), ("1e-9", 2)])
def test_ranks_say_it_once(temperature, code, kjko):
    result = kjko("units", "--density", "1e19", "--temperature", temperature, ranks=2)
    assert result.returncode == code
    said = result.stdout.count("The reference species") + result.stderr.count("are not a weakly coupled plasma")
    assert said == 1 and "Traceback" not in result.stderr


# -- a case that gives its plasma ------------------------------------------------------------------------------------

LANDAU = {"log_lambda": 13.6, "density": 1e19, "temperature": 100.0}
PLASMA = {
    "problem": {"kind": "maxwellian", "velocity_dims": 3},
    "physics": {"collision_operator": "landau", "landau": LANDAU, "magnetic_field": [0.0, 0.0, 2.0]},
}


def with_landau(*without, physics=None, **keys):
    landau = {key: value for key, value in (LANDAU | keys).items() if key not in without}
    return PLASMA | {"physics": PLASMA["physics"] | {"landau": landau} | (physics or {})}


def test_a_case_gives_its_plasma_in_place_of_c(tmp_path):
    case = from_table(PLASMA)
    strength = 13.6 / (8 * math.pi * EDGE.debye_number)
    assert case.physics.collision_strength == pytest.approx(strength, rel=1e-12)
    by_hand = PLASMA["physics"] | {"landau": {}, "collision_strength": case.physics.collision_strength}
    plain = from_table(PLASMA | {"physics": by_hand}).table()
    resolved = case.table()
    assert {key: resolved["physics"]["landau"].pop(key) for key in LANDAU} == LANDAU
    assert resolved == plain and case.idle == ()  # all else is the same


def test_what_a_run_wrote_reads_back_as_the_same_case(tmp_path):
    case = from_table(PLASMA)
    path = tmp_path / "case.toml"
    path.write_text(case.toml())
    assert load(path) == case and from_table(case.table()) == case
    assert RunCase(path).collision_strength == case.physics.collision_strength
    # also one that was written with other digits of the constants: what it says is taken
    before = case.physics.collision_strength * (1 + 1e-9)
    assert load(path, {"physics.collision_strength": before}).physics.collision_strength == before


def test_a_case_whose_other_keys_are_idle_keeps_its_plasma():
    case = from_table(PLASMA | {"method": {"collision": "binary", "hidden": [8]}})
    assert "method.hidden" in case.idle[0] and len(case.idle) == 1
    assert case.physics.collision_strength == from_table(PLASMA).physics.collision_strength


def test_without_landau_the_plasma_has_no_effect():
    case = from_table(with_landau(physics={"collision_operator": "bath"}))
    assert case.physics.collision_strength == 0.01 and "physics.landau has no effect" in case.idle[0]
    case = from_table(PLASMA | {"method": {"collision": "none"}})
    assert "landau" not in case.table()["physics"] and "collision_strength" not in case.table()["physics"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (with_landau(physics={"collision_strength": 0.1}), "physics.collision_strength = 0.1 is not the"),
        (with_landau(physics={"collision_strength": 10**400}), "physics.collision_strength = 1000"),
        (with_landau(density=10**400), "physics.landau.density"),
        (with_landau(physics={"collision_strength": "much"}), "physics.collision_strength = 'much' is not the"),
        (with_landau("density"), "physics.landau.density is missing"),
        (with_landau("log_lambda", "density"), "physics.landau.log_lambda is missing"),
        (with_landau(exponent=0.0), "physics.landau.exponent = 0.0 is not for Coulomb collisions"),
        (with_landau(density=-1.0), "physics.landau.density = -1.0: it should be greater than 0"),
        (with_landau(density="1e19"), "physics.landau.density = '1e19': it should be a number"),
        (with_landau(densty=1.0), "did you mean density?"),
        (
            with_landau(density=1e30),
            "physics.landau: density = 1e+30 1/m³ and temperature = 100 eV are not a weakly coupled plasma",
        ),
        (with_landau(log_lambda=1e20), "physics.landau.log_lambda = 1e+20"),
        (with_landau(density=1e-9), "physics.collision_strength = "),
    ],
)
def test_a_mistake_in_the_plasma_of_a_case_is_one_sentence(table, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        from_table(table)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_with_a_plasma_restarts(kjko_here, tmp_path):
    small = {"particles": {"count": 1024}, "time": {"step": 0.1, "end": 0.2}, "method": {"collision": "binary"}}
    problem = {"kind": "bi_maxwellian", "velocity_dims": 3, "amplitude": 0.0}
    table = PLASMA | {"problem": problem, "output": {"checkpoint_every": 1}} | small
    (tmp_path / "mine.toml").write_text(from_table(table).toml())
    result = kjko_here("run", "mine.toml", "--out", "mine")
    assert result.returncode == 0, result.stderr
    result = kjko_here("restart", "mine", "--set", "time.end=0.4")
    assert result.returncode == 0, result.stderr
    assert load(tmp_path / "mine" / "case.toml").physics.landau.density == 1e19
