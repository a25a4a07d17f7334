"""Chooses the path of a call, once, for running it and for ``explain``."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .. import _C
from . import autograd, composite, cuda, derivatives, node, onnx, recurrence
from .call import Call
from .cells.cell import Cell
from .dtypes import KERNEL_DTYPES, cast_for_autocast
from .stack import Part, run_stack
from .torch_private import (
    is_any_autocast_enabled,
    is_batchedtensor,
    is_captured,
    is_functionalized,
    is_tracing,
    is_transformed,
    overrides_operations,
)

__all__ = ["Path", "Route", "is_watched", "program_path", "route", "run_layers"]


class Path(enum.Enum):
    """The implementation that runs a call. All but LOOP, ONNX and TORCH run the fused kernels.

    ========= ====================================================== =============================
    Path      taken                                                  what runs
    ========= ====================================================== =============================
    NODE      eagerly on the CPU, under the torch release that       the op, and an autograd node,
              ``csrc/eager/`` was built for                          both called from C++
    FUNCTION  eagerly elsewhere: other releases, CUDA, tensor        the op, and
              subclasses, function modes                             ``torch.autograd.Function``
    TRANSFORM under ``torch.func`` and forward-mode AD; a vmap over  the op, and Functions with
              weights or packed input calls it once a sample: slow   rules for transforms
    GRAPH     recorded by torch.compile, torch.export or             the registered op
              torch.jit.trace
    LOOP      under ``torch.func`` inside torch.compile and under    torch's ops, a step at a time
              ``torch.func.functionalize``; by GRU and LSTM for a
              derivative of a derivative: slow
    ONNX      under torch.onnx.export(dynamo=True)                   ONNX's operator
    TORCH     the kernels do not support it, or it is a mistake      torch's own op, or its error
    ========= ====================================================== =============================

    Backward of NODE and FUNCTION runs the backward op. With ``create_graph`` it runs as a Function
    that can be differentiated again, and with ``is_grads_batched`` under torch's older vmap: for an
    RNN on fused kernels (``derivatives.py``), for GRU and LSTM as a loop (``recurrence.py``).
    """

    NODE = "autograd node in C++"
    FUNCTION = "autograd Function in Python"
    TRANSFORM = "torch.func or forward-mode AD"
    GRAPH = "recorded as an op"
    LOOP = "a loop over time"
    ONNX = "recorded as ONNX's operator"
    TORCH = "torch's own op"


class Route(NamedTuple):
    """A call, its path, and the reason for it if there was a choice.

    Under autocast the tensors of ``call`` are already cast.
    """

    call: Call
    path: Path
    reason: str = ""

    def kernels(self) -> str:
        """Returns the kernels: ``"cpu"``, ``"persistent"`` or ``"step"`` (CUDA), or ``"torch"``."""
        if self.path in (Path.TORCH, Path.LOOP, Path.ONNX):
            return "torch"
        return cuda.plan_of(self.call).regime if self.call.input.is_cuda else "cpu"

    def run(self) -> Sequence[Tensor]:
        """Runs the call.

        Returns:
            The output and the final states, or the next states for a step of a cell.
        """
        call = self.call
        if self.path is Path.TORCH:
            return _run_torchs_op(call)
        if call.is_step:
            return _run_step(call, self.path)
        run = _layer_of(call, self.path)
        return run_layers(call, lambda _, *tensors: run(*tensors))


def run_layers(call: Call, run: Callable[..., Sequence[Tensor]]) -> Sequence[Tensor]:
    """Runs a call's layers: ``run(layer, input, initial, weights, reset_states)`` for each.

    Args:
        run: returns the output and the final states of the layer with this number.

    Returns:
        The output and the final states.
    """
    initial = call.initial_states()
    per_layer = len(call.weights) // call.num_layers

    def run_layer(input: Tensor, layer: int, own: Part) -> Sequence[Tensor]:
        weights = call.weights[layer * per_layer : (layer + 1) * per_layer]
        return run(layer, input, own(initial, 0), weights, own(call.reset_states, -3))

    output, finals, _ = run_stack(
        *(run_layer, call.input),
        num_layers=call.num_layers,
        directions=call.directions(),
        states=call.kind.states(),
        dropout=call.dropout if call.training else 0.0,
    )
    return output, *finals


def route(call: Call) -> Route:
    """Returns the route of a call; runs nothing."""
    if is_any_autocast_enabled():
        call = _cast_for_cpu_autocast(call)
    if call.reset is not None:
        return _route_of_program(call)
    is_rnn = call.kind.is_compiled()
    if is_rnn and not torch.compiler.is_compiling() and node.takes(*call):
        return Route(call, Path.NODE)
    reason = _refusal(call)
    if reason:
        return Route(call, Path.TORCH, reason)
    if call.input.is_cuda:
        if not is_rnn:
            return Route(call, Path.TORCH, f"no CUDA kernel for {call.kind.name}")
        choice = cuda.choose(call)
        reason = choice.reason
        if not choice.ours:
            return Route(call, Path.TORCH, reason)
    if is_watched():
        return _watched_route(call)
    obstacle = _obstacle(call)
    if obstacle:
        return Route(call, Path.TORCH, obstacle)
    return Route(call, _eager_path(call), reason)


def _route_of_program(call: Call) -> Route:
    """Returns the route of a call whose cell runs as a program."""
    rows = [call.input, *call.initial_states(), *call.reset_states]
    is_packed = call.batch_sizes is not None
    return Route(call, *program_path(call.kind.cell, rows, call.weights, is_packed))


def program_path(
    cell: Cell, rows: Sequence[Tensor], weights: Sequence[Tensor], is_packed: bool
) -> tuple[Path, str]:
    """Returns the path of a cell's program, and why.

    Args:
        rows: the tensors that have a batch axis.
        weights: the others.
    """
    tensors = (*rows, *weights)
    reason = recurrence.loop_reason(cell, tensors)
    if reason:
        return Path.LOOP, reason
    if is_captured():
        return Path.GRAPH, ""
    if is_transformed():
        return Path.TRANSFORM, _samples_reason(rows, weights, is_packed)
    return (Path.NODE if node.takes_tensors(*tensors) else Path.FUNCTION), ""


def _samples_reason(
    rows: Sequence[Tensor | None], weights: Sequence[Tensor], is_packed: bool
) -> str:
    """Returns why a call under vmap runs once for each sample; empty if it does not."""
    looping = (*weights, *rows) if is_packed else weights
    if any(t is not None and is_batchedtensor(t) for t in looping):
        return "once a sample: vmap over weights or packed input"
    return ""


def _eager_path(call: Call) -> Path:
    tensors = (call.input, *call.initial_states(), *call.weights, *call.reset_states)
    return Path.NODE if call.is_program() and node.takes_tensors(*tensors) else Path.FUNCTION


def is_watched() -> bool:
    """Whether a graph is being recorded, or a transform or forward-mode AD is active."""
    return is_captured() or is_transformed()


def _refusal(call: Call) -> str:
    """Returns why attributes, dtype or devices require torch's op; empty if they do not."""
    input, weights = call.input, call.weights
    states = call.initial_states()
    if any(map(overrides_operations, (input, *states, *weights))):
        return "a tensor subclass overrides torch's operations"
    if not (input.is_cpu or input.is_cuda):
        return f"no kernel for device type {input.device.type}"
    if input.is_cuda and torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if input.dtype not in KERNEL_DTYPES:
        return f"no {'CUDA' if input.is_cuda else 'CPU'} kernel for {input.dtype}"
    for tensor in (input, *states, *weights):
        if tensor is None or tensor.device != input.device:
            return "a weight or state is missing or on another device than input"
        if tensor.layout is not torch.strided:
            return f"no kernel for layout {tensor.layout}"
    if not call.is_step:
        # torch's op accepts neither a number for a flag nor a flag for a number.
        flags = (call.bias, call.bidirectional, call.training)
        if any(type(flag) is not bool for flag in flags) or type(call.num_layers) is not int:
            return "bias, bidirectional or training is no bool, or num_layers no int"
        if not weights or len(weights) != call.states() * (4 if call.bias else 2):
            return "num_layers, bidirectional and bias do not fit the weights"
    if not states and weights[1].size(0) != call.kind.cell.gates * call.hidden_size:
        return "hidden_size does not fit the weights"
    return ""


