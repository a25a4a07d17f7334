"""A layer whose cell is a program: on the kernels, or as a loop of torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import composite, node, onnx, recurrence_transforms
from .autograd import is_differentiated, keep_unchanged, memory_errors, were_changed
from .cells.cell import Cell
from .cells.interpreter import run_forward
from .composite import is_tokens
from .dtypes import KERNEL_DTYPES, cast_for_autocast
from .recurrence_layer import (
    Recurrence,
    Settings,
    as_layer,
    call_backward,
    call_forward,
    differentiable_backward,
    loop,
)
from .stack import Part, run_stack
from .torch_private import (
    derivative_levels,
    is_any_autocast_enabled,
    is_captured,
    is_functionalized,
    is_transformed,
)

__all__ = ["loop_reason", "run_layer", "run_layers", "run_plain_layer", "run_step"]


def loop_reason(cell: Cell, tensors: Sequence[Tensor]) -> str:
    """Returns why a layer of these tensors runs as a loop; empty if it runs on kernels."""
    if is_transformed():
        if is_captured():
            return "torch.func while a graph is recorded"
        if is_functionalized():
            return "torch.func.functionalize"
        derivatives, is_forward = derivative_levels()
        if derivatives > 1:
            return "a derivative of a derivative"
        if is_forward and cell.tangent is None:
            return f"no program computes the tangent of cell {cell.name!r}"
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"no kernel for device type {tensor.device.type}"
        if tensor.dtype not in KERNEL_DTYPES:
            return f"no kernel for {tensor.dtype}"
    return ""


def run_layers(
    cell: Cell,
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    return_states: bool,
    dropout: float,
    reset: Tensor | None,
    reset_states: Sequence[Tensor],
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Runs layers one after the other.

    Args:
        weights: of each layer.
        dropout: probability of zeroing an element of the input of each layer but the first.

    The others are as in :func:`run_layer`, with ``L·D`` in place of ``D``.

    Returns:
        The output and, with ``return_states``, the last layer's further states, at all steps; and
        the final states, ``(L·D, B, H)``.
    """

    def run(input: Tensor, layer: int, own: Part) -> Sequence[Tensor]:
        return run_layer(
            *(cell, input, own(initial, 0), weights[layer], parameters, own(inputs, 0)),
            *(batch_sizes, bidirectional, return_states and layer == len(weights) - 1),
            *(reset, own(reset_states, -3)),
        )

    output, finals, others = run_stack(
        *(run, input),
        num_layers=len(weights),
        directions=2 if bidirectional else 1,
        states=1 + len(cell.states),
        dropout=dropout,
    )
    return [output, *others], finals


