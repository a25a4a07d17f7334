"""The picture of a run: a heat map of the ratios over the grid, or bars for named cases."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..cli.errors import UserError
from .cases import Mode
from .machine import describe
from .panels import FAINT, INK, PAPER, draw_bars, draw_heat, draw_key
from .report import format_place
from .results import Row, Run, summarize

__all__ = ["draw", "save"]

# At this many pixels to the inch a picture is twice as wide as a README's column of 800.
DPI = 160
WIDTH = 10.0


def save(run: Run, path: Path) -> None:
    """Draw ``run`` and write it to ``path``; ``UserError`` where nothing was measured."""
    draw(run).savefig(path, dpi=DPI, facecolor=PAPER)


def draw(run: Run) -> Figure:
    """Panels side by side for the modes, one below the other for the numbers of threads."""
    modes = run.modes
    lines = {threads: rows for threads in run.threads if (rows := run.rows_of(threads))}
    if not any(summarize(rows, mode) for rows in lines.values() for mode in modes):
        raise UserError("nothing was measured, so there is nothing to plot")
    named = any(row.case.name for row in run.rows)
    draw_panel, line_height = (draw_bars, 0.46) if named else (draw_heat, 0.36)
    heights = [1.0 + line_height * _count(rows) for rows in lines.values()]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure((WIDTH, 1.6 + sum(heights)), layout=layout)
    panels = figure.subplots(len(lines), len(modes), squeeze=False, height_ratios=heights)
    for (threads, rows), line in zip(lines.items(), panels, strict=True):
        if named:
            rows.sort(key=lambda row: row.ratio(modes[0]) or 0, reverse=True)
        for mode, axes in zip(modes, line, strict=True):
            draw_panel(axes, rows, mode, with_labels=axes is line[0])
            axes.set_title(_panel_title(run, threads, mode), color=INK, fontsize=12, pad=10)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, colors=INK, labelsize=10.5)
    if not named:
        draw_key(figure, list(panels.flat))
    headline = "How many times as fast as torch.nn.RNN is rnn_ext.RNN?"
    figure.suptitle(headline, color=INK, fontsize=15, fontweight="bold")
    figure.supxlabel(_footer(run), color=FAINT, fontsize=9.5)
    return figure


def _count(rows: Sequence[Row]) -> int:
    return len({row.case.name or (row.case.seq_len, row.case.batch_size) for row in rows})


def _panel_title(run: Run, threads: int, mode: Mode) -> str:
    what = {"forward": "forward", "training": "forward + backward"}[mode]
    title = f"{what}, {format_place(run, threads)}"
    if found := summarize(run.rows_of(threads), mode):
        title += f"\n{found.mean:.2f}× in geometric mean, {found.worst:.2f}× at worst"
    return title


def _footer(run: Run) -> str:
    cases = [row.case for row in run.rows]
    facts = [cases[0].dtype_name]
    if len(settings := {case.settings for case in cases}) == 1:
        facts += settings
    if all(case.input_size == case.hidden_size for case in cases):
        facts.append("I = H")
    return f"{', '.join(facts)}; medians of interleaved rounds\n{describe(run.machine)}"
