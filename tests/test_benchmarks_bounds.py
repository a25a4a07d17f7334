"""The bound of a call, for given limits; and the measuring of limits."""

from dataclasses import replace
from math import inf
from typing import get_args

import pytest
import torch

from benchmarks import limits, machine
from benchmarks.bounds import CallCost, Level, Limits, bound
from benchmarks.cases import Case, Nonlinearity
from benchmarks.coding import decode, encode
from benchmarks.gemm import gemm_rates, step_rates
from benchmarks.machine import Cache, caches
from benchmarks.probe import load_probe
from rnn_ext.bench.workload import MODES


def calls(call=0.0, forward_step=0.0, backward_step=0.0):
    steps = {"forward": forward_step, "training": forward_step + backward_step}
    return {
        "calls": tuple(
            CallCost(mode, nonlinearity, call, steps[mode])
            for mode in MODES
            for nonlinearity in get_args(Nonlinearity)
        )
    }


# A machine that needs no time for anything.
FREE = Limits(1, inf, (Level("memory", None, inf),), 0.0, 0.0, calls()["calls"], ())
TEAM = replace(FREE, members=4)
SLOW = replace(FREE, flop_rate=1.0)
MEMORY = (Level("L1", 1000, 1e9), Level("L2", 3000, 1e8), Level("memory", None, 1e7))


def test_each_level_serves_as_many_bytes_as_it_holds():
    read = replace(FREE, levels=MEMORY).read_seconds
    assert read(500) == pytest.approx(500e-9)
    assert read(1000) == pytest.approx(1e-6)
    assert read(2000) == pytest.approx(1e-6 + 1e-5)
    assert read(9000) == pytest.approx(1e-6 + 3e-5 + 5e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "case",
    [
        Case(10, 3, 4, 5),
        Case(10, 3, 4, 5, num_layers=3),
        Case(10, 3, 4, 5, num_layers=2, bidirectional=True),
        Case(10, 3, 4, 5, layout="packed"),
    ],
    ids=lambda case: case.settings,
)
def test_flops_are_those_of_the_case(case, mode):
    result = bound(case, mode, replace(FREE, flop_rate=1e9), SLOW)
    assert (result.limit, result.split) == ("flops", (1, 1))
    assert result.seconds == pytest.approx(case.flops(mode) / 1e9)


def test_one_thread_reads_w_hh_every_step_and_w_ih_once():
    alone = replace(FREE, levels=MEMORY)
    case = Case(7, 1, 50, 20)
    seconds = 7 * alone.read_seconds(4 * 20 * 20) + alone.read_seconds(4 * 50 * 20)
    result = bound(case, "forward", alone, alone)
    assert (result.limit, result.split) == ("weights", (1, 1))
    assert result.seconds == pytest.approx(seconds)
    assert bound(case, "training", alone, alone).seconds == pytest.approx(2 * seconds)
    both = bound(replace(case, bidirectional=True), "forward", alone, alone)
    assert both.seconds == pytest.approx(2 * seconds)
    half = bound(replace(case, dtype=torch.bfloat16), "forward", alone, alone)
    assert half.seconds < result.seconds / 2


def test_threads_that_share_columns_read_their_own():
    team = replace(TEAM, levels=MEMORY, fork_join_seconds=1e-9)
    seconds = 7 * team.read_seconds(4 * 20 * 20 / 4) + team.read_seconds(4 * 50 * 20 / 4) + 1e-9
    result = bound(Case(7, 1, 50, 20), "forward", replace(FREE, levels=MEMORY), team)
    assert (result.limit, result.split) == ("weights", (1, 4))
    assert result.seconds == pytest.approx(seconds)


def test_threads_that_share_columns_synchronize_after_every_step():
    team = replace(TEAM, barrier_seconds=2.0, fork_join_seconds=0.5)
    result = bound(Case(7, 1, 4, 8), "training", SLOW, team)
    assert (result.limit, result.split) == ("sync", (1, 2))
    assert result.seconds == pytest.approx(2 * (7 * 2.0 + 0.5))


