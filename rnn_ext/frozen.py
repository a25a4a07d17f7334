"""``freeze``: a copy of an RNN for inference, whose weights are packed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from ._core.autograd import memory_errors
from ._core.dispatch import Path, Route, run_layers
from ._core.dtypes import KERNEL_DTYPES
from .modules import RNN

__all__ = ["FrozenRNN", "freeze"]

_rnn_pack = torch.ops.rnn_ext._rnn_pack.default
_rnn_forward_packed = torch.ops.rnn_ext._rnn_forward_packed.default


class FrozenRNN(RNN):
    """What :func:`rnn_ext.freeze` returns."""

    def _pack(self) -> None:
        """Packs the weights of each layer, for calls on the CPU at this ISA level."""
        weights = self._read_weights()
        takes = all(t.is_cpu and t.dtype in KERNEL_DTYPES for t in weights)
        count = len(weights) // self.num_layers
        for layer in range(self.num_layers):
            own = [t.detach() for t in weights[layer * count : (layer + 1) * count]]
            packed = _rnn_pack(own, self.bidirectional) if takes else [None, None]
            for suffix, tensor in zip(("", "_reverse"), packed, strict=False):
                self.register_buffer(f"packed_l{layer}{suffix}", tensor, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenRNN:
        super()._apply(fn, recurse)
        self._pack()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._pack()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._pack()  # the reader may be another machine

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, packed weights: later edits have no effect"

    def _is_packed_for(self, route: Route) -> bool:
        """Whether the call takes the packed weights; else it runs as that of an RNN."""
        call = route.call
        operands = (call.input, *call.initial_states())
        return (
            route.path in (Path.NODE, Path.FUNCTION)
            and not call.is_program()
            and call.input.is_cpu
            and call.weights[0] is self.weight_ih_l0  # not a copy for autocast
            and not has_torch_function(operands)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in operands))
        )

    def _run(self, route: Route) -> Sequence[Tensor]:
        if not self._is_packed_for(route):
            return super()._run(route)
        call = route.call
        settings = (call.batch_sizes, self.nonlinearity, call.bidirectional)

        def run(
            layer: int, input: Tensor, initial: list[Tensor], weights: list[Tensor], _: Any
        ) -> Sequence[Tensor]:
            names = (f"packed_l{layer}", f"packed_l{layer}_reverse")[: call.directions()]
            packed = [getattr(self, name) for name in names]
            hx = initial[0] if initial else None
            with memory_errors:
                output_and_h_n: Sequence[Tensor] = _rnn_forward_packed(
                    input, hx, weights, packed, *settings
                )
            return output_and_h_n

        return run_layers(call, run)


def freeze(module: RNN) -> FrozenRNN:
    """Returns a copy of an RNN for inference, which keeps its weights packed for the kernels.

    An ``RNN`` packs its weights on every call, because they may have changed. That is a large part
    of a call with few rows and steps. The copy packs them once and has the same results, bit for
    bit. Later edits of the weights, of the module and of the copy, have no effect on it.

    The copy is in eval mode and its parameters do not require gradients. It has the same forward,
    ``state_dict`` and attributes, and holds the weights twice: as they are, and packed. It packs
    them again after ``load_state_dict``, ``to`` and similar methods, copying and unpickling.
    The packed weights serve eager calls on the CPU; all others run as those of ``RNN``: where a
    gradient of input or hx is needed, in a graph, under transforms and autocast, with ``reset``,
    and on a GPU.

    Args:
        module: an :class:`rnn_ext.RNN`, without parametrizations.

    Raises:
        TypeError: for any other module.

    Example:
        >>> rnn = rnn_ext.freeze(rnn_ext.RNN(8, 512))
        >>> output, h_n = rnn(torch.zeros(16, 1, 8))
    """
    if type(module) is not RNN:
        raise TypeError(f"freeze takes an rnn_ext.RNN, not {type(module).__name__}")
    frozen = copy.deepcopy(module)
    frozen.__class__ = FrozenRNN
    assert isinstance(frozen, FrozenRNN)
    frozen.requires_grad_(False).eval()._pack()
    return frozen
