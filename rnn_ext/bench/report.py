"""The benchmark's report: Markdown tables for each number of threads, and what they amount to."""

import re
from collections.abc import Callable, Sequence

from .bounds import CallCosts, Limits
from .cases import Case, Mode
from .machine import describe
from .memory import LIBRARIES, Memory
from .results import Row, Run, summarize
from .roofline import Roofline

__all__ = [
    "case_cells",
    "case_header",
    "format_bytes",
    "format_limits",
    "format_place",
    "format_report",
    "format_seconds",
    "format_summary",
    "format_threads",
    "markdown",
]

LEGEND = (
    "ratio: time of nn.RNN over time of rnn_ext, above 1 where rnn_ext is faster; GFLOP/s: "
    "rnn_ext; GEMM: these as a share of the fastest matrix product"
)
BOUND_LEGEND = (
    "; bound: what the least time that this machine allows is mostly spent on, and that time as a "
    "share of rnn_ext's"
)
GPU_LEGEND = (
    "; a step: time of rnn_ext over T; kernels: those of rnn_ext that the call takes, or torch's op"
)
MEMORY_LEGEND = (
    "peak: how far the call raises resident memory, to about 0.5 MiB; saved: what the forward pass "
    "keeps for backward beside parameters, input and hx"
)


def format_report(run: Run) -> str:
    """All tables of ``run``, their legend, and the machine."""
    tables = [part for threads in run.threads for part in _tables(run, threads)]
    legend = LEGEND + (BOUND_LEGEND if run.limits or run.roofline else "")
    legend += GPU_LEGEND if run.roofline else ""
    return "\n\n".join([*_limits(run), *tables, legend, describe(run.machine)])


