"""The wall-clock time of a run, by the part of the work that took it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from hpc_kjko.terminal import duration

#: The parts of the time of a run, by their names in ``run.json``, in words. They add up to the whole time.
PARTS = {
    "start": "start",
    "push": "push and field",
    "collisions": "collisions",
    "diagnostics": "diagnostics",
    "files": "files",
    "other": "other",
}


class Clock:
    """Divides the wall-clock time of this process into PARTS. Each moment belongs to one part, so they add up.

    Args:
        began: the time from which the clock counts, on the clock ``time.monotonic()``; if None, the present time.
        earlier: seconds by part of the earlier processes of a run that was restarted.
    """

    def __init__(self, began: float | None = None, earlier: Mapping[str, float] | None = None):
        self._last = time.monotonic() if began is None else began
        self._seconds = dict.fromkeys(PARTS, 0.0) | dict(earlier or {})

    def lap(self, part: str, **others: float) -> None:
        """Add the time since the last call to a part, except the seconds that belong to other parts."""
        now = time.monotonic()
        self._seconds[part] += now - self._last - sum(others.values())
        for other, seconds in others.items():
            self._seconds[other] += seconds
        self._last = now

    def seconds(self) -> dict[str, float]:
        """The seconds of each part so far. Their sum is the whole time."""
        self.lap("other")
        return dict(self._seconds)


def in_words(seconds: Mapping[str, float], restarts: float = 0, so_far: str = "") -> str:
    """The whole time of a run, and the parts that add up to it, in words. Parts without any time are left out.

    Args:
        seconds: the seconds of each part.
        restarts: how often the run was restarted. The time is the sum over all its processes.
        so_far: words after the whole time.
    """
    parts = (f"{PARTS.get(part, part)} {duration(spent)}" for part, spent in seconds.items() if spent)
    times = f", with {restarts:g} restart{'s' if restarts > 1 else ''}" if restarts else ""
    return f"{duration(sum(seconds.values()))}{so_far}{times}: {', '.join(parts)}"
