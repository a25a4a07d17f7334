"""Two functions timed against each other, in turns."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

__all__ = [
    "MIN_BLOCK_SECONDS",
    "MIN_ROUNDS",
    "Blocks",
    "Spread",
    "Timing",
    "fastest_block",
    "least_seconds",
    "time_pair",
]

# Long enough that reading the clock and one interrupt by the system are small beside it.
MIN_BLOCK_SECONDS = 2e-3

# The fewest that have a median which one disturbed round can't move far.
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of what the rounds gave."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        return cls(*quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both, and how many times faster ours is.

    ``ratio`` is that of the rounds' own ratios, not the ratio of the two medians: whatever
    slows the machine for longer than a round (clock frequency, a neighbor on shared cores) slows
    both halves of it and cancels, while the medians may come from different rounds. It may
    therefore differ a little from ``theirs / ours``.
    """

    rounds: int
    theirs: Spread
    ours: Spread
    ratio: Spread


def time_pair(
    theirs: Callable[[], object],
    ours: Callable[[], object],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time both functions for about ``seconds`` in all, at least ``MIN_ROUNDS`` rounds.

    A round is a block of calls of each, and a block lasts about ``MIN_BLOCK_SECONDS`` or a single
    call. Two blocks of each come before, as warm-up and to learn how long a call takes; calls so
    slow that these use up the time have fewer, since a cold start is small beside them. Which of
    the two goes first changes from round to round, so that neither always follows the other.
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
    return Timing(
        rounds=len(rounds),
        theirs=Spread.of([their_time for their_time, _ in rounds]),
        ours=Spread.of([our_time for _, our_time in rounds]),
        ratio=Spread.of([their_time / our_time for their_time, our_time in rounds]),
    )


def least_seconds(function: Callable[[], object], seconds: float) -> float:
    """The time of the fastest of at least ``MIN_ROUNDS`` calls, for about ``seconds``."""
    clock = time.perf_counter
    end = clock() + seconds
    times: list[float] = []
    while len(times) < MIN_ROUNDS or clock() < end:
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def fastest_block(
    function: Callable[[], object], seconds: float, clock: Callable[[], float]
) -> float:
    """Seconds per call in the fastest of at least ``MIN_ROUNDS`` blocks, for about ``seconds``."""
    end = clock() + seconds
    blocks = Blocks(function, clock)
    times: list[float] = []
    while len(times) < MIN_ROUNDS or clock() < end:
        times.append(blocks.run())
    return min(times)


class Blocks:
    """Runs a function in blocks whose length follows the fastest block so far.

    The fastest, since a first guess from a disturbed call would make every block too short.
    """

    def __init__(self, function: Callable[[], object], clock: Callable[[], float]) -> None:
        self._function = function
        self._clock = clock
        self._fastest = math.inf

    def run(self) -> float:
        """Run a block; returns its seconds per call."""
        calls = max(1, math.ceil(MIN_BLOCK_SECONDS / self._fastest))
        start = self._clock()
        for _ in range(calls):
            self._function()
        seconds = (self._clock() - start) / calls
        self._fastest = min(self._fastest, seconds)
        return seconds
