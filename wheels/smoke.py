"""Tries an installed wheel, with torch alone: its binaries load, compute, and throw exceptions.

The argument Python says that the wheel was built for a release of torch whose C++ API has no place
for the autograd node.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rnn_ext


def results_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    output, _ = module(x)
    return [output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))]


def raised_by(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("nothing was raised")


info = rnn_ext.build_info()
print(
    {name: info[name] for name in ("version", "compiler", "isa", "autograd_node", "torch_running")}
)
assert [info["autograd_node"]] == (sys.argv[1:] or ["C++"])

torch.manual_seed(1)
x = torch.randn(7, 3, 5)
for name in ("RNN", "GRU", "LSTM"):
    theirs = getattr(nn, name)(5, 6, 2, bidirectional=True)
    ours = getattr(rnn_ext, name)(5, 6, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(results_of(ours, x), results_of(theirs, x))

# Thrown in an op and caught by torch; thrown by torch below the node, which passes it on.
layer = rnn_ext.RNN(5, 6)
operands = (x, None, [parameter.detach() for parameter in layer.parameters()], None)
op = torch.ops.rnn_ext.rnn_forward
assert "nonlinearity must be" in raised_by(lambda: op(*operands, "sin", False))
loss = layer(x)[0].sum()
loss.backward()
assert "second time" in raised_by(loss.backward)
