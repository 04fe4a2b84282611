"""The ``kjko`` command on one rank, as a user types it."""

import csv
import fcntl
import io
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import SMALL_CASE

from hpc_kjko.case.config import load
from hpc_kjko.files.checkpoint import latest
from hpc_kjko.files.checkpoint import load as load_checkpoint
from hpc_kjko.files.output import list_snapshots, read_snapshot
from hpc_kjko.files.runfolder import RunFolder, restart_command
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator

COLUMNS = (
    "step time mass momentum_1 kinetic_energy field_energy potential_energy entropy free_energy dissipation "
    "min_eigenvalue inner_iterations objective seconds"
).split()


def test_a_run_leaves_everything_a_user_looks_for(finished, small_case):
    assert load(finished / "case.toml") == load(small_case)
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"
    log = (finished / "log.txt").read_text()
    assert "one rank writes" in log and "power of two" in log
    assert list_snapshots(finished / "snapshots") == [0, 5, 10]
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        "step00000008.h5",
        "step00000010.h5",
    ]

    snapshot = read_snapshot(finished / "snapshots", 10, slice(None))
    assert snapshot.position.shape == (3000, 1) and snapshot.velocity.shape == (3000, 1)
    series = read_series(finished / "series.h5")
    assert snapshot.weighting * snapshot.log_f.sum() == pytest.approx(series["entropy"][-1], rel=1e-12)
    assert 0.5 * (snapshot.electric**2).sum() * snapshot.spacing[0] == pytest.approx(series["field_energy"][-1])
    assert snapshot.density.mean() == pytest.approx(1.0)
    inside = snapshot.histograms[0].values.sum() * np.prod(
        [(high - low) / 128 for low, high in (snapshot.histograms[0].x_range, snapshot.histograms[0].v_range)]
    )
    assert 0.99 < inside / 31.4159265 <= 1.0 + 1e-12


