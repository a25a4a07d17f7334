"""Builds and loads ``probe.cpp``, which measures memory and threads."""

from functools import cache
from pathlib import Path
from typing import Any

import torch.utils.cpp_extension

__all__ = ["load_probe"]


@cache
def load_probe() -> Any:
    """Returns the compiled module; the first call on a machine compiles it, in about ten seconds.

    It has ``read_rate(bytes, threads)`` in bytes a second, ``barrier_seconds(threads)`` and
    ``fork_join_seconds(threads)``.
    """
    folder = Path(__file__).parent
    return torch.utils.cpp_extension.load(
        name="rnn_ext_probe",
        sources=[str(folder / "probe.cpp")],
        extra_include_paths=[str(folder.parent / "csrc")],
        extra_cflags=["-std=c++20", "-O3", "-march=native"],
    )
