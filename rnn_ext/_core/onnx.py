"""ONNX's operators in the graph of ``torch.onnx.export(dynamo=True)``: one for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import torch_private
from .composite import Step, reset_rows

__all__ = ["NO_PACKED", "attributes", "by_parameter", "gated_layer", "rnn_layer", "scan"]

NO_PACKED = (
    "ONNX has no packed sequences: export a model that calls its rnn_ext layers with padded input"
)

# torch's index of each gate in ONNX's order: z, r, h and i, o, f, c.
_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Adds the operator RNN for ``torch.ops.rnn_ext.rnn_forward``; input is not packed."""
    assert batch_sizes is None
    extra = {"activations": [nonlinearity.capitalize()] * (2 if bidirectional else 1)}
    return _record("RNN", input, [hx], 1, weights, bidirectional, extra)


def gated_layer(
    kind: str,
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """Adds the operator ``kind``, GRU or LSTM; returns its output and final states."""
    order = _GATES[kind]
    states = 2 if kind == "LSTM" else 1
    weights = [_reordered(w, order) for w in weights]
    extra = {"linear_before_reset": 1} if kind == "GRU" else {}
    return _record(kind, input, initial or [None] * states, states, weights, bidirectional, extra)


def scan(
    step: Step,
    u: Tensor,
    batch_sizes: Tensor | None,
    initial: Sequence[Tensor],
    blocks: Sequence[tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    reverse: bool,
    reset: Tensor | None,
    reset_states: Sequence[Tensor],
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Adds the operator ``Scan`` for one direction; arguments and results are those of ``loop``."""
    if torch_private.is_tracing():
        raise NotImplementedError(
            "torch.onnx.export(dynamo=False) cannot export a cell for all lengths: use dynamo=True"
        )
    if batch_sizes is not None:
        raise NotImplementedError(NO_PACKED)
    resets = [] if reset is None else [reset, *(t for t in reset_states if t.dim() == 3)]
    # No two tensors that the operation reads or returns may share memory.
    first = [t.clone() for t in initial]
    blocks = [tuple(t.clone() for t in block) for block in blocks]

    def multiply(k: int, x: Tensor) -> Tensor:
        return F.linear(x, *blocks[k])

    def body(states: list[Tensor], of_step: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        count = 1 + len(inputs)
        u, *own_inputs = of_step[:count]
        if resets:
            is_reset, *own = of_step[count:]
            given = [own.pop(0) if t.dim() == 3 else t for t in reset_states]
            states = reset_rows(is_reset, given, states)
        states = list(step(u, multiply, states, own_inputs))
        return [t.clone() for t in states], [t.clone() for t in states]

    finals, histories = torch_private.scan(body, first, [u, *inputs, *resets], reverse)
    return histories, finals


def _reordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    gates = weight.chunk(len(order))
    return torch.cat([gates[i] for i in order])


def _record(
    kind: str,
    input: Tensor,
    initial: Sequence[Tensor | None],
    states: int,
    weights: Sequence[Tensor],
    bidirectional: bool,
    extra: dict[str, Any],
) -> tuple[Any, ...]:
    w_ih, w_hh, *biases = (torch.stack(group) for group in by_parameter(weights, bidirectional))
    steps, batch = input.shape[:2]
    directions, _, hidden_size = w_hh.shape
    final = (directions, batch, hidden_size)
    output, *finals = torch.onnx.ops.symbolic_multi_out(
        kind,
        [input, w_ih, w_hh, torch.cat(biases, 1) if biases else None, None, *initial],
        extra | attributes(bidirectional, hidden_size),
        dtypes=(input.dtype,) * (1 + states),
        shapes=((steps, directions, batch, hidden_size), *(final,) * states),
        version=14,  # the oldest with these definitions
    )
    return output.transpose(1, 2).flatten(2), *finals


def by_parameter(weights: Sequence[Any], bidirectional: bool) -> list[list[Any]]:
    """Regroups the weights of each direction: all ``weight_ih``, all ``weight_hh``, and so on."""
    count = len(weights) // 2 if bidirectional else len(weights)
    return [list(weights[index::count]) for index in range(count)]


def attributes(bidirectional: bool, hidden_size: int) -> dict[str, Any]:
    return {
        "direction": "bidirectional" if bidirectional else "forward",
        "hidden_size": hidden_size,
    }
