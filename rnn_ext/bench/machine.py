"""The machine that the benchmark runs on."""

import os
import platform
from pathlib import Path

import rnn_ext

__all__ = ["available_memory", "describe"]

# A container's limit, by cgroup version 2 and 1.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def describe() -> str:
    """Processor, cores, ISA level and versions in one line."""
    info = rnn_ext.build_info()
    return (
        f"{_cpu_model()}, {_cores()} cores, ISA {info['isa']}; rnn_ext {info['version']}, "
        f"torch {info['torch_running']}, Python {platform.python_version()}"
    )


def available_memory() -> int:
    """Bytes that can be allocated without swapping; where Linux does not tell, all there are."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            memory = int(line.split()[1]) * 1024
    for file in CGROUP_LIMITS:
        for line in _lines(file):
            if line.isdigit():
                memory = min(memory, int(line))
    return memory


def _cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
