"""``rnn-ext bench``: two functions timed in turns, on a clock that the tests move."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from bench_support import timed

from rnn_ext.bench.timing import MIN_BLOCK_SECONDS, MIN_ROUNDS, time_pair


class FakeClock:
    """A clock that only the functions made by ``takes`` move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: Callable[[], float]) -> Callable[[], None]:
        def function() -> None:
            self.now += seconds()

        return function


def test_times_are_per_call_and_the_ratio_is_theirs_over_ours() -> None:
    clock = FakeClock()
    timing = time_pair(clock.takes(lambda: 3.0), clock.takes(lambda: 0.5), 60.0, clock=clock)
    assert timing == replace(timed(3.0, 0.5), rounds=timing.rounds)
    assert timing.rounds > MIN_ROUNDS


def test_short_calls_are_timed_in_blocks() -> None:
    clock = FakeClock()
    reads: list[float] = []

    def reading_clock() -> float:
        reads.append(clock.now)
        return clock.now

    call = MIN_BLOCK_SECONDS / 100
    step = clock.takes(lambda: call)
    timing = time_pair(step, step, 1.0, clock=reading_clock)
    assert timing.theirs.median == pytest.approx(
        call, rel=1e-6
    )  # rounding of the fake clock's sums
    # The last three reads: a block's start, its end, and the look at the budget.
    assert reads[-2] - reads[-3] == pytest.approx(MIN_BLOCK_SECONDS, rel=0.02)  # a call either way


def test_a_slow_first_call_does_not_shorten_the_blocks() -> None:
    clock = FakeClock()
    calls = 0

    def seconds() -> float:
        nonlocal calls
        calls += 1
        return 1.0 if calls == 1 else MIN_BLOCK_SECONDS / 100

    time_pair(clock.takes(seconds), clock.takes(lambda: 1.0), 5.0, clock=clock)
    # The slow call alone, the one after it alone, then whole blocks.
    assert calls >= 2 + MIN_ROUNDS * 100


def test_slow_calls_get_the_fewest_rounds() -> None:
    clock = FakeClock()
    calls = 0

    def seconds() -> float:
        nonlocal calls
        calls += 1
        return 10.0

    timing = time_pair(clock.takes(seconds), clock.takes(lambda: 10.0), 0.001, clock=clock)
    assert timing.rounds == MIN_ROUNDS
    assert calls == 1 + MIN_ROUNDS, "one call as warm-up used up the time"


def test_rounds_go_on_until_the_budget_is_spent() -> None:
    clock = FakeClock()
    step = clock.takes(lambda: 1.0)
    time_pair(step, step, 100.0, clock=clock)
    assert 100.0 <= clock.now <= 102.0


def test_both_go_first_equally_often() -> None:
    clock = FakeClock()
    order: list[str] = []

    def step(name: str) -> Callable[[], None]:
        def seconds() -> float:
            order.append(name)
            return 1.0

        return clock.takes(seconds)

    time_pair(step("theirs"), step("ours"), 12.0, clock=clock)
    assert order[4:] == ["theirs", "ours", "ours", "theirs"] * 2


def test_a_change_of_speed_and_a_burst_leave_the_ratio_alone() -> None:
    clock = FakeClock()
    # Two blocks of warm-up; then the machine slows to a third, after a burst hit theirs alone.
    # The ratio of the medians would be 9.
    their_times = iter([3.0, 3.0, 3.0, 100.0, 3.0, 9.0, 9.0])
    our_times = iter([1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0])
    timing = time_pair(
        clock.takes(lambda: next(their_times)),
        clock.takes(lambda: next(our_times)),
        130.0,
        clock=clock,
    )
    assert timing.rounds == 5
    assert (timing.theirs.median, timing.ours.median, timing.ratio.median) == (9.0, 1.0, 3.0)
    assert (timing.theirs.q1, timing.theirs.q3) == (3.0, 9.0)
