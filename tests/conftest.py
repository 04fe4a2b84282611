"""Fixtures and helpers that the tests share."""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import forkserver
import h5py
import hypothesis
import numpy as np
import pytest
import torch

from hpc_kjko.cli.main import main
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.running.diagnostics import measure

# On a busy machine it takes long to draw examples, but the tests are not about that.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# A shell starts background jobs with SIGINT ignored, and all processes that the tests start would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A run that has ended leaves its signals ignored (hpc_kjko/terminal.py). All later tests would inherit this.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
_HANDLERS = {number: signal.getsignal(number) for number in _SIGNALS}

#: Every command of the tests must end within this number of seconds.
PATIENCE = 120


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """Restore the signal handlers of before all tests after each test."""
    yield
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def alone() -> Communicator:
    """A communicator of one rank that does not use MPI."""
    torch.set_num_threads(1)
    return Communicator()


@pytest.fixture(scope="module")
def world() -> Iterator[Communicator]:
    """The communicator of all ranks."""
    torch.set_num_threads(1)
    comm = Communicator.world()
    yield comm
    comm.close()


def rows_to_the_end(simulation, *columns: str) -> dict[str, np.ndarray]:
    """Run a simulation to its end, and return columns of the series from its present state on. The simulation is not
    changed.

    Args:
        simulation: the simulation.
        columns: the columns to return (with those of the same diagnostics); by default all. Without collisions it takes
            three times as long to measure all columns as to make the step.
    """
    diagnostics = [each for each in simulation.diagnostics if not columns or {*columns} & {*each.columns}]
    rows = [measure(diagnostics, simulation.state, simulation.comm)]
    while simulation.step_index < simulation.case.time.steps:
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(diagnostics, simulation.state, simulation.comm))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def command(*arguments: str | Path, ranks: int = 1) -> list[str]:
    """The command line of ``python ARGUMENTS`` under mpirun of this environment; without mpirun for one rank."""
    mpirun = Path(sysconfig.get_path("scripts")) / "mpirun"
    launcher = [str(mpirun), "-n", str(ranks), "--oversubscribe"] if ranks > 1 else []
    return [*launcher, sys.executable, *map(str, arguments)]


def quick(*arguments: str | Path, ranks: int = 1) -> list[str]:
    """As :func:`command`, for tests in which torch and the package may already be imported (tests/forkserver.py)."""
    *launcher, _ = command(ranks=ranks)
    return [*launcher, quick_python(), *map(str, arguments)]


@functools.cache
def quick_python() -> str:
    """A program that takes the place of the Python interpreter. Its server ends with this process."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # Linux before 5.3
        return sys.executable
    if h5py.get_config().mpi:  # importing this h5py initialises MPI, which must happen after a fork
        return sys.executable
    folder, pipe = Path(tempfile.mkdtemp()), subprocess.PIPE
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    python = folder / "python"
    asks = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport forkserver\n"
    python.write_text(f"#!{sys.executable} -IS\n{asks}forkserver.ask('{folder}/socket', sys.argv[1:])\n")
    python.chmod(0o755)
    line = [sys.executable, forkserver.__file__, f"{folder}/socket"]
    server = subprocess.Popen(line, env=environment(), stdin=pipe, stdout=pipe, start_new_session=True)
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == b"ready\n"
    return str(python)


def environment() -> dict[str, str]:
    """The environment of commands: one thread per rank, and no variables of an outer MPI job that may run the tests."""
    outer = ("OMPI_", "PMIX_", "PRTE_", "PMI_")
    ours = ("OMPI_ALLOW", "OMPI_MCA", "PRTE_MCA_rmaps", "PRTE_MCA_hwloc")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(outer) or k.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run_command(line: list[str], cwd: Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. After the timeout the job is ended by SIGTERM (SIGKILL would leave ranks) and fails."""
    process = subprocess.Popen(
        line, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        pytest.fail(f"{' '.join(line)} hung for {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(line, process.returncode, out, err)


@pytest.fixture
def kjko(tmp_path):
    """Run ``kjko ARGUMENTS`` in a scratch folder on ``ranks`` ranks."""

    def run(*arguments: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        return run_command(quick("-m", "hpc_kjko", *arguments, ranks=ranks), tmp_path)

    return run


@pytest.fixture
def kjko_here(tmp_path, monkeypatch, capsys):
    """Call ``kjko ARGUMENTS`` in this process, for commands that make no run. Starting a process would take seconds."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def quick_children(monkeypatch):
    """Let processes that are started with ``sys.executable`` use torch without importing it again."""
    monkeypatch.setattr(sys, "executable", quick_python())


class Part(torch.nn.Module):
    """An objective as a plain differentiable sum over particles."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, step, *sample):
        return self.objective.part(step, *sample)


def exactly(solver, data, step, stiffer=0):
    """Solve the inner problem to round-off with Newton's method instead of Adam (for the affine field)."""
    part, parameters, (whole,) = Part(solver.trainer.objective), list(solver.trainer.parameters.values()), data.folds
    names = [name for name, _ in part.named_parameters()]
    sizes, shapes = [p.numel() for p in parameters], [p.shape for p in parameters]

    def value(flat):
        pieces = [piece.reshape(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
        return torch.func.functional_call(part, dict(zip(names, pieces, strict=True)), (step, *whole.rows()))

    flat = torch.cat([p.detach().flatten() for p in parameters])
    for _ in range(50):
        newton = torch.linalg.solve(torch.func.hessian(value)(flat), torch.func.grad(value)(flat))
        length = 1.0
        while length > 1e-3 and value(flat - length * newton) > value(flat) + 1e-14:
            length *= 0.5
        flat = flat - length * newton
        if newton.norm() < 1e-13:
            break
    with torch.no_grad():
        for parameter, piece, shape in zip(parameters, flat.split(sizes), shapes, strict=True):
            parameter.copy_(piece.reshape(shape))
    return 1


SMALL_CASE = """
[problem]
kind = "two_stream"
[physics]
collision_strength = 0.1
[particles]
count = 3000
[grid]
cells = [16]
[time]
step = 0.1
end = 1.0
[method]
precision = "float64"
hidden = [8, 8]
iterations = 3
first_iterations = 10
[output]
every = 5
particles_every = 5
histogram_every = 5
checkpoint_every = 4
"""


@pytest.fixture(autouse=True)
def signals_mean_what_they_meant():
    """A run in this process leaves its signals ignored, and the next test would inherit this."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small_case(tmp_path) -> Path:
    """A case with ten cheap steps, completely in float64."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_CASE)
    return path


@pytest.fixture(scope="session")
def a_run(tmp_path_factory):
    """A finished run of the small case. Tests may only read it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(SMALL_CASE)
    result = run_command(quick("-m", "hpc_kjko", "run", "small.toml", "--out", "a run"), folder)
    assert result.returncode == 0, result.stderr
    return folder / "a run"


@pytest.fixture
def finished(a_run, tmp_path):
    """A copy of the finished run, in a folder whose name has a space."""
    return shutil.copytree(a_run, tmp_path / "a run")
