"""The batch scripts of jobs/ under a real SLURM, a cluster of this one machine: they end as one uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import environment

from hpc_kjko.files.checkpoint import latest, load
from hpc_kjko.files.series import read_series
from hpc_kjko.parallel.comm import Communicator

ROOT = Path(__file__).parents[2]

#: A cluster that takes more jobs at a time than this machine has cores; they sleep most of the time.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=pmix
CommunicationParameters=NoInAddrAny
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=32
PartitionName=test Nodes={host} Default=YES
"""

#: Sixty steps, which take about one and a half seconds each until the file "go" is there.
CASE = """
[problem]
kind = "confined"
potential = "patient:potential"
mean_x = [0.5]
std_x = [0.5]
[particles]
count = 2048
precision = "float64"
[time]
step = 0.05
end = 3.0
[method]
collision = "langevin"
"""
SWEPT = """
[problem]
kind = "gaussian"
[time]
end = 0.2
[method]
collision = "langevin"
"""
POTENTIAL = """
import os, time

def potential(x):
    if len(x) in (1024, 2048) and not os.path.exists(os.environ["GO"]):  # the particles of a rank
        time.sleep(0.7)
    return 0.5 * (x**2).sum(1)
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """Commands to the batch system, from a folder that has ``jobs`` in it."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.folder, self.env = folder, env

    def __call__(self, *line: str | Path) -> str:
        result = subprocess.run(
            [str(word) for word in line], cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=30
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"
        return result.stdout.strip()

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), **env: str) -> str:
        fitted = ("--nodes=1", "--ntasks-per-node=2", "--time=2", "--signal=B:USR1@60", *options)
        job = Cluster(self.folder, {**self.env, **env})("sbatch", "--parsable", *fitted, f"jobs/{script}", *arguments)
        return job.partition(";")[0]

    def job(self, job: str) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self("scontrol", "-o", "show", "job", job).split() if "=" in pair)

    def wait(self, job: str, *states: str, restarts: str = "0", seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.job(job))["JobState"] not in states or found["Restarts"] != restarts:
            assert time.monotonic() < deadline, f"{found}\n{self.output(job)}"
            time.sleep(0.2)

    def output(self, job: str) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"kjko-{job}*.out")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """munged, slurmctld and slurmd of our own, with all their files in one folder."""
    installed = subprocess.run(["bash", ROOT / "scripts/install_slurm.sh"], text=True, capture_output=True)
    if installed.returncode != 0:
        pytest.skip(installed.stderr.strip().splitlines()[-1])
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    munge = {name: folder / f"munge.{name}" for name in ("socket", "key", "pid", "seed", "log")}
    munge["key"].touch(mode=0o600)
    munge["key"].write_bytes(os.urandom(64))
    user = subprocess.run(["id", "-un"], text=True, capture_output=True, check=True).stdout.strip()
    host, conf = platform.node().partition(".")[0], folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=host, ports=free_ports(2), user=user, folder=folder))
    commands = [
        ["munged", "--foreground", "--force"]
        + [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in munge.items()],
        ["slurmctld", "-D", "-i", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    outside = {name: value for name, value in environment().items() if not name.startswith("SLURM")}
    env = {**outside, "SLURM_CONF": str(conf), "PATH": path, "GO": str(folder / "go")}
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.log", "w") as log:
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            deadline = time.monotonic() + 10
            while command[0] == "munged" and not munge["socket"].exists():
                assert time.monotonic() < deadline, (folder / "munged.log").read_text()
                time.sleep(0.05)
        work = folder / "work"
        work.mkdir()
        (work / "jobs").symlink_to(ROOT / "jobs")
        (work / "cases").mkdir()
        (work / "cases/case.toml").write_text(CASE)
        (work / "cases/patient.py").write_text(POTENTIAL)
        ready = Cluster(work, env)
        deadline = time.monotonic() + 20
        while subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, text=True, capture_output=True).stdout != "idle\n":
            assert time.monotonic() < deadline, [log.read_text() for log in folder.glob("*.log")]
            time.sleep(0.2)
        yield ready
    finally:
        subprocess.run(["scancel", "--full", "-s", "KILL", "-u", user], env=env, capture_output=True, timeout=30)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=20)