def _obstacle(call: Call) -> str:
    """Returns why the kernels do not support these dtypes and shapes; empty if they do."""
    input, weights, batch_sizes = call.input, call.weights, call.batch_sizes
    states = call.initial_states()
    if any(t.dtype != input.dtype for t in (*states, *weights)):
        return "input, states and weights differ in dtype"
    if any(type(size) is not int for size in (*input.shape, *weights[0].shape)):
        return ""  # comparing symbolic sizes would fix them; the op compares them when it runs
    hx_shape, *others = (t.shape for t in states) if states else (None,)
    if any(shape != hx_shape for shape in others):
        return "the states differ in shape"
    return _C.find_obstacle(
        input.shape,
        hx_shape,
        [w.shape for w in weights],
        None if batch_sizes is None else batch_sizes.tolist(),
        call.is_step,
        *(call.num_layers, call.directions(), call.kind.cell.gates),
    )


def _watched_route(call: Call) -> Route:
    """Returns the route under graph capture, a transform or forward-mode AD."""
    if torch.onnx.is_in_onnx_export():
        if is_tracing():
            return Route(call, Path.TORCH, "torch.onnx.export(dynamo=False) knows no other op")
        if call.batch_sizes is None:
            return Route(call, Path.ONNX)
    if is_captured():
        if is_transformed():
            return Route(call, Path.LOOP, "torch.func while a graph is recorded")
        return Route(call, Path.GRAPH)
    if is_functionalized():
        return Route(call, Path.LOOP, "torch.func.functionalize")
    if call.is_program():
        return _route_of_program(call)
    is_packed = call.batch_sizes is not None
    reason = _samples_reason((call.input, call.hx), call.weights, is_packed)
    return Route(call, Path.TRANSFORM, reason)


