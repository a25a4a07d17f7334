"""The base classes of RNN, GRU and LSTM, and of RNNCell, GRUCell and LSTMCell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils.rnn import PackedSequence

from . import dispatch, node
from .call import Call
from .kinds import KINDS, Kind, trace_cells
from .resets import read_reset
from .torch_private import (
    CHECKS_OF_FORWARD,
    flat_weights,
    is_any_autocast_enabled,
    is_tracing,
    preserve_version,
    read_parameters,
    remember_weight,
)

__all__ = ["Layers", "Step"]

_STEP_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _find_proxy(*arguments: Any) -> Proxy | None:
    """Returns an argument that torch.fx traces."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            return argument
        if isinstance(argument, (tuple, list)) and (proxy := _find_proxy(*argument)) is not None:
            return proxy
    return None


def _fx_node(module: Layers | Step, proxy: Any, input: Any, hx: Any, **options: Any) -> Any:
    """Records the call as one node of a torch.fx graph, as fx does for torch's own modules."""
    name = type(module).__name__
    if not getattr(module.forward, "__module__", "").startswith("rnn_ext."):
        # A subclass calls this from its own forward; one node would drop the rest of it.
        raise TraceError(f"torch.fx cannot look into the forward of {name}: trace it as a leaf")
    tracer = proxy.tracer
    if tracer.root is module:
        raise TraceError(f"torch.fx records {name} as one node: trace the model that calls it")
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), options)


def _to_batch_first(output: Tensor) -> Tensor:
    """Returns the output as ``(B, T, ·)``; in eager mode not as a view, like nn.RNN."""
    if type(output) is not Tensor or dispatch.is_watched():
        return output.transpose(0, 1)
    with preserve_version(output):
        return output.transpose_(0, 1)


def _states_in(hx: Any, count: int) -> list[Tensor] | None:
    """Returns ``hx`` as a list of ``count`` states, empty for None; None if it is not that."""
    if hx is None:
        return []
    if count == 1:
        return [hx]
    is_whole = type(hx) in (tuple, list) and len(hx) == count
    return list(hx) if is_whole and all(isinstance(t, Tensor) for t in hx) else None


def _joined(states: Sequence[Tensor]) -> Any:
    """Returns the states as torch's modules do: one tensor, or a tuple."""
    return states[0] if len(states) == 1 else tuple(states)


def _refuse_script(module: nn.Module) -> NoReturn:
    raise NotImplementedError(
        f"torch.jit.script cannot compile {type(module).__name__}: call rnn_ext.restore_rnn(model) "
        "before it, which makes torch's own modules of ours, or use torch.jit.trace or torch.export"
    )


class _RefusesOpacusHooks:
    """The attribute in which Opacus stores a function for per-sample gradients; raises an error.

    Opacus calls a copy of the layer with its first input only. A cell would run without hx, and its
    gradients would be silently wrong.
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


class _Module(nn.Module):
    """The part of both that torch's compilers and other libraries use."""

    # The class of torch with the same interface.
    _torchs: ClassVar[Any]
    # torch.jit.script calls this first.
    __prepare_scriptable__ = _refuse_script
    ft_compute_sample_grad = _RefusesOpacusHooks()
    # Whether torch.ao.quantization quantizes modules of that class.
    _is_quantizable: ClassVar[bool] = True

    # In __new__, because unpickling skips __init__.
    def __new__(cls, *_: Any, **__: Any) -> Any:
        trace_cells(cls._torchs.__name__.removesuffix("Cell"))
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig" and self._is_quantizable:  # torch.ao sets it in every module
            warnings.warn(
                f"torch.ao.quantization leaves {type(self).__name__} as it is: call "
                "rnn_ext.restore_rnn(model) before it to quantize the module",
                stacklevel=2,
            )


