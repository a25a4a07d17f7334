"""Runs the code of tutorial.md and draws loss.png and hidden.png from what it leaves."""

import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

DOCS = Path(__file__).parent


def run_tutorial() -> dict[str, Any]:
    """The variables that the tutorial ends with."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def draw_loss(losses: list[float]) -> Figure:
    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(range(1, len(losses) + 1), losses)
    axes.set(xlabel="epoch", ylabel="loss (nats per character)")
    axes.grid(alpha=0.3)
    return figure


def draw_states(states: torch.Tensor, read: str) -> Figure:
    """A column for each character of `read`, a row for each unit."""
    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(states.T, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(read)), [char.replace(" ", "␣") for char in read])
    axes.set(xlabel="character just read", ylabel="unit of the hidden state")
    figure.colorbar(image, label="value")
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = run_tutorial()
    draw_loss(names["losses"]).savefig(DOCS / "loss.png", dpi=110)
    states = torch.stack(names["states"])
    draw_states(states, names["text"][: len(states)]).savefig(DOCS / "hidden.png", dpi=110)
