"""A layer as a loop over time of torch's own operations.

It is slow but exact, for calls that the kernels do not support and for transforms that can trace
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Direction",
    "Multiply",
    "Step",
    "is_tokens",
    "loop",
    "recurrence",
    "reset_rows",
    "rnn_layer",
]

# (k, x) -> the product of x (B, H) by block k of W_hh, and that block of b_hh.
Multiply = Callable[[int, Tensor], Tensor]
# (u, multiply, states, inputs) -> next states, for the rows of one time step: u (B, G·H), the
# states and inputs (B, H).
Step = Callable[[Tensor, Multiply, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
# A function with the signature of ``loop``.
Direction = Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]]


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


def loop(
    step: Step,
    u: Tensor,
    batch_sizes: Tensor | None,
    initial: Sequence[Tensor],
    blocks: Sequence[tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    reverse: bool,
    reset: Tensor | None,
    reset_states: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs ``step`` over one direction.

    Args:
        u: ``(T, B, G·H)``, or packed.
        initial: the initial states, ``(B, H)`` each.
        blocks: the weight, and the bias if there is one, of each product in a step.
        inputs: ``(T, B, H)`` each, or packed.
        reset_states: ``(T, B or 1, H)``, or ``(B or 1, H)`` for all steps.

    The others are as in ``recurrence``.

    Returns:
        Each state at all steps, ``(T, B, H)`` or packed, and each final state, ``(B, H)``.
    """
    rows = [u.size(1)] * u.size(0) if batch_sizes is None else batch_sizes.tolist()

    def by_step(t: Tensor) -> Sequence[Tensor]:
        return t.unbind(0) if batch_sizes is None else t.split(rows)

    def multiply(k: int, x: Tensor) -> Tensor:
        return F.linear(x, *blocks[k])

    u_of, inputs_of = by_step(u), [by_step(t) for t in inputs]
    order = range(len(rows) - 1, -1, -1) if reverse else range(len(rows))
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
            given = [x[t] if x.dim() == 3 else x for x in reset_states]
            states = reset_rows(reset[t], given, states)
        states = list(step(u_of[t], multiply, states, [x[t] for x in inputs_of]))
        history.append(states)
    if reverse:
        history.reverse()
    finals = [
        torch.cat([x, *parts]) if parts else x for x, parts in zip(states, ended, strict=True)
    ]
    join = torch.stack if batch_sizes is None else torch.cat
    return [join(steps) for steps in zip(*history, strict=True)], finals


def reset_rows(reset: Tensor, given: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
    """Returns the states, ``(B, H)`` each, with those in ``given`` where ``reset``, ``(B,)``."""
    is_reset = reset.unsqueeze(-1)
    return [torch.where(is_reset, new, x) for new, x in zip(given, states, strict=True)]


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
    run: Direction = loop,
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
        run: runs one direction; ``loop`` by default.

    Returns:
        Each state at all steps, ``(T, B, D·H)`` or ``(N, D·H)``, and each final state,
        ``(D, B, H)``.
    """
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // directions
    batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
    histories, finals = [], []
    for d in range(directions):
        w_ih, w_hh, *biases = weights[d * per_direction : (d + 1) * per_direction]
        b_ih, *b_hh = biases or (None,)
        hidden_size = w_hh.size(1)
        sizes = [hidden_size * gates for gates in products]
        blocks = list(zip(*(t.split(sizes) for t in (w_hh, *b_hh)), strict=True))
        zeros = [w_hh.new_zeros(batch, hidden_size)] * states
        if not is_tokens(input):
            u = F.linear(input, w_ih, b_ih)
        else:
            u = F.embedding(input, w_ih)
            u = u if b_ih is None else u + b_ih
        history, last = run(
            *(step, u, batch_sizes),
            *(zeros if initial is None else [t[d] for t in initial], blocks),
            *([t[d] for t in inputs], d == 1),
            *(reset, [t.select(-3, d) for t in reset_states] or zeros),
        )
        histories.append(history)
        finals.append(last)
    return (
        [torch.cat(parts, -1) for parts in zip(*histories, strict=True)],
        [torch.stack(parts) for parts in zip(*finals, strict=True)],
    )
