"""Derivatives of any order, in reverse and forward mode, and under vmap.

A layer's tangent and its gradients are matrix products over all steps and one linear recurrence,

    y_t = φ'(z_t) ∘ (s_t + W y_{t-1}),

which is a kernel (``csrc/cpu/tangent.cpp``; on CUDA that of the backward pass). With W_hh it gives
the tangent of the states, where s is what the tangents of input, weights and hx bring in; backward
in time and with W_hhᵀ it gives the gradient of the pre-activations, where s is the gradient of the
output. Its own tangent and gradients are made of it again, so that there is no highest order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .torch_private import is_transformed
from .vectorize import folded_or_looped, is_in_legacy_vmap, legacy_vmap
from .walk import Walk

__all__ = [
    "in_places",
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
    """``torch.ops.rnn_ext.rnn_forward`` for transforms and forward-mode AD."""
    walk = Walk(batch_sizes, nonlinearity, bidirectional)
    output, h_n = _Layer.apply(walk, input, hx, *weights)
    # The caller may change a copy in place; what the node has saved must not change.
    return output.clone(), h_n


def tangent(
    seed: Tensor, initial: Tensor | None, matrices: Sequence[Tensor], states: Tensor, walk: Walk
) -> Tensor:
    """The recurrence above for all directions, differentiable.

    Args:
        seed: s, shaped like ``states``.
        initial: what stands before the first y, ``(D, B, H)``; zeros where None.
        matrices: W of each direction.
        states: the layer's output, of which φ' is a function.
    """
    tensors = (seed, initial, states, *matrices)
    if is_in_legacy_vmap(tensors):

        def call(seed: Tensor, initial: Tensor | None, states: Tensor, *matrices: Tensor) -> Any:
            return (tangent(seed, initial, matrices, states, walk),)

        return legacy_vmap(call, tensors)[0]  # type: ignore[return-value]
    if _is_followed():
        return _Tangent.apply(walk, *tensors)
    return _Tangent.forward(walk, *tensors)


def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    walk: Walk,
    output_mask: Sequence[bool],
) -> Sequence[Tensor | None]:
    """What ``torch.ops.rnn_ext.rnn_backward`` computes, differentiable; None where not wanted.

    ``output`` counts as an operand of its own: its share of the derivative goes on to the layer.
    """
    grads = (grad_output, grad_h_n)

    def gradients(grad_output: Tensor | None, grad_h_n: Tensor | None) -> list[Tensor | None]:
        return _gradients(grad_output, grad_h_n, input, hx, weights, output, walk, output_mask)

    if is_in_legacy_vmap(grads):
        return legacy_vmap(gradients, grads)
    if is_transformed():
        return gradients(*grads)
    return _Backward.apply(*(walk, output_mask, grad_output, grad_h_n, input, hx, output, *weights))


def in_places(
    found: Sequence[Tensor | None], output_mask: Sequence[bool]
) -> Sequence[Tensor | None]:
    """What a backward op returns, with None where ``output_mask`` is False."""
    if len(found) == len(output_mask):
        return found
    rest = iter(found)
    return [next(rest) if wanted else None for wanted in output_mask]


def _gradients(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    walk: Walk,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    """The same of differentiable parts, for transforms to see through."""
    needs_input, needs_hx, *needs_weights = output_mask
    per_direction = _by_direction(weights, walk)
    dz = _preactivation_gradient(grad_output, grad_h_n, output, per_direction, walk)
    parts = walk.split(dz)
    grad_input, grad_hx = None, None
    if needs_input:
        for part, (w_ih, *_) in zip(parts, per_direction, strict=True):
            grad_input = _plus_product(grad_input, part, w_ih)
    if needs_hx:
        firsts = walk.first_rows(dz)
        grad_hx = torch.stack([d @ w[1] for d, w in zip(firsts, per_direction, strict=True)])
    grad_weights: list[Tensor | None] = []
    wanted = iter(needs_weights)
    for part, before in zip(parts, walk.before(output, hx), strict=True):
        rows = part.flatten(0, -2)
        grad_weights.append(rows.t() @ input.flatten(0, -2) if next(wanted) else None)
        grad_weights.append(rows.t() @ before.flatten(0, -2) if next(wanted) else None)
        grad_weights += [rows.sum(0) if next(wanted) else None for _ in per_direction[0][2:]]
    return [grad_input, grad_hx, *grad_weights]


def layer_double_backward(
    grads: Sequence[Tensor | None],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    walk: Walk,
) -> tuple[Tensor | None, ...]:
    """The derivative of ``layer_backward``, which is linear in the gradients that it is given.

    Args:
        grads: those of the gradients of input, hx and the weights; None: zeros.

    Returns:
        The gradients of ``grad_output``, ``grad_h_n``, ``input``, ``hx``, ``output`` and the
        weights; None: zeros, or no such operand.
    """
    # By its linearity, the gradients of the first two are the tangents of output and h_n.
    y, y_last = _layer_tangent(grads, input, hx, weights, output, walk)
    per_direction = _by_direction(weights, walk)
    dz = _preactivation_gradient(grad_output, grad_h_n, output, per_direction, walk)
    grad_states = _curvature(dz, y, output, walk)
    grad_input, grad_hx = None, None
    changes = _by_direction(grads[2:], walk)
    parts = walk.split(dz)
    for part, (change, *_) in zip(parts, changes, strict=True):
        if change is not None:
            grad_input = _plus_product(grad_input, part, change)
    if any(change[1] is not None for change in changes):
        carried = [
            torch.zeros_like(part) if change[1] is None else part @ change[1]
            for part, change in zip(parts, changes, strict=True)
        ]
        start = torch.zeros_like(output) if grad_states is None else grad_states
        grad_states, grad_hx = walk.add_before(start, carried)
    grad_weights: list[Tensor | None] = []
    for part, before in zip(parts, walk.before(y, grads[1]), strict=True):
        rows = part.flatten(0, -2).t()
        grad_weights.append(None if grads[0] is None else rows @ grads[0].flatten(0, -2))
        grad_weights.append(rows @ before.flatten(0, -2))
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
    walk: Walk,
) -> Tensor:
    seed = torch.zeros_like(output) if grad_output is None else grad_output
    if grad_h_n is not None:
        seed = walk.add_to_last_rows(seed, grad_h_n)
    return tangent(seed, None, [w_hh.t() for _, w_hh, *_ in per_direction], output, walk.opposite())


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b; in the memory of total where nobody differentiates this."""
    if total is None:
        return a @ b
    if _is_followed():
        return total + a @ b
    rows = total.flatten(0, -2)
    return rows.addmm_(a.flatten(0, -2), b).view_as(total)


