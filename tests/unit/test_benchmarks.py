"""The benchmarks run, and print what a machine can read."""

import csv
import dataclasses
import json
import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import quick, run_command

from hpc_kjko import kernels
from hpc_kjko.inner.solvers.regression import FITTED_BATCHES
from hpc_kjko.kernels import cuda
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.dealing import Batching, Dealing
from hpc_kjko.particles.exact import rows_together
from hpc_kjko.particles.state import Particles, Shard, equal_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import bench_langevin
import scaling_model

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


def rows_of(script, *arguments):
    said = run_command(quick(SCRIPTS / script, "--quick", *arguments), SCRIPTS)
    assert said.returncode == 0, said.stderr
    for heading in ("# machine: ", "# software: hpc_kjko ", "# compared with: ", "# --quick"):
        assert heading in said.stdout, f"{script} does not say its {heading}"
    lines = [line for line in said.stdout.splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, skipinitialspace=True))


@pytest.mark.parametrize(
    "script, arguments, least",
    [
        ("bench_objective.py", ["--count", "2000"], 16),
        ("bench_pic.py", ["--rounds", "1"], 8),
        ("bench_pairs.py", [], 12),
        ("bench_potential.py", ["--width", "16"], 21),
        ("bench_step.py", [], 5),
        ("bench_files.py", ["--count", "20000"], 4),
    ],
)
def test_a_benchmark_prints_its_lines(script, arguments, least):
    rows = rows_of(script, *arguments)
    assert len(rows) >= least
    for row in rows:
        name, milliseconds, *others = row.values()
        assert name and 0 < float(milliseconds) < math.inf
        assert all(math.isfinite(float(number)) for number in others if number)


def test_the_benchmark_of_a_gpu_notes_what_it_finds_and_goes_on(tmp_path):
    """On the CPU, where the tests of a GPU are skipped."""
    parts, out = ("tests", "targets", "tensor", "particles"), tmp_path / "found"
    bench = quick(SCRIPTS / "bench_gpu.py", "--quick", "--device", "cpu", "--steps", "1024", "--out", out)
    said = run_command([*bench, "--parts", *parts], tmp_path)
    assert said.returncode == 0, said.stderr
    found = json.loads(out.read_text())
    assert [target["wanted"] for target in found["targets"]] == [0.5, 0.008, 0.8]
    assert all(target["met"] == (target["value"] <= target["wanted"]) for target in found["targets"][:2])
    assert {row["table"] for row in found["rows"]} == {"tests", "steps", "network", "tensor", "particles"}
    errors = [row[name] for row in found["rows"] for name in ("error", "tensor_error") if row["table"] == "tensor"]
    assert len(errors) == 12 and max(errors) < 3e-6  # limits: test_cuda_network.py and test_tensor_cores.py
    assert not found["failures"] and found["machine"]["matmul_tflops"] > 0


