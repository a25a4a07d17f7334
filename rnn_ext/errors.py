"""What the command line says when the user, not the program, has to change something."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake that the user can put right.

    The message is one sentence that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """
