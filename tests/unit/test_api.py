"""hpc_kjko from Python: running a case, and reading a run as labelled arrays."""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from conftest import SMALL_CASE

import hpc_kjko
from hpc_kjko import Case, UserError, open_run, restart, run
from hpc_kjko.cli.main import main
from hpc_kjko.files.output import read_snapshot
from hpc_kjko.files.series import SeriesWriter, read_equilibrium, read_series, read_series_and_units
from hpc_kjko.files.wavetheory import WaveTheory, theory_attributes
from hpc_kjko.post import opened

xarray = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("case") / "small.toml"
    path.write_text(SMALL_CASE)
    return Case.load(path, {"particles.weights": "density"})


@pytest.fixture(scope="module")
def result(case, tmp_path_factory):
    """A finished run, to look at only."""
    return run(case, tmp_path_factory.mktemp("runs") / "a run", progress=False)


def test_importing_the_package_loads_neither_torch_nor_mpi():
    script = "import sys, hpc_kjko; dir(hpc_kjko); print([n for n in ('torch', 'mpi4py', 'h5py') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    assert {"Case", "run", "open_run"} <= set(dir(hpc_kjko))
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        _ = hpc_kjko.runs


@pytest.mark.parametrize(
    "set_by_user, spins", [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(set_by_user, spins):
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = kept | set_by_user | {"OMP_DISPLAY_ENV": "verbose"}
    script = [sys.executable, "-c", "import hpc_kjko, torch"]
    said = subprocess.run(script, capture_output=True, text=True, check=True, env=environment).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in said


def test_a_case_from_a_table_a_file_and_overrides(tmp_path, case):
    assert case.particles.weights == "density"
    assert Case.from_table(case.table()) == case
    (tmp_path / "small.toml").write_text(SMALL_CASE)
    as_typed = Case.load(tmp_path / "small.toml", ["time.end=2.0", "method.hidden=[4]"])
    assert as_typed == Case.load(tmp_path / "small.toml", {"time.end": 2.0, "method.hidden": [4]})
    with pytest.raises(UserError, match="did you mean temperature"):
        Case.load(tmp_path / "small.toml", {"physics.temprature": 2.0})
    with pytest.raises(UserError, match="end: write it as section.key"):
        Case.load(tmp_path / "small.toml", {"end": 2.0})


def test_a_run_from_python_is_that_of_the_command(result, case, tmp_path):
    (tmp_path / "case.toml").write_text(case.toml())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main(["run", str(tmp_path / "case.toml"), "--out", str(tmp_path / "typed")]) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    columns = read_series(tmp_path / "typed" / "series.h5")
    for name, values in columns.items():
        if name != "step" and not name.startswith("seconds"):
            assert np.array_equal(result.series[name], values), name
    assert "finished" in (result.path / "log.txt").read_text() and result.status == "finished"
    assert result.case == case and result.provenance["step"] == 10 and "finished" in repr(result)


def test_the_series_has_labels_and_units(result):
    series = result.series
    assert series.sizes == {"time": 11} and series.time.units == "1/ω_p"
    assert series.field_energy.units == "n̄ m v_th³/ω_p" and series.mass.units == "n̄ m v_th/ω_p"
    assert series.kl.units == "1" and series.seconds.units == "s"
    assert series.field_energy.sel(time=0.5, method="nearest").step == 5
    assert "two_stream" in series.attrs["case"]


def test_the_rate_of_the_wave_is_that_of_the_command(result, tmp_path, capsys):
    grown = shutil.copytree(result.path, tmp_path / "grown")
    columns, units = read_series_and_units(grown / "series.h5")
    time = np.linspace(0, 20, 201)
    columns = {key: np.resize(values, 201) for key, values in columns.items()} | {"time": time}
    columns |= dict.fromkeys(("field_energy", "wave_energy"), 10 * np.exp(0.2 * time))
    theory = WaveTheory(np.array([0.5]), "theory", rate=0.11, frequency=0.0)
    SeriesWriter(grown / "series.h5", list(columns), units, columns, theory_attributes(theory)).close()
    measured = open_run(grown).rate
    assert measured.rate.rate == pytest.approx(0.1) and measured.expected == 0.11 and not measured.why_not
    assert measured.rate.window[0] < measured.rate.window[1] <= 20.0
    assert main(["inspect", str(grown)]) == 0 and measured.rate.text(0.11) in capsys.readouterr().out
    assert result.rate.why_not.startswith("the series has 11 rows with energy in the wave")


def test_snapshots_have_labels_and_units(result):
    written = read_snapshot(result.path / "snapshots", 5, slice(None))
    fields = result.fields
    assert fields.density.dims == ("time", "x_1") and list(fields.step) == [0, 5, 10]
    then = fields.sel(time=0.5, method="nearest")
    assert np.array_equal(then.density, written.density) and np.array_equal(then.E_1, written.electric[:, 0])
    assert fields.x_1[0] == pytest.approx(31.4159265 / 32) and fields.x_1.units == "v_th/ω_p"
    # E = -dφ/dx holds between the labelled arrays, coordinates included
    slope = -then.potential.differentiate("x_1")[2:-2]
    assert np.abs(slope - then.E_1[2:-2]).max() < 0.3 * np.abs(then.E_1).max()

    histogram = result.histograms.f_x_1_v_1.isel(time=1)
    assert np.array_equal(histogram, written.histograms[0].values) and histogram.dims == ("x_1", "v_1")
    assert np.array_equal(result.marginals.f_v_1.isel(time=1), written.marginals[1].values)
    mass = histogram.integrate(["x_1", "v_1"])
    assert mass == pytest.approx(31.4159265, rel=0.02) and histogram.units == "n̄/v_th"

    particles = result.particles
    assert particles.sizes == {"time": 3, "particle": 3000}
    for name, wanted in (("x_1", written.position[:, 0]), ("v_1", written.velocity[:, 0]), ("log_f", written.log_f)):
        assert np.array_equal(particles[name].isel(time=1), wanted)
    assert particles.weight.isel(time=0).sum() == pytest.approx(31.4159265, rel=1e-3)
    assert particles.id.dims == ("particle",) and particles.id.dtype == np.uint64
    assert np.array_equal(particles.id, np.arange(3000))
    followed = particles.isel(particle=[2000, 7])
    assert list(followed.id.values) == [2000, 7] and np.array_equal(followed.x_1, particles.x_1.values[:, [2000, 7]])


def test_equal_weights_are_one_number_a_snapshot(case, tmp_path):
    changed = Case.from_table(case.table() | {"particles": {"count": 100}, "time": {"end": 0.1}})
    particles = run(changed, tmp_path / "out", progress=False).particles
    assert particles.weight.dims == ("time",) and float(particles.weight[0]) == pytest.approx(31.4159265 / 100)


def test_a_snapshot_with_particles_and_the_last_one_have_all_that_is_switched_on(case, tmp_path):
    cadence = {"every": 4, "particles_every": 3, "histogram_every": 2}
    run_of = Case.from_table(case.table() | {"output": cadence, "time": {"end": 0.5}})
    found = run(run_of, tmp_path / "out", progress=False)
    steps = {name: getattr(found, name).step.values.tolist() for name in ("fields", "histograms", "particles")}
    assert steps == {"fields": [0, 3, 4, 5], "histograms": [0, 2, 3, 4, 5], "particles": [0, 3, 5]}
    assert float(found.particles.time[-1]) == 0.5
    with pytest.raises(UserError, match="has reached"):  # nothing new is due at the same end
        restart(found.path, progress=False)
    longer = restart(found.path, ["time.end=0.7"], progress=False)
    assert longer.particles.step.values.tolist() == [0, 3, 5, 6, 7] == sorted(set(steps["particles"] + [6, 7]))
    assert longer.fields.step.values.tolist() == [0, 3, 4, 5, 6, 7]
    off = Case.from_table(case.table() | {"output": {"particles_every": 0, "every": 4}, "time": {"end": 0.1}})
    with pytest.raises(UserError, match="output.particles_every"):
        _ = (without := run(off, tmp_path / "off", progress=False)).particles
    assert without.fields.step.values.tolist() == [0, 1]


def test_only_what_is_asked_for_is_read(result, monkeypatch):
    """Selections are recorded: which file, which dataset, which rows."""
    particles, read = result.particles, []
    selected = h5py.Dataset.__getitem__

    def watched(dataset, key):
        value = selected(dataset, key)
        read.append((dataset.file.filename.rsplit("/")[-1], dataset.name.rsplit("/", 2)[-2:], np.size(value)))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    chosen = particles.isel(time=-1, particle=slice(100, 2000, 100))
    repr(chosen)
    assert read == []
    assert len(chosen.v_1.values) == 19
    assert read == [("data00000010.h5", ["momentum", "x"], 19)]
    read.clear()
    scattered = particles.x_1.isel(time=[2, 0], particle=[7, 7, 3]).values
    assert len(read) <= 3 and sum(size for *_, size in read) <= 3 * 5
    monkeypatch.undo()
    whole = particles.x_1.values
    assert np.array_equal(scattered, whole[[2, 0]][:, [7, 7, 3]])
    assert particles.x_1.isel(time=slice(0, 0)).values.shape == (0, 3000)


def test_a_mistake_is_a_sentence_and_leaves_the_folder_free(result, case, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        run(case, result.path, progress=False)
    with pytest.raises(UserError, match="may change only"):
        restart(result.path, ["particles.count=5"])
    with pytest.raises(UserError, match="time.end"):
        restart(result.path)
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path)
    quiet = Case.from_table(case.table() | {"output": {"every": 0, "particles_every": 0}, "time": {"end": 0.1}})
    other = run(quiet, tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="output.every"):
        _ = other.fields
    with pytest.raises(UserError, match="output.particles_every"):
        _ = other.particles
    longer = restart(other.path, ["time.end=0.2"], progress=False)  # the lock of the first is gone
    assert len(longer.series.time) == 3
    known = {(marginal.kind, marginal.axis): marginal for marginal in read_equilibrium(longer.path / "series.h5")}
    v = np.linspace(*known["v", 0].range, 161)
    wanted = np.diff([0.5 * math.erf(edge / math.sqrt(2)) for edge in v]) / np.diff(v)
    assert known["v", 0].values == pytest.approx(wanted)  # the Maxwellian, for figures; a restart keeps it
    assert known["x", 0].values == pytest.approx(np.full(160, 1 / 31.4159265))
    assert run(quiet, other.path, force=True, progress=False).series.sizes["time"] == 2


def test_signals_stop_a_run_and_mean_again_what_they_meant(case, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    endless = Case.from_table(case.table() | {"time": {"end": 1e5}})

    def once_it_runs():
        while not (tmp_path / "out/series.h5").exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=once_it_runs, daemon=True).start()
    assert run(endless, tmp_path / "out", progress=False).status == "stopped"
    assert signal.getsignal(signal.SIGINT) is before
    # beside the main thread, where there are no handlers to set, it runs as well
    short = Case.from_table(case.table() | {"time": {"end": 0.1}})
    found = []
    aside = threading.Thread(target=lambda: found.append(run(short, tmp_path / "aside", progress=False).status))
    aside.start()
    aside.join()
    assert found == ["finished"]


def test_without_xarray_the_sentence_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(UserError, match=r"pip install 'hpc_kjko\[analysis\]'"):
        _ = opened.open_run(result.path).series
