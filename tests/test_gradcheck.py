"""Gradients and higher derivatives against finite differences and against ``nn.RNN``'s."""

from dataclasses import dataclass

import pytest
import torch
from support import (
    assert_close_fp64,
    layer_weights,
    leaves,
    loss_of,
    twins,
)

import rnn_ext
from rnn_ext.functional import rnn, rnn_cell

FORMS = {
    "plain": {},
    "no bias": {"bias": False},
    "two-way": {"bidirectional": True},
    "stacked": {"num_layers": 2},
    "packed": {"batch_sizes": torch.tensor([2, 2, 1]), "bidirectional": True},
}


@dataclass(frozen=True)
class Check:
    """A call for gradcheck, with sequences of two rows."""

    form: str
    nonlinearity: str
    given: bool = True

    def __str__(self):
        return f"{self.form}-{self.nonlinearity}-{'hx' if self.given else 'nohx'}"

    def function_and_inputs(self, seq_len, hidden_size):
        options = FORMS[self.form]
        stack = {k: v for k, v in options.items() if k != "batch_sizes"}
        weights = layer_weights(2, hidden_size, dtype=torch.float64, **stack)
        states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
        sizes = options.get("batch_sizes")
        lead = (seq_len, 2) if sizes is None else (int(sizes.sum()),)
        x, hx = torch.randn(*lead, 2).double(), torch.randn(states, 2, hidden_size).double()

        def function(x, *rest):
            hx, weights = (rest[0], rest[1:]) if self.given else (None, rest)
            return rnn(x, hx, weights, nonlinearity=self.nonlinearity, **options)

        return function, leaves(x, *([hx] if self.given else []), *weights)


CHECKS = [
    Check(form, nonlinearity, given)
    for form in FORMS
    for nonlinearity in ("tanh", "relu")
    for given in (True, False)
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


@pytest.mark.parametrize("form", FORMS)
def test_third_derivatives(form):
    function, inputs = Check(form, "tanh").function_and_inputs(seq_len=3, hidden_size=2)

    def gradient(*inputs):
        loss = sum(output.square().sum() for output in function(*inputs))
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, inputs, fast_mode=True)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "stacked"])
def test_double_backward_through_the_raw_ops(form):
    """The ops have their own autograd, which captured graphs use."""
    options = FORMS[form]
    _, inputs = Check(form, "tanh").function_and_inputs(seq_len=2, hidden_size=2)
    settings = (options.get("batch_sizes"), "tanh", options.get("bidirectional", False))

    def function(x, hx, *weights):
        return torch.ops.rnn_ext.rnn_forward(x, hx, weights, *settings)

    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_gradcheck_and_gradgradcheck_of_the_cell(nonlinearity):
    inputs = leaves(
        torch.randn(2, 3, dtype=torch.float64),
        torch.randn(2, 4, dtype=torch.float64),
        *layer_weights(3, 4, dtype=torch.float64),
    )

    def function(*tensors):
        return rnn_cell(*tensors, nonlinearity=nonlinearity)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_gradcheck_and_gradgradcheck_of_the_module(options):
    module = rnn_ext.RNN(2, 2, 2, dtype=torch.float64, **options)
    names = [name for name, _ in module.named_parameters()]
    inputs = leaves(torch.randn(2, 2, 2, dtype=torch.float64), *module.parameters())

    def function(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_create_graph_changes_no_first_gradient():
    module = rnn_ext.RNN(5, 6, 2, bidirectional=True, dtype=torch.float64)
    (x,) = leaves(torch.randn(4, 3, 5, dtype=torch.float64))
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(loss_of(*module(x)), wanted)
    again = torch.autograd.grad(loss_of(*module(x)), wanted, create_graph=True)
    assert all(g.requires_grad for g in again)
    assert_close_fp64([g.detach() for g in again], first)


def test_gradient_penalty_trains_like_nn_rnn():
    theirs, ours = twins(5, 6, 2, dtype=torch.float64)
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


def test_hessian_vector_products_equal_nn_rnn():
    theirs, ours = twins(5, 6, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    vectors = [torch.randn_like(p) for p in theirs.parameters()]
    results = []
    for module in (theirs, ours):
        parameters = list(module.parameters())
        grads = torch.autograd.grad(loss_of(*module(x)), parameters, create_graph=True)
        results.append(torch.autograd.grad(grads, parameters, vectors))
    assert_close_fp64(*results[::-1])
