"""Layers that run one after the other, each on the output of the one below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Part", "run_stack"]

# (tensors, dim) -> the layer's part of tensors in which dim is layers times directions.
Part = Callable[[Sequence[Tensor], int], list[Tensor]]
# (input, layer, its part of the states) -> output, final states, further sequences.
Layer = Callable[[Tensor, int, Part], Sequence[Tensor]]


def run_stack(
    run_layer: Layer,
    input: Tensor,
    *,
    num_layers: int,
    directions: int,
    states: int,
    dropout: float,
) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
    """Runs all layers.

    Args:
        states: how many tensors of states a layer has, as GRU has one and LSTM two.
        dropout: the probability of zeroing an element between layers; 0 in eval mode.

    Returns:
        The last layer's output, the final states ``(L·D, B, H)`` each, and the last layer's
        further sequences.
    """
    finals = []
    found: Sequence[Tensor] = [input]
    for layer in range(num_layers):
        input = found[0]
        if layer > 0 and dropout > 0:
            input = F.dropout(input, dropout)
        found = run_layer(input, layer, partial(_part, layer * directions, directions))
        finals.append(found[1 : 1 + states])
    if num_layers == 1:
        return found[0], list(finals[0]), found[1 + states :]
    return found[0], [torch.cat(ts) for ts in zip(*finals, strict=True)], found[1 + states :]


def _part(start: int, length: int, tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    return [t if t.size(dim) == length else t.narrow(dim, start, length) for t in tensors]
