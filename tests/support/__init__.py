"""Shared by many test files: settings, twins of nn.RNN, bitwise comparison, outcomes of calls."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnn_ext
from rnn_ext import _C
from rnn_ext._core import node

ISA_LEVELS: tuple[str, ...] = tuple(_C.isa_available())
MORE_THREADS_THAN_CORES = 2 * (os.cpu_count() or 1) + 1

# No multiples of a tile, neighbors of powers of two, and sizes above every register block.
SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 100, 129, 257)


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    before = _C.isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


def without_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every call take the path in Python that it takes without the node in C++."""
    for name in node.__all__:
        if name.startswith(("run", "takes")):
            monkeypatch.setattr(node, name, lambda *_: None)


# How a team can share a call. By default, a small call stays on one thread.
SPLITS = ("rows", "columns", "blocks")
PLANS = (None, *SPLITS)


@contextmanager
def using_threads(count: int, split: str | None = None) -> Iterator[None]:
    """Sets torch's threads; with `split`, also makes every call a team of that many.

    An even number is halved between the directions of a layer where these can run at once.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    if split is not None:
        # "blocks": two members per group, except for one group if the number of threads is odd.
        groups = {"rows": count, "columns": 1, "blocks": (count + 1) // 2}[split]
        _C.force_plan(groups, count, directions_at_once=count % 2 == 0)
    try:
        yield
    finally:
        _C.force_plan(None)
        torch.set_num_threads(before)


# The kinds of layers, and the states of each; a cell's class is named after its layer's.
KINDS: Mapping[str, tuple[str, ...]] = {"RNN": ("h",), "GRU": ("h",), "LSTM": ("h", "c")}


def twins(*args: Any, kind: str = "RNN", **kwargs: Any) -> tuple[Any, Any]:
    """A module of torch's, of the class that `kind` names, and ours with the same weights."""
    theirs, ours = getattr(nn, kind)(*args, **kwargs), getattr(rnn_ext, kind)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(result: Any) -> list[Tensor]:
    """The tensors that a module returns (packed: the data), in order."""
    if type(result) in (tuple, list):
        return [t for part in result for t in flat(part)]
    return [result.data if isinstance(result, PackedSequence) else result]


def hx_of(kind: str, *shape: int, **kwargs: Any) -> Any:
    """Random initial states of a kind of layer or cell, as its forward takes them."""
    states = [torch.randn(*shape, **kwargs) for _ in KINDS[kind.removesuffix("Cell")]]
    return states[0] if len(states) == 1 else tuple(states)


def as_function(module: nn.Module, batch_sizes: Tensor | None = None) -> Callable[..., Any]:
    """The module as a function of input, its states or none of them, and weights, all tensors."""
    names = [name for name, _ in module.named_parameters()]

    def function(input: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        states, weights = rest[: -len(names)], rest[-len(names) :]
        argument = input if batch_sizes is None else PackedSequence(input, batch_sizes)
        hx = (states,) if len(states) > 1 else states
        given = dict(zip(names, weights, strict=True))
        return tuple(flat(torch.func.functional_call(module, given, (argument, *hx))))

    return function


def layer_weights(
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Weights flat in `nn.RNN`'s order and drawn like its own, requiring no gradient."""
    module = nn.RNN(
        input_size, hidden_size, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype
    )
    return [p.detach() for p in module.parameters()]


def leaves(*tensors: Tensor | None) -> list[Any]:
    """Fresh leaves that require gradients, with the values (and strides) of `tensors`."""
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and every bit: signed zeros differ, equal NaNs do not."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = _BITS[a.dtype]
    return torch.equal(a.detach().contiguous().view(bits), b.detach().contiguous().view(bits))


def assert_same_bits(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert same_bits(a, b), (
            f"tensor {index}: {int((a != b).sum()) if a.shape == b.shape else 'all'} of "
            f"{b.numel()} elements differ"
        )


def assert_close_fp64(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """The contract's bound on fp64 against nn.RNN in fp64: 1e-9 of the largest value."""
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == b.dtype == torch.float64
        assert a.shape == b.shape, f"tensor {index}"
        if b.numel():
            error, scale = (a - b).abs().max().item(), b.abs().max().item()
            assert error <= 1e-9 * scale, f"tensor {index}: off by {error} at scale {scale}"


def assert_like(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Two forward results in fp32 that differ by rounding only."""
    for a, b in zip(actual, expected, strict=True):
        # |h| <= 1 and sums of at most some tens of products: rounding stays below 1e-6.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@dataclass(frozen=True)
class Outcome:
    """What a call raises, its type and text, and the warnings."""

    error: type[BaseException] | None
    text: str
    warnings: tuple[tuple[type[Warning], str], ...]


def outcome(call: Callable[[], Any]) -> Outcome:
    error: type[BaseException] | None = None
    text = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as exception:
            error, text = type(exception), str(exception)
    seen = tuple((w.category, str(w.message)) for w in caught)
    return Outcome(error, text, seen)


# The error of a torch operation inside ours has torch's reason since 2.13; before, torch prints it,
# and whether memory was short is unknown.
TELLS_REASONS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def reason_told(error: BaseException, printed: str) -> str:
    """That reason, from what was raised or what appeared on stderr."""
    if TELLS_REASONS:
        return str(error)
    assert type(error) is RuntimeError
    assert "torch before 2.13 prints the reason on stderr" in str(error)
    return printed


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, grad_outputs)


# Seconds after which a hanging thread or child process is given up.
PATIENCE = 60


def loss_of(output: Tensor, h_n: Tensor) -> Tensor:
    """A loss that depends on both."""
    return output.square().sum() + (h_n * torch.arange(h_n.shape[-1])).sum()


def train_step(module: rnn_ext.RNN, x: Tensor) -> list[Tensor]:
    output, h_n = module(x)
    loss = output.square().sum() + h_n.sum()
    return [output.detach(), h_n.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def jobs() -> list[tuple[rnn_ext.RNN, Tensor]]:
    """Calls of different plans: one row, few, many; narrow and wide states."""
    shapes = [(60, 1, 129), (20, 33, 65), (9, 3, 257), (200, 8, 16)]
    return [
        (rnn_ext.RNN(17, h, 2, bidirectional=b == 8), torch.randn(t, b, 17)) for t, b, h in shapes
    ]


def onednn_has_lstm(dtype: torch.dtype) -> bool:
    """Whether `nn.LSTM` runs in a 16-bit dtype on this CPU: float16 on few, bfloat16 with AVX-512.

    It calls oneDNN, and raises an error where that has none.
    """
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
