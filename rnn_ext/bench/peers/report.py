"""The report's part about other runtimes: a table for each mode and number of threads."""

from collections.abc import Sequence
from statistics import median

from ..cases import Mode
from ..report import (
    case_cells,
    case_header,
    format_place,
    format_seconds,
    format_summary,
    markdown,
)
from ..results import Row, Run
from .runtimes import OURS, RUNTIMES

__all__ = ["format_peers"]

LEGEND = (
    "runtimes: each in a process of its own; in brackets its time over that of rnn_ext, above 1 "
    "where rnn_ext is faster; bold: the fastest"
)


def format_peers(run: Run) -> list[str]:
    """The parts of the report; none where no other runtime was asked for."""
    tables = [
        part
        for threads in run.threads
        for mode in run.modes
        for part in _table(run.rows_of(threads), mode, format_place(run, threads))
    ]
    if not tables and not run.peers:
        return []
    absent = [
        f"skipped {name}: it is not installed; pip install 'rnn_ext[peers]'"
        for name, version in run.peers.items()
        if version is None
    ]
    present = [f"{name} {version}" for name, version in run.peers.items() if version is not None]
    lines = [*absent, *([", ".join(present)] if present else [])]
    return [*tables, LEGEND, *(["\n".join(lines)] if lines else [])]


def _table(rows: Sequence[Row], mode: Mode, place: str) -> list[str]:
    """A title, the table, and what its ratios amount to; nothing where nothing was measured."""
    rows = [row for row in rows if mode in row.measured and row.measured[mode].peers]
    if not rows:
        return []
    known = set().union(*(row.measured[mode].peers for row in rows))
    names = [runtime.name for runtime in RUNTIMES if runtime.name in known]
    table = markdown(
        [*case_header(rows), *names],
        [[*case_cells(row.case, rows), *_times(row, mode, names)] for row in rows],
    )
    peers = [name for name in names if name != OURS]
    lines = [line for name in peers if (line := format_summary(mode, rows, name))]
    title = f"runtimes, {mode}, {rows[0].case.settings}, {place}"
    return [title, table, "\n".join([*lines, _faster(rows, mode, peers)])]


def _times(row: Row, mode: Mode, names: Sequence[str]) -> list[str]:
    times = {name: median(seconds) for name, seconds in row.measured[mode].peers.items()}
    fastest = min(times, key=lambda name: times[name])
    cells = []
    for name in names:
        cell = "skipped" if name not in times else format_seconds(times[name])
        if name != OURS and (ratio := row.ratio(mode, name)) is not None:
            cell += f" ({ratio:.2f})"
        cells.append(f"**{cell}**" if name == fastest else cell)
    return cells


def _faster(rows: Sequence[Row], mode: Mode, peers: Sequence[str]) -> str:
    """Names every cell in which a runtime is faster than ours, the worst first."""
    found = sorted(
        (ratio, f"{name} at {row.case} ({ratio:.2f})")
        for row in rows
        for name in peers
        if (ratio := row.ratio(mode, name)) is not None and ratio < 1
    )
    return f"{mode}, faster than rnn_ext: {', '.join(text for _, text in found) or 'none'}"
