"""The reference, compared with the code: keys, defaults, columns, and what is generated."""

import json
import re
import shutil

import pytest
from test_docs import DOCS, PAGES, ROOT, blocks, name_of, text_of

from hpc_kjko.case import config
from hpc_kjko.case.sections import DriveSettings, LandauSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.casefile import parse
from hpc_kjko.cli.main import main
from hpc_kjko.files.column_meanings import MEANINGS, meaning_of
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import KINDS
from hpc_kjko.push.integrators import PHASES
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.schema import meaning, section_of

SECTIONS = {name: field.annotation for name, field in config.Case.model_fields.items()}
SECTIONS |= {"species": SpeciesSettings, "drive": DriveSettings, "landau": LandauSettings}
#: The page of each section's keys.
PAGES_OF_KEYS = {
    **dict.fromkeys(("physics", "landau", "drive"), "physics"),
    **dict.fromkeys(("particles", "grid", "time"), "particles_grid_time"),
    **dict.fromkeys(("method", "velocity_matching"), "method"),
    **dict.fromkeys(("output", "run"), "output_and_run"),
    **{name: name for name in ("problem", "species")},
}


def keys_of(section):
    """The keys that a section of a case may have."""
    if section == "problem":
        models = KINDS.values()
    else:
        models = [kind for kind in (SECTIONS[section], *getattr(SECTIONS[section], "__args__", ())) if kind]
        models = [kind for kind in models if hasattr(kind, "model_fields")]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_that_are_named_exist(page):
    text = text_of(page)
    named = re.findall(r"--set (species)\.\w+\.(\w+)", text)
    named += re.findall(r"--set (?!species\.)(\w+)\.(\w+)", text)
    if page.parent.name not in ("explanation", "decisions"):  # which name modules
        named += re.findall(r"`(\w+)\.(\w+)(?: = [^`]*)?`", text)
    for section, key in named:
        if section in SECTIONS and key != "json":
            assert key in keys_of(section), f"{section}.{key}"


@pytest.mark.parametrize("name", ["case_file", "species"])
def test_cases_on_a_reference_page_can_be_run(name):
    """Blocks of TOML with a problem are whole cases; those without one are parts of a case."""
    whole = [text for text in blocks(DOCS / "reference" / f"{name}.md", "toml") if "[problem]" in text]
    for text in whole:
        assert parse(config.from_table(parse(text)).toml())["problem"]["kind"] == parse(text)["problem"]["kind"]
    assert len(whole) == 1


