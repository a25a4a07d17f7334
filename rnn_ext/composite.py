"""One RNN layer written out in torch's own differentiable operations.

Slow, and exact: the derivatives that the fused kernels do not have (double backward, forward mode,
``torch.func`` transforms) are taken through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["double_backward", "rnn_layer"]


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
    activation: object,
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
        h = activation(steps[t] + F.linear(h, w_hh))  # type: ignore[operator]
        steps[t] = h
    h_n = torch.cat([h, *reversed(ended)]) if ended else h
    return (torch.cat(steps) if packed else torch.stack(steps)), h_n


def double_backward(
    operands: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
    output_mask: Sequence[bool],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> list[Tensor | None]:
    """The derivative of a layer's backward, itself differentiable.

    Args:
        operands: ``grad_output``, ``grad_h_n``, ``input``, ``hx`` and the weights.
        wanted: which of them need a gradient.
        grads: the gradients of what the backward returned, that is, of those of ``input``, ``hx``
            and the weights that ``output_mask`` asked for.

    Returns:
        One gradient for each of ``operands``, None where not wanted or zero.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh aliases: the same tensor may stand in several places, and each has its own share.
        alias = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in operands
        ]
        grad_output, grad_h_n, input, hx, *weights = alias
        assert input is not None
        outputs = rnn_layer(input, hx, weights, batch_sizes, nonlinearity, bidirectional)  # type: ignore[arg-type]
        pairs = [
            (o, g) for o, g in zip(outputs, (grad_output, grad_h_n), strict=True) if g is not None
        ]
        inputs = [t for t, m in zip([input, hx, *weights], output_mask, strict=True) if m]
        if not pairs or not inputs:
            return [None] * len(operands)
        first = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,  # type: ignore[arg-type]
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
        chosen = [
            (f, g)
            for f, g in zip(first, grads, strict=True)
            if f is not None and g is not None and f.requires_grad
        ]
        targets = [t for t, w in zip(alias, wanted, strict=True) if w and t is not None]
        if not chosen or not targets:
            return [None] * len(operands)
        second = iter(
            torch.autograd.grad(
                [f for f, _ in chosen],
                targets,
                [g for _, g in chosen],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
        return [
            next(second) if w and t is not None else None
            for t, w in zip(alias, wanted, strict=True)
        ]
