"""The ways a run ends before its time, and what their sentences advise."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend: one sentence that names the key or file and says what would be right."""

    #: Whether all ranks raise it together, so that they may still do something collective about it.
    shared = False
    #: What the command returns.
    exit_code = 2


class DiskFailure(UserError):
    """The system refuses to store more: the disk is full, over quota or failing. The command was right."""

    exit_code = 1


class DamagedFile(UserError):
    """A file is truncated, or holds other bytes than were written. What reads many files may go on without it."""


class SolverFailure(RuntimeError):
    """The numerics cannot go on (non-finite state, no invertible step): one sentence with the setting to change."""


class OutOfMemory(MemoryError):
    """There was less memory than a run needs: one sentence that names the key that takes most."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that numpy, torch on the CPU or torch on a GPU could not get the memory it asked for.

    One that another rank has passed on is a text only.
    """
    signs = ("MemoryError", "llocate memory", "Unable to allocate", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def nearest(given: str, known: Iterable[str]) -> str:
    """That of some names which a misspelt one was probably meant to be; empty if none is near."""
    return "".join(difflib.get_close_matches(given, list(known), n=1))


def one_of(given: str, known: Iterable[str]) -> str:
    """The advice on a name that is none of those there are."""
    known = list(known)
    near = nearest(given, known)
    return f"did you mean {near}?" if near else f"it may be one of {', '.join(known)}"