FILES = sorted([*ROOT.glob("jobs/*.*"), *ROOT.glob("scripts/*.*")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_keys_in_cases_and_scripts_exist(path):
    for section, key in re.findall(r"(?:--set |\")(\w+)\.(\w+)=", text_of(path)):
        assert section == "section" or key in keys_of(section), f"{section}.{key}"
    if path.suffix == ".toml":
        config.load(path)


def tables():
    """Rows of the tables of keys by section: (key, default, what it means)."""
    found = {}
    for section, page in PAGES_OF_KEYS.items():
        text = text_of(DOCS / "reference" / f"{page}.md")
        parts = re.findall(r"<!-- generated: (?:keys )?(\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
        (part,) = (part for name, part in parts if name.removesuffix("s") == section or name == section)
        rows = [line for line in part.splitlines() if line.startswith("| `")]
        cells = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in rows]
        found[section] = [(key.strip("`"), default, text) for key, default, text in cells]
    return found


def test_the_reference_lists_every_key_and_no_other():
    listed = {section: {key for key, *_ in rows} for section, rows in tables().items()}
    assert listed.keys() == SECTIONS.keys()
    for section, keys in listed.items():
        assert keys == keys_of(section), section


def literal(text):
    """A default as a value; None where it is told in words."""
    try:
        return json.loads(text.strip("`"))
    except json.JSONDecodeError:
        return None


def test_the_reference_gives_the_defaults_that_there_are():
    """Those of a case with every section; some rows tell in words what a default depends on."""
    case = config.from_table({"problem": {"kind": "two_stream"}}).table()
    one = {"charge": 1.0, "mass": 1.0, "count": 1024}
    driven = {"physics": {"drive": {"amplitude": 0.1, "frequency": 1.0}}}
    several = config.from_table({"problem": {"kind": "plasma"}, "species": {"one": one}, **driven}).table()
    coulomb = {"problem": {"kind": "maxwellian", "velocity_dims": 2}, "physics": {"collision_operator": "landau"}}
    case["landau"] = config.from_table(coulomb).table()["physics"]["landau"]
    case |= {"species": several["species"]["one"], "drive": several["physics"]["drive"]}
    checked = 0
    for section, rows in tables().items():
        for key, text, _ in rows:
            if section != "problem" and key in case.get(section, {}) and literal(text) is not None:
                found = case[section][key]
                assert found == literal(text) or found == [literal(text)], f"{section}.{key}"
                checked += 1
    assert checked > 30


def test_defaults_of_a_problem_stand_in_its_own_table():
    text, kind = text_of(DOCS / "reference" / "problem.md"), None
    for line in text.splitlines():
        if line.startswith("## `"):
            kind = line.strip("# `")
            case = config.from_table({"problem": {"kind": kind}}).table()["problem"]
        elif kind and line.startswith("| `"):
            key, default, _ = re.split(r"(?<!\\) \| ", line.strip("| "))
            found = case.get(key.strip("`"), None)
            if literal(default) is not None:
                assert found == literal(default) or found == [literal(default)], (kind, key)
    assert kind == list(KINDS)[-1]


def test_every_column_of_the_series_is_explained():
    tables = [
        {"problem": {"kind": "two_stream"}, "particles": {"control_variate": True, "count": 1024}},
        {"problem": {"kind": "landau_damping"}, "physics": {"field": "ampere"}, "particles": {"count": 1024}},
        {"problem": {"kind": "gaussian"}, "particles": {"count": 1024}},
        {"problem": {"kind": "two_stream"}, "physics": {"collision_operator": "dougherty"}},
        {"problem": {"kind": "two_stream"}, "physics": {"drive": {"amplitude": 0.1, "frequency": 1.0}}},
    ]
    seen = {"step", "time", "seconds", *PHASES}
    for table in tables:
        simulation = Simulation(config.from_table(table), Communicator())
        seen |= {name for diagnostic in simulation.diagnostics for name in diagnostic.columns}
    assert all(meaning_of(name) for name in seen)
    assert meaning_of("ions_kinetic_energy", ("ions",)) == meaning_of("kinetic_energy") and not meaning_of("of_mine")
    assert set(MEANINGS) == {re.sub(r"_\d$", "_1", name) for name in seen}, "a column that no run has"


def test_generated_parts_are_up_to_date(monkeypatch):
    """Of the pages, and the page of ``kjko cases``."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    assert text_of(reference.CASES) == reference.page_of_cases(), "run python scripts/reference.py"
    assert len(reference.pages()) >= 9
    for page in reference.pages():
        assert text_of(page) == reference.with_generated_parts(text_of(page)), "run python scripts/reference.py"


def test_what_is_generated_is_written_where_it_is_not_up_to_date_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.png", "fonts"))
    cases = shutil.copy(reference.CASES, tmp_path / "cases.txt")
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(reference, "CASES", cases)
    reference.main()
    assert capsys.readouterr().out == ""
    page = tmp_path / "docs" / "reference" / "method.md"
    page.write_text(text_of(page).replace("| `order` |", "| `other` |"), encoding="utf-8")
    cases.write_text("", encoding="utf-8")
    reference.main()
    assert capsys.readouterr().out.split() == [str(cases), str(page)]
    assert text_of(page) == text_of(DOCS / "reference" / "method.md")
    assert text_of(cases) == text_of(ROOT / "hpc_kjko" / "post" / "templates" / "cases.txt")


def test_every_key_is_explained_in_its_model():
    for section in SECTIONS:
        models = KINDS.values() if section == "problem" else [section_of(SECTIONS[section])]
        for model in models:
            assert all(meaning(model, name) for name in model.model_fields), model


def test_kjko_cases_explains_every_key_and_keeps_formulas_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["cases"]) == 0
    said = capsys.readouterr().out
    for section in SECTIONS:
        for key in keys_of(section) - {"kind"}:
            assert re.search(rf"^  {key} = \S.*\n +\S", said, re.MULTILINE), key
    for formula in ("φ = Σ_j [½ x_j² + A cos(q x_j)]", "A Σ_j [sin(2π x_j/L_j) + ½ sin(4π x_j/L_j)]", "κ = ν/ω_p"):
        assert any(formula in line for line in said.splitlines()), formula
