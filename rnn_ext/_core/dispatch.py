"""How a call goes: one decision, which ``run`` follows and ``explain`` prints."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .. import _C, onnx
from . import autograd, composite, cuda, derivatives, node
from .call import Call
from .torch_private import (
    is_any_autocast_enabled,
    is_batchedtensor,
    is_functionalized,
    is_tracing,
    is_transformed,
    overrides_operations,
)
from .vectorize import loops_over_samples

__all__ = ["KERNEL_DTYPES", "Path", "Route", "cast_for_autocast", "is_watched", "route"]

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Path(enum.Enum):
    """What runs a call. All but LOOP and TORCH run the fused kernels.

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
    LOOP      under ``torch.func`` inside torch.compile, and under   torch's ops, a step at a time
              ``torch.func.functionalize``: slow
    ONNX      under torch.onnx.export(dynamo=True)                   ONNX's operator RNN
    TORCH     the kernels do not support it, or it is a mistake      torch's own op, or its error
    ========= ====================================================== =============================

    Backward of NODE and FUNCTION runs the backward op. With ``create_graph`` it runs as a Function
    that can be differentiated again, and with ``is_grads_batched`` under torch's older vmap; both
    are in ``derivatives.py``, on fused kernels.
    """

    NODE = "autograd node in C++"
    FUNCTION = "autograd Function in Python"
    TRANSFORM = "torch.func or forward-mode AD"
    GRAPH = "recorded as an op"
    LOOP = "a loop over time: torch.func inside torch.compile, or functionalize"
    ONNX = "recorded as ONNX's RNN"
    TORCH = "torch's own op"


class Route(NamedTuple):
    """A call, the path that it takes, and why where there is a choice.

    ``call`` is the one to run: under autocast its tensors are cast.
    """

    call: Call
    path: Path
    reason: str = ""

    @property
    def kernels(self) -> str:
        """Which kernels run: ``"cpu"``, on CUDA ``"persistent"`` or ``"step"``; or ``"torch"``."""
        if self.path in (Path.TORCH, Path.LOOP, Path.ONNX):
            return "torch"
        return cuda.plan_of(self.call).regime if self.call.input.is_cuda else "cpu"

    def run(self) -> Any:
        """Runs the call.

        Returns:
            ``(output, h_n)``, or the next state for a step of a cell.
        """
        call = self.call
        if self.path is Path.TORCH:
            return _run_torchs_op(call)
        if call.is_step:
            if self.path in _STEPS:
                return _STEPS[self.path](*_layer_operands(call))
            return _run_step_as_layer(_LAYERS[self.path], *_layer_operands(call))
        if call.num_layers == 1:
            return _LAYERS[self.path](*_layer_operands(call))
        return _run_layers(call, _LAYERS[self.path])


def route(call: Call) -> Route:
    """Chooses how a call goes; runs nothing."""
    if is_any_autocast_enabled():
        call = _cast_for_cpu_autocast(call)
    if not torch.compiler.is_compiling() and node.takes(*call):
        return Route(call, Path.NODE)
    reason = _refusal(call)
    if reason:
        return Route(call, Path.TORCH, reason)
    if call.input.is_cuda:
        choice = cuda.choose(call)
        reason = choice.reason
        if not choice.ours:
            return Route(call, Path.TORCH, reason)
    if is_watched():
        return _watched_route(call)
    obstacle = _obstacle(call)
    if obstacle:
        return Route(call, Path.TORCH, obstacle)
    return Route(call, Path.FUNCTION, reason)


def is_watched() -> bool:
    """Whether a graph is being recorded, or a transform or forward-mode AD is active."""
    return torch.compiler.is_compiling() or is_tracing() or is_transformed()


def _refusal(call: Call) -> str:
    """Says why torch's op has to take the call, as far as attributes, dtype and devices tell."""
    input, hx, weights = call.input, call.hx, call.weights
    if any(map(overrides_operations, (input, hx, *weights))):
        return "a tensor subclass overrides torch's operations"
    if not (input.is_cpu or input.is_cuda):
        return f"no kernel for device type {input.device.type}"
    if input.is_cuda and torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if input.dtype not in KERNEL_DTYPES:
        return f"no {'CUDA' if input.is_cuda else 'CPU'} kernel for {input.dtype}"
    for tensor in [input, *weights] if hx is None else [input, hx, *weights]:
        if tensor is None or tensor.device != input.device:
            return "a weight or hx is missing or on another device than input"
        if tensor.layout is not torch.strided:
            return f"no kernel for layout {tensor.layout}"
    if not call.is_step:
        # torch's op takes no number for a flag and no flag for a number.
        flags = (call.bias, call.bidirectional, call.training)
        if any(type(flag) is not bool for flag in flags) or type(call.num_layers) is not int:
            return "bias, bidirectional or training is no bool, or num_layers no int"
        if not weights or len(weights) != call.states * (4 if call.bias else 2):
            return "num_layers, bidirectional and bias do not fit the weights"
    if hx is None and weights[1].size(0) != call.hidden_size:
        return "hidden_size does not fit the weights"
    return ""


def _obstacle(call: Call) -> str:
    """Says why the kernels do not take these dtypes and shapes."""
    input, hx, weights, batch_sizes = call.input, call.hx, call.weights, call.batch_sizes
    if any(t.dtype != input.dtype for t in (weights if hx is None else [hx, *weights])):
        return "input, hx and weights differ in dtype"
    if any(type(size) is not int for size in (*input.shape, *weights[0].shape)):
        return ""  # to compare symbolic sizes would fix them; the op compares them when it runs
    return _C.find_obstacle(
        input.shape,
        None if hx is None else hx.shape,
        [w.shape for w in weights],
        None if batch_sizes is None else batch_sizes.tolist(),
        *(call.is_step, call.num_layers, call.directions),
    )


