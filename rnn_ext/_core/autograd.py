"""Eager calls of an RNN layer, or of one step of a cell, that autograd records.

``csrc/eager/`` is the same in C++, for one torch release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import derivatives
from .time_order import TimeOrder
from .torch_private import (
    apply_function,
    are_functorch_transforms_active,
    is_transformed,
)
from .vectorize import is_in_legacy_vmap

__all__ = [
    "higher_order_backward",
    "is_differentiated",
    "keep_unchanged",
    "memory_errors",
    "rnn_cell",
    "rnn_layer",
    "were_changed",
]

# Looked up once. These ops have no autograd formula.
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
    """Runs one layer.

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
    with memory_errors:
        if not _needs_graph(input, hx, weights):
            return _rnn_forward(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
        settings = (batch_sizes, nonlinearity, bidirectional)
        output_and_h_n: tuple[Tensor, Tensor] = apply_function(
            _RNNLayer, settings, input, hx, weights
        )
        return output_and_h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: None,
    nonlinearity: str,
    bidirectional: bool,
) -> Tensor:
    """Runs one step of a layer: input ``(B, I)``, hx and result ``(B, H)``."""
    with memory_errors:
        if not _needs_graph(input, hx, weights):
            return _cell_forward(input, hx, weights, nonlinearity)
        output: Tensor = apply_function(_RNNCell, (nonlinearity,), input, hx, weights)
        return output


def _needs_graph(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and (
        weights[0].requires_grad
        or input.requires_grad
        or (hx is not None and hx.requires_grad)
        or any(w.requires_grad for w in weights)
    )


class _MemoryErrors:
    """Raises ``torch.OutOfMemoryError`` for the RuntimeError that the ops' C interface makes of it.

    One object of a class: a generator would cost every call a microsecond or two.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: Any) -> None:
        if kind is not None and issubclass(kind, RuntimeError):
            text = str(error)
            if text.startswith("rnn_ext: out of memory"):
                raise torch.OutOfMemoryError(text) from None


memory_errors = _MemoryErrors()


def _save(
    ctx: Any,
    input: Tensor,
    hx: Tensor | None,
    batch_sizes: Tensor | None,
    output: Tensor,
    weights: Sequence[Tensor],
) -> None:
    # Pre-activations are not saved: φ' is a function of h.
    (output,) = keep_unchanged(ctx, [output])
    ctx.save_for_backward(input, hx, batch_sizes, output, *weights)


_EMPTY = torch.empty(0)


def keep_unchanged(ctx: Any, results: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors to save of results that users may change in place, as in torch's RNNs.

    Autograd raises an error if a saved tensor was changed, so these share the data but have their
    own versions. An empty tensor with the result's version shows a change.
    """
    ctx.versions = []
    kept = []
    for result in results:
        if type(result) is Tensor:
            version = result.detach()
            version.data = _EMPTY if result.is_cpu else result.new_empty(0)
            ctx.versions.append((version, result._version))
            result = result.data
        kept.append(result)
    return kept


def were_changed(ctx: Any) -> bool:
    """Whether a result was changed in place since ``keep_unchanged``."""
    return any(version._version != saved for version, saved in ctx.versions)


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Returns input, hx, batch_sizes, the output or None if it was changed, and the weights."""
    input, hx, batch_sizes, output, *weights = ctx.saved_tensors
    return input, hx, batch_sizes, None if were_changed(ctx) else output, weights


def is_differentiated(*grads: Tensor | None) -> bool:
    """Whether backward needs a graph of its own, or runs under vmap."""
    return torch.is_grad_enabled() or are_functorch_transforms_active() or is_in_legacy_vmap(grads)


class _RNNLayer(torch.autograd.Function):
    """A layer, with less overhead than the autograd registered for the op.

    It has no ``setup_context``, for which torch binds the signature in every call (30 µs). Only
    ``torch.func`` needs that, and its calls take another path.
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
        _save(ctx, input, hx, batch_sizes, output, weights)
        ctx.settings = nonlinearity, bidirectional
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        input, hx, batch_sizes, output, weights = _saved(ctx)
        nonlinearity, bidirectional = ctx.settings
        mask = ctx.needs_input_grad[3:]
        with memory_errors:
            if is_differentiated(grad_output, grad_h_n):
                # The saved output has no graph for second derivatives, so it is computed again.
                grads = higher_order_backward(
                    *(grad_output, grad_h_n, input, hx, weights, None, batch_sizes),
                    *(nonlinearity, bidirectional, False, mask),
                )
                return (None, None, None, *grads)
            if output is None:
                output, _ = _rnn_forward(
                    input, hx, weights, batch_sizes, nonlinearity, bidirectional
                )
            grads = _rnn_backward(
                *(grad_output, grad_h_n, input, hx, weights, output, batch_sizes),
                *(nonlinearity, bidirectional, mask),
            )
        return (None, None, None, *derivatives.expand_to_mask(grads, mask))


class _RNNCell(torch.autograd.Function):
    """One step of a cell, as ``_RNNLayer``."""

    @staticmethod
    def forward(
        ctx: Any, nonlinearity: str, input: Tensor, hx: Tensor | None, *weights: Tensor
    ) -> Tensor:
        output = _cell_forward(input, hx, weights, nonlinearity)
        _save(ctx, input, hx, None, output, weights)
        ctx.nonlinearity = nonlinearity
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, hx, _, output, weights = _saved(ctx)
        mask = ctx.needs_input_grad[1:]
        with memory_errors:
            if is_differentiated(grad_output):
                grads = higher_order_backward(
                    *(grad_output, None, input, hx, weights, None, None),
                    *(ctx.nonlinearity, False, True, mask),
                )
                return (None, *grads)
            if output is None:
                output = _cell_forward(input, hx, weights, ctx.nonlinearity)
            grads = _cell_backward(grad_output, input, hx, weights, output, ctx.nonlinearity, mask)
        return (None, *derivatives.expand_to_mask(grads, mask))


def higher_order_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    is_step: bool,
    output_mask: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Returns the gradients that a backward op computes; differentiable, also under vmap.

    Args:
        grad_output, grad_h_n, input, hx: as for a layer or, if ``is_step``, for a step.
        output: likewise; None runs the layer again, which is necessary after a change in place.
        output_mask: which gradients of input, hx and weights to compute; the others are None.
    """
    if is_step:
        input = input.unsqueeze(0)
        grad_output, hx, output = (
            None if t is None else t.unsqueeze(0) for t in (grad_output, hx, output)
        )
    states = output
    if states is None:
        layer = derivatives.rnn_layer if is_transformed() else rnn_layer
        states, _ = layer(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    grads = derivatives.layer_backward(
        *(grad_output, grad_h_n, input, hx, weights, states),
        *(TimeOrder(batch_sizes, nonlinearity, bidirectional), output_mask),
    )
    if not is_step:
        return grads
    grad_input, grad_hx, *grad_weights = grads
    rows = (None if g is None else g.squeeze(0) for g in (grad_input, grad_hx))
    return [*rows, *grad_weights]
