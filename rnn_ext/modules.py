"""``RNN`` and ``RNNCell``: what stands where ``torch.nn.RNN`` and ``torch.nn.RNNCell`` stood."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils.rnn import PackedSequence

from ._core import dispatch, node
from ._core.call import Call
from ._core.resets import read_reset, run_rnn
from ._core.torch_private import (
    CHECKS_OF_FORWARD,
    flat_weights,
    is_any_autocast_enabled,
    is_tracing,
    preserve_version,
    read_parameters,
    remember_weight,
)

__all__ = ["RNN", "RNNCell"]

_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _fx_node(module: nn.Module, input: Any, hx: Any, **options: Any) -> Any:
    """Records the call as one node of a torch.fx graph, as fx does for torch's own modules."""
    name = type(module).__name__
    if getattr(module.forward, "__func__", None) not in (RNN.forward, RNNCell.forward):
        # A subclass calls this from its own forward, and the node would drop the rest of that.
        raise TraceError(f"torch.fx cannot look into the forward of {name}: trace it as a leaf")
    tracer: Any = next(t for t in (input, hx, *options.values()) if isinstance(t, Proxy)).tracer
    if tracer.root is module:
        raise TraceError(f"torch.fx records {name} as one node: trace the model that calls it")
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), options)


def _to_batch_first(output: Tensor) -> Tensor:
    """Returns the output as ``(B, T, ·)``; no view of it in eager mode, as from nn.RNN."""
    if type(output) is not Tensor or dispatch.is_watched():
        return output.transpose(0, 1)
    with preserve_version(output):
        return output.transpose_(0, 1)


def _refuse_script(module: nn.Module) -> NoReturn:
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}: call rnn_ext.restore_rnn(model) "
        "before it, which makes torch's own modules of ours, or use torch.jit.trace or torch.export"
    )


