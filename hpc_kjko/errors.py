"""The errors that end a run early, and helpers for the advice in their messages."""

import difflib
from collections.abc import Iterable, Sequence

#: Names count as nearly the same from this ratio of equal letters on (see ``difflib``).
_SAME = 0.8


class UserError(ValueError):
    """A user mistake. The message is one sentence that names the key or file and says what would be right."""

    #: Whether all ranks raise the error together. If so, they may still communicate after it.
    shared = False
    #: Exit code of the ``kjko`` command.
    exit_code = 2


class DiskFailure(UserError):
    """A file could not be written: the disk is full, over quota or failing. The command itself was correct."""

    exit_code = 1


class DamagedFile(UserError):
    """A file is truncated or corrupted. A reader of many files may skip it and continue."""


class SolverFailure(RuntimeError):
    """The solver cannot continue (non-finite state, step not invertible). The message names the setting to change."""


class OutOfMemory(MemoryError):
    """The run needs more memory than is available. The message names the key that takes most of it."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that numpy, torch on the CPU or torch on a GPU could not allocate memory.

    An error that was received from another rank has only its text, so the text is searched too.
    """
    signs = ("MemoryError", "llocate memory", "Unable to allocate", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name that is most similar to a misspelt one; empty if none is similar."""
    return "".join(difflib.get_close_matches(given, list(known), n=1))


def likely(given: str, known: Iterable[str]) -> list[str]:
    """The known names that the user may have meant: one of nearly the same spelling, else those that share a word with
    the given one, else one of similar spelling; empty if there is none.
    """
    known = list(known)
    words = {word for word in given.split("_") if len(word) > 2}
    sharing = [name for name in known if (len(given) > 2 and given in name) or words & {*name.split("_")}]
    return misspelt(given, known) or sharing or difflib.get_close_matches(given, known, n=1)


def misspelt(given: str, known: Iterable[str]) -> list[str]:
    """The known name of nearly the same spelling; empty if there is none."""
    return difflib.get_close_matches(given, list(known), n=1, cutoff=_SAME)


def one_of(given: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the known names that may have been meant, or the list of all known names."""
    known = list(known)
    meant = likely(given, known)
    return did_you_mean(meant) if meant else f"it may be one of {', '.join(known)}"


def did_you_mean(names: Sequence[str]) -> str:
    """Advice with one name or more."""
    return f"did you mean {listed(names, 'or')}?"


def listed(names: Sequence[str], word: str) -> str:
    """Names as in "a, b or c", with the given word before the last one."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last