class Layers(_Module, nn.RNNBase):
    """A stack of layers over a sequence, with the interface of torch's class ``_torchs``.

    Calls that do not fit go to the forward of that class, which raises the errors of its release.
    """

    _torchs: ClassVar[type[nn.RNNBase]]

    # The name of an overridden method that torch's forward calls; empty if there is none.
    _own_check = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in CHECKS_OF_FORWARD:
            if getattr(cls, name, None) is not getattr(cls._torchs, name, None):
                cls._own_check = name

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        remember_weight(self, name, value)
        if name in CHECKS_OF_FORWARD:
            self._own_check = name

    _read_weights = flat_weights

    def _kind(self) -> Kind | None:
        """Returns the kind of the layers; None if torch's forward must raise an error."""
        return KINDS[self._torchs.__name__]

    def forward(
        self, input: Any, hx: Any = None, reset: Any = None, reset_state: Any = None
    ) -> Any:
        """Runs the layers; see the class for the shapes."""
        has_reset = reset is not None or reset_state is not None
        if self._own_check:
            return self._forward_of_torch(input, hx, has_reset)
        kind = self._kind()
        if kind and (has_reset or not kind.is_compiled()) and not torch.compiler.is_compiling():
            result = node.run_gated(self, kind.cell, input, hx, reset, reset_state)
            if result is not None:
                return result
        proxy = _find_proxy(input, hx, reset, reset_state)
        if proxy is not None:
            options = {"reset": reset, "reset_state": reset_state} if has_reset else {}
            return _fx_node(self, proxy, input, hx, **options)
        call = self._call(input, hx)
        if call is not None and has_reset:
            names = ("h", *call.kind.cell.states)
            size = call.states(), self.hidden_size
            resets = read_reset(reset, reset_state, input, self.batch_first, names, *size)
            call = call._replace(reset=resets[0], reset_states=resets[1])
        route = None if call is None else dispatch.route(call)
        if route is None or not self._fits(route):
            return self._forward_of_torch(input, hx, has_reset)
        output, *finals = self._run(route)
        if isinstance(input, PackedSequence):
            _, batch_sizes, sorted_indices, unsorted_indices = input
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(_joined(finals), unsorted_indices)
        if input.dim() == 2:
            return output.squeeze(1), _joined([t.squeeze(1) for t in finals])
        return (_to_batch_first(output) if self.batch_first else output), _joined(finals)

    def _call(self, input: Any, hx: Any) -> Call | None:
        """Returns the call, time-major or packed; None if torch's forward must take it."""
        kind = self._kind()
        if kind is None or self.proj_size:
            return None
        batch_sizes = None
        if isinstance(input, PackedSequence):
            input, batch_sizes, sorted_indices, _ = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
            states = _states_in(hx, kind.states())
            if states == []:
                count = self.num_layers * (2 if self.bidirectional else 1)
                batch: Any = batch_sizes[0]
                # torch.jit.trace would fix an int as the batch size of all later calls, and
                # reading one would break a graph of torch.compile.
                if torch.compiler.is_compiling() and sorted_indices is not None:
                    batch = sorted_indices.size(0)
                elif torch.compiler.is_compiling() or not is_tracing():
                    batch = int(batch)
                states = [input.new_zeros(count, batch, self.hidden_size)] * kind.states()
        else:
            dims = input.dim()
            if dims not in (2, 3):
                return None
            states = _states_in(hx, kind.states())
            if states is None or any(t.dim() != dims for t in states):
                return None
            if dims == 2:
                # The same way as torch: the error messages of its op depend on the strides.
                input = input.unsqueeze(0 if self.batch_first else 1)
                states = [t.unsqueeze(1) for t in states]
            if self.batch_first:
                input = input.transpose(0, 1)
        if states is None:
            return None
        hx, cx = (*states, None, None)[:2]
        return Call(
            *(input, hx, self._read_weights(), batch_sizes, False, kind),
            *(self.num_layers, self.bidirectional, self.bias, self.training),
            *(self.input_size, self.hidden_size, self.dropout, cx),
        )

    def _fits(self, route: dispatch.Route) -> bool:
        """Whether the call passes the checks of ``RNNBase`` and of torch's op."""
        call = route.call
        if call.batch_sizes is None and type(self.batch_first) is not bool:
            return False
        if route.path is dispatch.Path.NODE and not call.is_program():
            return True  # the node has made the checks below
        input, batch_sizes, states = call.input, call.batch_sizes, call.initial_states()
        if batch_sizes is not None and input.dim() != 2:
            return False
        if input.dtype != call.weights[0].dtype and not is_any_autocast_enabled():
            return False
        # A graph cannot depend on the lengths; the op checks them.
        is_recorded = torch.compiler.is_compiling() or is_tracing()
        batch = call.batch_size() if batch_sizes is None or is_recorded else int(batch_sizes[0])
        shape = (call.states(), batch, self.hidden_size)
        return input.size(-1) == self.input_size and all(t.shape == shape for t in states)

    def _run(self, route: dispatch.Route) -> Sequence[Tensor]:
        """Returns the output and the final states."""
        return route.run()

    def _forward_of_torch(self, input: Any, hx: Any, has_reset: bool) -> Any:
        """Runs the forward of torch's own class."""
        forward: Any = self._torchs.forward
        result = forward(self, input, hx)
        if has_reset:
            raise NotImplementedError(
                f"{type(self).__name__}: this call needs torch's own op, which has no resets; "
                "rnn_ext.explain says why"
            )
        return result


class Step(_Module, nn.RNNCellBase):
    """One time step of a layer, with the interface of torch's class ``_torchs``."""

    _torchs: ClassVar[type[nn.RNNCellBase]]

    def _kind(self) -> Kind | None:
        """Returns the kind of the cell; None if torch's forward must raise an error."""
        return KINDS[self._torchs.__name__.removesuffix("Cell")]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Returns the next state or states; see the class for the shapes."""
        proxy = _find_proxy(input, hx)
        if proxy is not None:
            return _fx_node(self, proxy, input, hx)
        call = self._call(input, hx)
        if call is None:
            forward: Any = self._torchs.forward
            return forward(self, input, hx)  # raises the error of its release
        states = dispatch.route(call).run()
        return _joined(states if input.dim() == 2 else [t.squeeze(0) for t in states])

    def _call(self, input: Any, hx: Any) -> Call | None:
        """Returns the call, with a batch; None if torch's forward must raise an error."""
        kind = self._kind()
        if kind is None or input.dim() not in (1, 2):
            return None
        states = _states_in(hx, kind.states())
        if states is None or any(t.dim() not in (1, 2) for t in states):
            return None
        if input.dim() == 1:
            input = input.unsqueeze(0)
            states = [t.unsqueeze(0) for t in states]
        weights = read_parameters(self, _STEP_WEIGHTS)
        if weights[2] is None and weights[3] is None:
            del weights[2:]
        hx, cx = (*states, None, None)[:2]
        return Call(
            *(input, hx, weights, None, True, kind),
            *(1, False, len(weights) == 4, True),
            *(self.input_size, self.hidden_size, 0.0, cx),
        )
