"""Who runs a call: the fused kernels, layer by layer, or torch's own op; and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, _VF

from . import autograd

__all__ = ["reason_for_torch", "run", "weight_shapes"]

_KERNEL_DTYPES = (torch.float32, torch.float64)


def run(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    *,
    nonlinearity: str,
    num_layers: int,
    bias: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Runs all layers over a time-major ``(T, B, I)`` or packed ``(N, I)`` input.

    What the kernels do not serve, mistakes among it, goes to torch's own op, which either computes it
    or raises the error that users know.
    """
    directions = 2 if bidirectional else 1
    if reason_for_torch(input, hx, weights, bias, directions):
        return _run_torch(
            input,
            hx,
            weights,
            batch_sizes,
            nonlinearity,
            num_layers,
            bias,
            dropout,
            training,
            bidirectional,
        )
    if num_layers == 1:
        return autograd.rnn_layer(input, hx, weights, batch_sizes, nonlinearity, bidirectional)
    per_layer = len(weights) // num_layers
    finals = []
    for layer in range(num_layers):
        input, h_n = autograd.rnn_layer(
            input,
            None if hx is None else hx[layer * directions : (layer + 1) * directions],
            weights[layer * per_layer : (layer + 1) * per_layer],
            batch_sizes,
            nonlinearity,
            bidirectional,
        )
        finals.append(h_n)
        if training and dropout > 0 and layer < num_layers - 1:
            input = F.dropout(input, dropout)
    return input, torch.cat(finals)


def reason_for_torch(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], bias: bool, directions: int
) -> str | None:
    """Why torch's own op has to take the call; None where the kernels serve it."""
    dtype, device = input.dtype, input.device
    if device.type != "cpu":
        return f"no kernel for device type {device.type}"
    if dtype not in _KERNEL_DTYPES:
        return f"no CPU kernel for {dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    for tensor in weights if hx is None else (hx, *weights):
        if tensor.dtype != dtype or tensor.device != device:
            return "input, hx and weights differ in dtype or device"
    if input.size(0) == 0 and input.dim() == 3:
        return "the sequence has no time steps"
    num_layers = len(weights) // (directions * (4 if bias else 2))
    shapes = weight_shapes(input.size(-1), weights[1].size(0), num_layers, directions, bias)
    if any(w.shape != s for w, s in zip(weights, shapes, strict=True)):
        return "the shapes of the weights do not fit each other"
    return None


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


def _run_torch(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    num_layers: int,
    bias: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    op = _VF.rnn_tanh if nonlinearity == "tanh" else _VF.rnn_relu
    if hx is None:
        directions = 2 if bidirectional else 1
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        hx = input.new_zeros(num_layers * directions, batch, weights[1].size(-1))
    settings = (list(weights), bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is None:
        return op(input, hx, *settings, False)
    return op(input, batch_sizes, hx, *settings)
