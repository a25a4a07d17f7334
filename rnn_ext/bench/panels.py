"""One panel of the picture: the ratios of one mode, as a heat map or as bars."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from .cases import Mode
from .results import Row

__all__ = ["FAINT", "INK", "PAPER", "draw_bars", "draw_heat", "draw_key"]

# Opaque, so that the dark ink is legible on a dark page as well.
PAPER, INK, FAINT = "#ffffff", "#1f2328", "#59636e"

# Factors of two, and a hue of its own for losses; orange and blue differ for every kind of eye.
EDGES = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
LOSSES = ("#b35806", "#f1a340")
GAINS = ("#dbe9f6", "#b0d2e8", "#75b3d8", "#3d8dc4", "#1864aa", "#08306b")
COLORS = LOSSES + GAINS
LOSS, GAIN = LOSSES[1], GAINS[3]
# Between these the colors are so light that dark ink is the better one.
DARK_INK = (0.5, 8)

NOT_MEASURED = "not measured"


def draw_heat(axes: Axes, rows: Sequence[Row], mode: Mode, *, with_labels: bool) -> None:
    """A line for each (T, B), a column for each H, the ratio in each cell."""
    lines = sorted({(row.case.seq_len, row.case.batch_size) for row in rows})
    columns = sorted({row.case.hidden_size for row in rows})
    for row in rows:
        y = lines.index((row.case.seq_len, row.case.batch_size))
        _draw_cell(axes, columns.index(row.case.hidden_size), y, row.ratio(mode))
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(lines), 0)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [f"H={size}" for size in columns])
    axes.xaxis.tick_top()
    labels = [f"B={batch_size}" if with_labels else "" for _, batch_size in lines]
    axes.set_yticks([y + 0.5 for y in range(len(lines))], labels)
    for seq_len in dict.fromkeys(seq_len for seq_len, _ in lines):
        group = [y for y, line in enumerate(lines) if line[0] == seq_len]
        if group[0] > 0:
            axes.axhline(group[0], color=PAPER, linewidth=7)
        if with_labels:
            middle = (group[0] + group[-1] + 1) / 2
            _write(axes, f"T={seq_len}", (0, middle), (-58, 0), ha="right", size=12)


def draw_bars(axes: Axes, rows: Sequence[Row], mode: Mode, *, with_labels: bool) -> None:
    """A bar for each named case, from 1 to the ratio on a logarithmic axis."""
    for y, row in enumerate(rows):
        ratio, case = row.ratio(mode), row.case
        if ratio is None:
            _write(axes, NOT_MEASURED, (1, y), (5, 0), size=9, color=FAINT)
        else:
            axes.barh(y, ratio - 1, left=1, height=0.7, color=GAIN if ratio >= 1 else LOSS)
            _write(axes, f"{_digits(ratio)}×", (max(1, ratio), y), (5, 0), size=10.5)
        if with_labels:
            _write_at_left(axes, y, case.name, 6, size=11)
            _write_at_left(axes, y, case.sizes, -7, size=8.5, color=FAINT)
    known = [1.0, *(ratio for row in rows if (ratio := row.ratio(mode)) is not None)]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(known) / 1.1, 1.6 * max(known))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])


def draw_key(figure: Figure, panels: list[Axes]) -> None:
    """What the heat map's colors mean."""
    key = figure.colorbar(
        ScalarMappable(BoundaryNorm(EDGES, len(COLORS)), ListedColormap(COLORS)),
        ax=panels,
        orientation="horizontal",
        ticks=EDGES,
        shrink=0.6,
        aspect=45,
        pad=0.03,
    )
    key.outline.set_visible(False)
    key.ax.set_xticklabels([f"{edge:g}×" for edge in EDGES])
    key.ax.tick_params(length=0, colors=FAINT, labelsize=10)


def _draw_cell(axes: Axes, x: int, y: int, ratio: float | None) -> None:
    text, size, ink = NOT_MEASURED, 9.0, FAINT
    if ratio is not None:
        low, high = DARK_INK
        text, size, ink = _digits(ratio), 11.5, INK if low <= ratio < high else PAPER
        axes.add_patch(Rectangle((x, y), 1, 1, fc=_color(ratio), ec=PAPER, linewidth=1.5))
    _write(axes, text, (x + 0.5, y + 0.5), (0, 0), ha="center", size=size, color=ink)


def _write(
    axes: Axes, text: str, place: tuple[float, float], points: tuple[float, float], **style: Any
) -> None:
    """Text at ``place``, moved by ``points``."""
    style = {"va": "center", "color": INK, "textcoords": "offset points"} | style
    axes.annotate(text, place, xytext=points, **style)


def _write_at_left(axes: Axes, y: int, text: str, up: float, **style: Any) -> None:
    left = axes.get_yaxis_transform()
    _write(axes, text, (0, y), (-8, up), xycoords=left, ha="right", **style)


def _color(ratio: float) -> str:
    band = bisect_right(EDGES, ratio) - 1
    return COLORS[min(max(band, 0), len(COLORS) - 1)]


def _digits(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"
