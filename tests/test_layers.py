"""The command line and the text generator use only the public API."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import rnn_ext

PACKAGE = Path(rnn_ext.__file__).parent
# The modules that each may import besides its own. The command line names commands as strings.
ALLOWED = {"charlm": {"rnn_ext"}, "cli": {"rnn_ext", "rnn_ext.charlm"}}
FILES = [(name, path) for name in ALLOWED for path in sorted((PACKAGE / name).glob("*.py"))]


def imports(layer, path):
    """(module, name) of every import from this package outside of the layer itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rnn_ext":
                    yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            package = ["rnn_ext", layer][: 3 - node.level] if node.level else []
            module = ".".join([*package, *filter(None, [node.module])])
            if module.startswith("rnn_ext") and not module.startswith(f"rnn_ext.{layer}"):
                for alias in node.names:
                    yield module, alias.name


@pytest.mark.parametrize(
    ("layer", "path"), FILES, ids=[f"{layer}/{path.name}" for layer, path in FILES]
)
def test_imports_public_names_only(layer, path):
    for module, name in imports(layer, path):
        if name is not None and f"{module}.{name}" in ALLOWED[layer]:
            continue
        assert module in ALLOWED[layer], f"{path.name} imports {module}"
        assert name in import_module(module).__all__, f"{path.name}: {module}.{name} is private"


@pytest.mark.parametrize(
    ("layer", "path"), FILES, ids=[f"{layer}/{path.name}" for layer, path in FILES]
)
def test_calls_no_op_by_name(layer, path):
    assert "ops.rnn_ext" not in path.read_text(encoding="utf-8")


def test_the_check_sees_private_imports(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("from .. import _C\nfrom ..dispatch import route\nfrom .model import x\n")
    assert list(imports("charlm", file)) == [("rnn_ext", "_C"), ("rnn_ext.dispatch", "route")]
