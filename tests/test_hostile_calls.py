"""No call of a raw op, whatever its arguments, ends the process: an exception, or a result."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support import PATIENCE, hostile_calls

PROGRAM = Path(hostile_calls.__file__)
CALLS = 2000
CHILDREN = 2


def test_there_are_hostile_calls_of_every_op():
    assert set(hostile_calls.MAKERS) == set(hostile_calls.OPS)


@pytest.mark.parametrize("child", range(CHILDREN))
def test_hostile_calls_end_in_an_exception_or_a_result(child):
    command = [sys.executable, str(PROGRAM), str(child * CALLS), str(CALLS)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=5 * PATIENCE)
    lines = process.stdout.splitlines()
    last = lines[-1].split()[0] if lines else child * CALLS
    assert process.returncode == 0, (
        f"exit code {process.returncode}; replay with: python tests/support/{PROGRAM.name} {last}\n"
        f"{process.stderr[-2000:]}"
    )
    outcomes = Counter(line.split()[1] for line in lines)
    # Some kernels run, and some checks fail: otherwise these calls would test little.
    assert min(outcomes["result"], outcomes["RuntimeError:"]) > CALLS / 10
