"""Times two functions against each other, in alternating rounds."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

__all__ = [
    "MIN_BLOCK_SECONDS",
    "MIN_ROUNDS",
    "Blocks",
    "Spread",
    "Timing",
    "Timings",
    "Waiting",
    "other_work",
    "scatter_warning",
    "time_hot_and_cold",
    "time_pair",
    "time_pair_cold",
]

# Long enough that reading the clock, or one interrupt by the system, hardly counts.
MIN_BLOCK_SECONDS = 2e-3

# The smallest number for which one disturbed round hardly changes the median.
MIN_ROUNDS = 3

# Pairs of cold calls in a round: enough that the round's medians ignore a few interrupts.
MAX_PAIRS = 9

# A longer call is cold in any case: it overwrites the caches many times.
LONGEST_COLD_SECONDS = 0.1

# Twice the scatter of most shapes on an idle virtual machine.
MAX_SCATTER = 0.25

# Seconds that all threads wait for a core, per second. On a virtual machine of two cores: at most
# 0.06 when it is idle, 0.7 for two threads beside a busy program.
MAX_WAITING = 0.15


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of the rounds."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of at least two values."""
        return cls(*quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both functions, and how many times faster ours is.

    ``ratio`` describes the ratios of single rounds, not the ratio of the two medians. When a
    machine slows down (clock frequency, a neighbor on shared cores), it usually does so for longer
    than a round: this slows both halves of the round and cancels out, while the two medians may
    come from different rounds. So ``ratio`` may differ a little from
    ``baseline_seconds / rnn_ext_seconds``.
    """

    rounds: int
    baseline_seconds: Spread
    rnn_ext_seconds: Spread
    ratio: Spread

    @classmethod
    def of(cls, rounds: Sequence[tuple[float, float]]) -> "Timing":
        """Returns the timing of rounds, each the baseline's seconds per call and ours."""
        return cls(
            len(rounds),
            Spread.of([theirs for theirs, _ in rounds]),
            Spread.of([ours for _, ours in rounds]),
            Spread.of([theirs / ours for theirs, ours in rounds]),
        )


@dataclass(frozen=True)
class Timings:
    """A comparison hot (calls in a loop) and cold (each call after other work).

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
    single call. Two untimed blocks of each warm up and estimate the time of a call; they are
    skipped once the time is used up. The functions take turns in going first.
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

    A round is up to ``MAX_PAIRS`` pairs of calls, and fewer if ``MIN_ROUNDS`` such rounds would
    outlast ``seconds``; its two times are the medians of its calls. An untimed pair warms up. The
    functions take turns in going first, from pair to pair.
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
    """Returns a function that imitates a program's other work: a product, a pass over 12 MB."""
    matrix = torch.randn(300, 300)
    memory = torch.zeros(3_000_000)

    def work() -> None:
        with torch.no_grad():
            torch.mm(matrix, matrix)
            memory.sum()

    return work


def scatter_warning(timings: Sequence[Timing]) -> str:
    """Returns a warning if the rounds scatter as if other programs were running, else ``""``."""
    if not timings:
        return ""
    scatter = median((t.ratio.q3 - t.ratio.q1) / t.ratio.median for t in timings)
    if scatter <= MAX_SCATTER:
        return ""
    return (
        f"warning: the ratios scatter: half of the rounds of a cell spread over {scatter:.0%} of "
        "its ratio. Other programs seem to use this machine; measure again when it is idle"
    )


class Waiting:
    """Detects another program that slows all rounds alike, which their scatter does not show.

    From construction on, it sums the time that this process's threads wait for a core. Only Linux
    reports this time; elsewhere there is no warning.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._waited_seconds()

    def warning(self) -> str:
        """Returns a warning if the threads waited for more than ``MAX_WAITING``, else ``""``."""
        seconds = time.perf_counter() - self._start
        waited = self._waited_seconds() - self._waited
        if waited <= MAX_WAITING * seconds:
            return ""
        return (
            f"warning: in {seconds:.1f} s, threads waited {waited:.1f} s in all for a core. Other "
            "programs use this machine, or it has fewer cores than threads; measure again when it "
            "is idle"
        )

    @staticmethod
    def _waited_seconds() -> float:
        nanoseconds = 0
        for file in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread has ended
                nanoseconds += int(file.read_text().split()[1])
        return nanoseconds / 1e9


class Blocks:
    """Runs a function in blocks of about ``MIN_BLOCK_SECONDS``.

    The length of a block follows the fastest block so far: a disturbed one would make all later
    blocks too short.
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
