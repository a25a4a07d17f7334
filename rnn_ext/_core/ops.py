"""Fake kernels and autograd of ``torch.ops.rnn_ext.*``.

The schemas are in ``csrc/common/ops.h``; the binary must be loaded before this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import derivatives
from .time_order import TimeOrder

__all__ = ["empty_gradients"]


def _fake_forward(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    directions = 2 if bidirectional else 1
    hidden_size = weights[1].size(0)
    if batch_sizes is None:
        batch = input.size(1)
    else:
        assert hx is not None, "packed input needs hx"
        batch = hx.size(1)
    output = input.new_empty(*input.shape[:-1], directions * hidden_size)
    return output, input.new_empty(directions, batch, hidden_size)


def _fake_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    output_mask: list[bool],
) -> list[Tensor]:
    return empty_gradients([input, hx, *weights], output_mask)


for _name in ("rnn_forward", "_rnn_forward"):
    torch.library.register_fake(f"rnn_ext::{_name}", _fake_forward)
for _name in ("rnn_backward", "_rnn_backward"):
    torch.library.register_fake(f"rnn_ext::{_name}", _fake_backward)


@torch.library.register_fake("rnn_ext::_cell_forward")
def _(input: Tensor, hx: Tensor | None, weights: list[Tensor], nonlinearity: str) -> Tensor:
    return input.new_empty(input.size(0), weights[1].size(0))


@torch.library.register_fake("rnn_ext::_cell_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    nonlinearity: str,
    output_mask: list[bool],
) -> list[Tensor]:
    return empty_gradients([input, hx, *weights], output_mask)


@torch.library.register_fake("rnn_ext::_rnn_tangent")
def _(seed: Tensor, *_: Any) -> Tensor:
    return seed.new_empty(seed.shape)


@torch.library.register_fake("rnn_ext::_rnn_generate")
def _(prompt: Tensor, draws: Tensor, table: Tensor, hidden: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return prompt.new_empty(draws.shape), hidden.new_empty(hidden.shape)


def empty_gradients(operands: Sequence[Tensor | None], output_mask: Sequence[bool]) -> list[Tensor]:
    """Returns empty tensors with the shapes of a backward op's results."""
    return [
        t.new_empty(t.shape)
        for t, wanted in zip(operands, output_mask, strict=True)
        if wanted and t is not None
    ]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, hx, weights, batch_sizes, nonlinearity, bidirectional = inputs
    states, _ = output
    ctx.save_for_backward(input, hx, batch_sizes, states, *weights)
    ctx.nonlinearity = nonlinearity
    ctx.bidirectional = bidirectional
    ctx.set_materialize_grads(False)


def _forward_op_backward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
) -> tuple[Any, ...]:
    input, hx, batch_sizes, output, *weights = ctx.saved_tensors
    needs_input, needs_hx, needs_weights = ctx.needs_input_grad[:3]
    mask = [needs_input, needs_hx, *needs_weights]
    grads = torch.ops.rnn_ext.rnn_backward.default(
        grad_output,
        grad_h_n,
        input,
        hx,
        weights,
        output,
        batch_sizes,
        ctx.nonlinearity,
        ctx.bidirectional,
        mask,
    )
    grad_input, grad_hx, *grad_weights = derivatives.expand_to_mask(grads, mask)
    return grad_input, grad_hx, grad_weights, None, None, None


torch.library.register_autograd(
    "rnn_ext::rnn_forward", _forward_op_backward, setup_context=_save_for_backward
)


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad_output, grad_h_n, input, hx, weights, states, *settings, ctx.output_mask = inputs
    batch_sizes, *flags = settings
    ctx.order = TimeOrder(None, *flags)
    ctx.save_for_backward(batch_sizes, grad_output, grad_h_n, input, hx, states, *weights)
    ctx.set_materialize_grads(False)


def _backward_op_backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    batch_sizes, grad_output, grad_h_n, input, hx, states, *weights = ctx.saved_tensors
    results = derivatives.layer_double_backward(
        derivatives.expand_to_mask(grads, ctx.output_mask),
        *(grad_output, grad_h_n, input, hx, weights, states),
        replace(ctx.order, batch_sizes=batch_sizes),
    )
    grad_states, *grad_weights = results[4:]
    return (*results[:4], grad_weights, grad_states, None, None, None, None)


torch.library.register_autograd(
    "rnn_ext::rnn_backward", _backward_op_backward, setup_context=_save_for_double_backward
)
