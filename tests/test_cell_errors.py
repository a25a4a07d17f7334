"""Rejected cells: the error names the cell, the reason and the line. Also pickling."""

import copy
import itertools
import multiprocessing
import pickle
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rnn_ext
from rnn_ext import cells

OUTSIDE = torch.ones(7, dtype=torch.float64)
COUNTER = itertools.count()

# The content of a function, and words of its error.
BODIES = {
    "sum": (lambda x: x - x.sum(), "cannot contain sum.* reductions"),
    "softmax": (lambda x: x.softmax(-1), "cannot contain _softmax"),
    "index": (lambda x: x[0], "IndexError.* no dimensions"),
    "shape": (lambda x: x / x.shape[-1], "IndexError.* no dimensions"),
    "number of elements": (lambda x: x / x.numel(), "values or shapes"),
    "stack": (lambda x: torch.stack([x, x]).tanh(), "cannot contain stack"),
    "if": (lambda x: x if x > 0 else -x, r"reads the value .* torch\.where"),
    "item": (lambda x: x * x.item(), r"reads the value .* torch\.where"),
    "tolist": (lambda x: x * len(str(x.tolist())), "values or shapes"),
    "random": (lambda x: x + torch.randn_like(x), "random numbers .* make them an input"),
    "state of Python": (lambda x: x * next(COUNTER), "two calls compute different formulas"),
    "unknown": (lambda x: torch.lgamma(x), "cannot contain lgamma"),
    "power of tensors": (lambda x: x.exp() ** x, "cannot contain pow"),
    "closure": (lambda x: x * OUTSIDE, "not one of its arguments: make it a parameter or an input"),
    "rounding mode": (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode"),
    "half": (lambda x: x.half(), "converts a number to torch.float16"),
    "integer": (lambda x: (x > 0).long(), "returns a tensor of torch.int64 for y"),
    "mask": (lambda x: x > 0, "returns a tensor of torch.bool for y"),
    "argument in place": (lambda x: x.detach().mul_(2), "changes an argument in place"),
    "number": (lambda x: 0.5, "returns 0.5 for y, expected a tensor"),
    "two results": (lambda x: (x, x), "returns 2 values, expected 1: y"),
}


@pytest.mark.parametrize("name", BODIES)
def test_rejects_what_a_cell_cannot_have(name):
    body, words = BODIES[name]

    @rnn_ext.cell
    def culprit(u, v, y):
        return body(u)

    with pytest.raises(rnn_ext.CellError, match=words) as caught:
        _ = culprit.program
    assert str(caught.value).startswith(f"cell 'culprit' ({Path(__file__)}:")


def test_the_line_is_that_of_the_operation():
    @rnn_ext.cell
    def culprit(u, v, y):
        x = u + v
        return x.mean()

    first = culprit.__wrapped__.__code__.co_firstlineno
    with pytest.raises(rnn_ext.CellError, match=rf"py:{first + 3}\): .*mean"):
        _ = culprit.program


def test_rejects_a_derivative_it_cannot_contain():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad.cumsum(-1)

    @rnn_ext.cell
    def culprit(u, v, y):
        return Odd.apply(u + v)

    with pytest.raises(rnn_ext.CellError, match="cannot contain cumsum"):
        _ = culprit.program


def test_arguments_are_checked_when_a_cell_is_defined():
    for decorate, function, words in (
        (rnn_ext.cell, lambda u, v: u, r"expected \(u, v, y\)"),
        (rnn_ext.cell(states=("c",)), lambda u, v, y, x: (y, x), r"expected \(u, v, y, c\)"),
        (rnn_ext.cell(inputs=("n",)), lambda u, v, y, n: y, r"expected \(u, v, y, \*, n\)"),
        (rnn_ext.cell, lambda *args: args[0], r"expected \(u, v, y\)"),
        (rnn_ext.cell(states="c"), lambda u, v, y, c: (y, c), "expected a tuple"),
        (rnn_ext.cell(gates=0), lambda u, v, y: y, "gates=0"),
        (rnn_ext.cell(gates=(2, 1)), lambda u, v, y: y, "but the function does not yield"),
        (rnn_ext.cell, yields_once, r"it yields, so it needs .* gates=\(2, 1\)"),
        (rnn_ext.cell(gates=(2, 0)), yields_once, r"gates=\(2, 0\), expected 1 or more"),
        (rnn_ext.cell(gates=()), yields_once, r"gates=\(\), expected 1 or more"),
    ):
        with pytest.raises(rnn_ext.CellError, match=words):
            decorate(function)


def yields_once(u, v, y):
    w = yield y
    return w + v


def yields_twice(u, v, y):
    w = yield y
    x = yield w
    return x + v


def yields_a_number(u, v, y):
    w = yield 0.5
    return w + v


def yields_a_mask(u, v, y):
    w = yield y > 0
    return w + v


def yields_a_sum(u, v, y):
    w = yield y.sum()
    return w + v


def yields_nothing_of_its_own(u, v, y):
    w = yield OUTSIDE
    return w + v


def returns_early(u, v, y):
    if u is v:
        yield y
    return v


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (yields_twice, r"yields more than 1 times, for 2 products"),
        (returns_early, r"yields 0 times, expected 1"),
        (yields_a_number, r"yields 0.5, expected a tensor"),
        (yields_a_mask, r"yields a tensor of torch.bool, expected y's dtype"),
        (yields_a_sum, r"cannot contain sum"),
        (yields_nothing_of_its_own, r"make it a parameter or an input"),
    ],
)
def test_rejects_values_that_a_cell_cannot_yield(function, words):
    with pytest.raises(rnn_ext.CellError, match=words):
        _ = rnn_ext.cell(gates=(1, 1))(function).program


