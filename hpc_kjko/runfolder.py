"""The folder of a run: what is in it, where, and in which state the run is.

case.toml      the resolved case         run.json       status and provenance
log.txt        the log                   series.h5      the time series
snapshots/     openPMD files             checkpoints/   whole states, the last two
figures/       made by ``kjko plot``     .lock          held while a run is going on
analysis/      made by ``kjko analyze``
input/         what a batch job was given (jobs/job.sh); never touched here
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_kjko import __version__
from hpc_kjko.errors import UserError
from hpc_kjko.output import list_snapshots
from hpc_kjko.storage import unfinished

if TYPE_CHECKING:
    from hpc_kjko.comm import Communicator

_SOFTWARE = "hpc_kjko"
_HELD: dict[Path, Any] = {}  # the locks of this process


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder, and what is done to it as a whole. Whatever writes is for rank 0 only."""

    path: Path

    @property
    def case(self) -> Path:
        return self.path / "case.toml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def series(self) -> Path:
        return self.path / "series.h5"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    def require_free(self, *, force: bool) -> None:
        """Check that a new run may have this folder.

        Raises:
            UserError: it holds a run already and ``force`` is false, or it is something else.
        """
        with self.writing():
            if not self.path.exists():
                return
            if self.path.is_dir() and all(path.name == "input" for path in self.path.iterdir()):
                return
            if not self.case.is_file() or self.status().get("software") != _SOFTWARE:
                raise UserError(f"{self.path}: exists and is not a run folder: choose another --out")
            status = self.status()["status"]
        if not force:
            continues = "" if status == "finished" else f"{restart_command(self.path)} continues it, "
            raise UserError(
                f"{self.path}: already holds a run ({status}): {continues}--force overwrites it, "
                "or choose another --out"
            )

    def create(self, case_toml: str) -> None:
        """Make the folder anew with its case inside, removing no more than an earlier run of ours left.

        Raises:
            UserError: it cannot be written, or a run is going on in it.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self.claim()
            for old in (self.snapshots, self.checkpoints, self.figures, self.analysis):
                shutil.rmtree(old, ignore_errors=True)
            for old in (self.log, self.series):
                old.unlink(missing_ok=True)
            self.set_status("new")
            for folder in (self.snapshots, self.checkpoints):
                folder.mkdir()
            self.write_case(case_toml)

    def claim(self) -> None:
        """Keep other jobs out of the folder until :meth:`release`, or until this process ends.

        Raises:
            UserError: another one is running in it.
        """
        if self.path.resolve() in _HELD:
            return
        with self.writing():
            lock = open(self.path / ".lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            raise UserError(f"{self.path}: a run is going on in it ({owner}): wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks: nothing is known of other jobs
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        _HELD[self.path.resolve()] = lock

    def release(self) -> None:
        """Let other jobs in again, if this one kept them out."""
        lock = _HELD.pop(self.path.resolve(), None)
        if lock:
            lock.close()

    def clean_up(self, step: int) -> None:
        """Remove what belongs to a future that a restart at ``step`` leaves, and halves of files."""
        with self.writing():
            for folder in (self.snapshots, self.checkpoints):
                for partial in unfinished(folder):
                    partial.unlink()
            for later in (other for other in list_snapshots(self.snapshots) if other > step):
                (self.snapshots / f"data{later:08d}.h5").unlink()

    def write_case(self, case_toml: str) -> None:
        """Write the case in one piece.

        Raises:
            UserError: it cannot be written.
        """
        self._replace("case.toml", case_toml)

    def status(self) -> dict[str, Any]:
        """What ``run.json`` says; ``{"status": "unknown"}`` if it says nothing sensible.

        Raises:
            UserError: this is not a run folder.
        """
        with self.writing():
            if not self.case.exists():
                raise UserError(f"{self.path}: not a run folder (it has no case.toml): give the folder that a run made")
        try:
            status = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = None
        if not (isinstance(status, dict) and isinstance(status.get("status"), str)):
            return {"status": "unknown"}
        numbers = ("ranks", "memory", "step", "time")
        return {k: v for k, v in status.items() if k not in numbers or isinstance(v, int | float)}

    def set_status(self, status: str, **details: Any) -> None:
        """Write ``run.json`` in one piece.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps({"status": status, "software": _SOFTWARE, **details}, indent=2)
        self._replace("run.json", text + "\n")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around file calls: what the system refuses becomes a UserError that names the folder."""
        try:
            yield
        except OSError as failure:
            raise UserError(
                f"{self.path}: cannot use this folder ({failure.strerror or failure}): look at its "
                "permissions and at free space, or give another"
            ) from None

    def _replace(self, name: str, text: str) -> None:
        with self.writing():
            partial = self.path / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path / name)


def restart_command(path: Path) -> str:
    """What to type to go on with a run, as a message gives it."""
    name = str(path)
    return f"'kjko restart {name}'" if shlex.quote(name) == name else f"'kjko restart \"{name}\"'"


def provenance(comm: Communicator) -> dict[str, Any]:
    """What made a run: versions, git revision, ranks, threads, host, date, command. Written into every output file."""
    import torch  # not with the module: who only reads a folder does without

    nodes = os.environ.get("SLURM_JOB_NODELIST")
    program = Path(sys.argv[0]).name.replace("__main__.py", "kjko")
    return {
        "software": _SOFTWARE,
        "version": __version__,
        "git": _git_revision(),
        "ranks": comm.size,
        "threads": torch.get_num_threads(),
        "device": comm.device.type,
        "mpi": comm.library,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        **({"nodes": nodes} if nodes else {}),
        "command": _as_utf8(shlex.join([program, *sys.argv[1:]])),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _as_utf8(text: str) -> str:
    """A text in which bytes that are not UTF-8, as in names of old files, are written out as numbers."""
    return text.encode("utf-8", "backslashreplace").decode()


def _git_revision() -> str:
    """The revision of the sources, if Python runs them where they are; else that this is an installed package."""
    source = Path(__file__).parent
    if not (source.parent / ".git").exists():
        return "installed package"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
