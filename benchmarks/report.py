"""A run as Markdown tables, and their summary."""

from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from rnn_ext.bench.command import seconds_text
from rnn_ext.bench.timing import Timing, scatter_warning
from rnn_ext.bench.workload import Mode

from .bounds import CallCosts, Limits
from .machine import describe
from .memory import LIBRARIES, Memory
from .results import REGIMES, Row, Run, Summary, summaries

__all__ = [
    "case_cells",
    "format_limits",
    "format_place",
    "format_report",
    "format_summary",
    "markdown",
]

LEGEND = (
    "hot: calls in a loop; cold: each call after other work, as in a program. ratio: how many "
    "times as fast as the baseline rnn_ext is. GFLOP/s: of rnn_ext, hot; GEMM: the same as a share "
    "of the fastest matrix product; bound: the limit that dominates the least time that this "
    "machine allows, and that time as a share of rnn_ext's"
)
GPU_LEGEND = (
    "; a step: time of rnn_ext over T; kernels: the kernels of rnn_ext that run the call, or "
    "torch's op"
)
MEMORY_LEGEND = (
    "peak: how far the call raises resident memory, to about 0.5 MiB; saved: what the forward pass "
    "keeps for backward beside parameters, input and hx"
)


def format_report(run: Run) -> str:
    """Returns all tables of ``run``, a warning where they scatter, a legend, and the machine."""
    tables = [part for threads in run.threads for part in _tables(run, threads)]
    timings = [t for row in run.cells for mode in run.modes if (t := row.timing(mode))]
    warning = scatter_warning(timings)
    legend = LEGEND + (GPU_LEGEND if run.roofline else "")
    end = [*([warning] if warning else []), *([legend] if timings else []), describe(run.machine)]
    return "\n\n".join([*_limits(run), *tables, *_start(run), *end])


def format_limits(run: Run) -> str:
    """Returns the limits of the machine, and the machine."""
    return "\n\n".join([*_limits(run), describe(run.machine)])


def format_place(run: Run, threads: int) -> str:
    """Returns what the calls ran on: the GPU and its precision, or the number of threads."""
    if not (gpu := run.machine.get("gpu")):
        return f"{threads} thread{'s' * (threads > 1)}"
    return f"{gpu['name']}, TF32 {'on' if gpu['tf32'] else 'off'}"


def format_summary(summary: Summary) -> str:
    """Returns geometric mean and worst cell in one line."""
    return (
        f"{summary.mode} {summary.regime}, against {summary.baseline}: "
        f"{summary.geometric_mean:.2f} times as fast in geometric mean, "
        f"{summary.worst:.2f} at worst, {summary.worst_cell}"
    )


