"""How nvcc compiles the CUDA kernels: `setup.py` uses it; as a program it is `make cuda-check`.

It imports nothing but the standard library. The C++ part beside the kernels is the host
compiler's, as everywhere; torch has no part in either.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
KERNELS = sorted(CSRC.glob("cuda/*.cu"))
DRIVER = ("csrc/cuda/driver.cpp", "csrc/cuda/runtime.cpp")

# The GPUs since 2018, as far as the nvcc in use knows them.
DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
OLDEST_ARCH = 70

# `constexpr` is enough for device code to call what host code shares with it.
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}")


class UnusableError(Exception):
    """Why CUDA kernels cannot be built here: the rest of a sentence."""


class CompileError(Exception):
    """Which kernels nvcc could not compile: a clause. `output` is what it printed."""

    def __init__(self, nvcc: str, source: Path, output: str) -> None:
        super().__init__(f"{nvcc} could not compile {source.relative_to(ROOT)}")
        self.output = output


@dataclass(frozen=True)
class Toolkit:
    """An nvcc that works with the host compiler."""

    nvcc: str
    compiler: str
    include: Path
    cudart: Path  # the static library
    archs: tuple[str, ...]  # "90", or "90+PTX" for the intermediate code too

    def compile(self, source: Path, target: Path, archs: tuple[str, ...], *flags: str) -> str:
        """Compile a .cu file; return what the compiler printed.

        Raises:
            CompileError: if it did not compile.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        command = self._command(source, target, archs, *flags)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise CompileError(self.nvcc, source, done.stdout)
        return done.stdout

    def build(self, folder: Path, jobs: int) -> list[Path]:
        """The objects of all kernels, compiled where they are out of date."""
        newest = max(p.stat().st_mtime for p in CSRC.glob("c[ou]*/*") if p.suffix != ".cpp")
        objects = []
        for source in KERNELS:
            target = folder / f"{source.stem}.o"
            flags = ("-Xcompiler=-fPIC,-fvisibility=hidden",)
            command = "\n".join(self._command(source, target, self.archs, *flags))
            stamp = target.with_suffix(".command")
            is_current = (
                stamp.is_file()
                and stamp.read_text() == command
                and target.stat().st_mtime >= newest
            )
            if not is_current:
                stamp.unlink(missing_ok=True)
                print(self.compile(source, target, self.archs, *flags, f"--threads={jobs}"), end="")
                stamp.write_text(command)
            objects.append(target)
        return objects

    def _command(
        self, source: Path, target: Path, archs: tuple[str, ...], *flags: str
    ) -> list[str]:
        codes = []
        for arch in archs:
            number, _, ptx = arch.partition("+")
            codes.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if ptx:
                codes.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        files = ("-c", str(source), "-o", str(target))
        return [self.nvcc, f"-ccbin={self.compiler}", *FLAGS, *codes, *flags, *files]


def find_toolkit(compiler: str) -> Toolkit:
    """The CUDA toolkit to build with.

    `CUDA_HOME` says where it is, else the first nvcc on PATH; `TORCH_CUDA_ARCH_LIST` names the
    architectures, as in PyTorch.

    Raises:
        UnusableError: if there is none, it does not work, or the list does not fit it.
    """
    home = os.environ.get("CUDA_HOME")
    nvcc = f"{home}/bin/nvcc" if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not shutil.which(nvcc):
        raise UnusableError(f"there is no nvcc ({nvcc})")
    codes = _run(nvcc, "--list-gpu-code")
    known = tuple(re.findall(r"sm_(\d+[a-z]?)", codes))
    settings = _run(nvcc, "--dryrun", "-c", str(KERNELS[0]))
    match = re.search(r"^#\$ TOP=(.*)$", settings, re.MULTILINE)
    if match is None:
        raise UnusableError(f"{nvcc} does not tell where its toolkit is")
    top = Path(match[1])
    toolkit = Toolkit(
        nvcc,
        compiler,
        _first(top, "include/cuda_runtime.h").parent,
        _first(top, "lib64/libcudart_static.a", "lib/libcudart_static.a"),
        architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), known),
    )
    with tempfile.TemporaryDirectory() as folder:  # the host compiler may be too new for it
        trial = Path(folder, "trial.cu")
        trial.write_text("#include <span>\n__global__ void kernel() {}\n")
        target = str(trial.with_suffix(".o"))
        _run(nvcc, f"-ccbin={compiler}", *FLAGS, "-c", str(trial), "-o", target)
    return toolkit


def architectures(wanted: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The architectures to compile for: `wanted` in PyTorch's format, or all that make sense."""
    if not wanted:
        chosen = [arch for arch in DEFAULT_ARCHS if arch in known]
        if not chosen:
            raise UnusableError(f"nvcc knows no architecture from {DEFAULT_ARCHS[0]} on")
        return (*chosen[:-1], f"{chosen[-1]}+PTX")
    result = []
    for name in re.split(r"[;,\s]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.?(\d[a-z]?)(\+PTX)?", name)
        arch = match[1] + match[2] if match else ""
        if arch not in known or int(arch.rstrip("abcdefghijklmnopqrstuvwxyz")) < OLDEST_ARCH:
            raise UnusableError(
                f"TORCH_CUDA_ARCH_LIST names {name}, and nvcc compiles these kernels for "
                f"{', '.join(known)}"
            )
        result.append(arch + ((match and match[3]) or ""))
    return tuple(result)


def _first(top: Path, *names: str) -> Path:
    candidates = [path for name in names for path in (*top.glob(f"targets/*/{name}"), top / name)]
    for path in candidates:
        if path.is_file():
            return path
    raise UnusableError(f"the CUDA toolkit in {top} has no {names[-1]}")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", None) or ""
        complaint = (output.strip() or str(error)).splitlines()[-1]
        raise UnusableError(f"{command[0]} does not work ({complaint})") from None
    return done.stdout


def check(toolkit: Toolkit, jobs: int) -> list[str]:
    """Compile every kernel for every architecture; return what is wrong with the results."""
    flags = ("-Xptxas=-v", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas")

    def check_one(job: tuple[Path, str]) -> list[str]:
        source, arch = job
        target = ROOT / "build" / "cuda-check" / f"{source.stem}-{arch}.o"
        try:
            report = toolkit.compile(source, target, (arch,), *flags)
        except CompileError as error:
            return [f"{error} for {arch}:\n{error.output}"]
        return [f"{source.name} for {arch}: {fault}" for fault in faults(report)]

    work = [(source, arch) for source in KERNELS for arch in toolkit.archs]
    with ThreadPoolExecutor(jobs) as pool:
        return [fault for faults in pool.map(check_one, work) for fault in faults]


def faults(report: str) -> list[str]:
    """The kernels in a report of `ptxas -v` that spill registers or keep arrays in memory."""
    pattern = r"Function properties for (\S+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill"
    return [
        f"{kernel} has a stack frame of {stack} bytes and spills {spills}"
        for kernel, stack, spills in re.findall(pattern, report)
        if int(stack) or int(spills)
    ]


def main() -> int:
    try:
        toolkit = find_toolkit(os.environ.get("CXX") or "c++")
    except UnusableError as error:
        print(f"no .cu file was compiled: {error}")
        return 0
    errors = check(toolkit, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    print(
        "\n".join(errors)
        or f"nvcc compiled {len(KERNELS)} .cu files for {', '.join(toolkit.archs)}"
    )
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
