"""Measures the memory of a call, and how much of it autograd keeps for the backward pass.

The peak is that of the process's resident memory: a counter of torch's allocations would miss the
scratch memory of kernels. Each number is measured in a process of its own, since memory that an
earlier call left with the allocator would hide that of this one.
"""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import msgspec
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import rnn_ext
from rnn_ext.bench.workload import Mode

from .cases import Case
from .coding import decode, encode
from .draw import build, draw

__all__ = [
    "LIBRARIES",
    "Library",
    "Memory",
    "MemoryProbeError",
    "can_measure",
    "measure_memory",
    "peak_bytes",
    "saved_bytes",
]

Library = Literal["nn_rnn", "rnn_ext"]
LIBRARIES: tuple[Library, ...] = get_args(Library)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class MemoryProbeError(Exception):
    """The measuring process ended without a result."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one call.

    ``peak``: how far resident memory rises above its value before the call, when parameters and
    input exist. The system counts pages, some with a delay: small numbers are uncertain by about
    0.5 MiB, and if a call allocates many small blocks, the peak differs from process to process.
    ``saved``: the memory that the forward pass keeps for backward, besides parameters, input and
    hx; None if there is no backward pass.
    """

    peak: int
    saved: int | None


class Request(msgspec.Struct):
    """A request to the measuring process."""

    case: Case
    mode: Mode
    library: Library
    threads: int


def can_measure() -> bool:
    """Whether this system reports the peak: Linux does."""
    try:
        _reset_peak()
    except OSError:
        return False
    return True


def measure_memory(case: Case, mode: Mode, library: Library, threads: int) -> Memory:
    """Measures a call of ``library`` in a new process, after a small call has set up the library.

    Raises:
        MemoryProbeError: the process ended, for example for lack of memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=encode(Request(case, mode, library, threads)),
        stdout=subprocess.PIPE,
    )
    if done.returncode != 0:
        raise MemoryProbeError(f"the process for {library} ended with code {done.returncode}")
    memory: Memory = decode(done.stdout, Memory)
    return memory


def saved_bytes(forward: Callable[[], object], own: list[Tensor]) -> int:
    """Returns the bytes of all storages, except those of ``own``, that ``forward`` saves."""
    kept: list[Tensor] = []  # alive until the end, so that no two have the same address

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = forward()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    known = {t.untyped_storage().data_ptr() for t in own}
    return sum(size for address, size in storages.items() if address not in known)


def peak_bytes(function: Callable[[], object]) -> int:
    """Returns how far resident memory rises while ``function`` runs."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # else memory that was freed before would not count
    before = _status("VmRSS")
    _reset_peak()
    result = function()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _measure_here(case: Case, mode: Mode, library: Library) -> Memory:
    kind = nn.RNN if library == "nn_rnn" else rnn_ext.RNN
    # Sets up what a process has once: threads, and code generated at run time.
    small = replace(case, seq_len=2, batch_size=1, input_size=8, hidden_size=8)
    _step(small, mode, kind)()
    step = _step(case, mode, kind)
    peak = peak_bytes(step)
    if mode == "forward":
        return Memory(peak, None)
    module, work = build(kind, case, mode), draw(case, mode)
    own = [*work.tensors(), *module.parameters()]
    return Memory(peak, saved_bytes(lambda: module(*work.arguments()), own))


def _step(case: Case, mode: Mode, kind: Callable[..., nn.Module]) -> Callable[[], object]:
    return draw(case, mode).step(build(kind, case, mode))


def _reset_peak() -> None:
    _CLEAR.write_text("5")


def _status(key: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports Ctrl-C
    request: Request = decode(sys.stdin.buffer.read(), Request)
    torch.set_num_threads(request.threads)
    with torch.set_grad_enabled(request.mode == "training"):
        memory = _measure_here(request.case, request.mode, request.library)
    sys.stdout.buffer.write(encode(memory))


if __name__ == "__main__":
    _main()
