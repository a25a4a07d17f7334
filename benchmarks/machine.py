"""The machine that a benchmark runs on."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import rnn_ext

__all__ = ["Cache", "available_memory", "caches", "cores", "describe", "facts"]

# A container's limit, by cgroup version 2 and 1.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Cache:
    """A cache for data: its level, its bytes, and how many cores share it."""

    level: int
    size: int
    cores: int


# The minimum of most machines, for systems that do not report their caches.
USUAL_CACHES = (Cache(1, 32 << 10, 1), Cache(2, 512 << 10, 1))


def facts() -> dict[str, Any]:
    """Returns hardware, versions and load; None for facts that the system does not report."""
    info = rnn_ext.build_info()
    frequency = psutil.cpu_freq()
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "mhz": (frequency.max or frequency.current) if frequency else None,
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": round(os.getloadavg()[0], 2),
        "isa": info["isa"],
        "isa_compiled": list(info["isa_compiled"]),
        "rnn_ext": info["version"],
        "torch": info["torch_running"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Returns processor, cores, ISA level, versions, and the GPU of the run, in one line."""
    text = (
        "{cpu}, {cores} cores, ISA {isa}; rnn_ext {rnn_ext}, torch {torch}, Python {python}"
    ).format_map(facts)
    if gpu := facts.get("gpu"):
        text += (
            "; {name}, {multiprocessors} multiprocessors, CUDA {cuda}, cuDNN {cudnn}, "
            "RNN_EXT_CUDA={rnn_ext_cuda}"
        ).format_map(gpu)
    return text


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping."""
    limits = [int(text) for file in CGROUP_LIMITS if (text := _read(file)).isdigit()]
    return min([psutil.virtual_memory().available, *limits])


def caches() -> tuple[Cache, ...]:
    """Returns the caches of a core, the smallest first."""
    by_level: dict[int, tuple[int, int]] = {}
    for index in CACHES.glob("index*"):
        kind, level, size, sharing = (
            _read(index / name) for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind in ("Data", "Unified") and size.endswith("K") and sharing:
            by_level[int(level)] = (int(size[:-1]) << 10, _count(sharing))
    if 1 not in by_level:
        return USUAL_CACHES
    threads_per_core = by_level[1][1]
    return tuple(
        Cache(level, size, sharing // threads_per_core)
        for level, (size, sharing) in sorted(by_level.items())
    )


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(ranges: str) -> int:
    """Counts the numbers in a list like ``0-3,8``."""
    total = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
