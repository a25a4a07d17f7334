"""Floating-point operations of every op, for ``torch.utils.flop_counter.FlopCounterMode``.

As in torch's own formulas, a product of ``(m, k)`` and ``(k, n)`` counts ``2 m k n``, and other
operations count nothing. The count of a layer is that of ``nn.RNN`` for the same call. The formulas
get the shape of each tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

__all__: list[str] = []

Shape = tuple[int, ...]
ops = torch.ops.rnn_ext


@register_flop_formula(
    [ops.rnn_forward, ops._rnn_forward, ops._rnn_forward_packed, ops._cell_forward]
)
def _forward(input: Shape, hx: Shape | None, weights: list[Shape], *_: Any, **__: Any) -> int:
    return 2 * prod(input[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


@register_flop_formula(ops._rnn_pack)
def _pack(weights: list[Shape], *_: Any, **__: Any) -> int:
    """One product by zeros, for each direction, is computed with the packing; it is not counted."""
    return 0


@register_flop_formula([ops.rnn_backward, ops._rnn_backward])
def _backward(
    grad_output: Shape | None,
    grad_h_n: Shape | None,
    input: Shape,
    hx: Shape | None,
    weights: list[Shape],
    output: Shape,
    batch_sizes: Shape | None,
    nonlinearity: str,
    bidirectional: bool,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    rows, directions = prod(input[:-1]), 2 if bidirectional else 1
    batch = input[-2] if hx is None else hx[-2]
    return _layer_backward(rows, batch, weights, directions, output_mask)


@register_flop_formula(ops._cell_backward)
def _cell_backward(
    grad_output: Shape,
    input: Shape,
    hx: Shape | None,
    weights: list[Shape],
    output: Shape,
    nonlinearity: str,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    return _layer_backward(input[0], input[0], weights, 1, output_mask)


def _layer_backward(
    rows: int, batch: int, weights: list[Shape], directions: int, output_mask: Sequence[bool]
) -> int:
    needs_input, needs_hx, *needs_weights = output_mask
    # The product of the first time step gives the gradient of hx alone.
    count = 2 * (rows if needs_hx else rows - batch) * directions * prod(weights[1])
    if needs_input:
        count += 2 * rows * directions * prod(weights[0])
    for shape, wanted in zip(weights, needs_weights, strict=True):
        if wanted and len(shape) == 2:
            count += 2 * rows * prod(shape)
    return count


@register_flop_formula(ops._rnn_tangent)
def _tangent(seed: Shape, initial: Shape | None, matrices: list[Shape], *_: Any, **__: Any) -> int:
    return 2 * prod(seed[:-1]) * sum(map(prod, matrices))


@register_flop_formula(ops._rnn_generate)
def _generate(
    prompt: Shape,
    draws: Shape,
    table: Shape,
    hidden: Shape,
    weights: list[Shape],
    out_weight: Shape,
    *_: Any,
    **__: Any,
) -> int:
    # The last token that is drawn is not read again.
    steps = prompt[0] + draws[0] - 1
    layers = sum(prod(shape) for shape in weights if len(shape) == 2)
    return 2 * (steps * layers + draws[0] * prod(out_weight))


@register_flop_formula(ops.recurrence_forward)
def _recurrence_forward(
    input: Shape,
    initial: list[Shape] | None,
    weights: list[Shape],
    *others: Any,
    out_shape: list[Shape],
    **_: Any,
) -> int:
    output, bidirectional = out_shape[0], others[-4]
    tables = _tables(input, output, weights, bidirectional)
    products = [prod(w) for i, w in enumerate(weights) if len(w) == 2 and i not in tables]
    return 2 * prod(output[:-1]) * sum(products)


def _tables(
    input: Shape, output: Shape, weights: list[Shape], bidirectional: bool
) -> Sequence[int]:
    """Returns which weights are tables to look tokens up in: none, if input is not tokens."""
    has_tokens = len(input) < len(output)
    return range(0, len(weights), len(weights) // (2 if bidirectional else 1)) if has_tokens else ()


@register_flop_formula(ops.recurrence_backward)
def _recurrence_backward(
    gradients: list[Shape],
    given: Sequence[bool],
    input: Shape,
    initial: list[Shape],
    weights: list[Shape],
    parameters: list[Shape],
    inputs: list[Shape],
    reset_states: list[Shape],
    output: Shape,
    *others: Any,
    **_: Any,
) -> int:
    bidirectional, _, output_mask = others[-3:]
    rows, directions = prod(output[:-1]), 2 if bidirectional else 1
    batch = initial[0][-2] if initial else output[-2]
    mask = [output_mask[0], bool(initial) and output_mask[1]]
    tables = _tables(input, output, weights, bidirectional)
    for i, wanted in enumerate(output_mask[1 + len(initial) :][: len(weights)]):
        mask.append(wanted and i not in tables)
    return _layer_backward(rows, batch, weights, directions, mask)
