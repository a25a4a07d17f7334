"""One RNN layer, or one step of a cell, as a differentiable call on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import composite, derivatives, onnx
from .torch_private import (
    apply_function,
    are_functorch_transforms_active,
    is_tracing,
    is_transformed,
)
from .vectorize import is_in_legacy_vmap
from .walk import Walk

__all__ = ["is_watched", "rnn_cell", "rnn_layer"]

# Looked up once. None has autograd of its own.
_rnn_forward = torch.ops.rnn_ext._rnn_forward.default
_rnn_backward = torch.ops.rnn_ext._rnn_backward.default
_cell_forward = torch.ops.rnn_ext._cell_forward.default
_cell_backward = torch.ops.rnn_ext._cell_backward.default


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """``torch.ops.rnn_ext.rnn_forward``, taken the shortest way that the call allows.

    Args:
        input: ``(T, B, I)``, or packed ``(N, I)``.
        hx: ``(D, B, H)``, or None for zeros; packed input needs it.
        weights: ``weight_ih``, ``weight_hh`` (, ``bias_ih``, ``bias_hh``) for each direction.
        batch_sizes: rows of each step of packed input, a CPU int64 tensor.

    Returns:
        ``(T, B, D·H)`` or ``(N, D·H)``, and the final states ``(D, B, H)``.

    Raises:
        torch.OutOfMemoryError: no memory for the outputs or for scratch.
    """
    if is_watched():
        if torch.onnx.is_in_onnx_export() and batch_sizes is None:
            forward = onnx.rnn_layer
        elif not (torch.compiler.is_compiling() or is_tracing()):
            forward = derivatives.rnn_layer
        elif is_transformed():
            forward = composite.rnn_layer
        else:
            # With its registered autograd; takes tied weights, which a Function would not there.
            forward = torch.ops.rnn_ext.rnn_forward.default
        return forward(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    try:
        if torch.is_grad_enabled() and _any_requires_grad(input, hx, weights):
            return apply_function(
                _RNNLayer, (batch_sizes, nonlinearity, bidirectional), input, hx, weights
            )
        return _rnn_forward(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    except RuntimeError as error:
        _raise_if_out_of_memory(error)
        raise


def rnn_cell(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], nonlinearity: str
) -> Tensor:
    """``rnn_layer`` for one step: input ``(B, I)``, hx and result ``(B, H)``."""
    if is_watched():
        hx = None if hx is None else hx.unsqueeze(0)
        output, _ = rnn_layer(input.unsqueeze(0), hx, weights, None, nonlinearity, False)
        return output.squeeze(0)
    try:
        if torch.is_grad_enabled() and _any_requires_grad(input, hx, weights):
            return apply_function(_RNNCell, (nonlinearity,), input, hx, weights)
        return _cell_forward(input, hx, weights, nonlinearity)
    except RuntimeError as error:
        _raise_if_out_of_memory(error)
        raise


def is_watched() -> bool:
    """Whether a graph is being recorded, or a transform or forward-mode AD is active."""
    return torch.compiler.is_compiling() or is_tracing() or is_transformed()


def _any_requires_grad(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool:
    return (
        weights[0].requires_grad
        or input.requires_grad
        or (hx is not None and hx.requires_grad)
        or any(w.requires_grad for w in weights)
    )


def _raise_if_out_of_memory(error: RuntimeError) -> None:
    # The stable C interface carries an exception's text but not its type.
    text = str(error)
    if text.startswith("rnn_ext: out of memory"):
        raise torch.OutOfMemoryError(text) from None


class _RNNLayer(torch.autograd.Function):
    """The op with less overhead than the autograd registered for it.

    Without ``setup_context``, for which torch binds the signature anew in every call (30 µs); only
    ``torch.func`` needs it, and that never comes here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        batch_sizes: Tensor | None,
        nonlinearity: str,
        bidirectional: bool,
        input: Tensor,
        hx: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output, h_n = _rnn_forward(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
        # x, h and the weights, nothing else: φ' is a function of h.
        ctx.save_for_backward(input, hx, batch_sizes, output, *weights)
        ctx.settings = nonlinearity, bidirectional
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        input, hx, batch_sizes, output, *weights = ctx.saved_tensors
        mask = ctx.needs_input_grad[3:]
        operands = (input, hx, weights, output)
        try:
            if _is_differentiated(grad_output, grad_h_n):
                walk = Walk(batch_sizes, *ctx.settings)
                found = derivatives.layer_backward(grad_output, grad_h_n, *operands, walk, mask)
                return (None, None, None, *found)
            grads = _rnn_backward(
                *(grad_output, grad_h_n, *operands, batch_sizes, *ctx.settings, mask)
            )
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise
        return (None, None, None, *derivatives.in_places(grads, mask))


class _RNNCell(torch.autograd.Function):
    """The same for one step."""

    @staticmethod
    def forward(
        ctx: Any, nonlinearity: str, input: Tensor, hx: Tensor | None, *weights: Tensor
    ) -> Tensor:
        output = _cell_forward(input, hx, weights, nonlinearity)
        ctx.save_for_backward(input, hx, output, *weights)
        ctx.nonlinearity = nonlinearity
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, hx, output, *weights = ctx.saved_tensors
        mask = ctx.needs_input_grad[1:]
        arguments = (grad_output, input, hx, weights, output, ctx.nonlinearity, mask)
        try:
            if _is_differentiated(grad_output):
                return (None, *_further_cell_backward(*arguments))
            grads = _cell_backward(*arguments)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise
        return (None, *derivatives.in_places(grads, mask))


def _is_differentiated(*grads: Tensor | None) -> bool:
    """Whether a backward is to be differentiated itself (create_graph), or is under vmap."""
    return torch.is_grad_enabled() or are_functorch_transforms_active() or is_in_legacy_vmap(grads)


def _further_cell_backward(
    grad_output: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    nonlinearity: str,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    grad_input, grad_hx, *grad_weights = derivatives.layer_backward(
        grad_output.unsqueeze(0),
        None,
        input.unsqueeze(0),
        None if hx is None else hx.unsqueeze(0),
        weights,
        output.unsqueeze(0),
        Walk(None, nonlinearity, False),
        output_mask,
    )
    states = (None if g is None else g.squeeze(0) for g in (grad_input, grad_hx))
    return [*states, *grad_weights]
