"""The benchmark's report: a Markdown table for each number of threads, and what it amounts to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean

from .cases import Case, Mode
from .timing import Timing

__all__ = ["Row", "Table", "format_seconds", "format_table"]


@dataclass
class Row:
    """A case's timings; ``None`` for a mode that was skipped, which ``notes`` explain."""

    case: Case
    timings: dict[Mode, Timing | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Table:
    """All that was measured with one number of threads."""

    threads: int
    rows: list[Row] = field(default_factory=list)


def format_table(table: Table, modes: Sequence[Mode]) -> str:
    """The table with its title, notes on what was skipped, and a summary line for each mode."""
    rows = [row for row in table.rows if row.timings]
    if not rows:
        return f"{_count(table.threads, 'thread')}: nothing was measured"
    header = ["T", "B", "I", "H"]
    for mode in modes:
        header += [f"{mode}: nn.RNN", "rnn_ext", "ratio", "GFLOP/s"]
    parts = [
        _title(table.threads, rows[0].case),
        _markdown(header, [_cells(row, modes) for row in rows]),
    ]
    notes = [note for row in rows for note in row.notes]
    summaries = [line for mode in modes if (line := _summary(mode, rows))]
    parts += ["\n".join(lines) for lines in (notes, summaries) if lines]
    return "\n\n".join(parts)


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: ``12.3 µs``, ``4.56 ms``, ``7.89 s``."""
    unit, scale = next(
        ((unit, scale) for unit, scale in (("s", 1.0), ("ms", 1e-3)) if seconds >= scale),
        ("µs", 1e-6),
    )
    return f"{_three_digits(seconds / scale)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _title(threads: int, case: Case) -> str:
    return ", ".join(
        [
            str(case.dtype).removeprefix("torch."),
            case.nonlinearity,
            _count(case.num_layers, "layer") + (" bidirectional" if case.bidirectional else ""),
            _count(threads, "thread"),
        ]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _cells(row: Row, modes: Sequence[Mode]) -> list[str]:
    case = row.case
    cells = [
        str(size) for size in (case.seq_len, case.batch_size, case.input_size, case.hidden_size)
    ]
    for mode in modes:
        timing = row.timings.get(mode)
        if timing is None:
            cells += ["skipped" if mode in row.timings else "", "", "", ""]
        else:
            cells += [
                format_seconds(timing.theirs),
                format_seconds(timing.ours),
                f"{timing.ratio:.2f}",
                _three_digits(case.flops(mode) / timing.ours / 1e9),
            ]
    return cells


def _summary(mode: Mode, rows: Sequence[Row]) -> str | None:
    ratios = [(timing.ratio, row.case) for row in rows if (timing := row.timings.get(mode))]
    if not ratios:
        return None
    worst, case = min(ratios, key=lambda pair: pair[0])
    mean = geometric_mean(ratio for ratio, _ in ratios)
    return f"{mode}: ratio {mean:.2f} in geometric mean, {worst:.2f} in the worst cell, {case}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    # A rule of one character would be no Markdown.
    widths = [max(2, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (width - 1) + ":" for width in widths]
    return "\n".join(
        f"| {' | '.join(map(str.rjust, line, widths))} |" for line in (header, rule, *rows)
    )
