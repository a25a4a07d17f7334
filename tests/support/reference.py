"""The reference for every kernel: each kind in a Python loop, with autograd through it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from support import KINDS


def reference_rnn(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], **options: Any
) -> tuple[Tensor, Tensor]:
    """`reference_layers` of an RNN; hx None for zeros."""
    output, h_n = reference_layers(input, [] if hx is None else [hx], weights, **options)
    return output, h_n


def reference_layers(
    input: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    kind: str = "RNN",
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
    preactivations: list[Tensor] | None = None,
) -> list[Tensor]:
    """Runs the formulas of `nn.RNN`, `nn.GRU` and `nn.LSTM` in the dtype of the tensors.

    Args:
        input: (T, B, I), or packed (N, I) with `batch_sizes`.
        initial: each state (num_layers * D, B, H); none for zeros.
        weights: flat, in the order of `nn.RNN`.
        batch_sizes: rows that each time step holds, never increasing.
        preactivations: if given, receives every step's pre-activations.

    Returns:
        output (T, B, D * H) or (N, D * H), and each final state (num_layers * D, B, H).
    """
    steps = list(input.unbind(0) if batch_sizes is None else input.split(batch_sizes.tolist()))
    directions = 2 if bidirectional else 1
    per_direction = 4 if bias else 2
    function = partial(_STEPS[kind], preactivations=preactivations, nonlinearity=nonlinearity)
    finals = []
    for layer in range(num_layers):
        sides = []
        for direction in range(directions):
            index = layer * directions + direction
            group = weights[index * per_direction : (index + 1) * per_direction]
            batch, hidden_size = steps[0].shape[0], group[1].shape[1]
            start = [t[index] for t in initial]
            start = start or [steps[0].new_zeros(batch, hidden_size)] * len(KINDS[kind])
            outputs, last = _one_direction(steps, start, group, function, direction == 1)
            sides.append(outputs)
            finals.append(last)
        steps = [torch.cat(parts, dim=1) for parts in zip(*sides, strict=True)]
    output = torch.stack(steps) if batch_sizes is None else torch.cat(steps)
    return [output, *map(torch.stack, zip(*finals, strict=True))]


def _one_direction(
    steps: Sequence[Tensor],
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    function: Callable[..., list[Tensor]],
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """One layer, one direction: the outputs of the steps and each row's last states."""
    w_ih, w_hh, *biases = weights
    states = list(start)
    outputs: dict[int, Tensor] = {}
    order = range(len(steps))
    b_ih, b_hh = biases or (None, None)
    projected = linear(torch.cat(list(steps)), w_ih, b_ih).split([len(x) for x in steps])
    for t in reversed(order) if reverse else order:
        u, rows = projected[t], len(projected[t])
        before = [s[:rows] for s in states]
        new = function(u, linear(before[0], w_hh, b_hh), *before)
        outputs[t] = new[0]
        states = [torch.cat([a, s[rows:]]) for a, s in zip(new, states, strict=True)]
    return [outputs[t] for t in order], states


def _rnn_step(
    u: Tensor, v: Tensor, h: Tensor, preactivations: list[Tensor] | None, nonlinearity: str
) -> list[Tensor]:
    z = u + v
    if preactivations is not None:
        preactivations.append(z.detach())
    return [torch.tanh(z) if nonlinearity == "tanh" else z * (z > 0)]


def _gru_step(
    u: Tensor, v: Tensor, h: Tensor, preactivations: list[Tensor] | None, nonlinearity: str
) -> list[Tensor]:
    (ur, uz, un), (vr, vz, vn) = u.chunk(3, 1), v.chunk(3, 1)
    r, z = torch.sigmoid(ur + vr), torch.sigmoid(uz + vz)
    n = torch.tanh(un + r * vn)
    return [(1 - z) * n + z * h]


def _lstm_step(
    u: Tensor,
    v: Tensor,
    h: Tensor,
    c: Tensor,
    preactivations: list[Tensor] | None,
    nonlinearity: str,
) -> list[Tensor]:
    i, f, g, o = (u + v).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


_STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "RNN": _rnn_step,
    "GRU": _gru_step,
    "LSTM": _lstm_step,
}


def reference_tangent(
    seed: Tensor,
    initial: Tensor | None,
    matrices: Sequence[Tensor],
    output: Tensor,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> Tensor:
    """Runs y_t = phi'(z_t) (seed_t + W y_{t-1}): the same as `torch.ops.rnn_ext._rnn_tangent`."""
    sides = []
    for direction, matrix in enumerate(matrices):
        columns = slice(direction * len(matrix), (direction + 1) * len(matrix))
        steps, states = (
            t[..., columns].unbind(0)
            if batch_sizes is None
            else t[..., columns].split(batch_sizes.tolist())
            for t in (seed, output)
        )
        y = torch.zeros_like(steps[0]) if initial is None else initial[direction]
        results: dict[int, Tensor] = {}
        order = range(len(steps))
        for t in order if reverse == bool(direction) else reversed(order):
            s, h = steps[t], states[t]
            slope = 1 - h * h if nonlinearity == "tanh" else (h > 0).to(h)
            results[t] = slope * (s + y[: len(s)] @ matrix.T)
            y = torch.cat([results[t], y[len(s) :]])
        sides.append([results[t] for t in order])
    ys = [torch.cat(parts, dim=1) for parts in zip(*sides, strict=True)]
    return torch.stack(ys) if batch_sizes is None else torch.cat(ys)
