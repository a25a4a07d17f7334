"""Measures one case: builds both modules, compares their results, then times them."""

from dataclasses import replace

import torch
from torch import nn

import rnn_ext

from .cases import Case, Mode
from .check import first_difference
from .timing import Timing, time_pair
from .workload import Workload, build_module

__all__ = ["MismatchError", "measure"]

# With relu, about one draw of the input in a hundred costs the gradients more than their tolerance
# (see there why); a kernel that is wrong fails with every input.
RELU_DRAWS = 3


class MismatchError(Exception):
    """``rnn_ext.RNN`` and ``nn.RNN`` differ by more than rounding explains."""


def measure(case: Case, mode: Mode, seconds: float) -> Timing:
    """Time a call of ``rnn_ext.RNN`` against ``nn.RNN`` with the same weights and input.

    ``"forward"`` is the call under ``torch.no_grad()`` in eval mode; ``"training"`` is the call and
    the backward pass to the input, a learned hx and every parameter, from a fixed random gradient
    of the output.

    Raises:
        MismatchError: the results differ; nothing was timed then.
    """
    torch.manual_seed(0)
    theirs = build_module(nn.RNN, case, mode)
    ours = build_module(rnn_ext.RNN, case, mode)
    ours.load_state_dict(theirs.state_dict())
    work = Workload.draw(case, mode)
    training = mode == "training"
    # Around the timing, not inside it: entering no_grad costs as much as a short call's arithmetic.
    with torch.set_grad_enabled(training):
        for _ in range(RELU_DRAWS if training and case.nonlinearity == "relu" else 1):
            found = _difference(case, mode, work, theirs, ours)
            if found is None:
                return time_pair(work.step(theirs), work.step(ours), seconds)
            work.redraw_input()
    raise MismatchError(f"rnn_ext.RNN and nn.RNN differ at {case} ({mode}): {found}")


def _difference(
    case: Case, mode: Mode, work: Workload, theirs: nn.Module, ours: nn.Module
) -> str | None:
    precise = None
    if case.is_half:
        module = build_module(nn.RNN, replace(case, dtype=torch.float32), mode)
        module.load_state_dict(theirs.state_dict())
        precise = work.to(torch.float32).results(module)
    return first_difference(case, work.results(theirs), work.results(ours), precise)
