"""No call of a raw op, whatever its arguments, ends the process or reads memory by other strides.

A call raises an exception, or it returns the bits of a call with dense copies of its arguments.
"""

import random
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from support import PATIENCE, fuzz_ops, hostile_calls
from support.compile import ROOT
from support.fuzz_ops import ONE_THREAD, Choices, check, shrink

CALLS = 1000
CHILDREN = 2


def fuzz(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "support.fuzz_ops", *map(str, arguments)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
    )


def test_there_are_hostile_calls_of_every_op():
    assert set(hostile_calls.MAKERS) == set(hostile_calls.OPS)


@pytest.mark.parametrize("child", range(CHILDREN))
def test_hostile_calls_end_in_an_exception_or_the_result_of_copies(child):
    process = fuzz("run", child * CALLS, CALLS)
    lines = process.stdout.splitlines()
    last = lines[-1].split()[0] if lines else child * CALLS
    assert process.returncode == 0, (
        f"exit code {process.returncode}; {fuzz_ops.replay_line(last)}\n{process.stderr[-2000:]}"
    )
    outcomes = Counter(line.split()[1] for line in lines)
    # Some kernels run, and some checks fail: otherwise these calls would test little.
    assert min(outcomes["result"], outcomes["RuntimeError:"]) > CALLS / 10


def test_a_replayed_call_is_the_call():
    for number in range(20):
        first = Choices(number)
        op, args = hostile_calls.arguments(first)
        other, again = hostile_calls.arguments(Choices(first.made))
        assert op == other
        assert fuzz_ops.described(args) == fuzz_ops.described(again)
    described = fuzz("replay", 17).stdout
    assert described == fuzz("replay", ",".join(map(str, fuzz_ops.record_of(17)))).stdout
    assert described.startswith(hostile_calls.arguments(Choices(17))[0])


def test_a_shrunk_call_is_the_smallest_that_fails():
    def fails(record):
        rng = Choices(record)
        values = [rng.randrange(1000) for _ in range(rng.randrange(50))]
        return sum(value > 600 for value in values) >= 2

    rng = random.Random(1)
    record = next(
        r for r in iter(lambda: [rng.getrandbits(10) for _ in range(60)], None) if fails(r)
    )
    assert shrink(record, fails) == [2, 601, 601]


def reads_dense(x):
    return torch.as_strided(x, (4,), (1,), x.storage_offset()) * 2


def writes(x):
    return x.mul_(2)


@pytest.mark.parametrize(
    ("op", "fault"), [(reads_dense, "tensor 0: 3 values differ"), (writes, "tensor 0: 4 values")]
)
def test_a_fault_is_noticed(op, fault):
    x = torch.arange(1.0, 5)
    if op is reads_dense:
        assert check(op, [x], ONE_THREAD) == "result"
        x = torch.stack([x, -x], 1)[:, 0]
    with pytest.raises(AssertionError, match=re.escape(fault)):
        check(op, [x], ONE_THREAD)


def test_an_error_is_an_outcome():
    def raises(x):
        raise RuntimeError("first line\nsecond")

    assert check(raises, [torch.ones(1)], ONE_THREAD) == "RuntimeError: first line"
