"""Who runs a call: the fused kernels, layer by layer, or torch's own op; and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd, cuda
from .torch_private import is_any_autocast_enabled

__all__ = ["reason_for_torch", "run", "run_cell", "under_autocast", "weight_shapes"]

_KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def run(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    *,
    nonlinearity: str,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Runs all layers over a time-major ``(T, B, I)`` or packed ``(N, I)`` input.

    What the kernels do not serve, mistakes among it, goes to torch's own op, which either computes
    it or raises the error that users know.
    """
    directions = 2 if bidirectional else 1
    if is_any_autocast_enabled():
        input, hx, weights = under_autocast(input, hx, weights)
    if (
        not _quick_reason(input, hx, weights, batch_sizes, directions, training)
        # A module's attributes may say what its weights are not, or what torch's op refuses.
        and len(weights) == num_layers * directions * (4 if bias else 2)
        and (hx is not None or weights[1].size(0) == hidden_size)
        and type(bias) is type(training) is type(bidirectional) is bool is not type(num_layers)
    ):
        try:
            if num_layers == 1:
                return autograd.rnn_layer(
                    input, hx, weights, batch_sizes, nonlinearity, bidirectional
                )
            return _run_layers(
                input,
                hx,
                weights,
                batch_sizes,
                nonlinearity,
                num_layers,
                dropout if training else 0.0,
                bidirectional,
            )
        except RuntimeError:
            # The op checks its operands; to check them here too would cost small calls dear.
            packs_input = batch_sizes is None or int(batch_sizes.sum()) == input.size(0)
            if packs_input and not reason_for_torch(
                input, hx, weights, bias, directions, training, batch_sizes
            ):
                raise
    if hx is None:
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        hx = input.new_zeros(num_layers * directions, batch, hidden_size)
    op = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    settings = (list(weights), bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is None:
        return op(input, hx, *settings, False)
    return op(input, batch_sizes, hx, *settings)


def _run_layers(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    num_layers: int,
    dropout: float,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    finals = []
    for layer in range(num_layers):
        if layer > 0 and dropout > 0:
            input = F.dropout(input, dropout)
        input, h_n = autograd.rnn_layer(
            input,
            None if hx is None else hx[layer * directions : (layer + 1) * directions],
            weights[layer * per_layer : (layer + 1) * per_layer],
            batch_sizes,
            nonlinearity,
            bidirectional,
        )
        finals.append(h_n)
    return input, torch.cat(finals)


def run_cell(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Any],
    nonlinearity: str,
    hidden_size: int,
) -> Tensor:
    """Runs one step for input ``(B, I)`` and hx ``(B, H)``, as ``run`` does a sequence.

    There are four weights, of which biases may be None.
    """
    if is_any_autocast_enabled():
        input, hx, weights = under_autocast(input, hx, weights)
    w_ih, w_hh, b_ih, b_hh = weights
    if b_ih is None or b_hh is None:
        weights = [w_ih, w_hh, *(b for b in (b_ih, b_hh) if b is not None)]
    if not _quick_reason(input, hx, weights) and (hx is not None or w_hh.size(0) == hidden_size):
        try:
            return autograd.rnn_cell(input, hx, weights, nonlinearity)
        except RuntimeError:
            hx_layer = None if hx is None else hx.unsqueeze(0)
            if not reason_for_torch(input.unsqueeze(0), hx_layer, weights, b_ih is not None, 1):
                raise
    if hx is None:
        hx = input.new_zeros(input.size(0), hidden_size)
    op = torch.rnn_tanh_cell if nonlinearity == "tanh" else torch.rnn_relu_cell
    return op(input, hx, w_ih, w_hh, b_ih, b_hh)


def under_autocast(
    input: Tensor, hx: Tensor | None, weights: Sequence[Any]
) -> tuple[Tensor, Tensor | None, list[Any]]:
    """What autocast makes of the tensors of torch's own op: all but float64 in its dtype."""
    if not (input.is_cpu and torch.is_autocast_enabled("cpu")):
        return input, hx, list(weights)
    dtype = torch.get_autocast_dtype("cpu")

    def cast(t: Any) -> Any:
        if t is None or not t.is_floating_point() or t.dtype == torch.float64:
            return t
        return t.to(dtype)

    return cast(input), cast(hx), [cast(w) for w in weights]


def reason_for_torch(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    directions: int,
    training: bool = True,
    batch_sizes: Tensor | None = None,
) -> str | None:
    """Why torch's own op has to take the call; None where the kernels serve it."""
    reason = _quick_reason(input, hx, weights, batch_sizes, directions, training)
    if reason:
        return reason
    if any(t.dtype != input.dtype for t in (weights if hx is None else [hx, *weights])):
        return "input, hx and weights differ in dtype"
    if input.dim() == 3 and input.size(0) == 0:
        return "the sequence has no time steps"
    hidden_size = weights[0].size(0)
    num_layers = max(1, len(weights) // (directions * (4 if bias else 2)))
    shapes = weight_shapes(input.size(-1), hidden_size, num_layers, directions, bias)
    if [tuple(w.shape) for w in weights] != shapes:
        return "the shapes of the weights do not fit each other"
    if hx is not None:
        batch = input.size(1) if input.dim() == 3 else hx.size(1)
        if hx.shape != (num_layers * directions, batch, hidden_size):
            return "the shape of hx does not fit"
    return None


def _quick_reason(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    directions: int = 1,
    training: bool = True,
) -> str | None:
    """The part of the above that the op could not find out itself."""
    if not input.is_cpu:
        return _reason_beside_cpu(input, hx, weights, batch_sizes, directions, training)
    if input.dtype not in _KERNEL_DTYPES:
        return f"no CPU kernel for {input.dtype}"
    # A tensor elsewhere would take the call to another device's kernel, or to the meta one.
    if hx is not None and not hx.is_cpu:
        return "hx is on another device than input"
    for weight in weights:
        if weight is None or not weight.is_cpu:
            return "a weight is missing or on another device than input"
    return None


def _reason_beside_cpu(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    directions: int,
    training: bool,
) -> str | None:
    if not input.is_cuda:
        return f"no kernel for device type {input.device.type}"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if input.dtype not in _KERNEL_DTYPES:
        return f"no CUDA kernel for {input.dtype}"
    for tensor in [*weights] if hx is None else [hx, *weights]:
        if tensor is None or tensor.device != input.device:
            return "a weight or hx is missing or on another device than input"
    if len(weights) < 2:
        return "weights are missing"
    choice = cuda.choose(input, hx, weights, batch_sizes, directions, training)
    return None if choice.ours else choice.reason


def weight_shapes(
    input_size: int, hidden_size: int, num_layers: int, directions: int, bias: bool
) -> list[tuple[int, ...]]:
    """The shapes of a stack's weights, in order."""
    shapes: list[tuple[int, ...]] = []
    for layer in range(num_layers):
        features = input_size if layer == 0 else directions * hidden_size
        direction = [(hidden_size, features), (hidden_size, hidden_size)]
        shapes += (direction + [(hidden_size,)] * (2 if bias else 0)) * directions
    return shapes
