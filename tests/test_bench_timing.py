"""``rnn-ext bench``: two functions timed in alternating rounds, on a clock that the tests move."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnn_ext.bench import timing as timing_module
from rnn_ext.bench.timing import (
    LONGEST_COLD_SECONDS,
    MAX_PAIRS,
    MIN_BLOCK_SECONDS,
    MIN_ROUNDS,
    Spread,
    Timing,
    Waiting,
    scatter_warning,
    time_hot_and_cold,
    time_pair,
    time_pair_cold,
)


class FakeClock:
    """A clock that only the functions made by ``takes`` move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds):
        def function():
            self.now += seconds()

        return function


def test_times_are_per_call_and_the_ratio_is_theirs_over_ours():
    clock = FakeClock()
    timing = time_pair(clock.takes(lambda: 3.0), clock.takes(lambda: 0.5), 60.0, clock=clock)
    assert timing.baseline_seconds == Spread(3.0, 3.0, 3.0)
    assert timing.rnn_ext_seconds == Spread(0.5, 0.5, 0.5)
    assert timing.ratio == Spread(6.0, 6.0, 6.0)
    assert timing.rounds > MIN_ROUNDS


def test_short_calls_are_timed_in_blocks():
    clock = FakeClock()
    reads = []

    def reading_clock():
        reads.append(clock.now)
        return clock.now

    call = MIN_BLOCK_SECONDS / 100
    step = clock.takes(lambda: call)
    timing = time_pair(step, step, 1.0, clock=reading_clock)
    assert timing.baseline_seconds.median == pytest.approx(
        call, rel=1e-6
    )  # rounding of the fake clock's sums
    # The last three reads: a block's start, its end, and the check of the budget.
    assert reads[-2] - reads[-3] == pytest.approx(MIN_BLOCK_SECONDS, rel=0.02)  # a call either way


def test_a_slow_first_call_does_not_shorten_the_blocks():
    clock = FakeClock()
    calls = 0

    def seconds():
        nonlocal calls
        calls += 1
        return 1.0 if calls == 1 else MIN_BLOCK_SECONDS / 100

    time_pair(clock.takes(seconds), clock.takes(lambda: 1.0), 5.0, clock=clock)
    # The slow call alone, the next one alone, then whole blocks.
    assert calls >= 2 + MIN_ROUNDS * 100


def test_slow_calls_get_the_fewest_rounds():
    clock = FakeClock()
    calls = 0

    def seconds():
        nonlocal calls
        calls += 1
        return 10.0

    timing = time_pair(clock.takes(seconds), clock.takes(lambda: 10.0), 0.001, clock=clock)
    assert timing.rounds == MIN_ROUNDS
    assert calls == 1 + MIN_ROUNDS, "one call as warm-up used up the time"


def test_rounds_continue_until_the_budget_is_spent():
    clock = FakeClock()
    step = clock.takes(lambda: 1.0)
    time_pair(step, step, 100.0, clock=clock)
    assert 100.0 <= clock.now <= 102.0


def test_both_go_first_equally_often():
    clock = FakeClock()
    order = []

    def step(name):
        def seconds():
            order.append(name)
            return 1.0

        return clock.takes(seconds)

    time_pair(step("theirs"), step("ours"), 12.0, clock=clock)
    assert order[4:] == ["theirs", "ours", "ours", "theirs"] * 2


def test_a_change_of_speed_and_a_burst_leave_the_ratio_alone():
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
    assert (timing.baseline_seconds.median, timing.rnn_ext_seconds.median, timing.ratio.median) == (
        9.0,
        1.0,
        3.0,
    )
    assert (timing.baseline_seconds.q1, timing.baseline_seconds.q3) == (3.0, 9.0)


# Cold


