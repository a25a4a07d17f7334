"""A call as one value, which modules and functions pass to the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .kinds import Kind

__all__ = ["Call", "weight_shapes"]


class Call(NamedTuple):
    """All layers over a sequence, or one step of a cell.

    ``csrc/eager/`` takes these fields in this order, up to ``dropout`` and without ``kind``. Values
    computed from them are methods, because torch.compile of torch 2.10 cannot read a property of a
    named tuple.

    Args:
        input: ``(T, B, I)``; packed ``(N, I)``; ``(B, I)`` for a step.
        hx: ``(L·D, B, H)``, or ``(B, H)`` for a step; None for zeros, but not with packed input.
        cx: an LSTM's second state, as hx.
        weights: ``weight_ih``, ``weight_hh`` and, with ``bias``, ``bias_ih``, ``bias_hh``, for each
            direction of each layer.
        batch_sizes: rows of each step of packed input.
        is_step: whether this is one step of a cell.
        kind: RNN of either nonlinearity, GRU or LSTM.
        num_layers, bidirectional, bias, training, input_size, hidden_size: the module's attributes;
            a user may have set them to anything.
        dropout: probability of zeroing an element between layers, while ``training``.
        reset: ``(T, B)`` bool, the steps before which rows are reset; not for a step or packed
            input.
        reset_states: the states after a reset, from :func:`rnn_ext._core.resets.read_reset`.
    """

    input: Tensor
    hx: Tensor | None
    weights: list[Any]
    batch_sizes: Tensor | None
    is_step: bool
    kind: Kind
    num_layers: int
    bidirectional: bool
    bias: bool
    training: bool
    input_size: int
    hidden_size: int
    dropout: float
    cx: Tensor | None = None
    reset: Tensor | None = None
    reset_states: Sequence[Tensor] = ()

    def initial_states(self) -> list[Tensor]:
        """The initial states; none for zeros."""
        return [t for t in (self.hx, self.cx) if t is not None]

    def is_program(self) -> bool:
        """Whether kernels run the kind's cell as a program."""
        return not self.kind.is_compiled() or self.reset is not None

    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def states(self) -> int:
        """L·D: the number of states of a batch row in ``hx`` and ``h_n``."""
        return self.num_layers * self.directions()

    def batch_size(self) -> int:
        if self.batch_sizes is not None:
            return self.hx.size(1) if self.hx is not None else int(self.batch_sizes[0])
        return self.input.size(-2)

    def seq_len(self) -> int:
        if self.batch_sizes is not None:
            return self.batch_sizes.size(0)
        return 1 if self.is_step else self.input.size(0)


def weight_shapes(
    input_size: int, hidden_size: int, gates: int, num_layers: int, directions: int, bias: bool
) -> Sequence[tuple[int, ...]]:
    """Returns the shapes of a stack's weights, in order."""
    shapes: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        features = input_size if layer == 0 else directions * hidden_size
        direction = [(gates * hidden_size, features), (gates * hidden_size, hidden_size)]
        shapes += (direction + [(gates * hidden_size,)] * (2 if bias else 0)) * directions
    return shapes
