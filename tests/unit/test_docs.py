"""The documentation, run: commands, Python, keys, defaults, columns and links of README.md and docs/."""

import ast
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_kjko.case import config
from hpc_kjko.case.method import SOLVER_DEFAULTS
from hpc_kjko.case.sections import DriveSettings, LandauSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.casefile import parse
from hpc_kjko.cli.main import _parsed, main
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import KINDS
from hpc_kjko.running import driver
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.schema import meaning, section_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {name: field.annotation for name, field in config.Case.model_fields.items()}
SECTIONS |= {"species": SpeciesSettings, "drive": DriveSettings, "landau": LandauSettings}
#: Headings of tables that are not simply the section's name.
HEADINGS = {"## [species.NAME]": "species", "### [physics.drive]": "drive", "### [physics.landau]": "landau"}
#: Run here one after the other, as they stand; commands of the other pages are only looked at.
FOLLOWED = ["README.md", "quickstart.md", "analysis.md"]
#: What a page may ask for that is not here to be run.
ELSEWHERE = {"export HDF5_USE_FILE_LOCKING=FALSE", "module", "source", ".", "python -m venv", "pip"}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def commands(page):
    """The commands of a page's sh blocks, as words; joined ones apart."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for joined, part in itertools.groupby(words, lambda word: word == "&&"):
                if not joined:
                    yield list(part)


def keys_of(section):
    """The keys that a section of a case may have."""
    if section == "problem":
        models = KINDS.values()
    else:
        models = [kind for kind in (SECTIONS[section], *getattr(SECTIONS[section], "__args__", ())) if kind]
        models = [kind for kind in models if hasattr(kind, "model_fields")]
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the cases of jobs/, small; anything may be written into it."""
    (tmp_path / "jobs").mkdir()
    for name in ("two_stream", "two_stream_full"):
        changes = ["particles.count=1024", "time.end=1.0", "method.hidden=[4]", "method.iterations=2"]
        changes += ["method.first_iterations=4", "output.every=5", "output.particles_every=5"]
        case = config.load(ROOT / "jobs" / f"{name}.toml", changes)
        (tmp_path / "jobs" / f"{name}.toml").write_text(case.toml())
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def kjko_of(words):
    """The arguments of kjko in a command, whatever starts it; None if there is no kjko."""
    for place, word in enumerate(words[:5]):
        if word == "kjko" or word.endswith("/kjko"):
            arguments = words[place + 1 :]
            return arguments[: arguments.index(">")] if ">" in arguments else arguments
    return None


def look_at(words):
    """Check a command without running it."""
    arguments = kjko_of(words)
    if arguments is not None:
        options = _parsed(arguments)
        if arguments[0] == "run":
            config.load(ROOT / options.case, options.set)
        return
    for script in (word for word in words if re.match(r"(scripts|jobs)/", word)):
        assert (ROOT / script).is_file(), f"{script} is not there"
    if words[0] == "sbatch" and "jobs/" in " ".join(words):  # else what `kjko sweep --slurm` wrote
        script, case, _, *rest = words[next(i for i, word in enumerate(words) if word.startswith("jobs/")) :]
        changes = [rest[i + 1] for i, word in enumerate(rest) if word == "--set"]
        assert script.endswith(".sbatch")
        config.load(ROOT / case, changes)
    elif words[0] == "bash":
        subprocess.run(["bash", "-n", ROOT / words[1]], check=True)
    elif words[0] == "python" and words[1].startswith("scripts/"):
        source = (ROOT / words[1]).read_text()
        assert all(f'"{option}"' in source for option in words[2:] if option.startswith("--"))
    elif "pip" in words[0]:
        extras = parse(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        for wanted in re.findall(r"\[([\w,]+)\]", words[-1]):
            assert set(wanted.split(",")) <= set(extras)
    elif words[0] != "sbatch":
        assert words[0] in ELSEWHERE or " ".join(words[:3]) in ELSEWHERE, f"{words}: the tests do not know this command"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in (*FOLLOWED, "extending.md")], ids=lambda page: page.name
)
def test_commands_name_what_there_is(page):
    for words in commands(page):
        look_at(words)


