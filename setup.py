"""Builds `rnn_ext._C`; all else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NoReturn

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402


def fail(reason: str) -> NoReturn:
    raise SystemExit(f"rnn_ext cannot be built: {reason}.")


if sys.platform not in ("linux", "darwin") or sys.maxsize < 2**32:
    fail(
        "it supports 64-bit Linux and macOS, and this Python is "
        f"{platform.architecture()[0]} on {platform.system()}"
    )

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ModuleNotFoundError as error:
    fail(
        f"{error.name} is missing: run `pip install 'torch>=2.10' pybind11 ninja` "
        "or leave out --no-build-isolation"
    )

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
    fail(
        f"it needs torch 2.10 or newer and found torch {torch.__version__}: "
        "run `pip install --upgrade torch`"
    )

INSTALL_COMPILER = "`sudo apt install g++`, `sudo dnf install gcc-c++` or `xcode-select --install`"


def is_set(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


DEBUG = is_set("DEBUG")


def find_compiler() -> str:
    """Return the C++ compiler to use: $CXX, or the first of the usual names."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next(filter(shutil.which, names), None)
    if compiler is None:
        fail(f"no C++ compiler ({', '.join(names)}) was found: install one with {INSTALL_COMPILER}")
    # A macro that the compiler does not define stays as it is written.
    probe = subprocess.run(
        [compiler, "-x", "c++", "-E", "-P", "-"],
        input="__clang_major__ __GNUC__",
        capture_output=True,
        text=True,
    )
    versions = probe.stdout.split()
    if probe.returncode != 0 or len(versions) != 2:
        complaint = (probe.stderr.strip() or "it printed nothing").splitlines()[-1]
        fail(f"the C++ compiler {compiler} does not work ({complaint}): see {INSTALL_COMPILER}")
    clang, gcc = versions
    name, version, oldest = ("clang", clang, 14) if clang.isdigit() else ("gcc", gcc, 11)
    if not version.isdigit() or int(version) < oldest:
        fail(
            f"it needs a C++20 compiler (gcc 11 or clang 14, or newer) and {compiler} is "
            f"{name} {version}: install a newer one and name it, as in CXX=g++-12"
        )
    return compiler


def find_cuda(compiler: str) -> cuda_build.Toolkit | None:
    """Return what to build the CUDA kernels with; None to leave them out."""
    if is_set("FORCE_CPU"):
        if is_set("FORCE_CUDA"):
            fail("FORCE_CPU and FORCE_CUDA are both set: unset one of them")
        return None
    try:
        return cuda_build.find_toolkit(compiler)
    except cuda_build.UnusableError as reason:
        if is_set("FORCE_CUDA"):
            fail(f"FORCE_CUDA is set, but {reason}")
        print(f"rnn_ext is built without CUDA kernels: {reason}.")
        return None


def check_python_headers() -> None:
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        fail(
            f"Python's C headers are missing: install them with `sudo apt install {python}-dev` "
            f"or `sudo dnf install {python}-devel`"
        )


