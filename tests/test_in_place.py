"""Gradients stay right when a result is changed in place, which nn.RNN allows."""

import pytest
import torch
import torch.nn.functional as F
from support import KINDS, flat, twins
from support.ops import Ops
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import rnn_ext
from rnn_ext._core import autograd

pytestmark = pytest.mark.usefixtures("node")

CHANGES = {
    "mul_": lambda y: y.mul_(2),
    "relu_": lambda y: F.relu_(y),
    "+= residual": lambda y: y.add_(torch.ones(y.shape[-1], dtype=y.dtype)),
    "Dropout(inplace=True)": lambda y: nn.Dropout(0.5, inplace=True)(y),
    "of a part": lambda y: y[:1].mul_(0),
    "through detach": lambda y: y.detach().mul_(2),
}
LAYERS = {
    "one layer": {},
    "batch first": {"batch_first": True},
    "two directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "packed": {},
}


def gradients(module, layer, change, order):
    """The gradients of a loss in the changed output, for input and parameters; of order 1 or 2."""
    torch.manual_seed(1)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    y, *finals = flat(module(pack_padded_sequence(x, [5, 3]) if layer == "packed" else x))
    for result in (y, *finals):
        change(result)
    loss = y.square().sum() + (y * 3).sin().sum() + sum(t.square().sum() for t in finals)
    grads = torch.autograd.grad(loss, leaves, create_graph=order == 2)
    if order == 1:
        return list(grads)
    return list(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_torchs_after_a_change(kind, name, layer, order):
    theirs, ours = twins(3, 4, kind=kind, dtype=torch.float64, **LAYERS[layer])
    expected = gradients(theirs, layer, CHANGES[name], order)
    actual = gradients(ours, layer, CHANGES[name], order)
    for a, b in zip(actual, expected, strict=True):
        # Both sum some hundred terms in float64: 1e-10 of the largest is far above rounding.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("order", [1, 2])
def test_a_cells_next_state_can_be_changed_unlike_nn_rnn_cells(order):
    """`nn.RNNCell` refuses it, so torch's operations give the expected gradients."""
    cell = rnn_ext.RNNCell(3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2, 4, dtype=torch.float64)
    leaves = [x, *cell.parameters()]

    def gradients(h):
        grads = torch.autograd.grad((h * h).sum(), leaves, create_graph=order == 2)
        if order == 1:
            return list(grads)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))

    bias = cell.bias_ih + cell.bias_hh
    z = x @ cell.weight_ih.t() + hx @ cell.weight_hh.t() + bias
    expected = gradients(torch.tanh(z).mul(2))
    actual = gradients(cell(x, hx).mul_(2))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, b.abs().max().item()))


def forward_calls(change):
    """How many forward ops a training step runs."""
    module = rnn_ext.RNN(3, 4)
    with Ops() as ops:
        output, _ = module(torch.randn(5, 2, 3))
        if change:
            output.mul_(2)
        output.sum().backward()
    return ops.ours["rnn_ext::_rnn_forward"]


def test_only_a_changed_output_is_recomputed():
    assert forward_calls(change=False) == 1
    assert forward_calls(change=True) == 2


def test_a_changed_weight_is_still_an_error():
    module = rnn_ext.RNN(3, 4)
    output, _ = module(torch.randn(5, 2, 3))
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("changed", [False, True])
def test_saved_tensor_hooks_get_the_output_and_may_copy_it(changed):
    module = rnn_ext.RNN(3, 4)
    x = torch.randn(5, 2, 3)
    packed = []

    def pack(t):
        packed.append(tuple(t.shape))
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output, _ = module(x)
    assert (5, 2, 4) in packed
    if changed:
        output.mul_(2)
    actual = torch.autograd.grad(output.sum(), list(module.parameters()))
    fresh, _ = module(x)
    expected = torch.autograd.grad(fresh.sum() * (2 if changed else 1), list(module.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_offloading_frees_the_output():
    """Once the caller drops the output, only the hooks' copy keeps memory alive."""
    module = rnn_ext.RNN(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        output, h_n = module(torch.randn(5, 2, 3))
    storage = output.untyped_storage()._weak_ref()
    del output
    assert torch.UntypedStorage._expired(storage)
    h_n.sum().backward()


def test_a_change_under_checkpointing_gives_the_gradients_without_it():
    module = rnn_ext.RNN(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)

    def double(x):
        return module(x)[0].mul_(2)

    results = []
    for run in (double, lambda x: checkpoint(double, x, use_reentrant=False)):
        results.append(torch.autograd.grad(run(x).square().sum(), [x, *module.parameters()]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_python_node_is_the_one_that_runs_without_the_other(node):
    output, _ = rnn_ext.RNN(3, 4)(torch.randn(5, 2, 3))
    is_python = isinstance(output.grad_fn, autograd._RNNLayer._backward_cls)
    assert is_python == (node == "Python")