def test_series_as_csv_has_a_row_at_every_step_and_numbers_only(finished, kjko_here):
    result = kjko_here("series", finished, "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert set(COLUMNS) <= set(rows[0])
    values = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    assert all(np.isfinite(column).all() for column in values.values())
    assert np.array_equal(values["step"], np.arange(11)) and np.allclose(values["time"], 0.1 * np.arange(11))
    assert values["mass"] == pytest.approx(31.4159265, rel=1e-12)
    total = values["kinetic_energy"] + values["field_energy"] + values["entropy"]
    assert np.allclose(values["free_energy"], total)
    assert (np.diff(values["free_energy"]) < 0).all()  # two beams relax
    steps_of_adam, passes = np.array([0, 10] + [3] * 9), np.array([0, 2] + [1] * 9)  # at least
    assert (values["inner_iterations"] >= steps_of_adam + passes).all() and values["inner_iterations"].max() < 20
    assert values["dissipation"][0] == pytest.approx(initial_dissipation(), rel=1e-3)


def initial_dissipation():
    """κ ∫∫ |v + T ∇v log f0|² f0 of the small case by quadrature: v + T ∇v log f0 = v_b tanh(v_b v) at σ = T = 1."""
    v = np.linspace(-12, 12, 4001)
    beams = (np.exp(-0.5 * (v - 2.4) ** 2) + np.exp(-0.5 * (v + 2.4) ** 2)) / (2 * np.sqrt(2 * np.pi))
    return 0.1 * 31.4159265 * np.sum((2.4 * np.tanh(2.4 * v)) ** 2 * beams) * (v[1] - v[0])


def test_the_other_verbs_have_something_to_say(finished, kjko_here):
    assert "two_stream" in kjko_here("cases").stdout and "adam" in kjko_here("cases").stdout
    inspected = kjko_here("inspect", finished)
    assert "finished" in inspected.stdout and "step00000010.h5" in inspected.stdout
    assert " MB\n" in inspected.stdout and "bytes per particle" not in inspected.stdout  # so few particles
    assert "free_energy" in kjko_here("series", finished).stdout
    plotted = kjko_here("plot", finished)
    assert plotted.returncode == 0, plotted.stderr
    figures = plotted.stdout.split("\n")[:5]
    assert [figure.rsplit("/")[-1] for figure in figures] == [
        "field_energy.png",
        "energies.png",
        "free_energy.png",
        "relative_entropy.png",
        "field.png",
    ]
    assert all((finished / "figures" / name.rsplit("/")[-1]).stat().st_size > 10_000 for name in figures)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "'kjko run CASE.toml' runs a case"),
        (["fly"], "fly is not a verb of kjko: it may be one of run, "),
        (["rnu", "small.toml"], "did you mean run?"),
        (["series", "nowhere", "--cvs"], "did you mean --csv?"),
        (
            ["plot", "a", "run"],
            "run is one argument too many for 'kjko plot': it takes DIR; put quotes around a name",
        ),
        (["inspect", "a run", "--from", "10"], "--from is not an option of 'kjko inspect': 'kjko plot' has it\n"),
        (
            ["report", "a run", "--column=kl"],
            "'kjko report': 'kjko plot' and 'kjko compare' have it",
        ),
        (["inspect", "a run", "--quick"], "--quick is not an option of 'kjko inspect': it has --help\n"),
        (["cases", "bump_on_tail"], "bump_on_tail is one argument too many: 'kjko cases' takes no argument\n"),
        (["plot", "a run", "--format", "jpg"], "--format jpg: it may be one of png, pdf, svg"),
        (["plot", "runs"], "it holds run folders, give one of them: runs/first"),
        (["report", "runs/first", "--out", "none/r.html"], "cannot write none/r.html: there is no folder none"),
        (["run", "smal.toml"], "did you mean small.toml?"),
        (["run", "."], "(Is a directory): give the case file"),
        (["run"], "CASE.toml"),
        (["run", "nowhere.toml"], "nowhere.toml: cannot read this case file"),
        (["run", "small.toml", "--set", "end=3"], "section.key=value"),
        (["run", "small.toml", "--out", "small.toml"], "small.toml"),
        (["run", "small.toml", "--out", "/proc/out"], "/proc/out: cannot use this folder"),
        (["restart", "nowhere"], "nowhere: not a run folder"),
        (["series", "."], "not a run folder"),
        (["plot", "nowhere"], "nowhere: not a run folder"),
        (["inspect", "nowhere"], "nowhere: not a run folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments, says, kjko_here, small_case):
    (Path("runs") / "first").mkdir(parents=True)
    (Path("runs") / "first" / "case.toml").write_text(load(small_case).toml())
    result = kjko_here(*arguments)
    assert result.returncode == 2
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_an_interrupt_is_no_traceback(finished, kjko_here, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpc_kjko.post.analysis.analyse", interrupted)
    result = kjko_here("analyze", finished)
    assert (result.returncode, result.stderr) == (130, "kjko: interrupted\n")


def test_a_reader_that_has_seen_enough_is_no_mistake(finished, kjko_here, monkeypatch):
    """As in ``kjko plot DIR | head -1``."""

    def closed(path):
        raise BrokenPipeError

    monkeypatch.setattr("hpc_kjko.post.plotting.plot_run", lambda folder, **wanted: [folder.figures / "energies.png"])
    monkeypatch.setattr("hpc_kjko.cli.file_verbs.print", closed, raising=False)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)  # standard output is pytest's
    assert kjko_here("plot", finished).returncode == 0


def test_doctor_says_how_to_get_what_is_missing(kjko_here, monkeypatch):
    monkeypatch.setattr(Communicator, "world", lambda: Communicator())
    monkeypatch.setattr("hpc_kjko.kernels.available", lambda: False)
    result = kjko_here("doctor")
    assert result.returncode == 0 and "hpc_kjko[mpi]" in result.stdout and "C++ compiler" in result.stdout


def test_what_to_type_is_quoted_where_a_shell_would_split_it():
    assert restart_command(Path("runs/a")) == "'kjko restart runs/a'"
    assert restart_command(Path("my runs/a")) == "'kjko restart \"my runs/a\"'"


def test_a_finished_run_is_not_overwritten_and_not_restarted_into_nothing(finished, kjko, kjko_here, small_case):
    before = (finished / "series.h5").read_bytes()
    again = kjko_here("run", small_case, "--out", finished)
    assert again.returncode == 2 and "--force" in again.stderr
    nothing_left = kjko("restart", finished)
    assert nothing_left.returncode == 2 and "time.end" in nothing_left.stderr
    other_state = kjko_here("restart", finished, "--set", "particles.count=5")
    assert other_state.returncode == 2 and "may change only" in other_state.stderr
    assert (finished / "series.h5").read_bytes() == before
    assert kjko("run", small_case, "--out", finished, "--force", "--set", "time.end=0.2").returncode == 0
    assert len(read_series(finished / "series.h5")["time"]) == 3


def test_a_folder_that_is_not_ours_is_never_emptied(kjko_here, small_case, tmp_path):
    """Not even one that holds a case.toml, nor with --force; and of a run folder only what a run has made."""
    precious = tmp_path / "precious" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("…")
    for neighbour in ("notes.txt", "case.toml"):
        (precious.parent / neighbour).write_text(small_case.read_text())
        for force in ([], ["--force"]):
            result = kjko_here("run", small_case, "--out", "precious", *force)
            assert result.returncode == 2 and "not a run folder" in result.stderr
    assert precious.exists()
    (tmp_path / "job" / "input").mkdir(parents=True)  # a batch job's copy of what it was given
    RunFolder(tmp_path / "job").require_free(force=False)


def test_force_keeps_what_the_user_put_into_a_run_folder(finished, kjko, small_case):
    (finished / "notes.txt").write_text("…")
    result = kjko("run", finished / "case.toml", "--out", finished, "--force", "--set", "time.end=0.1")
    assert result.returncode == 0, result.stderr
    assert (finished / "notes.txt").exists() and list_snapshots(finished / "snapshots") == [0, 1]


def test_a_refused_start_leaves_the_folder_as_it_was(finished, kjko_here, small_case, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for change in ("problem.beam_velocity=1e200", "run.device=cuda"):
        result = kjko_here("run", small_case, "--out", finished, "--force", "--set", change)
        assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
    monkeypatch.setenv("KJKO_KERNELS", "bogus")
    assert kjko_here("run", small_case, "--out", finished, "--force").returncode == 2
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_run_folder_belongs_to_one_job_at_a_time(finished, kjko):
    with open(finished / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (
            ["restart", finished, "--set", "time.end=2.0"],
            ["run", "small.toml", "--out", finished, "--force"],
        ):
            (finished.parent / "small.toml").write_text(SMALL_CASE)
            result = kjko(*arguments)
            assert result.returncode == 2 and "a run is going on in it" in result.stderr
    assert len(read_series(finished / "series.h5")["step"]) == 11


def test_every_file_says_what_made_it(finished):
    case = (finished / "case.toml").read_text()
    files = [finished / "series.h5", *(finished / "snapshots").iterdir()]
    for path in files:
        with h5py.File(path, "r") as file:
            assert file.attrs["case"].decode() == case
            assert {"version", "git", "ranks"} <= set(file.attrs)
    header = load_checkpoint(latest(finished / "checkpoints"), Communicator()).header
    assert header["case"] == case and {"version", "git", "ranks"} <= header.keys()


USER_CODE = """
import torch
def phi(x):
    return 0.5 * (x**2).sum(1) + 0.1 * torch.cos(5 * x[:, 0])
def hole(x):
    return torch.where(x[:, 0] > 0.9, torch.full_like(x[:, 0], float("inf")), 0.5 * x[:, 0] ** 2)
def matrix(x):
    return x
"""
CONFINED = """
[problem]
kind = "confined"
potential = "mine:phi"
[particles]
count = 2000
[time]
step = 0.1
end = 0.3
[method]
iterations = 2
first_iterations = 5
hidden = [4]
"""


@pytest.fixture
def user_case(tmp_path):
    """A case with the user's own potential beside it."""
    (tmp_path / "mine.py").write_text(USER_CODE)
    path = tmp_path / "confined.toml"
    path.write_text(CONFINED)
    return path


def test_a_potential_of_the_users_own_runs_and_restarts(user_case, kjko):
    result = kjko("run", user_case, "--out", "out")
    assert result.returncode == 0, result.stderr
    series = read_series(user_case.parent / "out" / "series.h5")
    assert series["kl"][0] > series["kl"][-1] > 0 and series["potential_energy"][0] > 0
    result = kjko("restart", "out", "--set", "time.end=0.5", ranks=2)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("potential", "says"),
    [
        ("absent:phi", "there is no module absent"),
        ("mine:psi", "the module mine has no psi"),
        ("mine:matrix", "it must return a tensor [n] for x [n, 1]"),
        ("mine:hole", "problem.potential is not finite at the particle at x = ("),
        ("bumpier", 'it may be "bumpy", "harmonic", or "module:name"'),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_users_mistake_in_a_potential_is_one_sentence_and_exit_2(potential, says, ranks, user_case, kjko):
    result = kjko("run", user_case, "--out", "out", "--set", f"problem.potential={potential}", ranks=ranks)
    assert result.returncode == 2
    sentences = [line for line in result.stderr.splitlines() if line.startswith("kjko: ")]
    assert len(sentences) == 1 and says in sentences[0] and "problem.potential" in sentences[0]
    assert "Traceback" not in result.stderr and not (user_case.parent / "out").exists()


def test_a_method_that_cannot_do_the_problem_is_refused(kjko_here, small_case):
    result = kjko_here("run", small_case, "--set", "method.collision=velocity_matching")
    assert result.returncode == 2 and "velocity_matching" in result.stderr and "physics.field" in result.stderr


def test_a_langevin_run_is_plotted_and_inspected_without_log_f(kjko, kjko_here, small_case, tmp_path):
    result = kjko("run", small_case, "--out", "out", "--set", "method.collision=langevin")
    assert result.returncode == 0, result.stderr
    assert "langevin" in kjko_here("inspect", "out").stdout
    plotted = kjko_here("plot", "out")
    assert plotted.returncode == 0 and "energies.png" in plotted.stdout and "relative_entropy" not in plotted.stdout
    snapshot = read_snapshot(tmp_path / "out" / "snapshots", 10, slice(None))
    assert np.isnan(snapshot.log_f).all() and len(snapshot.marginals) == 2
    result = kjko("restart", "out", "--set", "time.end=1.2")
    assert result.returncode == 0, result.stderr
