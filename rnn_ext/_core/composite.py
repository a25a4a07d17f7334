"""A layer written out in torch's own operations.

Slow, and exact: for where torch.compile traces a torch.func transform, which sees through nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rnn_layer"]


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """The same as ``torch.ops.rnn_ext.rnn_forward``: see ``csrc/common/ops.h`` for the shapes."""
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // directions
    rows = [input.size(1)] * input.size(0) if batch_sizes is None else batch_sizes.tolist()
    outputs, finals = [], []
    for direction in range(directions):
        w_ih, w_hh, *biases = weights[direction * per_direction : (direction + 1) * per_direction]
        h0 = input.new_zeros(rows[0], w_hh.size(0)) if hx is None else hx[direction]
        output, h_n = _direction(
            F.linear(input, w_ih, sum(biases) if biases else None),  # type: ignore[arg-type]
            h0,
            w_hh,
            rows,
            packed=batch_sizes is not None,
            activation=torch.tanh if nonlinearity == "tanh" else torch.relu,
            reverse=direction == 1,
        )
        outputs.append(output)
        finals.append(h_n)
    return torch.cat(outputs, -1), torch.stack(finals)


def _direction(
    projected: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    rows: list[int],
    *,
    packed: bool,
    activation: Callable[[Tensor], Tensor],
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    steps = list(projected.split(rows) if packed else projected.unbind(0))
    order = range(len(steps) - 1, -1, -1) if reverse else range(len(steps))
    h = h0[:0]
    ended = []  # the states of rows that a step no longer has, last rows first
    for position, t in enumerate(order):
        if rows[t] < h.size(0):
            ended.append(h[rows[t] :])
            h = h[: rows[t]]
        elif rows[t] > h.size(0):
            h = torch.cat([h, h0[h.size(0) : rows[t]]]) if position else h0[: rows[t]]
        h = activation(steps[t] + F.linear(h, w_hh))
        steps[t] = h
    h_n = torch.cat([h, *reversed(ended)]) if ended else h
    return (torch.cat(steps) if packed else torch.stack(steps)), h_n
