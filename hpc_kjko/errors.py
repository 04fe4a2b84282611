"""The two ways a run ends before its time."""


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
