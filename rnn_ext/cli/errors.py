"""Mistakes of the user, and how the command line words them."""

__all__ = ["UserError", "sentence"]


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one sentence that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


def sentence(error: OSError) -> str:
    """Returns what the operating system says, without its numbers: ``run/x: No such file …``."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
