"""Signals, progress and text output of a run, for a person at a terminal or for a batch system."""

from __future__ import annotations

import codecs
import io
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is loaded only when it is used
    import rich.console

    from hpc_kjko.parallel.comm import Communicator

#: Seconds between progress lines when the output is not a terminal.
LINE_EVERY = 10.0
#: The smallest terminal widths, in characters, for a progress line and for a progress line with a bar.
_ROOM_FOR_TEXT, _ROOM_FOR_BAR = 80, 110
#: The space between two columns of a table.
_GAP = "  "
#: Seconds that ranks without a message wait before a signal ends them.
_SILENT = 1.0


class StopSignals:
    """Signals that stop a run: SIGTERM, SIGINT, and SIGUSR1 and SIGUSR2 of batch systems.

    After :meth:`begin`, the first signal asks the run to stop after the current step. A second SIGINT ends the process
    at once. Outside the main thread Python allows no signal handlers, so this class does nothing there.

    Args:
        says: the beginning of a message. If it is given, a signal before :meth:`begin` ends the process at once with
            this message. If it is None, signals keep their earlier effect until :meth:`begin`.
    """

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")

    def __init__(self, says: str | None = None) -> None:
        self._received: str | None = None
        self._before: dict[str, Any] = {}
        self._is_main = threading.current_thread() is threading.main_thread()
        self._wakeup: int | None = None
        if says is not None and self._is_main:
            self._end_process_by_signals(says)

    def begin(self) -> None:
        """Start to treat signals as requests to stop after the current step. Call this when the run begins."""
        if self._is_main:
            self._handle(self._on_signal)
        self._end_thread()

    def _end_thread(self) -> None:
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            self._wakeup = None

    def _handle(self, handler: Any) -> None:
        for name in self.NAMES:
            self._before.setdefault(name, signal.getsignal(getattr(signal, name)))
            signal.signal(getattr(signal, name), handler)

    def _end_process_by_signals(self, says: str) -> None:
        """Receive signals in a separate thread, because the main thread may be inside a long call to a library.

        Python writes the number of a signal to the wakeup descriptor at once. It calls a signal handler only between
        two Python instructions.
        """
        heard, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

        def wait() -> None:
            number = os.read(heard, 1)  # empty once the run has begun
            # a signal that the user's own code handles
            while number and signal.Signals(number[0]).name not in self.NAMES:
                number = os.read(heard, 1)
            os.close(heard)
            if number:
                name = signal.Signals(number[0]).name
                if says:
                    print(f"{says} {name} before the first step", file=sys.stderr, flush=True)
                else:  # mpirun ends all ranks once one has ended, so these wait until rank 0 has printed the reason
                    time.sleep(_SILENT)
                os._exit(128 + number[0])

        threading.Thread(target=wait, daemon=True).start()
        self._handle(lambda number, frame: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._received = signal.Signals(number).name

    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._received is not None

    def restore(self) -> None:
        """Restore the signal handlers from before the run."""
        self._end_thread()
        for name, handler in self._before.items():
            signal.signal(getattr(signal, name), handler)

    def ignore(self) -> None:
        """Ignore signals after the run, so that a late signal of the batch system does not make a finished run fail."""
        for name in self.NAMES:
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Pace:
    """The mean time of a step, with its diagnostics and files, from the times at which steps end.

    Steps differ: the first one trains the network, and some write files. So the first one does not count if there are
    others. The weight of each other one is about the square of its number. So the mean follows a change, and moves less
    and less. A second mean of this kind, over the values of the first, removes the jumps after steps that write files.
    """

    def __init__(self) -> None:
        self._last, self._number, self._first_mean, self.mean = time.monotonic(), 0, 0.0, 0.0

    def step(self) -> float:
        """Call this at the end of each step. Returns the mean time of a step so far, in seconds."""
        spent, self._last = time.monotonic() - self._last, time.monotonic()
        share = 3 / (self._number + 2) if self._number else 1.0
        self._first_mean += share * (spent - self._first_mean)
        self.mean += share * (self._first_mean - self.mean)
        self._number += 1
        return self.mean


class Progress:
    """Shows the progress: one line that is redrawn on a terminal that is wide enough, else a plain line at intervals.

    It is called with each row of the time series.
    """

    def __init__(self, steps: int, done: int, terminal: bool):
        self._steps, self._printed, self._pace = steps, time.monotonic(), Pace()
        self._bar = None
        width = shutil.get_terminal_size().columns
        if terminal and width >= _ROOM_FOR_TEXT:
            import rich.progress

            columns = [
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(bar_width=width - _ROOM_FOR_TEXT - 10),
                rich.progress.TextColumn("{task.fields[text]}"),
            ]
            if width < _ROOM_FOR_BAR:
                del columns[1]
            self._bar = rich.progress.Progress(*columns)
            self._task = self._bar.add_task("", total=steps, completed=done, text="")
            self._bar.start()

    def __call__(self, row: dict[str, float]) -> None:
        step, pace = int(row["step"]), self._pace.step()
        text = f"t = {row['time']:.4g}, field energy {row['field_energy']:.4g}, {pace:.3g} s/step"
        text += f", ETA {duration(round((self._steps - step) * pace))}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._printed > LINE_EVERY or step == self._steps:
            self._printed = time.monotonic()
            print(f"step {step}/{self._steps}: {text}", flush=True)

    def close(self) -> None:
        """End the progress line and restore the terminal."""
        if self._bar:
            self._bar.stop()


# -- text for any terminal, encoding and width -----------------------------------------------------------------------

#: Replacements for characters that the output encoding lacks. Other letters lose their accents or become "?".
_SPELT = {
    **{"α": "alpha", "β": "beta", "κ": "kappa", "λ": "lambda", "Λ": "Lambda", "ν": "nu", "π": "pi", "ρ": "rho"},
    **{"σ": "sigma", "Σ": "sum", "φ": "phi", "ω": "omega", "Θ": "Theta", "Δ": "Delta", "∂": "d", "∞": "inf"},
    **{"∫": "int ", "∇": "grad ", "√": "sqrt ", "‖": "||", "±": "+-", "×": "x", "·": "*", "→": "->", "−": "-"},
    **{"≤": "<=", "≥": ">=", "≡": "=", "–": "-", "—": "-", "…": "...", "’": "'", "“": '"', "”": '"', "ᵀ": "^T"},
    **{"µ": "u", "━": "-", "╸": "-", "╺": "-", "─": "-", "│": "|", "½": "1/2 ", "²": "^2", "³": "^3", "\u2800": " "},
}


def _spelt_out(failure: UnicodeError) -> tuple[str, int]:
    """Codec error handler: replaces characters that the output encoding lacks."""
    assert isinstance(failure, UnicodeEncodeError)
    spelt = ""
    for character in failure.object[failure.start : failure.end]:
        plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        is_dots = 0x2800 < ord(character) < 0x2900
        spelt += _SPELT.get(character) or ("*" if is_dots else plain or "?")
    return spelt, failure.end


def write_in_any_encoding() -> None:
    """Make standard output and standard error accept any text, whatever their encoding is."""
    codecs.register_error("spelt_out", _spelt_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelt_out")


def duration(seconds: float) -> str:
    """A time in words: "3.27 s", "2 min 35 s", "20 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def width() -> int:
    """Characters in a line of the terminal. Without a terminal it is 80, or the value of COLUMNS."""
    return shutil.get_terminal_size().columns


def show_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    labels: int = 1,
    marked: Sequence[int] = (),
) -> None:
    """Print a table. No cell is cut: columns that do not fit side by side follow in a second table below.

    Args:
        headings: column headings; a heading may have several lines.
        rows: the cells, one list per row.
        title: a line above the table.
        labels: number of leading columns that name a row. They are repeated in every table.
        marked: indices of the rows to highlight on a terminal.
    """
    height = max(heading.count("\n") for heading in headings) + 1
    above = zip(*(([""] * height + heading.split("\n"))[-height:] for heading in headings), strict=True)
    lines = [*map(list, above), *rows]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(height, ["─" * size for size in sizes])
    if title:
        print(title)
    groups: list[list[int]] = [[]]
    for column, size in list(enumerate(sizes))[labels:]:
        used = sum(sizes[:labels]) + len(_GAP) * (labels - 1) + sum(len(_GAP) + sizes[other] for other in groups[-1])
        if groups[-1] and used + len(_GAP) + size > width():
            groups.append([])
        groups[-1].append(column)
    for number, group in enumerate(groups):
        if number:
            print()
        chosen = [*range(labels), *group]
        for place, row in enumerate(lines, -height - 1):
            line = _GAP.join(row[column].ljust(sizes[column]) for column in chosen).rstrip()
            print(f"\x1b[1;31m{line}\x1b[0m" if place in marked and sys.stdout.isatty() else line)


def show_pairs(pairs: dict[str, str], *, title: str = "") -> None:
    """Print names and their values in two columns. Long values are wrapped between words; no word is cut."""
    if title:
        print(title)
    label = max(map(len, pairs))
    beside = width() - label - len(_GAP) >= 30
    for name, text in pairs.items():
        if beside:
            first, *more = wrapped(text, width() - label - len(_GAP)) or [""]
            print(f"{name.ljust(label)}{_GAP}{first}".rstrip())
            indent = " " * (label + len(_GAP))
        else:
            print(name)
            more, indent = wrapped(text, width() - len(_GAP)), _GAP
        for line in more:
            print(f"{indent}{line}")


def wrapped(text: str, columns: int) -> list[str]:
    """Wrap text into lines. A formula between backticks is not broken, and its backticks are removed."""
    joined = re.sub(r"`([^`]*)`", lambda match: match[1].replace(" ", "\0"), text)
    lines = textwrap.wrap(joined, max(columns, 1), break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def show(renderable: rich.console.RenderableType, columns: int) -> None:
    """Print a rich object with the given width, through print(): rich itself ends with an error on a closed pipe."""
    import rich.console

    console = rich.console.Console(highlight=False, width=columns)
    with console.capture() as capture:
        console.print(renderable)
    print(capture.get(), end="")


def is_terminal(comm: Communicator) -> bool:
    """Whether rank 0 writes to a terminal. Some launchers give every rank a pseudo-terminal, so theirs is checked."""
    if comm.size == 1:
        return sys.stdout.isatty()
    try:
        return os.path.realpath(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
