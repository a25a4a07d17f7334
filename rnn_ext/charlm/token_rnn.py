"""An embedding and the RNN that reads it as one: tokens in, states out.

What the first layer makes of a token before it meets the state, ``W_ih·E + b``, is one of V rows,
so these are computed once and looked up for each of the T·B tokens, where the two modules multiply
every token's embedding by W_ih. Backward adds up the gradients of equal tokens first and multiplies
V sums. That leaves of a layer's products over all tokens those with W_hh alone: half of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import RNN
from ..derivatives import in_places
from ..dispatch import is_watched
from ..functional import rnn as rnn_layers
from ..ops import empty_gradients

__all__ = ["can_look_up", "projections", "token_rnn"]

_forward = torch.ops.rnn_ext._token_rnn_forward.default
_backward = torch.ops.rnn_ext._token_rnn_backward.default


def can_look_up(embedding: nn.Embedding, rnn: nn.Module, tokens: Tensor) -> bool:
    """Whether :func:`token_rnn` takes this call, and is the faster way."""
    weight = embedding.weight
    return (
        type(rnn) is RNN
        and weight.is_cpu
        and weight.dtype in (torch.float32, torch.float64)
        and 0 < weight.size(0) <= tokens.numel()  # else the table is the larger product
        and not torch.is_autocast_enabled("cpu")
        and not is_watched()
    )


def projections(embedding: nn.Embedding, layer: Sequence[Tensor]) -> Tensor:
    """``W_ih·E + b`` for every token, shape ``(V, H)``; ``layer``: its weights, as in an RNN."""
    weight_ih, _, bias_ih, bias_hh = layer
    return F.linear(embedding.weight, weight_ih, bias_ih + bias_hh)


def token_rnn(
    embedding: nn.Embedding, rnn: nn.RNNBase, tokens: Tensor, hx: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``rnn(embedding(tokens), hx)`` to rounding, for an RNN with biases and one direction.

    Args:
        embedding: V tokens.
        rnn: L layers of H units; its first one is run on the table.
        tokens: ``(T, B)``.
        hx: ``(L, B, H)``, or None for zeros.

    Returns:
        Output ``(T, B, H)`` and final states ``(L, B, H)``. They can be differentiated once.
    """
    layer, *others = rnn.all_weights
    first, rest = (None, None) if hx is None else (hx[:1], hx[1:])
    nonlinearity = str(rnn.nonlinearity)
    output, h_n = _TokenRNN.apply(
        tokens, projections(embedding, layer), first, layer[1], nonlinearity
    )
    if rnn.num_layers == 1:
        return output, h_n
    output, other_h_n = rnn_layers(
        F.dropout(output, rnn.dropout, rnn.training),
        rest,
        [weight for layer in others for weight in layer],
        nonlinearity=nonlinearity,
        num_layers=rnn.num_layers - 1,
        dropout=rnn.dropout,
        training=rnn.training,
    )
    return output, torch.cat([h_n, other_h_n])


class _TokenRNN(torch.autograd.Function):
    """The first layer."""

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
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[1:4]
        found = _backward(grad_output, grad_h_n, *ctx.saved_tensors, ctx.nonlinearity, mask)
        return (None, *in_places(found, mask), None)


@torch.library.register_fake("rnn_ext::_token_rnn_forward")
def _(
    tokens: Tensor, table: Tensor, hx: Tensor | None, weight_hh: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    steps, batch = tokens.shape
    hidden_size = weight_hh.size(0)
    return table.new_empty(steps, batch, hidden_size), table.new_empty(1, batch, hidden_size)


@torch.library.register_fake("rnn_ext::_token_rnn_backward")
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    tokens: Tensor,
    table: Tensor,
    hx: Tensor | None,
    weight_hh: Tensor,
    output: Tensor,
    nonlinearity: str,
    output_mask: list[bool],
) -> list[Tensor]:
    return empty_gradients((table, hx, weight_hh), output_mask)
