"""The documentation, run: the commands and the Python of README.md and docs/."""

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
from matplotlib import pyplot
from test_docs import PAGES, ROOT, blocks, name_of, text_of

from hpc_kjko.case import config
from hpc_kjko.casefile import parse
from hpc_kjko.cli.main import _parsed, main

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
    "docs/howto/python.md": ["bump_on_tail"],
}
#: What a page may ask for that is not here to be run.
ELSEWHERE = {"export HDF5_USE_FILE_LOCKING=FALSE", "module", "source", ".", "python -m venv", "pip"}


def commands(page):
    """The commands of a page's sh blocks, as words; joined ones apart."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for joined, part in itertools.groupby(words, lambda word: word == "&&"):
                if not joined:
                    yield list(part)


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
    for name in ("weak", "bump_on_tail"):
        shutil.copytree(folder / "two_stream", folder / name)
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
    pyplot.close("all")  # else the next page would draw into the figure of this one
    assert "Traceback" not in capsys.readouterr().err
    assert any((checkout / "runs").iterdir())
