"""``RNN`` and ``RNNCell``: what stands where ``torch.nn.RNN`` and ``torch.nn.RNNCell`` stood."""

from __future__ import annotations

from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils.rnn import PackedSequence

from . import routing
from .torch_private import (
    flat_weights,
    is_any_autocast_enabled,
    read_parameters,
    refresh_flat_weights,
)

__all__ = ["RNN", "RNNCell"]

_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _fx_node(module: nn.Module, input: Proxy, hx: Any) -> Any:
    """The call as one node of a torch.fx graph; fx does so by itself for torch's modules only."""
    if getattr(module.forward, "__func__", None) not in (RNN.forward, RNNCell.forward):
        # The node would stand for the whole of that forward, of which this is only a part.
        name = type(module).__name__
        raise TraceError(f"torch.fx cannot look into the forward of {name}: trace it as a leaf")
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), {})


def _refuse_script(module: nn.Module) -> NoReturn:
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}: call rnn_ext.restore_rnn(model) "
        "before it, which makes torch's own modules of ours, or use torch.jit.trace or torch.export"
    )


class RNN(nn.RNNBase):
    r"""A multi-layer Elman RNN (Elman, 1990), the whole sequence in one call.

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
        batch_first: whether input and output are ``(B, T, ·)`` rather than ``(T, B, ·)``; says
            nothing of hx and h_n, and is ignored for input without a batch. Default: ``False``
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training mode. Default: 0
        bidirectional: whether every layer also runs from the last step to the first (D = 2).
            Default: ``False``
        device, dtype: of the parameters.

    Inputs: input, hx
        * **input**: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` without a batch,
          or a :class:`~torch.nn.utils.rnn.PackedSequence`, which goes to the kernels as it is.
        * **hx**: initial states ``(L·D, B, H)``, or ``(L·D, H)`` without a batch. Default: zeros

    Outputs: output, h_n
        * **output**: the last layer's states, shaped like input with ``D·H`` features; a
          PackedSequence where the input was one.
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
        other dtype and device runs on torch's own op. :func:`rnn_ext.explain` says which way a
        call goes. The 16-bit types are what values are stored in: arithmetic, the state between
        steps and the sums of gradients are float32. Between the directions of a bidirectional
        layer the gradient of its input is rounded, and between layers all is. CPUs with
        AVX512-BF16 multiply bfloat16 as it is stored in the input projection and, with the
        gradient of the pre-activation rounded too, in the gradients of input and weights.

    .. note::
        Forward results and gradients are the same bits for every number of threads, and a batch
        row's forward result does not depend on the other rows, on padding or on packing.

    .. note::
        ``isinstance(module, torch.nn.RNN)`` is False, ``isinstance(module, torch.nn.RNNBase)`` is
        True: torch.compile refuses to trace whatever is an instance of the former.
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
        nonlinearity = args[3] if len(args) > 3 else kwargs.get("nonlinearity", "tanh")
        if "proj_size" in kwargs or nonlinearity not in ("tanh", "relu"):
            nn.RNN(*args, **kwargs)  # raises, in the words of its release
            raise NotImplementedError("rnn_ext.RNN has no such nonlinearity, and no proj_size")
        if len(args) > 3:
            args = args[:3] + args[4:]
        else:
            kwargs.pop("nonlinearity", None)
        self.nonlinearity = nonlinearity
        super().__init__("RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)

    # What torch.jit.script asks a module for first.
    __prepare_scriptable__ = _refuse_script

    def flatten_parameters(self) -> None:
        """Does nothing: the weights stay where they are."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers; see the class for the shapes."""
        if isinstance(input, Proxy):
            return _fx_node(self, input, hx)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        dims = input.dim()
        if dims not in (2, 3) or (hx is not None and hx.dim() != dims):
            return self._forward_of_torch(input, hx)
        is_batched = dims == 3
        # Laid out as nn.RNN does it: the bits and the errors of torch's own op depend on that.
        batch_dim = 0 if self.batch_first else 1
        if not is_batched:
            if hx is not None:
                hx = hx.unsqueeze(1)
            input = input.unsqueeze(batch_dim)
        if self.batch_first:
            input = input.transpose(0, 1)
        output, h_n = self._run(input, hx, None)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not is_batched:
            return output.squeeze(batch_dim), h_n.squeeze(1)
        return output, h_n

    _read_weights = flat_weights

    def _forward_packed(
        self, packed: PackedSequence, hx: Tensor | None
    ) -> tuple[PackedSequence, Tensor]:
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        if hx is None:
            states = self.num_layers * (2 if self.bidirectional else 1)
            hx = data.new_zeros(states, int(batch_sizes[0]), self.hidden_size)
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        output, h_n = self._run(data, hx, batch_sizes)
        return (
            PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices),
            self.permute_hidden(h_n, unsorted_indices),
        )

    def _run(
        self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        weights = self._read_weights()
        # Not `nonlinearity`: nn.RNN ignores a later change of that, and old pickles lack it.
        nonlinearity = _NONLINEARITIES.get(self.mode, "")
        if not nonlinearity or not self._fits(input, hx, weights[0].dtype, batch_sizes):
            if batch_sizes is not None:
                self._forward_of_torch(PackedSequence(input, batch_sizes), hx)
            else:
                self._forward_of_torch(input.transpose(0, 1) if self.batch_first else input, hx)
        return routing.run(
            input,
            hx,
            weights,
            batch_sizes,
            nonlinearity=nonlinearity,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
        )

    def _fits(
        self, input: Tensor, hx: Tensor | None, dtype: torch.dtype, batch_sizes: Tensor | None
    ) -> bool:
        """Whether the call passes ``RNNBase.check_forward_args``, and a padded one torch's op."""
        shape = input.shape
        if batch_sizes is None:
            if type(self.batch_first) is not bool:
                return False
            batch = shape[1]
        elif len(shape) != 2:
            return False
        elif hx is not None and torch.compiler.is_compiling():
            batch = hx.shape[1]  # a graph cannot depend on the lengths; the op compares them
        else:
            batch = int(batch_sizes[0])
        states = self.num_layers * (2 if self.bidirectional else 1)
        return (
            (input.dtype == dtype or is_any_autocast_enabled())
            and shape[-1] == self.input_size
            and (
                not self.proj_size
                if hx is None
                else hx.shape == (states, batch, self.proj_size or self.hidden_size)
            )
        )

    def _forward_of_torch(self, input: Any, hx: Tensor | None) -> Any:
        """``nn.RNN``'s own forward: it refuses what does not fit, in the words of its release."""
        refresh_flat_weights(self)
        forward: Any = nn.RNN.forward
        return forward(self, input, hx)


class RNNCell(nn.RNNCellBase):
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
        * **hx**: ``(B, H)``, or ``(H,)`` without a batch. Default: zeros

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
    __prepare_scriptable__ = _refuse_script

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

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state; see the class for the shapes."""
        if isinstance(input, Proxy):
            return _fx_node(self, input, hx)
        if (
            input.dim() not in (1, 2)
            or (hx is not None and hx.dim() not in (1, 2))
            or self.nonlinearity not in ("tanh", "relu")
        ):
            forward: Any = nn.RNNCell.forward
            return forward(self, input, hx)  # which refuses it, in the words of its release
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else hx.unsqueeze(0)
        weights = read_parameters(self, _CELL_WEIGHTS)
        h = routing.run_cell(input, hx, weights, self.nonlinearity, self.hidden_size)
        return h if is_batched else h.squeeze(0)
