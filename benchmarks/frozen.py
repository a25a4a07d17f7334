"""Measures what ``rnn_ext.freeze`` saves: a layer against its frozen copy."""

import torch

import rnn_ext
from rnn_ext.bench.check import MismatchError
from rnn_ext.bench.timing import Timings, time_hot_and_cold
from rnn_ext.bench.workload import Mode

from .cases import Case
from .draw import build, draw

__all__ = ["NOT_FROZEN", "measure_frozen"]

NOT_FROZEN = "not frozen"


def measure_frozen(case: Case, mode: Mode, seconds: float) -> Timings:
    """Times ``rnn_ext.RNN`` against its frozen copy, without gradients.

    Raises:
        MismatchError: their results differ; nothing was timed then.
    """
    torch.manual_seed(0)
    module = build(rnn_ext.RNN, case, mode)
    assert isinstance(module, rnn_ext.RNN)
    frozen, work = rnn_ext.freeze(module), draw(case, mode)
    steps = work.step(module), work.step(frozen)
    with torch.no_grad():
        if not torch.equal(*(step()[0] for step in steps)):
            raise MismatchError(f"a layer and its frozen copy differ at {case}")
        return time_hot_and_cold(*steps, seconds)
