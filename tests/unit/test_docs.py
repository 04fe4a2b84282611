"""The documentation, run: commands, Python, keys, defaults, columns and links of README.md and docs/."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from datetime import date
from pathlib import Path

import pytest

from hpc_kjko.case import config
from hpc_kjko.case.sections import DriveSettings, LandauSettings
from hpc_kjko.case.species_section import SpeciesSettings
from hpc_kjko.casefile import parse
from hpc_kjko.cli.main import VERBS, _parsed, main
from hpc_kjko.files.column_meanings import MEANINGS, meaning_of
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.problems import KINDS
from hpc_kjko.push.integrators import PHASES
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.schema import meaning, section_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
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
#: Run here, each in a folder of its own, as they stand; commands of the other pages are only looked at.
FOLLOWED = [
    *("README.md", "docs/tutorials/two_stream.md", "docs/tutorials/two_species.md"),
    *("docs/howto/sweep.md", "docs/howto/look_at_runs.md", "docs/howto/python.md"),
    *("docs/howto/report.md", "docs/howto/figures.md", "docs/howto/compare.md", "docs/howto/analyze.md"),
    "docs/howto/other_programs.md",
]
#: The runs that those pages speak of without making them.
MADE_BEFORE = {
    "docs/howto/look_at_runs.md": ["two_stream"],
    "docs/howto/report.md": ["two_stream", "finer"],
    "docs/howto/figures.md": ["two_stream", "finer"],
    "docs/howto/compare.md": ["two_stream", "finer"],
    "docs/howto/analyze.md": ["two_stream"],
    "docs/howto/other_programs.md": ["weak"],
}
#: What a page may ask for that is not here to be run.
ELSEWHERE = {"export HDF5_USE_FILE_LOCKING=FALSE", "module", "source", ".", "python -m venv", "pip"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


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


def small_cases(folder):
    """The cases of jobs/, small."""
    (folder / "jobs").mkdir()
    for name in ("two_stream", "two_stream_full"):
        changes = ["particles.count=1024", "time.end=1.0", "method.hidden=[4]", "method.iterations=2"]
        changes += ["method.first_iterations=4", "output.every=5", "output.particles_every=5"]
        case = config.load(ROOT / "jobs" / f"{name}.toml", changes)
        (folder / "jobs" / f"{name}.toml").write_text(case.toml())


STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@contextlib.contextmanager
def handlers_kept():
    """What the tests start later would inherit signals that a run has left ignored."""
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the runs of MADE_BEFORE."""
    folder = tmp_path_factory.mktemp("made")
    small_cases(folder)
    with handlers_kept():
        for name, step in (("two_stream", "0.1"), ("finer", "0.05")):
            out = ["--out", str(folder / name), "--set", f"time.step={step}"]
            assert main(["run", str(folder / "jobs" / "two_stream.toml"), *out]) == 0
    shutil.copytree(folder / "two_stream", folder / "weak")
    return folder


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the cases of jobs/, small; anything may be written into it."""
    small_cases(tmp_path)
    monkeypatch.chdir(tmp_path)
    with handlers_kept():
        yield tmp_path


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


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in FOLLOWED], ids=name_of)
def test_commands_name_what_there_is(page):
    for words in commands(page):
        if not {"mine.toml", "bump.toml"} & set(words):  # which test_extending.py makes from the pages and runs
            look_at(words)


#: Sizes and numbers of ranks that are too large for a test.
SMALL = {r"^time\.end=\S+": "time.end=1.2", r"^particles.count=1024,2048": "particles.count=1024"}
SMALL |= {r"^5$": "0.2", r"^grid.cells=32,64": "grid.cells=32", r"^2$": "1"}
SMALL_KEYS = {r"count = \d+": "count = 1024", r"end = \d+\.0": "end = 0.4"}


def write_files_of(page, folder):
    """The files that a page asks for, small: blocks whose first line is their name."""
    for language in ("python", "toml"):
        for text in blocks(page, language):
            named = re.match(r"# (\w+\.(?:py|toml))\n", text)
            if named:
                for large, small in SMALL_KEYS.items():
                    text = re.sub(large, small, text)
                (folder / named[1]).write_text(text)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_can_be_followed(name, checkout, made, capsys, monkeypatch, quick_children):
    """One rank does for many here, and small sizes for large ones."""
    page = ROOT / name
    monkeypatch.setenv("SCRATCH", str(checkout / "scratch"))
    monkeypatch.syspath_prepend(str(checkout))
    for run in MADE_BEFORE.get(name, ()):
        shutil.copytree(made / run, checkout / "runs" / run)
    if name == "docs/howto/compare.md":
        capsys.readouterr()
        assert main(["series", "runs/two_stream", "--csv"]) == 0
        (checkout / "measured.csv").write_text(capsys.readouterr().out)
    write_files_of(page, checkout)
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
        if re.match(r"# \w+\.py\n", block):
            continue
        small = (
            block.replace("4096", "1024").replace('"time.end": 5.0', '"time.end": 0.5').replace("end=6.0", "end=0.6")
        )
        exec(compile(small, name, "exec"), names)
    assert "Traceback" not in capsys.readouterr().err
    assert any((checkout / "runs").iterdir())


# -- keys, defaults, columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_that_are_named_exist(page):
    text = text_of(page)
    named = re.findall(r"--set (\w+)\.(\w+)", text)
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


# -- links -----------------------------------------------------------------------------------------------------------


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
    """Along links, as a reader of the files would go."""
    reached, ahead = set(), [PAGES[0]]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#:]+\.md)(?:#[^)\s]*)?\)", text_of(page))
        ahead += [(page.parent / target).resolve() for target in targets]
    listed = {page for page in PAGES if page.parent.name in ("benchmarks", "decisions")}
    assert set(PAGES) - reached <= listed


def test_the_demo_installs_what_the_first_pages_use():
    (extras,) = re.findall(r'environment.sh "\$venv" ([\w,]+)', text_of(ROOT / "scripts" / "demo.sh"))
    for page in (ROOT / "README.md", DOCS / "tutorials" / "two_stream.md"):
        named = re.findall(r"pip install[^\n]*\[([\w,]+)\]", text_of(page))
        assert {extra for names in named for extra in names.split(",")} <= set(extras.split(","))
    for path in ("README.md", "scripts/environment.sh"):  # how to do the same by hand
        assert f"bash scripts/environment.sh .venv {extras}" in text_of(ROOT / path)


def test_the_readme_reaches_a_run_in_few_lines():
    text = text_of(ROOT / "README.md")
    assert len(text[: text.index("bash scripts/demo.sh")].splitlines()) <= 12


#: Pages of which every sentence has been read for its length.
PLAIN = [page for page in PAGES if not re.search(r"benchmarks/2|research", name_of(page))]


@pytest.mark.parametrize("page", PLAIN, ids=name_of)
def test_sentences_are_short(page):
    """No more than thirty words; formulas, code, tables and the names in references aside."""
    text = re.sub(r"```.*?```|<!-- generated.*?<!-- end -->", "", text_of(page), flags=re.DOTALL)
    text = re.sub(r"^\s*(\|.*|#.*|\d+\. .*doi.*|:::.*|\d+\. .*arXiv.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|\$[^$]*\$", "x", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[*]|\d+\.) ", text):
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(paragraph.split())):
            assert len(sentence.split()) <= 30, sentence


# -- what keys mean --------------------------------------------------------------------------------------------------


def plain(text):
    """Words of a description, without marks of Markdown, its first letter small and no full stop at the end."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("\\|", "|").replace("¦", "|")
    text = " ".join(text.split()).removesuffix(".")
    return text[:1].lower() + text[1:]


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


