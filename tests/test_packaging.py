"""The package as a whole: how it is built, and what its wheels contain."""

import ast
import ctypes
import importlib
import importlib.metadata
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools
import torch
from support.compile import compiler as find_compiler

import rnn_ext
from rnn_ext import _C, _digest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402

PACKAGE = Path(rnn_ext.__file__).parent


def test_version_is_the_same_in_binary_metadata_and_build_info():
    assert rnn_ext.__version__ == importlib.metadata.version("rnn_ext")
    assert _C.build_info()["version"] == rnn_ext.__version__


def test_stub_lists_exactly_the_public_names_of_the_binary():
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    listed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    listed |= {
        node.target.id
        for node in stub.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert listed == {name for name in dir(_C) if not name.startswith("_")}


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def libraries_needed(binary):
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-dW", binary)))


def assert_needs_only_the_c_shims(binary):
    symbols = output_of("nm", "-DC", "--undefined-only", binary)
    assert re.search(r"\baoti_torch_", symbols)
    assert not re.findall(r".*\b(?:at|c10|torch|caffe2)::.*", symbols)
    of_torch = {n for n in libraries_needed(binary) if re.search("torch|c10|cuda", n)}
    assert of_torch == {"libtorch_cpu.so"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_binary_needs_only_torchs_c_shims():
    assert_needs_only_the_c_shims(str(_C.__file__))


# Of these, torch's libraries have copies without versions, which another build of torch may lack.
@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_binaries_take_the_symbols_of_the_standard_library_from_it():
    for binary in PACKAGE.glob("*.so"):
        symbols = output_of("nm", "-DC", "--undefined-only", binary)
        assert re.search(r" U std::.*@GLIBCXX_", symbols)
        assert re.findall(r" U std::[^@]*$", symbols, re.MULTILINE) == []


# All of them use symbols that came after glibc 2.28 and gcc 8.
NEWER = """
#include <cmath>
#include <memory>
#include <sstream>
#include <stdexcept>

extern "C" double exponential(double x) { return std::exp(x); }
extern "C" std::size_t length(std::size_t count, int number) {
  const std::shared_ptr<int[]> numbers(new int[count]);
  std::ostringstream text;
  text << (numbers[0] = number);
  return std::move(text).str().size();
}
extern "C" bool is_too_long(std::size_t count) {
  try {
    return length(count, 0) == 0;
  } catch (const std::bad_alloc&) {
    return true;
  }
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_linked_with_old_libraries_a_binary_asks_for_old_symbols_only(tmp_path):
    old_libraries = runpy.run_path(str(ROOT / "wheels" / "old_libraries.py"))
    compiler = find_compiler()
    old_libraries["write_libraries"](tmp_path / "old", compiler)
    (tmp_path / "newer.cpp").write_text(NEWER)
    options = ("-std=c++20", "-O2", "-fPIC", "-shared", "-Wl,-z,defs,--exclude-libs,ALL")
    binary = tmp_path / "newer.so"
    folder = f"-L{tmp_path / 'old'}"
    output_of(compiler, *options, folder, tmp_path / "newer.cpp", "-o", binary)

    versions = re.findall(r"@((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)", output_of("nm", "-D", binary))
    assert [v for v in versions if not old_libraries["is_allowed"](v)] == []
    library = ctypes.CDLL(str(binary))
    library.exponential.argtypes = [ctypes.c_double]
    library.exponential.restype = ctypes.c_double
    assert library.exponential(0.5) == math.exp(0.5)
    assert library.length(3, 12345) == 5
    assert library.is_too_long(ctypes.c_size_t(-1))


@pytest.fixture
def setup_py(monkeypatch):
    """Runs setup.py up to its call of `setup`; returns its variables."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return lambda: runpy.run_path(str(ROOT / "setup.py"))


def test_build_on_windows_names_the_platforms(setup_py, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="supports 64-bit Linux and macOS"):
        setup_py()


def test_build_with_an_old_torch_says_upgrade(setup_py, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(SystemExit, match=r"found torch 2\.9\.1: run `pip install --upgrade torch`"):
        setup_py()


def test_build_without_a_compiler_says_how_to_get_one(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"\(c\+\+, g\+\+, clang\+\+\) was found: install .*apt"):
        setup_py()["find_compiler"]()


@pytest.mark.parametrize(
    ("prints", "complaint"),
    [
        ("__clang_major__ 10", "is gcc 10: install a newer one"),
        ("13 4", "is clang 13: install a newer one"),
        ("", "does not work"),
    ],
)
def test_build_with_an_unsuitable_compiler_says_so(
    setup_py, monkeypatch, tmp_path, prints, complaint
):
    compiler = tmp_path / "cxx"
    compiler.write_text(f"#!/bin/sh\necho {prints}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(SystemExit, match=complaint):
        setup_py()["find_compiler"]()


NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def test_cuda_architectures_follow_the_list_in_pytorchs_format():
    known = ("75", "80", "90", "90a", "120")
    assert cuda_build.architectures(None, known) == ("75", "80", "90", "120+PTX")
    assert cuda_build.architectures("8.0;9.0+PTX", known) == ("80", "90+PTX")
    assert cuda_build.architectures("7.5 9.0a", known) == ("75", "90a")
    for wanted in ("6.0", "8.7", "Hopper", "9.0;nonsense"):
        with pytest.raises(cuda_build.UnusableError, match=wanted.split(";")[-1]):
            cuda_build.architectures(wanted, known)


def test_spilled_registers_are_found_in_the_compilers_report():
    report = (
        "ptxas info    : Function properties for {}\n"
        "    {} bytes stack frame, {} bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 64 registers\n"
    )
    text = report.format("clean", 0, 0) + report.format("local_array", 64, 0)
    result = cuda_build.faults(text + report.format("spilling", 8, 8))
    assert [fault.split()[0] for fault in result] == ["local_array", "spilling"]


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("FORCE_CPU", raising=False)
    monkeypatch.delenv("FORCE_CUDA", raising=False)


@pytest.mark.usefixtures("no_nvcc")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no nvcc"),
        ("echo unsupported host compiler; exit 1", "unsupported host compiler"),
        ("echo; exit 1", "non-zero exit status 1"),
        ("exit 0", "does not tell where its toolkit is"),
    ],
    ids=["absent", "complaining", "silent", "empty"],
)
def test_build_without_a_working_nvcc_leaves_cuda_out_and_says_so(
    setup_py, tmp_path, script, reason, capsys
):
    if script is not None:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\n{script}\n")
        nvcc.chmod(0o755)
    assert setup_py()["find_cuda"]("c++") is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("rnn_ext is built without CUDA kernels: ")
    assert reason in line


@pytest.mark.usefixtures("no_nvcc")
def test_build_that_requires_cuda_fails_without_nvcc(setup_py, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA is set, but there is no nvcc"):
        setup_py()["find_cuda"]("c++")
    monkeypatch.setenv("FORCE_CPU", "1")
    with pytest.raises(SystemExit, match="both set"):
        setup_py()["find_cuda"]("c++")


def test_build_without_cuda_does_not_look_for_it(setup_py, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_CPU", "1")
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    assert setup_py()["find_cuda"]("c++") is None
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("no_nvcc")
def test_error_of_nvcc_is_shown_with_a_way_to_build_without_cuda(setup_py, monkeypatch, capsys):
    def fail(*_):
        raise cuda_build.CompileError("nvcc", cuda_build.KERNELS[0], "error: too new a compiler")

    names = setup_py()
    monkeypatch.setattr(names["build_ext"], "add_cuda", fail)
    monkeypatch.setattr(cuda_build, "find_toolkit", lambda _: "a toolkit")
    distribution = setuptools.Distribution({"ext_modules": [names["extension"]]})
    command = names["build_ext"](distribution)
    command.ensure_finalized()
    command.compiler = SimpleNamespace(set_executable=lambda *_: None)
    with pytest.raises(SystemExit, match=r"could not compile csrc/cuda/.*: set FORCE_CPU=1"):
        command.build_extensions()
    assert "too new a compiler" in capsys.readouterr().err


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that is built from an sdist, with CUDA kernels where there is nvcc."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_CPU", "PYTHONPATH")}
    if NVCC:
        environment |= {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}
    sdist = (sys.executable, "setup.py", "-q", "sdist", "-d", folder)
    subprocess.run(sdist, cwd=ROOT, env=environment, check=True)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-build-isolation")
    subprocess.run(
        [*pip, "--no-deps", "-w", folder, *folder.glob("*.tar.gz")], env=environment, check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def cuda_wheel(wheel):
    """A folder with the package of a wheel that holds CUDA kernels."""
    if NVCC is None:
        pytest.skip("there is no nvcc")
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_with(site, program):
    """Runs a program that finds the package in `site`; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import rnn_ext, torch\n{program}"],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_wheel_with_cuda_kernels_works_on_a_machine_without_a_gpu(cuda_wheel):
    printed = run_with(
        cuda_wheel,
        "assert not torch.cuda.is_available()\n"
        "output, _ = rnn_ext.RNN(3, 4)(torch.randn(5, 2, 3))\n"
        "output.sum().backward()\n"
        "print(rnn_ext.__file__, rnn_ext.build_info()['cuda_archs'])\n",
    )
    assert printed.startswith(str(cuda_wheel))
    assert printed.endswith("['80', '90+PTX']")
    (binary,) = (cuda_wheel / "rnn_ext").glob("_C.*.so")
    assert_needs_only_the_c_shims(binary)


@pytest.mark.slow
def test_without_a_driver_the_cuda_kernels_say_so(cuda_wheel):
    reason = run_with(cuda_wheel, "print(rnn_ext._core.cuda.limits(0))")
    assert reason.startswith("rnn_ext: the CUDA kernels cannot run here: ")
    assert len(reason.splitlines()) == 1


@pytest.mark.slow
def test_cuda_ops_refuse_input_elsewhere(cuda_wheel):
    # As if only the weights were on a device.
    reason = run_with(
        cuda_wheel,
        "x, w = torch.zeros(5, 2, 3), [torch.zeros(4, 3), torch.zeros(4, 4)]\n"
        "op = torch.ops.rnn_ext.rnn_forward.default\n"
        "try:\n"
        "    op._op_dk(torch._C.DispatchKey.CUDA, x, None, w, None, 'tanh', False)\n"
        "except RuntimeError as error:\n"
        "    print(error)\n",
    )
    assert reason == "rnn_ext: input must be on a CUDA device, as another argument is"


def test_builds_without_the_node_if_it_does_not_fit_torchs_api(setup_py, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_CPU", "1")
    names = setup_py()
    built = []

    def build(command):
        (extension,) = command.extensions
        if extension is names["node"]:
            raise RuntimeError("Error compiling objects for extension")
        built.append(extension.name)

    monkeypatch.setattr(names["BuildExtension"], "build_extensions", build)
    extensions = [names["extension"], names["node"]]
    command = names["build_ext"](setuptools.Distribution({"ext_modules": extensions}))
    command.ensure_finalized()
    command.compiler = SimpleNamespace(set_executable=lambda *_: None)
    command.build_extensions()
    assert built == ["rnn_ext._C"]
    assert command.extensions == [names["extension"]]
    assert "built without the autograd node in C++" in capsys.readouterr().out


@pytest.mark.slow
def test_wheel_from_the_sdist_works_in_an_environment_of_its_own(wheel, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    data = {"rnn_ext/_C.pyi", "rnn_ext/py.typed"}
    assert data <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rnn_ext", "rnn_ext_command.py"}
    assert not [name for name in names if name.endswith(_digest.SUFFIXES)]
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    assert [r for r in required if "extra ==" not in r] == ["torch>=2.10"]

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Torch comes from the environment that runs the tests; a second copy would take a minute.
    Path(site, "torch.pth").write_text(sysconfig.get_path("purelib"))
    where = run(python, "-I", "-c", "import rnn_ext; print(rnn_ext.__file__)").strip()
    assert Path(where).is_relative_to(site)
    node = run(python, "-I", "-c", "import rnn_ext; print(rnn_ext.build_info()['autograd_node'])")
    assert node.strip() == "C++"
    assert rnn_ext.__version__ in run(tmp_path / "venv" / "bin" / "rnn-ext", "info")