def case_cells(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """Returns the columns that say which case a line is about."""
    case = row.case
    sizes = {"T": case.seq_len, "B": case.batch_size, "I": case.input_size, "H": case.hidden_size}
    cells = {key: str(size) for key, size in sizes.items()}
    if len({row.baseline for row in rows}) > 1:
        cells = {"baseline": row.baseline, **cells}
    if any(row.case.title for row in rows):
        cells = {"name": case.title, "settings": case.settings, **cells}
    return cells


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Returns a table, aligned to the right; its columns are those of the longest row."""
    columns = max(rows, key=len)
    cells = [[row.get(column, "") for column in columns] for row in rows]
    options: dict[str, Any] = {"tablefmt": "pipe", "disable_numparse": True, "stralign": "right"}
    return str(tabulate(cells, list(columns), colalign=["right"] * len(columns), **options))


def _start(run: Run) -> list[str]:
    """A line on the time before the first result, where it was measured."""
    seconds = {name: seconds_text(value) for name, value in run.start_seconds.items()}
    if not seconds:
        return []
    own = seconds.pop("import")
    calls = ", ".join(f"{name} {value}" for name, value in seconds.items())
    return [f"import of rnn_ext after torch's: {own}; first call of a cell: {calls}"]


def _limits(run: Run) -> list[str]:
    parts = []
    if roofline := run.roofline:
        lines = [
            f"matrix product {roofline.flop_rate / 1e9:.0f} GFLOP/s",
            f"copies {roofline.memory_rate / 1e9:.0f} GB/s, read and written",
            *_call_lines(roofline),
        ]
        parts.append("\n- ".join(["limits of the GPU", *lines]))
    for threads, limits in run.limits.items():
        title = f"limits of the machine, {threads} thread{'s' * (threads > 1)}"
        parts.append("\n- ".join([title, *_limit_lines(limits)]))
        if limits.products:
            parts.append("GFLOP/s of a step:")
            parts.append(
                markdown(
                    [
                        {"B": str(product.batch_size), "H": str(product.hidden_size)}
                        | {name: f"{rate / 1e9:.3g}" for name, rate in product.flop_rates.items()}
                        for product in limits.products
                    ]
                )
            )
    return parts


def _limit_lines(limits: Limits) -> list[str]:
    levels = [
        f"{level.name}{f' ({_bytes(level.size)})' if level.size else ''} "
        f"{level.read_rate / 1e9:.3g} GB/s"
        for level in limits.levels
    ]
    waits = (
        f"barrier {seconds_text(limits.barrier_seconds)}, "
        f"team called and left {seconds_text(limits.fork_join_seconds)}"
    )
    return [
        f"matrix product {limits.flop_rate / 1e9:.0f} GFLOP/s",
        f"each thread reads {', '.join(levels)}",
        *([waits] if limits.members > 1 else []),
        *_call_lines(limits),
    ]


def _call_lines(limits: CallCosts) -> list[str]:
    return [
        f"{cost.nonlinearity}, {cost.mode}: smallest call {seconds_text(cost.call_seconds)}, "
        f"each further step {seconds_text(cost.step_seconds)}"
        for cost in limits.calls
    ]


def _tables(run: Run, threads: int) -> list[str]:
    """The tables of one number of threads, with notes and a summary."""
    rows = run.rows_of(threads)
    timed = {mode: [row for row in rows if row.timing(mode)] for mode in run.modes}
    parts = []
    for mode, of_mode in timed.items():
        if of_mode:
            parts += [_title(run, threads, of_mode, mode), _times(run, of_mode, mode)]
    if memory := _memory(rows, run.modes):
        parts += [memory, MEMORY_LEGEND]
    measured = [found for row in rows for mode in run.modes if (found := row.measured(mode))]
    notes = [found.note for found in measured if found.note]
    summary = [format_summary(found) for found in summaries(rows)]
    return parts + ["\n".join(lines) for lines in (notes, summary) if lines]


def _title(run: Run, threads: int, rows: Sequence[Row], mode: Mode) -> str:
    facts = [mode, rows[0].case.dtype_name]
    if len(settings := {row.case.settings for row in rows}) == 1:
        facts += settings
    facts.append(format_place(run, threads))
    if rates := run.gemm.get(threads):
        name, rate = max(rates.items(), key=lambda pair: pair[1])
        facts.append(f"matrix product {rate / 1e9:.0f} GFLOP/s ({name})")
    return ", ".join(facts)


def _times(run: Run, rows: Sequence[Row], mode: Mode) -> str:
    return markdown([case_cells(row, rows) | _time_cells(run, row, mode) for row in rows])


def _time_cells(run: Run, row: Row, mode: Mode) -> dict[str, str]:
    cells: dict[str, str] = {}
    for regime in REGIMES:
        if timing := row.timing(mode, regime):
            cells |= _regime_cells(regime, timing)
        elif not run.roofline:
            cells |= dict.fromkeys(
                (f"{regime}: baseline", f"{regime}: rnn_ext", f"{regime}: ratio"), ""
            )
    rate, share, bound = row.flop_rate(mode), run.gemm_share(row, mode), run.bound(row, mode)
    if rate and share:
        cells |= {"GFLOP/s": f"{rate / 1e9:.3g}", "GEMM": f"{share:.0%}"}
    if bound:
        cells["bound"] = f"{bound.limit} {run.bound_share(row, mode):.0%}"
    if run.roofline and (timing := row.timing(mode)):
        cells["a step"] = seconds_text(timing.rnn_ext_seconds.median / row.case.seq_len)
        measured = row.measured(mode)
        cells["kernels"] = measured.kernels if measured else ""
    return cells


def _regime_cells(regime: str, timing: Timing) -> dict[str, str]:
    return {
        f"{regime}: baseline": seconds_text(timing.baseline_seconds.median),
        f"{regime}: rnn_ext": seconds_text(timing.rnn_ext_seconds.median),
        f"{regime}: ratio": f"{timing.ratio.median:.2f}",
    }


def _memory(rows: Sequence[Row], modes: Sequence[Mode]) -> str:
    """A table of peaks and of what is saved; "" where no memory was measured."""
    if not any(found.memory_bytes for row in rows for m in modes if (found := row.measured(m))):
        return ""
    columns: list[tuple[Mode, str, Callable[[Memory], int | None]]] = [
        (mode, f"{mode}: peak", lambda memory: memory.peak) for mode in modes
    ]
    if "training" in modes:
        columns.append(("training", "saved", lambda memory: memory.saved))
    lines = []
    for row in rows:
        cells = case_cells(row, rows)
        for mode, title, size in columns:
            measured = row.measured(mode)
            for library in LIBRARIES:
                memory = measured.memory_bytes.get(library) if measured else None
                bytes_ = size(memory) if memory else None
                cells[f"{title} {library}"] = "" if bytes_ is None else _bytes(bytes_)
        lines.append(cells)
    return markdown(lines)


def _bytes(size: int) -> str:
    units = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10}
    unit = next((unit for unit, scale in units.items() if size >= scale), "KiB")
    return f"{size / units[unit]:.3g} {unit}"
