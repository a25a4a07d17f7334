"""The plan: which thread computes what. It affects time, never results."""

import os
import subprocess
import sys
import time

import pytest
import torch
from support import ISA_LEVELS, PATIENCE, using_isa, using_threads

import rnn_ext
from rnn_ext import _C

CORES = min(len(os.sched_getaffinity(0)), _C.cpu_quota("") or 1 << 20)


def plan(steps, batch, hidden_size, threads):
    """Groups of threads, and members of each."""
    groups, at_once, used = _C.plan(steps, batch, hidden_size, hidden_size, False, False, threads)
    assert not at_once
    assert used % groups == 0
    return groups, used // groups


def test_caches_are_those_that_the_system_names():
    if sys.platform == "darwin":
        tool, names = ["sysctl", "-n"], [f"hw.perflevel0.{c}cachesize" for c in ("l1d", "l2")]
    else:
        tool, names = ["getconf"], ["LEVEL1_DCACHE_SIZE", "LEVEL2_CACHE_SIZE"]
    sizes = [subprocess.run([*tool, name], capture_output=True).stdout for name in names]
    zen4 = (32 << 10, 1 << 20)
    known = [int(size) if size.strip().isdigit() else 0 for size in sizes]
    assert _C.caches() == tuple(size or default for size, default in zip(known, zen4, strict=True))


def test_one_thread_works_alone():
    assert plan(128, 32, 512, threads=1) == (1, 1)


def test_the_barrier_after_each_product_counts():
    sizes = range(32, 257, 16)
    one, many = (
        [_C.plan(1000, 1, size, size, False, False, 2, 3, products)[2] for size in sizes]
        for products in (1, 3)
    )
    assert all(a >= b for a, b in zip(one, many, strict=True))
    assert one != many


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 40])
@pytest.mark.parametrize(
    "lengths",
    [[1], [9] * 7, [7, 5, 2], [40, 1, 1, 1, 1], range(32, 0, -1), range(128, 64, -2)],
    ids=str,
)
def test_groups_compute_equally_many_rows_of_packed_steps(lengths, groups):
    steps = max(lengths)
    batch_sizes = [sum(length > t for length in lengths) for t in range(steps)]
    ranges = _C.rows_of_groups(batch_sizes, groups)
    assert [begin for begin, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == len(lengths)
    even = sum(lengths) / groups
    for begin, end in ranges:
        assert abs(sum(lengths[begin:end]) - even) <= steps  # a row more or less


@pytest.mark.parametrize("threads", [2, 16, 128])
def test_a_call_shorter_than_waking_the_team_stays_on_one_thread(threads):
    assert plan(1, 1, 32, threads) == (1, 1)


def test_many_rows_are_shared_by_rows_and_one_row_by_columns():
    assert plan(128, 128, 128, threads=2) == (2, 1)
    assert plan(128, 1, 512, threads=2) == (1, 2)


def test_many_threads_share_both():
    groups, members = plan(128, 128, 512, threads=64)
    assert groups > 1
    assert members > 1
    assert groups * members == 64


@pytest.mark.skipif("avx512" not in ISA_LEVELS, reason="other levels have narrower panels")
def test_columns_that_cannot_be_halved_are_not_shared():
    with using_isa("avx512"):  # 200 columns are three panels of 64 and a remainder
        assert plan(50, 64, 200, threads=2) == (2, 1)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("hidden_size", [32, 100, 512])
def test_no_thread_without_work_is_started(batch, hidden_size):
    for threads in (2, 5, 16, 64, 200):
        groups, members = plan(1000, batch, hidden_size, threads)
        assert groups * members <= threads
        assert groups <= batch
        assert members <= hidden_size


def test_no_more_threads_than_cores():
    assert _C.available_threads(2 * CORES) == CORES
    assert _C.available_threads(1) == 1


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_explain_shows_the_plan(batch):
    module = rnn_ext.RNN(256, 256)
    groups, members = plan(50, batch, 256, _C.available_threads(torch.get_num_threads()))
    line = rnn_ext.explain(module, torch.zeros(50, batch, 256))
    assert f"{groups * members} of {torch.get_num_threads()} threads" in line
    assert ("batch rows" in line) == (groups > 1)
    assert ("hidden columns" in line) == (members > 1)


def test_explain_shows_a_plan_that_shares_rows_and_columns():
    module, x = rnn_ext.RNN(8, 8), torch.zeros(5, 4, 8)
    with using_threads(4, "blocks"):
        line = rnn_ext.explain(module, x)
    assert line.partition(";")[0].endswith(
        "4 of 4 threads sharing the batch rows in 2 groups, and 2 each the hidden columns"
    )


def test_two_directions_run_at_once_where_neither_gains_from_two_threads():
    def plan_of_both(steps, batch, hidden_size):
        return _C.plan(steps, batch, hidden_size, hidden_size, False, True, 2)

    assert plan_of_both(128, 1, 32) == (1, True, 2)
    assert plan_of_both(1, 1, 32) == (1, False, 1)


@pytest.mark.skipif(CORES < 2, reason="a team needs two cores")
def test_explain_says_that_two_directions_run_at_once():
    module = rnn_ext.RNN(32, 32, bidirectional=True)
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    line = rnn_ext.explain(module, torch.zeros(128, 1, 32))
    torch.set_num_threads(previous)
    assert line.partition(";")[0].endswith("2 of 2 threads, 1 for each direction")


def test_a_remembered_plan_is_that_of_the_same_call():
    shapes = [(128, 128, 128, 2), (128, 32, 512, 16), (128, 1, 512, 2), (1, 1, 32, 2)]
    alone = [plan(*shape) for shape in shapes]
    assert len(set(alone)) == len(shapes)
    for _ in range(2):
        assert [plan(*shape) for shape in shapes for _ in range(2)] == [
            p for p in alone for _ in range(2)
        ]


@pytest.mark.skipif(CORES < 2, reason="there is no core to take away")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_affinity_may_change_while_the_process_runs():
    cores = os.sched_getaffinity(0)
    assert _C.available_threads(CORES) > 1

    def wait_for(threads):
        end = time.monotonic() + PATIENCE
        while _C.available_threads(CORES) != threads:
            assert time.monotonic() < end
            time.sleep(0.05)

    try:
        os.sched_setaffinity(0, {min(cores)})
        wait_for(1)
    finally:
        os.sched_setaffinity(0, cores)
    wait_for(CORES)


GROUPS = {
    "no groups": ({}, None),
    "version 2": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"},
        2,
    ),
    "version 2, no limit": (
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"},
        None,
    ),
    "version 2, a parent's is less": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "version 2, seen as the root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        1,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/a\n0::/x\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, a path from outside": (
        {
            "proc/self/cgroup": "4:cpu:/docker/0123\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "another controller's": ({"proc/self/cgroup": "4:cpuset:/\nnonsense\n"}, None),
}


@pytest.mark.parametrize(("files", "cores"), GROUPS.values(), ids=GROUPS)
def test_the_quota_of_the_control_groups(files, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _C.cpu_quota(str(tmp_path)) == cores
