"""The first RNN layer on tokens: W_ih E + b is computed once per token type, then looked up.

An embedding followed by a layer multiplies the embedding of each of the T·B tokens by W_ih. There
are only V different rows, so the products are taken for these, and each token reads its row.
Backward sums the gradients of equal tokens before it multiplies. Of a layer's products over all
tokens, only those with W_hh are left: half of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import rnn_layer
from .derivatives import in_places
from .dispatch import is_watched
from .torch_private import is_any_autocast_enabled
from .vectorize import is_in_legacy_vmap

__all__ = ["input_projection", "obstacle", "token_layer"]

_forward = torch.ops.rnn_ext._token_rnn_forward.default
_backward = torch.ops.rnn_ext._token_rnn_backward.default


def obstacle(
    tokens: Tensor, embedding: Tensor, bidirectional: bool, batch_sizes: Tensor | None
) -> str:
    """Says why the embedding is looked up before the product with W_ih; empty if after it."""
    if bidirectional or batch_sizes is not None:
        return "bidirectional or packed"
    if not (tokens.is_cpu and embedding.is_cpu):
        return "not on the CPU"
    if embedding.dtype not in (torch.float32, torch.float64):
        return f"no kernel for tokens with {embedding.dtype}"
    if is_any_autocast_enabled():
        return "autocast is on"
    if is_watched():
        return "a graph is recorded, or a transform is active"
    if not 0 < embedding.size(0) <= tokens.numel():
        return "fewer tokens than rows of the embedding"
    return ""


def input_projection(
    embedding: Tensor, weight_ih: Tensor, biases: Sequence[Tensor], padding_idx: int | None = None
) -> Tensor:
    """Returns W_ih E + b for every token type: ``(V, H)`` from ``(V, E)`` and ``(H, E)``.

    Args:
        biases: ``bias_ih`` and ``bias_hh``, or none.
        padding_idx: the row of ``embedding`` that gets no gradient.
    """
    if padding_idx is not None:
        indices = torch.arange(len(embedding), device=embedding.device)
        embedding = F.embedding(indices, embedding, padding_idx)
    return F.linear(embedding, weight_ih, biases[0] + biases[1] if biases else None)


def token_layer(
    tokens: Tensor, table: Tensor, hx: Tensor | None, weight_hh: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """Runs one layer in one direction, on the rows of ``table`` that ``tokens`` name.

    Args:
        tokens: ``(T, B)``, int64.
        table: :func:`input_projection`, ``(V, H)``.
        hx: ``(1, B, H)``, or None for zeros.

    Returns:
        Output ``(T, B, H)`` and final states ``(1, B, H)``.
    """
    return _TokenLayer.apply(tokens, table, hx, weight_hh, nonlinearity)


class _TokenLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        table: Tensor,
        hx: Tensor | None,
        weight_hh: Tensor,
        nonlinearity: str,
    ) -> tuple[Tensor, Tensor]:
        output, h_n = _forward(tokens, table, hx, weight_hh, nonlinearity)
        ctx.save_for_backward(tokens, table, hx, weight_hh, output)
        ctx.nonlinearity = nonlinearity
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[1:4]
        grads = (grad_output, grad_h_n)
        is_differentiated = torch.is_grad_enabled() or is_in_legacy_vmap(grads)
        run: Any = _differentiable_backward if is_differentiated else _backward
        results = run(*grads, *ctx.saved_tensors, ctx.nonlinearity, mask)
        return (None, *in_places(results, mask), None)


@torch.enable_grad()
def _differentiable_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    tokens: Tensor,
    table: Tensor,
    hx: Tensor | None,
    weight_hh: Tensor,
    _: Tensor,
    nonlinearity: str,
    output_mask: Sequence[bool],
) -> Sequence[Tensor]:
    """Computes what the backward op does, by a layer whose input are the rows of ``table``.

    Its W_ih is the identity, at the cost of a product, which the common case does not pay.
    """
    weights = [torch.eye(weight_hh.size(0), dtype=table.dtype), weight_hh]
    outputs = rnn_layer(F.embedding(tokens, table), hx, weights, None, nonlinearity, False)
    given = [(y, g) for y, g in zip(outputs, (grad_output, grad_h_n), strict=True) if g is not None]
    operands = (table, hx, weight_hh)
    return torch.autograd.grad(
        [y for y, _ in given],
        [t for t, wanted in zip(operands, output_mask, strict=True) if wanted and t is not None],
        [g for _, g in given],
        create_graph=True,
    )
