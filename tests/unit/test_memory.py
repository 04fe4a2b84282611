"""The memory that a case needs: estimated as runs take it, refused where it is not there; ``kjko run --dry-run``."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CASE, environment

from hpc_kjko.case import config
from hpc_kjko.errors import UserError
from hpc_kjko.files.runfolder import peak_memory
from hpc_kjko.parallel.limits import Limit, memory_limits, resident
from hpc_kjko.running import forecast, memory
from hpc_kjko.running.simulation import Simulation

JOBS = Path(__file__).parents[2] / "jobs"
#: Runs one step of the case on the command line; prints what it took beyond the start, and what was estimated.
MEASURE = """
import json, sys, torch
from pathlib import Path
from hpc_kjko.case import config
from hpc_kjko.running import driver, memory
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.parallel.limits import resident
from hpc_kjko.files.runfolder import RunFolder, peak_memory
case, comm, before = config.from_table(json.loads(sys.argv[1])), Communicator(), resident()
estimated = memory.parts_of(case, 0, 1, torch.device("cpu"))
driver.start(case, RunFolder(Path("out")), comm, progress=False)
print(json.dumps([peak_memory() - before, sum(part.nbytes for part in estimated), estimated[0].key]))
"""

ONE_STEP = {
    "time": {"step": 0.1, "end": 0.1},
    "output": {"every": 0, "histogram_every": 0},
    "run": {"device": "cpu"},
}
BIG = {
    "particles.count": {
        "problem": {"kind": "two_stream", "space_dims": 3, "velocity_dims": 3},
        "particles": {"count": 1_200_000, "start": "random"},
        "grid": {"cells": 8},
        "method": {"hidden": [16, 16], "iterations": 1, "first_iterations": 1},
    },
    "grid.cells": {
        "problem": {"kind": "landau_damping", "space_dims": 2, "velocity_dims": 2},
        "particles": {"count": 1024},
        "grid": {"cells": 1500},
        "method": {"collision": "none"},
    },
    "method.hidden": {
        "problem": {"kind": "two_stream"},
        "particles": {"count": 512},
        "method": {"solver": "adam", "order": 1, "hidden": [2000, 2000], "iterations": 1, "first_iterations": 1},
    },
    "method.hidden of two species": {
        "problem": {"kind": "plasma", "length": 12.0},
        "species": {
            name: {"charge": charge, "mass": 1.0, "count": 512, "initial": "maxwellian", "collision_strength": 0.1}
            for name, charge in (("electrons", -1.0), ("positrons", 1.0))
        },
        "method": {"solver": "adam", "order": 1, "hidden": [1700, 1700], "iterations": 1, "first_iterations": 1},
    },
}


@pytest.mark.parametrize("key", BIG)
def test_the_estimate_is_what_a_run_takes(key, tmp_path):
    line = [sys.executable, "-c", MEASURE, json.dumps(BIG[key] | ONE_STEP)]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    taken, estimated, largest = json.loads(done.stdout)
    assert taken > 300e6 and largest == key.partition(" ")[0]
    assert 0.55 < taken / estimated < 2  # the allocator's pools differ from run to run


def test_the_memory_of_a_process_is_not_that_of_the_one_that_started_it():
    held = b"1" * 1_000_000_000
    ask = "from hpc_kjko.files.runfolder import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", ask], env=environment(), capture_output=True, text=True, check=True)
    assert peak_memory() > len(held) and 1e7 < int(done.stdout) < 0.8 * len(held)


# -- what there is -------------------------------------------------------------------------------------------------


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def limits_in(system):
    return {limit.scope.partition(":")[2].replace(str(system), ""): limit.free for limit in memory_limits(system)}


def test_the_node_and_every_control_group_above_a_process_limit_its_memory(tmp_path):
    write(tmp_path / "proc", meminfo="MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    write(tmp_path / "proc/self", cgroup="0::/slurm/job_7/step_0\n", statm="100 50 0 0 0 0 0\n")
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "slurm/job_7/step_0", memory__max="max\n", memory__current="5\n")
    write(groups / "slurm/job_7", memory__max="3000\n", memory__current="900\n", memory__stat="inactive_file 200\n")
    write(groups / "slurm", memory__max="100\n", memory__current="200\n", memory__stat="anon 7\ninactive_file 0\n")
    assert limits_in(tmp_path) == {
        "node": 4000 * 1024,
        "/sys/fs/cgroup/slurm/job_7": 3000 - 700,
        "/sys/fs/cgroup/slurm": 0,
    }
    assert resident(tmp_path) == 50 * resource.getpagesize()


def test_control_groups_of_version_1_limit_memory_too(tmp_path):
    write(tmp_path / "proc/self", cgroup="5:cpu,cpuacct:/\n4:memory:/job\n1:name=systemd:/\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/memory"
    files = {"memory__usage_in_bytes": "600", "memory__stat": "inactive_file 1\ntotal_inactive_file 100\n"}
    write(group / "job", memory__limit_in_bytes="1000\n", **files)
    write(group, memory__limit_in_bytes="9223372036854771712\n", **files)
    assert limits_in(tmp_path) == {"/sys/fs/cgroup/memory/job": 500}


def test_a_system_that_says_nothing_limits_nothing(tmp_path):
    assert limits_in(tmp_path) == {} and resident(tmp_path) == 0


def test_ulimit_limits_the_address_space(monkeypatch, tmp_path):
    write(tmp_path / "proc/self", statm="100 50 0 0 0 0 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**9, 10**9))
    (limit,) = memory_limits(tmp_path)
    assert limit.free == 10**9 - 100 * resource.getpagesize() and "ulimit -v" in limit.name


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("particles.count", ["particles.count=1e9"]),
        ("grid.cells", ["grid.cells=1000000000"]),
        ("method.hidden", ["method.hidden=[100000,100000]"]),
        ("method.hidden", ["method.solver=varpro", "method.hidden=[32,20000]", "particles.count=2e6"]),
        ("method.chunk", ["method.solver=varpro", "particles.count=5e7", "method.chunk=1e8"]),
        ("time.end", ["problem.kind=gaussian", "method.collision=velocity_matching", "time.end=1e4"]),
    ],
)
def test_a_case_that_does_not_fit_is_refused_for_the_key_that_takes_most(
    key, changes, kjko_here, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "memory_limits", lambda: [Limit("here", "node here", 10**10)])
    (tmp_path / "case.toml").write_text('[problem]\nkind = "two_stream"\n[run]\ndevice = "cpu"\n')
    settings = [word for change in changes for word in ("--set", change)]
    result = kjko_here("run", "case.toml", "--out", "out", *settings)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    (sentence,) = result.stderr.splitlines()
    assert "node here has 10 GB free" in sentence and f"{key} = " in sentence
    dry = kjko_here("run", "case.toml", "--dry-run", *settings)
    assert (dry.returncode, dry.stderr) == (2, result.stderr)
    assert f"({key})" in dry.stdout.splitlines()[2]  # the largest part comes first


def test_what_lives_on_a_gpu_must_fit_there(alone, monkeypatch):
    case = config.from_table({"problem": {"kind": "two_stream"}, "particles": {"count": 10**8}})
    alone.device = torch.device("cuda", 0)
    monkeypatch.setattr(memory, "memory_limits", lambda: [Limit("here", "node here", 10**10)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 8 * 10**10))
    with pytest.raises(UserError, match="the GPU of rank 0 has 8 GB free: particles.count = 100000000"):
        memory.require(case, alone)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**10, 8 * 10**10))
    memory.require(case, alone)  # the host holds no more than their way to the files


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 GiB for an array"),
        MemoryError("std::bad_alloc"),
        RuntimeError("_ArrayMemoryError: Unable to allocate 8.00 GiB"),  # another rank's
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
@pytest.mark.parametrize("where", ["start", "advance"])
def test_memory_that_runs_out_after_all_names_the_key_that_takes_most(error, where, kjko_here, small_case, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(Simulation, where, fail)
    result = kjko_here("run", small_case, "--out", "out", "--set", "grid.cells=100000")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "not enough memory" in result.stderr and "grid.cells = [100000]" in result.stderr


# -- the dry run ---------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(kjko_here, small_case, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = kjko_here("run", small_case, "--dry-run")
    assert result.returncode == 0, result.stderr
    for said in ("3000 in all", "(particles.count)", "free", "with the case itself", "all 10 steps", "checkpoints"):
        assert said in result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_gives_the_warnings_of_the_run(kjko_here, small_case):
    changes = ("--set", "time.step=5.0", "--set", "time.end=5.0", "--set", "physics.collision_strength=0.0")
    dry, wet = (kjko_here("run", small_case, *changes, *more).stdout.splitlines() for more in (("--dry-run",), ()))
    given = [line for line in dry if line.startswith("warning: ")]
    assert any("from 2 on the push is unstable" in line for line in given)
    assert given == [line for line in wet if line.startswith("warning: ")]


def test_a_dry_run_says_whether_the_wave_grows_and_which_would(kjko_here, small_case):
    """The default length of bump_on_tail has a damped wave. With the suggested length it grows at the stated rate."""

    def said(*settings):
        arguments = [word for setting in settings for word in ("--set", setting)]
        result = kjko_here("run", small_case, "--dry-run", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    of_bump = ("problem.kind=bump_on_tail", "physics.collision_strength=0.0", "particles.count=64", "time.end=0.1")
    damped = said(*of_bump)
    assert "linear theory: damped, γ = −0." in damped and "k = 0.5 ω_p/v_th" in damped
    length, rate = re.search(r"problem.length = ([\d.]+) .*γ = ([\d.]+) without", damped).groups()
    growing = said(*of_bump, f"problem.length={length}")
    assert f"growing, γ = {rate}" in growing and "problem.length" not in growing
    second = said(*of_bump, f"problem.length={length}", "problem.mode=2")
    assert f"mode 1 of this box grows faster: γ = {rate}" in second
    assert float(rate) > 0.1
    slow = ("problem.kind=two_stream", "problem.beam_velocity=1.2", "physics.collision_strength=0.0", *of_bump[2:])
    assert "no wave grows faster than γ = 0.0001 ω_p in these streams: increase problem.beam_velocity" in said(*slow)


def test_a_dry_run_of_beams_in_a_bath_says_that_they_do_not_grow_and_which_would():
    """The bath merges the beams. In a box of the suggested length the wave grows as much as stated."""

    def said(strength, length, end):
        changes = {"physics.collision_strength": strength, "problem.length": length, "time.end": end}
        return "\n".join(forecast.wave_of(config.Case.load(JOBS / "two_stream.toml", changes)))

    damped = said(0.01, 12.0, 10.0)
    assert re.search(r"does not grow by t = 10: it is damped to 0.\d+ times its initial amplitude", damped)
    length, largest, end = re.search(r"length = ([\d.]+) .*:\n +up to ([\d.]+) times .* t = ([\d.]+)", damped).groups()
    growing = said(0.01, float(length), float(end))
    assert float(re.search(r"grows up to ([\d.]+) times", growing)[1]) == pytest.approx(float(largest), rel=0.02)
    assert "grows most" not in growing and "of this box" not in growing
    second = "\n".join(forecast.wave_of(config.Case.load(JOBS / "two_stream.toml", {"problem.mode": 2})))
    assert "grows up to" in second and re.search(r"mode 1 of this box grows more: up to ([\d.]+) times", second)
    strong = said(1.0, 31.4159265, 10.0)
    assert "it is damped to" in strong and "no wave grows by a factor of 2 in these streams and this bath" in strong
    assert "increase problem.beam_velocity" in strong


def test_a_dry_run_of_many_particles_steps_fewer_and_says_so(kjko_here, small_case, monkeypatch):
    monkeypatch.setattr(forecast, "MEASURED", 2048)
    assert "with 512 and 2048 of its particles" in kjko_here("run", small_case, "--dry-run").stdout


def test_a_dry_run_of_velocity_matching_counts_its_rehearsals(kjko_here, small_case):
    changes = ["problem.kind=gaussian", "method.collision=velocity_matching", "time.end=0.5", "method.iterations=1"]
    matching = "[velocity_matching]\niterations = 2\n[output]"
    small_case.write_text(SMALL_CASE.replace("[grid]\ncells = [16]\n", "").replace("[output]", matching))
    result = kjko_here("run", small_case, "--dry-run", *(word for change in changes for word in ("--set", change)))
    assert "to match velocities before the first step" in result.stdout, result.stderr


def test_files_have_the_sizes_that_a_dry_run_says(a_run):
    case = config.load(a_run / "case.toml")
    sizes = {name: number * nbytes for name, number, nbytes in forecast._files(case)}
    checkpoints = sum(path.stat().st_size for path in (a_run / "checkpoints").iterdir())
    snapshots = sum(path.stat().st_size for path in (a_run / "snapshots").iterdir())
    assert checkpoints == pytest.approx(sizes["checkpoints that are kept"], rel=0.3)
    assert snapshots == pytest.approx(sum(size for name, size in sizes.items() if "snapshots" in name), rel=0.3)


def test_particles_on_each_rank_are_a_number_or_a_range():
    def on_each(size, *counts):
        table = {"problem": {"kind": "two_stream"}, "particles": {"count": counts[0]}}
        if len(counts) > 1:
            species = {f"s{i}": {"charge": 1.0, "mass": 1.0, "count": count} for i, count in enumerate(counts)}
            table = {"problem": {"kind": "plasma"}, "species": species}
        return forecast.particles_on_each(config.from_table(table), size)

    assert on_each(2, 2048) == "1024"
    assert on_each(4, 2560) == "0 to 1024"  # whole blocks: 1024, 1024, 512, 0
    assert on_each(2, 1024, 1024) == "0 to 2048"  # the only block of each species


def test_amounts_are_short():
    assert [memory.amount(x) for x in (12.0, 4.5e6, 1e9, 2.34e12)] == ["0.012 kB", "4.5 MB", "1 GB", "2.34 TB"]
