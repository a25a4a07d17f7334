"""The picture of a run's log: how the loss went down."""

from pathlib import Path

from matplotlib.figure import Figure

from .files import new_file
from .log import read

__all__ = ["plot"]


def plot(log: Path, picture: Path) -> None:
    """Draw bits per character over the steps in ``log`` into the PNG file ``picture``."""
    lines = read(log)
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("train_bpc", "training", "-"),
        ("val_bpc", "validation", "o-"),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    axes.set(xlabel="step", ylabel="bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(picture) as file:
        figure.savefig(file, format="png", dpi=120)