class _RefusesOpacusHooks:
    """Where Opacus keeps the function that computes a layer's per-sample gradients.

    Opacus calls a copy of the layer with its first input, and expects one result. The gradients of
    a cell, which would run without hx, would be wrong without an error.
    """

    def __get__(self, module: Any, owner: Any) -> Callable[..., NoReturn]:
        return partial(self.__set__, module)

    def __set__(self, module: Any, *_: Any) -> NoReturn:
        raise NotImplementedError(
            "Opacus loses hx and h_n in this grad_sample_mode: use 'ew', which takes an RNN, "
            "or 'no_op' with per-sample gradients from torch.func"
        )

    def __delete__(self, module: Any) -> None:
        pass


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

    Inputs: input, hx, reset, reset_state
        * **input**: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` without a batch,
          or a :class:`~torch.nn.utils.rnn.PackedSequence`, which goes to the kernels as it is.
        * **hx**: initial states ``(L·D, B, H)``, or ``(L·D, H)`` without a batch. Default: zeros
        * **reset**, **reset_state**: where rows start anew, and from what, as in
          :class:`rnn_ext.Recurrent`; give them by keyword, as ``nn.RNN`` has no such arguments.
          The call then runs as the program of a cell, with the same bits; the notes there hold for
          it. Default: None

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

    # What torch.jit.script asks a module for first.
    __prepare_scriptable__ = _refuse_script
    ft_compute_sample_grad = _RefusesOpacusHooks()

    # A method that nn.RNN's forward calls and that this class or module has of its own.
    _own_check = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in CHECKS_OF_FORWARD:
            if getattr(cls, name) is not getattr(nn.RNNBase, name):
                cls._own_check = name

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        remember_weight(self, name, value)
        if name in CHECKS_OF_FORWARD:
            self._own_check = name

    def flatten_parameters(self) -> None:
        """Does nothing: the weights stay where they are."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        # Not keyword-only: torch.onnx.export(dynamo=False) gives every argument by position.
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers; see the class for the shapes."""
        has_reset = reset is not None or reset_state is not None
        if self._own_check:
            result = self._forward_of_torch(input, hx)
            if not has_reset:
                return result
        if not has_reset and not torch.compiler.is_compiling():
            result = node.run_rnn(self, input, hx)
            if result is not None:
                return result
        if isinstance(input, Proxy) or isinstance(hx, Proxy) or isinstance(reset, Proxy):
            options = {"reset": reset, "reset_state": reset_state} if has_reset else {}
            return _fx_node(self, input, hx, **options)
        if not isinstance(input, PackedSequence):
            dims = input.dim()
            if dims not in (2, 3) or (hx is not None and hx.dim() != dims):
                return self._forward_of_torch(input, hx)
        route = dispatch.route(self._call(input, hx))
        if not self._fits(route):
            return self._forward_of_torch(input, hx)
        output: Any
        if has_reset:
            resets = read_reset(
                *(reset, reset_state, input, self.batch_first, ("h",)),
                *(route.call.states, self.hidden_size),
            )
            output, h_n = run_rnn(route.call, *resets)
        else:
            output, h_n = route.run()
        if isinstance(input, PackedSequence):
            _, batch_sizes, sorted_indices, unsorted_indices = input
            output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return output, self.permute_hidden(h_n, unsorted_indices)
        if input.dim() == 2:
            return output.squeeze(1), h_n.squeeze(1)
        return (_to_batch_first(output) if self.batch_first else output), h_n

    _read_weights = flat_weights

    def _call(self, input: Tensor | PackedSequence, hx: Tensor | None) -> Call:
        """Returns the call that ``forward`` makes, time-major or packed."""
        batch_sizes = None
        if isinstance(input, PackedSequence):
            input, batch_sizes, sorted_indices, _ = input
            if hx is None:
                states = self.num_layers * (2 if self.bidirectional else 1)
                batch: Any = batch_sizes[0]
                # torch.jit.trace would record an int as the batch of all later calls.
                if torch.compiler.is_compiling() and sorted_indices is not None:
                    batch = sorted_indices.size(0)  # an int would break the graph
                elif torch.compiler.is_compiling() or not is_tracing():
                    batch = int(batch)
                hx = input.new_zeros(states, batch, self.hidden_size)
            else:
                hx = self.permute_hidden(hx, sorted_indices)
        elif input.dim() == 2:
            input = input.unsqueeze(1)
            hx = None if hx is None else hx.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        # Not `nonlinearity`: nn.RNN ignores a later change of that, and old pickles lack it.
        nonlinearity = _NONLINEARITIES.get(self.mode, "")
        return Call(
            *(input, hx, self._read_weights(), batch_sizes, False, nonlinearity),
            *(self.num_layers, self.bidirectional, self.bias, self.training),
            *(self.input_size, self.hidden_size, self.dropout),
        )

    def _fits(self, route: dispatch.Route) -> bool:
        """Whether the checks of ``RNNBase`` and of torch's op let the call pass."""
        call = route.call
        if not call.nonlinearity or self.proj_size:
            return False
        if call.batch_sizes is None and type(self.batch_first) is not bool:
            return False
        if route.path is dispatch.Path.NODE:
            return True  # the node has compared all of this
        input, hx, batch_sizes = call.input, call.hx, call.batch_sizes
        if batch_sizes is not None and input.dim() != 2:
            return False
        if input.dtype != call.weights[0].dtype and not is_any_autocast_enabled():
            return False
        # A graph cannot depend on the lengths; the op compares them.
        is_recorded = hx is not None and (torch.compiler.is_compiling() or is_tracing())
        batch = call.batch_size if batch_sizes is None or is_recorded else int(batch_sizes[0])
        return input.size(-1) == self.input_size and (
            hx is None or hx.shape == (call.states, batch, self.hidden_size)
        )

    def _forward_of_torch(self, input: Any, hx: Tensor | None) -> Any:
        """Runs ``nn.RNN``'s own forward, which refuses what does not fit in its release's words."""
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
        * **hx**: ``(B, H)``, or ``(H,)`` without a batch. Default: zeros. To start rows anew, give
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
    __prepare_scriptable__ = _refuse_script
    ft_compute_sample_grad = _RefusesOpacusHooks()

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

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig":  # set in every module by torch.ao.quantization
            warnings.warn(
                f"torch.ao.quantization leaves {type(self).__name__} as it is: call "
                "rnn_ext.restore_rnn(model) before it to quantize the cell",
                stacklevel=2,
            )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Returns the next state; see the class for the shapes."""
        if not torch.compiler.is_compiling():
            result = node.run_cell(self, input, hx)
            if result is not None:
                return result
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            return _fx_node(self, input, hx)
        if (
            input.dim() not in (1, 2)
            or (hx is not None and hx.dim() not in (1, 2))
            or self.nonlinearity not in ("tanh", "relu")
        ):
            forward: Any = nn.RNNCell.forward
            return forward(self, input, hx)  # which refuses it, in the words of its release
        h = dispatch.route(self._call(input, hx)).run()
        return h if input.dim() == 2 else h.squeeze(0)

    def _call(self, input: Any, hx: Tensor | None) -> Call:
        """Returns the call that ``forward`` makes, on a batch."""
        if input.dim() == 1:
            input = input.unsqueeze(0)
            hx = None if hx is None else hx.unsqueeze(0)
        weights = read_parameters(self, _CELL_WEIGHTS)
        if weights[2] is None and weights[3] is None:
            del weights[2:]
        return Call(
            *(input, hx, weights, None, True, self.nonlinearity),
            *(1, False, len(weights) == 4, True),
            *(self.input_size, self.hidden_size, 0.0),
        )
