"""Stateless calls: the weights are arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, _VF

from . import autograd, routing

__all__ = ["rnn", "rnn_cell"]


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
        input: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` without a batch; or packed
            ``(N, I)`` with ``batch_sizes``, as in :class:`torch.nn.utils.rnn.PackedSequence`.
        hx: initial states ``(L·D, B, H)``, ``(L·D, H)`` without a batch; zeros where None.
        weights: ``weight_ih``, ``weight_hh`` and, with ``bias``, ``bias_ih``, ``bias_hh``, for each
            direction of each layer: the order of ``torch.nn.RNN``'s parameters. Shapes ``(H, I)`` in the
            first layer and ``(H, D·H)`` above, ``(H, H)``, ``(H,)``, ``(H,)``.
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
        ValueError: an argument's shape or value does not fit the others.
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
                    f"hx: expected 2 dimensions for input without a batch, got shape {tuple(hx.shape)}"
                )
            hx = hx.unsqueeze(1)
    elif batch_sizes is not None and input.dim() != 2:
        raise ValueError(f"input: expected packed (N, I), got shape {tuple(input.shape)}")
    time_major = batch_first and batch_sizes is None
    if time_major:
        input = input.transpose(0, 1)
    if batch_sizes is not None:
        _check_batch_sizes(batch_sizes, input.size(0))
        batch = int(batch_sizes[0])
    else:
        batch = input.size(1)
    _check_weights(weights, input.size(-1), num_layers, directions, bias)
    states = (num_layers * directions, batch, weights[1].size(0))
    if hx is None:
        if batch_sizes is not None:
            hx = input.new_zeros(states)
    elif hx.shape != states:
        raise ValueError(f"hx: expected shape {states}, got {tuple(hx.shape)}")

    output, h_n = routing.run(
        input,
        hx,
        weights,
        batch_sizes,
        nonlinearity=nonlinearity,
        num_layers=num_layers,
        bias=bias,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
    )
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
        input: ``(B, I)``.
        hx: ``(B, H)``; zeros where None.
        w_ih, w_hh: ``(H, I)`` and ``(H, H)``.
        b_ih, b_hh: ``(H,)`` each, or both None.
        nonlinearity: ``'tanh'`` or ``'relu'``.

    Returns:
        The next state ``(B, H)``.

    Raises:
        ValueError: unknown nonlinearity.
        RuntimeError: shapes that do not fit each other, in the words of ``torch.rnn_tanh_cell``.
    """
    _check_settings(nonlinearity, 1, 0.0)
    has_bias = b_ih is not None and b_hh is not None
    weights = [w_ih, w_hh, b_ih, b_hh] if has_bias else [w_ih, w_hh]
    fits = (
        input.dim() == 2
        and (hx is None or hx.shape == (input.size(0), w_hh.size(0)))
        and (b_ih is None) == (b_hh is None)
    )
    if not fits or routing.reason_for_torch(input, hx, weights, has_bias, 1):  # type: ignore[arg-type]
        if hx is None:
            hx = input.new_zeros(input.size(0), w_hh.size(0))
        op = _VF.rnn_tanh_cell if nonlinearity == "tanh" else _VF.rnn_relu_cell
        return op(input, hx, w_ih, w_hh, b_ih, b_hh)
    output, _ = autograd.rnn_layer(
        input.unsqueeze(0),
        None if hx is None else hx.unsqueeze(0),
        weights,  # type: ignore[arg-type]
        None,
        nonlinearity,
        False,
    )
    return output.squeeze(0)


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
    sizes = batch_sizes.tolist()
    falls = all(a >= b for a, b in zip(sizes, sizes[1:], strict=False))
    if not sizes or not falls or sizes[-1] < 1 or sum(sizes) != rows:
        raise ValueError(
            f"batch_sizes: expected positive sizes that never increase and add up to the {rows} rows "
            f"of input, got {sizes}"
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
    if weights[1].dim() != 2:
        raise ValueError(f"weights[1]: expected shape (H, H), got {tuple(weights[1].shape)}")
    expected_shapes = routing.weight_shapes(
        input_size, weights[1].size(0), num_layers, directions, bias
    )
    for i, (weight, expected) in enumerate(zip(weights, expected_shapes, strict=True)):
        if weight.shape != expected:
            raise ValueError(f"weights[{i}]: expected shape {expected}, got {tuple(weight.shape)}")
