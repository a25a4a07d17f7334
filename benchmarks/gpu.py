"""The GPU of a benchmark: its clock, precision, properties and limits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import rnn_ext
from rnn_ext._core import cuda
from rnn_ext.bench.timing import MIN_ROUNDS, Blocks
from rnn_ext.bench.workload import MODES

from .cases import Case
from .limits import call_cost
from .roofline import Roofline

__all__ = [
    "EventClock",
    "available_memory",
    "facts",
    "gemm_rates",
    "measure_roofline",
    "set_precision",
]

GEMM_SIZE = 8192
COPY_BYTES = 1 << 30
SECONDS = 0.2


class EventClock:
    """A clock of the GPU: each reading records an event in the current stream and waits for it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = self._event()

    def __call__(self) -> float:
        event = self._event()
        # Summed here, since torch returns the time between two events as float32.
        self._seconds += self._last.elapsed_time(event) / 1e3
        self._last = event
        return self._seconds

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event


def set_precision(tf32: bool) -> None:
    """Sets whether float32 products of torch and of cuDNN may be rounded to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def facts(tf32: bool) -> dict[str, Any]:
    """Returns hardware, versions, and the settings that affect times."""
    device = torch.cuda.get_device_properties("cuda")
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": tf32,
        "rnn_ext_cuda": cuda.setting,
    }


def available_memory() -> int:
    """Returns the bytes that torch could allocate, including those in its cache."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def gemm_rates(dtype: torch.dtype) -> dict[str, float]:
    """Returns FLOP/s of a product of two squares, by library."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    seconds = _fastest(lambda: torch.mm(a, b, out=out))
    return {"torch.mm": 2 * GEMM_SIZE**3 / seconds}


def measure_roofline(cases: Sequence[Case], gemm: Mapping[str, float]) -> Roofline:
    """Measures the limits for ``cases``; ``gemm`` are the rates of large products."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy_seconds = _fastest(lambda: target.copy_(source))
    return Roofline(
        calls=tuple(
            call_cost(
                *(mode, nonlinearity, cases[0].dtype, "cuda"),
                kinds=(rnn_ext.RNN, nn.RNN),
                least=_fastest,
            )
            for nonlinearity in dict.fromkeys(case.nonlinearity for case in cases)
            for mode in MODES
        ),
        flop_rate=max(gemm.values()),
        memory_rate=2 * COPY_BYTES / copy_seconds,
    )


def _fastest(function: Callable[[], object], seconds: float = SECONDS) -> float:
    """Returns seconds per call of the fastest of at least ``MIN_ROUNDS`` blocks."""
    clock = EventClock()
    end = clock() + seconds
    blocks = Blocks(function, clock)
    times: list[float] = []
    while len(times) < MIN_ROUNDS or clock() < end:
        times.append(blocks.run())
    return min(times)
