"""The errors a user sees: one sentence that says what is wrong, where, and what to do."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message, without a traceback, and exits with 2."""