def test_validation_is_whole(monkeypatch):
    """Every validation has a group of rows, and every row what the page shows of it. Numbers and verdicts agree."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    groups = json.loads(text_of(DOCS / "validation.json"))
    source = text_of(ROOT / "scripts" / "validate.py")
    names = re.findall(r'^    "(\w+)": \w+,$', source[source.index("VALIDATIONS") :], re.MULTILINE)
    listed = [name for group in groups for name in group["validations"]]
    assert sorted(listed) == sorted(names)
    for row in (row for group in groups for row in group["rows"]):
        assert {"case", "quantity", "target", "measured", "met", "date", "commit", "machine"} == row.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and re.fullmatch(r"[0-9a-f]{7}\+?", row["commit"])
        ratio = reference.ratio_of(row["target"], row["measured"])
        assert ratio is None or row["met"] == (ratio <= 1), row


@pytest.mark.parametrize(
    ("target", "measured", "ratio"),
    [
        ("≤ 3 %", "2.6, 1.6, 2.9 %", 2.9 / 3),
        ("≤ 0.02, 0.01 (half of another's)", "0.005 (0.004), 0.006 (0.001)", 0.6),
        ("−0.15 within 2 %", "−0.153 ± 0.001 (+2 %)", 1.0),
        ("within 1 % of the grid solver's", "−1.14 ± 0.20 %", 1.14),
        ("1 ± 0.15", "0.94", 0.4),
        ("≥ 30", "60", 0.5),
        ("≥ −0.002", "−0.001", 0.5),
        ("< 1e-12", "5e-14", 0.05),
        ("round-off", "1e-16", None),
    ],
)
def test_the_summary_of_validations_compares_errors_with_what_is_allowed(target, measured, ratio, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    assert reference.ratio_of(target, measured) == (None if ratio is None else pytest.approx(ratio))


def test_what_a_validation_measures_takes_the_place_of_what_stands_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records

    path = tmp_path / "validation.json"
    path.write_text(text_of(DOCS / "validation.json"))
    before = json.loads(path.read_text())
    (old,) = (
        row for group in before for row in group["rows"] if row["case"] == "driven_wave" and row["measured"] == "0.0012"
    )
    rows = [("driven", records.Record(old["case"], old["quantity"], "≤ 0.02", "0.5", False))]
    rows.append(("driven", records.Record("another", "quantity", "–", "1", True)))
    today = date.today().isoformat()
    records.write(rows, path)
    (group,) = (group for group in json.loads(path.read_text()) if "driven" in group["validations"])
    (new,) = (row for row in group["rows"] if (row["case"], row["quantity"]) == (old["case"], old["quantity"]))
    assert new["measured"] == "0.5" and new["met"] is False and today <= new["date"] <= date.today().isoformat()
    assert group["rows"][-1]["case"] == "another"
    assert sum(len(one["rows"]) for one in before) + 1 == sum(len(one["rows"]) for one in json.loads(path.read_text()))


def test_what_cannot_be_recorded_is_refused_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records
    import validate

    monkeypatch.setattr(records, "_commit", lambda: "abcdef0")
    assert not records.refusal(validate.VALIDATIONS)
    monkeypatch.setitem(validate.VALIDATIONS, "new_one", lambda runs: pytest.fail("it has been run"))
    monkeypatch.setattr("sys.argv", ["validate.py", "new_one", "--record", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        validate.main()
    assert "--record: new_one: in no group of validation.json" in capsys.readouterr().err
    monkeypatch.setattr(records, "_commit", lambda: "")
    assert "run it in a git checkout" in records.refusal(["driven"])


@pytest.mark.skipif(shutil.which("git") is None, reason="without git")
def test_a_measured_commit_is_marked_if_the_code_is_not_as_committed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import records

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records._commit(tmp_path / "docs") == ""
    git("init", "-q")
    for name in ("code.py", "docs/validation.json"):
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    head = git("rev-parse", "HEAD")[:7]
    (tmp_path / "docs" / "validation.json").write_text("2")  # as a validation before leaves it
    assert records._commit(tmp_path / "docs") == head
    (tmp_path / "code.py").write_text("2")
    assert records._commit(tmp_path / "docs") == f"{head}+"


def test_kjko_cases_explains_every_key_and_keeps_formulas_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["cases"]) == 0
    said = capsys.readouterr().out
    for section in SECTIONS:
        for key in keys_of(section) - {"kind"}:
            assert re.search(rf"^  {key} = \S.*\n +\S", said, re.MULTILINE), key
    for formula in ("φ = Σ_j [½ x_j² + A cos(q x_j)]", "A Σ_j [sin(2π x_j/L_j) + ½ sin(4π x_j/L_j)]", "κ = ν/ω_p"):
        assert any(formula in line for line in said.splitlines()), formula


# -- pages that the code names ---------------------------------------------------------------------------------------

SOURCES = [
    path
    for folder in ("hpc_kjko", "scripts", "jobs", "tests")
    for path in (ROOT / folder).rglob("*.*")
    if path.suffix in (".py", ".sh", ".sbatch", ".toml", ".txt", ".hpp", ".cpp", ".html")
    and path.name != "test_docs.py"
]


def test_pages_that_the_code_names_are_there():
    named = {
        (path, page) for path in SOURCES for page in re.findall(r"docs/[\w/.-]+\.(?:md|png|json)\b", text_of(path))
    }
    assert {(path.name, page) for path, page in named if not (ROOT / page).is_file()} == set()
    assert len(named) > 15


def test_the_pages_of_verbs_are_there():
    assert all((DOCS / verb.page).is_file() for verb in VERBS.values())