def test_threads_that_share_batch_rows_never_synchronize_and_each_reads_all_of_w_hh():
    team = replace(TEAM, barrier_seconds=2.0, levels=MEMORY)
    result = bound(Case(7, 4, 0, 20), "forward", SLOW, team)
    assert (result.limit, result.split) == ("weights", (2, 1))
    assert result.seconds == pytest.approx(7 * team.read_seconds(4 * 20 * 20))


def test_threads_without_a_row_do_nothing():
    team = replace(TEAM, flop_rate=4e6, barrier_seconds=inf)
    case = Case(7, 2, 4, 8)
    result = bound(case, "forward", SLOW, team)
    assert result.split == (2, 1)
    assert result.seconds == pytest.approx(case.flops("forward") / 2e6)


def test_threads_may_share_rows_and_columns():
    case = Case(7, 2, 4, 2)
    result = bound(case, "forward", SLOW, replace(TEAM, flop_rate=4e6))
    assert result.split == (2, 2)
    assert result.seconds == pytest.approx(case.flops("forward") / 4e6)


def test_a_team_is_not_used_where_one_thread_is_faster():
    case = Case(7, 2, 4, 8)
    alone = replace(FREE, flop_rate=1e9)
    result = bound(case, "forward", alone, replace(TEAM, fork_join_seconds=1.0))
    assert (result.split, result.limit) == ((1, 1), "flops")


def test_every_layer_and_pass_starts_a_team():
    team = replace(TEAM, fork_join_seconds=0.5)
    case = Case(7, 4, 4, 8, num_layers=3, bidirectional=True)
    assert bound(case, "forward", SLOW, team).seconds == pytest.approx(3 * 0.5)
    assert bound(case, "training", SLOW, team).seconds == pytest.approx(6 * 0.5)


def test_short_calls_are_bound_by_the_call():
    alone = replace(FREE, flop_rate=1e9, **calls(call=1e-5))
    result = bound(Case(1, 1, 4, 8), "forward", alone, alone)
    assert result.limit == "call"
    assert result.seconds == pytest.approx(1e-5 + 2 * 8 * (4 + 8) / 1e9)


def test_steps_wait_for_the_previous_step():
    alone = replace(FREE, **calls(call=1.0, forward_step=2.0, backward_step=3.0))
    case = Case(10, 1, 4, 8)
    result = bound(case, "forward", alone, alone)
    assert (result.limit, result.seconds) == ("latency", 1 + 10 * 2)
    assert bound(case, "training", alone, alone).seconds == 1 + 10 * (2 + 3)
    both = replace(case, bidirectional=True)
    assert bound(both, "forward", alone, alone).seconds == 1 + 10 * 2, "at the same time"
    layers = replace(case, num_layers=2)
    assert bound(layers, "forward", alone, alone).seconds == 1 + 2 * 10 * 2


def test_simultaneous_costs_take_as_long_as_the_longest():
    alone = replace(FREE, flop_rate=1e9, levels=MEMORY, **calls(forward_step=1e-6))
    case = Case(10, 1, 0, 8)
    flops, weights = 2 * 8 * 8 / 1e9, alone.read_seconds(4 * 8 * 8)
    assert weights > flops
    assert bound(case, "forward", alone, alone).seconds == pytest.approx(10 * 1e-6)
    quick = replace(alone, **calls())
    assert bound(case, "forward", quick, quick).seconds == pytest.approx(10 * weights)


# Measuring


