"""The CUDA driver and kernels, compiled for the host and run on an emulated device.

`tests/cuda_emulation/` has the emulation. It is compiled, with the shipped sources, when a test
first asks for it, into `build/cuda_emulation/`.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from .compile import ROOT, compile_objects, digest, link

FOLDER = ROOT / "tests" / "cuda_emulation"
BUILD = ROOT / "build" / "cuda_emulation"
ORDERS = ("identity", "reversed", "shuffled")
OPS = torch.ops.rnn_ext_emulated


def kernel_sources(csrc: Path) -> list[Path]:
    return sorted(csrc.glob("cuda/*.cu"))


def build_library(csrc: Path = ROOT / "csrc", folder: Path = BUILD) -> Path:
    """Compile the emulated driver and return the library's path."""
    flags = ["-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-isystem{path}" for path in include_paths()]
    sources = [csrc / "cuda" / "driver.cpp", FOLDER / "ops.cpp", FOLDER / "faults.cu"]
    objects = compile_emulated(sources, csrc, folder, flags)
    torch_library = Path(torch.__file__).parent / "lib"
    library = folder / f"emulated-{digest(objects)}.so"
    return link(objects, library, ["-shared", f"-L{torch_library}", "-ltorch_cpu"])


def compile_emulated(
    sources: Sequence[Path], csrc: Path, folder: Path, flags: Sequence[str]
) -> list[Path]:
    """Compile these sources, the kernels and the emulated device."""
    headers = [*csrc.glob("c*/*.h"), *csrc.glob("cuda/*.cuh"), *FOLDER.rglob("*.h")]
    sources = [*kernel_sources(csrc), *sources, FOLDER / "emulation.cpp"]
    includes = ["-Wno-unknown-pragmas", "-Wno-attributes", f"-I{FOLDER / 'include'}", f"-I{FOLDER}"]
    return compile_objects(sources, headers, csrc, folder, [*includes, *flags])


_loaded: ctypes.CDLL | None = None


def load(library: Path | None = None) -> ctypes.CDLL:
    """Register `torch.ops.rnn_ext_emulated`, once in a process, and return the library."""
    global _loaded
    if _loaded is None:
        path = library or build_library()
        torch.ops.load_library(path)
        _loaded = ctypes.CDLL(str(path))
        _loaded.emulation_launched.restype = ctypes.c_char_p
        _loaded.emulation_set_limits.argtypes = [ctypes.c_int64, ctypes.c_int64]
    return _loaded


@contextmanager
def device(
    order: str = "identity", multiprocessors: int = 132, shared_bytes: int = 227 << 10
) -> Iterator[None]:
    """An emulated device of these limits, whose threads run in this order."""
    c = load()
    c.emulation_set_order(ORDERS.index(order))
    c.emulation_set_limits(multiprocessors, shared_bytes)
    try:
        yield
    finally:
        c.emulation_set_order(0)
        c.emulation_set_limits(132, 227 << 10)


def launched_kernels() -> set[str]:
    """The names of all kernels that ran in this process, template arguments included."""
    return set(load().emulation_launched().decode().splitlines())