def make_what_is_looked_at(checkout, capsys):
    """Runs that docs/analysis.md speaks of, and the table of one."""
    for name, step in (("two_stream", "0.1"), ("finer", "0.05")):
        out = ["--out", f"runs/{name}", "--set", f"time.step={step}"]
        assert main(["run", "jobs/two_stream.toml", *out]) == 0
    capsys.readouterr()
    assert main(["series", "runs/two_stream", "--csv"]) == 0
    (checkout / "measured.csv").write_text(capsys.readouterr().out)


#: Sizes and numbers of ranks that are too large for a test.
SMALL = {r"^time\.end=\S+": "time.end=1.2", r"^particles.count=1024,2048": "particles.count=1024"}
SMALL |= {r"^5$": "0.2", r"^grid.cells=32,64": "grid.cells=32", r"^2$": "1"}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_can_be_followed(name, checkout, capsys, monkeypatch, quick_children):
    """One rank does for many here, and small sizes for large ones."""
    (page,) = (page for page in PAGES if page.name == name)
    monkeypatch.setenv("SCRATCH", str(checkout / "scratch"))
    if name == "analysis.md":
        make_what_is_looked_at(checkout, capsys)
    for words in commands(page):
        arguments = kjko_of(words)
        if "echo" in words or words[0] in ("for", "done", "do"):
            continue
        if arguments is None or words[0] in ("srun", "sbatch"):
            look_at(words)
            continue
        for large, small in SMALL.items():
            arguments = [re.sub(large, small, os.path.expandvars(word)) for word in arguments]
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)
    for block in blocks(page, "sh"):
        if "runs/weak/snapshots" in block:  # a shell's own
            subprocess.run(["bash", "-ec", block], check=True)
    names = {}
    for block in blocks(page, "python"):
        small = (
            block.replace("4096", "1024").replace('"time.end": 5.0', '"time.end": 0.5').replace("end=6.0", "end=0.6")
        )
        exec(compile(small, name, "exec"), names)
    assert "Traceback" not in capsys.readouterr().err
    runs = sorted(path.name for path in (checkout / "runs").iterdir())
    assert len(runs) >= 2


# -- keys, defaults, columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page):
    text = text_of(page)
    named = re.findall(r"--set (\w+)\.(\w+)", text)
    if page.name != "architecture.md":  # which names modules
        named += re.findall(r"`(\w+)\.(\w+)(?: = [^`]*)?`", text)
    for section, key in named:
        if section in SECTIONS and key != "json":
            assert key in keys_of(section), f"{section}.{key}"


