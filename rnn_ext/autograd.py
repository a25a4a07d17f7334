"""One RNN layer, or one step of a cell, as a differentiable call on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

from . import composite, ops

__all__ = ["rnn_cell", "rnn_layer"]

_rnn_forward = torch.ops.rnn_ext.rnn_forward.default
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
    arguments = (input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    if _is_watched():
        # A graph takes the op with its registered autograd, tied weights included.
        recorded = torch.compiler.is_compiling() or torch._C._is_tracing()
        return (_rnn_forward if recorded else composite.rnn_layer)(*arguments)
    try:
        if torch.is_grad_enabled() and _any_requires_grad(input, hx, weights):
            return _apply(_RNNLayer, (batch_sizes, nonlinearity, bidirectional), input, hx, weights)
        with torch._C._AutoDispatchBelowAutograd():
            return _rnn_forward(*arguments)
    except RuntimeError as error:
        _raise_if_out_of_memory(error)
        raise


def rnn_cell(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], nonlinearity: str
) -> Tensor:
    """``rnn_layer`` for one step: input ``(B, I)``, hx and result ``(B, H)``."""
    if _is_watched():
        hx = None if hx is None else hx.unsqueeze(0)
        output, _ = rnn_layer(input.unsqueeze(0), hx, weights, None, nonlinearity, False)
        return output.squeeze(0)
    try:
        if torch.is_grad_enabled() and _any_requires_grad(input, hx, weights):
            return _apply(_RNNCell, (nonlinearity,), input, hx, weights)
        with torch._C._AutoDispatchBelowAutograd():
            return _cell_forward(input, hx, weights, nonlinearity)
    except RuntimeError as error:
        _raise_if_out_of_memory(error)
        raise


def _is_watched() -> bool:
    """Whether a graph is being recorded, or a transform or forward-mode AD is active."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


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


def _apply(
    function: type[torch.autograd.Function],
    settings: tuple[Any, ...],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
) -> Any:
    """``function.apply``, less what its wrapper in Python does for ``torch.func`` (9 µs)."""
    # But this: a tensor kept from a transform that has ended stands for the one that has gradients.
    return super(torch.autograd.Function, function).apply(  # type: ignore[misc]
        *settings,
        unwrap_if_dead(input),
        None if hx is None else unwrap_if_dead(hx),
        *map(unwrap_if_dead, weights),
    )


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
        arguments = (input, hx, weights, batch_sizes, nonlinearity, bidirectional)
        with torch._C._AutoDispatchBelowAutograd():
            output = _rnn_forward(*arguments)
        ops.save_for_backward(ctx, arguments, output)
        return output

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[3:]
        try:
            if torch.is_grad_enabled():  # create_graph: the backward is to be differentiated
                grads = ops.differentiate(ctx, grad_output, grad_h_n, mask)
            else:
                with torch._C._AutoDispatchBelowAutograd():
                    grads = ops.differentiate(ctx, grad_output, grad_h_n, mask)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise
        return (None, None, None, *grads)


class _RNNCell(torch.autograd.Function):
    """The same for one step."""

    @staticmethod
    def forward(
        ctx: Any, nonlinearity: str, input: Tensor, hx: Tensor | None, *weights: Tensor
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output = _cell_forward(input, hx, weights, nonlinearity)
        ctx.save_for_backward(input, hx, output, *weights)
        ctx.nonlinearity = nonlinearity
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, hx, output, *weights = ctx.saved_tensors
        mask = ctx.needs_input_grad[1:]
        arguments = (input, hx, weights, output, ctx.nonlinearity, mask)
        try:
            if torch.is_grad_enabled():  # create_graph: the backward is to be differentiated
                grads = ops.differentiable_cell_backward(grad_output, *arguments)
            else:
                with torch._C._AutoDispatchBelowAutograd():
                    grads = _cell_backward(grad_output, *arguments)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise
        return (None, *ops.in_places(grads, mask))
