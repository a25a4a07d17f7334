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

import math
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import Tensor

from ._core.cells.cell import Cell, cell

__all__ = [
    "alif",
    "elman",
    "gru",
    "gru_reset_before",
    "leaky_current",
    "leaky_rate",
    "lif",
    "lstm",
    "make_alif",
    "make_lif",
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


# The derivatives that can stand in for that of a step, and the slope where none is given.
SURROGATES = {"fast_sigmoid": 25.0, "arctan": 2.0, "straight_through": 1.0}
RESETS = ("subtract", "zero")


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slope: float, surrogate: str) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.slope, ctx.surrogate = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Spike.scale(ctx, grad), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Spike.scale(ctx, tangent)

    @staticmethod
    def scale(ctx: Any, value: Tensor) -> Tensor:
        """Returns ``value`` times the surrogate of the derivative."""
        (x,) = ctx.saved_tensors
        if ctx.surrogate == "fast_sigmoid":
            return value / (ctx.slope * x.abs() + 1) ** 2
        if ctx.surrogate == "arctan":
            return value * (ctx.slope / 2) / (1 + (math.pi / 2 * ctx.slope * x) ** 2)
        return value


def spike(x: Tensor, slope: float | None = None, surrogate: str = "fast_sigmoid") -> Tensor:
    """Returns 1 where ``x > 0``, else 0, with a surrogate for its derivative:

    * ``"fast_sigmoid"``: ``1 / (slope |x| + 1)**2`` (Zenke and Ganguli, "SuperSpike", 2018);
      slope is 25 by default.
    * ``"arctan"``: ``(slope / 2) / (1 + (pi / 2 slope x)**2)`` (Fang et al., "Incorporating
      learnable membrane time constant to enhance learning of spiking neural networks", 2021); slope
      is 2 by default.
    * ``"straight_through"``: 1 (Bengio, Léonard and Courville, "Estimating or propagating gradients
      through stochastic neurons for conditional computation", 2013).

    Args:
        x: the potential above threshold, of any shape.
        slope: a larger one makes the derivative narrower.
        surrogate: the name of the derivative.

    Raises:
        ValueError: an unknown surrogate.
    """
    _check_choice("surrogate", surrogate, SURROGATES)
    slope = SURROGATES[surrogate] if slope is None else slope
    spikes: Tensor = _Spike.apply(x, slope, surrogate)
    return spikes


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _in_module(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets pickle look for the cell among those of this module, such as ``lif``."""
    function.__qualname__ = function.__name__
    return function


def make_lif(
    *,
    surrogate: str = "fast_sigmoid",
    slope: float | None = None,
    reset: str = "subtract",
    detach_reset: bool = False,
) -> Cell:
    """Returns a leaky integrate-and-fire neuron (Eshraghian et al., "Training spiking neural
    networks using lessons from deep learning", 2023) with parameters beta and threshold::

        x_t = beta x_{t-1} + u_t + v_t - threshold y_{t-1}      (reset "subtract")
        x_t = beta (1 - y_{t-1}) x_{t-1} + u_t + v_t            (reset "zero")
        y_t = spike(x_t - threshold)

    x is the membrane potential, y the spikes.

    With ``detach_reset=True`` these are the neurons of

    * snnTorch 1.0, ``RLeaky(beta, threshold, reset_mechanism="subtract")`` with the same surrogate:
      its ``fast_sigmoid``, ``atan`` or ``straight_through_estimator``;
    * Norse 1.1, ``lif_step`` with ``slope=1``, ``reset="zero"``, ``beta = 1 - dt tau_mem_inv`` and
      weights times ``dt tau_mem_inv``, where ``v_leak`` and ``v_reset`` are 0 and the synaptic
      current lasts one step, ``dt tau_syn_inv = 1``; ``lif_box_feed_forward_step`` is the same
      with ``detach_reset=False``.

    Others of their options are other recurrences, which a cell of your own can have: snnTorch's
    reset ``"zero"``, which drops the input of the step too, and ``reset_delay=False``; Norse's
    synaptic currents that last, and its ``reset_subtract``, which comes before the leak.

    Args:
        surrogate, slope: of :func:`spike`.
        reset: what a spike does to the potential: ``"subtract"`` or ``"zero"``.
        detach_reset: whether gradients do not flow through the spikes that reset.

    Raises:
        ValueError: an unknown surrogate or reset.
    """
    _check_choice("surrogate", surrogate, SURROGATES)
    _check_choice("reset", reset, RESETS)
    subtracts = reset == "subtract"

    @cell(states=("x",), parameters=("beta", "threshold"))
    @_in_module
    def lif(
        u: Tensor, v: Tensor, y: Tensor, x: Tensor, *, beta: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        spikes = y.detach() if detach_reset else y
        x = beta * (x if subtracts else (1 - spikes) * x) + (u + v)
        x = x - threshold * spikes if subtracts else x
        return spike(x - threshold, slope, surrogate), x

    return lif


def make_alif(
    *,
    surrogate: str = "fast_sigmoid",
    slope: float | None = None,
    reset: str = "subtract",
    detach_reset: bool = False,
) -> Cell:
    """Returns a leaky integrate-and-fire neuron with an adaptive threshold (Bellec et al., "Long
    short-term memory and learning-to-learn in networks of spiking neurons", 2018), with parameters
    beta, threshold, rho and gamma::

        a_t = rho a_{t-1} + (1 - rho) y_{t-1}
        x_t = beta x_{t-1} + (1 - beta) (u_t + v_t) - threshold y_{t-1}      (reset "subtract")
        x_t = beta (1 - y_{t-1}) x_{t-1} + (1 - beta) (u_t + v_t)            (reset "zero")
        y_t = spike(x_t - (threshold + gamma a_t))

    x is the membrane potential, a the adaptation, y the spikes.

    With ``slope=1`` and ``reset="zero"`` and without recurrent weights it is the neuron of Norse
    1.1's ``lsnn_feed_forward_step`` one step earlier, where ``beta = 1 - dt tau_mem_inv``, ``rho =
    1 - dt tau_adapt_inv``, gamma is Norse's beta times ``rho / (1 - rho)``, ``dt tau_syn_inv = 1``,
    ``v_leak`` and ``v_reset`` are 0, and Norse's b starts as ``v_th``. In Norse's ``lsnn_step`` a
    spike reaches the other neurons two steps later, which is another recurrence.

    The arguments are those of :func:`make_lif`.
    """
    _check_choice("surrogate", surrogate, SURROGATES)
    _check_choice("reset", reset, RESETS)
    subtracts = reset == "subtract"

    @cell(states=("x", "a"), parameters=("beta", "threshold", "rho", "gamma"))
    @_in_module
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
        a = rho * a + (1 - rho) * y
        spikes = y.detach() if detach_reset else y
        x = beta * (x if subtracts else (1 - spikes) * x) + (1 - beta) * (u + v)
        x = x - threshold * spikes if subtracts else x
        return spike(x - (threshold + gamma * a), slope, surrogate), x, a

    return alif


#: The neuron of :func:`make_lif` with its default arguments.
lif = make_lif()
#: The neuron of :func:`make_alif` with its default arguments.
alif = make_alif()
