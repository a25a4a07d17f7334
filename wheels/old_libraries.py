"""Writes libraries to link with, so that binaries built here run on older systems, too.

A symbol of the C and C++ libraries has the version that it came with, and a manylinux tag limits
the versions that a wheel may ask for. The linker keeps to them if it sees no newer ones: it is
given copies of the libraries, without code, that have the older symbols only. The few newer ones
that a newer compiler's headers need are linked from its static library, as in the manylinux images.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

__all__ = ["write_libraries"]

# The newest versions that manylinux_2_28 has.
NEWEST = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11"}

# Headers of glibc 2.32 and newer declare it, for atomic operations that a lone thread can spare.
NEW_IN_GLIBC = 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;'

ASSEMBLY = {
    "FUNC": ".type {0},@function\n{0}:\n",
    "IFUNC": ".type {0},@function\n{0}:\n",
    "OBJECT": ".type {0},@object\n{0}:\n",
    "TLS": '.section .tbss,"awT",@nobits\n.type {0},@tls_object\n{0}: .zero 8\n.text\n',
}


def write_libraries(folder: Path, compiler: str) -> None:
    """Write what the linker of a C++ compiler finds with -L FOLDER, an absolute path."""
    folder.mkdir(parents=True)

    def find(name: str) -> str:
        return run(compiler, f"-print-file-name={name}").strip()

    for name in ("libc.so.6", "libm.so.6", "libstdc++.so.6"):
        write_stub(folder / name, allowed_symbols(find(name)), compiler)
    run(compiler, "-xc", "-", "-c", "-fPIC", "-o", folder / "new.o", stdin=NEW_IN_GLIBC)
    # A linker script, which names more than the library.
    libc = Path(find("libc.so")).read_text()
    libc = re.sub(r"\S*/libc\.so\.6", f"{folder}/libc.so.6 {folder}/new.o", libc)
    (folder / "libc.so").write_text(libc)
    (folder / "libm.so").symlink_to("libm.so.6")
    libraries = f"{folder}/libstdc++.so.6 {find('libstdc++.a')}"
    (folder / "libstdc++.so").write_text(f"INPUT({libraries})\n")


def allowed_symbols(library: str) -> dict[str, tuple[str, str]]:
    """Return the type and the newest allowed version of each symbol that a library defines."""
    readelf = os.environ.get("READELF") or "readelf"
    found = defaultdict(list)
    for line in run(readelf, "--dyn-syms", "-W", library).splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[3] in ASSEMBLY and fields[6] not in ("UND", "ABS"):
            symbol, _, version = fields[7].replace("@@", "@").partition("@")
            if is_allowed(version):
                found[symbol].append((fields[3], version))
    return {symbol: max(v, key=lambda entry: numbers_in(entry[1])) for symbol, v in found.items()}


def is_allowed(version: str) -> bool:
    """Whether it is a version of those names, and no newer one: GLIBC_2.9, but not GLIBC_2.29."""
    name, _, number = version.partition("_")
    newest = NEWEST.get(name)
    return newest is not None and number[:1].isdigit() and numbers_in(number) <= numbers_in(newest)


def numbers_in(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def write_stub(path: Path, symbols: dict[str, tuple[str, str]], compiler: str) -> None:
    """Write a library with the name of its file that defines these symbols."""
    of_version = defaultdict(list)
    for symbol, (_, version) in symbols.items():
        of_version[version].append(symbol)
    script = path.with_suffix(".versions")
    script.write_text("".join(f"{v} {{ {'; '.join(s)}; }};\n" for v, s in of_version.items()))
    code = [
        f".globl {symbol}\n{ASSEMBLY[kind].format(symbol)}" for symbol, (kind, _) in symbols.items()
    ]
    options = ("-shared", "-nostdlib", f"-Wl,-soname,{path.name},--version-script={script}")
    run(compiler, *options, "-xassembler", "-", "-o", path, stdin="".join(code))


def run(*command: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    write_libraries(Path(sys.argv[1]), os.environ.get("CXX") or "c++")
