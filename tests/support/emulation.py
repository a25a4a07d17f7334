"""The CUDA driver and kernels, compiled for the host and run on an emulated device.

`tests/cuda_emulation/` has the emulation. It is compiled, with the shipped sources, when a test
first asks for it, into `build/cuda_emulation/`; objects are kept for as long as no source changes.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "cuda_emulation"
BUILD = ROOT / "build" / "cuda_emulation"
ORDERS = ("identity", "reversed", "shuffled")
OPS = torch.ops.rnn_ext_emulated


def kernel_sources(csrc: Path) -> list[Path]:
    return sorted(csrc.glob("cuda/*.cu"))


def compiler() -> str:
    names = [os.environ.get("CXX", ""), "c++", "g++"]
    return next(name for name in names if name and shutil.which(name))


def build_library(csrc: Path = ROOT / "csrc", folder: Path = BUILD) -> Path:
    """Compile the emulated driver and return the library's path."""
    sources = [
        *kernel_sources(csrc),
        csrc / "cuda" / "driver.cpp",
        *(FOLDER / name for name in ("ops.cpp", "emulation.cpp", "faults.cu")),
    ]
    flags = [
        *("-fPIC", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *(f"-isystem{path}" for path in include_paths()),
    ]
    objects = compile_objects(sources, csrc, folder, flags)
    torch_library = Path(torch.__file__).parent / "lib"
    library = folder / f"emulated-{digest(objects)}.so"
    return link(objects, library, ["-shared", f"-L{torch_library}", "-ltorch_cpu"])


def build_sanitized() -> Path:
    """Compile the kernels, without torch, under the sanitizers, and return the program's path."""
    csrc, folder = ROOT / "csrc", BUILD / "sanitized"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-g1"]
    sources = [*kernel_sources(csrc), FOLDER / "sanitized.cpp", FOLDER / "emulation.cpp"]
    objects = compile_objects(sources, csrc, folder, flags)
    return link(objects, folder / f"sanitized-{digest(objects)}", flags)


def compile_objects(sources: list[Path], csrc: Path, folder: Path, flags: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"),
        *(
            "-Wno-unknown-pragmas",
            "-Wno-attributes",
            f"-I{FOLDER / 'include'}",
            f"-I{FOLDER}",
            f"-I{csrc}",
            *flags,
        ),
    ]
    headers = [
        *csrc.glob("c*/*.h"),
        *csrc.glob("cuda/*.cuh"),
        *FOLDER.rglob("*.h"),
    ]
    shared = digest(headers, " ".join(command).replace(str(csrc), ""))

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}-{digest([source], shared)}.o"
        if not result.exists():
            partial = result.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, "-x", "c++", "-c", source, "-o", partial], check=True)
            partial.rename(result)
        return result

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: list[Path], target: Path, flags: list[str]) -> Path:
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *objects, "-o", partial, *flags], check=True)
        partial.rename(target)
    return target


def digest(files: list[Path], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
