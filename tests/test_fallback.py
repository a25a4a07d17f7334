"""Where we have no kernel, torch's own op runs and gives its results; `explain` says so."""

import re

import pytest
import torch
from support import (
    ISA_LEVELS,
    KINDS,
    assert_like,
    flat,
    hx_of,
    outcome,
    twins,
    using_isa,
    using_threads,
)
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rnn_ext

OTHER_DTYPES = [torch.complex64, torch.complex128]


def assert_equal(actual, expected):
    for a, b in zip(flat(actual), flat(expected), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_give_exactly_torchs_results(kind, dtype, packed):
    theirs, ours = twins(5, 6, 2, kind=kind, bidirectional=True, dtype=dtype)
    x = torch.randn(9, 3, 5, dtype=dtype)
    hx = hx_of(kind, 4, 3, 6, dtype=dtype)
    argument = pack_sequence(list(x.unbind(1))) if packed else x
    results = []
    for module in (theirs, ours):
        output, *states = flat(module(argument, hx))
        grads = torch.autograd.grad(output.abs().sum(), list(module.parameters()))
        results.append((output, *states, *grads))
    assert_equal(results[1], results[0])
    line = rnn_ext.explain(ours, argument)
    assert "torch" in line
    assert str(dtype).removeprefix("torch.") in line
    assert not any(level in line for level in ISA_LEVELS)


def test_a_dtype_that_nn_rnn_does_not_support_fails_alike():
    theirs, ours = twins(5, 6, nonlinearity="relu", dtype=torch.complex64)
    x = torch.randn(9, 3, 5, dtype=torch.complex64)
    expected = outcome(lambda: theirs(x))
    assert expected.error is not None
    assert outcome(lambda: ours(x)) == expected


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cell_of_other_dtypes_gives_exactly_torchs_results(kind, dtype):
    theirs, ours = twins(5, 6, kind=f"{kind}Cell", dtype=dtype)
    for shape in ((3,), ()):
        x, hx = torch.randn(*shape, 5, dtype=dtype), hx_of(kind, *shape, 6, dtype=dtype)
        assert_equal(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_device_gives_torchs_shapes(kind):
    layers = twins(5, 6, 2, kind=kind, bidirectional=True, batch_first=True, device="meta")
    x = torch.randn(3, 9, 5, device="meta")
    line = rnn_ext.explain(layers[1], x)
    assert "torch" in line
    assert "meta" in line
    for (theirs, ours), given in (
        (layers, x),
        (twins(5, 6, kind=f"{kind}Cell", device="meta"), x[0]),
    ):
        for a, b in zip(flat(ours(given)), flat(theirs(given)), strict=True):
            assert a.is_meta
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_explain_names_isa_and_plan_of_our_path(kind, dtype):
    module = getattr(rnn_ext, kind)(5, 6, dtype=dtype)
    plan = r"\d of 3 threads" if kind == "RNN" else f"program of cell '{kind.lower()}'"
    x = torch.randn(9, 3, 5, dtype=dtype)
    packed = pack_sequence(list(x.unbind(1)))
    for level in ISA_LEVELS:
        with using_isa(level), using_threads(3):
            for argument in (x, x[:, 0], packed):
                line = rnn_ext.explain(module, argument)
                kernels = f"rnn_ext CPU kernels, {level}, {str(dtype).removeprefix('torch.')}: "
                assert line.startswith(kernels)
                assert re.match(plan, line.removeprefix(kernels))


@pytest.mark.parametrize("kind", KINDS)
def test_explain_does_not_run_the_call(kind):
    module = getattr(rnn_ext, kind)(5, 6, 2, dropout=0.5)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    rnn_ext.explain(module, torch.randn(9, 3, 5, generator=torch.Generator()))
    assert not calls
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_explain_takes_a_cell(kind):
    line = rnn_ext.explain(getattr(rnn_ext, f"{kind}Cell")(5, 6), torch.randn(3, 5))
    assert any(level in line for level in ISA_LEVELS)


class Tagged(Tensor):
    """A tensor subclass, as libraries use to carry names or units along."""


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_subclasses_work_like_in_torch(kind):
    theirs, ours = twins(5, 6, kind=kind)
    x = torch.randn(9, 3, 5).as_subclass(Tagged)
    expected, actual = flat(theirs(x)), flat(ours(x))
    assert all(type(a) is type(b) for a, b in zip(actual, expected, strict=True))
    assert_like([a.as_subclass(Tensor) for a in actual], [b.as_subclass(Tensor) for b in expected])
