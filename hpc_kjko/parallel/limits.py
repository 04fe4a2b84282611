"""How much memory this process may still take: what its node has, its control groups allow and its resource limits."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Groups without a limit show a number near 2^63 (version 1).
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Limit:
    """Memory that some processes share.

    Attributes:
        scope: the same text for all processes that share it.
        name: what it is, for messages: "node abc".
        free: bytes that are left.
    """

    scope: str
    name: str
    free: int


def memory_limits(system: Path = Path("/")) -> list[Limit]:
    """All limits of this process; none where the system says nothing of them (it is not Linux).

    Args:
        system: the folder that holds ``proc`` and ``sys``; another than the root in tests.
    """
    host = socket.gethostname()
    found = [Limit(f"{host}:node", f"node {host}", free) for free in _of_the_node(system / "proc/meminfo")]
    for folder, free in _of_the_groups(system):
        found.append(Limit(f"{host}:{folder}", f"the control group of this job on node {host}", free))
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        free = max(0, most - _pages(system)[0])
        found.append(Limit(f"{host}:{os.getpid()}", f"one process under 'ulimit -v' on node {host}", free))
    return found


def resident(system: Path = Path("/")) -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    return _pages(system)[1]


def _pages(system: Path) -> tuple[int, int]:
    """Virtual and resident memory of this process, in bytes."""
    words = _text(system / "proc/self/statm").split()
    page = resource.getpagesize()
    return (int(words[0]) * page, int(words[1]) * page) if words else (0, 0)


def _of_the_node(meminfo: Path) -> Iterator[int]:
    """What the node could give to new processes without swapping."""
    for line in _text(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _of_the_groups(system: Path) -> Iterator[tuple[Path, int]]:
    """Folder and free memory of each control group with a limit that this process is in, by version 1 or 2."""
    mounts = system / "sys/fs/cgroup"
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            kinds = [(mount, "memory.max", "memory.current", "inactive_file") for mount in (mounts, mounts / "unified")]
        elif "memory" in controllers.split(","):
            kinds = [(mounts / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
        else:
            continue
        for mount, most, used, cache in kinds:
            group = mount / path.lstrip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
                limit = _text(folder / most).strip()
                if limit.isdigit() and int(limit) < _UNLIMITED:
                    statistics = dict(entry.split() for entry in _text(folder / "memory.stat").splitlines())
                    taken = int(_text(folder / used) or 0) - int(statistics.get(cache, 0))
                    yield folder, max(0, int(limit) - taken)


def _text(path: Path) -> str:
    """What a file of the system says; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