def _run_node(*operands: Any) -> tuple[Tensor, Tensor]:
    input, hx, weights, batch_sizes, nonlinearity, bidirectional = operands
    return node.run(input, hx, weights, batch_sizes, False, nonlinearity, bidirectional)


def _run_node_step(*operands: Any) -> Tensor:
    input, hx, weights, _, nonlinearity, _ = operands
    return node.run(input, hx, weights, None, True, nonlinearity, False)


def _as_torch_function(run: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``run`` as one function for tensor subclasses and ``TorchFunctionMode``.

    This way users can change the results of a subclass in place. If they were created inside
    ``run``, they would be views that autograd protects.
    """

    def call(input: Tensor, initial: Any, weights: list[Any], *others: Any) -> Any:
        states = initial if isinstance(initial, list) else (initial,)
        tensors = (input, *states, *weights)
        if has_torch_function(tensors):
            return handle_torch_function(run, tensors, input, initial, weights, *others)
        return run(input, initial, weights, *others)

    return call


# How a layer of an RNN runs on each path; and a step, on the paths that have a function for it.
_RNN_LAYERS: dict[Path, Callable[..., tuple[Tensor, Tensor]]] = {
    Path.NODE: _run_node,
    Path.FUNCTION: _as_torch_function(autograd.rnn_layer),
    Path.TRANSFORM: derivatives.rnn_layer,
    Path.GRAPH: torch.ops.rnn_ext.rnn_forward.default,
    Path.LOOP: composite.rnn_layer,
    Path.ONNX: onnx.rnn_layer,
}
_RNN_STEPS: dict[Path, Callable[..., Tensor]] = {
    Path.NODE: _run_node_step,
    Path.FUNCTION: _as_torch_function(autograd.rnn_cell),
}
_run_cell_layer = _as_torch_function(recurrence.run_plain_layer)

# (input, initial states, weights, states after resets) -> output and final states.
Layer = Callable[[Tensor, list[Tensor], list[Any], list[Tensor]], Sequence[Tensor]]


def _layer_of(call: Call, path: Path) -> Layer:
    """Returns the function that runs a layer of a call."""
    kind = call.kind
    if not call.is_program():
        run_rnn = _RNN_LAYERS[path]

        def run(
            input: Tensor, initial: list[Tensor], weights: list[Any], reset_states: list[Tensor]
        ) -> Sequence[Tensor]:
            hx = initial[0] if initial else None
            settings = (call.batch_sizes, kind.nonlinearity, call.bidirectional)
            return run_rnn(input, hx, weights, *settings)

    elif path is Path.ONNX:

        def run(
            input: Tensor, initial: list[Tensor], weights: list[Any], reset_states: list[Tensor]
        ) -> Sequence[Tensor]:
            return onnx.gated_layer(kind.name, input, initial, weights, call.bidirectional)

    else:

        def run(
            input: Tensor, initial: list[Tensor], weights: list[Any], reset_states: list[Tensor]
        ) -> Sequence[Tensor]:
            settings = (kind.cell, call.batch_sizes, call.bidirectional, call.reset, reset_states)
            return _run_cell_layer(input, initial, weights, *settings)

    return run


def _run_step(call: Call, path: Path) -> Sequence[Tensor]:
    if call.kind.is_compiled() and path in _RNN_STEPS:
        settings = (None, call.kind.nonlinearity, False)
        return (_RNN_STEPS[path](call.input, call.hx, call.weights, *settings),)
    run = _layer_of(call, path)
    initial = [t.unsqueeze(0) for t in call.initial_states()]
    _, *finals = run(call.input.unsqueeze(0), initial, call.weights, [])
    return [t.squeeze(0) for t in finals]


def _run_torchs_op(call: Call) -> Sequence[Tensor]:
    input, weights, kind = call.input, call.weights, call.kind
    states = call.initial_states()
    if not states:
        shape = (call.batch_size(), call.hidden_size)
        zeros = input.new_zeros(shape if call.is_step else (call.states(), *shape))
        states = [zeros] * kind.states()
    hx = states[0] if kind.states() == 1 else tuple(states)
    if call.is_step:
        step = getattr(torch, f"{kind.op}_cell")
        state = step(input, hx, *weights, *[None] * (4 - len(weights)))
        return state if isinstance(state, tuple) else (state,)
    sizes = () if call.batch_sizes is None else (call.batch_sizes,)
    settings = (weights, call.bias, call.num_layers, call.dropout, call.training)
    batch_first = (False,) if call.batch_sizes is None else ()
    run = getattr(torch, kind.op)
    results: Sequence[Tensor] = run(input, *sizes, hx, *settings, call.bidirectional, *batch_first)
    return results


def _cast_for_cpu_autocast(call: Call) -> Call:
    if not call.input.is_cpu:
        return call
    tensors = [call.input, call.hx, call.cx, *call.reset_states, *call.weights]
    if call.kind.name == "RNN" or _runs_on_onednn(call):
        tensors = cast_for_autocast(tensors)
    else:
        # torch's op casts inside each step, and the state keeps its dtype.
        dtype = (call.input if call.hx is None else call.hx).dtype
        tensors = [
            t.to(dtype)
            if t is not None and t.dtype in KERNEL_DTYPES and t.dtype != torch.float64
            else t
            for t in tensors
        ]
    input, hx, cx, *others = tensors
    resets = len(call.reset_states)
    return call._replace(
        input=input, hx=hx, cx=cx, reset_states=others[:resets], weights=others[resets:]
    )


def _runs_on_onednn(call: Call) -> bool:
    """Whether torch runs the call as one operation of oneDNN, for which autocast casts."""
    return call.kind.name == "LSTM" and not call.is_step and call.batch_sizes is None
