"""The part of the report on other runtimes: a table for each mode and number of threads."""

from collections.abc import Sequence
from statistics import median

from rnn_ext.bench.command import seconds_text
from rnn_ext.bench.workload import Mode

from ..report import case_cells, format_place, format_summary, markdown
from ..results import Row, Run, summarize
from .runtimes import OURS, RUNTIMES

__all__ = ["format_peers"]

LEGEND = (
    "runtimes: each in its own process; in brackets its time over that of rnn_ext, above 1 if "
    "rnn_ext is faster; bold: the fastest"
)


def format_peers(run: Run) -> list[str]:
    """Returns the parts of the report; none if no other runtime was requested."""
    tables = [
        part
        for threads in run.threads
        for mode in run.modes
        for part in _table(run.rows_of(threads), mode, format_place(run, threads))
    ]
    if not tables and not run.peers:
        return []
    absent = [
        f"skipped {name}: it is not installed; pip install --group peers"
        for name, version in run.peers.items()
        if version is None
    ]
    present = [f"{name} {version}" for name, version in run.peers.items() if version is not None]
    lines = [*absent, *([", ".join(present)] if present else [])]
    return [*tables, LEGEND, *(["\n".join(lines)] if lines else [])]


def _table(rows: Sequence[Row], mode: Mode, place: str) -> list[str]:
    """Returns a title, the table and a summary; nothing if nothing was measured."""
    rows = [row for row in rows if _seconds(row, mode)]
    if not rows:
        return []
    known = {name for row in rows for name in _seconds(row, mode)}
    names = [runtime.name for runtime in RUNTIMES if runtime.name in known]
    peers = [name for name in names if name != OURS]
    summaries = [summarize(rows, mode, peer=name) for name in peers]
    lines = [format_summary(summary) for summary in summaries if summary]
    title = f"runtimes, {mode}, {rows[0].case.settings}, {place}"
    table = markdown([case_cells(row, rows) | _cells(row, mode, names) for row in rows])
    return [title, table, "\n".join([*lines, _faster(rows, mode, peers)])]


def _seconds(row: Row, mode: Mode) -> dict[str, list[float]]:
    measured = row.measured(mode)
    return measured.peer_seconds if measured else {}


def _cells(row: Row, mode: Mode, names: Sequence[str]) -> dict[str, str]:
    times = {name: median(seconds) for name, seconds in _seconds(row, mode).items()}
    fastest = min(times, key=lambda name: times[name])
    cells = {}
    for name in names:
        cell = "skipped" if name not in times else seconds_text(times[name])
        if name != OURS and (ratio := row.ratio(mode, peer=name)) is not None:
            cell += f" ({ratio:.2f})"
        cells[name] = f"**{cell}**" if name == fastest else cell
    return cells


def _faster(rows: Sequence[Row], mode: Mode, peers: Sequence[str]) -> str:
    """Returns a line that names each cell in which a runtime is faster, the worst first."""
    slower = sorted(
        (ratio, f"{name} at {row.case} ({ratio:.2f})")
        for row in rows
        for name in peers
        if (ratio := row.ratio(mode, peer=name)) is not None and ratio < 1
    )
    return f"{mode}, faster than rnn_ext: {', '.join(text for _, text in slower) or 'none'}"
