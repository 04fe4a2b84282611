"""The two ways a run ends before its time."""


class UserError(ValueError):
    """A mistake the user can mend: one sentence that names the key or file and says what would be right."""

    #: Whether all ranks raise it together, so that they may still do something collective about it.
    shared = False


class SolverFailure(RuntimeError):
    """The numerics cannot go on (non-finite state, no invertible step): one sentence with the setting to change."""
