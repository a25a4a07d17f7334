"""The results of a run, and their JSON; ``README.md`` documents the keys."""

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, Literal

import msgspec

from rnn_ext.bench.timing import Timing
from rnn_ext.bench.workload import MODES, Mode

from .bounds import Bound, Limits, bound
from .cases import Case
from .coding import decode, encode
from .memory import Library, Memory
from .peers.runtimes import OURS
from .roofline import Roofline

__all__ = [
    "REGIMES",
    "Measured",
    "Regime",
    "Row",
    "Run",
    "Summary",
    "read",
    "summaries",
    "summarize",
    "write",
]

Regime = Literal["hot", "cold"]
REGIMES: tuple[Regime, ...] = ("hot", "cold")


class Measured(msgspec.Struct, omit_defaults=True):
    """One case in one mode; ``note`` says why a number is missing.

    ``peer_seconds`` are seconds per call in each round, by runtime. ``kernels`` are those that a
    call on a GPU takes.
    """

    hot: Timing | None = None
    cold: Timing | None = None
    memory_bytes: dict[Library, Memory] = {}
    peer_seconds: dict[str, list[float]] = {}
    kernels: str = ""
    note: str = ""


class Row(msgspec.Struct, omit_defaults=True):
    """A case with one number of threads, against ``baseline``, in every mode measured so far."""

    case: Case
    threads: int
    baseline: str = "nn.RNN"
    forward: Measured | None = None
    training: Measured | None = None

    def measured(self, mode: Mode) -> Measured | None:
        """None where the mode was not reached."""
        return self.forward if mode == "forward" else self.training

    def timing(self, mode: Mode, regime: Regime = "hot") -> Timing | None:
        """None where it was skipped or not reached."""
        found = self.measured(mode)
        return getattr(found, regime) if found else None

    def ratio(self, mode: Mode, regime: Regime = "hot", peer: str = "") -> float | None:
        """How many times as fast as the baseline ours is, at the median; or as ``peer``."""
        if not peer:
            timing = self.timing(mode, regime)
            return timing.ratio.median if timing else None
        found = self.measured(mode)
        peers = found.peer_seconds if found else {}
        if not {peer, OURS} <= set(peers):
            return None
        return median(theirs / ours for theirs, ours in zip(peers[peer], peers[OURS], strict=True))

    def flop_rate(self, mode: Mode) -> float | None:
        """FLOP/s of ours, hot, at the median."""
        timing = self.timing(mode)
        return self.case.flops(mode) / timing.rnn_ext_seconds.median if timing else None


class Summary(msgspec.Struct):
    """The geometric mean and the worst of the ratios of several rows."""

    threads: int
    baseline: str
    mode: Mode
    regime: Regime
    geometric_mean: float
    worst: float
    worst_cell: str


class Run(msgspec.Struct):
    """Everything about one run.

    ``gemm`` has FLOP/s by threads and library. ``limits`` are those of each number of threads and
    of one; on a GPU there is a ``roofline`` instead. ``peers`` are the versions of the other
    runtimes, None for those that are not installed. ``start_seconds``: ``start.measure_start``.
    """

    command: str
    started: str
    machine: dict[str, Any]
    seconds_per_cell: float
    complete: bool = False
    gemm: dict[int, dict[str, float]] = {}
    limits: dict[int, Limits] = {}
    roofline: Roofline | None = None
    peers: dict[str, str | None] = {}
    start_seconds: dict[str, float] = {}
    summary: list[Summary] = []
    cells: list[Row] = []
    format: Literal["rnn_ext benchmarks 2"] = "rnn_ext benchmarks 2"

    @property
    def threads(self) -> list[int]:
        """The numbers of threads, in the order of the run."""
        return list(dict.fromkeys(row.threads for row in self.cells))

    @property
    def modes(self) -> list[Mode]:
        """The modes that something is known of."""
        return [mode for mode in MODES if any(row.measured(mode) for row in self.cells)]

    def rows_of(self, threads: int) -> list[Row]:
        """The rows of that number of threads of which something is known."""
        rows = [row for row in self.cells if row.threads == threads]
        return [row for row in rows if any(row.measured(mode) for mode in MODES)]

    def gemm_share(self, row: Row, mode: Mode) -> float | None:
        """Ours as a share of the machine's fastest matrix product."""
        rate, rates = row.flop_rate(mode), self.gemm.get(row.threads)
        return rate / max(rates.values()) if rate and rates else None

    def bound(self, row: Row, mode: Mode) -> Bound | None:
        """The least time that the machine allows; None where its limits were not measured."""
        if self.roofline:
            return self.roofline.bound(row.case, mode)
        if not self.limits:
            return None
        return bound(row.case, mode, self.limits[1], self.limits[row.threads])

    def bound_share(self, row: Row, mode: Mode) -> float | None:
        """That as a share of what ours takes, hot, at the median."""
        found, timing = self.bound(row, mode), row.timing(mode)
        return found.seconds / timing.rnn_ext_seconds.median if found and timing else None


def summarize(
    rows: Iterable[Row], mode: Mode, regime: Regime = "hot", peer: str = ""
) -> Summary | None:
    """Against the rows' baseline, or ``peer``; None where nothing was timed."""
    ratios = [(found, row) for row in rows if (found := row.ratio(mode, regime, peer)) is not None]
    if not ratios:
        return None
    worst, row = min(ratios, key=lambda pair: pair[0])
    mean = geometric_mean(ratio for ratio, _ in ratios)
    baseline = peer or row.baseline
    return Summary(row.threads, baseline, mode, regime, mean, worst, str(row.case))


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Returns a summary for each baseline, mode and regime."""
    rows = list(rows)
    return [
        summary
        for baseline in dict.fromkeys(row.baseline for row in rows)
        for mode in MODES
        for regime in REGIMES
        if (summary := summarize([r for r in rows if r.baseline == baseline], mode, regime))
    ]


def write(run: Run, path: Path) -> None:
    """Writes ``run``. Also after a crash, the file has it, or what was there before."""
    run.summary = [found for threads in run.threads for found in summaries(run.rows_of(threads))]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(msgspec.json.format(encode(run), indent=1) + b"\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Run:
    """The inverse of ``write``; ``msgspec.MsgspecError`` where the file is something else."""
    run: Run = decode(path.read_bytes(), Run)
    return run
