"""Measures one case: builds both modules, compares their results, then times them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

import rnn_ext

from .cases import Case, Mode
from .check import first_difference
from .gpu import EventClock
from .timing import Timing, time_pair
from .workload import Workload, build_module

__all__ = ["MismatchError", "clock_of", "difference", "measure", "route"]

# With relu, about one draw of the input in a hundred costs the gradients more than their tolerance
# (see there why); a kernel that is wrong fails with every input.
RELU_DRAWS = 3


class MismatchError(Exception):
    """``rnn_ext.RNN`` and ``nn.RNN`` differ by more than rounding explains."""


def measure(case: Case, mode: Mode, seconds: float, device: str = "cpu") -> Timing:
    """Time a call of ``rnn_ext.RNN`` against ``nn.RNN`` with the same weights and input.

    ``"forward"`` is the call under ``torch.no_grad()`` in eval mode; ``"training"`` is the call and
    the backward pass to the input, a learned hx and every parameter, from a fixed random gradient
    of the output.

    Raises:
        MismatchError: the results differ; nothing was timed then.
    """
    torch.manual_seed(0)
    theirs = build_module(nn.RNN, case, mode, device)
    ours = build_module(rnn_ext.RNN, case, mode, device)
    ours.load_state_dict(theirs.state_dict())
    work = Workload.draw(case, mode, device)
    training = mode == "training"
    # Around the timing, not inside it: entering no_grad costs as much as a short call's arithmetic.
    with torch.set_grad_enabled(training):
        for _ in range(RELU_DRAWS if training and case.nonlinearity == "relu" else 1):
            found = _difference_of_modules(case, mode, work, theirs, ours)
            if found is None:
                steps = work.step(theirs), work.step(ours)
                return time_pair(*steps, seconds, clock=clock_of(device))
            work.redraw_input()
    raise MismatchError(f"rnn_ext.RNN and nn.RNN differ at {case} ({mode}): {found}")


def _difference_of_modules(
    case: Case, mode: Mode, work: Workload, theirs: nn.Module, ours: nn.Module
) -> str | None:
    if work.data.is_cuda:
        case = replace(case, dropout=0.0)  # cuDNN draws it in its own way
    with _dropout(case.dropout, theirs, ours):
        return difference(case, mode, work, theirs, work.results(ours))


@contextmanager
def _dropout(probability: float, *modules: nn.Module) -> Iterator[None]:
    """Sets the dropout of ``modules``, for as long as the context lasts."""
    layers = [module for module in modules if isinstance(module, nn.RNNBase)]
    before = [layer.dropout for layer in layers]
    for layer in layers:
        layer.dropout = probability
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.dropout = own


def clock_of(device: str) -> Callable[[], float]:
    """What times calls on ``device``."""
    return EventClock() if device == "cuda" else time.perf_counter


def route(case: Case, mode: Mode, device: str) -> str:
    """``rnn_ext.explain`` of a call."""
    (input, *_) = Workload.draw(case, mode, device).arguments()
    with torch.set_grad_enabled(mode == "training"):
        return rnn_ext.explain(build_module(rnn_ext.RNN, case, mode, device), input)


def difference(
    case: Case, mode: Mode, work: Workload, theirs: nn.Module, results: Mapping[str, Tensor]
) -> str | None:
    """Say which of ``results`` differs from those of ``theirs``, an ``nn.RNN``, by how much."""
    precise, dtype = None, _precise_dtype(case, work)
    if dtype is not None:
        module = build_module(nn.RNN, replace(case, dtype=dtype), mode, str(work.data.device))
        module.load_state_dict(theirs.state_dict())
        precise = work.to(dtype).results(module)
    return first_difference(case, work.results(theirs), results, precise)


def _precise_dtype(case: Case, work: Workload) -> torch.dtype | None:
    """The dtype of results that both are compared with, where they may differ from each other."""
    if work.data.is_cuda and case.dtype != torch.float64:
        # TF32 has the precision of half, and float32 sums over all rows have any order.
        return torch.float64
    return torch.float32 if case.is_half else None
