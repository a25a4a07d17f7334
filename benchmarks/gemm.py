"""Measures the fastest matrix products of this machine, which limit layers of large matrices."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rnn_ext import functional
from rnn_ext.bench.timing import MIN_ROUNDS

__all__ = ["gemm_rates", "least_seconds", "step_rates"]

# Timed steps of our own recurrence: enough that packing the weights hardly counts; fewer for large
# products, for which it hardly counts in any case.
MAX_STEPS = 128
MAX_FLOPS = 2e9

# A library's name, the products that a call of it computes, and the call.
Library = tuple[str, int, Callable[[], object]]


def least_seconds(function: Callable[[], object], seconds: float) -> float:
    """Returns the time of the fastest of at least ``MIN_ROUNDS`` calls, made for ``seconds``."""
    clock = time.perf_counter
    end = clock() + seconds
    times: list[float] = []
    while len(times) < MIN_ROUNDS or clock() < end:
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def gemm_rates(dtype: torch.dtype, *, size: int = 2048, seconds: float = 1.0) -> dict[str, float]:
    """Returns FLOP/s of a product of two squares, by library, with the current number of threads.

    It is the best of several calls, made for about ``seconds`` per library. Half precision is
    measured in float32, the type of its sums.
    """
    a, b = (torch.randn(size, size, dtype=_compute_dtype(dtype)) for _ in range(2))
    return _rates(_square_libraries(a, b), 2 * size**3, seconds)


def step_rates(
    dtype: torch.dtype, batch_size: int, hidden_size: int, *, seconds: float = 0.02
) -> dict[str, float]:
    """Returns the same for the product of a time step, ``(batch_size, hidden_size)`` by a square.

    The square is packed in advance if the library supports this.
    """
    states, weight = (
        torch.randn(rows, hidden_size, dtype=_compute_dtype(dtype))
        for rows in (batch_size, hidden_size)
    )
    flops = 2 * batch_size * hidden_size**2
    return _rates(_step_libraries(states, weight / hidden_size**0.5, flops), flops, seconds)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def _rates(libraries: Iterator[Library], flops: int, seconds: float) -> dict[str, float]:
    with torch.no_grad():
        return {
            name: products * flops / least_seconds(function, seconds)
            for name, products, function in libraries
        }


def _square_libraries(a: Tensor, b: Tensor) -> Iterator[Library]:
    out = torch.empty_like(a)
    yield "torch.mm", 1, lambda: torch.mm(a, b, out=out)
    if _has_onednn(a):
        packed = a.to_mkldnn()
        yield "oneDNN", 1, lambda: torch.ops.aten.mkldnn_linear(packed, b, None)
    # A layer of one step is two products and a maximum.
    yield (
        "rnn_ext",
        2,
        lambda: functional.rnn(a[None], b[None], [a, b], nonlinearity="relu", bias=False),
    )


def _step_libraries(states: Tensor, weight: Tensor, flops: int) -> Iterator[Library]:
    out = torch.empty_like(states)
    yield "torch.mm", 1, lambda: torch.mm(states, weight, out=out)
    if _has_onednn(states):
        onednn = torch.ops.mkldnn
        packed = onednn._reorder_linear_weight(weight, states.shape[0])
        yield "oneDNN", 1, lambda: onednn._linear_pointwise(states, packed, None, "none", [], "")
    # The recurrence is a product and a maximum per step; an input of size 1 adds hardly anything.
    steps = min(MAX_STEPS, int(1 + MAX_FLOPS / flops))
    input = states.new_ones(steps, states.shape[0], 1)
    weights = [weight[:, :1], weight]
    yield (
        "rnn_ext",
        steps,
        lambda: functional.rnn(input, states[None], weights, nonlinearity="relu", bias=False),
    )


def _has_onednn(like: Tensor) -> bool:
    return like.dtype == torch.float32 and torch.backends.mkldnn.is_available()
