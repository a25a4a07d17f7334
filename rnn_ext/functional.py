"""Stateless calls: the weights are arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._core import dispatch, lookup
from ._core.call import Call, weight_shapes
from ._core.kinds import KINDS
from ._core.torch_private import is_any_autocast_enabled

__all__ = ["embedding_rnn", "embedding_rnn_generate", "rnn", "rnn_cell"]


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Applies an Elman RNN (Elman, 1990) to a sequence.

    .. math::
        h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}),
        \qquad \varphi \in \{\tanh, \mathrm{ReLU}\}

    With T time steps, batch B, input size I, hidden size H, L layers and D directions:

    Args:
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` without a batch; or
            packed ``(N, I)`` with ``batch_sizes``, as in
            :class:`torch.nn.utils.rnn.PackedSequence`.
        hx: initial states ``(L·D, B, H)``, ``(L·D, H)`` without a batch; zeros where None.
        weights: ``weight_ih``, ``weight_hh`` and, with ``bias``, ``bias_ih``, ``bias_hh``, for each
            direction of each layer: the order of ``torch.nn.RNN``'s parameters. Shapes ``(H, I)``
            in the first layer and ``(H, D·H)`` above, ``(H, H)``, ``(H,)``, ``(H,)``.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        num_layers: L.
        bias: whether ``weights`` hold biases.
        batch_first: whether input and output are ``(B, T, ·)``; says nothing of hx and h_n.
        dropout: probability of zeroing an element between layers, while ``training``.
        training: whether dropout is on.
        bidirectional: whether every layer also runs from the last step to the first.
        batch_sizes: rows of each step of packed input, a 1-D int64 tensor on the CPU.

    Returns:
        ``output``, shaped like input with ``D·H`` features, and ``h_n``, shaped like ``hx``.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
        TypeError: a weight is no tensor.
    """
    directions = 2 if bidirectional else 1
    weights = list(weights)
    _check_settings(nonlinearity, num_layers, dropout)
    is_batched = batch_sizes is not None or input.dim() == 3
    if not is_batched:
        if input.dim() != 2:
            raise ValueError(
                f"input: expected 2 dimensions (T, I) or 3 {_layout(batch_first)}, "
                f"got shape {tuple(input.shape)}"
            )
        batch_first = False
        input = input.unsqueeze(1)
        if hx is not None:
            if hx.dim() != 2:
                raise ValueError(
                    "hx: expected 2 dimensions (L·D, H) for input without a batch, "
                    f"got shape {tuple(hx.shape)}"
                )
            hx = hx.unsqueeze(1)
    elif batch_sizes is not None and input.dim() != 2:
        raise ValueError(f"input: expected packed (N, I), got shape {tuple(input.shape)}")
    time_major = batch_first and batch_sizes is None
    if time_major:
        input = input.transpose(0, 1)
    if batch_sizes is not None:
        # A graph cannot depend on the lengths; there the op alone checks them.
        recorded = torch.compiler.is_compiling()
        if not recorded:
            _check_batch_sizes(batch_sizes, input.size(0))
        batch = hx.size(1) if recorded and hx is not None else int(batch_sizes[0])
    else:
        batch = input.size(1)
    _check_weights(weights, input.size(-1), num_layers, directions, bias)
    states = (num_layers * directions, batch, weights[0].size(0))
    if hx is None:
        if batch_sizes is not None:
            hx = input.new_zeros(states)
    else:
        _check_shapes({"hx": hx}, [states])
        _check_like_input(input, {"hx": hx})
    _check_like_input(input, {f"weights[{i}]": w for i, w in enumerate(weights)})

    call = Call(
        input=input,
        hx=hx,
        weights=weights,
        batch_sizes=batch_sizes,
        is_step=False,
        kind=KINDS[f"RNN_{nonlinearity.upper()}"],
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        training=training,
        input_size=input.size(-1),
        hidden_size=weights[0].size(0),
        dropout=dropout,
    )
    output, h_n = dispatch.route(call).run()
    if not is_batched:
        return output.squeeze(1), h_n.squeeze(1)
    return (output.transpose(0, 1) if time_major else output), h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""One step of an Elman RNN, :math:`\varphi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`.

    Args:
        input: ``(B, I)``, or ``(I,)`` without a batch.
        hx: ``(B, H)`` or ``(H,)``; zeros where None.
        w_ih, w_hh: ``(H, I)`` and ``(H, H)``.
        b_ih, b_hh: ``(H,)`` each; zeros where None.
        nonlinearity: ``'tanh'`` or ``'relu'``.

    Returns:
        The next state ``(B, H)`` or ``(H,)``.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
    """
    _check_settings(nonlinearity, 1, 0.0)
    if input.dim() not in (1, 2):
        raise ValueError(f"input: expected shape (B, I) or (I,), got {tuple(input.shape)}")
    if b_ih is None and b_hh is not None:
        b_ih = torch.zeros_like(b_hh)
    elif b_hh is None and b_ih is not None:
        b_hh = torch.zeros_like(b_ih)
    named = {"w_ih": w_ih, "w_hh": w_hh}
    if b_ih is not None and b_hh is not None:
        named |= {"b_ih": b_ih, "b_hh": b_hh}
    if w_ih.dim() != 2:
        raise ValueError(f"w_ih: expected shape (H, I), got {tuple(w_ih.shape)}")
    hidden_size = w_ih.size(0)
    shapes = weight_shapes(input.size(-1), hidden_size, 1, 1, b_ih is not None)
    _check_shapes(named, shapes)
    if hx is not None:
        _check_shapes({"hx": hx}, [(*input.shape[:-1], hidden_size)])
        named["hx"] = hx
    _check_like_input(input, named)
    is_batched = input.dim() == 2
    if not is_batched:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
    weights = [w_ih, w_hh] if b_ih is None else [w_ih, w_hh, b_ih, b_hh]
    call = Call(
        input=input,
        hx=hx,
        weights=weights,
        batch_sizes=None,
        is_step=True,
        kind=KINDS[f"RNN_{nonlinearity.upper()}"],
        num_layers=1,
        bidirectional=False,
        bias=b_ih is not None,
        training=False,
        input_size=input.size(-1),
        hidden_size=hidden_size,
        dropout=0.0,
    )
    (h,) = dispatch.route(call).run()
    return h if is_batched else h.squeeze(0)


def embedding_rnn(
    tokens: Tensor,
    hx: Tensor | None,
    embedding: Tensor,
    weights: Sequence[Tensor],
    *,
    padding_idx: int | None = None,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Applies an embedding and an Elman RNN to tokens.

    Returns ``rnn(F.embedding(tokens, embedding, padding_idx), hx, weights, ...)`` up to rounding,
    for less work: the first layer computes W_ih E + b once for each of the V rows of the embedding
    and looks the result up. It does so for float32 and float64 on the CPU, one direction, padded
    input and at least V tokens, outside autocast, graph capture, ``torch.func`` and forward-mode
    AD; every other call runs the two operations one after the other.

    With T time steps, batch B, vocabulary V, embedding size E, hidden size H, L layers and D
    directions:

    Args:
        tokens: int64 or int32 indices from 0 to V-1: ``(T, B)``; ``(B, T)`` with ``batch_first``;
            ``(T,)`` without a batch; or packed ``(N,)`` with ``batch_sizes``.
        hx: initial states ``(L·D, B, H)``, ``(L·D, H)`` without a batch; zeros where None.
        embedding: ``(V, E)``.
        weights, nonlinearity, num_layers, bias, batch_first, dropout, training, bidirectional,
            batch_sizes: as for :func:`rnn` with input size E.
        padding_idx: a token whose row of ``embedding`` gets no gradient.

    Returns:
        ``output``, ``(T, B, D·H)`` or in the layout of ``tokens``, and ``h_n``, shaped like ``hx``.
        The output must not be changed in place before backward.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
        TypeError: a weight is no tensor.
        IndexError: a token is not in the vocabulary.
    """
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens: expected torch.int64 or torch.int32, got {tokens.dtype}")
    if embedding.dim() != 2:
        raise ValueError(f"embedding: expected shape (V, E), got {tuple(embedding.shape)}")
    if lookup.obstacle(tokens, embedding, bidirectional, batch_sizes):
        return rnn(
            F.embedding(tokens, embedding, padding_idx),
            hx,
            weights,
            nonlinearity=nonlinearity,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            training=training,
            bidirectional=bidirectional,
            batch_sizes=batch_sizes,
        )
    weights = list(weights)
    _check_settings(nonlinearity, num_layers, dropout)
    _check_weights(weights, embedding.size(1), num_layers, 1, bias)
    _check_like_input(embedding, {f"weights[{i}]": w for i, w in enumerate(weights)}, "embedding")
    is_batched = tokens.dim() == 2
    if tokens.dim() not in (1, 2):
        raise ValueError(
            f"tokens: expected 1 dimension (T,) or 2 {'(B, T)' if batch_first else '(T, B)'}, "
            f"got shape {tuple(tokens.shape)}"
        )
    if not is_batched:
        tokens = tokens.unsqueeze(1)
    elif batch_first:
        tokens = tokens.t()
    if hx is not None:
        states = (num_layers, tokens.size(1), weights[0].size(0))
        _check_shapes({"hx": hx}, [states if is_batched else (states[0], states[2])])
        _check_like_input(embedding, {"hx": hx}, "embedding")
        hx = hx if is_batched else hx.unsqueeze(1)
    smallest, largest = (int(t) for t in tokens.aminmax())
    if smallest < 0 or largest >= len(embedding):
        raise IndexError(
            f"tokens: expected indices from 0 to {len(embedding) - 1}, got {smallest} to {largest}"
        )
    per_layer = 4 if bias else 2
    weight_ih, weight_hh, *biases = weights[:per_layer]
    table = lookup.input_projection(embedding, weight_ih, biases, padding_idx)
    first = None if hx is None else hx[:1]
    output, h_n = lookup.token_layer(tokens.long(), table, first, weight_hh, nonlinearity)
    if num_layers > 1:
        output, others = rnn(
            F.dropout(output, dropout, training),
            None if hx is None else hx[1:],
            weights[per_layer:],
            nonlinearity=nonlinearity,
            num_layers=num_layers - 1,
            bias=bias,
            dropout=dropout,
            training=training,
        )
        h_n = torch.cat([h_n, others])
    if not is_batched:
        return output.squeeze(1), h_n.squeeze(1)
    return (output.transpose(0, 1) if batch_first else output), h_n


