"""One file holds all private names of torch, and the package works without any of them."""

import ast
import importlib.util
import operator
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import rnn_ext
from rnn_ext._core import torch_private

HOME = Path(torch_private.__file__)
PACKAGE = HOME.parent
ELSEWHERE = [path for path in PACKAGE.rglob("*.py") if path != HOME]
# Names in torch's modules, not in torch itself.
PRIVATE_ATTRIBUTES = {
    *("_VF", "_current_level", "_dynamo_marked_constant", "_flat_weights", "_flat_weights_names"),
    *("_init_flat_weights", "_orig_mod", "_parameters", "OptimizedModule"),
}


def private_names(source):
    """The private names of torch that a file uses."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            path = ast.unparse(node)
            if node.attr in PRIVATE_ATTRIBUTES or _is_private(path):
                yield path
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from filter(_is_private, (f"{node.module}.{name.name}" for name in node.names))
        elif isinstance(node, ast.Import):
            paths = (name.name for name in node.names)
            yield from filter(_is_private, paths)
        elif isinstance(node, ast.Constant) and node.value in PRIVATE_ATTRIBUTES:
            yield node.value


def _is_private(path):
    ours = path.startswith("torch.ops.rnn_ext.")
    return not ours and bool(re.fullmatch(r"torch(\.\w+)*\._(?!_)[\w.]+", path))


@pytest.mark.parametrize(
    "source",
    [
        "torch._C._is_tracing()",
        "from torch import _VF",
        "from torch._C._functorch import unwrap_if_dead",
        "import torch._dynamo.config",
        "forward_ad._current_level",
        "module._parameters['weight']",
        "getattr(module, '_orig_mod')",
    ],
)
def test_a_private_name_is_seen(source):
    assert list(private_names(source))


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_uses_a_private_name(path):
    assert not list(private_names(path.read_text()))


NAMES = re.findall(r'_find\(\s*"([^"]+)"', HOME.read_text())


def loaded_without(*hidden):
    """The module as it is in a torch without these names."""

    def attrgetter(path):
        return operator_attrgetter("no such name" if path in hidden else path)

    operator_attrgetter = operator.attrgetter
    spec = importlib.util.spec_from_file_location("torch_private_alone", HOME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.object(operator, "attrgetter", attrgetter):
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_this_torch_has_the_name_and_the_file_loads_without_it(name):
    assert operator.attrgetter(name)(torch) is not None
    loaded_without(name)


def test_without_private_names_the_state_of_a_call_is_asked_publicly():
    bare = loaded_without(*NAMES)
    assert not bare.is_tracing()
    assert not bare.is_any_autocast_enabled()
    with torch.autocast("cpu"):
        assert bare.is_any_autocast_enabled()
    traced = []
    torch.jit.trace(lambda x: traced.append(bare.is_tracing()) or x + 1, torch.ones(1))
    assert traced[0]
    # An unknown state counts as a transform, which is slower but never wrong.
    assert bare.is_transformed()
    assert bare.are_functorch_transforms_active()


def test_without_the_level_of_forward_mode_every_call_counts_as_transformed():
    with patch.object(forward_ad, "_current_level"):
        delattr(forward_ad, "_current_level")
        bare = loaded_without()
    assert bare.is_transformed()
    assert not torch_private.is_transformed()


def test_without_private_names_a_function_is_applied_by_its_own_method():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, factor, *tensors):
            ctx.factor = factor
            return factor * torch.stack([t for t in tensors if t is not None]).sum(0)

        @staticmethod
        def backward(ctx, grad):
            return None, ctx.factor * grad, None, ctx.factor * grad

    for module in (torch_private, loaded_without("_C._functorch.unwrap_if_dead")):
        x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        module.apply_function(Sum, (3,), x, None, [w]).sum().backward()
        assert x.grad.tolist() == w.grad.tolist() == [3, 3]


def test_the_weights_of_a_module_are_found_without_its_private_list():
    module = rnn_ext.RNN(2, 3, num_layers=2, bidirectional=True)
    expected = torch_private.flat_weights(module)
    assert len(expected) == 16
    del module._flat_weights_names
    actual = torch_private.flat_weights(module)
    assert [id(w) for w in actual] == [id(w) for w in expected]


def test_weights_are_made_known_to_torchs_op_without_its_private_method():
    module, new = nn.RNN(2, 3), nn.RNN(2, 3)
    module._parameters.update(new.named_parameters())
    assert module._flat_weights[0] is not new.weight_ih_l0
    with patch.object(nn.RNNBase, "_init_flat_weights"):
        del nn.RNNBase._init_flat_weights
        torch_private.refresh_flat_weights(module)
    assert [id(w) for w in module._flat_weights] == [id(w) for w in new.parameters()]


def test_a_constant_for_the_compiler_is_marked_as_torchs_own_decorator_does():
    def marked(): ...

    def by_torch(): ...

    torch_private.assume_constant_result(marked)
    torch.compiler.assume_constant_result(by_torch)
    assert vars(marked) == vars(by_torch) != {}


def test_the_class_of_compiled_modules_is_torchs():
    compiled = torch.compile(nn.Linear(1, 1), backend="eager")
    assert torch_private.compiled_wrapper_type() is type(compiled)


# A program in a torch that has only the given names. Torch itself needs the others, so they are
# hidden from this package alone, while it is imported.
PROGRAM = """
import operator, sys
import torch
from torch import nn
from torch.autograd import forward_ad

attrgetter = operator.attrgetter
hidden = sys.argv[1:]
level = forward_ad.__dict__.pop("_current_level")
operator.attrgetter = lambda path: attrgetter("no such name" if path in hidden else path)
import rnn_ext
operator.attrgetter = attrgetter
forward_ad._current_level = level
"""

TRAINING = """
def same(ours, theirs, *arguments):
    ours.load_state_dict(theirs.state_dict())
    found = []
    for module in (ours, theirs):
        result = module(*arguments)
        while not isinstance(result, torch.Tensor):
            result = result[0]
        result.sin().sum().backward()
        found.append([result.detach(), *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)

x = torch.randn(5, 3, 2)
packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2])
for settings in ({}, {"num_layers": 2, "bidirectional": True}, {"nonlinearity": "relu"}):
    same(rnn_ext.RNN(2, 4, **settings), nn.RNN(2, 4, **settings), x)
    same(rnn_ext.RNN(2, 4, **settings), nn.RNN(2, 4, **settings), packed)
same(rnn_ext.RNNCell(2, 4), nn.RNNCell(2, 4), x[0])

module = rnn_ext.RNN(2, 4)
with torch.no_grad():
    module(x)
with torch.autocast("cpu"):
    assert module(x)[0].dtype == torch.bfloat16
torch.func.grad(lambda x: module(x)[0].sum())(x)
assert torch.jit.trace(module, x)(x)[0].shape == (5, 3, 4)
print("trained")
"""

BATCHED = """
x = torch.randn(5, 3, 2, requires_grad=True)
output, _ = rnn_ext.RNN(2, 4)(x)
try:
    torch.autograd.grad(output, x, torch.ones(2, *output.shape), is_grads_batched=True)
except NotImplementedError as error:
    print(error)
"""


def run(program, hidden):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + program, *hidden]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_without_private_names_a_model_trains():
    assert run(TRAINING, NAMES) == "trained\n"


def test_without_private_names_batched_gradients_say_what_is_missing():
    hidden = [name for name in NAMES if name != "_C._functorch.is_legacy_batchedtensor"]
    assert f"torch {torch.__version__} does not have" in run(BATCHED, hidden)