def format_limits(run: Run) -> str:
    """The limits of the machine, and the machine."""
    return "\n\n".join([*_limits(run), describe(run.machine)])


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: ``456 ns``, ``12.3 µs``, ``4.56 ms``, ``7.89 s``."""
    return _with_unit(seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})


def format_bytes(size: int) -> str:
    """Three digits and a unit: ``4.00 KiB``, ``12.3 MiB``, ``1.50 GiB``."""
    return _with_unit(size, {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10})


def format_threads(threads: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def format_place(run: Run, threads: int) -> str:
    """What the calls ran on: the GPU and its precision, or the number of threads."""
    if not (gpu := run.machine.get("gpu")):
        return format_threads(threads)
    return f"{gpu['name']}, TF32 {'on' if gpu['tf32'] else 'off'}"


def _limits(run: Run) -> list[str]:
    """For each number of threads a list, and a table of what the libraries make of a step."""
    parts = []
    if run.roofline:
        parts.append("\n- ".join(["limits of the GPU", *_roofline_lines(run.roofline)]))
    for threads, limits in run.limits.items():
        title = f"limits of the machine, {format_threads(threads)}"
        parts.append("\n- ".join([title, *_limit_lines(limits)]))
        if limits.products:
            parts.append(_products(limits))
    return parts


def _limit_lines(limits: Limits) -> list[str]:
    levels = [
        f"{level.name}{f' ({format_bytes(level.size)})' if level.size else ''} "
        f"{_three_digits(level.read_rate / 1e9)} GB/s"
        for level in limits.levels
    ]
    waits = [
        f"barrier {format_seconds(limits.barrier_seconds)}",
        f"team called and left {format_seconds(limits.fork_join_seconds)}",
    ]
    return [
        f"matrix product {limits.flop_rate / 1e9:.0f} GFLOP/s",
        f"each thread reads {', '.join(levels)}",
        *([", ".join(waits)] if limits.members > 1 else []),
        *_call_lines(limits),
    ]


def _roofline_lines(roofline: Roofline) -> list[str]:
    return [
        f"matrix product {roofline.flop_rate / 1e9:.0f} GFLOP/s",
        f"copies {roofline.memory_rate / 1e9:.0f} GB/s, read and written",
        *_call_lines(roofline),
    ]


def _call_lines(limits: CallCosts) -> list[str]:
    return [
        f"{cost.nonlinearity}, {cost.mode}: smallest call {format_seconds(cost.call_seconds)}, "
        f"each further step {format_seconds(cost.step_seconds)}"
        for cost in limits.calls
    ]


def _products(limits: Limits) -> str:
    libraries = list(limits.products[0].flop_rates)
    return markdown(
        ["B", "H", *(f"GFLOP/s of a step: {libraries[0]}", *libraries[1:])],
        [
            [str(product.batch_size), str(product.hidden_size)]
            + [_three_digits(rate / 1e9) for rate in product.flop_rates.values()]
            for product in limits.products
        ],
    )


def format_summary(mode: Mode, rows: Sequence[Row], peer: str | None = None) -> str | None:
    """What the ratios to nn.RNN, or ``peer``, amount to; None where there are none."""
    if (found := summarize(rows, mode, peer)) is None:
        return None
    of = f"{mode}, {peer}" if peer else mode
    mean, worst = f"{found.mean:.2f} in geometric mean", f"{found.worst:.2f} in the worst cell"
    return f"{of}: ratio {mean}, {worst}, {found.worst_case}"


def case_header(rows: Sequence[Row]) -> list[str]:
    """Titles of the columns that say which case a line is about."""
    return [*(["name", "settings"] if _are_named(rows) else []), "T", "B", "I", "H"]


def case_cells(case: Case, rows: Sequence[Row]) -> list[str]:
    """What ``case`` has in these columns."""
    sizes = (case.seq_len, case.batch_size, case.input_size, case.hidden_size)
    return [*([case.name, case.settings] if _are_named(rows) else []), *map(str, sizes)]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, aligned to the right."""
    # A rule of one character would be no Markdown.
    widths = [max(2, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * (width - 1) + ":" for width in widths]
    return "\n".join(
        f"| {' | '.join(map(str.rjust, line, widths))} |" for line in (header, rule, *rows)
    )


def _tables(run: Run, threads: int) -> list[str]:
    """The tables of one number of threads, with title, notes and a summary for each mode."""
    rows = run.rows_of(threads)
    if not rows:
        return [f"{format_place(run, threads)}: nothing was measured"]
    modes = run.modes
    notes = [note for row in rows for measured in row.measured.values() if (note := measured.note)]
    summaries = [line for mode in modes if (line := format_summary(mode, rows))]
    parts = [_title(run, threads, rows), _times(run, rows, modes)]
    if memory := _memory(rows, modes):
        parts += [memory, MEMORY_LEGEND]
    return parts + ["\n".join(lines) for lines in (notes, summaries) if lines]


def _title(run: Run, threads: int, rows: Sequence[Row]) -> str:
    name, rate = max(run.gemm[threads].items(), key=lambda pair: pair[1])
    facts = [rows[0].case.dtype_name]
    if len(settings := {row.case.settings for row in rows}) == 1:
        facts += settings
    facts += [format_place(run, threads), f"matrix product {rate / 1e9:.0f} GFLOP/s ({name})"]
    return ", ".join(facts)


def _times(run: Run, rows: Sequence[Row], modes: Sequence[Mode]) -> str:
    header = case_header(rows)
    for mode in modes:
        header += [f"{mode}: nn.RNN", "rnn_ext", "ratio", "GFLOP/s", "GEMM"]
        header += _further_titles(run)
    return markdown(
        header,
        [
            case_cells(row.case, rows) + [c for mode in modes for c in _time_cells(run, row, mode)]
            for row in rows
        ],
    )


def _time_cells(run: Run, row: Row, mode: Mode) -> list[str]:
    timing, rate, share = row.timing(mode), row.flop_rate(mode), run.gemm_share(row, mode)
    if timing is None or rate is None or share is None:
        empty = 4 + len(_further_titles(run))
        return ["skipped" if mode in row.measured else "", *[""] * empty]
    return [
        format_seconds(timing.theirs.median),
        format_seconds(timing.ours.median),
        f"{timing.ratio.median:.2f}",
        _three_digits(rate / 1e9),
        f"{share:.0%}",
        *_bound_cell(run, row, mode),
        *(_gpu_cells(row, mode) if run.roofline else []),
    ]


def _further_titles(run: Run) -> list[str]:
    if run.roofline:
        return ["bound", "a step", "kernels"]
    return ["bound"] if run.limits else []


def _bound_cell(run: Run, row: Row, mode: Mode) -> list[str]:
    bound, share = run.bound(row, mode), run.bound_share(row, mode)
    return [] if bound is None else [f"{bound.limit} {share:.0%}"]


def _gpu_cells(row: Row, mode: Mode) -> list[str]:
    measured = row.measured[mode]
    assert measured.timing is not None
    kernels = re.match(r"rnn_ext CUDA kernels, (\w+)", measured.route)
    step = format_seconds(measured.timing.ours.median / row.case.seq_len)
    return [step, kernels[1] if kernels else "torch"]


def _memory(rows: Sequence[Row], modes: Sequence[Mode]) -> str | None:
    if not any(measured.memory for row in rows for measured in row.measured.values()):
        return None
    columns: list[tuple[Mode, str, Callable[[Memory], int | None]]] = [
        (mode, f"{mode}: peak", lambda memory: memory.peak) for mode in modes
    ]
    if "training" in modes:
        columns.append(("training", "saved", lambda memory: memory.saved))
    header = case_header(rows)
    for _, title, _ in columns:
        header += [f"{title} nn.RNN", "rnn_ext"]
    return markdown(
        header,
        [
            case_cells(row.case, rows)
            + [c for mode, _, size in columns for c in _memory_cells(row, mode, size)]
            for row in rows
        ],
    )


def _memory_cells(row: Row, mode: Mode, size: Callable[[Memory], int | None]) -> list[str]:
    found = row.measured[mode].memory if mode in row.measured else {}
    sizes = [size(found[library]) if library in found else None for library in LIBRARIES]
    return ["" if n is None else format_bytes(n) for n in sizes]


def _are_named(rows: Sequence[Row]) -> bool:
    return any(row.case.name for row in rows)


def _with_unit(value: float, units: dict[str, float]) -> str:
    """In the first unit that ``value`` reaches, or the last."""
    unit = next((unit for unit, scale in units.items() if value >= scale), list(units)[-1])
    return f"{_three_digits(value / units[unit])} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
