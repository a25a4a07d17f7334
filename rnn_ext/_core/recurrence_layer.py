"""One layer with a cell: its settings, its op, and the same as a loop of torch operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import composite, node, recurrence_ops
from .cells.cell import Cell
from .composite import Multiply
from .derivatives import expand_to_mask
from .torch_private import is_fake
from .vectorize import call_batched

__all__ = [
    "Recurrence",
    "Settings",
    "as_layer",
    "call_backward",
    "call_forward",
    "differentiable_backward",
    "loop",
]

_forward = torch.ops.rnn_ext.recurrence_forward.default

# reset and batch_sizes.
Settings = tuple[Tensor | None, Tensor | None]


class Recurrence(NamedTuple):
    """The settings of a layer: all but its tensors.

    Attributes:
        cell: the cell of all time steps.
        initial, weights, parameters, inputs, reset_states: the number of tensors of each.
        bidirectional: whether it also runs from the last step to the first.
        return_states: whether to return all steps of the states beside y.
        is_step: whether this is one step, whose tensors have no axes of directions and time.
    """

    cell: Cell
    initial: int
    weights: int
    parameters: int
    inputs: int
    reset_states: int
    bidirectional: bool
    return_states: bool
    is_step: bool = False

    def states(self) -> int:
        return 1 + len(self.cell.states)

    def returned_states(self) -> int:
        """The states whose steps are all returned beside y, a bit each."""
        return (1 << self.states()) - 2 if self.return_states else 0

    def kept_states(self, is_recorded: bool) -> int:
        """The same with those that backward reads, if it is recorded."""
        return self.returned_states() | (self.cell.kept_states if is_recorded else 0)

    def results(self) -> int:
        """The number of tensors that the layer returns."""
        return 1 + self.states() + (self.states() - 1 if self.return_states else 0)

    def split(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Returns input and the lists of the other operands, in the op's order."""
        counts = (self.initial, self.weights, self.parameters, self.inputs, self.reset_states)
        return recurrence_ops.split(tensors, counts)


def as_layer(
    run: Callable[..., Sequence[Tensor]],
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Runs a step with ``run``, which takes the same lists for a sequence; returns the states."""
    hidden_size = weights[1].size(1)
    shape = (*input.shape[:-1], hidden_size)

    def as_step(t: Tensor) -> Tensor:
        return t.unsqueeze(0) if len(shape) == 2 else t[None, None]

    results = run(
        *(as_step(input), [as_step(t) for t in initial], weights),
        [t.expand(hidden_size) for t in parameters],
        [as_step(t.expand(shape)).unsqueeze(0) for t in inputs],
    )
    return [t.view(shape) for t in results[1:]]


def call_forward(
    layer: Recurrence, settings: Settings, tensors: Sequence[Tensor], is_recorded: bool
) -> list[Tensor]:
    """Returns the op's results, followed by those for backward if ``is_recorded``."""
    cell = layer.cell
    input, initial, weights, *operands = layer.split(tensors)
    results: list[Tensor] = _forward(
        # Empty lists as None, since AOTInductor cannot pass them.
        *(input, initial or None, weights, *(tensors or None for tensors in operands)),
        *(*settings, _program_beside(input, cell), layer.bidirectional, layer.states()),
        *(layer.kept_states(is_recorded), cell.kept_values if is_recorded else 0),
    )
    return results


def call_backward(
    layer: Recurrence,
    settings: Settings,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    output: Tensor,
    kept: Sequence[Tensor],
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the gradients that ``mask`` asks for; None for the others.

    Args:
        grads: those of the results of ``call_forward``; missing ones at the end are None.
        output, kept: its results, without the final states.
    """
    program = _program_beside(tensors[0], layer.cell)
    flags = (layer.bidirectional, layer.kept_states(True))
    return recurrence_ops.backward(
        *(grads, layer.split(tensors), output, kept),
        *((*settings, program, *flags), layer.states(), mask),
    )


def _program_beside(input: Tensor, cell: Cell) -> Tensor:
    """Returns the cell's program; a fake tensor under ``FakeTensorMode``, which needs one."""
    program = cell.program
    if not is_fake(input) or torch.compiler.is_compiling():
        return program
    from torch.fx.experimental.proxy_tensor import get_proxy_mode  # loads all of FakeTensor's

    if get_proxy_mode() is not None:
        return torch.ops.aten.lift_fresh_copy.default(program)  # a constant of the graph
    return input.new_empty(program.shape, dtype=program.dtype, device="cpu")


def differentiable_backward(
    layer: Recurrence,
    settings: Settings,
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    mask: Sequence[bool],
) -> list[Tensor | None]:
    """Returns gradients that have a graph: runs the layer again as a loop."""
    # Views, because one operand may depend on another.
    with torch.enable_grad():
        operands = [t.view_as(t) for t in tensors]
        lists = layer.split(operands)
        if layer.is_step:
            results = as_layer(lambda *lists: loop(layer, settings, [*lists, []]), *lists[:-1])
        else:
            results = loop(layer, settings, lists)
    wanted = [t for t, is_wanted in zip(operands, mask, strict=True) if is_wanted]

    def gradients(*grads: Tensor | None) -> Sequence[Tensor | None]:
        pairs = [
            (r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad
        ]
        computed = torch.autograd.grad(
            *([r for r, _ in pairs], wanted, [g for _, g in pairs]),
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        return expand_to_mask(computed, mask)

    return list(call_batched(gradients, grads))


def _node_backward(cell: Cell, fields: tuple[Any, ...], *others: Any) -> list[Tensor | None]:
    """The same for the node in C++, which keeps the fields of a ``Recurrence``."""
    counts, *flags = fields
    return differentiable_backward(Recurrence(cell, *counts, *flags), *others)


node.set_recurrence_backward(_node_backward)


def loop(
    layer: Recurrence,
    settings: Settings,
    lists: Sequence[Any],
    run: composite.Direction = composite.loop,
    compute: Callable[..., Any] | None = None,
) -> Sequence[Tensor]:
    """Runs the layer in torch operations.

    Args:
        lists: the results of ``Recurrence.split``.
        run: runs the steps of one direction.
        compute: computes one step; ``Cell.run`` by default.
    """
    cell = layer.cell
    compute = compute or cell.run
    reset, batch_sizes = settings
    input, initial, weights, parameters, inputs, reset_states = lists

    def step(
        u: Tensor, multiply: Multiply, states: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        width = states[0].size(-1)

        def product(k: int, x: Tensor) -> Sequence[Tensor]:
            return multiply(k, x.to(u.dtype).expand_as(states[0])).split(width, -1)

        next_states = compute(u.split(width, -1), product, states, (*parameters, *inputs))
        next_states = next_states if isinstance(next_states, tuple) else (next_states,)
        return [t.to(u.dtype).expand_as(s) for t, s in zip(next_states, states, strict=True)]

    histories, finals = composite.recurrence(
        *(step, layer.states(), cell.products, input, initial or None, weights, inputs),
        *(batch_sizes, layer.bidirectional, reset, reset_states, run),
    )
    return [histories[0], *finals, *(histories[1:] if layer.return_states else [])]
