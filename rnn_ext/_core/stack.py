"""Runs layers one after the other, each on the output of the layer below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Part", "run_stack"]

# (tensors, dim) -> the layer's part of each tensor, whose axis dim has L·D elements.
Part = Callable[[Sequence[Tensor], int], list[Tensor]]
# (input, index of the layer, its Part) -> output, final states, further sequences.
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
        states: the number of states of a layer: GRU has one, LSTM two.
        dropout: the probability of zeroing an element between layers; 0 in eval mode.

    Returns:
        The last layer's output, the final states ``(L·D, B, H)`` each, and the last layer's
        further sequences.
    """
    finals = []
    results: Sequence[Tensor] = [input]
    for layer in range(num_layers):
        input = results[0]
        if layer > 0 and dropout > 0:
            input = F.dropout(input, dropout)
        results = run_layer(input, layer, partial(_part, layer * directions, directions))
        finals.append(results[1 : 1 + states])
    if num_layers == 1:
        return results[0], list(finals[0]), results[1 + states :]
    return results[0], [torch.cat(ts) for ts in zip(*finals, strict=True)], results[1 + states :]


def _part(start: int, length: int, tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    return [t if t.size(dim) == length else t.narrow(dim, start, length) for t in tensors]
