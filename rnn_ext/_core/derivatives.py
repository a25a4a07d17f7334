"""Derivatives of any order, in reverse and forward mode, and under vmap.

A layer's tangent and its gradients consist of matrix products over all steps and one linear
recurrence,

    y_t = φ'(z_t) ∘ (s_t + W y_{t-1}),

which is a kernel (``csrc/cpu/tangent.cpp``; on CUDA the kernel of the backward pass). With W = W_hh
it computes the tangent of the states; s is then the contribution of the tangents of input, weights
and hx. Backward in time and with W = W_hhᵀ it computes the gradient of the pre-activations; s is
then the gradient of the output. The tangent and the gradients of the recurrence use it again, so
derivatives of any order exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .time_order import TimeOrder
from .torch_private import is_transformed
from .vectorize import folded_or_looped, is_in_legacy_vmap, legacy_vmap

__all__ = [
    "expand_to_mask",
    "layer_backward",
    "layer_double_backward",
    "rnn_layer",
    "tangent",
]


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Computes ``torch.ops.rnn_ext.rnn_forward`` under transforms and forward-mode AD."""
    order = TimeOrder(batch_sizes, nonlinearity, bidirectional)
    output, h_n = _Layer.apply(order, input, hx, *weights)
    # The caller may change the result in place; the tensor that the node saved must not change.
    return output.clone(), h_n


def tangent(
    seed: Tensor,
    initial: Tensor | None,
    matrices: Sequence[Tensor],
    states: Tensor,
    order: TimeOrder,
) -> Tensor:
    """Computes the recurrence above for all directions; differentiable.

    Args:
        seed: s, shaped like ``states``.
        initial: y before the first step, ``(D, B, H)``; None for zeros.
        matrices: W of each direction, ``(H, H)``.
        states: the layer's output, which determines φ'.
    """
    tensors = (seed, initial, states, *matrices)
    if is_in_legacy_vmap(tensors):

        def call(seed: Tensor, initial: Tensor | None, states: Tensor, *matrices: Tensor) -> Any:
            return (tangent(seed, initial, matrices, states, order),)

        return legacy_vmap(call, tensors)[0]  # type: ignore[return-value]
    if _needs_graph():
        return _Tangent.apply(order, *tensors)
    return _Tangent.forward(order, *tensors)


def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    order: TimeOrder,
    output_mask: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Computes ``torch.ops.rnn_ext.rnn_backward``, differentiably.

    ``output`` is treated as an independent operand; its gradient flows back through the layer.

    Returns:
        The gradients of input, hx and the weights; None where ``output_mask`` is False.
    """
    grads = (grad_output, grad_h_n)

    def gradients(grad_output: Tensor | None, grad_h_n: Tensor | None) -> list[Tensor | None]:
        return _gradients(grad_output, grad_h_n, input, hx, weights, output, order, output_mask)

    if is_in_legacy_vmap(grads):
        return legacy_vmap(gradients, grads)
    if is_transformed():
        return gradients(*grads)
    return _Backward.apply(
        *(order, output_mask, grad_output, grad_h_n, input, hx, output, *weights)
    )


def expand_to_mask(
    grads: Sequence[Tensor | None], output_mask: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Returns a backward op's gradients with None for those that ``output_mask`` left out."""
    if len(grads) == len(output_mask):
        return grads
    rest = iter(grads)
    return [next(rest) if wanted else None for wanted in output_mask]


