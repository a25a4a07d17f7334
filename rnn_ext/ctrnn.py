"""``CTRNN``: leaky, continuous-time RNNs in three forms from the literature."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.rnn import PackedSequence

from ._core.cells.cell import Cell, cell
from .parametrizations import Interval
from .recurrent import Recurrent

__all__ = ["CTRNN"]

Function = Callable[[Tensor], Tensor]

FORMS = ("current", "rate", "inside")
NONLINEARITIES: dict[str, Function] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "retanh": lambda x: torch.tanh(torch.relu(x)),
    "square_relu": lambda x: torch.relu(x).square(),
}


def _function_of(nonlinearity: str | Function) -> Function:
    return NONLINEARITIES[nonlinearity] if isinstance(nonlinearity, str) else nonlinearity


@lru_cache
def _cell_of(form: str, noise_place: str, phi: Function) -> Cell:
    inside = noise_place == "inside"

    def current(
        u: Tensor, v: Tensor, r: Tensor, x: Tensor, *, alpha: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = x + alpha * (u + v - x)
        return (phi(x + noise), x + noise) if inside else (phi(x) + noise, x)

    def rate(u: Tensor, v: Tensor, r: Tensor, *, alpha: Tensor, noise: Tensor) -> Tensor:
        if inside:
            return r + alpha * (phi(u + v + noise) - r)
        return r + alpha * (phi(u + v) - r) + noise

    def leak_inside(u: Tensor, v: Tensor, r: Tensor, *, alpha: Tensor, noise: Tensor) -> Tensor:
        x = r + alpha * (u + v - r)
        return phi(x + noise) if inside else phi(x) + noise

    function: Any = {"current": current, "rate": rate, "inside": leak_inside}[form]
    states = ("x",) if form == "current" else ()
    return cell(states=states, parameters=("alpha",), inputs=("noise",))(function)


class CTRNN(Recurrent):
    r"""A multi-layer leaky (continuous-time) RNN, integrated with Euler's method.

    With rates r, currents x, ``α = dt / τ`` and noise n drawn from
    :math:`\mathcal{N}(0, \text{noise\_std}^2)`, each layer computes, for each time step t,

    .. math::
        \begin{aligned}
        \text{current:}\quad & x_t = (1-\alpha)\, x_{t-1} + \alpha\, (W r_{t-1} + U u_t + b) + n_t,
            \quad r_t = \varphi(x_t) \\
        \text{rate:}\quad & r_t = (1-\alpha)\, r_{t-1}
            + \alpha\, \varphi(W r_{t-1} + U u_t + b + n_t) \\
        \text{inside:}\quad & r_t = \varphi((1-\alpha)\, r_{t-1}
            + \alpha\, (W r_{t-1} + U u_t + b) + n_t)
        \end{aligned}

    The form "current" is that of Song, Yang and Wang (2016), "rate" that of Yang et al. (2019), and
    "inside" that of many tutorials. Noise is not scaled: for the noise of Song et al. pass
    :math:`\sqrt{2\alpha}\, \sigma` as ``noise_std``, for that of Yang et al.
    :math:`\sqrt{2/\alpha}\, \sigma`.

    Args:
        input_size, hidden_size, num_layers: as in :class:`rnn_ext.RNN`.
        form: ``"current"``, ``"rate"`` or ``"inside"``. Default: ``"current"``
        alpha: the time step over the time constant, one value, or one per unit ``(H,)``.
        dt, tau: time step and time constant, instead of alpha; tau is one value, or one per unit.
        learn_alpha: whether alpha is a parameter, one value per unit, kept between 0 and 1.
            Default: ``False``
        nonlinearity: φ: ``"tanh"``, ``"relu"``, ``"softplus"``, ``"sigmoid"``, ``"retanh"``
            (tanh of relu), ``"square_relu"``, or an elementwise function. Default: ``"tanh"``
        noise_std: standard deviation of the noise, which every call draws, also in ``eval()``.
            Default: 0
        noise: whether noise is added ``"inside"`` φ, as above, or ``"outside"``, to the new r.
            Default: ``"inside"``
        learn_initial_state: whether the first state of each layer and direction is a parameter,
            ``initial_state`` of shape ``(L·D, H)``. Default: ``False``
        bias, batch_first, dropout, bidirectional, device, dtype: as in :class:`rnn_ext.RNN`.

    Inputs: input, hx, noise, return_states, reset, reset_state
        * **input**: as in :class:`rnn_ext.RNN`.
        * **hx**: the initial x in form "current", where r starts from φ(x), else the initial r;
          ``(L·D, B, H)``, or ``(L·D, H)`` without a batch. Default: zeros, or ``initial_state``
        * **noise**: replaces the noise that would be drawn; an input as in
          :class:`rnn_ext.Recurrent`. Default: None
        * **return_states**: whether to also return x of the last layer at all steps, in form
          "current". Default: ``False``
        * **reset**, **reset_state**: as in :class:`rnn_ext.Recurrent`; reset_state is x or r, like
          hx. Default of reset_state: zeros, or ``initial_state``

    Outputs: output, h_n
        * **output**: r of the last layer at all steps, as in :class:`rnn_ext.RNN`.
        * **h_n**: the last x in form "current", else the last r; shaped like hx.
        * **x**, in form "current" with ``return_states``: shaped like output.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: named and initialized as in
            :class:`rnn_ext.RNN`.
        alpha: of shape () or (H,).

    Raises:
        rnn_ext.CellError: the nonlinearity contains an operation that a cell cannot have.
        ValueError: an argument or a shape does not fit.

    Example::

        >>> layer = rnn_ext.CTRNN(3, 50, dt=20.0, tau=100.0, nonlinearity="relu", noise_std=0.1)
        >>> output, x_n = layer(torch.randn(75, 8, 3))
        >>> output.shape, x_n.shape
        (torch.Size([75, 8, 50]), torch.Size([1, 8, 50]))
    """

    initial_state: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        form: str = "current",
        alpha: float | Tensor | None = None,
        dt: float | None = None,
        tau: float | Tensor | None = None,
        learn_alpha: bool = False,
        nonlinearity: str | Function = "tanh",
        noise_std: float = 0.0,
        noise: str = "inside",
        learn_initial_state: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value, known in (
            ("form", form, FORMS),
            ("noise", noise, ("inside", "outside")),
            *([("nonlinearity", nonlinearity, NONLINEARITIES)] * isinstance(nonlinearity, str)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if alpha is None:
            if dt is None or tau is None:
                raise ValueError("alpha is missing: pass alpha, or dt and tau")
            alpha = dt / torch.as_tensor(tau)
        alpha = torch.as_tensor(alpha, device=device, dtype=dtype or torch.get_default_dtype())
        if not ((alpha > 0) & (alpha <= 1)).all():
            raise ValueError(f"alpha must be above 0 and at most 1, got {alpha.tolist()}")
        if noise_std < 0:
            raise ValueError(f"noise_std must be 0 or more, got {noise_std}")
        phi = _function_of(nonlinearity)
        super().__init__(
            *(_cell_of(form, noise, phi), input_size, hidden_size, num_layers, bias, batch_first),
            *(dropout, bidirectional, device, dtype),
            alpha=nn.Parameter(alpha.expand(hidden_size).clone()) if learn_alpha else alpha,
        )
        self.form, self.noise_std = form, noise_std
        self.nonlinearity = nonlinearity
        if learn_alpha:
            register_parametrization(self, "alpha", Interval(0.0, 1.0))
        state = torch.zeros(num_layers * self._directions, hidden_size, device=device, dtype=dtype)
        self.register_parameter(
            "initial_state", nn.Parameter(state) if learn_initial_state else None
        )

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults."""
        _, _, rest = super().extra_repr().partition(", ")
        phi = self.nonlinearity
        name = phi if isinstance(phi, str) else getattr(phi, "__name__", repr(phi))
        noise = f", noise_std={self.noise_std}" if self.noise_std else ""
        return f"{rest}, form={self.form!r}, nonlinearity={name!r}{noise}"

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        noise: Tensor | PackedSequence | None = None,
        return_states: bool = False,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Runs the layers; see the class for the shapes."""
        data = input.data if isinstance(input, PackedSequence) else input
        if hx is None:
            hx = self._initial_state(input)
        if noise is None:
            noise = data.new_zeros(())
            if self.noise_std > 0:  # drawn for each layer and direction
                shape = (hx.size(0), *data.shape[:-1], self.hidden_size)
                noise = self.noise_std * data.new_empty(shape).normal_()
        if reset is not None and reset_state is None:
            reset_state = self._initial_state(input)
        if self.form != "current":
            return super().forward(input, hx, reset=reset, reset_state=reset_state, noise=noise)
        phi = _function_of(self.nonlinearity)
        output, _, *states = super().forward(
            input,
            (phi(hx), hx),
            return_states=return_states,
            reset=reset,
            reset_state=None if reset_state is None else (phi(reset_state), reset_state),
            noise=noise,
        )
        return output, *states

    def _initial_state(self, input: Tensor | PackedSequence) -> Tensor:
        states = self.num_layers * self._directions
        if isinstance(input, PackedSequence):
            data, batch = input.data, [int(input.batch_sizes[0])]
        else:
            data, batch = input, []
            if input.dim() == 3:
                batch = [input.size(0 if self.batch_first else 1)]
        shape = (states, *batch, self.hidden_size)
        if self.initial_state is None:
            return data.new_zeros(shape)
        state = self.initial_state.unsqueeze(1) if batch else self.initial_state
        return state.expand(shape)
