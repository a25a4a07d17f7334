"""The runtimes of torch: our module, torch's, and a loop under ``torch.compile``."""

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

__all__ = ["prepare_compiled", "prepare_ours", "prepare_torchs"]

# Steps compiled as one function. The time to compile grows with them (half a minute for these,
# forward and backward); with a quarter of them a long sequence takes some 15 % longer.
BLOCK = 128

States = tuple[Tensor, ...]


def prepare_ours(problem: Problem) -> Prepared:
    """Prepares the module of ``rnn_ext``."""
    return _prepare(getattr(rnn_ext, problem.case.kind), problem)


def prepare_torchs(problem: Problem) -> Prepared:
    """Prepares torch's module."""
    return _prepare(getattr(nn, problem.case.kind), problem)


def prepare_compiled(problem: Problem) -> Prepared:
    """Prepares the loop, compiled for this case alone."""
    torch._inductor.config.compile_threads = 1  # no other processes while calls are timed
    torch.compiler.reset()
    # On a GPU, launches would dominate without CUDA graphs. With several blocks, each would
    # overwrite the results of the previous one.
    with_graphs = problem.work.data.is_cuda and problem.case.seq_len <= BLOCK
    kind = problem.case.kind
    return _prepare(partial(CompiledLoop, kind=kind, with_graphs=with_graphs), problem)


# (u, v, states) -> the next states; the blocks of u and v belong to the gates.
def _rnn(u: Tensor, v: Tensor, states: States) -> States:
    return (torch.tanh(u + v),)


def _gru(u: Tensor, v: Tensor, states: States) -> States:
    (u_r, u_z, u_n), (v_r, v_z, v_n), (h,) = u.chunk(3, -1), v.chunk(3, -1), states
    n = torch.tanh(u_n + torch.sigmoid(u_r + v_r) * v_n)
    return (n + torch.sigmoid(u_z + v_z) * (h - n),)


def _lstm(u: Tensor, v: Tensor, states: States) -> States:
    i, f, g, o = (u + v).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


CELLS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
MODES = {"RNN": "RNN_TANH", "GRU": "GRU", "LSTM": "LSTM"}  # of nn.RNNBase


class CompiledLoop(nn.RNNBase):
    """One layer as a loop of torch's operations, compiled in blocks of steps.

    A sequence of at most one block is one compiled function, and may be a CUDA graph.
    """

    def __init__(
        self,
        *args: Any,
        kind: str,
        with_graphs: bool,
        nonlinearity: str = "tanh",
        **kwargs: Any,
    ) -> None:
        super().__init__(MODES[kind], *args, **kwargs)
        self._count = 2 if kind == "LSTM" else 1
        mode = "reduce-overhead" if with_graphs else None
        steps = partial(_steps, CELLS[kind])
        self._steps = torch.compile(steps, fullgraph=True, dynamic=False, mode=mode)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Any]:
        """Runs the layer; ``hx`` must be None."""
        states: States = (input.new_zeros(input.shape[1], self.hidden_size),) * self._count
        outputs = []
        for block in input.split(BLOCK):
            output, states = self._steps(block, states, *self.parameters())
            outputs.append(output)
        h_n, *others = (state[None] for state in states)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output, (h_n, *others) if others else h_n


def _steps(
    cell: Callable[[Tensor, Tensor, States], States],
    input: Tensor,
    states: States,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, States]:
    # Only a GRU multiplies the bias of the product.
    merged = cell is not _gru
    bias = bias_ih + bias_hh if merged else bias_ih
    outputs = []
    for u in F.linear(input, weight_ih, bias).unbind():
        states = cell(u, F.linear(states[0], weight_hh, None if merged else bias_hh), states)
        outputs.append(states[0])
    return torch.stack(outputs), states


def _prepare(kind: Callable[..., nn.Module], problem: Problem) -> Prepared:
    module = build(kind, problem.case, problem.mode, problem.work.data.device.type)
    module.load_state_dict(problem.module.state_dict())
    work = problem.work
    return Prepared(work.step(module), lambda: work.results(module))
