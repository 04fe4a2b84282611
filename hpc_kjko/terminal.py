"""A run and the person or batch system in front of it: signals in, progress and tables out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import rich.console
import rich.progress

from hpc_kjko.comm import Communicator

#: Seconds between plain progress lines where there is no terminal.
LINE_EVERY = 10.0


class StopSignals:
    """SIGTERM, SIGINT and the batch system's SIGUSR1/2, once a run has begun: they ask for a stop after the step.

    A second SIGINT kills. Outside of the main thread, where Python allows no handlers, nothing is heard.

    Args:
        says: the beginning of a sentence. With it, one of these signals ends the process at once as long as the run has
            not begun, with that sentence; without it, signals mean until then what they meant before.
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
        """The run begins: from here on signals ask for a stop."""
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
        """A thread hears of signals, as the main one may be at work in a library that does not return for long.

        Python writes the number of a signal to the wakeup descriptor at once, and calls a handler only between two
        lines of Python.
        """
        heard, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)

        def wait() -> None:
            number = os.read(heard, 1)  # empty once the run has begun
            os.close(heard)
            if number:
                name = signal.Signals(number[0]).name
                if says:
                    print(f"{says} {name} before the first step", file=sys.stderr, flush=True)
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
        """Signals mean again what they meant before."""
        self._end_thread()
        for name, handler in self._before.items():
            signal.signal(getattr(signal, name), handler)

    def ignore(self) -> None:
        """The run is over: a batch system's signal must not turn that into a failure while the process ends."""
        for name in self.NAMES:
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Progress:
    """One progress bar on a terminal; elsewhere a plain line every so often. Called with each row of the series."""

    def __init__(self, steps: int, done: int, terminal: bool):
        self._steps, self._printed = steps, time.monotonic()
        self._bar = None
        if terminal:
            columns = (
                rich.progress.TextColumn("step {task.completed}/{task.total}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.fields[text]}"),
                rich.progress.TextColumn("ETA"),
                rich.progress.TimeRemainingColumn(),
            )
            self._bar = rich.progress.Progress(*columns)
            self._task = self._bar.add_task("", total=steps, completed=done, text="")
            self._bar.start()

    def __call__(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        text = f"t = {row['time']:.4g}, field energy {row['field_energy']:.4g}, {row['seconds']:.3g} s/step"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._printed > LINE_EVERY or step == self._steps:
            self._printed = time.monotonic()
            remaining = (self._steps - step) * row["seconds"]
            print(f"step {step}/{self._steps}: {text}, ETA {remaining:.0f} s", flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()


def show(renderable: Any, whole: bool = False) -> None:
    """Print a table or marked-up text; by print(), because rich turns a closed pipe into an error exit.

    Args:
        whole: rather in lines longer than the terminal's than with parts of them left out.
    """
    console = rich.console.Console(highlight=False)
    if whole:
        console.width = max(console.width, rich.console.Console(width=1000).measure(renderable).minimum)
    with console.capture() as capture:
        console.print(renderable)
    print(capture.get(), end="")


def is_terminal(comm: Communicator) -> bool:
    """Whether somebody is watching: some launchers give every rank a terminal of its own, so theirs is asked."""
    if comm.size == 1:
        return sys.stdout.isatty()
    try:
        return os.path.realpath(f"/proc/{os.getppid()}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
