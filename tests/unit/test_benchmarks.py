"""The benchmarks run, and print what a machine can read."""

import csv
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from conftest import quick, run_command

from hpc_kjko import kernels
from hpc_kjko.kernels import cuda

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

SCRIPTS = Path(__file__).parents[2] / "scripts"


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
        ("bench_potential.py", ["--width", "16"], 18),
        ("bench_step.py", [], 4),
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
    parts, out = ("tests", "targets", "particles"), tmp_path / "found"
    bench = quick(SCRIPTS / "bench_gpu.py", "--quick", "--device", "cpu", "--steps", "1024", "--out", out)
    said = run_command([*bench, "--parts", *parts], tmp_path)
    assert said.returncode == 0, said.stderr
    found = json.loads(out.read_text())
    assert [target["wanted"] for target in found["targets"]] == [0.5, 0.008, 0.8]
    assert all(target["met"] == (target["value"] <= target["wanted"]) for target in found["targets"][:2])
    assert {row["table"] for row in found["rows"]} == {"tests", "steps", "network", "particles"}
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
        phases = [float(row[phase]) for phase in ("push", "solve", "train", "move", "measure")]
        assert 0.8 * float(row["step"]) < sum(phases) < 1.3 * float(row["step"])  # of the slowest rank each
        assert float(row["memory"]) > 1e8 and (float(row["bytes"]) > 1e5 or row["ranks"] == "1")
    model = run_command(quick(SCRIPTS / "scaling_model.py", table, "--measured-cells", 8, "--out", tmp_path), tmp_path)
    assert model.returncode == 0, model.stderr
    first = next(line for line in model.stdout.splitlines() if line.startswith("  strong   1 ranks")).split()
    assert first[first.index("particles:") + 1] == first[first.index("model") + 1]
    assert "1e+11 particles, 4096 ranks" in model.stdout
    assert np.ptp(matplotlib.image.imread(tmp_path / "scaling_model.png")[..., :3]) > 0.9
