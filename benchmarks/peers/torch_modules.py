"""The runtimes of torch: ``rnn_ext.RNN``, ``nn.RNN``, and a loop under ``torch.compile``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional as F

import rnn_ext

from ..draw import build
from .runtimes import Prepared, Problem

__all__ = ["prepare_compiled", "prepare_nn_rnn", "prepare_ours"]

# Steps compiled as one function. The time to compile grows with them (half a minute for these,
# forward and backward); with a quarter of them a long sequence takes some 15 % longer.
BLOCK = 128


def prepare_ours(problem: Problem) -> Prepared:
    """Prepares ``rnn_ext.RNN``."""
    return _prepare(rnn_ext.RNN, problem)


def prepare_nn_rnn(problem: Problem) -> Prepared:
    """Prepares ``nn.RNN``."""
    return _prepare(nn.RNN, problem)


def prepare_compiled(problem: Problem) -> Prepared:
    """Prepares the loop, compiled for this case alone."""
    torch._inductor.config.compile_threads = 1  # no other processes while calls are timed
    torch.compiler.reset()
    # On a GPU, launches would dominate without CUDA graphs. With several blocks, each would
    # overwrite the results of the previous one.
    with_graphs = problem.work.data.is_cuda and problem.case.seq_len <= BLOCK
    return _prepare(partial(CompiledLoop, with_graphs=with_graphs), problem)


class CompiledLoop(nn.RNNBase):
    """One tanh layer as a loop of torch's operations, compiled in blocks of steps.

    A sequence of at most one block is one compiled function, and may be a CUDA graph.
    """

    def __init__(self, *args: Any, nonlinearity: str, with_graphs: bool, **kwargs: Any) -> None:
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        mode = "reduce-overhead" if with_graphs else None
        self._steps = torch.compile(_steps, fullgraph=True, dynamic=False, mode=mode)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the layer; ``hx`` must be None."""
        h = input.new_zeros(input.shape[1], self.hidden_size)
        outputs = []
        for block in input.split(BLOCK):
            output, h = self._steps(block, h, *self.parameters())
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), h[None]


def _steps(
    input: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = []
    for projected in F.linear(input, weight_ih, bias_ih + bias_hh).unbind():
        h = torch.tanh(projected + h @ weight_hh.t())
        outputs.append(h)
    return torch.stack(outputs), h


def _prepare(kind: Callable[..., nn.Module], problem: Problem) -> Prepared:
    module = build(kind, problem.case, problem.mode, problem.work.data.device.type)
    module.load_state_dict(problem.module.state_dict())
    work = problem.work
    return Prepared(work.step(module), lambda: work.results(module))
