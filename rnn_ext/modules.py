"""Drop-ins for ``torch.nn.RNN``, ``GRU``, ``LSTM`` and their cells."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import cells
from ._core import node
from ._core.kinds import KINDS, Kind
from ._core.modules import Layers, Step

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(Layers):
    r"""A multi-layer Elman RNN (Elman, 1990) that runs a whole sequence in one call.

    Each layer computes, for each time step t,

    .. math::
        h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}),
        \qquad \varphi \in \{\tanh, \mathrm{ReLU}\}

    where :math:`x_t` is the input or the output of the layer below. Constructor, parameters, their
    initialization (the same draws for the same seed), ``state_dict``, results, errors and warnings
    are those of :class:`torch.nn.RNN`.

    Args:
        input_size: number of features I of the input.
        hidden_size: number of features H of the state.
        num_layers: number of stacked layers L. Default: 1
        nonlinearity: ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        bias: whether the layers have ``bias_ih`` and ``bias_hh``. Default: ``True``
        batch_first: whether input and output are ``(B, T, ·)`` rather than ``(T, B, ·)``; does not
            apply to hx and h_n, nor to input without a batch. Default: ``False``
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training mode. Default: 0
        bidirectional: whether every layer also runs from the last step to the first (D = 2).
            Default: ``False``
        device, dtype: of the parameters.

    Inputs: input, hx, reset, reset_state
        * **input**: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` without a batch,
          or a :class:`~torch.nn.utils.rnn.PackedSequence`, which goes to the kernels as it is.
        * **hx**: initial states ``(L·D, B, H)``, or ``(L·D, H)`` without a batch. Default: zeros
        * **reset**, **reset_state**: where rows start anew, and from what, as in
          :class:`rnn_ext.Recurrent`; pass them by keyword, since ``nn.RNN`` has no such arguments.
          The call then runs as the program of a cell, with the same bits, and the notes of that
          class apply. Default: None

    Outputs: output, h_n
        * **output**: the last layer's states, shaped like input with ``D·H`` features; a
          PackedSequence if input is one.
        * **h_n**: final states of every layer and direction, shaped like ``hx``.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: the parameters of layer k, of
            shapes ``(H, I)`` (above the first layer ``(H, D·H)``), ``(H, H)``, ``(H,)``, ``(H,)``;
            those of the reverse direction end in ``_reverse``. All start from
            :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.RNN` does, in its words.
        torch.OutOfMemoryError: no memory for the result.

    .. note::
        float32, float64, bfloat16 and float16 on the CPU run on this package's kernels; every
        other dtype and device runs on torch's own op. :func:`rnn_ext.explain` says which path a
        call takes. The 16-bit types are storage types: arithmetic, the state between steps and the
        sums of gradients are float32. All values are rounded between layers, and the gradient of
        the input between the two directions of a layer. CPUs with AVX512-BF16 multiply bfloat16
        values without conversion in the input projection and, after rounding the gradient of the
        pre-activation, in the gradients of input and weights.

    .. note::
        Forward results and gradients are the same bits for every number of threads, and a batch
        row's forward result does not depend on the other rows, on padding or on packing.

    .. note::
        ``isinstance(module, torch.nn.RNN)`` is False, ``isinstance(module, torch.nn.RNNBase)`` is
        True: torch.compile does not trace instances of the former.
        :meth:`flatten_parameters` does nothing.

    Example::

        >>> rnn = rnn_ext.RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        super().__init__("RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)

    _torchs = nn.RNN
    _is_quantizable = False

    def flatten_parameters(self) -> None:
        """Does nothing: the weights stay where they are."""

    def _kind(self) -> Kind | None:
        # Not `nonlinearity`: nn.RNN ignores later changes of it, and old pickles lack it.
        return KINDS[self.mode] if self.mode in ("RNN_TANH", "RNN_RELU") else None

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        # Not keyword-only: torch.onnx.export(dynamo=False) passes all arguments by position.
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        has_reset = reset is not None or reset_state is not None
        if not has_reset and not self._own_check and not torch.compiler.is_compiling():
            result = node.run_rnn(self, input, hx)
            if result is not None:
                return result
        results: tuple[Tensor | PackedSequence, Tensor]
        results = super().forward(input, hx, reset, reset_state)
        return results


class GRU(Layers):
    r"""A multi-layer gated recurrent unit (Cho et al., 2014) that runs a sequence in one call.

    Each layer computes, for each time step t,

    .. math::
        \begin{aligned}
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \circ (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \circ n_t + z_t \circ h_{t-1}
        \end{aligned}

    where :math:`x_t` is the input or the output of the layer below. As in torch, the reset gate
    multiplies the product and its bias, not h. Constructor, parameters, their
    initialization (the same draws for the same seed), ``state_dict``, results, errors and warnings
    are those of :class:`torch.nn.GRU`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first: as in :class:`RNN`.
        dropout, bidirectional, device, dtype: likewise.

    Inputs: input, hx, reset, reset_state
        As in :class:`RNN`.

    Outputs: output, h_n
        As in :class:`RNN`.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: the parameters of layer k, of
            shapes ``(3·H, I)`` (above the first layer ``(3·H, D·H)``), ``(3·H, H)``, ``(3·H,)``,
            ``(3·H,)``, the rows of r, then of z, then of n; those of the reverse direction end in
            ``_reverse``. All start from :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.GRU` does, in its words.
        torch.OutOfMemoryError: no memory for the result.

    .. note::
        float32, float64, bfloat16 and float16 on the CPU run on this package's kernels; every
        other dtype and device, including CUDA, runs on torch's own op. Second derivatives run as a
        loop of torch operations.
        :func:`rnn_ext.explain` says which path a call takes. Under autocast results have the same
        dtype as torch's, and all arithmetic is in that dtype.

    .. note::
        Results are the same bits for every number of threads, and a batch row's result does not
        depend on the other rows, on padding or on packing.

    .. note::
        ``isinstance(module, torch.nn.GRU)`` is False, ``isinstance(module, torch.nn.RNNBase)`` is
        True.

    Example::

        >>> gru = rnn_ext.GRU(10, 20, num_layers=2)
        >>> output, h_n = gru(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    _torchs = nn.GRU

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        results: tuple[Tensor | PackedSequence, Tensor]
        results = super().forward(input, hx, reset, reset_state)
        return results


class LSTM(Layers):
    r"""A multi-layer LSTM (Hochreiter and Schmidhuber, 1997) that runs a sequence in one call.

    Each layer computes, for each time step t,

    .. math::
        \begin{aligned}
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \circ c_{t-1} + i_t \circ g_t \\
        h_t &= o_t \circ \tanh(c_t)
        \end{aligned}

    where :math:`x_t` is the input or the output of the layer below. Constructor, parameters, their
    initialization (the same draws for the same seed), ``state_dict``, results, errors and warnings
    are those of :class:`torch.nn.LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first: as in :class:`RNN`.
        dropout, bidirectional, device, dtype: likewise.
        proj_size: size of a projection of h; with one, torch's own op runs. Default: 0

    Inputs: input, hx, reset, reset_state
        * **input**, **reset**: as in :class:`RNN`.
        * **hx**: a tuple of the initial h and c, each as hx in :class:`RNN`. Default: zeros
        * **reset_state**: a tuple for h and c, each as in :class:`RNN`. Default: zeros

    Outputs: output, (h_n, c_n)
        * **output**: h of the last layer at all steps, as in :class:`RNN`.
        * **h_n**, **c_n**: final h and c of every layer and direction, shaped like those of ``hx``.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: the parameters of layer k, of
            shapes ``(4·H, I)`` (above the first layer ``(4·H, D·H)``), ``(4·H, H)``, ``(4·H,)``,
            ``(4·H,)``, the rows of i, then of f, g and o; those of the reverse direction end in
            ``_reverse``. All start from :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.LSTM` does, in its words.
        torch.OutOfMemoryError: no memory for the result.

    .. note::
        The notes of :class:`GRU` on dtypes, devices, derivatives, reproducibility and
        ``isinstance`` apply to LSTM.

    Example::

        >>> lstm = rnn_ext.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
    """

    _torchs = nn.LSTM

    # Methods that nn.LSTM's forward calls, and that nn.RNNBase lacks or has in another form.
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        reset: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        results: tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]
        results = super().forward(input, hx, reset, reset_state)
        return results


class RNNCell(Step):
    r"""One step of an Elman RNN, with the interface of :class:`torch.nn.RNNCell`.

    .. math::
        h' = \varphi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input_size: number of features I of the input.
        hidden_size: number of features H of the state.
        bias: whether the cell has ``bias_ih`` and ``bias_hh``. Default: ``True``
        nonlinearity: ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        device, dtype: of the parameters.

    Inputs: input, hx
        * **input**: ``(B, I)``, or ``(I,)`` without a batch.
        * **hx**: ``(B, H)``, or ``(H,)`` without a batch. Default: zeros. To reset rows, pass
          ``torch.where(done.unsqueeze(-1), 0.0, h)``

    Output:
        The next state, shaped like ``hx``.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: of shapes ``(H, I)``, ``(H, H)``, ``(H,)``,
            ``(H,)``; all start from :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.RNNCell` does, in its words.
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]  # noqa: RUF012
    nonlinearity: str
    _torchs = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _kind(self) -> Kind | None:
        name = self.nonlinearity
        return KINDS[f"RNN_{name.upper()}"] if name in ("tanh", "relu") else None

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            result = node.run_cell(self, input, hx)
            if result is not None:
                return result
        state: Tensor = super().forward(input, hx)
        return state


class GRUCell(Step):
    r"""One step of a :class:`GRU`, with the interface of :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`RNNCell`.

    Inputs: input, hx
        As in :class:`RNNCell`.

    Output:
        The next state, shaped like ``hx``.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: of shapes ``(3·H, I)``, ``(3·H, H)``, ``(3·H,)``,
            ``(3·H,)``, for r, z and n; all start from
            :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.GRUCell` does, in its words.
    """

    _torchs = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():
            result = node.run_step(self, cells.gru, input, hx, {})
            if result is not None:
                return result
        state: Tensor = super().forward(input, hx)
        return state


class LSTMCell(Step):
    r"""One step of an :class:`LSTM`, with the interface of :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`RNNCell`.

    Inputs: input, hx
        * **input**: as in :class:`RNNCell`.
        * **hx**: a tuple of h and c, each as hx in :class:`RNNCell`. Default: zeros

    Output:
        A tuple of the next h and c.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: of shapes ``(4·H, I)``, ``(4·H, H)``, ``(4·H,)``,
            ``(4·H,)``, for i, f, g and o; all start from
            :math:`\mathcal{U}(-\sqrt{1/H}, \sqrt{1/H})`.

    Raises:
        RuntimeError, ValueError: as :class:`torch.nn.LSTMCell` does, in its words.
    """

    _torchs = nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():
            result = node.run_step(self, cells.lstm, input, hx, {})
            if result is not None:
                return result
        states: tuple[Tensor, Tensor] = super().forward(input, hx)
        return states
