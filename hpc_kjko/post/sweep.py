"""A sweep: a case for all combinations of some values. The runs follow each other, or each is a job of a SLURM array.

The folder of a sweep has a run folder for each combination, ``sweep.json`` (the definition of the sweep), ``sweep.csv``
(the table of results), and for SLURM ``input/`` with a copy of the case.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import UserError
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series
from hpc_kjko.files.storage import partial_name, writing
from hpc_kjko.files.wavetheory import read_theory
from hpc_kjko.post import rates, summary
from hpc_kjko.terminal import StopSignals

_SOFTWARE = "hpc_kjko sweep"
_MADE_BY = "Made by kjko sweep"

#: Columns of the series whose last value is in the table.
FINAL = ("time", "kinetic_energy", "field_energy", "potential_energy", "entropy", "free_energy", "kl")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: the name of its folder, and its changes of the case as TOML by ``section.key``."""

    name: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, each in its own folder.

    Attributes:
        case: the case file.
        folder: the folder of the sweep.
        points: the runs.
        changes: changes of the case in all runs, as ``section.key=value``.
    """

    folder: Path
    case: Path
    points: list[Point]
    changes: Sequence[str] = ()

    @classmethod
    def plan(cls, case: Path, grids: Sequence[str], folder: Path, changes: Sequence[str] = ()) -> Sweep:
        """Make and check all combinations of the values in ``grids``, and check the folder. Nothing is written.

        Args:
            case: the case file.
            grids: keys with their values, ``section.key=v1,v2,…``, in TOML.
            folder: the folder of the sweep.
            changes: changes of keys that are not in ``grids``, ``section.key=value``.

        Raises:
            UserError: a grid or one of the cases is wrong, or the folder contains something else.
        """
        axes = dict(_axis(text) for text in grids)
        if len(axes) < len(grids):
            raise UserError("--grid: names a key twice: give all values of a key in one --grid")
        for text in changes:
            if text.partition("=")[0].strip() in axes:
                raise UserError(f"--set {text}: --grid sets this key too: leave one of the two out")
        keys = [key.partition(".")[2] for key in axes]
        labels = {key: key if keys.count(key.partition(".")[2]) > 1 else key.partition(".")[2] for key in axes}
        points: list[Point] = []
        for values in itertools.product(*axes.values()):
            settings = dict(zip(axes, values, strict=True))
            name = ",".join(f"{labels[key]}={_in_a_name(value)}" for key, value in settings.items())
            if any(name == point.name for point in points):
                raise UserError(f"--grid: two of its points would have the same folder {name}: leave one of them out")
            points.append(Point(name, settings))
        sweep = cls(folder, case, points, changes)
        if folder.exists() and not (folder / "sweep.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists and is not the folder of a sweep: choose another --out")
        for point in points:
            sweep._require_fit(point)
        return sweep

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep in a folder.

        Raises:
            UserError: there is no sweep in the folder.
        """
        try:
            manifest = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
            points = [Point(str(point["name"]), dict(point["settings"])) for point in manifest["points"]]
            if not points:
                raise ValueError("no points")
            return cls(folder, Path(manifest["case"]), points, [str(change) for change in manifest.get("changes", [])])
        except OSError:
            raise UserError(
                f"{folder}: not a sweep's folder (it has no sweep.json): give the --out of a sweep"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / 'sweep.json'}: is damaged: run the sweep's command again to write it") from None

    def write(self) -> None:
        """Create the folder, and write the definition of the sweep into it.

        Raises:
            UserError: the folder cannot be written.
        """
        points = [asdict(point) for point in self.points]
        manifest = {
            "software": _SOFTWARE,
            "case": str(self.case),
            "changes": list(self.changes),
            "points": points,
        }
        self._replace("sweep.json", json.dumps(manifest, indent=2) + "\n")

    def run(self, ranks: int) -> dict[str, str]:
        """Run all unfinished runs, one after the other. Runs with a checkpoint continue from it.

        A signal that stops a run also stops the sweep, after the run has written its checkpoint.

        Returns:
            "finished", "stopped" or "failed" by the name of the run, for each run that was reached.

        Raises:
            UserError: there is no launcher for several ranks.
        """
        launcher = _launcher(ranks)
        outcomes = {}
        with _Child() as child:
            for number, point in enumerate(self.points, 1):
                if child.is_stopped:
                    break
                heading = f"run {number} of {len(self.points)}: {point.name}"
                if self._status(point) == "finished":
                    print(f"{heading} has finished", flush=True)
                    outcomes[point.name] = "finished"
                    continue
                print(heading, flush=True)
                code = child.run([*launcher, sys.executable, "-m", "hpc_kjko", *self._command(point)])
                otherwise = "stopped" if child.is_stopped else "failed"
                outcomes[point.name] = {0: "finished", 75: "stopped"}.get(code, otherwise)
        return outcomes

    @staticmethod
    def require_free(script: Path) -> None:
        """Check that a SLURM script may be written to this path.

        Raises:
            UserError: ``script`` is a folder, or a file that was not made by kjko sweep.
        """
        if script.is_dir():
            raise UserError(f"--slurm {script}: is a folder: give the name of a new file")
        if script.exists() and _MADE_BY not in script.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"--slurm {script}: exists and was not made by kjko sweep: give the name of a new file")

    def write_slurm_script(self, script: Path, ranks: int) -> None:
        """Write a SLURM script with an array job for all runs, and a copy of the case.

        Raises:
            UserError: it cannot be written.
        """
        given = self.folder / "input"
        with writing(given):
            given.mkdir(parents=True, exist_ok=True)
            if self.case.parent.resolve() != given.resolve():
                for source in (self.case, *self.case.parent.glob("*.py")):
                    shutil.copy(source, given)
        points = [
            f"{number}) name={shlex.quote(point.name)} options=({shlex.join(self._options(point))}) ;;"
            for number, point in enumerate(self.points)
        ]
        text = _SLURM.format(
            made_by=_MADE_BY,
            script=script,
            last=len(points) - 1,
            runs=len(points),
            ranks=ranks,
            points="\n".join(points),
            folder=shlex.quote(str(self.folder.resolve())),
            case=shlex.quote(str((given / self.case.name).resolve())),
        )
        with writing(script):
            script.write_text(text, encoding="utf-8", errors="surrogateescape")

    def table(self, outcomes: Mapping[str, str]) -> list[dict[str, Any]]:
        """The results, one row for each run: name, settings, status, last values, rate, certificates, wall-clock
        seconds.

        Values that a run does not have (yet) are None. ``rate_note`` is the reason why a wave has no rate, or a
        significant difference from theory; it is empty for other rates.

        Args:
            outcomes: the results of :meth:`run`, if known. A run that could not start has left no other trace.
        """
        rows = []
        for point in self.points:
            columns: summary.Columns = {}
            measured: rates.Measured | None = None
            seconds = None
            try:
                folder = self._folder(point)
                seconds = summary.wall_clock(folder.status())
                columns = summary.meaningful(read_series(folder.series), RunCase(folder.case))
                if columns and len(columns["step"]):
                    measured = rates.measured(columns, read_theory(folder.series), folder.status())
            except UserError:
                pass  # the run has not begun, or a file is just being written
            if columns and not len(columns["step"]):
                columns = {}
            tally = (summary.tally(columns) if columns else None) or dict.fromkeys(summary.VERDICTS.values())
            final = {name: float(columns[name][-1]) if name in columns else None for name in FINAL}
            energy = float(summary.total_energy(columns)[-1]) if columns else None
            found = measured.rate if measured and not measured.why_not else None
            rows.append(
                {
                    "name": point.name,
                    **point.settings,
                    "status": outcomes.get(point.name) or self._status(point),
                    **final,
                    "energy": energy,
                    "rate": found and found.rate,
                    "rate_error": found and found.error,
                    "rate_of_theory": measured and measured.expected,
                    "rate_note": measured and measured.note,
                    **tally,
                    "seconds": seconds,
                }
            )
        return rows

    def write_table(self, rows: list[dict[str, Any]]) -> Path:
        """Write the table as ``sweep.csv``. Values that are None are empty there.

        Raises:
            UserError: it cannot be written.
        """
        path = self.folder / "sweep.csv"
        partial = partial_name(path)
        with writing(path):
            with open(partial, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            partial.replace(path)
        return path

    def _folder(self, point: Point) -> RunFolder:
        return RunFolder(self.folder / point.name)

    def _status(self, point: Point) -> str:
        """The status of a run, or "not begun" if it has no folder."""
        folder = self._folder(point)
        return folder.status()["status"] if folder.case.exists() else "not begun"

    def _command(self, point: Point) -> list[str]:
        """The arguments of ``kjko`` that start or continue a run."""
        folder = self._folder(point)
        if any(folder.checkpoints.glob("step*.h5")):
            return ["restart", str(folder.path)]
        force = ["--force"] if (folder.path / "run.json").exists() else []
        return ["run", str(self.case), "--out", str(folder.path), *self._options(point), *force]

    def _overrides(self, point: Point) -> list[str]:
        """The changes of the case in a run, as ``section.key=value``."""
        return [*self.changes, *(f"{key}={value}" for key, value in point.settings.items())]

    def _options(self, point: Point) -> list[str]:
        """The options of ``kjko run`` for a run."""
        return [word for text in self._overrides(point) for word in ("--set", text)]

    def _require_fit(self, point: Point) -> None:
        """Check the case of a run. If its folder exists, it must contain the same case."""
        from hpc_kjko.case import config  # imports torch, which the table of a sweep does not need

        try:
            case = config.Case.load(self.case, self._overrides(point))
        except UserError as mistake:
            raise UserError(f"{point.name}: {mistake}") from None
        folder = self._folder(point)
        if folder.case.exists() and config.load(folder.case, of_a_run=True) != case:
            raise UserError(f"{folder.path}: contains a run of another case: move it away, or choose another --out")

    def _replace(self, name: str, text: str) -> None:
        path = self.folder / name
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = partial_name(path)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


class _Child:
    """Runs commands, and passes requests to stop on to them: as SIGUSR2, which mpirun forwards, then as SIGTERM."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopped = False

    def __enter__(self) -> _Child:
        names = [getattr(signal, name) for name in StopSignals.NAMES]
        self._before = {number: signal.signal(number, self._on_signal) for number in names}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, line: list[str]) -> int:
        """Run a command in its own session and return its exit code. So Ctrl-C reaches it only through this process."""
        # progress is shown on a terminal only; the log has all
        out = None if sys.stdout.isatty() else subprocess.DEVNULL
        self._process = subprocess.Popen(line, stdout=out, start_new_session=True)
        if self.is_stopped:  # the signal came while the command was started
            self._process.send_signal(signal.SIGUSR2)
        try:
            return self._process.wait()
        except BaseException:
            self._process.terminate()
            raise

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM if self.is_stopped else signal.SIGUSR2)
        self.is_stopped = True


def _axis(text: str) -> tuple[str, list[str]]:
    """A key and its values, from ``section.key=v1,v2,…``."""
    key, equals, values = text.partition("=")
    section, dot, name = key.strip().partition(".")
    literals = [literal.strip() for literal in _split(values)]
    if not (equals and dot and section and name and all(literals)):
        raise UserError(
            f"--grid {text}: write it as section.key=v1,v2, for example --grid physics.collision_strength=0.01,0.1"
        )
    return key.strip(), literals


def _split(text: str) -> Iterator[str]:
    """Split a text at its commas, except inside brackets and quotes."""
    start, depth, quote = 0, 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[]{}":
            depth += 1 if character in "[{" else -1
        elif character == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _in_a_name(literal: str) -> str:
    """A value as part of a folder name; for example [32, 32] becomes 32x32."""
    return re.sub(r"[^\w.+-]+", "_", re.sub(r"\s*,\s*", "x", literal).strip("[]{}\"' "))


def _launcher(ranks: int) -> list[str]:
    """The command that starts ``ranks`` ranks: KJKO_LAUNCH, as in batch jobs, or mpirun of this environment."""
    if ranks == 1:
        return []
    own = Path(sysconfig.get_path("scripts")) / "mpirun"
    try:
        words = shlex.split(os.environ.get("KJKO_LAUNCH", "")) or [str(own) if own.exists() else "mpirun"]
    except ValueError as failure:
        raise UserError(f"KJKO_LAUNCH: is not a command ({failure}): write it as in a shell") from None
    if shutil.which(words[0]) is None:
        raise UserError(f"--ranks {ranks}: there is no {words[0]}: load the MPI module, or set KJKO_LAUNCH")
    return [*words, "-n", str(ranks)]


_SLURM = """\
#!/usr/bin/env bash
# The {runs} runs of a sweep, each as one job of an array. A job that reaches its time limit is
# continued automatically; see docs/howto/batch_jobs.md.
# {made_by}; submit it from the folder that contains jobs/:
#
#     sbatch [sbatch options] {script}
#
#SBATCH --job-name=kjko-sweep
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node={ranks}
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kjko-%A_%a.out
set -euo pipefail
. jobs/job.sh
case $SLURM_ARRAY_TASK_ID in
{points}
*) echo "this sweep has no run $SLURM_ARRAY_TASK_ID" >&2 && exit 2 ;;
esac
folder={folder}/$name
if grep -qs '"status": "finished"' "$folder/run.json"; then
    echo "$folder has finished"
    exit 0
fi
start_or_continue "$SLURM_NTASKS" {case} "$folder" "${{options[@]}}"
"""
