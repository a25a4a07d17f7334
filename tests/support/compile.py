"""Compiles C++ for a test with the host's compiler. What no source has changed is kept."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["ROOT", "compile_objects", "compiler", "digest", "link"]

ROOT = Path(__file__).resolve().parents[2]


def compiler() -> str:
    names = [os.environ.get("CXX", ""), "c++", "g++"]
    return next(name for name in names if name and shutil.which(name))


def compile_objects(
    sources: Sequence[Path],
    headers: Iterable[Path],
    csrc: Path,
    folder: Path,
    flags: Sequence[str],
) -> list[Path]:
    """Compile sources, which include no files but `headers`, into `folder`.

    `csrc` may be a copy of the sources elsewhere: equal files have the same object.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    shared = digest(headers, " ".join(command))

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}-{digest([source], shared)}.o"
        if not result.exists():
            partial = result.with_suffix(f".{os.getpid()}")
            files = ("-x", "c++", "-c", source, "-o", partial)
            subprocess.run([*command, f"-I{csrc}", *files], check=True)
            partial.rename(result)
        return result

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: Sequence[Path], target: Path, flags: Sequence[str]) -> Path:
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *objects, "-o", partial, *flags], check=True)
        partial.rename(target)
    return target


def digest(files: Iterable[Path], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