def test_only_the_call_is_timed_and_other_work_precedes_each():
    clock = FakeClock()
    order = []

    def step(name, seconds):
        return clock.takes(lambda: order.append(name) or seconds)

    timing = time_pair_cold(
        step("theirs", 3.0), step("ours", 0.5), 1000.0, disturb=step("-", 10.0), clock=clock
    )
    assert timing.baseline_seconds == Spread(3.0, 3.0, 3.0)
    assert timing.rnn_ext_seconds == Spread(0.5, 0.5, 0.5)
    assert set(order[::2]) == {"-"}
    calls = order[1::2]
    assert calls[2:10] == ["theirs", "ours", "ours", "theirs"] * 2
    assert len(calls) == 2 + 2 * timing.rounds * MAX_PAIRS


@pytest.mark.parametrize(("seconds", "pairs"), [(100.0, 1), (0.0, 1), (330.0, 5), (1e4, MAX_PAIRS)])
def test_slow_cold_calls_have_smaller_rounds(seconds, pairs):
    clock = FakeClock()
    calls = 0

    def count():
        nonlocal calls
        calls += 1
        return 10.0

    step = clock.takes(count)
    timing = time_pair_cold(step, step, seconds, disturb=lambda: None, clock=clock)
    assert timing.rounds >= MIN_ROUNDS
    assert calls == 2 + 2 * timing.rounds * pairs
    assert clock.now <= max(seconds, 20.0 * (1 + MIN_ROUNDS * pairs)) + 20.0 * pairs


def test_a_burst_in_a_round_of_cold_calls_leaves_its_median_alone():
    clock = FakeClock()
    times = iter([1.0, 50.0, *[1.0] * 1000])
    timing = time_pair_cold(
        clock.takes(lambda: 1.0),
        clock.takes(lambda: next(times)),
        100.0,
        disturb=lambda: None,
        clock=clock,
    )
    assert timing.ratio == Spread(1.0, 1.0, 1.0)


def test_long_calls_are_not_timed_cold(monkeypatch):
    def hot(seconds):
        return Timing.of([(seconds, 1e-3)] * 3)

    monkeypatch.setattr(timing_module, "time_pair_cold", lambda *_, **__: hot(2.0))
    for seconds, cold in ((LONGEST_COLD_SECONDS / 2, hot(2.0)), (2 * LONGEST_COLD_SECONDS, None)):
        monkeypatch.setattr(timing_module, "time_pair", lambda *_, s=seconds: hot(s))
        result = time_hot_and_cold(lambda: None, lambda: None, 1.0)
        assert (result.hot, result.cold) == (hot(seconds), cold)


def test_other_work_leaves_gradients_and_the_gradient_mode_alone():
    with torch.enable_grad():
        timing_module.other_work()()
        assert torch.is_grad_enabled()


def test_warns_of_rounds_that_scatter():
    steady = Timing.of([(2.0, 1.0), (2.1, 1.0), (1.9, 1.0)])
    wild = Timing.of([(2.0, 1.0), (9.0, 1.0), (1.0, 1.0), (5.0, 1.0)])
    assert (
        scatter_warning([])
        == scatter_warning([steady])
        == scatter_warning([steady] * 2 + [wild])
        == ""
    )
    assert scatter_warning([steady, wild, wild]).startswith("warning: the ratios scatter")


@pytest.mark.parametrize(("waited", "is_warned"), [(0.0, False), (1.4, False), (1.6, True)])
def test_warns_of_threads_that_wait_for_a_core(waited, is_warned, monkeypatch):
    times = iter([50.0, 60.0])
    seconds = iter([3.0, 3.0 + waited])
    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(Waiting, "_waited_seconds", staticmethod(lambda: next(seconds)))
    warning = Waiting().warning()
    assert warning.startswith("warning: in 10.0 s, threads waited 1.6 s") == is_warned
    assert bool(warning) == is_warned


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux alone reports this")
def test_a_busy_program_on_the_same_core_counts_as_waiting():
    # Ends when the warning comes.
    program = """if True:
        import os, sys
        from rnn_ext.bench.timing import Waiting
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                pass
            os._exit(0)
        waiting = Waiting()
        while not waiting.warning():
            pass
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
