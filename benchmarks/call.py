"""Measures the overhead of a call: ``rnn_ext.RNN`` against one linear layer."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from rnn_ext.bench.timing import Timings, time_hot_and_cold
from rnn_ext.bench.workload import Mode

from .cases import Case
from .draw import build_pair, draw

__all__ = ["measure_linear"]


def measure_linear(case: Case, mode: Mode, seconds: float) -> Timings:
    """Times ``rnn_ext.RNN`` against ``F.linear`` with bias, on the same input.

    ``F.linear`` maps the same input to an output of the same shape. It is the cheapest layer of
    torch: one operation and its autograd node.
    """
    torch.manual_seed(0)
    _, ours = build_pair(case, mode)
    work = draw(case, mode)
    linear = nn.Linear(case.input_size, case.output_size)
    call = partial(F.linear, weight=linear.weight, bias=linear.bias)
    with torch.set_grad_enabled(mode == "training"):
        theirs = work.step(call, linear.parameters())
        return time_hot_and_cold(theirs, work.step(ours), seconds)
