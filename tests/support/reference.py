"""The reference for every kernel: the plain RNN in a Python loop, with autograd through it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def reference_rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
    preactivations: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs h_t = phi(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh) in the dtype of its tensors.

    Args:
        input: (T, B, I), or packed (N, I) with `batch_sizes`.
        hx: (num_layers * D, B, H), or None for zeros.
        weights: flat, in the order of `nn.RNN`.
        batch_sizes: rows that each time step holds, never increasing.
        preactivations: if given, receives every step's pre-activation.

    Returns:
        output (T, B, D * H) or (N, D * H), and h_n (num_layers * D, B, H).
    """
    steps = list(input.unbind(0) if batch_sizes is None else input.split(batch_sizes.tolist()))
    directions = 2 if bidirectional else 1
    per_direction = 4 if bias else 2
    final = []
    for layer in range(num_layers):
        sides = []
        for direction in range(directions):
            index = layer * directions + direction
            group = weights[index * per_direction : (index + 1) * per_direction]
            batch, hidden_size = steps[0].shape[0], group[1].shape[0]
            start = steps[0].new_zeros(batch, hidden_size) if hx is None else hx[index]
            outputs, last = _one_direction(
                steps, start, group, nonlinearity, direction == 1, preactivations
            )
            sides.append(outputs)
            final.append(last)
        steps = [torch.cat(parts, dim=1) for parts in zip(*sides, strict=True)]
    output = torch.stack(steps) if batch_sizes is None else torch.cat(steps)
    return output, torch.stack(final)


def _one_direction(
    steps: Sequence[Tensor],
    start: Tensor,
    weights: Sequence[Tensor],
    nonlinearity: str,
    reverse: bool,
    preactivations: list[Tensor] | None,
) -> tuple[list[Tensor], Tensor]:
    """One layer, one direction: the outputs of the steps and each row's last state."""
    w_ih, w_hh, *biases = weights
    state = start
    outputs: dict[int, Tensor] = {}
    order = range(len(steps))
    for t in reversed(order) if reverse else order:
        x = steps[t]
        z = x @ w_ih.T + state[: len(x)] @ w_hh.T
        for b in biases:
            z = z + b
        if preactivations is not None:
            preactivations.append(z.detach())
        outputs[t] = torch.tanh(z) if nonlinearity == "tanh" else z * (z > 0)
        state = torch.cat([outputs[t], state[len(x) :]])
    return [outputs[t] for t in order], state


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
