"""The memory that this process may still use: limits of its node, of control groups and of resource limits."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Control groups (version 1) without a limit report a number near 2^63.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Limit:
    """A memory that some processes share.

    Attributes:
        scope: a text that is equal for all processes that share the memory.
        name: a description for messages, for example "node abc".
        free: free bytes.
    """

    scope: str
    name: str
    free: int


def memory_limits(system: Path = Path("/")) -> list[Limit]:
    """All memory limits of this process; empty if the system does not report them (it is not Linux).

    Args:
        system: the folder that contains ``proc`` and ``sys``. Tests use another folder than the root.
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
    """Bytes of memory that this process holds now; 0 if the system does not report it."""
    return _pages(system)[1]


def _pages(system: Path) -> tuple[int, int]:
    """Virtual and resident memory of this process, in bytes."""
    words = _text(system / "proc/self/statm").split()
    page = resource.getpagesize()
    return (int(words[0]) * page, int(words[1]) * page) if words else (0, 0)


def _of_the_node(meminfo: Path) -> Iterator[int]:
    """The bytes that the node could give to new processes without swapping."""
    for line in _text(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _of_the_groups(system: Path) -> Iterator[tuple[Path, int]]:
    """Folder and free bytes of each control group of this process that has a limit, for versions 1 and 2."""
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
    """The contents of a system file; empty if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
