"""The console script ``rnn-ext``.

Importing torch takes a second or more, and Ctrl-C would end it with a traceback. This module is
outside the package and sets the signal's default before that import.
"""

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line of this process and returns the exit code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process silently
    from rnn_ext.cli import main as run

    signal.signal(signal.SIGINT, handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
