"""What tells RNN, GRU and LSTM apart: one table, which modules, calls and routes read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from .. import cells
from .cells.cell import Cell
from .cells.errors import CellError

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        name: of torch's module, and of ONNX's operator.
        nonlinearity: ``'tanh'`` or ``'relu'`` for an RNN, else empty.
        cell: the program that the kernels run; None for an RNN, which they have compiled.
        layers, step: torch's own ops.
    """

    name: str
    nonlinearity: str
    cell: Cell | None
    layers: Callable[..., Any]
    step: Callable[..., Any]

    @property
    def gates(self) -> int:
        return 1 if self.cell is None else self.cell.gates

    @property
    def states(self) -> int:
        """How many states a unit has: LSTM has h and c."""
        return 1 if self.cell is None else 1 + len(self.cell.states)


# By nn.RNNBase.mode.
KINDS = {
    "RNN_TANH": Kind("RNN", "tanh", None, torch.rnn_tanh, torch.rnn_tanh_cell),
    "RNN_RELU": Kind("RNN", "relu", None, torch.rnn_relu, torch.rnn_relu_cell),
    "GRU": Kind("GRU", "", cells.gru, torch.gru, torch.gru_cell),
    "LSTM": Kind("LSTM", "", cells.lstm, torch.lstm, torch.lstm_cell),
}

# Traced here, since no call can do it while it is recorded as a graph itself. A torch without the
# means to trace says so in the first call.
with suppress(CellError):
    for _kind in KINDS.values():
        if _kind.cell is not None:
            _ = _kind.cell.program