FILES = sorted([*ROOT.glob("jobs/*.*"), *ROOT.glob("scripts/*.*")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_keys_in_cases_and_scripts_exist(path):
    for section, key in re.findall(r"(?:--set |\")(\w+)\.(\w+)=", text_of(path)):
        assert section == "section" or key in keys_of(section), f"{section}.{key}"
    if path.suffix == ".toml":
        config.load(path)


def tables():
    """Rows of the tables of docs/configuration.md by section: (keys, default, …)."""
    found, section = {}, None
    for line in text_of(ROOT / "docs" / "configuration.md").splitlines():
        if line in HEADINGS:
            section = HEADINGS[line]
        elif line.startswith("## "):
            heading = re.fullmatch(r"## \[(\w+)\]", line)
            section = heading[1] if heading else None
        elif section and line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split(" | ")]
            found.setdefault(section, []).append((re.findall(r"`(\w+)`", cells[0]), *cells[1:]))
    return found


def test_configuration_lists_every_key_and_no_other():
    listed = {section: [key for keys, *_ in rows for key in keys] for section, rows in tables().items()}
    assert listed.keys() == SECTIONS.keys()
    for section, keys in listed.items():
        assert set(keys) == keys_of(section), section


def literal(text):
    """A default as a value; None where it is told in words."""
    text = text.replace("−", "-").strip()
    if re.fullmatch(r"`[a-z]\w*`", text):
        return {"`true`": True, "`false`": False}.get(text, text.strip("`"))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def defaults():
    """(section, key, default, case that has it) for every default that is not told in words."""
    plain = {"problem": {"kind": "two_stream"}, "method": {"collision": "velocity_matching"}}
    special = config.from_table(plain | {"physics": {"field": "external"}}).table()
    case = special | config.from_table({"problem": {"kind": "two_stream"}}).table()
    regression = config.from_table({"problem": {"kind": "two_stream"}, "method": {"solver": "regression"}}).table()
    case["method"] = regression["method"] | case["method"]
    one = {"charge": 1.0, "mass": 1.0, "count": 1024}
    several = {"problem": {"kind": "plasma"}, "species": {"one": one}}
    driven = {"physics": {"drive": {"amplitude": 0.1, "frequency": 1.0}}}
    case["species"] = config.from_table(several).table()["species"]["one"]
    coulomb = {"problem": {"kind": "maxwellian", "velocity_dims": 2}, "physics": {"collision_operator": "landau"}}
    case["landau"] = config.from_table(coulomb).table()["physics"]["landau"]
    case["drive"] = config.from_table(several | driven).table()["physics"]["drive"]
    in_words = {("method", "collision"), ("physics", "field"), ("method", "solver")}
    in_words |= {("method", key) for keys in SOLVER_DEFAULTS.values() for key in keys}
    for section, rows in tables().items():
        for keys, *columns in rows:
            values = columns[0].split(", ") if len(keys) > 1 else columns[:1]
            for key, text in zip(keys, values, strict=True):
                if section != "problem" and (section, key) not in in_words and literal(text) is not None:
                    yield section, key, literal(text), case
    kinds = []
    for line in text_of(ROOT / "docs" / "configuration.md").partition("## [species.NAME]")[0].splitlines():
        if line.startswith("`"):
            kinds = [kind for kind in re.findall(r"`(\w+)`", line.partition(":")[0]) if kind in KINDS]
        if line.startswith("| `") and kinds:
            keys, *columns = (cell.strip() for cell in line.strip("|").replace("\\|", "¦").split(" | "))
            keys = re.findall(r"`(\w+)`", keys)
            for kind, column in zip(kinds, columns, strict=False):
                for key, text in zip(keys, column.split(", ") if len(keys) > 1 else [column], strict=True):
                    if literal(text) is not None:
                        yield "problem", key, literal(text), config.from_table({"problem": {"kind": kind}}).table()


def test_configuration_gives_the_defaults_that_there_are():
    checked = 0
    for section, key, default, case in defaults():
        found = case[section].get(key)
        assert found == default or found == [default], f"{section}.{key} = {found} of {case['problem']['kind']}"
        checked += 1
    assert checked > 55


def test_every_column_of_the_series_is_explained():
    text = text_of(ROOT / "docs" / "configuration.md")
    explained = set(re.findall(r"`(\w+)`", text[text.index("## Columns of the time series") :]))
    tables = [
        {"problem": {"kind": "two_stream"}, "particles": {"control_variate": True, "count": 1024}},
        {"problem": {"kind": "landau_damping"}, "physics": {"field": "ampere"}, "particles": {"count": 1024}},
        {"problem": {"kind": "gaussian"}, "particles": {"count": 1024}},
        {"problem": {"kind": "two_stream"}, "physics": {"collision_operator": "dougherty"}},
        {"problem": {"kind": "two_stream"}, "physics": {"drive": {"amplitude": 0.1, "frequency": 1.0}}},
    ]
    for table in tables:
        simulation = Simulation(config.from_table(table), Communicator())
        names = {name for diagnostic in simulation.diagnostics for name in diagnostic.columns}
        names = {re.sub(r"(momentum|temperature|marginal_l1_[xv])_\d", r"\1_1", name) for name in names}
        assert names <= explained


def test_what_a_restart_may_change_is_as_documented():
    text = text_of(ROOT / "docs" / "configuration.md")
    part = text[text.index("## What a restart may change") : text.index("## What `kjko analyze`")]
    named = {(section, key) for section, key in re.findall(r"`(\w+)\.(\w+)`", part)}
    assert named == {(s, key) for s, keys in driver.CHANGEABLE.items() if s not in ("output", "run") for key in keys}


# -- links -----------------------------------------------------------------------------------------------------------


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")) or not re.search(r"[./#]", target):  # p(x)-like is no link
            continue
        path, _, place = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if place:
            assert place in {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text_of(found), re.MULTILINE)}, (
                target
            )
    for path in re.findall(r"`((?:docs|scripts|jobs|hpc_kjko|tests)/[\w./]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_reached_from_the_readme():
    linked = "".join(text_of(page) for page in PAGES if page.name != "architecture.md")
    assert all(f"{page.name})" in linked or f"{page.name}#" in linked for page in PAGES[1:]), os.listdir(ROOT / "docs")


def test_the_demo_installs_what_the_first_pages_use():
    (extras,) = re.findall(r'environment.sh "\$venv" ([\w,]+)', text_of(ROOT / "scripts" / "demo.sh"))
    for name in ("README.md", "quickstart.md"):
        (page,) = (page for page in PAGES if page.name == name)
        named = re.findall(r"pip install[^\n]*\[([\w,]+)\]", text_of(page))
        assert {extra for names in named for extra in names.split(",")} <= set(extras.split(","))
    for path in ("README.md", "scripts/environment.sh"):  # how to do the same by hand
        assert f"bash scripts/environment.sh .venv {extras}" in text_of(ROOT / path)


# -- what keys mean --------------------------------------------------------------------------------------------------


def plain(text):
    """Words of a description, without marks of Markdown, its first letter small and no full stop at the end."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("\\|", "|").replace("¦", "|")
    text = " ".join(text.split()).removesuffix(".")
    return text[:1].lower() + text[1:]


def meanings():
    """(section, key, what docs/configuration.md says of it), once for each table that has the key."""
    for section, rows in tables().items():
        for keys, *columns in rows:
            for key in keys:
                yield section, key, plain(columns[-1])


def test_models_say_of_each_key_what_the_documentation_begins_with():
    """So there is one text a key: ``kjko cases`` shows it, docs/configuration.md may go on."""
    for section, key, said in meanings():
        models = KINDS.values() if section == "problem" else [section_of(SECTIONS[section])]
        names = {(model, field.alias or name): name for model in models for name, field in model.model_fields.items()}
        known = {plain(meaning(model, name)) for (model, alias), name in names.items() if alias == key}
        assert known and all(known), f"{section}.{key} is not explained in its model"
        assert any(said.startswith(text) for text in known), f"{section}.{key}: {said!r} does not begin with {known}"


def test_the_page_of_kjko_cases_is_up_to_date():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from list_cases import PAGE, page
    finally:
        sys.path.pop(0)
    assert PAGE.read_text(encoding="utf-8") == page(), "run python scripts/list_cases.py"


def test_kjko_cases_explains_every_key_and_keeps_formulas_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["cases"]) == 0
    said = capsys.readouterr().out
    for section in SECTIONS:
        for key in keys_of(section) - {"kind"}:
            assert re.search(rf"^  {key} = \S.*\n +\S", said, re.MULTILINE), key
    for formula in ("φ = Σ_j [½ x_j² + A cos(q x_j)]", "A Σ_j [sin(2π x_j/L_j) + ½ sin(4π x_j/L_j)]", "κ = ν/ω_p"):
        assert any(formula in line for line in said.splitlines()), formula
