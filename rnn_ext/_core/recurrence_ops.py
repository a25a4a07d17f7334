"""Fake kernels and autograd of the ops whose cell is a program: ``csrc/cpu/cell_ops.h``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .derivatives import in_places
from .ops import empty_gradients

__all__ = ["backward"]


@torch.library.register_fake("rnn_ext::recurrence_forward")
def _(
    input: Tensor,
    initial: list[Tensor],
    weights: list[Tensor],
    parameters: list[Tensor],
    inputs: list[Tensor],
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
    sequences = 1 + (kept_states >> 1).bit_count() + kept_values
    output, *kept = (
        input.new_empty(*input.shape[:-1], directions * hidden_size) for _ in range(sequences)
    )
    finals = [input.new_empty(directions, batch, hidden_size) for _ in range(states)]
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
    output: Tensor,
    sequences: list[Tensor],
    saved: list[Tensor],
    batch_sizes: Tensor | None,
    program: Tensor,
    bidirectional: bool,
    kept_states: int,
    output_mask: list[bool],
) -> list[Tensor]:
    directions = 2 if bidirectional else 1
    # A parameter's gradient has a row for each direction.
    rows = [p.unsqueeze(0).expand(directions, -1) for p in parameters]
    return empty_gradients([input, *initial, *weights, *rows, *inputs], output_mask)


def backward(
    grads: Sequence[Tensor | None],
    operands: Sequence[Any],
    output: Tensor,
    sequences: Sequence[Tensor],
    values: Sequence[Tensor],
    settings: tuple[Any, ...],
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Calls ``recurrence_backward``.

    Args:
        grads: of the results of ``recurrence_forward``, as many as have one.
        operands: input and the lists of initial states, weights, parameters and inputs.
        output, sequences, values: what ``recurrence_forward`` returned.
        settings: ``batch_sizes``, ``program``, ``bidirectional``, ``kept_states``.
        mask: which gradients of the operands, in one list, are wanted.

    Returns:
        The gradients, None where they are not wanted.
    """
    input, initial, weights, parameters, inputs = operands
    *_, kept_states = settings
    states = len(grads) - 1 - len(sequences) - len(values)
    of_sequences = iter(grads[1 + states :])
    grads = [
        *grads[: 1 + states],
        *(next(of_sequences) if kept_states >> s & 1 else None for s in range(1, states)),
    ]
    found = torch.ops.rnn_ext.recurrence_backward.default(
        *([g for g in grads if g is not None], [g is not None for g in grads]),
        *(input, initial, weights, parameters, inputs, output, sequences, values),
        *(*settings, mask),
    )
    results = list(in_places(found, mask))
    first = 1 + len(initial) + len(weights)
    for i in range(first, first + len(parameters)):
        rows = results[i]
        results[i] = None if rows is None else rows.sum(0)  # over directions
    return results


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *operands, batch_sizes, program, bidirectional, states, kept_states, kept_values = inputs
    input, *lists = operands
    ctx.counts = [len(tensors) for tensors in lists]
    first_value = len(output) - kept_values
    ctx.sequences = first_value - 1 - states
    ctx.settings = bidirectional, kept_states
    kept = output[0], *output[1 + states :]
    ctx.save_for_backward(batch_sizes, program, *kept, input, *(t for ts in lists for t in ts))
    ctx.kept = len(kept)
    ctx.set_materialize_grads(False)


def _op_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    batch_sizes, program, *saved = ctx.saved_tensors
    output, *kept = saved[: ctx.kept]
    input, *rest = saved[ctx.kept :]
    lists = []
    for count in ctx.counts:
        lists.append(rest[:count])
        rest = rest[count:]
    needs_input, *needs = ctx.needs_input_grad[:5]
    mask = [needs_input, *(flag for flags in needs for flag in flags)]
    grad_input, *found = backward(
        *(grads, (input, *lists), output, kept[: ctx.sequences], kept[ctx.sequences :]),
        *((batch_sizes, program, *ctx.settings), mask),
    )
    grad_lists = []
    for count in ctx.counts:
        grad_lists.append(found[:count])
        found = found[count:]
    return (grad_input, *grad_lists, *[None] * 6)


torch.library.register_autograd(
    "rnn_ext::recurrence_forward", _op_backward, setup_context=_save_for_backward
)