def steps_done(folder: Path) -> int:
    return len(read_series(folder / "series.h5")["step"]) if (folder / "series.h5").exists() else 0


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.timeout(360)
def test_jobs_that_meet_the_time_limit_are_requeued_and_end_as_one_run(cluster):
    """One by srun, one by mpirun. SLURM sends its early signal when it next looks, twice a minute; meanwhile: a job
    that is cancelled, and one with nothing to do it with."""
    work, go = cluster.folder, Path(cluster.env["GO"])
    launchers = {"srun": "srun --mpi=pmix", "mpirun": "mpirun"}
    jobs = {
        name: cluster.submit("cpu.sbatch", "cases/case.toml", name, KJKO_LAUNCH=launch)
        for name, launch in launchers.items()
    }
    long, one = "--time=10", "--ntasks-per-node=1"
    cancelled = cluster.submit("cpu.sbatch", "cases/case.toml", "cancelled", options=(long, one))
    no_gpu = cluster.submit("gpu.sbatch", "cases/case.toml", "no_gpu", options=(long, one, "--gpus-per-node=0"))
    for name in (*jobs, "cancelled"):
        wait_for(lambda name=name: steps_done(work / name) > 2)
    (work / "cases").rename(work / "elsewhere")  # a job keeps what it was submitted with
    cluster("scancel", cancelled)
    cluster.wait(cancelled, "CANCELLED")
    assert load(latest(work / "cancelled/checkpoints"), Communicator()).header["step"] > 1
    cluster.wait(no_gpu, "FAILED")
    assert cluster.job(no_gpu)["ExitCode"] == "2:0"
    assert cluster.output(no_gpu).count('run.device = "cuda" needs one GPU per rank') == 1

    for job in jobs.values():
        cluster.wait(job, "PENDING", restarts="1")
    stopped = {name: load(latest(work / name / "checkpoints"), Communicator()).header["step"] for name in jobs}
    assert all(1 < step < 60 for step in stopped.values()), stopped
    go.touch()
    spool = cluster.folder.parent / "spool"
    time.sleep(2)  # SLURM takes a start within the second of the requeue for the job that has ended
    for job in jobs.values():
        # srun cannot launch a step while the daemon of the earlier one ends, for which a requeued job has two minutes
        wait_for(lambda job=job: not any(path.is_socket() for path in spool.glob(f"*[._]{job}.*")))
        cluster("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=10")
    scaling = cluster.submit("weak_scaling.sbatch", "elsewhere/case.toml", "weak", "1024", options=(long, "--array=1"))
    for job in jobs.values():
        cluster.wait(job, "COMPLETED", restarts="1")
    cluster.wait(f"{scaling}_1", "COMPLETED")

    expected = read_series(work / "weak/1/series.h5")  # the same case: 1024 particles on each of two ranks
    final = load(latest(work / "weak/1/checkpoints"), Communicator())
    assert len(expected["step"]) == 61
    for name, job in jobs.items():
        assert f"continues {work / name} from step{stopped[name]:08d}.h5" in cluster.output(job)
        series = read_series(work / name / "series.h5")
        state = load(latest(work / name / "checkpoints"), Communicator())
        for column in {name for name in expected if not name.startswith("seconds")}:
            np.testing.assert_array_equal(series[column], expected[column], err_msg=column)
        (name,) = final.species
        for key, rows in final.species[name].arrays.items():
            np.testing.assert_array_equal(state.species[name].arrays[key], rows, err_msg=key)
    assert cluster.job(cancelled)["Restarts"] == cluster.job(no_gpu)["Restarts"] == "0"


def test_a_sweep_runs_as_a_job_array(cluster):
    """On one rank each, from a script that ``kjko sweep`` has written; the table is made from what they left."""
    work = cluster.folder
    (work / "sweep.toml").write_text(SWEPT)
    grid = ("--grid", "particles.count=1024,2048", "--out", "swept")
    cluster("python", "-m", "hpc_kjko", "sweep", "sweep.toml", *grid, "--slurm", "sweep.sbatch")
    (work / "sweep.toml").unlink()
    submit = Cluster(work, {**cluster.env, "KJKO_LAUNCH": "srun --mpi=pmix"})
    array = submit("sbatch", "--parsable", "--time=30", "sweep.sbatch").partition(";")[0]
    for number in (0, 1):
        cluster.wait(f"{array}_{number}", "COMPLETED")
    cluster("python", "-m", "hpc_kjko", "sweep", "swept", "--table")
    assert (work / "swept/sweep.csv").read_text().count(",finished,") == 2
    assert len(read_series(work / "swept/count=2048/series.h5")["step"]) == 3
