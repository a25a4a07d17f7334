"""A layer whose cell is a program, under ``torch.func``'s transforms and forward-mode AD.

The gradient is the backward op. The tangent is another layer, whose cell is the tangent of the cell
(``cells/tangent.py``). Under vmap both fold the samples into the batch; where the samples have
different weights, or gradients of weights are computed, they run once for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .composite import is_tokens
from .recurrence_layer import Recurrence, Settings, call_backward, call_forward, loop
from .time_order import TimeOrder
from .vectorize import call_batched, folded_or_looped

__all__ = ["run"]


class _Plan(NamedTuple):
    """All of a call but its tensors."""

    layer: Recurrence
    batch_sizes: Tensor | None

    def rows(self) -> list[int | None]:
        """The batch axis of reset and each operand; None for those that have none."""
        layer = self.layer
        axes = [(1, 2 + layer.initial), (None, layer.weights + layer.parameters)]
        axes += [(2, layer.inputs), (-2, layer.reset_states)]
        return [axis for axis, count in axes for _ in range(count)]


def run(layer: Recurrence, settings: Settings, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Runs a layer; its results have derivatives in reverse and forward mode, and under vmap."""
    reset, batch_sizes = settings
    input, initial, weights, parameters, inputs, reset_states = layer.split(tensors)
    if reset is not None:
        rows = reset.size(1)
        reset_states = [t.expand(*t.shape[:-2], rows, t.size(-1)) for t in reset_states]
    operands = (input, *initial, *weights, *parameters, *inputs, *reset_states)
    # The tangent needs all states before each step.
    plan = _Plan(layer._replace(return_states=True), batch_sizes)
    output, *others = _Layer.apply(plan, reset, *operands)
    # The caller may change the results in place; those that the node saved must not change.
    finals, returned = others[: layer.states()], others[layer.states() : plan.layer.results() - 1]
    return [output.clone(), *finals, *(t.clone() for t in returned if layer.return_states)]


class _Layer(torch.autograd.Function):
    """Returns the results of the layer, and the values kept for backward."""

    @staticmethod
    def forward(plan: _Plan, reset: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(call_forward(plan.layer, (reset, plan.batch_sizes), tensors, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
        ctx.plan, *tensors = inputs
        layer = ctx.plan.layer
        ctx.mark_non_differentiable(*results[layer.results() :])
        ctx.set_materialize_grads(False)
        kept = (results[0], *results[1 + layer.states() :])
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        count = len(plan.rows())
        reset, *tensors = ctx.saved_tensors[:count]
        grads = grads[: plan.layer.results()]
        mask = ctx.needs_input_grad[2:]
        if not any(mask) or all(g is None for g in grads):
            return (None,) * (1 + count)
        call = _BackwardPlan(plan, tuple(g is not None for g in grads), tuple(mask))
        results = iter(
            _Backward.apply(
                *(call, reset, *(g for g in grads if g is not None)),
                *(*tensors, *ctx.saved_tensors[count:]),
            )
        )
        return None, None, *(next(results) if wanted else None for wanted in mask)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        count, states = len(plan.rows()), plan.layer.states()
        reset, *tensors = ctx.saved_tensors[:count]
        kept = ctx.saved_tensors[count:]

        def compute(*tangents: Tensor | None) -> Sequence[Tensor]:
            return _tangents(plan, reset, tensors, tangents, kept[:states])

        results = call_batched(compute, tangents[1:])
        return (*results, *[None] * (len(kept) - states))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], plan: _Plan, *tensors: Any) -> Any:
        return folded_or_looped(
            *(partial(_Layer.apply, plan), plan.rows(), info.batch_size, in_dims[1:], tensors),
            plan.batch_sizes is not None,
        )


class _BackwardPlan(NamedTuple):
    """All of a call of the backward op but its tensors.

    Attributes:
        given: for each result of the layer, whether there is a gradient.
        mask: which gradients of the operands to compute.
    """

    plan: _Plan
    given: tuple[bool, ...]
    mask: tuple[bool, ...]

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor | None], Any, Any]:
        """Splits the tensors but reset: gradients of the results, operands, and what was kept."""
        present = sum(self.given)
        grads = iter(tensors[:present])
        end = present + len(self.mask)
        return (
            [next(grads) if is_given else None for is_given in self.given],
            tensors[present:end],
            tensors[end:],
        )