def test_caches_are_what_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert caches() == machine.USUAL_CACHES
    for index, (level, kind, size, sharing) in enumerate(
        [
            ("3", "Unified", "32768K", "0-7,64-71"),
            ("1", "Data", "48K", "0,64"),
            ("1", "Instruction", "64K", "0,64"),
            ("2", "Unified", "2048K", "0,64"),
        ]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (
            ("level", level),
            ("type", kind),
            ("size", size),
            ("shared_cpu_list", sharing),
        ):
            (folder / name).write_text(f"{text}\n")
    assert caches() == (Cache(1, 48 << 10, 1), Cache(2, 2 << 20, 1), Cache(3, 32 << 20, 8))


def test_the_probe_builds_and_returns_finite_numbers():
    probe = load_probe()
    for threads in (1, 2):
        assert 0 < probe.read_rate(1, threads) < inf
        assert 0 < probe.read_rate(1 << 14, threads) < inf
        assert 0 <= probe.fork_join_seconds(threads) < inf
        assert 0 <= probe.barrier_seconds(threads) < inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_matrix_product_is_measured_in_every_library(dtype):
    rates = gemm_rates(dtype, size=32, seconds=0)
    onednn = dtype != torch.float64 and torch.backends.mkldnn.is_available()
    assert set(rates) == {"torch.mm", "rnn_ext"} | ({"oneDNN"} if onednn else set())
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_product_of_a_step_is_measured_in_every_library(dtype):
    rates = step_rates(dtype, 3, 32, seconds=0)
    onednn = dtype != torch.float64 and torch.backends.mkldnn.is_available()
    assert set(rates) == {"torch.mm", "rnn_ext"} | ({"oneDNN"} if onednn else set())
    assert all(rate > 0 for rate in rates.values())


def test_limits_are_those_of_the_cases(monkeypatch):
    monkeypatch.setattr(limits, "SWEEPS", 1)
    monkeypatch.setattr(limits, "CALL_SECONDS", 0.0)
    monkeypatch.setattr(limits, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "caches", lambda: (Cache(1, 1 << 14, 1), Cache(2, 1 << 16, 1)))
    torch.set_num_threads(1)
    cases = [Case(2, 3, 8, 8), Case(4, 3, 8, 8), Case(2, 1, 8, 16, nonlinearity="relu")]
    result = limits.measure_limits(cases, {"torch.mm": 1e20})
    assert result.members == 1
    assert result.flop_rate == 1e20
    assert [(level.name, level.size) for level in result.levels] == [
        ("L1", 1 << 14),
        ("L2", 1 << 16),
        ("memory", None),
    ]
    assert all(level.read_rate > 0 for level in result.levels)
    assert [(cost.mode, cost.nonlinearity) for cost in result.calls] == [
        (mode, nonlinearity) for nonlinearity in ("tanh", "relu") for mode in MODES
    ]
    assert all(cost.call_seconds > 0 for cost in result.calls)
    assert [(p.batch_size, p.hidden_size) for p in result.products] == [(3, 8), (1, 16)]
    bare = limits.measure_limits(cases, {"torch.mm": 1.0}, with_products=False)
    assert (bare.products, bare.flop_rate) == ((), 1.0)
    assert decode(encode(result), Limits) == result


@pytest.mark.parametrize(
    ("caches", "threads", "sizes"),
    [
        # Half of a core's share, at most eight times the previous level; memory: beyond all levels.
        ([(1, 32, 1), (2, 1024, 1), (3, 32768, 8)], 1, [16, 256, 8192, 131072]),
        ([(1, 32, 1), (2, 1024, 1), (3, 32768, 8)], 8, [16, 256, 2048, 16384]),
        # A share that fits into the previous level.
        ([(1, 48, 1), (2, 2048, 1), (3, 32768, 16)], 16, [24, 384, 1024, 8192]),
        # Twice as many threads as share the last level have two of it.
        ([(1, 32, 1), (2, 512, 2)], 4, [16, 128, 1024]),
    ],
)
def test_each_level_is_measured_with_what_fits_it_alone(caches, threads, sizes, monkeypatch):
    machine = tuple(Cache(level, size << 10, cores) for level, size, cores in caches)
    monkeypatch.setattr(limits, "caches", lambda: machine)
    assert [size >> 10 for *_, size in limits._sizes(threads)] == sizes
