"""Makes hostile calls of the raw ops and checks what they do; see test_hostile_calls.py.

    cd tests
    python -m support.fuzz_ops search FIRST COUNT   # makes these calls; shrinks those that fail
    python -m support.fuzz_ops replay CHOICES       # makes one of them: its number, or its choices
    python -m support.fuzz_ops run FIRST COUNT      # as search, in one process, until one fails

A call follows from a list of choices, which its number seeds. To shrink it is to find fewer and
smaller choices that fail as well. Hypothesis does this, too, but not after a crash of the process,
and it takes longer for one call than ten of these take.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import rnn_ext
from support import ISA_LEVELS, same_bits
from support.hostile_calls import MOST_VALUES, arguments

PATIENCE = 120  # seconds, after which a call hangs
DIFFERENTIABLE = {"rnn_forward", "recurrence_forward"}
PlanArguments = tuple[int | None, int, bool]  # of force_plan
ONE_THREAD: PlanArguments = (None, 1, False)
PLANS = [(None, 1)] * 5 + [(1, 3), (2, 4), (3, 3)]


class Choices(random.Random):
    """Random numbers that are recorded, or replayed from a record; zeros after its end."""

    def __init__(self, source: int | Sequence[int]) -> None:
        self.made: list[int] = []
        self._record = None if isinstance(source, int) else list(source)
        super().__init__(source if isinstance(source, int) else 0)

    def getrandbits(self, bits: int) -> int:
        if self._record is None:
            value = super().getrandbits(bits)
        else:
            at = len(self.made)
            value = self._record[at] % (1 << bits) if at < len(self._record) else 0
        self.made.append(value)
        return value

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)


def shrink(
    record: list[int], fails: Callable[[list[int]], bool], seconds: float = 300
) -> list[int]:
    """A record that fails as well; given time, no choice of it can be left out or be smaller."""
    at, left = 0, len(record)  # choices to try until none is left that can be smaller
    end = time.monotonic() + seconds
    while left > 0 and time.monotonic() < end:
        at = at if at < len(record) else 0
        smaller = next(filter(fails, _smaller(record, at)), None)
        if smaller is None:
            at, left = at + 1, left - 1
        else:
            record, left = smaller, len(smaller)
    return record


def _smaller(record: list[int], at: int) -> Iterator[list[int]]:
    for length in (64, 16, 4, 1):
        if at + length <= len(record):
            yield record[:at] + record[at + length :]
    for value in sorted({0, record[at] // 2, record[at] - 1}):
        if 0 <= value < record[at]:
            yield [*record[:at], value, *record[at + 1 :]]


def make_call(rng: random.Random) -> str:
    """Makes a call; returns "result", or the name of what it raised.

    Raises:
        AssertionError: its result has other bits than that of copies of its arguments, dense in
            memory and none of them another's, on one thread; or it changed an argument.
    """
    name, args = arguments(rng)
    level, plan = _level_and_plan(rng)
    rnn_ext._C.set_isa(level)
    op = getattr(torch.ops.rnn_ext, name)
    return check(with_gradients(op) if name in DIFFERENTIABLE else op, args, plan)


def _level_and_plan(rng: random.Random) -> tuple[str, PlanArguments]:
    return rng.choice(ISA_LEVELS), (*rng.choice(PLANS), rng.random() < 0.5)


def check(op: Callable[..., Any], args: list[Any], plan: PlanArguments) -> str:
    """Calls `op` by `plan`; returns and raises the same."""
    copies = copied(args)
    try:
        use(plan)
        result = _tensors(op(*args))
    except SystemError:
        raise
    except Exception as error:
        use(ONE_THREAD)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:150]}"
    if copies is not None:
        use(ONE_THREAD)
        assert_same_values(_tensors(args), _tensors(copies))
        assert_same_values(result, _tensors(op(*copies)))
    return "result"


def use(plan: PlanArguments) -> None:
    torch.set_num_threads(plan[1])
    rnn_ext._C.force_plan(*plan)


def with_gradients(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op`, whose results are followed by the gradients of the arguments that require any."""

    def call(*args: Any) -> list[Tensor]:
        found = _tensors(op(*args))
        outputs = [t for t in found if t.requires_grad]
        if not outputs:
            return found
        wanted = [t for t in _tensors(list(args)) if t.requires_grad]
        sums = [t.sum() for t in outputs]
        grads = torch.autograd.grad(sums, wanted, allow_unused=True, materialize_grads=True)
        return [*found, *grads]

    return call