class build_ext(BuildExtension):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Ninja is looked for on PATH, where an environment that is not activated has none.
        scripts = sysconfig.get_path("scripts")
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
        super().__init__(*args, **kwargs)

    def build_extensions(self) -> None:
        check_python_headers()
        # Python's own settings may name another compiler for the link.
        os.environ["CXX"] = compiler = find_compiler()
        self.compiler.set_executable("compiler_cxx", compiler)
        # An editable install gives a temporary folder here, in which ninja would start anew.
        platform_tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.build_temp = str(ROOT / "build" / f"temp.{platform_tag}")
        self.define_constants(extension)
        try:
            if toolkit := find_cuda(compiler):
                self.add_cuda(extension, toolkit)
            self.build_one(extension)
        except cuda_build.CompileError as error:
            print(error.output, file=sys.stderr)
            fail(f"{error} (see above): set FORCE_CPU=1 to leave the CUDA kernels out")
        except RuntimeError as error:  # ninja's; the compiler's own messages stand above it
            fail(str(error))
        self.extensions = [extension, node] if self.build_node() else [extension]

    def build_node(self) -> bool:
        """Build the autograd node; False where this torch's C++ API is another."""
        try:
            self.build_one(node)
        except RuntimeError:
            print(
                "rnn_ext is built without the autograd node in C++, which does not fit torch "
                f"{torch.__version__} (see above): calls are recorded in Python."
            )
            return False
        return True

    def build_one(self, built: Extension) -> None:
        self.extensions = [built]
        super().build_extensions()

    def add_cuda(self, extension: Extension, toolkit: cuda_build.Toolkit) -> None:
        """Adds the kernels and their driver.

        CUDA's runtime goes in statically, and none of torch's CUDA libraries is named: the binary
        loads on machines without a GPU and under torch's CPU builds.
        """
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        kernels = [str(path) for path in toolkit.build(Path(self.build_temp, "cuda"), jobs)]
        extension.sources += cuda_build.DRIVER
        extension.define_macros.append(("RNN_EXT_CUDA_ARCHS", f'"{" ".join(toolkit.archs)}"'))
        extension.extra_compile_args.append(f"-isystem{toolkit.include}")
        extension.extra_objects += kernels
        runtime = toolkit.cudart
        extension.extra_link_args += [f"-Wl,--exclude-libs,{runtime.name}", str(runtime)]
        extension.extra_link_args += ["-ldl", "-lrt", "-lpthread"]

    def define_constants(self, extension: Extension) -> None:
        extension.define_macros += [
            ("RNN_EXT_VERSION", f'"{self.distribution.get_version()}"'),
            ("RNN_EXT_TORCH_BUILT", f'"{torch.__version__}"'),
        ]
        # In a header, not in a flag: a flag that changes with each source recompiles them all.
        source_digest = runpy.run_path(str(ROOT / "rnn_ext" / "_digest.py"))["source_digest"]
        content = f'#define RNN_EXT_SOURCE_DIGEST "{source_digest(ROOT / "csrc")}"\n'
        header = Path(self.build_temp, "include", "rnn_ext_source_digest.h")
        header.parent.mkdir(parents=True, exist_ok=True)
        if not header.is_file() or header.read_text() != content:
            header.write_text(content)
        for built in (extension, node):
            built.include_dirs.insert(0, str(header.parent))


def relative(*patterns: str) -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)
    )


# PyPI's pybind11 goes before the copy that comes with torch.
INCLUDE_DIRS = [str(ROOT / "csrc"), pybind11.get_include()]
COMPILE_ARGS = [
    "-std=c++20",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # As system headers, torch's warn of nothing. (That leaves them out of ninja's dependencies:
    # a macro with torch's version recompiles all for a new torch.)
    *(f"-isystem{path}" for path in include_paths()),
    # Python's own flags ask for -g, which makes the binary several times as large.
    *(["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]),
]

extension = CppExtension(
    "rnn_ext._C",
    relative("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/text/*.cpp"),
    include_dirs=[*INCLUDE_DIRS],
    define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
    extra_compile_args=[
        *COMPILE_ARGS,
        "-fno-math-errno",
        "-fno-trapping-math",
        # The kernels say where a product and a sum are rounded as one.
        "-ffp-contract=off",
    ],
)
# Before torch's libraries, which have copies of a few of its symbols, without their versions.
STANDARD_LIBRARY = ["stdc++"] if sys.platform == "linux" else []
# The C shims live there; the other libraries of CppExtension are for torch's C++ API.
extension.libraries = [*STANDARD_LIBRARY, "torch_cpu"]

# For this torch release alone: it uses torch's C++ API, which has no stable ABI.
NODE = runpy.run_path(str(ROOT / "rnn_ext" / "_node_name.py"))["node_name"](torch.__version__)
node = CppExtension(
    f"rnn_ext.{NODE}",
    relative("csrc/eager/*.cpp", "csrc/source_digest.cpp"),
    include_dirs=[*INCLUDE_DIRS],
    define_macros=[("RNN_EXT_NODE_MODULE", NODE)],
    extra_compile_args=[*COMPILE_ARGS],
)
node.libraries = [*STANDARD_LIBRARY, "c10", "torch_cpu", "torch_python"]

setup(ext_modules=[extension, node], cmdclass={"build_ext": build_ext})
