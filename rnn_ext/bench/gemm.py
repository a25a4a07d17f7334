"""The fastest matrix product of this machine: what a layer of large matrices is bound by."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rnn_ext import functional

__all__ = ["gemm_rates"]

MIN_CALLS = 3


def gemm_rates(dtype: torch.dtype, *, size: int = 2048, seconds: float = 2.0) -> dict[str, float]:
    """FLOP/s of a product of two squares, by library, with the current number of threads.

    The best of at least ``MIN_CALLS`` calls, for about ``seconds`` each library. Half precision is
    measured in float32, in which its sums are taken.
    """
    compute = torch.float32 if dtype.itemsize == 2 else dtype
    a, b = (torch.randn(size, size, dtype=compute) for _ in range(2))
    with torch.no_grad():
        return {
            name: products * 2 * size**3 / _fastest(function, seconds)
            for name, products, function in _libraries(a, b)
        }


def _libraries(a: Tensor, b: Tensor) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Each library's name, the products that a call of it computes, and the call."""
    out = torch.empty_like(a)
    yield "torch.mm", 1, lambda: torch.mm(a, b, out=out)
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = a.to_mkldnn()
        yield "oneDNN", 1, lambda: torch.ops.aten.mkldnn_linear(packed, b, None)
    # A layer of one step is two products and a maximum.
    yield (
        "rnn_ext",
        2,
        lambda: functional.rnn(a[None], b[None], [a, b], nonlinearity="relu", bias=False),
    )


def _fastest(function: Callable[[], object], seconds: float) -> float:
    clock = time.perf_counter
    end = clock() + seconds
    times: list[float] = []
    while len(times) < MIN_CALLS or clock() < end:
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)
