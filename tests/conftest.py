"""What the tests share."""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
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

# A busy machine is slow to draw examples; that is not what the tests are about.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# A shell starts background jobs with SIGINT ignored, and what is ignored here is ignored by all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A run that has ended leaves its signals ignored (hpc_kjko/terminal.py), and so would be all that later tests start.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
_HANDLERS = {number: signal.getsignal(number) for number in _SIGNALS}

#: Seconds within which any command of the tests must have ended.
PATIENCE = 120


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """Signals mean after a test what they meant before all tests."""
    yield
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def alone() -> Communicator:
    """A communicator of one rank that has nothing to do with MPI."""
    torch.set_num_threads(1)
    return Communicator()


def rows_to_the_end(simulation, *columns: str) -> dict[str, np.ndarray]:
    """Columns of the series from where a simulation is to its end, where it is left.

    All of them, or of those that are named (and what is measured with them): without collisions measuring everything
    takes three times as long as the step.
    """
    diagnostics = [each for each in simulation.diagnostics if not columns or {*columns} & {*each.columns}]
    rows = [measure(diagnostics, simulation.state, simulation.comm)]
    while simulation.step_index < simulation.case.time.steps:
        simulation.state = simulation.advance()
        simulation.step_index += 1
        rows.append(measure(diagnostics, simulation.state, simulation.comm))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def command(*arguments: str | Path, ranks: int = 1) -> list[str]:
    """``python ARGUMENTS`` under this environment's own mpirun, or alone for one rank."""
    mpirun = Path(sysconfig.get_path("scripts")) / "mpirun"
    launcher = [str(mpirun), "-n", str(ranks), "--oversubscribe"] if ranks > 1 else []
    return [*launcher, sys.executable, *map(str, arguments)]


def quick(*arguments: str | Path, ranks: int = 1) -> list[str]:
    """The same, where it does not matter that torch and the package are imported already (tests/forkserver.py)."""
    *launcher, _ = command(ranks=ranks)
    return [*launcher, quick_python(), *map(str, arguments)]


@functools.cache
def quick_python() -> str:
    """Stands in for the Python interpreter; its server ends with this process."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # before Linux 5.3
        return sys.executable
    if h5py.get_config().mpi:  # whose import initialises MPI, which must be done after a fork
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
    """One thread a rank, and nothing of an outer MPI job (the tests may themselves run under one)."""
    outer = ("OMPI_", "PMIX_", "PRTE_", "PMI_")
    ours = ("OMPI_ALLOW", "OMPI_MCA", "PRTE_MCA_rmaps", "PRTE_MCA_hwloc")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(outer) or k.startswith(ours)}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run_command(line: list[str], cwd: Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run to the end; past the timeout the whole job is ended (SIGTERM: SIGKILL would orphan the ranks) and fails."""
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
    """``kjko ARGUMENTS`` in this process, for commands that run nothing: starting a process takes seconds."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    monkeypatch.chdir(tmp_path)
    return call


@pytest.fixture
def quick_children(monkeypatch):
    """What this process starts with ``sys.executable`` need not import torch again."""
    monkeypatch.setattr(sys, "executable", quick_python())


class Part(torch.nn.Module):
    """An objective as a plain differentiable sum."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, step, *sample):
        return self.objective.part(step, *sample)


def exactly(solver, data, step, stiffer=0):
    """The inner problem solved to round-off, for the affine field (few parameters): Newton's method instead of Adam."""
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
    """A run in this process leaves signals ignored, and what the next test starts would inherit that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small_case(tmp_path) -> Path:
    """A case of ten cheap steps, in float64 throughout."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL_CASE)
    return path


@pytest.fixture(scope="session")
def a_run(tmp_path_factory):
    """A finished run of the small case, to look at only."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(SMALL_CASE)
    result = run_command(quick("-m", "hpc_kjko", "run", "small.toml", "--out", "a run"), folder)
    assert result.returncode == 0, result.stderr
    return folder / "a run"


@pytest.fixture
def finished(a_run, tmp_path):
    """A copy of the finished run, in a folder with a space."""
    return shutil.copytree(a_run, tmp_path / "a run")
