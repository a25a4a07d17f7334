"""The autograd node in C++ (``csrc/eager/``), or stand-ins that take no call if it is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _C, _extension
from .autograd import higher_order_backward

__all__ = [
    "is_loaded",
    "run",
    "run_cell",
    "run_gated",
    "run_recurrence",
    "run_recurrent",
    "run_rnn",
    "run_step",
    "set_recurrence_backward",
    "takes",
    "takes_tensors",
]


def _takes_nothing(*_: Any) -> bool:
    return False


def _runs_nothing(*_: Any) -> None:
    return None


_module = _extension.load_node()
is_loaded = _module is not None

# takes(*call): whether the node runs a Call.
takes: Callable[..., bool] = _takes_nothing
# run(input, hx, weights, batch_sizes, is_step, nonlinearity, bidirectional): runs one layer, or one
# step, of such a Call.
run: Callable[..., Any] = _runs_nothing
# run_rnn(module, input, hx) and run_cell(module, input, hx): run a module's forward in one call, if
# it has one layer and batched input, and the node takes it; return None otherwise.
run_rnn: Callable[..., Any] = _runs_nothing
run_cell: Callable[..., Any] = _runs_nothing
# takes_tensors(*tensors): whether run_recurrence runs a layer with them.
takes_tensors: Callable[..., bool] = _takes_nothing
# run_recurrence(cell, tensors, …): runs a layer with any cell; returns None for other tensors.
run_recurrence: Callable[..., Any] = _runs_nothing
# run_step(module, cell, input, hx, inputs): runs one step of such a cell with the module's weights
# and parameters; returns None where the arguments have to be checked, or the node cannot run it.
run_step: Callable[..., Any] = _runs_nothing
# run_recurrent(module, cell, weight_names, input, hx, inputs, reset, reset_state, return_states):
# the same for a layer, of a module that has one.
run_recurrent: Callable[..., Any] = _runs_nothing
# run_gated(module, cell, input, hx, reset, reset_state): the same for a module like nn.GRU.
run_gated: Callable[..., Any] = _runs_nothing
# set_recurrence_backward(function): what computes the gradients that may be differentiated.
set_recurrence_backward: Callable[..., Any] = _runs_nothing
if _module is not None:
    _module.set_direct_kernels(_C.direct_kernels)
    _module.set_higher_order_backward(higher_order_backward)
    takes, run = _module.takes, _module.run
    run_rnn, run_cell = _module.run_rnn, _module.run_cell
    takes_tensors, run_step = _module.takes_tensors, _module.run_step
    run_recurrence, run_recurrent = _module.run_recurrence, _module.run_recurrent
    run_gated = _module.run_gated
    set_recurrence_backward = _module.set_recurrence_backward