def _gradients(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    order: TimeOrder,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """Computes ``layer_backward`` in differentiable operations, which transforms can trace."""
    needs_input, needs_hx, *needs_weights = output_mask
    per_direction = _by_direction(weights, order)
    dz = _preactivation_gradient(grad_output, grad_h_n, output, per_direction, order)
    parts = order.split(dz)
    grad_input, grad_hx = None, None
    if needs_input:
        for part, (w_ih, *_) in zip(parts, per_direction, strict=True):
            grad_input = _plus_product(grad_input, part, w_ih)
    if needs_hx:
        initial = order.initial_rows(dz)
        grad_hx = torch.stack([d @ w[1] for d, w in zip(initial, per_direction, strict=True)])
    grad_weights: list[Tensor | None] = []
    needs = iter(needs_weights)
    for part, previous in zip(parts, order.previous(output, hx), strict=True):
        rows = part.flatten(0, -2)
        grad_weights.append(rows.t() @ input.flatten(0, -2) if next(needs) else None)
        grad_weights.append(rows.t() @ previous.flatten(0, -2) if next(needs) else None)
        grad_weights += [rows.sum(0) if next(needs) else None for _ in per_direction[0][2:]]
    return [grad_input, grad_hx, *grad_weights]


def layer_double_backward(
    grads: Sequence[Tensor | None],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    order: TimeOrder,
) -> tuple[Tensor | None, ...]:
    """Computes the gradients of ``layer_backward``, which is linear in the given gradients.

    Args:
        grads: the gradients of its results, in the order of input, hx and weights; None: zeros.

    Returns:
        The gradients of ``grad_output``, ``grad_h_n``, ``input``, ``hx``, ``output`` and the
        weights; None: zeros, or no such operand.
    """
    # Since it is linear, the gradients of grad_output and grad_h_n are tangents of output and h_n.
    y, y_last = _layer_tangent(grads, input, hx, weights, output, order)
    per_direction = _by_direction(weights, order)
    dz = _preactivation_gradient(grad_output, grad_h_n, output, per_direction, order)
    grad_states = _curvature(dz, y, output, order)
    grad_input, grad_hx = None, None
    weight_grads = _by_direction(grads[2:], order)
    parts = order.split(dz)
    for part, (grad_w_ih, *_) in zip(parts, weight_grads, strict=True):
        if grad_w_ih is not None:
            grad_input = _plus_product(grad_input, part, grad_w_ih)
    if any(grad_w_hh is not None for _, grad_w_hh, *_ in weight_grads):
        carried = [
            torch.zeros_like(part) if grad_w_hh is None else part @ grad_w_hh
            for part, (_, grad_w_hh, *_) in zip(parts, weight_grads, strict=True)
        ]
        start = torch.zeros_like(output) if grad_states is None else grad_states
        grad_states, grad_hx = order.add_to_previous(start, carried)
    grad_weights: list[Tensor | None] = []
    for part, previous in zip(parts, order.previous(y, grads[1]), strict=True):
        rows = part.flatten(0, -2).t()
        grad_weights.append(None if grads[0] is None else rows @ grads[0].flatten(0, -2))
        grad_weights.append(rows @ previous.flatten(0, -2))
        grad_weights += [None] * (len(per_direction[0]) - 2)
    return (
        None if grad_output is None else y,
        None if grad_h_n is None else y_last,
        grad_input,
        None if hx is None else grad_hx,
        grad_states,
        *grad_weights,
    )


def _preactivation_gradient(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    per_direction: Sequence[Sequence[Tensor]],
    order: TimeOrder,
) -> Tensor:
    seed = torch.zeros_like(output) if grad_output is None else grad_output
    if grad_h_n is not None:
        seed = order.add_to_final_rows(seed, grad_h_n)
    return tangent(
        seed, None, [w_hh.t() for _, w_hh, *_ in per_direction], output, order.reversed()
    )


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Returns total + a @ b, in place if no graph is recorded."""
    if total is None:
        return a @ b
    if _needs_graph():
        return total + a @ b
    rows = total.flatten(0, -2)
    return rows.addmm_(a.flatten(0, -2), b).view_as(total)


def _needs_graph() -> bool:
    """Whether a graph is recorded or a transform is active."""
    return torch.is_grad_enabled() or is_transformed()


def _layer_tangent(
    tangents: Sequence[Tensor | None],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    order: TimeOrder,
) -> tuple[Tensor, Tensor]:
    """Returns the tangents of output and h_n for those of input, hx and weights; None: zeros."""
    input_tangent, hx_tangent, *weight_tangents = tangents
    per_direction = _by_direction(weights, order)
    tangents_per_direction = _by_direction(weight_tangents, order)
    needs_previous = any(w_hh is not None for _, w_hh, *_ in tangents_per_direction)
    previous_states = order.previous(output, hx) if needs_previous else order.split(output)
    seeds = []
    for (w_ih, *_), tangents, previous in zip(
        per_direction, tangents_per_direction, previous_states, strict=True
    ):
        seed = None if input_tangent is None else input_tangent @ w_ih.t()
        for matrix, operand in zip(tangents, (input, previous), strict=False):
            if matrix is not None:
                seed = _plus_product(seed, operand, matrix.t())
        for bias in tangents[2:]:
            if bias is not None:
                seed = bias if seed is None else seed + bias
        seeds.append(torch.zeros_like(previous) if seed is None else seed.expand_as(previous))
    seed = seeds[0] if len(seeds) == 1 else torch.cat(seeds, -1)
    result = tangent(seed, hx_tangent, [w_hh for _, w_hh, *_ in per_direction], output, order)
    return result, torch.stack(order.final_rows(result))


def _by_direction(weights: Sequence[Any], order: TimeOrder) -> list[Sequence[Any]]:
    count = len(weights) // (1 + order.bidirectional)
    return [weights[i : i + count] for i in range(0, len(weights), count)]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(order: TimeOrder, *tensors: Any) -> tuple[Tensor, Tensor]:
        input, hx, *weights = tensors
        return torch.ops.rnn_ext._rnn_forward.default(
            input, hx, weights, order.batch_sizes, order.nonlinearity, order.bidirectional
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.order, *tensors = inputs
        ctx.save_for_backward(output[0], *tensors)
        ctx.save_for_forward(output[0], *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        output, input, hx, *weights = ctx.saved_tensors
        mask = ctx.needs_input_grad[1:]
        return None, *layer_backward(
            grad_output, grad_h_n, input, hx, weights, output, ctx.order, mask
        )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        output, input, hx, *weights = ctx.saved_tensors
        return _layer_tangent(tangents, input, hx, weights, output, ctx.order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], order: TimeOrder, *tensors: Any) -> Any:
        def call(input: Tensor, hx: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
            return _Layer.apply(order, input, hx, *weights)

        rows = (1, 1, *[None] * (len(tensors) - 2))
        is_packed = order.batch_sizes is not None
        return folded_or_looped(call, rows, info.batch_size, in_dims[1:], tensors, is_packed)


class _Backward(torch.autograd.Function):
    """The backward op, differentiable; not under transforms."""

    @staticmethod
    def forward(
        ctx: Any,
        order: TimeOrder,
        output_mask: Sequence[bool],
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        input: Tensor,
        hx: Tensor | None,
        output: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        grads = torch.ops.rnn_ext._rnn_backward.default(
            *(grad_output, grad_h_n, input, hx, weights, output),
            *(order.batch_sizes, order.nonlinearity, order.bidirectional, output_mask),
        )
        ctx.order = order
        ctx.save_for_backward(grad_output, grad_h_n, input, hx, output, *weights)
        ctx.set_materialize_grads(False)
        return tuple(expand_to_mask(grads, output_mask))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if is_in_legacy_vmap(grads):
            return tuple(legacy_vmap(partial(_Backward.backward, ctx), grads))
        grad_output, grad_h_n, input, hx, output, *weights = ctx.saved_tensors
        return (
            None,
            None,
            *layer_double_backward(
                grads, grad_output, grad_h_n, input, hx, weights, output, ctx.order
            ),
        )


class _Tangent(torch.autograd.Function):
    @staticmethod
    def forward(order: TimeOrder, *tensors: Any) -> Tensor:
        seed, initial, states, *matrices = tensors
        return torch.ops.rnn_ext._rnn_tangent.default(
            *(seed, initial, matrices, states.contiguous()),
            *(order.batch_sizes, order.nonlinearity, order.reverse),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.order, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if is_in_legacy_vmap((grad,)):
            return tuple(legacy_vmap(partial(_Tangent.backward, ctx), (grad,)))
        order: TimeOrder = ctx.order
        y, initial, states, *matrices = ctx.saved_tensors
        _, _, needs_initial, needs_states, *needs_matrices = ctx.needs_input_grad
        grad_seed = tangent(grad, None, [m.t() for m in matrices], states, order.reversed())
        grad_initial = grad_states = None
        if needs_initial:
            rows = order.initial_rows(grad_seed)
            grad_initial = torch.stack([r @ m for r, m in zip(rows, matrices, strict=True)])
        if needs_states:
            grad_states = _curvature(grad_seed, y, states, order)
        grad_matrices = [
            part.flatten(0, -2).t() @ previous.flatten(0, -2) if needed else None
            for part, previous, needed in zip(
                order.split(grad_seed), order.previous(y, initial), needs_matrices, strict=True
            )
        ]
        return None, grad_seed, grad_initial, grad_states, *grad_matrices

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        order: TimeOrder = ctx.order
        y, initial, states, *matrices = ctx.saved_tensors
        seed, initial_tangent, states_tangent, *matrix_tangents = tangents
        seed = torch.zeros_like(y) if seed is None else seed
        if states_tangent is not None:
            curvature = _curvature(states_tangent, y, states, order)
            seed = seed if curvature is None else seed + curvature
        parts = [
            part if matrix is None else part + previous @ matrix.t()
            for part, previous, matrix in zip(
                order.split(seed), order.previous(y, initial), matrix_tangents, strict=True
            )
        ]
        return tangent(torch.cat(parts, -1), initial_tangent, matrices, states, order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], order: TimeOrder, *tensors: Any) -> Any:
        def call(seed: Tensor, initial: Tensor | None, states: Tensor, *matrices: Tensor) -> Tensor:
            return tangent(seed, initial, matrices, states, order)

        rows = (1, 1, 1, *[None] * (len(tensors) - 3))
        is_packed = order.batch_sizes is not None
        return folded_or_looped(call, rows, info.batch_size, in_dims[1:], tensors, is_packed)


def _curvature(a: Tensor, y: Tensor, states: Tensor, order: TimeOrder) -> Tensor | None:
    """Returns a ∘ y ∘ φ''/φ'², which for tanh is -2 h a y / (1 - h²)²; None: zeros.

    Where a unit is saturated, φ', a and y are 0, and so is the result.
    """
    if order.nonlinearity == "relu":
        return None
    smallest = torch.finfo(states.dtype).tiny
    if _needs_graph():
        slope = (1 - states * states).clamp_min(smallest)
        return (a / slope) * (y / slope) * states * -2
    # In place: the first use of a page of memory costs more than the arithmetic.
    slope = (states * states).neg_().add_(1).clamp_min_(smallest)
    return (a / slope).mul_(slope.reciprocal_().mul_(y)).mul_(states).mul_(-2)