class _Backward(torch.autograd.Function):
    """Returns the wanted gradients. Its own derivatives run the layer again as a loop."""

    @staticmethod
    def forward(call: _BackwardPlan, reset: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        layer, batch_sizes = call.plan
        grads, operands, kept = call.split(tensors)
        output, *kept = [t.contiguous() for t in kept]  # vmap passes samples
        gradients = call_backward(
            *(layer, (reset, batch_sizes), grads, operands, output, kept, call.mask)
        )
        return tuple(g for g in gradients if g is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: tuple[Tensor, ...]) -> None:
        ctx.call, reset, *tensors = inputs
        # The loop computes anew what was kept.
        ctx.count = sum(ctx.call.given) + len(ctx.call.mask)
        ctx.save_for_backward(reset, *tensors[: ctx.count])
        ctx.save_for_forward(reset, *tensors[: ctx.count])
        ctx.missing = [None] * (len(tensors) - ctx.count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        reset, *tensors = ctx.saved_tensors
        gradients, floating = _as_loop(ctx.call, reset, tensors)
        pull = torch.func.vjp(gradients, *floating)[1]
        found = iter(pull(grads))
        results = [next(found) if t.is_floating_point() else None for t in tensors]
        return None, None, *results, *ctx.missing

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        reset, *tensors = ctx.saved_tensors
        gradients, floating = _as_loop(ctx.call, reset, tensors)
        pairs = zip(tensors, tangents[2:], strict=False)
        given = [_or_zeros(t, d) for t, d in pairs if t.is_floating_point()]
        # The transpose of its transpose, since torch.func.jvp runs in no other forward mode.
        outputs, pull, *_ = torch.func.vjp(gradients, *floating)
        (results,) = torch.func.vjp(pull, outputs)[1](tuple(given))
        return tuple(results)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: _BackwardPlan, *tensors: Any) -> Any:
        reset_rows, *rows = call.plan.rows()
        given = sum(call.given)
        kept = len(tensors) - 1 - given - len(rows)
        wanted = [axis for axis, is_wanted in zip(rows, call.mask, strict=True) if is_wanted]
        own_rows = [reset_rows, *[1] * given, *rows, *[1] * kept]
        must_loop = call.plan.batch_sizes is not None or None in wanted
        return folded_or_looped(
            *(partial(_Backward.apply, call), own_rows, info.batch_size, in_dims[1:], tensors),
            # Gradients of weights are sums over the rows of a sample.
            *(must_loop, [axis or 0 for axis in wanted]),
        )


def _as_loop(
    call: _BackwardPlan, reset: Tensor | None, tensors: Sequence[Tensor]
) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Returns the gradients as a differentiable function, and the tensors that it takes.

    Args:
        tensors: the gradients of the results and the operands.
    """
    layer, batch_sizes = call.plan

    def gradients(*floating: Tensor) -> tuple[Tensor, ...]:
        grads, operands, _ = call.split(_replaced(tensors, is_floating, floating))
        given = [g for g in grads if g is not None]

        def results(*wanted: Tensor) -> list[Tensor]:
            lists = layer.split(_replaced(operands, call.mask, wanted))
            outputs = loop(layer, (reset, batch_sizes), lists)
            return [y for y, g in zip(outputs, grads, strict=True) if g is not None]

        pull = torch.func.vjp(results, *compress(operands, call.mask))[1]
        found: tuple[Tensor, ...] = pull(given)
        return found

    is_floating = [t.is_floating_point() for t in tensors]
    return gradients, tuple(compress(tensors, is_floating))


def _replaced(
    tensors: Sequence[Tensor], mask: Sequence[bool], others: Iterable[Tensor]
) -> list[Tensor]:
    """Returns the tensors with those of ``mask`` replaced."""
    rest = iter(others)
    return [next(rest) if flag else t for t, flag in zip(tensors, mask, strict=True)]


def _tangents(
    plan: _Plan,
    reset: Tensor | None,
    tensors: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    states: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Returns the tangents of a layer's results.

    Args:
        tensors, tangents: the operands and their tangents; None: zeros.
        states: y and the further states at all steps.
    """
    layer, batch_sizes = plan
    cell = layer.cell.tangent
    assert cell is not None
    directions = 2 if layer.bidirectional else 1
    operands = layer.split(tensors)
    input, initial, weights, parameters, inputs, reset_states = operands
    d_input, d_initial, d_weights, d_parameters, d_inputs, d_reset_states = layer.split(
        [_or_zeros(t, d) for t, d in zip(tensors, tangents, strict=True)]
    )
    order = TimeOrder(batch_sizes, "", layer.bidirectional)
    before = [
        order.previous(y, t) for y, t in zip(states, initial or [None] * len(states), strict=True)
    ]
    per_direction = layer.weights // directions
    known, own_weights = [], []
    for d in range(directions):
        part = slice(d * per_direction, (d + 1) * per_direction)
        previous = [by_direction[d] for by_direction in before]
        if reset is not None:
            given = [t.select(-3, d) for t in reset_states] or [torch.zeros_like(previous[0])]
            is_reset = reset.unsqueeze(-1)
            given = given * (len(previous) // len(given))
            previous = [torch.where(is_reset, a, b) for a, b in zip(given, previous, strict=True)]
        named = [t[d] for t in inputs]
        values = _known_values(
            *(layer, input, weights[part], d_weights[part], previous, (*parameters, *named))
        )
        known.append([*named, *(t[d] for t in d_inputs), *values])
        own_weights += _weights_of_tangent(input, weights[part], d_weights[part])
    tangent_input = input if is_tokens(input) else torch.cat([d_input, input], -1)
    own_inputs = [torch.stack(parts) for parts in zip(*known, strict=True)]
    own_reset_states = d_reset_states if reset is not None else []
    own_parameters = (*parameters, *d_parameters)
    own = Recurrence(
        *(cell, len(d_initial), len(own_weights), len(own_parameters), len(own_inputs)),
        *(len(own_reset_states), layer.bidirectional, True),
    )
    lists = (d_initial, own_weights, own_parameters, own_inputs, own_reset_states)
    return run(own, (reset, batch_sizes), (tangent_input, *chain(*lists)))


def _or_zeros(tensor: Tensor, tangent: Tensor | None) -> Tensor:
    return torch.zeros_like(tensor) if tangent is None else tangent


def _known_values(
    layer: Recurrence,
    input: Tensor,
    weights: Sequence[Tensor],
    d_weights: Sequence[Tensor],
    previous: Sequence[Tensor],
    named: Sequence[Tensor],
) -> list[Tensor]:
    """Returns u, v, the states before each step, and w, for all steps of one direction."""
    w_ih, w_hh, *biases = weights
    _, dw_hh, *d_biases = d_weights
    hidden_size = w_hh.size(1)
    sizes = [hidden_size * gates for gates in layer.cell.products]
    blocks = list(zip(*(t.split(sizes) for t in (w_hh, *biases[1:])), strict=True))
    d_blocks = list(zip(*(t.split(sizes) for t in (dw_hh, *d_biases[1:])), strict=True))
    u = F.embedding(input, w_ih) if is_tokens(input) else F.linear(input, w_ih)
    u = u + biases[0] if biases else u
    v: list[Tensor] = []
    w: list[Tensor] = []

    def multiply(k: int, x: Tensor) -> Sequence[Tensor]:
        x = x.expand_as(previous[0])
        product = F.linear(x, *blocks[k]).split(hidden_size, -1)
        v.extend(product)
        w.extend(F.linear(x, *d_blocks[k]).split(hidden_size, -1))
        return product

    u_of_gates = u.split(hidden_size, -1)
    if len(sizes) == 1:
        multiply(0, previous[0])
    else:
        layer.cell.run(u_of_gates, multiply, previous, named)
    return [*u_of_gates, *v, *previous, *w]


def _weights_of_tangent(
    input: Tensor, weights: Sequence[Tensor], d_weights: Sequence[Tensor]
) -> list[Tensor]:
    """Returns the weights with which the tangent's layer projects its input."""
    w_ih, w_hh, *biases = weights
    dw_ih, _, *d_biases = d_weights
    projection = dw_ih if is_tokens(input) else torch.cat([w_ih, dw_ih], 1)
    # w has the tangent of b_hh.
    return [projection, w_hh, *d_biases[:1], *map(torch.zeros_like, biases[1:])]
