"""The folder of a run: its files, and the status of the run.

case.toml      the resolved case         run.json       status and provenance
log.txt        the log                   series.h5      the time series
snapshots/     openPMD files             checkpoints/   whole states, the last two
figures/       made by ``kjko plot``     .lock          held while the run is running
analysis/      made by ``kjko analyze``  code/          the user's own modules, if the case names any
input/         the input of a batch job (jobs/job.sh); not changed here

A restart renames what it replaces. ``series-before-step00000008.h5`` is a series that could not be read, and
``code-before-step00000008/`` contains modules that have changed since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hpc_kjko import __version__
from hpc_kjko.errors import DiskFailure, UserError
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.storage import DISK_ERRORS, require_hdf5, unfinished

if TYPE_CHECKING:
    from hpc_kjko.parallel.comm import Communicator

_SOFTWARE = "hpc_kjko"
_HELD: dict[Path, Any] = {}  # the locks that this process holds
#: Statuses of a run that is not over. Its process replaces them by another one at its end, if it can.
_AT_WORK = ("new", "running")
#: Number of attempts to take a lock. Other processes hold it for a moment to find out whether a run is running.
_LOCK_TRIES = 5
#: Largest number of run folders in a message that asks for one of them.
_SOME = 4
#: Name for a file or folder that a restart replaces.
_ASIDE = "{}-before-{}"


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder, and operations on the folder as a whole. Only rank 0 may call methods that write."""

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

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint from which the run can continue."""
        return any(self.checkpoints.glob("step*.h5"))

    def require_free(self, *, force: bool) -> None:
        """Check that a new run may use this folder.

        Raises:
            UserError: it already contains a run and ``force`` is false, or it is not a run folder.
        """
        with self.writing():
            if not self.path.exists():
                return
            if self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {"input", ".lock"}:
                return
            status = self._noted()
            if status.get("software") != _SOFTWARE:
                raise UserError(f"{self.path}: exists and is not a run folder: choose another --out")
        if force:
            return
        advice = "--force overwrites it, or choose another --out"
        if not self.has_checkpoint:
            advice = f"it has no checkpoint to restart from, so {advice}"
        elif status["status"] != "finished":
            advice = f"{restart_command(self.path)} continues it, {advice}"
        raise UserError(f"{self.path}: already holds a run ({status['status']}): {advice}")

    def create(self, case_toml: str, code: Mapping[str, Path]) -> None:
        """Create the folder with the case inside. Of an existing folder only the files of an earlier run are removed.

        Args:
            case_toml: the resolved case.
            code: files of the user's own modules, by the path of their copy in ``code/``.

        Raises:
            UserError: the folder cannot be written, or a run is going on in it. No incomplete run folder is left.
        """
        contents = self._contents(code)
        with self.writing():
            is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.claim()
            with contextlib.suppress(DiskFailure):  # there may be room after the earlier run has been removed
                require_hdf5(self.path)
        except UserError:
            self.release()
            if is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        try:
            self._clear()
            self.set_status("new")
            with self.writing():
                for folder in (self.snapshots, self.checkpoints):
                    folder.mkdir()
            self.write_case(case_toml)
            self._write_code(contents)
        except BaseException:
            self._clear()
            self.release()
            (self.path / ".lock").unlink(missing_ok=True)
            if is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _clear(self) -> None:
        """Remove the files that a run has made, and nothing else."""
        with self.writing():
            folders = (self.snapshots, self.checkpoints, self.figures, self.analysis, self.code)
            for old in (*folders, *self.path.glob(_ASIDE.format("code", "*"))):
                shutil.rmtree(old, ignore_errors=True)
            names = ("log.txt", "series.h5", "case.toml", "run.json")
            files = [self.path / name for name in names] + unfinished(self.path)
            for old in (*files, *self.path.glob(_ASIDE.format("series", "*") + ".h5")):
                old.unlink(missing_ok=True)

    def keep_code(self, code: Mapping[str, Path], step: int) -> list[Path]:
        """Keep copies of the modules with which a run continues.

        Args:
            code: as in :meth:`create`.
            step: the step of the restart. The earlier copies of changed modules are kept under a name with this step.

        Returns:
            The files that have changed.

        Raises:
            UserError: files cannot be read or written.
        """
        contents, changed = self._contents(code), self.changed_code(code)
        if changed:
            with self.writing():
                shutil.rmtree(self.code_before(step), ignore_errors=True)
                self.code.rename(self.code_before(step))
        self._write_code(contents)
        return changed

    def changed_code(self, code: Mapping[str, Path]) -> list[Path]:
        """The files of modules that differ from the copies that the run has kept.

        Args:
            code: as in :meth:`create`.

        Raises:
            UserError: files cannot be read.
        """
        contents = self._contents(code)
        with self.writing():
            kept = {name: self.code / name for name in code if (self.code / name).is_file()}
            return [code[name] for name, path in kept.items() if path.read_bytes() != contents[name]]

    def code_before(self, step: int) -> Path:
        """The folder into which :meth:`keep_code` moves the earlier copies of changed modules."""
        return self.path / _ASIDE.format("code", f"step{step:08d}")

    def put_series_aside(self, step: int) -> Path:
        """Rename the time series before a restart at ``step`` that begins a new one, and return the new name.

        Raises:
            UserError: the file cannot be renamed.
        """
        aside = self.path / (_ASIDE.format("series", f"step{step:08d}") + ".h5")
        with self.writing():
            self.series.replace(aside)
        return aside

    @staticmethod
    def _contents(code: Mapping[str, Path]) -> dict[str, bytes]:
        try:
            return {name: path.read_bytes() for name, path in code.items()}
        except OSError as failure:
            raise UserError(
                f"{failure.filename}: cannot be read, and the run keeps a copy of it ({failure.strerror})"
            ) from None

    def _write_code(self, code: Mapping[str, bytes]) -> None:
        with self.writing():
            for name, content in code.items():
                (self.code / name).parent.mkdir(parents=True, exist_ok=True)
                (self.code / name).write_bytes(content)

    def claim(self) -> None:
        """Keep other jobs out of the folder until :meth:`release`, or until this process ends.

        Raises:
            UserError: another job is running in the folder.
        """
        if self.path.resolve() in _HELD:
            return
        with self.writing():
            lock = open(self.path / ".lock", "a+", encoding="utf-8")
        try:
            _lock(lock)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            raise UserError(f"{self.path}: a run is going on in it ({owner}): wait for it or stop it") from None
        except OSError:
            pass  # the file system has no locks, so other jobs cannot be detected
        with self.writing():
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
        _HELD[self.path.resolve()] = lock

    def release(self) -> None:
        """Release the lock of :meth:`claim`, if this process holds it."""
        lock = _HELD.pop(self.path.resolve(), None)
        if lock:
            lock.close()

    def clean_up(self, step: int) -> None:
        """Remove files of steps after ``step``, from which the run restarts, and incomplete files."""
        with self.writing():
            for folder in (self.snapshots, self.checkpoints):
                for partial in unfinished(folder):
                    partial.unlink()
            for later in (other for other in list_snapshots(self.snapshots) if other > step):
                (self.snapshots / f"data{later:08d}.h5").unlink()

    def write_case(self, case_toml: str) -> None:
        """Write the case file atomically.

        Raises:
            UserError: the file cannot be written.
        """
        self._replace("case.toml", case_toml)

    def status(self) -> dict[str, Any]:
        """The contents of ``run.json``; ``{"status": "unknown"}`` if the file is missing or not valid.

        The status is "gone" if ``run.json`` says that the run is running, but its process on this host no longer
        exists.

        Raises:
            UserError: this is not a run folder.
        """
        with self.writing():
            if not self.case.exists():
                advice = "give the folder that a run made"
                if runs := sorted(str(case.parent) for case in self.path.glob("*/case.toml")):
                    advice = f"it holds run folders, give one of them: {', '.join(runs[:_SOME])}"
                raise UserError(f"{self.path}: not a run folder (it has no case.toml): {advice}")
        return self._noted()

    def _noted(self) -> dict[str, Any]:
        """What :meth:`status` returns, for any folder."""
        try:
            status = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            status = None
        if not (isinstance(status, dict) and isinstance(status.get("status"), str)):
            return {"status": "unknown"}
        numbers = ("ranks", "memory", "step", "time", "restarts")
        status = {k: v for k, v in status.items() if k not in numbers or isinstance(v, int | float)}
        seconds = status.get("seconds", {})
        if not (isinstance(seconds, dict) and all(isinstance(spent, int | float) for spent in seconds.values())):
            del status["seconds"]
        if status["status"] in _AT_WORK and self._is_abandoned():
            status["status"] = "gone"
        return status

    def what_now(self) -> str:
        """A sentence about a run whose process no longer exists: what happened, and how to continue."""
        how = f"{restart_command(self.path)} continues from the last checkpoint"
        if not self.has_checkpoint:
            how = f"it wrote no checkpoint, and {run_command(self.path)} starts it from the beginning"
        return f"{self.owner()} no longer exists and did not finish the run: {how}"

    def owner(self) -> str:
        """The process that holds or last held the lock, as "process 1234 on HOST"; empty if there was none."""
        with contextlib.suppress(OSError):
            return (self.path / ".lock").read_text(encoding="utf-8", errors="replace").strip()
        return ""

    def _is_abandoned(self) -> bool:
        """Whether the last process in this folder has ended. This is known only on its own host; elsewhere it is
        False."""
        match = re.fullmatch(r"process (\d+) on (.*)", self.owner())
        if match is None or match[2] != platform.node():
            return False
        try:
            with open(self.path / ".lock", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # the file system has no locks
            return not _exists(int(match[1]))

    def set_status(self, status: str, **details: Any) -> None:
        """Write ``run.json`` atomically.

        Raises:
            UserError: the file cannot be written.
        """
        text = json.dumps({"status": status, "software": _SOFTWARE, **details}, indent=2)
        self._replace("run.json", text + "\n")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of file operations inside this block into a UserError that names the folder."""
        try:
            yield
        except OSError as failure:
            kind = DiskFailure if failure.errno in DISK_ERRORS else UserError
            raise kind(
                f"{self.path}: cannot use this folder ({failure.strerror or failure}): check its "
                "permissions and the free space, or give another folder"
            ) from None

    def _replace(self, name: str, text: str) -> None:
        with self.writing():
            partial = self.path / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path / name)


