"""A layer as a loop over time of torch's own operations.

It is slow but exact, for calls that the kernels do not support and for transforms that can trace
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Multiply", "Step", "is_tokens", "recurrence", "rnn_layer"]

# (k, x) -> the product of x (B, H) by block k of W_hh, and that block of b_hh.
Multiply = Callable[[int, Tensor], Tensor]
# (u, multiply, states, inputs) -> next states, for the rows of one time step: u (B, G·H), the
# states and inputs (B, H).
Step = Callable[[Tensor, Multiply, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def is_tokens(input: Tensor) -> bool:
    """Whether a layer's input is tokens, so that a table stands for its ``weight_ih``."""
    return input.dtype == torch.int64


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Computes ``torch.ops.rnn_ext.rnn_forward``; :func:`autograd.rnn_layer` lists the shapes."""
    activation = torch.tanh if nonlinearity == "tanh" else torch.relu

    def step(
        u: Tensor, multiply: Multiply, states: Sequence[Tensor], _: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        return (activation(u + multiply(0, states[0])),)

    initial = None if hx is None else [hx]
    (output,), (h_n,) = recurrence(
        *(step, 1, (1,), input, initial, weights, [], batch_sizes, bidirectional)
    )
    return output, h_n


def recurrence(
    step: Step,
    states: int,
    products: Sequence[int],
    input: Tensor,
    initial: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    inputs: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    reset: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs ``step`` over a sequence.

    Args:
        states: the number of states.
        products: the gates of each product in a step, which are blocks of W_hh.
        input: ``(T, B, I)``, or packed ``(N, I)``; or tokens, ``(T, B)`` or ``(N,)``.
        initial: the initial states, ``(D, B, H)`` each; None for zeros.
        weights: ``weight_ih``, ``weight_hh`` (, ``bias_ih``, ``bias_hh``) for each direction; with
            tokens a table ``(V, G·H)`` in place of ``weight_ih``.
        inputs: ``(D, T, B, H)`` each, or packed ``(D, N, H)``.
        batch_sizes: rows of each step of packed input.
        reset: ``(T, B)`` bool, where the states of a row are replaced before the step.
        reset_states: the new states, ``(T, D, B or 1, H)`` each, or ``(D, B or 1, H)`` for all
            steps; none for zeros.

    Returns:
        Each state at all steps, ``(T, B, D·H)`` or ``(N, D·H)``, and each final state,
        ``(D, B, H)``.
    """
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // directions
    rows = [input.size(1)] * input.size(0) if batch_sizes is None else batch_sizes.tolist()

    def by_step(t: Tensor) -> Sequence[Tensor]:
        return t.unbind(0) if batch_sizes is None else t.split(rows)

    histories, finals = [], []
    for d in range(directions):
        w_ih, w_hh, *biases = weights[d * per_direction : (d + 1) * per_direction]
        b_ih, *b_hh = biases or (None,)
        hidden_size = w_hh.size(1)
        sizes = [hidden_size * gates for gates in products]
        blocks = list(zip(*(t.split(sizes) for t in (w_hh, *b_hh)), strict=True))
        zeros = w_hh.new_zeros(rows[0], hidden_size)
        given: list[Sequence[Tensor]] = [
            t[:, d].unbind(0) if t.dim() == 4 else [t[d]] * len(rows) for t in reset_states
        ]
        if not is_tokens(input):
            u = F.linear(input, w_ih, b_ih)
        else:
            u = F.embedding(input, w_ih)
            u = u if b_ih is None else u + b_ih
        history, last = _direction(
            *(step, by_step(u), rows),
            *([zeros] * states if initial is None else [t[d] for t in initial], blocks),
            *([by_step(t[d]) for t in inputs], d == 1),
            *(reset, given or [[zeros] * len(rows)] * states),
        )
        join = torch.stack if batch_sizes is None else torch.cat
        histories.append([join(steps) for steps in history])
        finals.append(last)
    return (
        [torch.cat(parts, -1) for parts in zip(*histories, strict=True)],
        [torch.stack(parts) for parts in zip(*finals, strict=True)],
    )


def _direction(
    step: Step,
    u: Sequence[Tensor],
    rows: list[int],
    initial: Sequence[Tensor],
    blocks: Sequence[tuple[Tensor, ...]],
    inputs: Sequence[Sequence[Tensor]],
    reverse: bool,
    reset: Tensor | None,
    reset_states: Sequence[Sequence[Tensor]],
) -> tuple[list[list[Tensor]], list[Tensor]]:
    def multiply(k: int, x: Tensor) -> Tensor:
        return F.linear(x, *blocks[k])

    order = range(len(u) - 1, -1, -1) if reverse else range(len(u))
    states = [x[: rows[order[0]]] for x in initial]
    ended: list[list[Tensor]] = [[] for _ in states]  # of rows that have no further step
    history: list[list[Tensor]] = []
    for t in order:
        count, before = rows[t], states[0].size(0)
        if count < before:
            for x, parts in zip(states, ended, strict=True):
                parts.insert(0, x[count:])
            states = [x[:count] for x in states]
        elif count > before:
            states = [
                torch.cat([x, x0[before:count]]) for x, x0 in zip(states, initial, strict=True)
            ]
        if reset is not None:
            is_reset = reset[t].unsqueeze(-1)
            states = [
                torch.where(is_reset, given[t], x)
                for x, given in zip(states, reset_states, strict=True)
            ]
        states = list(step(u[t], multiply, states, [x[t] for x in inputs]))
        history.append(states)
    if reverse:
        history.reverse()
    finals = [
        torch.cat([x, *parts]) if parts else x for x, parts in zip(states, ended, strict=True)
    ]
    return [list(steps) for steps in zip(*history, strict=True)], finals