def copied(value: Any) -> Any:
    """`value` with a copy of each tensor; None if one of them has no values, or too many."""
    if isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and not (value.is_meta or value.is_neg())
        if not is_plain or max(value.numel(), *value.shape, 0) > MOST_VALUES:
            return None
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        return copy.requires_grad_(value.requires_grad)
    if not isinstance(value, list):
        return value
    copies = [copied(item) for item in value]
    is_whole = all((a is None) == (b is None) for a, b in zip(copies, value, strict=True))
    return copies if is_whole else None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, (list, tuple)) else []
    return [t for part in parts for t in _tensors(part)]


def assert_same_values(actual: list[Tensor], expected: list[Tensor]) -> None:
    """The same bits; of a NaN any."""
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"tensor {index}: {a.shape} and {b.shape}"
        assert a.dtype == b.dtype, f"tensor {index}: {a.dtype} and {b.dtype}"
        if a.dtype.is_floating_point and not same_bits(a, b):
            a, b = (t.where(~t.isnan(), 1234.0) for t in (a, b))
            assert same_bits(a, b), f"tensor {index}: {int((a != b).sum())} values differ"
        elif not a.dtype.is_floating_point:
            assert torch.equal(a, b), f"tensor {index} differs"


def run(first: int, count: int) -> None:
    """Makes calls until one fails, and prints the number of each before it."""
    prepare()
    for number in range(first, first + count):
        signal.alarm(PATIENCE)
        print(number, end=" ", flush=True)
        print(make_call(Choices(number)), flush=True)


def prepare() -> None:
    warnings.simplefilter("ignore")
    make_call(Choices(0))  # starts torch's threads
    if sys.platform == "linux":
        limit_memory(4 << 30)


def limit_memory(more: int) -> None:
    """Limits this process to this many more bytes: calls may request terabytes."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def fails(record: list[int]) -> bool:
    """Whether the call fails in a process of its own."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(PATIENCE)
        prepare()
        make_call(Choices(record))
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


def replay(source: int | list[int]) -> None:
    """Prints the call and makes it."""
    op, args = arguments(Choices(source))
    print(op, described(args), flush=True)
    print(make_call(Choices(source)))


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = f", strides {value.stride()}" if value.layout == torch.strided else ""
        return f"{value.dtype} {tuple(value.shape)}{layout}"
    if isinstance(value, list):
        return f"[{', '.join(map(described, value))}]"
    return repr(value)


def record_of(number: int) -> list[int]:
    rng = Choices(number)
    arguments(rng)
    _level_and_plan(rng)
    return rng.made


def search(first: int, count: int) -> int:
    """Makes the calls in processes of their own; returns how many failed."""
    outcomes: Counter[str] = Counter()
    number, end, failures, start = first, first + count, 0, time.monotonic()
    while number < end:
        command = [
            sys.executable,
            "-m",
            "support.fuzz_ops",
            "run",
            *map(str, (number, min(end - number, 20_000))),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                words = line.split()
                number = int(words[0]) + 1
                outcomes[words[1] if len(words) > 1 else "failed"] += 1
        made = number - first
        print(
            f"{made} calls, {made / (time.monotonic() - start):.0f}/s: {dict(outcomes)}", flush=True
        )
        if process.returncode:
            failures += 1
            print(f"exit code {process.returncode}: {replay_line(number - 1)}", flush=True)
            record = shrink(record_of(number - 1), fails)
            print(f"shrunk: {replay_line(','.join(map(str, record)))}", flush=True)
    return failures


def replay_line(choices: int | str) -> str:
    return f"cd tests; python -m support.fuzz_ops replay {choices}"


if __name__ == "__main__":
    task, *values = sys.argv[1:]
    if task == "run":
        run(*map(int, values))
    elif task == "search":
        sys.exit(search(*map(int, values)) > 0)
    else:
        numbers = [int(value) for value in values[0].split(",")]
        replay(numbers if "," in values[0] else numbers[0])
