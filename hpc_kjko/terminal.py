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
    """SIGTERM, SIGINT and the batch system's SIGUSR1/2 ask for a stop after the step; a second SIGINT kills.

    Outside of the main thread, where Python allows no handlers, nothing is heard.
    """

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")

    def __init__(self) -> None:
        self._received: str | None = None
        self._before: dict[str, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(getattr(signal, name), self._on_signal) for name in self.NAMES}

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._received = signal.Signals(number).name

    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._received is not None

    def restore(self) -> None:
        """Signals mean again what they meant before."""
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
