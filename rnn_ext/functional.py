"""Stateless calls, with the weights as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._core import dispatch, lookup
from ._core.call import Call, weight_shapes
from ._core.kinds import Kind, kind_of
from ._core.resets import as_states
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
        hx: initial states ``(L·D, B, H)``, ``(L·D, H)`` without a batch; zeros if None.
        weights: ``weight_ih``, ``weight_hh`` and, with ``bias``, ``bias_ih``, ``bias_hh``, for each
            direction of each layer: the order of ``torch.nn.RNN``'s parameters. Shapes ``(H, I)``
            in the first layer and ``(H, D·H)`` above, ``(H, H)``, ``(H,)``, ``(H,)``.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        num_layers: L.
        bias: whether ``weights`` hold biases.
        batch_first: whether input and output are ``(B, T, ·)``; does not apply to hx and h_n.
        dropout: probability of zeroing an element between layers, while ``training``.
        training: whether dropout is on.
        bidirectional: whether every layer also runs from the last step to the first.
        batch_sizes: rows of each step of packed input, a 1-D int64 tensor on the CPU.

    Returns:
        ``output``, shaped like input with ``D·H`` features, and ``h_n``, shaped like ``hx``.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
        TypeError: a weight is not a tensor.
    """
    settings = _Settings(
        kind_of("rnn", nonlinearity),
        *(num_layers, bias, batch_first, dropout, training, bidirectional, batch_sizes),
    )
    output, (h_n,) = _run(settings, input, [] if hx is None else [hx], weights)
    return output, h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    r"""Returns one step of an Elman RNN, :math:`\varphi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`.

    Args:
        input: ``(B, I)``, or ``(I,)`` without a batch.
        hx: ``(B, H)`` or ``(H,)``; zeros if None.
        weight_ih, weight_hh: ``(H, I)`` and ``(H, H)``.
        bias_ih, bias_hh: ``(H,)`` each; zeros if None.
        nonlinearity: ``'tanh'`` or ``'relu'``.

    Returns:
        The next state ``(B, H)`` or ``(H,)``.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
    """
    kind = kind_of("rnn", nonlinearity)
    if input.dim() not in (1, 2):
        raise ValueError(f"input: expected shape (B, I) or (I,), got {tuple(input.shape)}")
    if bias_ih is None and bias_hh is not None:
        bias_ih = torch.zeros_like(bias_hh)
    elif bias_hh is None and bias_ih is not None:
        bias_hh = torch.zeros_like(bias_ih)
    named = {"weight_ih": weight_ih, "weight_hh": weight_hh}
    if bias_ih is not None and bias_hh is not None:
        named |= {"bias_ih": bias_ih, "bias_hh": bias_hh}
    if weight_ih.dim() != 2:
        raise ValueError(f"weight_ih: expected shape (H, I), got {tuple(weight_ih.shape)}")
    hidden_size = weight_ih.size(0)
    shapes = weight_shapes(input.size(-1), hidden_size, 1, 1, 1, bias_ih is not None)
    _check_shapes(named, shapes)
    if hx is not None:
        _check_shapes({"hx": hx}, [(*input.shape[:-1], hidden_size)])
        named["hx"] = hx
    _check_like_input(input, named)
    is_batched = input.dim() == 2
    if not is_batched:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
    biases = [] if bias_ih is None else [bias_ih, bias_hh]
    call = Call(
        input=input,
        hx=hx,
        weights=[weight_ih, weight_hh, *biases],
        batch_sizes=None,
        is_step=True,
        kind=kind,
        num_layers=1,
        bidirectional=False,
        bias=bias_ih is not None,
        training=False,
        input_size=input.size(-1),
        hidden_size=hidden_size,
        dropout=0.0,
    )
    (h,) = dispatch.route(call).run()
    return h if is_batched else h.squeeze(0)


