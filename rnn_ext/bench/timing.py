"""Times two functions against each other, in turns."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

__all__ = [
    "MIN_BLOCK_SECONDS",
    "MIN_ROUNDS",
    "Blocks",
    "Spread",
    "Timing",
    "Timings",
    "other_work",
    "scatter_warning",
    "time_hot_and_cold",
    "time_pair",
    "time_pair_cold",
]

# Long enough that reading the clock and one interrupt by the system are small beside it.
MIN_BLOCK_SECONDS = 2e-3

# The fewest whose median one disturbed round cannot move far.
MIN_ROUNDS = 3

# Pairs of cold calls in a round: enough that the round's medians ignore a few interrupts.
MAX_PAIRS = 9

# A longer call finds the caches cold on its own: it uses them up many times.
LONGEST_COLD_SECONDS = 0.1

# Twice what most shapes show on an idle virtual machine.
MAX_SCATTER = 0.25


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of the rounds."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        return cls(*quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both functions, and how many times faster ours is.

    ``ratio`` is that of the rounds' own ratios, not the ratio of the two medians. A slow spell of
    the machine (clock frequency, a neighbor on shared cores) usually lasts longer than a round: it
    slows both halves of the round and cancels out, while the two medians may come from different
    rounds. So ``ratio`` may differ a little from ``baseline_seconds / rnn_ext_seconds``.
    """

    rounds: int
    baseline_seconds: Spread
    rnn_ext_seconds: Spread
    ratio: Spread

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float]]) -> "Timing":
        """Of each round's seconds per call, the baseline's first."""
        return cls(
            len(rounds),
            Spread.of([theirs for theirs, _ in rounds]),
            Spread.of([ours for _, ours in rounds]),
            Spread.of([theirs / ours for theirs, ours in rounds]),
        )


@dataclass(frozen=True)
class Timings:
    """A comparison hot (each call again at once) and cold (each call after other work).

    ``cold`` is None for calls of more than ``LONGEST_COLD_SECONDS``, and on a GPU.
    """

    hot: Timing
    cold: Timing | None = None


def time_hot_and_cold(
    theirs: Callable[[], object], ours: Callable[[], object], seconds: float
) -> Timings:
    """Times both functions on the CPU for about ``seconds`` in all, half of it cold."""
    hot = time_pair(theirs, ours, seconds / 2)
    if max(hot.baseline_seconds.median, hot.rnn_ext_seconds.median) > LONGEST_COLD_SECONDS:
        return Timings(hot)
    return Timings(hot, time_pair_cold(theirs, ours, seconds / 2, disturb=other_work()))


def time_pair(
    theirs: Callable[[], object],
    ours: Callable[[], object],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times calls in a loop, for about ``seconds`` in all and at least ``MIN_ROUNDS`` rounds.

    A round is a block of calls of each function; a block lasts about ``MIN_BLOCK_SECONDS`` or a
    single call. Two blocks of each come first, to warm up and to learn how long a call takes; they
    are skipped once the time is used up. The functions take turns in going first.
    """
    end = clock() + seconds
    their_blocks = Blocks(theirs, clock)
    our_blocks = Blocks(ours, clock)
    for blocks in (their_blocks, our_blocks) * 2:
        if clock() < end:
            blocks.run()

    rounds: list[tuple[float, float]] = []
    while len(rounds) < MIN_ROUNDS or clock() < end:
        if len(rounds) % 2 == 0:
            their_time = their_blocks.run()
            our_time = our_blocks.run()
        else:
            our_time = our_blocks.run()
            their_time = their_blocks.run()
        rounds.append((their_time, our_time))
    return Timing.of(rounds)


def time_pair_cold(
    theirs: Callable[[], object],
    ours: Callable[[], object],
    seconds: float,
    *,
    disturb: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times single calls, each after an untimed ``disturb()``, for about ``seconds`` in all.

    A round is up to ``MAX_PAIRS`` pairs of calls, and fewer where ``MIN_ROUNDS`` such rounds would
    outlast ``seconds``; its two times are the medians of its calls. A pair comes first, to warm up.
    The functions take turns in going first, from pair to pair.
    """

    def time_call(function: Callable[[], object]) -> float:
        disturb()
        start = clock()
        function()
        return clock() - start

    start = clock()
    end = start + seconds
    time_call(theirs)
    time_call(ours)
    pair_seconds = clock() - start
    pairs = MAX_PAIRS
    if pair_seconds * MIN_ROUNDS * pairs > seconds:
        pairs = max(1, int(seconds / pair_seconds / MIN_ROUNDS))

    rounds: list[tuple[float, float]] = []
    ours_first = False
    while len(rounds) < MIN_ROUNDS or clock() < end:
        their_times, our_times = [], []
        for _ in range(pairs):
            if ours_first:
                our_times.append(time_call(ours))
            their_times.append(time_call(theirs))
            if not ours_first:
                our_times.append(time_call(ours))
            ours_first = not ours_first
        rounds.append((median(their_times), median(our_times)))
    return Timing.of(rounds)


def other_work() -> Callable[[], None]:
    """Returns what a program may do between two calls: a product, and a pass over 12 MB."""
    matrix = torch.randn(300, 300)
    memory = torch.zeros(3_000_000)

    def work() -> None:
        with torch.no_grad():
            torch.mm(matrix, matrix)
            memory.sum()

    return work


def scatter_warning(timings: Sequence[Timing]) -> str:
    """Warns of rounds that differ so much that another program must be at work; else ``""``."""
    if not timings:
        return ""
    scatter = median((t.ratio.q3 - t.ratio.q1) / t.ratio.median for t in timings)
    if scatter <= MAX_SCATTER:
        return ""
    return (
        f"warning: the ratios scatter: half of the rounds of a cell spread over {scatter:.0%} of "
        "its ratio. Other programs seem to use this machine; measure again when it is idle"
    )


class Blocks:
    """Runs a function in blocks, whose length follows from the fastest block so far.

    From the fastest, since a first guess from a disturbed call would make every block too short.
    """

    def __init__(self, function: Callable[[], object], clock: Callable[[], float]) -> None:
        self._function = function
        self._clock = clock
        self._fastest = math.inf

    def run(self) -> float:
        """Runs a block and returns its seconds per call."""
        calls = max(1, math.ceil(MIN_BLOCK_SECONDS / self._fastest))
        start = self._clock()
        for _ in range(calls):
            self._function()
        seconds = (self._clock() - start) / calls
        self._fastest = min(self._fastest, seconds)
        return seconds
