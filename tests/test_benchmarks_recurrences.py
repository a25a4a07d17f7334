"""``python -m benchmarks recurrences``. No test asserts a measured time."""

import time

import pytest
import torch

from benchmarks import recurrences
from benchmarks.cases import Case
from benchmarks.recurrences import BASELINES, CELLS, measure_recurrence
from benchmarks.start import measure_start
from rnn_ext.bench.check import MismatchError
from rnn_ext.bench.timing import MIN_ROUNDS
from rnn_ext.bench.workload import MODES

LAYER = Case(5, 3, 4, 6, recurrence="gru")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_compared_with_its_loop_and_timed(name, mode):
    for case in (
        Case(5, 3, 4, 6, recurrence=name),
        Case(1, 3, 4, 6, recurrence=name, cell=True),
    ):
        found = measure_recurrence(case, mode, "loop", 0.001)
        assert found.hot
        assert found.hot.rounds >= MIN_ROUNDS
        assert not found.note


def test_a_plain_rnn_is_called_once_for_each_gate(monkeypatch):
    steps = []

    def time_nothing(theirs, *_):
        theirs()
        raise KeyboardInterrupt

    monkeypatch.setattr(recurrences, "build", lambda *_: lambda _: steps.append(1))
    monkeypatch.setattr(recurrences, "time_hot_and_cold", time_nothing)
    with pytest.raises(KeyboardInterrupt):
        measure_recurrence(LAYER, "forward", BASELINES[1], 0.001)
    assert len(steps) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_result_that_differs_from_the_loop_is_not_timed(mode, monkeypatch):
    loop = recurrences._Call.loop
    monkeypatch.setattr(recurrences._Call, "loop", lambda *args: tuple(2 * t for t in loop(*args)))
    with pytest.raises(MismatchError, match="rnn_ext and the loop differ at gru T=5"):
        measure_recurrence(LAYER, mode, "loop", 0.001)


def test_compilation_is_reported_with_its_time_or_a_reason(monkeypatch):
    def compile_as(function):
        monkeypatch.setattr(torch, "compile", lambda loop, **_: function or loop)
        found = measure_recurrence(LAYER, "forward", "torch.compile", 0.001)
        assert (found.hot is None) == (function is not None)
        return found.note

    assert "gru T=5 B=3 I=4 H=6 (forward): torch.compile took 0.0 s" in compile_as(None)
    assert "skipped torch.compile of gru T=5" in compile_as(lambda _: 1 // 0)
    monkeypatch.setattr(recurrences, "COMPILE_SECONDS", 0.05)
    assert compile_as(lambda _: time.sleep(60)).endswith("TimeoutError: more than 0.05 s")


def test_the_import_and_the_first_call_are_timed_in_new_processes():
    found = measure_start(["gru"], repeats=1)
    assert list(found) == ["import", "gru"]
    assert all(seconds > 0 for seconds in found.values())


def test_operations_are_counted_for_each_gate():
    assert LAYER.flops("training") == 3 * Case(5, 3, 4, 6).flops("training")
