"""One RNN layer as a differentiable call on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import composite, ops

__all__ = ["rnn_layer"]


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
    arguments = (input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        # A graph takes the op with its registered autograd, tied weights included.
        return torch.ops.rnn_ext.rnn_forward.default(*arguments)
    if torch._C._are_functorch_transforms_active() or _forward_ad_is_active():
        return composite.rnn_layer(*arguments)
    try:
        if torch.is_grad_enabled() and _any_requires_grad(input, hx, weights):
            return _RNNLayer.apply(input, hx, batch_sizes, nonlinearity, bidirectional, *weights)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.rnn_ext.rnn_forward.default(*arguments)
    except RuntimeError as error:
        _raise_if_out_of_memory(error)
        raise


def _any_requires_grad(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool:
    return (
        input.requires_grad
        or (hx is not None and hx.requires_grad)
        or any(w.requires_grad for w in weights)
    )


def _forward_ad_is_active() -> bool:
    return torch.autograd.forward_ad._current_level >= 0


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
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None,
        nonlinearity: str,
        bidirectional: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        arguments = (input, hx, weights, batch_sizes, nonlinearity, bidirectional)
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.rnn_ext.rnn_forward.default(*arguments)
        ops.save_for_backward(ctx, arguments, output)
        return output

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        needs_input, needs_hx, *_ = needs = ctx.needs_input_grad
        mask = [needs_input, needs_hx, *needs[5:]]
        try:
            if torch.is_grad_enabled():  # create_graph: the backward is to be differentiated
                grads = ops.differentiate(ctx, grad_output, grad_h_n, mask)
            else:
                with torch._C._AutoDispatchBelowAutograd():
                    grads = ops.differentiate(ctx, grad_output, grad_h_n, mask)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise
        return (*grads[:2], None, None, None, *grads[2:])
