"""Layers of any cell in float64, and their operands."""

from typing import Any

import torch
from torch import Tensor, nn

from rnn_ext import Cell, Recurrent, cells

ALL = [getattr(cells, name) for name in cells.__all__ if isinstance(getattr(cells, name), Cell)]
# A spiking cell's result jumps where a membrane potential meets its threshold, and its gradient is
# not that of the result, which gradcheck compares.
SMOOTH = [cell for cell in ALL if cell not in (cells.lif, cells.alif)]
SEQ_LEN, BATCH, INPUT, HIDDEN = 6, 4, 3, 5


def values(cell: Cell) -> dict[str, nn.Parameter]:
    """A parameter of the cell is between 0 and 1 in all of them."""
    return {name: nn.Parameter(0.2 + 0.6 * torch.rand(HIDDEN).double()) for name in cell.parameters}


def layer_of(cell: Cell, **settings: Any) -> Recurrent:
    torch.manual_seed(0)
    settings |= values(cell)
    return Recurrent(cell, INPUT, HIDDEN, dtype=torch.float64, **settings)


def operands(cell: Cell, *shape: int) -> dict[str, Tensor]:
    return {name: 0.1 * torch.randn(*shape, HIDDEN).double() for name in cell.inputs}


def states(cell: Cell, *shape: int) -> Any:
    tensors = tuple(0.5 * torch.randn(*shape, HIDDEN).double() for _ in range(1 + len(cell.states)))
    return tensors if cell.states else tensors[0]