def _is_followed() -> bool:
    """Whether somebody differentiates or vectorizes what is computed."""
    return torch.is_grad_enabled() or is_transformed()


def _layer_tangent(
    tangents: Sequence[Tensor | None],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    walk: Walk,
) -> tuple[Tensor, Tensor]:
    """The tangents of output and h_n for those of input, hx and the weights; None: zeros."""
    input_tangent, hx_tangent, *weight_tangents = tangents
    per_direction = _by_direction(weights, walk)
    changes_per_direction = _by_direction(weight_tangents, walk)
    needs_before = any(changes[1] is not None for changes in changes_per_direction)
    previous = walk.before(output, hx) if needs_before else walk.split(output)
    seeds = []
    for (w_ih, *_), changes, before in zip(
        per_direction, changes_per_direction, previous, strict=True
    ):
        seed = None if input_tangent is None else input_tangent @ w_ih.t()
        for change, operand in zip(changes, (input, before), strict=False):
            if change is not None:
                seed = _plus_product(seed, operand, change.t())
        for change in changes[2:]:
            if change is not None:
                seed = change if seed is None else seed + change
        seeds.append(torch.zeros_like(before) if seed is None else seed.expand_as(before))
    seed = seeds[0] if len(seeds) == 1 else torch.cat(seeds, -1)
    result = tangent(seed, hx_tangent, [w_hh for _, w_hh, *_ in per_direction], output, walk)
    return result, torch.stack(walk.last_rows(result))


