"""Loads the compiled module `_C`; an error says in one sentence what is wrong and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch

from ._digest import source_digest
from ._node_name import node_name

__all__ = ["load", "load_node"]

_PACKAGE = Path(__file__).parent
_TREE = _PACKAGE.parent
_BUILD = (
    f"run `make build` in {_TREE} (or, in an environment of your own, "
    "`pip install --no-build-isolation -e .` there)"
)


def load() -> ModuleType:
    """Imports and returns `rnn_ext._C`.

    Raises:
        ImportError: torch is older than 2.10, the package has no binary for this Python and
            machine, the binary does not load, or it was built from other sources than those in
            the source tree.
    """
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < (2, 10):
        raise ImportError(
            f"rnn_ext needs torch 2.10 or newer and found torch {torch.__version__}: "
            f"run `{sys.executable} -m pip install --upgrade torch`."
        )
    try:
        module = importlib.import_module("._C", __package__)
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}._C":
            raise
        raise ImportError(_missing()) from None
    except ImportError as error:
        # Errors of the dynamic loader have a path; those of `_C` itself need no explanation.
        if error.path is None:
            raise
        raise ImportError(
            f"rnn_ext's C++ part does not load on this machine ({error}): {_rebuild()}."
        ) from None
    if _is_source_tree() and module.source_digest != source_digest(_TREE / "csrc"):
        raise ImportError(
            f"The C++ sources of rnn_ext changed after its binary was built: {_BUILD}."
        )
    return module


def load_node() -> ModuleType | None:
    """Imports and returns the autograd node in C++; None if none was built for this torch release.

    One that an earlier build left behind does not count: it calls functions of `_C`, whose types
    may have changed. RNN_EXT_NODE=0 switches the node off, to measure its gain.
    """
    name = f"{__package__}.{node_name(torch.__version__)}"
    if os.environ.get("RNN_EXT_NODE") == "0" or importlib.util.find_spec(name) is None:
        return None
    node = importlib.import_module(name)
    binary = importlib.import_module("._C", __package__)
    return node if node.source_digest == binary.source_digest else None


def _missing() -> str:
    here = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    others = sorted(path.name for path in _PACKAGE.glob("_C.*.so"))
    if others:
        return (
            f"rnn_ext's C++ part was built for another Python or machine ({', '.join(others)}), "
            f"not for {here}: {_rebuild()}."
        )
    if _is_source_tree():
        return (
            f"rnn_ext is imported from its source tree, where its C++ part was never built: "
            f"{_BUILD}, or start Python in another folder to use an installed rnn_ext."
        )
    return f"rnn_ext's C++ part is missing from {_PACKAGE}: {_rebuild()}."


def _rebuild() -> str:
    return _BUILD if _is_source_tree() else f"install rnn_ext again with {sys.executable}"


def _is_source_tree() -> bool:
    return (_TREE / "csrc").is_dir() and (_TREE / "pyproject.toml").is_file()
