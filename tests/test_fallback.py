"""Where we have no kernel, torch's own op runs and gives nn.RNN's results; `explain` says so."""

import re

import pytest
import torch
from support import (
    ISA_LEVELS,
    assert_like,
    outcome,
    twins,
    using_isa,
    using_threads,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_ext

OTHER_DTYPES = [torch.complex64, torch.complex128]


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        a, b = (t.data if isinstance(t, PackedSequence) else t for t in (a, b))
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_other_dtypes_give_exactly_nn_rnns_results(dtype, packed):
    theirs, ours = twins(5, 6, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(9, 3, 5, dtype=dtype)
    hx = torch.randn(4, 3, 6, dtype=dtype)
    argument = pack_sequence(list(x.unbind(1))) if packed else x
    results = []
    for module in (theirs, ours):
        output, h_n = module(argument, hx)
        data = output.data if packed else output
        grads = torch.autograd.grad(data.abs().sum(), list(module.parameters()))
        results.append((data, h_n, *grads))
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
def test_cell_of_other_dtypes_gives_exactly_nn_rnn_cells_results(dtype):
    theirs, ours = nn.RNNCell(5, 6, dtype=dtype), rnn_ext.RNNCell(5, 6, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(3, 5, dtype=dtype), torch.randn(3, 6, dtype=dtype)
    assert_equal([ours(x, hx)], [theirs(x, hx)])
    assert_equal([ours(x[0], hx[0])], [theirs(x[0], hx[0])])


def test_meta_device_gives_shapes_like_nn_rnn():
    theirs, ours = twins(5, 6, 2, bidirectional=True, batch_first=True, device="meta")
    x = torch.randn(3, 9, 5, device="meta")
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert a.is_meta
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    line = rnn_ext.explain(ours, x)
    assert "torch" in line
    assert "meta" in line
    cell = rnn_ext.RNNCell(5, 6, device="meta")
    assert cell(x[0]).is_meta
    assert cell(x[0]).shape == (9, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_explain_names_isa_and_threads_of_our_path(dtype):
    module = rnn_ext.RNN(5, 6, dtype=dtype)
    x = torch.randn(9, 3, 5, dtype=dtype)
    packed = pack_sequence(list(x.unbind(1)))
    for level in ISA_LEVELS:
        with using_isa(level), using_threads(3):
            for argument in (x, x[:, 0], packed):
                line = rnn_ext.explain(module, argument)
                kernels = f"rnn_ext CPU kernels, {level}, {str(dtype).removeprefix('torch.')}: "
                assert re.fullmatch(re.escape(kernels) + r"\d of 3 threads.*", line)


def test_explain_does_not_run_the_call():
    module = rnn_ext.RNN(5, 6, 2, dropout=0.5)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    rnn_ext.explain(module, torch.randn(9, 3, 5, generator=torch.Generator()))
    assert not calls
    assert torch.equal(torch.get_rng_state(), state)


def test_explain_takes_a_cell():
    line = rnn_ext.explain(rnn_ext.RNNCell(5, 6), torch.randn(3, 5))
    assert any(level in line for level in ISA_LEVELS)


class Tagged(Tensor):
    """A tensor subclass, as libraries use to carry names or units along."""


def test_tensor_subclasses_work_like_in_nn_rnn():
    theirs, ours = twins(5, 6)
    x = torch.randn(9, 3, 5).as_subclass(Tagged)
    expected, actual = theirs(x), ours(x)
    assert_like([a.as_subclass(Tensor) for a in actual], [b.as_subclass(Tensor) for b in expected])
