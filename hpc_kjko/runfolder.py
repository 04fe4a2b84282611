"""The folder of a run: what is in it, where, and in which state the run is.

case.toml      the resolved case         run.json       status and provenance
log.txt        the log                   series.h5      the time series
snapshots/     openPMD files             checkpoints/   whole states, the last two
figures/       made by ``kjko plot``
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc_kjko import __version__
from hpc_kjko.comm import Communicator
from hpc_kjko.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder, and its ``run.json``."""

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

    def require_free(self, *, force: bool) -> None:
        """Check that a new run may have this folder.

        Raises:
            UserError: it holds a run already and ``force`` is false, or it is something else.
        """
        if self.case.exists():
            status = self.status().get("status", "unknown")
            advice = "choose another --out, or --force to overwrite it"
            if status != "finished":
                advice = f"'kjko restart {self.path}' continues it, --force overwrites it"
            if not force:
                raise UserError(f"{self.path}: already holds a run ({status}): {advice}")
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path}: exists and is not a run folder: choose another --out")

    def create(self, case_toml: str) -> None:
        """Make the folder anew with its case inside (rank 0 only).

        Raises:
            UserError: it cannot be written.
        """
        with self._writing():
            if self.path.exists():
                shutil.rmtree(self.path)
            for folder in (self.path, self.snapshots, self.checkpoints):
                folder.mkdir(parents=True)
            self.case.write_text(case_toml, encoding="utf-8")

    def write_case(self, case_toml: str) -> None:
        """Replace the case (rank 0 only).

        Raises:
            UserError: it cannot be written.
        """
        with self._writing():
            self.case.write_text(case_toml, encoding="utf-8")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            raise UserError(f"{self.path}: cannot write here ({failure.strerror}): choose another --out") from None

    def status(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.case.exists():
            raise UserError(
                f"{self.path}: not a run folder (it has no case.toml): give the folder that a run made"
            )
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {"status": "unknown"}

    def set_status(self, status: str, **details: Any) -> None:
        """Write ``run.json`` in one piece (rank 0 only)."""
        partial = self.path / "run.json.partial"
        with self._writing():
            partial.write_text(json.dumps({"status": status, **details}, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.path / "run.json")


def provenance(comm: Communicator) -> dict[str, Any]:
    """What made a run: versions, git revision, ranks and threads, host, date. Written into every output file."""
    return {
        "software": "hpc_kjko",
        "version": __version__,
        "git": _git_revision(),
        "ranks": comm.size,
        "threads": torch.get_num_threads(),
        "device": comm.device.type,
        "mpi": comm.library,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _git_revision() -> str:
    source = Path(__file__).parent
    if not (source.parent / ".git").exists():
        return "not a git checkout"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
