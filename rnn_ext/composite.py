"""A layer and its tangent recurrence written out in torch's own operations.

Slow, and exact: the layer where torch.compile traces a torch.func transform, which sees through
nothing else; the recurrence on devices that have no kernel for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rnn_layer", "rnn_tangent"]


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
    rows = _rows(input, batch_sizes)
    activation = torch.tanh if nonlinearity == "tanh" else torch.relu
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
            activate=lambda _, z: activation(z),
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
    activate: Callable[[int, Tensor], Tensor],
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
        h = activate(t, steps[t] + F.linear(h, w_hh))
        steps[t] = h
    h_n = torch.cat([h, *reversed(ended)]) if ended else h
    return (torch.cat(steps) if packed else torch.stack(steps)), h_n


def rnn_tangent(
    seed: Tensor,
    initial: Tensor | None,
    matrices: Sequence[Tensor],
    output: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> Tensor:
    """The same as ``torch.ops.rnn_ext._rnn_tangent``."""
    rows = _rows(seed, batch_sizes)
    packed = batch_sizes is not None
    results = []
    for d, (s, h, w) in enumerate(
        zip(seed.chunk(len(matrices), -1), output.chunk(len(matrices), -1), matrices, strict=True)
    ):
        states = h.split(rows) if packed else h.unbind(0)

        def chain(t: int, z: Tensor, states: Sequence[Tensor] = states) -> Tensor:
            if nonlinearity == "tanh":
                return z * (1 - states[t] * states[t])
            return z.masked_fill(states[t] <= 0, 0)

        first = s.new_zeros(rows[0], w.size(0)) if initial is None else initial[d]
        y, _ = _direction(
            s, first, w, rows, packed=packed, activate=chain, reverse=reverse != (d == 1)
        )
        results.append(y)
    return torch.cat(results, -1)


def _rows(input: Tensor, batch_sizes: Tensor | None) -> list[int]:
    """How many rows each step has."""
    return [input.size(1)] * input.size(0) if batch_sizes is None else batch_sizes.tolist()
