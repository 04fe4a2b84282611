"""What the verbs print: on terminals of any width, in any encoding, from folders with any name, and how soon."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment

from hpc_kjko import Case, run
from hpc_kjko.cli.main import VERBS, _parsed, main
from hpc_kjko.files.series import SeriesWriter, read_series
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.terminal import show_pairs, show_table


@pytest.fixture
def runs(a_run, tmp_path):
    """A run, another one with numbers that take much room, and a sweep of both."""
    for name in ("mine", "other", "sweep/strength=0.1,step=0.123456789012", "sweep/strength=1e-05,step=0.1"):
        shutil.copytree(a_run, tmp_path / name)
    columns = read_series(a_run / "series.h5")
    long = {name: np.linspace(-1.2345678e-123, 9.8765432e-123, len(v)) for name, v in columns.items()}
    long |= {name: columns[name] for name in ("step", "time", "seconds", "substeps", "certificate")}
    (tmp_path / "other/series.h5").unlink()
    SeriesWriter(tmp_path / "other/series.h5", list(long), dict.fromkeys(long, "1"), long).close()
    settings = [("0.1", "0.123456789012"), ("1e-05", "0.1")]
    points = [
        {
            "name": f"strength={strength},step={step}",
            "settings": {"physics.collision_strength": strength, "time.step": step},
        }
        for strength, step in settings
    ]
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"case": "small.toml", "points": points}))
    return tmp_path


SHOWN = {
    "series": ("series", "other"),
    "inspect": ("inspect", "other"),
    "watch": ("watch", "other", "--once"),
    "compare": ("compare", "other", "mine"),
    "sweep": ("sweep", "sweep", "--table"),
    "cases": ("cases",),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("verb", SHOWN)
def test_no_number_is_cut_at_any_width(verb, runs, kjko_here, monkeypatch):
    """Words are the same on a terminal of any width, and in a pipe, as where there is room for all of them."""
    monkeypatch.setattr(Communicator, "world", lambda: Communicator())

    def words(columns):
        monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS", raising=False)
        result = kjko_here(*SHOWN[verb])
        assert result.returncode == 0, result.stderr
        said = set(result.stdout.split())
        return {word for word in said if not any(0x2500 <= ord(character) < 0x2900 for character in word)}

    whole = words("1000")
    for columns in ("20", "40", "80", ""):
        assert words(columns) == whole, columns
    if verb in ("series", "compare"):
        first = read_series(runs / "other/series.h5")["kinetic_energy"]
        assert f"{first[-1]:.7g}" in whole


def test_tables_are_wrapped_by_columns_and_pairs_by_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    show_table(["name", "first", "second\none"], [["a", "-1.2345e-100", "1"], ["b", "2", "3.456789e+100"]], title="T")
    said = capsys.readouterr().out
    assert said == (
        "T\n\nname  first\n────  ────────────\na     -1.2345e-100\nb     2\n"
        "\n      second\nname  one\n────  ─────────────\na     1\nb     3.456789e+100\n"
    )
    show_pairs({"a long name": "some words and -1.2345678901234567e-100", "b": "1"})
    said = capsys.readouterr().out
    assert "-1.2345678901234567e-100" in said.split()
    assert all(len(line) <= 20 for line in said.splitlines() if "e-100" not in line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_output_will_do(encoding, runs, monkeypatch):
    monkeypatch.setattr(Communicator, "world", lambda: Communicator())
    monkeypatch.chdir(runs)
    for verb, arguments in {**SHOWN, "mistake": ("series", "κ")}.items():
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        code = main(list(arguments))
        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        assert code == (2 if verb == "mistake" else 0), err
        if verb in ("inspect", "cases"):
            assert "kappa" in out
        assert verb != "mistake" or err.startswith("kjko: kappa: not a run folder")


@pytest.mark.parametrize(
    "line",
    [
        "run BAD",
        "run small.toml --out BAD",
        "restart BAD",
        "series BAD",
        "analyze BAD",
        "plot BAD",
        "plot mine --out BAD",
        "report BAD",
        "report mine --out BAD",
        "inspect BAD",
        "watch BAD --once",
        "compare BAD mine",
        "compare mine BAD",
        "compare mine mine --out BAD.png",
        "sweep BAD --grid time.end=1.0 --out out",
        "sweep small.toml --grid time.end=1.0 --out BAD",
        "sweep small.toml --grid time.end=1.0 --out out --slurm BAD",
    ],
)
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(line, kjko_here, a_run, small_case, tmp_path):
    (tmp_path / "mine").symlink_to(a_run)
    before = sorted(tmp_path.rglob("*"))
    result = kjko_here(*(word.replace("BAD", "caf\udce9") for word in line.split()))
    assert result.returncode == 2 and result.stdout == ""
    assert "this argument is not UTF-8 text" in result.stderr and result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_whose_name_is_not_utf8_can_be_worked_in(finished, kjko_here, tmp_path, monkeypatch, small_case):
    here = finished.rename(tmp_path / "caf\udce9")
    monkeypatch.chdir(here)
    for arguments in (("series", "."), ("inspect", "."), ("report", "."), ("watch", ".", "--once")):
        result = kjko_here(*arguments)
        assert result.returncode == 0, result.stderr
    sweep = ("sweep", small_case, "--grid", "time.end=0.5,1.0", "--out", "out", "--slurm", "sweep.sbatch")
    assert kjko_here(*sweep).returncode == 0
    assert os.fsencode(here) in (here / "sweep.sbatch").read_bytes()


def test_python_may_run_in_a_folder_whose_name_is_not_utf8(small_case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["caf\udce9.py"])
    result = run(Case.load(small_case, ["time.end=0.1"]), tmp_path / "caf\udce9", progress=False)
    assert result.status == "finished" and "Error" not in capsys.readouterr().err
    assert "start: " in (result.path / "log.txt").read_text(encoding="utf-8")


# -- what is loaded --------------------------------------------------------------------------------------------------

LISTING = """
import contextlib, io, sys
from hpc_kjko.cli.main import main
for line in sys.argv[1:]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        assert main(line.split()) == 0, line
print(*sorted({".".join(name.split(".")[:2]) for name in sys.modules}))
"""


def loaded_by(*lines, cwd, **variables):
    """The packages, and parts of packages, that a process has loaded after some command lines."""
    line = [sys.executable, "-c", LISTING, *lines]
    found = subprocess.run(line, cwd=cwd, env=environment() | variables, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr
    return set(found.stdout.split())


def test_verbs_that_read_files_load_nothing_heavy(runs):
    lines = ["--help", "series mine", "inspect mine", "watch mine --once", "compare mine other", "sweep sweep --table"]
    assert not loaded_by(*lines, "cases", "units --density 1e19 --temperature 1e3", cwd=runs) & {
        *("torch", "scipy", "pydantic", "mpi4py", "matplotlib", "jinja2", "xarray")
    }


def test_a_run_loads_only_what_it_needs(small_case):
    """Without a field of its own: the theory of a wave takes more of SciPy."""
    changes = "--set time.end=0.1 --set physics.field=external"
    loaded = loaded_by(f"run {small_case} {changes}", cwd=small_case.parent)
    assert {"torch", "scipy.fft"} <= loaded
    unused = {f"scipy.{part}" for part in ("integrate", "linalg", "ndimage", "optimize", "spatial", "stats")}
    assert not loaded & {*unused, "torch._dynamo", "matplotlib", "jinja2", "xarray", "pandas"}


@pytest.mark.parametrize(
    ("backend", "lines", "files"),
    [
        (
            "module://matplotlib_inline.backend_inline",
            ["plot mine --column kl", "compare mine other --out c.png"],
            ["mine/figures/column_kl.png", "c.png"],
        ),
        (
            "no such backend",
            ["report mine", "plot mine --column kl"],
            ["mine/report.html", "mine/figures/column_kl.png"],
        ),
    ],
)
def test_figures_in_files_do_not_ask_for_the_backend_of_a_notebook(backend, lines, files, runs):
    loaded = loaded_by(*lines, cwd=runs, MPLBACKEND=backend)
    assert "matplotlib" in loaded and not loaded & {"torch", "scipy", "pydantic", "mpi4py"}
    assert all((runs / name).exists() for name in files)


def test_pages_need_no_library_that_draws(runs):
    loaded = loaded_by("report mine other --out both.html", "compare mine other --out c.html", cwd=runs)
    assert not loaded & {"torch", "scipy", "pydantic", "mpi4py", "matplotlib", "xarray"}
    assert all((runs / name).exists() for name in ("both.html", "c.html"))


def test_figures_in_files_leave_the_backend_of_a_notebook_alone(runs, kjko_here):
    import matplotlib
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    plt.switch_backend("svg")
    open_figures = plt.get_fignums()
    assert kjko_here("plot", "mine", "--column", "kl").returncode == 0
    assert matplotlib.get_backend() == "svg" and plt.get_fignums() == open_figures
    plt.switch_backend(before)


# -- help and plots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_can_be_typed_and_says_where_to_read_on(verb, capsys):
    with pytest.raises(SystemExit):
        _parsed([verb, "--help"])
    said = capsys.readouterr().out
    assert VERBS[verb].example in said and f"docs/{VERBS[verb].page}" in said
    words = shlex.split(VERBS[verb].example.partition(">")[0])
    assert _parsed(words[words.index("kjko") + 1 :]).verb == verb


def test_a_plot_of_some_columns_and_times(runs, kjko_here, monkeypatch):
    drawn = []
    from matplotlib.axes import Axes

    line = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, **look: drawn.append(x) or line(axes, x, y, **look))
    columns = ("--column", "kl", "--column", "field_energy", "--from", "0.2", "--to", "0.7")
    result = kjko_here("plot", "mine", *columns, "--format", "pdf", "--out", "some/figures")
    assert result.returncode == 0, result.stderr
    names = ["column_kl_t0.2_to_t0.7.pdf", "column_field_energy_t0.2_to_t0.7.pdf"]
    assert result.stdout.split() == [f"some/figures/{name}" for name in names]
    assert (runs / "some/figures" / names[0]).read_bytes().startswith(b"%PDF")
    assert [(times[0], times[-1]) for times in drawn] == [(pytest.approx(0.2), pytest.approx(0.7))] * 2
    drawn.clear()
    result = kjko_here("plot", "mine", "--from", "0.4", "--format", "svg")
    assert result.returncode == 0 and (runs / "mine/figures/phase_space_from_t0.4.svg").exists()
    starts = [times[0] for times in drawn if times[-1] == pytest.approx(1.0)]
    assert len(starts) > 5 and {round(start, 6) for start in starts} == {0.4, 0.5}  # the first row, the first field


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--column lk", "--column lk: the run has no such column: it may be one of step, time,"),
        ("--from 2 --to 3", "--from 2 --to 3: the run has no row there; it has t = 0 to 1"),
        ("--from 3 --to 2", "--from 3 --to 2: the first time must not be after the last"),
        ("--from nan", "nan must be a finite number"),
        ("--format jpg", "--format jpg: it may be one of png, pdf, svg"),
        ("--out small.toml", "cannot write small.toml"),
    ],
)
def test_a_mistake_in_a_plot_is_one_sentence(options, says, a_run, kjko_here, small_case):
    result = kjko_here("plot", a_run, *options.split())
    assert result.returncode == 2 and result.stdout == ""
    assert says in result.stderr and result.stderr.count("\n") == 1
