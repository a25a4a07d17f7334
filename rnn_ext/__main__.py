"""``python -m rnn_ext``: the same as the command ``rnn-ext``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
