"""Fake kernels and autograd of the ops that run a cell's program (``csrc/cpu/cell_ops.h``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from .cells.program import MAX_SLOTS
from .composite import is_tokens
from .derivatives import expand_to_mask
from .ops import empty_gradients

__all__ = ["backward", "split"]


@torch.library.register_fake("rnn_ext::recurrence_forward")
def _(
    input: Tensor,
    initial: list[Tensor] | None,
    weights: list[Tensor],
    parameters: list[Tensor] | None,
    inputs: list[Tensor] | None,
    reset_states: list[Tensor] | None,
    reset: Tensor | None,
    batch_sizes: Tensor | None,
    program: Tensor,
    bidirectional: bool,
    states: int,
    kept_states: int,
    kept_values: int,
) -> list[Tensor]:
    directions = 2 if bidirectional else 1
    hidden_size = weights[1].size(1)
    assert batch_sizes is None or initial, "packed input needs initial states"
    batch = initial[0].size(1) if initial else input.size(1)
    rows = input.shape if is_tokens(input) else input.shape[:-1]
    if max(states, kept_values) > MAX_SLOTS:
        raise RuntimeError(f"rnn_ext: a cell has at most {MAX_SLOTS} states and kept values")
    sequences = 1 + _count_states(kept_states) + kept_values
    new_empty = weights[1].new_empty
    output, *kept = (new_empty(*rows, directions * hidden_size) for _ in range(sequences))
    finals = [new_empty(directions, batch, hidden_size) for _ in range(states)]
    return [output, *finals, *kept]


@torch.library.register_fake("rnn_ext::recurrence_backward")
def _(
    gradients: list[Tensor],
    given: list[bool],
    input: Tensor,
    initial: list[Tensor],
    weights: list[Tensor],
    parameters: list[Tensor],
    inputs: list[Tensor],
    reset_states: list[Tensor],
    output: Tensor,
    sequences: list[Tensor],
    saved: list[Tensor],
    reset: Tensor | None,
    batch_sizes: Tensor | None,
    program: Tensor,
    bidirectional: bool,
    kept_states: int,
    output_mask: list[bool],
) -> list[Tensor]:
    directions = 2 if bidirectional else 1
    # A parameter's gradient has a row for each direction, a reset state's one for each batch row.
    rows = [p.unsqueeze(0).expand(directions, -1) for p in parameters]
    resets = [r.expand(*r.shape[:-2], input.size(1), -1) for r in reset_states]
    operands = [input, *initial, *weights, *rows, *inputs, *resets]
    return empty_gradients(operands, output_mask)


def split(tensors: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """Splits a list of operands into the first, input, and lists of ``counts`` tensors."""
    ends = list(accumulate(counts, initial=1))
    return [tensors[0], *(tensors[a:b] for a, b in pairwise(ends))]


def backward(
    grads: Sequence[Tensor | None],
    operands: Sequence[Any],
    output: Tensor,
    kept: Sequence[Tensor],
    settings: tuple[Any, ...],
    states: int,
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Calls ``recurrence_backward``.

    Args:
        grads: the gradients of the results of ``recurrence_forward``; missing ones at the end are
            None.
        operands: input and the lists of initial states, weights, parameters, inputs and reset
            states.
        output, kept: the results of ``recurrence_forward``, without the final states.
        settings: ``reset``, ``batch_sizes``, ``program``, ``bidirectional``, ``kept_states``.
        states: the number of states of the cell.
        mask: which gradients of the operands, as one list, to compute.

    Returns:
        The gradients; None where ``mask`` is False.
    """
    _, initial, weights, parameters, inputs, reset_states = operands
    *_, kept_states = settings
    sequences = _count_states(kept_states)
    of_sequences = iter(grads[1 + states :])
    grads = [
        *grads[: 1 + states],
        *(next(of_sequences, None) if kept_states >> s & 1 else None for s in range(1, states)),
    ]
    gradients = torch.ops.rnn_ext.recurrence_backward.default(
        *([g for g in grads if g is not None], [g is not None for g in grads]),
        *(*operands, output, kept[:sequences], kept[sequences:], *settings, mask),
    )
    results = list(expand_to_mask(gradients, mask))
    first = 1 + len(initial) + len(weights)
    for i in range(first, first + len(parameters)):
        rows = results[i]
        results[i] = None if rows is None else rows.sum(0)  # over directions
    first += len(parameters) + len(inputs)
    for i, state in enumerate(reset_states, first):
        rows = results[i]
        if rows is not None and state.size(-2) == 1:
            results[i] = rows.sum(-2, keepdim=True)
    return results


def _count_states(kept_states: int) -> int:
    return (kept_states >> 1).bit_count()  # y is the output


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    input, *lists, reset, batch_sizes, program, bidirectional, ctx.states, kept_states, _ = inputs
    ctx.is_given = [tensors is not None for tensors in lists]
    ctx.counts = [len(tensors or ()) for tensors in lists]
    ctx.flags = bidirectional, kept_states
    operands = [input, *(t for tensors in lists for t in tensors or ())]
    kept = output[1 + ctx.states :]
    ctx.save_for_backward(reset, batch_sizes, program, *operands, output[0], *kept)
    ctx.set_materialize_grads(False)


def _op_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    reset, batch_sizes, program, *saved = ctx.saved_tensors
    count = 1 + sum(ctx.counts)
    operands, (output, *kept) = saved[:count], saved[count:]
    needs_input, *needs = ctx.needs_input_grad[:6]
    mask = [needs_input, *(flag for flags in needs for flag in flags or ())]
    gradients = backward(
        *(grads, split(operands, ctx.counts), output, kept),
        *((reset, batch_sizes, program, *ctx.flags), ctx.states, mask),
    )
    of_input, *of_lists = split(gradients, ctx.counts)
    given = zip(of_lists, ctx.is_given, strict=True)
    return (of_input, *(list(part) if is_given else None for part, is_given in given), *[None] * 7)


torch.library.register_autograd(
    "rnn_ext::recurrence_forward", _op_backward, setup_context=_save_for_backward
)
