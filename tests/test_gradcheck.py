"""Gradients and higher derivatives against finite differences and against torch's modules'."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from support import (
    KINDS,
    as_function,
    assert_close_fp64,
    flat,
    hx_of,
    layer_weights,
    leaves,
    loss_of,
    twins,
)

import rnn_ext

FORMS = {
    "plain": {},
    "no bias": {"bias": False},
    "two-way": {"bidirectional": True},
    "stacked": {"num_layers": 2},
    "packed": {"bidirectional": True},
}
LAYERS = {
    "tanh": rnn_ext.RNN,
    "relu": partial(rnn_ext.RNN, nonlinearity="relu"),
    "GRU": rnn_ext.GRU,
    "LSTM": rnn_ext.LSTM,
}


@dataclass(frozen=True)
class Check:
    """A call for gradcheck, with sequences of two rows."""

    form: str
    layer: str
    given: bool = True

    def __str__(self):
        return f"{self.form}-{self.layer}-{'hx' if self.given else 'nohx'}"

    def function_and_inputs(self, seq_len, hidden_size):
        options = FORMS[self.form]
        module = LAYERS[self.layer](2, hidden_size, dtype=torch.float64, **options)
        lead, batch_sizes = (seq_len, 2), None
        if self.form == "packed":
            lead, batch_sizes = (2 * seq_len - 1,), torch.tensor([2] * (seq_len - 1) + [1])
        states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
        kind = self.layer if self.layer in KINDS else "RNN"
        hx = flat(hx_of(kind, states, 2, hidden_size, dtype=torch.float64)) if self.given else []
        x = torch.randn(*lead, 2, dtype=torch.float64)
        return as_function(module, batch_sizes), leaves(x, *hx, *module.parameters())


# test_module_db.py checks GRU and LSTM without states, with every option.
CHECKS = [
    Check(form, layer, given)
    for form in FORMS
    for layer in LAYERS
    for given in ((True,) if layer in ("GRU", "LSTM") and form != "plain" else (True, False))
]


@pytest.mark.parametrize("case", CHECKS, ids=str)
def test_gradcheck(case):
    """In reverse and forward mode, and both of them batched."""
    function, inputs = case.function_and_inputs(seq_len=3, hidden_size=3)
    assert torch.autograd.gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("case", CHECKS, ids=str)
def test_gradgradcheck(case):
    """Reverse over reverse, batched too, and forward over reverse."""
    function, inputs = case.function_and_inputs(seq_len=2, hidden_size=2)
    assert torch.autograd.gradgradcheck(
        function, inputs, check_batched_grad=True, check_fwd_over_rev=True, fast_mode=True
    )


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "relu"])
@pytest.mark.parametrize("form", FORMS)
def test_third_derivatives(form, layer):
    function, inputs = Check(form, layer).function_and_inputs(seq_len=3, hidden_size=2)

    def gradient(*inputs):
        loss = sum(output.square().sum() for output in function(*inputs))
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, inputs, fast_mode=True)


@pytest.mark.parametrize("form", ["plain", "no bias", "two-way", "packed"])
def test_double_backward_through_the_raw_ops(form):
    """The ops of an RNN have their own autograd, which captured graphs use."""
    bidirectional = FORMS[form].get("bidirectional", False)
    weights = layer_weights(2, 2, dtype=torch.float64, **FORMS[form])
    batch_sizes = torch.tensor([2, 1]) if form == "packed" else None
    x = torch.randn(*((3,) if form == "packed" else (2, 2)), 2, dtype=torch.float64)
    hx = torch.randn(1 + bidirectional, 2, 2, dtype=torch.float64)

    def function(x, hx, *weights):
        settings = (batch_sizes, "tanh", bidirectional)
        return torch.ops.rnn_ext.rnn_forward(x, hx, weights, *settings)

    assert torch.autograd.gradgradcheck(function, leaves(x, hx, *weights), fast_mode=True)


CELLS = {
    "tanh": rnn_ext.RNNCell,
    "relu": partial(rnn_ext.RNNCell, nonlinearity="relu"),
    "GRU": rnn_ext.GRUCell,
    "LSTM": rnn_ext.LSTMCell,
}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_gradcheck_and_gradgradcheck_of_the_cell(name, given):
    cell = CELLS[name](3, 4, dtype=torch.float64)
    kind = name if name in KINDS else "RNN"
    hx = flat(hx_of(kind, 2, 4, dtype=torch.float64)) if given else []
    inputs = leaves(torch.randn(2, 3, dtype=torch.float64), *hx, *cell.parameters())
    assert torch.autograd.gradcheck(as_function(cell), inputs)
    assert torch.autograd.gradgradcheck(as_function(cell), inputs)


def loss_of_all(results):
    output, *states = flat(results)
    return loss_of(output, torch.cat(states))


@pytest.mark.parametrize("kind", KINDS)
def test_create_graph_changes_no_first_gradient(kind):
    module = getattr(rnn_ext, kind)(5, 6, 2, bidirectional=True, dtype=torch.float64)
    (x,) = leaves(torch.randn(4, 3, 5, dtype=torch.float64))
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(loss_of_all(module(x)), wanted)
    again = torch.autograd.grad(loss_of_all(module(x)), wanted, create_graph=True)
    assert all(g.requires_grad for g in again)
    assert_close_fp64([g.detach() for g in again], first)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty_trains_like_torchs(kind):
    theirs, ours = twins(5, 6, 2, kind=kind, dtype=torch.float64)
    results = []
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for module in (theirs, ours):
        (leaf,) = leaves(x)
        (grad,) = torch.autograd.grad(module(leaf)[0].square().sum(), leaf, create_graph=True)
        penalty = (grad.norm(dim=-1) - 1).square().sum()
        results.append(
            torch.autograd.grad(penalty, [leaf, *module.parameters()], materialize_grads=True)
        )
    assert_close_fp64(*results[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_vector_products_equal_torchs(kind):
    theirs, ours = twins(5, 6, kind=kind, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    vectors = [torch.randn_like(p) for p in theirs.parameters()]
    results = []
    for module in (theirs, ours):
        parameters = list(module.parameters())
        grads = torch.autograd.grad(loss_of_all(module(x)), parameters, create_graph=True)
        results.append(torch.autograd.grad(grads, parameters, vectors))
    assert_close_fp64(*results[::-1])