def _by_direction(weights: Sequence[Any], walk: Walk) -> list[Sequence[Any]]:
    count = len(weights) // (1 + walk.bidirectional)
    return [weights[i : i + count] for i in range(0, len(weights), count)]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(walk: Walk, *tensors: Any) -> tuple[Tensor, Tensor]:
        input, hx, *weights = tensors
        return torch.ops.rnn_ext._rnn_forward.default(
            input, hx, weights, walk.batch_sizes, walk.nonlinearity, walk.bidirectional
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.walk, *tensors = inputs
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
            grad_output, grad_h_n, input, hx, weights, output, ctx.walk, mask
        )

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        output, input, hx, *weights = ctx.saved_tensors
        return _layer_tangent(tangents, input, hx, weights, output, ctx.walk)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], walk: Walk, *tensors: Any) -> Any:
        def call(input: Tensor, hx: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
            return _Layer.apply(walk, input, hx, *weights)

        return folded_or_looped(
            call, 2, info.batch_size, in_dims[1:], tensors, walk.batch_sizes is not None
        )


class _Backward(torch.autograd.Function):
    """The fused backward, which can be differentiated again; not for transforms."""

    @staticmethod
    def forward(
        ctx: Any,
        walk: Walk,
        output_mask: Sequence[bool],
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        input: Tensor,
        hx: Tensor | None,
        output: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        found = torch.ops.rnn_ext._rnn_backward.default(
            *(grad_output, grad_h_n, input, hx, weights, output),
            *(walk.batch_sizes, walk.nonlinearity, walk.bidirectional, output_mask),
        )
        ctx.walk = walk
        ctx.save_for_backward(grad_output, grad_h_n, input, hx, output, *weights)
        ctx.set_materialize_grads(False)
        return tuple(in_places(found, output_mask))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if is_in_legacy_vmap(grads):
            return tuple(legacy_vmap(partial(_Backward.backward, ctx), grads))
        grad_output, grad_h_n, input, hx, output, *weights = ctx.saved_tensors
        found = layer_double_backward(
            grads, grad_output, grad_h_n, input, hx, weights, output, ctx.walk
        )
        return None, None, *found


class _Tangent(torch.autograd.Function):
    @staticmethod
    def forward(walk: Walk, *tensors: Any) -> Tensor:
        seed, initial, states, *matrices = tensors
        return torch.ops.rnn_ext._rnn_tangent.default(
            *(seed, initial, matrices, states.contiguous()),
            *(walk.batch_sizes, walk.nonlinearity, walk.reverse),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.walk, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if is_in_legacy_vmap((grad,)):
            return tuple(legacy_vmap(partial(_Tangent.backward, ctx), (grad,)))
        walk: Walk = ctx.walk
        y, initial, states, *matrices = ctx.saved_tensors
        _, _, needs_initial, needs_states, *needs_matrices = ctx.needs_input_grad
        found = tangent(grad, None, [m.t() for m in matrices], states, walk.opposite())
        grad_initial = grad_states = None
        if needs_initial:
            firsts = walk.first_rows(found)
            grad_initial = torch.stack([f @ m for f, m in zip(firsts, matrices, strict=True)])
        if needs_states:
            grad_states = _curvature(found, y, states, walk)
        grad_matrices = [
            part.flatten(0, -2).t() @ before.flatten(0, -2) if needed else None
            for part, before, needed in zip(
                walk.split(found), walk.before(y, initial), needs_matrices, strict=True
            )
        ]
        return None, found, grad_initial, grad_states, *grad_matrices

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        walk: Walk = ctx.walk
        y, initial, states, *matrices = ctx.saved_tensors
        seed, initial_tangent, states_tangent, *changes = tangents
        seed = torch.zeros_like(y) if seed is None else seed
        if states_tangent is not None:
            bent = _curvature(states_tangent, y, states, walk)
            seed = seed if bent is None else seed + bent
        parts = [
            part if change is None else part + before @ change.t()
            for part, before, change in zip(
                walk.split(seed), walk.before(y, initial), changes, strict=True
            )
        ]
        return tangent(torch.cat(parts, -1), initial_tangent, matrices, states, walk)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], walk: Walk, *tensors: Any) -> Any:
        def call(seed: Tensor, initial: Tensor | None, states: Tensor, *matrices: Tensor) -> Tensor:
            return tangent(seed, initial, matrices, states, walk)

        return folded_or_looped(
            call, 3, info.batch_size, in_dims[1:], tensors, walk.batch_sizes is not None
        )


def _curvature(a: Tensor, y: Tensor, states: Tensor, walk: Walk) -> Tensor | None:
    """a ∘ y ∘ φ''/φ'², which for tanh is -2 h a y / (1 - h²)²; None: zeros.

    Where a unit is saturated, so that φ' is 0, a and y are 0 too, and so is what is made of them.
    """
    if walk.nonlinearity == "relu":
        return None
    smallest = torch.finfo(states.dtype).tiny
    if _is_followed():
        slope = (1 - states * states).clamp_min(smallest)
        return (a / slope) * (y / slope) * states * -2
    # In the same memory: pages that are touched for the first time cost more than the arithmetic.
    slope = (states * states).neg_().add_(1).clamp_min_(smallest)
    return (a / slope).mul_(slope.reciprocal_().mul_(y)).mul_(states).mul_(-2)
