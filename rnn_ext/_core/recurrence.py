"""A layer whose cell is a program: on the kernels, or as a loop of torch operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import composite, node, onnx, recurrence_ops
from .autograd import is_differentiated, keep_unchanged, memory_errors, were_changed
from .cells.cell import Cell
from .cells.interpreter import run_forward
from .composite import Multiply, is_tokens
from .derivatives import expand_to_mask
from .dtypes import KERNEL_DTYPES, cast_for_autocast
from .stack import Part, run_stack
from .torch_private import is_any_autocast_enabled, is_fake, is_tracing, is_transformed
from .vectorize import is_in_legacy_vmap, legacy_vmap

__all__ = ["loop_reason", "run_layer", "run_layers", "run_plain_layer", "run_step"]

_forward = torch.ops.rnn_ext.recurrence_forward.default


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

    def results(self) -> int:
        """The number of tensors that the layer returns."""
        return 1 + self.states() + (self.states() - 1 if self.return_states else 0)

    def split(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Returns input and the lists of the other operands, in the op's order."""
        counts = (self.initial, self.weights, self.parameters, self.inputs, self.reset_states)
        return recurrence_ops.split(tensors, counts)


def loop_reason(tensors: Sequence[Tensor]) -> str:
    """Returns why a layer of these tensors runs as a loop; empty if it runs on kernels."""
    if is_transformed():
        return "torch.func or forward-mode AD"
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
    return _as_layer(run, input, initial, weights, parameters, inputs)


def _as_layer(
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


# reset and batch_sizes.
Settings = tuple[Tensor | None, Tensor | None]


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
    is_captured = torch.compiler.is_compiling() or is_tracing()
    if not is_captured:
        from_node: Sequence[Tensor] | None = node.run_recurrence(
            *(layer.cell, tensors, *settings),
            *(layer[1:6], layer.bidirectional, layer.return_states),
        )
        if from_node is not None:
            return from_node
    if loop_reason(tensors[1:] if is_tokens(tensors[0]) else tensors):
        return _loop(layer, settings, layer.split(tensors))
    if torch.onnx.is_in_onnx_export():
        return _record_for_onnx(layer, settings, tensors)
    if is_captured:
        # torch.jit.trace checks its graph without gradients, which must not change the graph.
        may_need_grad = torch.is_grad_enabled() or not torch.compiler.is_compiling()
        needs_grad = may_need_grad and any(t.requires_grad for t in tensors)
        return _call_forward(layer, settings, tensors, needs_grad)[0][: layer.results()]
    with memory_errors:
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            results: tuple[Tensor, ...] = _Layer.apply(layer, settings, *tensors)
            return results
        return _call_forward(layer, settings, tensors, False)[0]


def _record_for_onnx(
    layer: Recurrence, settings: Settings, tensors: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The layer in operations that ONNX has, a loop over time where it has more than one step."""
    steps: Any = tensors[0].size(0)
    run = composite.loop if type(steps) is int and steps == 1 else onnx.scan
    # Cloned, since no two tensors that a Scan reads may share memory.
    lists = layer.split([t.clone() for t in tensors])
    return _loop(layer, settings, lists, run, partial(run_forward, layer.cell.decoded))


def _call_forward(
    layer: Recurrence, settings: Settings, tensors: Sequence[Tensor], is_recorded: bool
) -> tuple[list[Tensor], int]:
    """Returns the op's results, with those for backward if ``is_recorded``, and kept_states."""
    cell = layer.cell
    kept_states = layer.returned_states()
    if is_recorded:
        kept_states |= cell.kept_states
    input, initial, weights, *operands = layer.split(tensors)
    results: list[Tensor] = _forward(
        # Empty lists as None, since AOTInductor cannot pass them.
        *(input, initial or None, weights, *(tensors or None for tensors in operands)),
        *(*settings, _program_beside(input, cell), layer.bidirectional, layer.states()),
        *(kept_states, cell.kept_values if is_recorded else 0),
    )
    return results, kept_states


def _program_beside(input: Tensor, cell: Cell) -> Tensor:
    """Returns the cell's program; a fake tensor under ``FakeTensorMode``, which needs one."""
    program = cell.program
    if not is_fake(input) or torch.compiler.is_compiling():
        return program
    from torch.fx.experimental.proxy_tensor import get_proxy_mode  # loads all of FakeTensor's

    if get_proxy_mode() is not None:
        return torch.ops.aten.lift_fresh_copy.default(program)  # a constant of the graph
    return input.new_empty(program.shape, dtype=program.dtype, device="cpu")


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Recurrence, settings: Settings, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        results, ctx.kept_states = _call_forward(layer, settings, tensors, True)
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
            return None, None, *_differentiable_backward(layer, settings, tensors, grads, mask)
        if were_changed(ctx):
            results, _ = _call_forward(layer, settings, tensors, True)
            output, *kept = results[0], *results[1 + layer.states() :]
        program = _program_beside(tensors[0], layer.cell)
        flags = (layer.bidirectional, ctx.kept_states)
        with memory_errors:
            gradients = recurrence_ops.backward(
                *(grads, layer.split(tensors), output, kept),
                *((reset, batch_sizes, program, *flags), layer.states(), mask),
            )
        return None, None, *gradients


def _differentiable_backward(
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
            results = _as_layer(lambda *lists: _loop(layer, settings, [*lists, []]), *lists[:-1])
        else:
            results = _loop(layer, settings, lists)
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

    return list(legacy_vmap(gradients, grads) if is_in_legacy_vmap(grads) else gradients(*grads))


def _node_backward(cell: Cell, fields: tuple[Any, ...], *others: Any) -> list[Tensor | None]:
    """The same for the node in C++, which keeps the fields of a ``Recurrence``."""
    counts, *flags = fields
    return _differentiable_backward(Recurrence(cell, *counts, *flags), *others)


node.set_recurrence_backward(_node_backward)


def _loop(
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
