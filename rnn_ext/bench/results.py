"""What a run of the benchmark found, and its JSON; ``bench/README.md`` documents the keys."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from ..cli.errors import UserError
from .bounds import Bound, Limits, bound
from .cases import MODES, Case, Mode
from .memory import Library, Memory
from .peers.runtimes import OURS
from .roofline import Roofline
from .timing import Spread, Timing

__all__ = ["Measured", "Row", "Run", "Summary", "read", "summarize", "write"]

FORMAT = "rnn-ext bench 1"


@dataclass
class Measured:
    """One case in one mode; ``note`` says why a number is missing.

    ``peers`` has seconds per call in each round, by runtime: ``rnn_ext`` and those beside it.
    ``route`` is what ``rnn_ext.explain`` says of a call on a GPU, empty on the CPU.
    """

    timing: Timing | None = None
    memory: dict[Library, Memory] = field(default_factory=dict)
    note: str = ""
    peers: dict[str, list[float]] = field(default_factory=dict)
    route: str = ""


@dataclass
class Row:
    """A case with one number of threads, in every mode measured so far."""

    case: Case
    threads: int
    measured: dict[Mode, Measured] = field(default_factory=dict)

    def timing(self, mode: Mode) -> Timing | None:
        """None where the mode was skipped or not reached."""
        found = self.measured.get(mode)
        return found.timing if found else None

    def ratio(self, mode: Mode, peer: str | None = None) -> float | None:
        """How many times faster ours is, at the median: than nn.RNN in turns, or than ``peer``."""
        if peer is None:
            timing = self.timing(mode)
            return timing.ratio.median if timing else None
        peers = self.measured[mode].peers if mode in self.measured else {}
        if not {peer, OURS} <= set(peers):
            return None
        return median(theirs / ours for theirs, ours in zip(peers[peer], peers[OURS], strict=True))

    def flop_rate(self, mode: Mode) -> float | None:
        """FLOP/s of ours, at the median."""
        timing = self.timing(mode)
        return self.case.flops(mode) / timing.ours.median if timing else None


@dataclass
class Run:
    """Everything about one run; ``gemm`` has FLOP/s by threads and library.

    ``limits`` are those of each number of threads and of one; none in a run of an older version, or
    on a GPU, where ``roofline`` has its limits and ``threads`` are those that called it.
    ``peers`` has the versions of the other runtimes, None for those that are not installed.
    """

    command: str
    started: str
    machine: dict[str, Any]
    seconds_per_cell: float
    complete: bool = False
    gemm: dict[int, dict[str, float]] = field(default_factory=dict)
    limits: dict[int, Limits] = field(default_factory=dict)
    roofline: Roofline | None = None
    rows: list[Row] = field(default_factory=list)
    peers: dict[str, str | None] = field(default_factory=dict)

    @property
    def threads(self) -> list[int]:
        """The numbers of threads, in the order of the run."""
        return list(self.gemm)

    @property
    def modes(self) -> list[Mode]:
        """The modes that something is known of."""
        return [mode for mode in MODES if any(mode in row.measured for row in self.rows)]

    def rows_of(self, threads: int) -> list[Row]:
        """The rows of that number of threads of which something is known."""
        return [row for row in self.rows if row.threads == threads and row.measured]

    def gemm_share(self, row: Row, mode: Mode) -> float | None:
        """Ours as a share of the machine's fastest matrix product."""
        rate = row.flop_rate(mode)
        return rate / max(self.gemm[row.threads].values()) if rate else None

    def bound(self, row: Row, mode: Mode) -> Bound | None:
        """The least time that the machine allows; None where its limits were not measured."""
        if self.roofline:
            return self.roofline.bound(row.case, mode)
        if not self.limits:
            return None
        return bound(row.case, mode, self.limits[1], self.limits[row.threads])

    def bound_share(self, row: Row, mode: Mode) -> float | None:
        """That as a share of what ours takes, at the median."""
        found, timing = self.bound(row, mode), row.timing(mode)
        return found.seconds / timing.ours.median if found and timing else None


@dataclass(frozen=True)
class Summary:
    """What the ratios of some rows amount to."""

    mean: float
    worst: float
    worst_case: Case


