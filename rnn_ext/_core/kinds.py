"""What tells RNN, GRU and LSTM apart: one table, which modules, calls and routes read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import cells
from .cells.cell import Cell, cell
from .cells.errors import CellError

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        name: of torch's module, and of ONNX's operator.
        nonlinearity: ``'tanh'`` or ``'relu'`` for an RNN, else empty.
        cell: what a step computes, as the program that the kernels run; those of an RNN are
            compiled, so that it runs the program only where a call has resets.
        layers, step: torch's own ops.
    """

    name: str
    nonlinearity: str
    cell: Cell
    layers: Callable[..., Any]
    step: Callable[..., Any]

    @property
    def is_compiled(self) -> bool:
        return bool(self.nonlinearity)

    @property
    def states(self) -> int:
        """How many states a unit has: LSTM has h and c."""
        return 1 + len(self.cell.states)


@cell
def relu(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """A plain RNN with relu."""
    return torch.relu(u + v)


# By nn.RNNBase.mode.
KINDS = {
    "RNN_TANH": Kind("RNN", "tanh", cells.elman, torch.rnn_tanh, torch.rnn_tanh_cell),
    "RNN_RELU": Kind("RNN", "relu", relu, torch.rnn_relu, torch.rnn_relu_cell),
    "GRU": Kind("GRU", "", cells.gru, torch.gru, torch.gru_cell),
    "LSTM": Kind("LSTM", "", cells.lstm, torch.lstm, torch.lstm_cell),
}

# Traced here, since no call can do it while it is recorded as a graph itself. A release of torch
# that lacks what tracing needs says so in the first call.
for _kind in KINDS.values():
    with suppress(CellError):
        _ = _kind.cell.program
