"""``python -m benchmarks.conditions``: how much longer calls take under bad conditions.

- subnormal: input and weights are so small that every product and every state is subnormal.
- threads: torch is told of 2 and of 4 times as many threads as there are cores.
- second program: another process makes the same calls at the same time, with as many threads. It
  takes half of the machine, so a factor of 2 is its share.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from statistics import median
from types import ModuleType

import torch
from tabulate import tabulate
from torch import Tensor, nn

import rnn_ext

from .machine import describe, facts

LIBRARIES: dict[str, ModuleType] = {"rnn_ext": rnn_ext, "torch": nn}
LAYERS = ("RNN", "GRU", "LSTM")
SHAPES = ((128, 1, 32), (100, 1, 128), (128, 32, 128), (32, 32, 512))  # T, B, H
MODES = ("forward", "training")
TINY = 1e-20  # products of two such numbers are subnormal: below 1.2e-38
ROUNDS = 9
SECONDS = 0.05  # of each measurement: longer than the time that a core is given to a thread

Call = Callable[[], object]


def build(library: str, layer: str, shape: tuple[int, ...], mode: str, scale: float = 1.0) -> Call:
    """Return a call of a layer with ``I == H``, in training with all gradients."""
    seq_len, batch_size, hidden_size = shape
    torch.manual_seed(0)
    module: nn.RNNBase = getattr(LIBRARIES[library], layer)(hidden_size, hidden_size)
    x = scale * torch.randn(seq_len, batch_size, hidden_size)
    gradient = scale * torch.randn(seq_len, batch_size, hidden_size)
    operands = [x, *module.parameters()]
    for operand in operands:
        operand.data *= 1 if operand is x else scale
        operand.requires_grad_(mode == "training")

    def forward() -> Tensor:
        output: Tensor = module(x)[0]
        return output

    return (
        forward if mode == "forward" else lambda: torch.autograd.grad(forward(), operands, gradient)
    )


def seconds_of(call: Call) -> float:
    """Return the mean time of a call, in a loop."""
    call()  # starts threads
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        call()
        calls += 1
    return passed / calls


@contextmanager
def threads(count: int) -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    process.send_signal(signal.SIGCONT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGSTOP)


def measure(library: str, layer: str, shape: tuple[int, ...], mode: str) -> dict[str, float]:
    """Return the time under each bad condition over that under good ones, in turns."""
    cores = len(os.sched_getaffinity(0))
    other = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, library, layer, *map(str, shape), mode],
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()  # its calls go on from here
        other.send_signal(signal.SIGSTOP)
        call, tiny = build(library, layer, shape, mode), build(library, layer, shape, mode, TINY)
        conditions: dict[str, tuple[Call, Callable[[], AbstractContextManager[None]]]] = {
            "good": (call, nullcontext),
            "subnormal": (tiny, nullcontext),
            "threads x2": (call, lambda: threads(2 * cores)),
            "threads x4": (call, lambda: threads(4 * cores)),
            "second program": (call, lambda: running(other)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in conditions}
        for _ in range(ROUNDS):
            for name, (function, condition) in conditions.items():
                with condition():
                    seconds[name].append(seconds_of(function))
    finally:
        other.kill()
        other.wait()
    good = seconds.pop("good")
    return {
        name: median(bad / usual for bad, usual in zip(values, good, strict=True))
        for name, values in seconds.items()
    }


def report() -> None:
    rows = []
    for layer, shape, mode, library in product(LAYERS, SHAPES, MODES, LIBRARIES):
        factors = measure(library, layer, shape, mode)
        name = f"{library} {layer} {'x'.join(map(str, shape))} {mode}"
        rows.append({"call": name, **factors})
        print(name, *(f"{factor:.2f}" for factor in factors.values()), file=sys.stderr)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    print()
    print(describe(facts()))


def repeat(library: str, layer: str, *rest: str) -> None:
    """Make calls until the process is killed."""
    *shape, mode = rest
    call = build(library, layer, tuple(map(int, shape)), mode)
    call()
    print(flush=True)
    while True:
        call()


if __name__ == "__main__":
    repeat(*sys.argv[1:]) if sys.argv[1:] else report()
