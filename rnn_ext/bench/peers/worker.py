"""The process of one runtime: prepares a case when asked to, then times blocks of calls of it.

``python -m rnn_ext.bench.peers.worker NAME THREADS DEVICE TF32`` reads requests from stdin, one
JSON object a line, and answers each with one: ``{"case": …, "mode": …}`` prepares and compares the
results with ``nn.RNN``'s, ``{"seconds": …}`` times. An answer with ``error`` says why there is no
other.
"""

import json
import os
import signal
import sys
import time
from statistics import median
from typing import Any

import torch

from ..cases import Case, Mode
from ..gpu import set_precision
from ..measure import clock_of, difference
from ..timing import Blocks
from .runtimes import RUNTIMES, Problem, Runtime

__all__ = ["Desk"]


class Desk:
    """Answers requests for one runtime."""

    def __init__(self, runtime: Runtime, threads: int, device: str = "cpu") -> None:
        self._runtime = runtime
        self._threads = threads
        self._device = device
        self._mode: Mode = "forward"
        # The input among it, which native runtimes read in place without holding it.
        self._problem: Problem | None = None
        self._blocks: Blocks | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the runtime raises becomes an ``error``: its type and first line."""
        try:
            if "case" in request:
                self._problem = self._blocks = None  # frees what the case before held
                self._mode = request["mode"]
            with torch.set_grad_enabled(self._mode == "training"):
                if "case" in request:
                    return self._prepare(Case.from_dict(request["case"]))
                return {"seconds": self._time(request["seconds"])}
        except Exception as error:
            line, *_ = str(error).splitlines() or [""]
            return {"error": f"{type(error).__name__}: {line}"}

    def _prepare(self, case: Case) -> dict[str, Any]:
        self._problem = problem = Problem.draw(case, self._mode, self._threads, self._device)
        prepared = self._runtime.load()(problem)
        results = prepared.results()
        if found := difference(case, self._mode, problem.work, problem.module, results):
            return {"error": f"differs from nn.RNN, {found}"}
        self._blocks = Blocks(prepared.call, clock_of(self._device))
        self._blocks.run()
        return {}

    def _time(self, seconds: float) -> float:
        assert self._blocks is not None
        end = time.perf_counter() + seconds
        times = [self._blocks.run()]
        while time.perf_counter() < end:
            times.append(self._blocks.run())
        # The first one woke threads and filled caches; for a long call that is little.
        return median(times[1:] or times)


def _main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever asked has gone: end in silence
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, number, device, tf32 = sys.argv[1:]
    threads = int(number)
    torch.set_num_threads(threads)
    set_precision(tf32 == "True")
    desk = Desk(next(runtime for runtime in RUNTIMES if runtime.name == name), threads, device)
    for line in sys.stdin:
        print(json.dumps(desk.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _main()
