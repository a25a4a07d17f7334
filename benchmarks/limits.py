"""Measures the limits of this machine, from which ``bounds`` computes the bound of a call."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

import rnn_ext
from rnn_ext.bench.workload import MODES, Mode

from .bounds import CallCost, Level, Limits, StepProduct
from .cases import Case, Nonlinearity
from .draw import build, draw
from .gemm import least_seconds, step_rates
from .machine import caches, cores
from .probe import load_probe

__all__ = ["call_cost", "measure_limits"]

# A fraction of a second apart, since a disturbance may last as long.
SWEEPS = 3

# Of a network of one unit: so many that the steps cost much more than the call.
STEPS = 1024
CALL_SECONDS = 0.05

# Data outside of all caches: so many times the largest cache, but at most this many bytes.
BEYOND_CACHES = 4
MAX_BYTES = 1 << 30


def measure_limits(
    cases: Sequence[Case], gemm: Mapping[str, float], *, with_products: bool = True
) -> Limits:
    """Measures the limits for ``cases`` with the current number of threads.

    ``gemm`` are the rates of large products. Without ``with_products``, the products of the cases'
    single steps are left out.
    """
    dtype, threads = cases[0].dtype, torch.get_num_threads()
    members = min(threads, cores())
    probe = load_probe()
    shapes = dict.fromkeys((case.batch_size, case.hidden_size) for case in cases)
    products = tuple(
        StepProduct(*shape, step_rates(dtype, *shape)) for shape in shapes if with_products
    )
    flop_rates = [gemm, *(product.flop_rates for product in products)]
    return Limits(
        members=members,
        flop_rate=max(rate for rates in flop_rates for rate in rates.values()),
        levels=_levels(members),
        barrier_seconds=min(probe.barrier_seconds(members) for _ in range(SWEEPS)),
        fork_join_seconds=min(probe.fork_join_seconds(members) for _ in range(SWEEPS)),
        calls=tuple(
            call_cost(mode, nonlinearity, dtype)
            for nonlinearity in dict.fromkeys(case.nonlinearity for case in cases)
            for mode in MODES
        ),
        products=products,
    )


def _levels(threads: int) -> tuple[Level, ...]:
    sizes = list(_sizes(threads))
    read_rate = load_probe().read_rate
    sweeps = [[read_rate(size, threads) for *_, size in sizes] for _ in range(SWEEPS)]
    return tuple(
        Level(name, capacity, max(rates))
        for (name, capacity, _), *rates in zip(sizes, *sweeps, strict=True)
    )


def _sizes(threads: int) -> Iterator[tuple[str, int | None, int]]:
    """Yields name and bytes of each level, and how many bytes each thread reads to measure it."""
    largest: float = math.inf
    for cache in caches():
        # Half of it leaves room for other data. If the previous level holds that much, its rate is
        # measured, which makes the bound too low rather than too high.
        size = min(cache.size // 2 // min(threads, cache.cores), largest)
        yield f"L{cache.level}", cache.size, int(size)
        largest = 8 * cache.size  # of the next level: too much for this one, even if it is shared
    total = min(MAX_BYTES, BEYOND_CACHES * cache.size * max(1, threads // cache.cores))
    yield "memory", None, total // threads


def call_cost(
    mode: Mode,
    nonlinearity: Nonlinearity,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    kinds: Sequence[Callable[..., nn.Module]] = (rnn_ext.RNN,),
    least: Callable[[Callable[[], object], float], float] = least_seconds,
) -> CallCost:
    """Measures a net of one unit in the fastest of ``kinds``; ``least`` times a call."""

    def call(kind: Callable[..., nn.Module], steps: int) -> Callable[[], object]:
        case = Case(steps, 1, 1, 1, nonlinearity=nonlinearity, dtype=dtype)
        return draw(case, mode, device).step(build(kind, case, mode, device))

    calls = [[call(kind, steps) for kind in kinds] for steps in (1, 1 + STEPS)]
    with torch.set_grad_enabled(mode == "training"):
        times = [
            [min(least(call, CALL_SECONDS) for call in same_steps) for same_steps in calls]
            for _ in range(SWEEPS)
        ]
    of_short, of_long = map(min, zip(*times, strict=True))
    return CallCost(mode, nonlinearity, of_short, max(0.0, of_long - of_short) / STEPS)
