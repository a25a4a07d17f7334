"""The digest of the C++ sources: `setup.py` stores it in the binary, `_extension` checks it.

It imports nothing from the package, because `setup.py` runs it as a file.
"""

from __future__ import annotations

import hashlib
import os

__all__ = ["SUFFIXES", "source_digest"]

SUFFIXES = (".cpp", ".h", ".inl", ".cu", ".cuh")


def source_digest(folder: str | os.PathLike[str]) -> str:
    """Returns 16 hex digits that change with the name or content of any C++ source under `folder`.

    Hidden files and other suffixes do not count: an editor's swap file does not outdate a build.
    """
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                content = file.read()
            digest.update(f"{os.path.relpath(path, folder)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
