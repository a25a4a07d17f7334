"""Plots the loss in a run's log."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .files import new_file
from .log import read

__all__ = ["draw", "plot"]


def plot(log: Path, picture: Path) -> None:
    """Plots the bits per character of each step in ``log`` to the PNG file ``picture``."""
    figure = draw(log)
    with new_file(picture) as file:
        figure.savefig(file, format="png", dpi=120)


def draw(log: Path) -> Figure:
    """Returns the plot of ``log``."""
    lines = read(log)
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("train_bpc", "training", "-"),
        ("val_bpc", "validation", "o-"),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            style = "o" if len(points) == 1 else style  # a line through one point is invisible
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
            axes.legend()
    axes.set(xlabel="step", ylabel="bits per character")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    return figure
