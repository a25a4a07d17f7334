"""Shared by the tests on a GPU: layers on the device, and the comparison with nn.RNN in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from support import leaves

DEVICE = "cuda"

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Hidden sizes for each of the two kinds of kernels, persistent and step by step.
PERSISTENT, STEP = 64, 515
REGIMES = pytest.mark.parametrize("hidden_size", [PERSISTENT, STEP], ids=["persistent", "step"])

# In units of a dtype's precision at a tensor's largest value, which at one unit may be what is left
# of a sum over thousands of rows. TF32 would be off by some thousands; products of 16-bit tensors
# are rounded once more by torch.
PRECISION = {torch.float32: 256, torch.float64: 256, torch.float16: 16, torch.bfloat16: 16}


def layer(
    hidden_size: int, dtype: torch.dtype = torch.float32, input_size: int = 17, **options: Any
) -> rnn_ext.RNN:
    rnn = rnn_ext.RNN(input_size, hidden_size, device=DEVICE, dtype=dtype, **options)
    if rnn.nonlinearity == "relu":
        keep_from_kink(rnn)
    return rnn


@torch.no_grad()
def keep_from_kink(module: nn.Module) -> None:
    """Half of the units on and half off, so that rounding moves none across the kink of relu."""
    for name, parameter in module.named_parameters():
        parameter.mul_(0.1)
        if name.startswith("bias_ih"):
            parameter.copy_(torch.randn_like(parameter).sign() * 8)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def in_fp64(rnn: rnn_ext.RNN, kind: Callable[..., nn.RNNBase] = nn.RNN) -> nn.RNNBase:
    """A layer of `kind` in fp64 on the CPU, with the same weights."""
    options = {"bidirectional": rnn.bidirectional, "nonlinearity": rnn.nonlinearity}
    exact = kind(rnn.input_size, rnn.hidden_size, rnn.num_layers, **options).double()
    exact.load_state_dict({k: v.double().cpu() for k, v in rnn.state_dict().items()})
    return exact


def results(
    rnn: nn.Module, x: Tensor, hx: Tensor | None = None, lengths: Sequence[int] | None = None
) -> list[Tensor]:
    """Output, h_n and the gradients of input, hx and parameters for one loss.

    Its terms have one sign: a gradient that large terms cancel in would be inexact in any order.
    """
    x, hx = leaves(x, hx)
    argument: Tensor | PackedSequence = x
    if lengths is not None:
        argument = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, h_n = rnn(argument, hx)
    data = output.data if isinstance(output, PackedSequence) else output
    weights = torch.linspace(0.1, 1, data.numel(), dtype=torch.float64).view(data.shape)
    loss = (data * weights.to(data)).sum() + h_n.sum()
    wanted = [x, *([] if hx is None else [hx]), *rnn.parameters()]
    return [data.detach(), h_n.detach(), *torch.autograd.grad(loss, wanted)]


def assert_parity(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b, dtype = a.detach().double().cpu(), b.detach().double().cpu(), a.dtype
        bound = PRECISION[dtype] * torch.finfo(dtype).eps * b.abs().max().item()
        error = (a - b).abs().max().item()
        assert error <= bound, f"tensor {index}: off by {error}, bound {bound}"
