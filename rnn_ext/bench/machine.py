"""The machine that the benchmark runs on."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


# Where the system does not tell: what most machines have at the least.
USUAL_CACHES = (Cache(1, 32 << 10, 1), Cache(2, 512 << 10, 1))


def facts() -> dict[str, Any]:
    """Hardware, versions and load; None where the system does not tell."""
    info = rnn_ext.build_info()
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "mhz": _megahertz(),
        "memory_bytes": _physical_memory(),
        "load_average": round(os.getloadavg()[0], 2),
        "isa": info["isa"],
        "isa_compiled": list(info["isa_compiled"]),
        "rnn_ext": info["version"],
        "torch": info["torch_running"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Processor, cores, ISA level, versions, and the GPU of the run, in one line."""
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
    """Bytes that can be allocated without swapping; where Linux does not tell, all there are."""
    memory = _physical_memory()
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            memory = int(line.split()[1]) * 1024
    for file in CGROUP_LIMITS:
        for line in _lines(file):
            if line.isdigit():
                memory = min(memory, int(line))
    return memory


def caches() -> tuple[Cache, ...]:
    """The caches of a core, the smallest first."""
    found: dict[int, tuple[int, int]] = {}
    for index in CACHES.glob("index*"):
        kind, level, size, sharing = (
            " ".join(_lines(str(index / name)))
            for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind in ("Data", "Unified") and size.endswith("K") and sharing:
            found[int(level)] = (int(size[:-1]) << 10, _count(sharing))
    if 1 not in found:
        return USUAL_CACHES
    threads_per_core = found[1][1]
    return tuple(
        Cache(level, size, sharing // threads_per_core)
        for level, (size, sharing) in sorted(found.items())
    )


def _count(ranges: str) -> int:
    """How many numbers a list like ``0-3,8`` names."""
    total = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _megahertz() -> float | None:
    """The highest clock frequency, or without cpufreq, as in a virtual machine, the current one."""
    for line in _lines("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"):
        return int(line) / 1000
    current = _cpuinfo("cpu MHz")
    return float(current) if current else None


def _cpuinfo(key: str) -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
