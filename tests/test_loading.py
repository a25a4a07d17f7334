"""Loading the binary: the messages if it is missing, stale, or for another Python."""

import importlib
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import rnn_ext
from rnn_ext import _digest

PACKAGE = Path(rnn_ext.__file__).parent


@pytest.fixture
def package(tmp_path):
    """An empty package with our loader in it, as it lies in site-packages."""
    folder = tmp_path / f"loader_of_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in ("_extension.py", "_digest.py", "_node_name.py"):
        shutil.copy(PACKAGE / name, folder)
    return folder


@pytest.fixture
def load(package, monkeypatch):
    """That package's `load`, imported when first called."""
    monkeypatch.syspath_prepend(package.parent)
    return lambda: importlib.import_module(f"{package.name}._extension").load()


def make_source_tree(root):
    (root / "csrc").mkdir()
    (root / "csrc" / "ops.cpp").write_text("int x;\n")
    (root / "pyproject.toml").touch()


def write_module(package, source_digest):
    (package / "_C.py").write_text(f"source_digest = {source_digest!r}\n")


def sentence(load):
    with pytest.raises(ImportError) as caught:
        load()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_error_for_an_old_torch_says_how_to_upgrade(load, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    text = sentence(load)
    assert "needs torch 2.10 or newer and found torch 2.9.1+cpu" in text
    assert "pip install --upgrade torch" in text


def test_check_of_the_release_accepts_torch_2_10(package, load, monkeypatch):
    write_module(package, "")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert load().__name__ == f"{package.name}._C"


def test_tree_that_was_never_built_says_make_build(package, load):
    make_source_tree(package.parent)
    text = sentence(load)
    assert "never built" in text
    assert f"`make build` in {package.parent}" in text
    assert "another folder" in text


def test_installed_package_without_its_binary_says_install_again(package, load):
    text = sentence(load)
    assert f"missing from {package}" in text
    assert f"install rnn_ext again with {sys.executable}" in text


@pytest.mark.parametrize("in_tree", [False, True])
def test_binary_for_another_python_is_named(package, load, in_tree):
    binary = package / "_C.cpython-39-x86_64-linux-gnu.so"
    binary.touch()
    if in_tree:
        make_source_tree(package.parent)
    text = sentence(load)
    assert f"built for another Python or machine ({binary.name})" in text
    assert platform.python_version() in text
    assert ("make build" in text) == in_tree


def test_binary_that_does_not_load_says_why(package, load):
    binary = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    binary.write_bytes(b"\x7fELF of some other machine")
    text = sentence(load)
    assert "does not load on this machine" in text
    assert binary.name in text
    assert "install rnn_ext again" in text


def test_error_that_the_binary_itself_raises_passes_unchanged(package, load):
    (package / "_C.py").write_text("raise ImportError('RNN_EXT_ISA is wrong.')\n")
    assert sentence(load) == "RNN_EXT_ISA is wrong."


def test_changed_source_says_make_build_until_it_is_built(package, load):
    make_source_tree(package.parent)
    csrc = package.parent / "csrc"
    write_module(package, _digest.source_digest(csrc))
    load()
    (csrc / "ops.cpp").write_text("int y;\n")
    text = sentence(load)
    assert "changed after its binary was built" in text
    assert "`make build`" in text


def test_ignores_csrc_of_another_project_beside_an_installed_package(package, load):
    write_module(package, "0")
    (package.parent / "csrc").mkdir()
    load()


def test_digest_sees_content_names_and_headers_but_no_hidden_or_other_files(tmp_path):
    (tmp_path / "cpu").mkdir()
    seen = {_digest.source_digest(tmp_path)}
    for name, content in [
        ("ops.cpp", "a"),
        ("ops.cpp", "b"),
        ("cpu/kernels.inl", ""),
        ("cpu/kernels.h", ""),
        ("cpu/step.cuh", ""),
    ]:
        (tmp_path / name).write_text(content)
        seen.add(_digest.source_digest(tmp_path))
    (tmp_path / "ops.cpp").rename(tmp_path / "cpu" / "ops.cpp")
    seen.add(_digest.source_digest(tmp_path))
    assert len(seen) == 7
    (tmp_path / ".ops.cpp").touch()
    (tmp_path / "ops.cpp~").touch()
    assert _digest.source_digest(tmp_path) in seen


def test_the_node_of_another_torch_release_is_not_loaded(package, monkeypatch):
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delenv("RNN_EXT_NODE", raising=False)
    write_module(package, "a digest")
    node = package / "_node_2_99_0.py"
    node.write_text("source_digest = 'a digest'\n")
    load_node = importlib.import_module(f"{package.name}._extension").load_node
    assert load_node() is None
    # CPU and CUDA builds of a release share its C++ API.
    for version in ("2.99.0", "2.99.0+cu130"):
        monkeypatch.setattr(torch, "__version__", version)
        assert load_node().source_digest == "a digest"
    monkeypatch.setenv("RNN_EXT_NODE", "0")
    assert load_node() is None


def test_a_node_of_other_sources_is_not_used(package, monkeypatch):
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delenv("RNN_EXT_NODE", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    write_module(package, "a digest")
    (package / "_node_2_99_0.py").write_text("source_digest = 'another'\n")
    assert importlib.import_module(f"{package.name}._extension").load_node() is None
