"""Measures one case: builds both modules, compares their results, then times them."""

from dataclasses import replace

import torch

import rnn_ext
from rnn_ext.bench.check import MismatchError, check
from rnn_ext.bench.timing import Timings, time_hot_and_cold, time_pair
from rnn_ext.bench.workload import Mode
from rnn_ext.info import route_of

from .cases import Case
from .draw import build, build_pair, draw
from .gpu import EventClock

__all__ = ["kernels", "measure"]


def measure(case: Case, mode: Mode, seconds: float, device: str = "cpu") -> Timings:
    """Times ours against torch's module with the same weights and input; on a GPU only hot.

    ``"forward"`` is the call under ``torch.no_grad()`` in eval mode; ``"training"`` is the call and
    the backward pass to the input, a learned hx and every parameter, from a fixed random gradient
    of the output.

    Raises:
        MismatchError: the results differ, so nothing was timed.
    """
    torch.manual_seed(0)
    theirs, ours = build_pair(case, mode, device)
    work = draw(case, mode, device)
    try:
        if device == "cuda" and case.dropout:
            # cuDNN draws other dropout masks, so the comparison has none.
            check(*build_pair(replace(case, dropout=0.0), mode, device), work)
            ours.load_state_dict(theirs.state_dict())
        else:
            check(theirs, ours, work)
    except MismatchError as error:
        raise MismatchError(f"rnn_ext and torch differ at {case} ({mode}): {error}") from None
    # Outside of the timing, since entering no_grad takes as long as a short call's arithmetic.
    with torch.set_grad_enabled(mode == "training"):
        steps = work.step(theirs), work.step(ours)
        if device == "cuda":
            return Timings(time_pair(*steps, seconds, clock=EventClock()))
        return time_hot_and_cold(*steps, seconds)


def kernels(case: Case, mode: Mode, device: str) -> str:
    """Returns which kernels take a call: ``"persistent"``, ``"step"`` or ``"torch"`` on a GPU."""
    ours = build(rnn_ext.RNN, case, mode, device)
    assert isinstance(ours, rnn_ext.RNN)
    with torch.set_grad_enabled(mode == "training"):
        return route_of(ours, *draw(case, mode, device).arguments()).kernels()