def run_layer(
    cell: Cell,
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    return_states: bool,
    reset: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> Sequence[Tensor]:
    """Runs one layer.

    Args:
        input: ``(T, B, I)``, or packed ``(N, I)``.
        initial: the initial states, ``(D, B, H)`` each; none for zeros, but not with packed input.
        weights: ``weight_ih``, ``weight_hh`` (, ``bias_ih``, ``bias_hh``) for each direction.
        parameters: ``(H,)`` each.
        inputs: ``(D, T, B, H)``, or packed ``(D, N, H)`` each.
        batch_sizes: rows of each step of packed input, a CPU int64 tensor.
        reset: ``(T, B)`` bool, the steps before which rows are reset; not with packed input.
        reset_states: the states after a reset, ``(T, D, B or 1, H)`` each, or ``(D, B or 1, H)``
            for all steps; none for zeros.

    Returns:
        y at all steps, ``(T, B, D·H)`` or ``(N, D·H)``; each final state, ``(D, B, H)``; with
        ``return_states`` the states beside y at all steps.

    Raises:
        torch.OutOfMemoryError: no memory for the outputs or for scratch.
    """
    tensors = (input, *initial, *weights, *parameters, *inputs, *reset_states)
    layer = Recurrence(
        *(cell, len(initial), len(weights), len(parameters), len(inputs), len(reset_states)),
        *(bidirectional, return_states),
    )
    if is_any_autocast_enabled():
        tensors = tuple(cast_for_autocast(tensors))
    return _run(layer, (reset, batch_sizes), tensors)


def run_step(
    cell: Cell,
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Runs one step.

    Args:
        input: ``(B, I)``, or ``(I,)`` without a batch.
        initial: the states before it, ``(B, H)`` or ``(H,)`` each; none for zeros.
        weights: as in :func:`run_layer`.
        parameters: each broadcasts to ``(H,)``.
        inputs: each broadcasts to the shape of a state.

    Returns:
        The next states.
    """
    run = partial(run_layer, cell, batch_sizes=None, bidirectional=False, return_states=False)
    return as_layer(run, input, initial, weights, parameters, inputs)


def run_plain_layer(
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: Cell,
    batch_sizes: Tensor | None,
    bidirectional: bool,
    reset: Tensor | None,
    reset_states: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Runs one layer of a cell without operands; returns the output and the final states.

    The input may be tokens, with a table instead of ``weight_ih`` (``csrc/cpu/cell_ops.h``). This
    does not cast under autocast.
    """
    counts = (len(initial), len(weights), 0, 0, len(reset_states))
    layer = Recurrence(cell, *counts, bidirectional, False)
    return _run(layer, (reset, batch_sizes), (input, *initial, *weights, *reset_states))


def _run(layer: Recurrence, settings: Settings, tensors: tuple[Tensor, ...]) -> Sequence[Tensor]:
    if not is_captured():
        from_node: Sequence[Tensor] | None = node.run_recurrence(
            *(layer.cell, tensors, *settings),
            *(layer[1:6], layer.bidirectional, layer.return_states),
        )
        if from_node is not None:
            return from_node
    if loop_reason(layer.cell, tensors[1:] if is_tokens(tensors[0]) else tensors):
        return loop(layer, settings, layer.split(tensors))
    if torch.onnx.is_in_onnx_export():
        return _record_for_onnx(layer, settings, tensors)
    if is_captured():
        # torch.jit.trace checks its graph without gradients, which must not change the graph.
        may_need_grad = torch.is_grad_enabled() or not torch.compiler.is_compiling()
        needs_grad = may_need_grad and any(t.requires_grad for t in tensors)
        return call_forward(layer, settings, tensors, needs_grad)[: layer.results()]
    with memory_errors:
        if is_transformed():
            return recurrence_transforms.run(layer, settings, tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            results: tuple[Tensor, ...] = _Layer.apply(layer, settings, *tensors)
            return results
        return call_forward(layer, settings, tensors, False)


def _record_for_onnx(
    layer: Recurrence, settings: Settings, tensors: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The layer in operations that ONNX has, a loop over time where it has more than one step."""
    steps: Any = tensors[0].size(0)
    run = composite.loop if type(steps) is int and steps == 1 else onnx.scan
    # Cloned, since no two tensors that a Scan reads may share memory.
    lists = layer.split([t.clone() for t in tensors])
    return loop(layer, settings, lists, run, partial(run_forward, layer.cell.decoded))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Recurrence, settings: Settings, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        results = call_forward(layer, settings, tensors, True)
        ctx.layer, ctx.count = layer, len(tensors)
        returned = results[1 + layer.states() : layer.results()]
        kept = keep_unchanged(ctx, [results[0], *returned])
        ctx.save_for_backward(*settings, *tensors, *kept, *results[layer.results() :])
        ctx.set_materialize_grads(False)
        return tuple(results[: layer.results()])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        layer: Recurrence = ctx.layer
        reset, batch_sizes, *saved = ctx.saved_tensors
        tensors, (output, *kept) = saved[: ctx.count], saved[ctx.count :]
        mask = ctx.needs_input_grad[2:]
        settings = (reset, batch_sizes)
        if is_differentiated(*grads):
            return None, None, *differentiable_backward(layer, settings, tensors, grads, mask)
        if were_changed(ctx):
            results = call_forward(layer, settings, tensors, True)
            output, *kept = results[0], *results[1 + layer.states() :]
        with memory_errors:
            gradients = call_backward(layer, settings, grads, tensors, output, kept, mask)
        return None, None, *gradients
