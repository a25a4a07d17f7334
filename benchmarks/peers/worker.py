"""The process of one runtime, which prepares cases and times blocks of calls on request.

``python -m benchmarks.peers.worker NAME THREADS DEVICE TF32`` reads a ``Request`` in JSON from each
line of stdin and writes an ``Answer``.
"""

import os
import signal
import sys
import time
from statistics import median

import msgspec
import torch

from rnn_ext.bench.check import difference
from rnn_ext.bench.timing import Blocks
from rnn_ext.bench.workload import Mode

from ..cases import Case
from ..coding import decode, encode
from ..gpu import EventClock, set_precision
from .runtimes import RUNTIMES, Problem, Runtime

__all__ = ["Answer", "Request", "Server"]


class Request(msgspec.Struct, omit_defaults=True):
    """Prepare ``case`` and compare its results with torch's; without a case, time calls."""

    case: Case | None = None
    mode: Mode = "forward"
    seconds: float = 0.0


class Answer(msgspec.Struct, omit_defaults=True):
    """Seconds per call, or an error."""

    seconds: float = 0.0
    error: str = ""


class Server:
    """Answers requests for one runtime."""

    def __init__(self, runtime: Runtime, threads: int, device: str = "cpu") -> None:
        self._runtime = runtime
        self._threads = threads
        self._device = device
        self._mode: Mode = "forward"
        # Kept because native runtimes read the input in its memory.
        self._problem: Problem | None = None
        self._blocks: Blocks | None = None

    def answer(self, request: Request) -> Answer:
        """Returns the answer; an exception becomes an ``error``, its type and first line."""
        try:
            if request.case:
                self._problem = self._blocks = None  # frees the memory of the previous case
                self._mode = request.mode
            with torch.set_grad_enabled(self._mode == "training"):
                if request.case:
                    return self._prepare(request.case)
                return Answer(self._time(request.seconds))
        except Exception as error:
            line, *_ = str(error).splitlines() or [""]
            return Answer(error=f"{type(error).__name__}: {line}")

    def _prepare(self, case: Case) -> Answer:
        self._problem = problem = Problem.draw(case, self._mode, self._threads, self._device)
        prepared = self._runtime.load()(problem)
        results = prepared.results()
        if mismatch := difference(problem.module, results, problem.work):
            return Answer(error=f"differs from torch, {mismatch}")
        self._blocks = Blocks(
            prepared.call, EventClock() if self._device == "cuda" else time.perf_counter
        )
        self._blocks.run()
        return Answer()

    def _time(self, seconds: float) -> float:
        assert self._blocks is not None
        end = time.perf_counter() + seconds
        times = [self._blocks.run()]
        while time.perf_counter() < end:
            times.append(self._blocks.run())
        # The first block wakes threads and fills caches, which matters little in long calls.
        return median(times[1:] or times)


def _main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently if the parent has ended
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    name, number, device, tf32 = sys.argv[1:]
    threads = int(number)
    torch.set_num_threads(threads)
    set_precision(tf32 == "True")
    server = Server(next(runtime for runtime in RUNTIMES if runtime.name == name), threads, device)
    for line in sys.stdin.buffer:
        answers.write(encode(server.answer(decode(line, Request))) + b"\n")
        answers.flush()


if __name__ == "__main__":
    _main()
