"""The plan: who computes what. It decides time, never results."""

import os

import pytest
import torch

import rnn_ext
from rnn_ext import _C

CORES = len(os.sched_getaffinity(0))


def plan(steps: int, batch: int, hidden_size: int, threads: int) -> tuple[str, int]:
    split, at_once, used = _C.plan(steps, batch, hidden_size, hidden_size, False, False, threads)
    assert not at_once
    return split, used


def test_one_thread_works_alone() -> None:
    assert plan(128, 32, 512, threads=1) == ("serial", 1)


def test_a_call_shorter_than_waking_the_team_stays_on_one_thread() -> None:
    assert plan(1, 1, 32, threads=CORES) == ("serial", 1)


@pytest.mark.skipif(CORES < 2, reason="a team needs two cores")
def test_many_rows_are_shared_by_rows_and_one_row_by_columns() -> None:
    assert plan(128, 128, 128, threads=2) == ("batch rows", 2)
    assert plan(128, 1, 512, threads=2) == ("hidden columns", 2)


def test_no_more_threads_than_cores() -> None:
    assert plan(128, 128, 512, threads=64)[1] <= CORES


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_explain_tells_the_plan(batch: int) -> None:
    module = rnn_ext.RNN(256, 256)
    split, threads = plan(50, batch, 256, torch.get_num_threads())
    line = rnn_ext.explain(module, torch.zeros(50, batch, 256))
    assert f"{threads} of {torch.get_num_threads()} threads" in line
    assert (split in line) == (threads > 1)


@pytest.mark.skipif(CORES < 2, reason="a team needs two cores")
def test_two_directions_run_at_once_where_neither_gains_from_two_threads() -> None:
    def plan_of_both(steps: int, batch: int, hidden_size: int) -> tuple[str, bool, int]:
        return _C.plan(steps, batch, hidden_size, hidden_size, False, True, 2)

    assert plan_of_both(128, 1, 32) == ("serial", True, 2)
    assert plan_of_both(1, 1, 32) == ("serial", False, 1)
    module = rnn_ext.RNN(32, 32, bidirectional=True)
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    line = rnn_ext.explain(module, torch.zeros(128, 1, 32))
    torch.set_num_threads(previous)
    assert line.endswith("2 of 2 threads, 1 for each direction")