@torch.no_grad()
def embedding_rnn_generate(
    tokens: Tensor,
    draws: Tensor,
    hx: Tensor | None,
    embedding: Tensor,
    weights: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    never: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws tokens from an embedding, an RNN and a linear layer, each from those before it.

    One call packs the weights once and stays in C++ from token to state, scores, draw and next
    token. It takes float32 on the CPU, layers with biases and one direction.

    With vocabulary V, embedding size E, hidden size H and L layers:

    Args:
        tokens: the prompt, at least one index: ``(P,)``, int64.
        draws: a number from [0, 1) for each token to draw: ``(N,)``, float64, N ≥ 1.
        hx: states before the prompt, ``(L, 1, H)``; zeros where None.
        embedding, weights: as for :func:`embedding_rnn`.
        out_weight, out_bias: of the linear layer, ``(V, H)`` and ``(V,)``.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        num_layers: L.
        temperature: what scores are divided by before the softmax; 0 takes the largest.
        top_k: draw from the tokens with the ``top_k`` largest scores only.
        never: a token that is not drawn.

    Returns:
        The tokens ``(N,)``, and the states ``(L, 1, H)`` to continue from with the last of them
        as the prompt.

    Raises:
        ValueError: the weights do not fit each other.
        RuntimeError: another argument's shape, dtype, device or value does not fit.
    """
    weights = list(weights)
    _check_settings(nonlinearity, num_layers, 0.0)
    if embedding.dim() != 2:
        raise ValueError(f"embedding: expected shape (V, E), got {tuple(embedding.shape)}")
    _check_weights(weights, embedding.size(1), num_layers, 1, bias=True)
    weight_ih, weight_hh, *biases = weights[:4]
    table = lookup.input_projection(embedding, weight_ih, biases)
    packed = [weight_hh]
    for layer in range(1, num_layers):
        weight_ih, weight_hh, bias_ih, bias_hh = weights[4 * layer : 4 * layer + 4]
        packed += [weight_ih, weight_hh, bias_ih + bias_hh]
    if hx is None:
        hx = table.new_zeros(num_layers, 1, weight_hh.size(0))
    return torch.ops.rnn_ext._rnn_generate(
        *(tokens, draws, table, hx, packed, out_weight, out_bias, float(temperature)),
        *(len(out_bias) if top_k is None else top_k, -1 if never is None else never, nonlinearity),
    )


def _layout(batch_first: bool) -> str:
    return "(B, T, I)" if batch_first else "(T, B, I)"


def _check_settings(nonlinearity: str, num_layers: int, dropout: float) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")


def _check_batch_sizes(batch_sizes: Tensor, rows: int) -> None:
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ValueError(
            f"batch_sizes: expected a 1-D torch.int64 tensor on the CPU, got {batch_sizes.dim()}-D "
            f"{batch_sizes.dtype} on {batch_sizes.device}"
        )
    sizes = batch_sizes.tolist()
    if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise ValueError(f"batch_sizes: expected positive sizes that never increase, got {sizes}")
    if sum(sizes) != rows:
        raise ValueError(
            f"batch_sizes: expected to add up to the {rows} rows of input, got {sum(sizes)}"
        )


def _check_weights(
    weights: list[Tensor], input_size: int, num_layers: int, directions: int, bias: bool
) -> None:
    per_direction = 4 if bias else 2
    expected_count = num_layers * directions * per_direction
    if len(weights) != expected_count:
        raise ValueError(
            f"weights: expected {expected_count} tensors for num_layers={num_layers}, "
            f"{directions} direction(s), bias={bias}, got {len(weights)}"
        )
    for i, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            raise TypeError(f"weights[{i}]: expected a tensor, got {weight!r}")
    if weights[0].dim() != 2:
        raise ValueError(f"weights[0]: expected shape (H, I), got {tuple(weights[0].shape)}")
    shapes = weight_shapes(input_size, weights[0].size(0), num_layers, directions, bias)
    _check_shapes({f"weights[{i}]": w for i, w in enumerate(weights)}, shapes)


def _check_shapes(named: dict[str, Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    for (name, tensor), shape in zip(named.items(), shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def _check_like_input(input: Tensor, named: dict[str, Tensor], of: str = "input") -> None:
    autocast = is_any_autocast_enabled()
    for name, tensor in named.items():
        if tensor.device != input.device:
            raise ValueError(f"{name}: expected device {input.device} of {of}, got {tensor.device}")
        if tensor.dtype != input.dtype and not autocast:
            raise ValueError(f"{name}: expected {input.dtype} of {of}, got {tensor.dtype}")