@pytest.mark.skipif(cuda.available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_says_that_there_is_none():
    said = run_command(quick(SCRIPTS / "bench_gpu.py", "--quick"), SCRIPTS)
    assert said.returncode == 1 and said.stderr.strip().endswith("this needs an NVIDIA GPU and CuPy.")


def test_a_step_is_faster_than_the_papers_in_torch():
    ratios = {row["name"]: float(row["ratio"]) for row in rows_of("bench_end_to_end.py")}
    assert ratios.pop("paper's scheme, torch") == 1
    # a regression's batches are no smaller with few particles, where it is no faster than the paper's scheme
    assert ratios.pop("regression (default), torch") > 0.2
    assert ratios.pop("regression (default), native") > 0.5
    assert len(ratios) == 5 and min(ratios.values()) > 1
    assert ratios["varpro, order 2, 10 hidden steps, 2h, native"] > 5  # 25, at sizes that flatter no kernel


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_has_a_quick_size_and_a_heading(script):
    """Those that take long are not run here."""
    source = script.read_text()
    assert '"--quick"' in source and "print_heading(" in source


def test_batches_are_shared_by_as_many_ranks_as_the_model_of_scaling_says():
    total, comm = 10**6, Communicator()
    comm.size = 64
    deal = Dealing(Batching.of(total, tuple(range(7))), comm, rows_together(total))
    of_each = [set(deal.plan(number)[1]) for number in range(1, 1 + FITTED_BATCHES)]  # the first has what is left over
    (_, alone), (_, of_one), (_, of_all) = scaling_model.BATCHES
    assert alone == 1 and {len(ranks) for ranks in of_each} == {of_one} and len(set().union(*of_each)) == of_all


def test_the_model_of_scaling_has_its_limits():
    """Of many ranks a part of the batches is left; calls cost their latency; a large mesh its bytes."""
    ideal = scaling_model.Model(2e-6, 0.3, 0.4, 128**3, 0.0, math.inf, 1.0)
    case = scaling_model.case_of(10**6, 32)
    assert ideal.step(case, 10**9, field=0.0) == pytest.approx(0.3 * (0.13 + 0.19 / 2 + 0.68 / 32), abs=1e-6)
    assert ideal.step(case, 1, field=0.0) == pytest.approx(2.3)
    slow = dataclasses.replace(ideal, latency=1e-3, bandwidth=1e9)
    assert slow.talk(case, 2) > 150 * 1e-3  # as many calls
    large = scaling_model.case_of(10**9, 256)
    assert slow.field(large, 64, "root") > slow.field(large, 64, "distributed") > slow.field(large, 64, "planned")
    needs = [scaling_model.memory(10**11, 512, 4096, way) for way in scaling_model.WAYS]
    assert needs[2] < 1e10 < needs[0] < needs[1]


def langevin_lines(least):
    """Seconds and errors of a ladder: N^-1/2 for Langevin, as N for JKO, from some seconds on to an error."""
    seconds = np.geomspace(1.0, 100.0, 5)
    return [(seconds, 0.1 * seconds**-0.5)], [(np.array([10.0, 20.0]), np.array([0.1, least]))]


def test_where_langevin_and_jko_cross():
    """JKO's line, from 0.1 at 10 s to 0.001 at 20 s, meets Langevin's, 0.1 t^-1/2, at 12 s, and stays below."""
    langevin, jko = langevin_lines(1e-3)
    at, seconds, times = bench_langevin.crossing(langevin, jko)
    power = math.log(100) / math.log(2)
    wanted = 10 ** (power / (power - 0.5))
    assert seconds == pytest.approx(wanted, rel=0.01) and at == pytest.approx(0.1 * wanted**-0.5, rel=0.01)
    assert times == pytest.approx(1e4 / 20)  # Langevin takes 10⁴ s to 0.001, by N^-1/2 beyond its last point
    assert bench_langevin.crossing(*langevin_lines(0.03)) is None
    # a longer ladder of errors that do not fall is no help to either
    worse = [(np.append(s, 1000.0), np.append(e, 1.0)) for s, e in jko]
    assert bench_langevin.crossing(langevin, worse) == pytest.approx((at, seconds, times), rel=0.01)


def test_entropy_of_a_histogram():
    """Of a Gaussian in v that is uniform in x, at any number of bins that resolves it."""
    random, count, length = np.random.default_rng(0), 200_000, 3.0
    x, v = (torch.from_numpy(z[:, None]) for z in (length * random.random(count), random.standard_normal(count)))
    shard = Shard.of(count, 0, 1)
    weight = equal_weights(length, shard, torch.device("cpu"))
    whole = {"shard": shard, "total_weight": length, "periods": (length,), "has_equal_weights": True}
    found = bench_langevin.histogram_entropies(Particles(x, v, torch.zeros(count), weight, **whole), length, 8.0)
    assert list(found) == ["64x256", "32x128", "16x64", "8x32", "4x16"]
    wanted = -0.5 * math.log(2 * math.pi * math.e)
    for bins, entropy in found.items():
        assert abs(entropy - wanted) < {"4x16": 0.06}.get(bins, 0.015)


def test_langevin_and_jko_are_compared(tmp_path):
    bench = quick(SCRIPTS / "bench_langevin.py", "bath", "--quick", "--seeds", "1", "--out", tmp_path)
    said = run_command(bench, tmp_path)
    assert said.returncode == 0, said.stderr
    runs = json.loads((tmp_path / "langevin.json").read_text())
    found = {(run["method"], run["count"]): run for run in runs}
    assert len(found) == 4 and all(run["seconds"] > 0 for run in runs)
    assert found["jko", 4096]["field"] < 0.1 < found["langevin", 1024]["field"]  # of as quiet starts
    assert found["jko", 4096]["entropy tracked"] < 0.01
    first = np.array(matplotlib.image.imread(tmp_path / "langevin.png"))
    assert np.ptp(first[..., :3]) > 0.9
    bench_langevin.draw(runs, tmp_path / "again.png")
    assert np.array_equal(first, matplotlib.image.imread(tmp_path / "again.png"))


def test_runs_of_another_size_or_case_are_not_drawn_with_those_asked_for(tmp_path, monkeypatch, capsys):
    small = {"case": "bath", "step": 0.2, "seed": 0, "waves": 0.1, "late": 0.1, "marginal": 0.1, "seconds": 1.0}
    runs = [
        {**small, "method": method, "count": count, "quick": quick, "field": error, "entropy tracked": error}
        for method in ("langevin", "jko")
        for count in (1024, 4096)
        for quick, error in ((True, 0.5), (False, 0.01))
    ]
    runs.append({**runs[-1], "case": "dougherty"})
    (tmp_path / "langevin.json").write_text(json.dumps(runs))
    redraw = ["bench_langevin.py", "--redraw", "--out", str(tmp_path)]
    monkeypatch.setattr(bench_langevin, "draw", lambda *_: None)
    for more, errors in (("bath", {"0.01"}), ("--quick", {"0.5"})):
        monkeypatch.setattr(sys, "argv", [*redraw, more])
        bench_langevin.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
        rows = list(csv.DictReader(lines, skipinitialspace=True))
        assert len(rows) == 4 and {row["case"] for row in rows} == {"bath"} and {row["field"] for row in rows} == errors
    monkeypatch.setattr(sys, "argv", [*redraw, "dougherty", "--quick"])
    with pytest.raises(SystemExit):
        bench_langevin.main()
    assert "no runs of dougherty at quick size" in capsys.readouterr().err


def test_scaling_is_measured_and_extrapolated(tmp_path):
    """On 1 and 2 ranks; the model agrees with the one that it was made from, and goes on to 10¹¹ particles."""
    table = tmp_path / "scaling.csv"
    bench = quick(SCRIPTS / "bench_scaling.py", "--quick", "--rounds", "1", "--steps", "2", "--out", table)
    measured = run_command(bench, tmp_path, timeout=240)
    assert measured.returncode == 0, measured.stderr
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scaling"], row["ranks"]) for row in rows] == [
        (scaling, ranks) for scaling in ("strong", "weak") for ranks in "12"
    ]
    for row in rows:
        phases = [float(row[phase]) for phase in ("push", "solve", "batches", "train", "move", "measure")]
        assert 0.8 * float(row["step"]) < sum(phases) < 1.3 * float(row["step"])  # of the slowest rank each
        assert float(row["memory"]) > 1e8 and (float(row["bytes"]) > 1e5 or row["ranks"] == "1")
    model = run_command(quick(SCRIPTS / "scaling_model.py", table, "--measured-cells", 8, "--out", tmp_path), tmp_path)
    assert model.returncode == 0, model.stderr
    first = next(line for line in model.stdout.splitlines() if line.startswith("  strong   1 ranks")).split()
    assert first[first.index("particles:") + 1] == first[first.index("model") + 1]
    assert "1e+11 particles, 4096 ranks" in model.stdout and "512 ranks, planned" in model.stdout
    assert np.ptp(matplotlib.image.imread(tmp_path / "scaling_model.png")[..., :3]) > 0.9
