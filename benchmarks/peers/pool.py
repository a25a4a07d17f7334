"""The workers of all runtimes that are installed, and the rounds in which they are timed."""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

from rnn_ext.bench.timing import MIN_ROUNDS
from rnn_ext.bench.workload import Mode

from ..cases import Case
from ..coding import decode, encode
from . import worker
from .runtimes import RUNTIMES, Runtime

__all__ = ["LIMIT_SECONDS", "PeerError", "Pool", "Worker", "versions"]

# For one answer: at most an import, a compilation and two calls.
LIMIT_SECONDS = 120.0

# ONNX Runtime's threads spin for 40 ms after a call.
PAUSE_SECONDS = 0.1

BLOCK_SECONDS = 0.1


class PeerError(Exception):
    """A runtime gave no answer; the message says why."""


def versions(device: str = "cpu") -> dict[str, str | None]:
    """Returns the versions of the runtimes of ``device`` that have packages; None if missing."""
    with_packages = (r for r in RUNTIMES if r.packages and device in r.devices)
    return {runtime.name: runtime.version() for runtime in with_packages}


class Worker:
    """The process of one runtime. The first request starts it, and the next one after it ended."""

    def __init__(
        self, runtime: Runtime, threads: int, device: str = "cpu", *, tf32: bool = False
    ) -> None:
        self.runtime = runtime
        self.settings = [str(threads), device, str(tf32)]
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: worker.Request) -> worker.Answer:
        """Returns the answer; raises ``PeerError`` if none comes within ``LIMIT_SECONDS``."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, self.runtime.name, *self.settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # so that close() also ends a compiler that it started
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it ended: there is no answer
            process.stdin.write(encode(request) + b"\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], LIMIT_SECONDS)[0]:
            self.close()
            raise PeerError(f"took longer than {LIMIT_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            raise PeerError(f"its process ended with code {code}")
        answer: worker.Answer = decode(line, worker.Answer)
        if answer.error:
            raise PeerError(answer.error)
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            with suppress(OSError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


class Pool:
    """A worker for each runtime of a device; leaving its context ends them."""

    def __init__(self, threads: int, device: str = "cpu", *, tf32: bool = False) -> None:
        installed = (r for r in RUNTIMES if not r.packages or r.version() is not None)
        self.workers = [
            Worker(runtime, threads, device, tf32=tf32)
            for runtime in installed
            if device in runtime.devices
        ]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.workers:
            one.close()

    def __len__(self) -> int:
        return len(self.workers)

    def measure(
        self, case: Case, mode: Mode, seconds: float
    ) -> tuple[dict[str, list[float]], list[str]]:
        """Returns each runtime's seconds per call in each round, and why others are missing.

        All are compared with torch's module before any is timed. A round has a block of calls of
        each runtime, after a pause in which the threads of the previous one stop spinning. Rounds
        continue until each runtime was timed for ``seconds``; there are at least ``MIN_ROUNDS``.
        """
        workers = [one for one in self.workers if mode in one.runtime.modes]
        notes = []

        def ask_each(request: worker.Request, pause: float) -> dict[str, float]:
            answers = {}
            for one in list(workers):
                time.sleep(pause)
                try:
                    answers[one.runtime.name] = one.ask(request).seconds
                except PeerError as error:
                    notes.append(f"skipped {one.runtime.name} at {case} ({mode}): {error}")
                    workers.remove(one)
            return answers

        ask_each(worker.Request(case, mode), 0.0)
        rounds: list[dict[str, float]] = []
        with_pauses = seconds * (1 + PAUSE_SECONDS / BLOCK_SECONDS)
        end = time.perf_counter() + with_pauses * len(workers)
        while len(rounds) < MIN_ROUNDS or time.perf_counter() < end:
            rounds.append(ask_each(worker.Request(seconds=BLOCK_SECONDS), PAUSE_SECONDS))
        names = [one.runtime.name for one in workers]
        return {name: [answers[name] for answers in rounds] for name in names}, notes
