"""The console script ``rnn-ext``.

Importing torch takes a second or more, in which Ctrl-C would end in a traceback from within it.
This module is outside the package, so it runs before the import.
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