def restart_command(path: Path) -> str:
    """The command that continues a run, for messages."""
    return f"'kjko restart {_quoted(path)}'"


def run_command(path: Path) -> str:
    """The command that starts the run of a folder from the beginning, for messages."""
    return f"'kjko run {_quoted(path / 'case.toml')} --out {_quoted(path)} --force'"


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


def _quoted(path: Path) -> str:
    name = str(path)
    return name if shlex.quote(name) == name else f'"{name}"'


def _lock(file: IO[str]) -> None:
    """Take an exclusive lock for this process.

    Raises:
        BlockingIOError: another process holds the lock, for longer than a check of the status takes.
        OSError: the file system has no locks.
    """
    for _ in range(_LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def provenance(comm: Communicator) -> dict[str, Any]:
    """The provenance of a run: versions, git revision, ranks, threads, host, date and command, for every output
    file."""
    import torch  # imported here, because programs that only read a folder do not need it

    nodes = os.environ.get("SLURM_JOB_NODELIST")
    program = Path(sys.argv[0]).name.replace("__main__.py", "kjko")
    return {
        "software": _SOFTWARE,
        "version": __version__,
        "git": git_revision(Path(__file__).parents[1]),
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
    """The largest memory that this process has used so far, in bytes.

    Linux counts it in ``VmHWM``. Its ``ru_maxrss`` begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _as_utf8(text: str) -> str:
    """A text in which bytes that are not UTF-8 (for example in old file names) are written as numbers."""
    return text.encode("utf-8", "backslashreplace").decode()


def git_revision(package: Path) -> str:
    """The last git commit that changed the package, with "-dirty" if the package has changes that are not committed.

    Two runs of the same code have the same revision: other files of the checkout do not count, such as documentation
    and cases. If the package is not in a git checkout, the text says so.
    """
    if not (package.parent / ".git").exists():
        return "no git checkout (installed package)"
    # variables such as GIT_DIR, which git sets for hooks, would name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    line = ["git", "--no-optional-locks", "-C", str(package)]
    said = []
    for command in (["log", "-1", "--format=%h", "--abbrev=12", "--", "."], ["status", "--porcelain", "--", "."]):
        try:
            result = subprocess.run([*line, *command], env=environment, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):  # git is not installed here, or refuses this checkout
            return "git revision unknown"
        said.append(result.stdout.strip())
    commit, changes = said
    return f"{commit or 'no commit'}{'-dirty' if changes else ''}"
