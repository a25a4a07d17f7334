"""Cells of known recurrences, for ``rnn_ext.Recurrent``.

In all of them, for each unit::

    u_t = W_ih x_t + b_ih
    v_t = W_hh y_{t-1} + b_hh

A call of a cell computes one time step in torch operations. u, v and the states have shape (B, H);
with several gates u and v are tuples of such tensors. Parameters have shape (H,), inputs (B, H). A
cell that yields returns a generator: send it the product of each yielded value and the next blocks
of W_hh.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from ._core.cells.cell import cell

__all__ = [
    "alif",
    "elman",
    "gru",
    "gru_reset_before",
    "leaky_current",
    "leaky_rate",
    "lif",
    "lstm",
    "minimal_gru",
    "peephole_lstm",
    "spike",
    "ugrnn",
]

Gates = tuple[Tensor, ...]


@cell
def elman(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """A plain RNN, the same as ``torch.nn.RNN`` (Elman, "Finding structure in time", 1990)::

    y_t = tanh(u_t + v_t)
    """
    return torch.tanh(u + v)


@cell(states=("x",), parameters=("alpha",), inputs=("noise",))
def leaky_current(
    u: Tensor, v: Tensor, y: Tensor, x: Tensor, *, alpha: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """A continuous-time RNN in the form of currents (Song, Yang and Wang, "Training
    excitatory-inhibitory recurrent neural networks for cognitive tasks", 2016)::

        x_t = (1 - alpha) x_{t-1} + alpha (u_t + v_t) + noise_t
        y_t = tanh(x_t)

    alpha is the time step over the time constant. noise is not scaled.
    """
    x = x + alpha * (u + v - x) + noise
    return torch.tanh(x), x


@cell(parameters=("alpha",), inputs=("noise",))
def leaky_rate(u: Tensor, v: Tensor, y: Tensor, *, alpha: Tensor, noise: Tensor) -> Tensor:
    """A continuous-time RNN in the form of rates (Yang et al., "Task representations in neural
    networks trained to perform many cognitive tasks", 2019)::

        y_t = (1 - alpha) y_{t-1} + alpha tanh(u_t + v_t + noise_t)

    alpha is the time step over the time constant. noise is not scaled.
    """
    return y + alpha * (torch.tanh(u + v + noise) - y)


@cell(gates=3)
def gru(u: Gates, v: Gates, y: Tensor) -> Tensor:
    """A GRU as ``torch.nn.GRU`` computes it, which resets after the product (Cho et al.,
    "Learning phrase representations using RNN encoder-decoder", 2014)::

        r = sigmoid(u_0 + v_0)
        z = sigmoid(u_1 + v_1)
        n = tanh(u_2 + r v_2)
        y_t = (1 - z) n + z y_{t-1}
    """
    r = torch.sigmoid(u[0] + v[0])
    z = torch.sigmoid(u[1] + v[1])
    n = torch.tanh(u[2] + r * v[2])
    return n + z * (y - n)


@cell(gates=(2, 1))
def gru_reset_before(u: Gates, v: Gates, y: Tensor) -> Generator[Tensor, Tensor, Tensor]:
    """A GRU that resets before the product, as it was first published (Cho et al., "Learning phrase
    representations using RNN encoder-decoder", 2014), with torch's order of gates::

        r = sigmoid(u_0 + v_0)
        z = sigmoid(u_1 + v_1)
        n = tanh(u_2 + W_hh,2 (r y_{t-1}) + b_hh,2)
        y_t = (1 - z) n + z y_{t-1}
    """
    r = torch.sigmoid(u[0] + v[0])
    z = torch.sigmoid(u[1] + v[1])
    n = torch.tanh(u[2] + (yield r * y))
    return n + z * (y - n)


@cell(gates=(1, 1))
def minimal_gru(u: Gates, v: Tensor, y: Tensor) -> Generator[Tensor, Tensor, Tensor]:
    """A minimal gated unit (Zhou et al., "Minimal gated unit for recurrent neural networks",
    2016)::

        f = sigmoid(u_0 + v_0)
        n = tanh(u_1 + W_hh,1 (f y_{t-1}) + b_hh,1)
        y_t = (1 - f) y_{t-1} + f n
    """
    f = torch.sigmoid(u[0] + v)
    n = torch.tanh(u[1] + (yield f * y))
    return y + f * (n - y)


@cell(gates=4, states=("c",))
def lstm(u: Gates, v: Gates, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM with torch's order of gates (Hochreiter and Schmidhuber, "Long short-term memory",
    1997; with the forget gate of Gers et al., 2000)::

        i, f, o = sigmoid(u_0 + v_0), sigmoid(u_1 + v_1), sigmoid(u_3 + v_3)
        g = tanh(u_2 + v_2)
        c_t = f c_{t-1} + i g
        y_t = o tanh(c_t)
    """
    i, f, g, o = (a + b for a, b in zip(u, v, strict=True))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@cell(gates=4, states=("c",), parameters=("p_i", "p_f", "p_o"))
def peephole_lstm(
    u: Gates, v: Gates, y: Tensor, c: Tensor, *, p_i: Tensor, p_f: Tensor, p_o: Tensor
) -> tuple[Tensor, Tensor]:
    """An LSTM whose gates see the memory cell (Gers, Schraudolph and Schmidhuber, "Learning
    precise timing with LSTM recurrent networks", 2002)::

        i = sigmoid(u_0 + v_0 + p_i c_{t-1})
        f = sigmoid(u_1 + v_1 + p_f c_{t-1})
        c_t = f c_{t-1} + i tanh(u_2 + v_2)
        o = sigmoid(u_3 + v_3 + p_o c_t)
        y_t = o tanh(c_t)
    """
    i, f, g, o = (a + b for a, b in zip(u, v, strict=True))
    i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + p_o * c) * torch.tanh(c), c


@cell(gates=2)
def ugrnn(u: Gates, v: Gates, y: Tensor) -> Tensor:
    """An update-gate RNN (Collins, Sohl-Dickstein and Sussillo, "Capacity and trainability in
    recurrent neural networks", 2017)::

        c = tanh(u_0 + v_0)
        g = sigmoid(u_1 + v_1)
        y_t = g y_{t-1} + (1 - g) c
    """
    c = torch.tanh(u[0] + v[0])
    g = torch.sigmoid(u[1] + v[1])
    return c + g * (y - c)


class _FastSigmoidSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad / (ctx.slope * x.abs() + 1) ** 2, None


def spike(x: Tensor, slope: float = 25.0) -> Tensor:
    """Returns 1 where ``x > 0``, else 0, with the derivative of a fast sigmoid:
    ``1 / (slope |x| + 1)**2`` (Zenke and Ganguli, "SuperSpike", 2018).

    Args:
        x: the potential above threshold, of any shape.
        slope: a larger one makes the derivative narrower.
    """
    spikes: Tensor = _FastSigmoidSpike.apply(x, slope)
    return spikes


@cell(states=("x",), parameters=("beta", "threshold"))
def lif(
    u: Tensor, v: Tensor, y: Tensor, x: Tensor, *, beta: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """A leaky integrate-and-fire neuron that resets by subtraction (Eshraghian et al., "Training
    spiking neural networks using lessons from deep learning", 2023)::

        x_t = beta x_{t-1} + u_t + v_t - threshold y_{t-1}
        y_t = spike(x_t - threshold)

    x is the membrane potential, y the spikes.
    """
    x = beta * x + (u + v) - threshold * y
    return spike(x - threshold), x


@cell(states=("x", "a"), parameters=("beta", "threshold", "rho", "gamma"))
def alif(
    u: Tensor,
    v: Tensor,
    y: Tensor,
    x: Tensor,
    a: Tensor,
    *,
    beta: Tensor,
    threshold: Tensor,
    rho: Tensor,
    gamma: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A leaky integrate-and-fire neuron with an adaptive threshold (Bellec et al., "Long short-term
    memory and learning-to-learn in networks of spiking neurons", 2018)::

        a_t = rho a_{t-1} + (1 - rho) y_{t-1}
        x_t = beta x_{t-1} + (1 - beta) (u_t + v_t) - threshold y_{t-1}
        y_t = spike(x_t - (threshold + gamma a_t))

    x is the membrane potential, a the adaptation, y the spikes.
    """
    a = rho * a + (1 - rho) * y
    x = beta * x + (1 - beta) * (u + v) - threshold * y
    return spike(x - (threshold + gamma * a)), x, a