@pytest.mark.parametrize(
    "modes",
    [
        (torch.no_grad, partial(torch.autocast, "cpu"), partial(torch.device, "meta")),
        (torch.inference_mode,),
        (FakeTensorMode,),
    ],
    ids=["no_grad, autocast, meta", "inference", "fake"],
)
def test_a_cell_is_traced_in_every_mode(modes):
    fresh = rnn_ext.cell(gates=4, states=("c",))(cells.lstm.__wrapped__)
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode())
        text = fresh.describe()
    assert text == cells.lstm.describe()
    assert type(fresh.program) is Tensor
    assert not fresh.program.is_inference()
    assert torch.equal(fresh.program, cells.lstm.program)


def test_tracing_imports_no_compiler():
    """Importing one would take seconds, and a first call may take half a second."""
    code = "import sys, rnn_ext; rnn_ext.cells.lstm.program; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch._dynamo", "sympy"}.intersection(result.stdout.split())


def local_cell():
    @rnn_ext.cell(states=("x",), parameters=("a",))
    def local(u, v, y, x, *, a):
        x = a * x + u + v
        return cells.spike(x - 1), x

    return local


def test_pickling_by_path_and_by_program():
    assert pickle.loads(pickle.dumps(cells.alif)) is cells.alif
    assert copy.deepcopy(cells.alif) is cells.alif
    cell = local_cell()
    copied = pickle.loads(pickle.dumps(cell))
    assert copied is not cell
    assert torch.equal(copied.program, cell.program)
    assert (copied.name, copied.states, copied.parameters) == ("local", ("x",), ("a",))
    assert (repr(copied), copied.saved, copied.describe()) == (
        repr(cell),
        cell.saved,
        cell.describe(),
    )
    # It has no function, and computes the same, surrogate gradient and all.
    values = [torch.randn(3, 5, dtype=torch.float64).requires_grad_() for _ in range(4)]
    a = torch.randn(5, dtype=torch.float64).requires_grad_()
    grads = []
    for each in (cell, copied):
        y, x = each(*values, a=a)
        loss = (y * 2 + x.sin()).sum()
        grads.append([y, x, *torch.autograd.grad(loss, [*values, a], allow_unused=True)])
    for actual, expected in zip(*grads, strict=True):
        if actual is not None and expected is not None:
            torch.testing.assert_close(actual, expected)
        else:
            assert not any(g is not None and g.any() for g in (actual, expected))


def test_a_copy_without_function_yields():
    @rnn_ext.cell(gates=(2, 1), states=("x",))
    def local(u, v, y, x):
        a, b = cells.spike(u[0] + v[0]), (u[1] + v[1]).sin()
        w = yield a * b + x
        return (u[2] + w * b).tanh(), a * x

    copied = pickle.loads(pickle.dumps(local))
    assert copied.products == (2, 1)
    assert copied.describe() == local.describe()
    u = [torch.randn(3, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    states = [torch.randn(3, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    weights = [torch.randn(5 * g, 5, dtype=torch.float64).requires_grad_() for g in (2, 1)]
    results = []
    for cell in (local, copied):
        y, x = cell.run(u, lambda k, x: (x @ weights[k].T).split(5, -1), states, ())
        grads = torch.autograd.grad((y * 2 + x.sin()).sum(), [*u, *states, *weights])
        results.append([y, x, *grads])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_spawned_process_gets_a_cell():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr, (local_cell(),)) == repr(local_cell())
