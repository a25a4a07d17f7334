"""What the tests of `rnn-ext bench` share: a small case, and the command on it."""

import argparse

from rnn_ext.bench import command
from rnn_ext.bench.cases import Case
from rnn_ext.bench.timing import Spread, Timing

CASE = Case(seq_len=3, batch_size=2, input_size=4, hidden_size=5)
TINY = [
    "--seq-len=3",
    "--batch-size=2",
    "--hidden-size=5",
    "--input-size=4",
    "--threads=1",
    "--seconds-per-cell=0.001",
]


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(flags)


def bench(*flags: str) -> int:
    return command.run(parse(*TINY, *flags))


def timed(theirs: float, ours: float, *, ratio: float | None = None) -> Timing:
    """What undisturbed rounds give."""
    values = (theirs, ours, theirs / ours if ratio is None else ratio)
    return Timing(3, *(Spread(value, value, value) for value in values))
