"""Errors that the user can fix, and the sentences that describe them."""

__all__ = ["UserError", "sentence"]


class UserError(Exception):
    """An error that the user can fix.

    The message is one sentence that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


def sentence(error: OSError) -> str:
    """Returns the operating system's message without its number: ``run/x: No such file …``."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
