"""The differences between RNN, GRU and LSTM: one table for modules, calls and routes."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from .. import cells
from .cells.cell import Cell, cell
from .cells.errors import CellError

__all__ = ["KINDS", "Kind", "kind_of", "trace_cells"]


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        name: of torch's module, and of ONNX's operator.
        nonlinearity: ``'tanh'`` or ``'relu'`` for an RNN, else empty.
        cell: the computation of a step, as a program for the kernels. An RNN has compiled kernels
            and runs the program only in calls with resets.
        op: the name of torch's own op; that of a step ends in ``_cell``.
    """

    name: str
    nonlinearity: str
    cell: Cell
    op: str

    def is_compiled(self) -> bool:
        return bool(self.nonlinearity)

    def states(self) -> int:
        """Returns the number of states of a unit: LSTM has h and c."""
        return 1 + len(self.cell.states)


@cell
def relu(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """A plain RNN with relu."""
    return torch.relu(u + v)


# By nn.RNNBase.mode.
KINDS = {
    "RNN_TANH": Kind("RNN", "tanh", cells.elman, "rnn_tanh"),
    "RNN_RELU": Kind("RNN", "relu", relu, "rnn_relu"),
    "GRU": Kind("GRU", "", cells.gru, "gru"),
    "LSTM": Kind("LSTM", "", cells.lstm, "lstm"),
}


def kind_of(cell: str, nonlinearity: str) -> Kind:
    """Returns the kind that a user names.

    Raises:
        ValueError: there is none of these names.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    if cell == "rnn":
        return KINDS[f"RNN_{nonlinearity.upper()}"]
    if cell not in ("gru", "lstm"):
        raise ValueError(f"cell: expected 'rnn', 'gru' or 'lstm', got {cell!r}")
    if nonlinearity != "tanh":
        raise ValueError(f"nonlinearity: {cell!r} is defined with 'tanh' only")
    return KINDS[cell.upper()]


def trace_cells(name: str) -> None:
    """Traces the cells of RNN, GRU or LSTM, once.

    Modules do this before their first call, since a call that is recorded as a graph cannot. If
    torch lacks a function that tracing needs, the first call raises the error.
    """
    for kind in KINDS.values():
        if kind.name == name:
            with suppress(CellError):
                _ = kind.cell.program