def _watched_route(call: Call) -> Route:
    """The route under graph capture, a transform or forward-mode AD."""
    if torch.onnx.is_in_onnx_export():
        if is_tracing():
            return Route(call, Path.TORCH, "torch.onnx.export(dynamo=False) knows no other op")
        if call.batch_sizes is None:
            return Route(call, Path.ONNX)
    if torch.compiler.is_compiling() or is_tracing():
        return Route(call, Path.LOOP if is_transformed() else Path.GRAPH)
    if is_functionalized():
        return Route(call, Path.LOOP)
    operands = [call.input, call.hx, *call.weights]
    are_batched = [t is not None and is_batchedtensor(t) for t in operands]
    if loops_over_samples(2, are_batched, call.batch_sizes is not None):
        return Route(call, Path.TRANSFORM, "once a sample: vmap over weights or packed input")
    return Route(call, Path.TRANSFORM)


Layer = Callable[..., tuple[Tensor, Tensor]]


def _run_node(*operands: Any) -> tuple[Tensor, Tensor]:
    input, hx, weights, batch_sizes, nonlinearity, bidirectional = operands
    return node.run(input, hx, weights, batch_sizes, False, nonlinearity, bidirectional)


def _run_node_step(*operands: Any) -> Tensor:
    input, hx, weights, _, nonlinearity, _ = operands
    return node.run(input, hx, weights, None, True, nonlinearity, False)


def _as_torch_function(run: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``run`` as one function to tensor subclasses and ``TorchFunctionMode``.

    A subclass then gets results of its class which may be changed in place: made inside ``run``,
    they would be views that autograd protects.
    """

    def call(input: Tensor, hx: Tensor | None, weights: list[Any], *others: Any) -> Any:
        tensors = (input, hx, *weights)
        if has_torch_function(tensors):
            return handle_torch_function(run, tensors, input, hx, weights, *others)
        return run(input, hx, weights, *others)

    return call


# How a layer runs on each path, and a step where it is not a layer of one step.
_LAYERS: dict[Path, Layer] = {
    Path.NODE: _run_node,
    Path.FUNCTION: _as_torch_function(autograd.rnn_layer),
    Path.TRANSFORM: derivatives.rnn_layer,
    Path.GRAPH: torch.ops.rnn_ext.rnn_forward.default,
    Path.LOOP: composite.rnn_layer,
    Path.ONNX: onnx.rnn_layer,
}
_STEPS: dict[Path, Callable[..., Tensor]] = {
    Path.NODE: _run_node_step,
    Path.FUNCTION: _as_torch_function(autograd.rnn_cell),
}


def _run_step_as_layer(run_layer: Layer, input: Tensor, hx: Tensor | None, *others: Any) -> Tensor:
    output, _ = run_layer(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), *others)
    return output.squeeze(0)


def _layer_operands(call: Call) -> tuple[Any, ...]:
    return (
        *(call.input, call.hx, call.weights),
        *(call.batch_sizes, call.nonlinearity, call.bidirectional),
    )


def _run_layers(call: Call, run_layer: Layer) -> tuple[Tensor, Tensor]:
    input, hx, directions = call.input, call.hx, call.directions
    per_layer = len(call.weights) // call.num_layers
    finals = []
    for layer in range(call.num_layers):
        if layer > 0 and call.training and call.dropout > 0:
            input = F.dropout(input, call.dropout)
        input, h_n = run_layer(
            input,
            None if hx is None else hx[layer * directions : (layer + 1) * directions],
            call.weights[layer * per_layer : (layer + 1) * per_layer],
            call.batch_sizes,
            call.nonlinearity,
            call.bidirectional,
        )
        finals.append(h_n)
    return input, torch.cat(finals)


def _run_torchs_op(call: Call) -> Any:
    input, hx, weights, batch_sizes = call.input, call.hx, call.weights, call.batch_sizes
    is_tanh = call.nonlinearity == "tanh"
    if call.is_step:
        if hx is None:
            hx = input.new_zeros(input.size(0), call.hidden_size)
        step = torch.rnn_tanh_cell if is_tanh else torch.rnn_relu_cell
        return step(input, hx, *weights, *[None] * (4 - len(weights)))
    if hx is None:
        hx = input.new_zeros(call.states, call.batch_size, call.hidden_size)
    run = torch.rnn_tanh if is_tanh else torch.rnn_relu
    settings = (weights, call.bias, call.num_layers, call.dropout, call.training)
    if batch_sizes is None:
        return run(input, hx, *settings, call.bidirectional, False)
    return run(input, batch_sizes, hx, *settings, call.bidirectional)


def _cast_for_cpu_autocast(call: Call) -> Call:
    if not call.input.is_cpu:
        return call
    input, hx, *weights = cast_for_autocast([call.input, call.hx, *call.weights])
    return call._replace(input=input, hx=hx, weights=weights)


def cast_for_autocast(tensors: Sequence[Any]) -> list[Any]:
    """Casts as autocast on the first one's device does for torch's own op: all but float64."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Any) -> Any:
        if t is None or not t.is_floating_point() or t.dtype == torch.float64:
            return t
        return t.to(dtype)

    return [cast(t) for t in tensors]
