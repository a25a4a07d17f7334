"""Plots the ratios of a run: as heat maps over the grid, or as bars for named cases."""

from collections.abc import Sequence
from pathlib import Path

import pandas
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from rnn_ext.bench.workload import Mode

from .machine import describe
from .report import format_place
from .results import Row, Run, summarize

__all__ = ["draw", "save"]

# At this many pixels to the inch a picture is twice as wide as a README's column of 800.
DPI = 160
WIDTH = 10.0

# Factors of two; orange for losses, which color-blind readers can tell from blue.
EDGES = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
LOSSES = ("#b35806", "#f1a340")
GAINS = ("#dbe9f6", "#b0d2e8", "#75b3d8", "#3d8dc4", "#1864aa", "#08306b")


def save(run: Run, path: Path) -> None:
    """Draws ``run`` and writes it to ``path``."""
    draw(run).savefig(path, dpi=DPI, facecolor="white")


def draw(run: Run) -> Figure:
    """Draws hot ratios: a column of panels for each mode, a line for each number of threads.

    Raises:
        ValueError: nothing was timed.
    """
    lines = {threads: run.rows_of(threads) for threads in run.threads}
    if not any(summarize(rows, mode) for rows in lines.values() for mode in run.modes):
        raise ValueError("nothing was timed, so there is nothing to plot")
    named = any(row.case.name for row in run.cells)
    heights = [1.0 + 0.4 * len(_index(rows)) for rows in lines.values()]
    figure = Figure((WIDTH, 1.2 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(lines), len(run.modes), squeeze=False, height_ratios=heights)
    for (threads, rows), line in zip(lines.items(), panels, strict=True):
        for mode, axes in zip(run.modes, line, strict=True):
            (_draw_bars if named else _draw_heat)(axes, rows, mode)
            if axes is not line[0]:
                axes.set_yticklabels([])
            axes.set(xlabel="", ylabel="")
            axes.tick_params(length=0)
            axes.set_title(_panel_title(run, threads, mode), fontsize=12)
    figure.suptitle("How many times as fast as torch.nn.RNN is rnn_ext.RNN?", fontweight="bold")
    figure.supxlabel(_footer(run), fontsize=9, color="#59636e")
    return figure


def _index(rows: Sequence[Row]) -> list[str]:
    """Returns the labels of a panel's lines."""
    cases = [row.case for row in rows]
    return list(dict.fromkeys(c.name or f"T={c.seq_len} B={c.batch_size}" for c in cases))


def _draw_heat(axes: Axes, rows: Sequence[Row], mode: Mode) -> None:
    """Draws the ratios: a line for each (T, B), a column for each H."""
    ratios = pandas.DataFrame(
        {
            "line": f"T={row.case.seq_len} B={row.case.batch_size}",
            "H": row.case.hidden_size,
            "ratio": row.ratio(mode),
        }
        for row in rows
    ).pivot(index="line", columns="H", values="ratio")
    ratios = ratios.reindex(_index(rows)).rename(columns=lambda size: f"H={size}")
    seaborn.heatmap(
        ratios.astype(float),
        annot=ratios.map(_digits, na_action="ignore"),
        fmt="",
        norm=BoundaryNorm(EDGES, len(LOSSES + GAINS)),
        cmap=ListedColormap(LOSSES + GAINS),
        cbar=False,
        linewidths=1,
        ax=axes,
    )
    axes.xaxis.tick_top()
    axes.tick_params(axis="y", rotation=0)


def _draw_bars(axes: Axes, rows: Sequence[Row], mode: Mode) -> None:
    """Draws a bar for each named case, from 1 to the ratio, on a logarithmic axis."""
    ratios = [row.ratio(mode) or 1.0 for row in rows]
    colors = [LOSSES[1] if ratio < 1 else GAINS[3] for ratio in ratios]
    labels = [f"{row.case.name}\n{row.case.sizes}" for row in rows]
    bars = axes.barh(labels, [ratio - 1 for ratio in ratios], left=1, color=colors)
    texts = ["" if row.ratio(mode) is None else f"{row.ratio(mode):.3g}×" for row in rows]
    axes.bar_label(bars, texts, padding=3)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ratios) / 1.1, 1.7 * max(ratios))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def _panel_title(run: Run, threads: int, mode: Mode) -> str:
    title = f"{mode}, {format_place(run, threads)}"
    if summary := summarize(run.rows_of(threads), mode):
        title += f"\n{summary.geometric_mean:.2f}× in geometric mean, {summary.worst:.2f}× at worst"
    return title


def _footer(run: Run) -> str:
    cases = [row.case for row in run.cells]
    facts = [cases[0].dtype_name]
    if len(settings := {case.settings for case in cases}) == 1:
        facts += settings
    if all(case.input_size == case.hidden_size for case in cases):
        facts.append("I = H")
    return f"{', '.join(facts)}; hot, medians of rounds in turns\n{describe(run.machine)}"


def _digits(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"
