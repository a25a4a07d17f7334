"""Shared by the tests of `benchmarks/`: a small case, a machine's limits, and timings."""

from typing import get_args

from benchmarks.bounds import CallCost, Level, Limits, StepProduct
from benchmarks.cases import Case, Nonlinearity
from rnn_ext.bench.timing import Spread, Timing, Timings
from rnn_ext.bench.workload import MODES

CASE = Case(seq_len=3, batch_size=2, input_size=4, hidden_size=5)
TINY = ["--seq-len=3", "--batch-size=2", "--hidden-size=5", "--seconds-per-cell=0.001"]


def round_limits(threads: int) -> Limits:
    """Limits of a machine with round numbers."""
    return Limits(
        members=threads,
        flop_rate=threads * 50e9,
        levels=(Level("L1", 32 << 10, 200e9), Level("memory", None, 20e9)),
        barrier_seconds=1e-7,
        fork_join_seconds=1e-6,
        calls=tuple(
            CallCost(mode, nonlinearity, 5e-6, 2e-8)
            for nonlinearity in get_args(Nonlinearity)
            for mode in MODES
        ),
        products=(StepProduct(1, 8, {"torch.mm": 1e9, "rnn_ext": 2e9}),),
    )


def timed(theirs: float, ours: float, *, ratio: float | None = None) -> Timing:
    """The result of undisturbed rounds."""
    values = (theirs, ours, theirs / ours if ratio is None else ratio)
    return Timing(3, *(Spread(value, value, value) for value in values))


def hot_and_cold(theirs: float, ours: float) -> Timings:
    """Cold takes twice as long as hot."""
    return Timings(timed(theirs, ours), timed(2 * theirs, 2 * ours))
