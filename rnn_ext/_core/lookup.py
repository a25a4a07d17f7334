"""The first layer on tokens: W_ih E is computed once per token type, then looked up.

An embedding followed by a layer multiplies the embedding of each of the T·B tokens by W_ih. There
are only V different embeddings, so only V products are computed, and each token reads its row.
Backward sums the gradients of equal tokens before it multiplies. Of a layer's products over all
tokens, those with W_hh remain: half of them if the embedding is as wide as the state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch
from .call import Call
from .recurrence import run_plain_layer
from .torch_private import is_any_autocast_enabled

__all__ = ["obstacle", "run"]


def obstacle(tokens: Tensor, embedding: Tensor) -> str:
    """Returns why the product with W_ih is not computed before the lookup; empty if it is."""
    if not (tokens.is_cpu and embedding.is_cpu):
        return "not on the CPU"
    if embedding.dtype not in (torch.float32, torch.float64):
        return f"no kernel for tokens with {embedding.dtype}"
    if is_any_autocast_enabled():
        return "autocast is on"
    if dispatch.is_watched():
        return "a graph is recorded, or a transform is active"
    if not 0 < embedding.size(0) <= tokens.numel():
        return "fewer tokens than rows of the embedding"
    return ""


def run(call: Call, embedding: Tensor, padding_idx: int | None) -> Sequence[Tensor]:
    """Runs the layers of a call whose input is tokens, ``(T, B)`` or packed ``(N,)``.

    Args:
        embedding: ``(V, E)``.
        padding_idx: the row of ``embedding`` that gets no gradient.

    Returns:
        The output and the final states.

    Raises:
        IndexError: a token is not in the vocabulary.
    """
    if obstacle(call.input, embedding):
        embedded = F.embedding(call.input, embedding, padding_idx)
        return dispatch.route(call._replace(input=embedded)).run()
    smallest, largest = (int(t) for t in call.input.aminmax())
    if smallest < 0 or largest >= len(embedding):
        raise IndexError(
            f"tokens: expected indices from 0 to {len(embedding) - 1}, got {smallest} to {largest}"
        )
    if padding_idx is not None:
        embedding = F.embedding(torch.arange(len(embedding)), embedding, padding_idx)
    per_layer = len(call.weights) // call.num_layers
    weights = [
        F.linear(embedding, w) if i % (per_layer // call.directions()) == 0 else w
        for i, w in enumerate(call.weights[:per_layer])
    ]
    initial = [t[: call.directions()] for t in call.initial_states()]
    output, *finals = run_plain_layer(
        *(call.input.long(), initial, weights, call.kind.cell),
        *(call.batch_sizes, call.bidirectional, None, []),
    )
    if call.num_layers == 1:
        return output, *finals
    is_dropping = call.training and call.dropout > 0
    hx, cx = (t if t is None else t[call.directions() :] for t in (call.hx, call.cx))
    others = call._replace(
        input=F.dropout(output, call.dropout) if is_dropping else output,
        hx=hx,
        cx=cx,
        weights=call.weights[per_layer:],
        num_layers=call.num_layers - 1,
        input_size=output.size(-1),
    )
    output, *last = dispatch.route(others).run()
    return output, *(torch.cat(parts) for parts in zip(finals, last, strict=True))