def embedding_rnn(
    tokens: Tensor,
    hx: Any,
    embedding: Tensor,
    weights: Sequence[Tensor],
    *,
    cell: str = "rnn",
    padding_idx: int | None = None,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Applies an embedding and an Elman RNN, a GRU or an LSTM to tokens.

    Returns ``rnn(F.embedding(tokens, embedding, padding_idx), hx, weights, ...)``, or the result of
    a GRU or LSTM, up to rounding and with less work: the first layer computes W_ih E once for each
    of the V rows of the embedding and looks up the results. This applies to float32 and float64 on
    the CPU and at least V tokens, outside autocast, graph capture, ``torch.func`` and forward-mode
    AD. All other calls run the two operations one after the other. Second derivatives of the first
    layer run as a loop of torch operations.

    With T time steps, batch B, vocabulary V, embedding size E, hidden size H, L layers, D
    directions, and G = 1, 3 or 4 for ``'rnn'``, ``'gru'`` and ``'lstm'``:

    Args:
        tokens: int64 or int32 indices from 0 to V-1: ``(T, B)``; ``(B, T)`` with ``batch_first``;
            ``(T,)`` without a batch; or packed ``(N,)`` with ``batch_sizes``.
        hx: initial states ``(L·D, B, H)``, ``(L·D, H)`` without a batch; for an LSTM a tuple of two
            such tensors, h and c; zeros if None.
        embedding: ``(V, E)``.
        weights: as for :func:`rnn` with input size E, G·H rows each.
        cell: ``'rnn'``, ``'gru'`` or ``'lstm'``.
        padding_idx: a token whose row of ``embedding`` gets no gradient.
        nonlinearity: of an RNN, ``'tanh'`` or ``'relu'``.
        num_layers, bias, batch_first, dropout, training, bidirectional, batch_sizes: as for
            :func:`rnn`.

    Returns:
        ``output``, ``(T, B, D·H)`` or in the layout of ``tokens``, and the final states, shaped
        like ``hx``.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
        TypeError: a weight is not a tensor.
        IndexError: a token is not in the vocabulary.
    """
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens: expected torch.int64 or torch.int32, got {tokens.dtype}")
    if embedding.dim() != 2:
        raise ValueError(f"embedding: expected shape (V, E), got {tuple(embedding.shape)}")
    settings = _Settings(
        kind_of(cell, nonlinearity),
        *(num_layers, bias, batch_first, dropout, training, bidirectional, batch_sizes),
    )
    names = ("h", *settings.kind.cell.states)
    initial = [] if hx is None else as_states("hx", hx, names)
    output, finals = _run(settings, tokens, initial, weights, embedding, padding_idx)
    return output, finals[0] if len(names) == 1 else tuple(finals)


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
    """Generates tokens with an embedding, an RNN and a linear layer.

    The call packs the weights once, and its whole loop from token to state, scores and next token
    runs in C++. It takes float32 on the CPU, layers with biases and one direction.

    With vocabulary V, embedding size E, hidden size H and L layers:

    Args:
        tokens: the prompt, at least one index: ``(P,)``, int64.
        draws: a random number in [0, 1) for each token to generate: ``(N,)``, float64, N ≥ 1.
        hx: states before the prompt, ``(L, 1, H)``; zeros if None.
        embedding, weights: as for :func:`embedding_rnn`.
        out_weight, out_bias: of the linear layer, ``(V, H)`` and ``(V,)``.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        num_layers: L.
        temperature: divides the scores before the softmax; 0 takes the largest score.
        top_k: draw only from the tokens with the ``top_k`` largest scores.
        never: a token that is never drawn.

    Returns:
        The tokens ``(N,)``, and the states ``(L, 1, H)`` with which a next call continues, with the
        last token as its prompt.

    Raises:
        ValueError: the weights do not fit each other.
        RuntimeError: another argument's shape, dtype, device or value does not fit.
    """
    weights = list(weights)
    kind = kind_of("rnn", nonlinearity)
    if embedding.dim() != 2:
        raise ValueError(f"embedding: expected shape (V, E), got {tuple(embedding.shape)}")
    _check_weights(weights, embedding.size(1), kind, num_layers, 1, bias=True)
    weight_ih, weight_hh, bias_ih, bias_hh = weights[:4]
    table = F.linear(embedding, weight_ih, bias_ih + bias_hh)
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


class _Settings(NamedTuple):
    """The arguments of :func:`rnn` other than tensors of values."""

    kind: Kind
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    training: bool
    bidirectional: bool
    batch_sizes: Tensor | None


def _run(
    settings: _Settings,
    input: Tensor,
    initial: list[Tensor],
    weights: Sequence[Tensor],
    embedding: Tensor | None = None,
    padding_idx: int | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Checks the arguments, then runs the layers.

    Args:
        input: of :func:`rnn`; with ``embedding``, tokens.
        initial: the initial states, none for zeros.

    Returns:
        The output and the final states.
    """
    kind, num_layers, bias, batch_first, dropout, training, bidirectional, batch_sizes = settings
    weights = list(weights)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")
    is_packed = batch_sizes is not None
    is_batched = _check_dims(input, embedding is not None, batch_first, is_packed)
    if not is_batched:
        input = input.unsqueeze(1)
    elif batch_first and not is_packed:
        input = input.transpose(0, 1)
    if batch_sizes is not None:
        # A graph cannot depend on the lengths; the op checks them.
        is_recorded = torch.compiler.is_compiling()
        if not is_recorded:
            _check_batch_sizes(batch_sizes, input.size(0))
        batch = initial[0].size(1) if is_recorded and initial else int(batch_sizes[0])
    else:
        batch = input.size(1)

    like, of = (input, "input") if embedding is None else (embedding, "embedding")
    directions = 2 if bidirectional else 1
    _check_weights(weights, like.size(-1), kind, num_layers, directions, bias)
    _check_like_input(like, {f"weights[{i}]": w for i, w in enumerate(weights)}, of)
    hidden_size = weights[0].size(0) // kind.cell.gates
    states = (num_layers * directions, batch, hidden_size)
    expected = states if is_batched else (states[0], hidden_size)
    named = {"hx" if kind.states() == 1 else f"hx[{i}]": t for i, t in enumerate(initial)}
    _check_shapes(named, [expected] * len(named))
    _check_like_input(like, named, of)
    if is_packed and not initial:
        initial = [like.new_zeros(states)] * kind.states()
    elif not is_batched:
        initial = [t.unsqueeze(1) for t in initial]

    hx, cx = (*initial, None, None)[:2]
    call = Call(
        *(input, hx, weights, batch_sizes, False, kind),
        *(num_layers, bidirectional, bias, training),
        *(like.size(-1), hidden_size, dropout, cx),
    )
    if embedding is None:
        output, *finals = dispatch.route(call).run()
    else:
        output, *finals = lookup.run(call, embedding, padding_idx)
    if not is_batched:
        return output.squeeze(1), [t.squeeze(1) for t in finals]
    return (output.transpose(0, 1) if batch_first and not is_packed else output), finals


def _check_dims(input: Tensor, are_tokens: bool, batch_first: bool, is_packed: bool) -> bool:
    """Returns whether input, or tokens, have a batch."""
    dims = input.dim() + are_tokens  # tokens lack the axis of the features
    if dims not in ((2,) if is_packed else (2, 3)):
        name, features = ("tokens", "") if are_tokens else ("input", ", I")
        axes = ("N",) if is_packed else ("T", "B, T" if batch_first else "T, B")
        shapes = " or ".join(f"({a}{features})" for a in axes)
        raise ValueError(f"{name}: expected shape {shapes}, got {tuple(input.shape)}")
    return is_packed or dims == 3


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
    weights: list[Tensor], input_size: int, kind: Kind, num_layers: int, directions: int, bias: bool
) -> None:
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
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
        rows = "H" if kind.is_compiled() else f"{kind.cell.gates}·H"
        shape = tuple(weights[0].shape)
        raise ValueError(f"weights[0]: expected shape ({rows}, I), got {shape}")
    gates = kind.cell.gates
    hidden_size = weights[0].size(0) // gates
    shapes = weight_shapes(input_size, hidden_size, gates, num_layers, directions, bias)
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