def summarize(rows: Iterable[Row], mode: Mode, peer: str | None = None) -> Summary | None:
    """Against nn.RNN, or ``peer``; None where no row has a timing."""
    ratios = [(ratio, row.case) for row in rows if (ratio := row.ratio(mode, peer)) is not None]
    if not ratios:
        return None
    worst, case = min(ratios, key=lambda pair: pair[0])
    return Summary(geometric_mean(ratio for ratio, _ in ratios), worst, case)


def write(run: Run, path: Path) -> None:
    """Write ``run``; a reader sees it or what was there before, also after a crash."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(_to_json(run), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> Run:
    """The inverse of ``write``; ``UserError`` where the file is something else."""
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a result of this version's rnn-ext bench --json; name one that is"
        ) from None


def _to_json(run: Run) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "command": run.command,
        "started": run.started,
        "complete": run.complete,
        "machine": run.machine,
        "seconds_per_cell": run.seconds_per_cell,
        "gemm": [
            {"threads": threads, "gflops": {name: rate / 1e9 for name, rate in rates.items()}}
            for threads, rates in run.gemm.items()
        ],
        "limits": [
            {"threads": threads, **limits.to_dict()} for threads, limits in run.limits.items()
        ],
        "roofline": run.roofline.to_dict() if run.roofline else None,
        "summary": [
            {
                "threads": threads,
                "mode": mode,
                "geometric_mean": summary.mean,
                "worst": summary.worst,
                "worst_cell": str(summary.worst_case),
            }
            for threads in run.threads
            for mode in run.modes
            if (summary := summarize(run.rows_of(threads), mode))
        ],
        "peers": run.peers,
        "cells": [
            {
                "case": row.case.to_dict(),
                "threads": row.threads,
                **{mode: _measured_to_json(run, row, mode) for mode in row.measured},
            }
            for row in run.rows
        ],
    }


def _measured_to_json(run: Run, row: Row, mode: Mode) -> dict[str, Any]:
    measured = row.measured[mode]
    texts = {"note": measured.note, "route": measured.route}
    values: dict[str, Any] = {name: text for name, text in texts.items() if text}
    if timing := measured.timing:
        values |= {
            "rounds": timing.rounds,
            "nn_rnn_seconds": asdict(timing.theirs),
            "rnn_ext_seconds": asdict(timing.ours),
            "ratio": asdict(timing.ratio),
            "gflops": row.case.flops(mode) / timing.ours.median / 1e9,
            "gemm_share": run.gemm_share(row, mode),
        }
        if found := run.bound(row, mode):
            values |= {"bound": asdict(found), "bound_share": run.bound_share(row, mode)}
    if measured.memory:
        values["memory_bytes"] = {name: asdict(memory) for name, memory in measured.memory.items()}
    if measured.peers:
        values["peer_seconds"] = measured.peers
    return values


def _from_json(values: dict[str, Any]) -> Run:
    if values["format"] != FORMAT:
        raise ValueError(values["format"])
    return Run(
        command=values["command"],
        started=values["started"],
        machine=values["machine"],
        seconds_per_cell=values["seconds_per_cell"],
        complete=values["complete"],
        gemm={
            entry["threads"]: {name: rate * 1e9 for name, rate in entry["gflops"].items()}
            for entry in values["gemm"]
        },
        limits={entry["threads"]: Limits.from_dict(entry) for entry in values.get("limits", [])},
        roofline=Roofline.from_dict(roofline) if (roofline := values.get("roofline")) else None,
        rows=[
            Row(
                Case.from_dict(cell["case"]),
                cell["threads"],
                {mode: _measured_from_json(cell[mode]) for mode in MODES if mode in cell},
            )
            for cell in values["cells"]
        ],
        peers=values.get("peers", {}),
    )


def _measured_from_json(values: dict[str, Any]) -> Measured:
    timing = None
    if "rounds" in values:
        timing = Timing(
            values["rounds"],
            *(Spread(**values[key]) for key in ("nn_rnn_seconds", "rnn_ext_seconds", "ratio")),
        )
    memory = {name: Memory(**sizes) for name, sizes in values.get("memory_bytes", {}).items()}
    return Measured(
        *(timing, memory, values.get("note", ""), values.get("peer_seconds", {})),
        route=values.get("route", ""),
    )
