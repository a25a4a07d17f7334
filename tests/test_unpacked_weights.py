"""Calls of so few rows that weights are not packed: the results equal those with packed ones."""

import pytest
import torch
from support import assert_same_bits, leaves

import rnn_ext.functional

# Below, at and above the size of a vector, a panel and a block of sums; no multiples of them.
SIZES = [(1, 1), (5, 3), (16, 32), (37, 40), (64, 64), (280, 300), (513, 260)]
# All rows of a call of this many are computed with packed weights.
MANY = 40


def _contiguous(w):
    return w


def _column_major(w):
    return w.t().contiguous().t()


def _spread(w):
    wide = w.new_zeros(2 * w.size(0), 3 * w.size(1))
    wide[::2, ::3] = w
    return wide[::2, ::3]


def _step(x, hx, weights, grad):
    """States and the gradients of x and hx for one step of independent rows."""
    x, hx = leaves(x.unsqueeze(0), hx.unsqueeze(0))
    output, _ = rnn_ext.functional.rnn(x, hx, weights)
    return [t.squeeze(0) for t in (output, *torch.autograd.grad(output, [x, hx], grad[None]))]


@pytest.mark.parametrize("layout", [_contiguous, _column_major, _spread])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_few_rows_have_the_bits_that_they_have_among_many(sizes, dtype, layout, isa):
    input_size, hidden_size = sizes
    x = torch.randn(MANY, input_size, dtype=dtype)
    hx, grad = torch.randn(2, MANY, hidden_size, dtype=dtype).unbind()
    scale = hidden_size**-0.5
    weights = [
        layout(torch.randn(hidden_size, columns, dtype=dtype) * scale)
        for columns in (input_size, hidden_size)
    ]
    weights += [torch.randn(hidden_size, dtype=dtype) for _ in range(2)]
    expected = _step(x, hx, weights, grad)
    for rows in (1, 2, 7, 12):
        actual = _step(x[:rows], hx[:rows], weights, grad[:rows])
        assert_same_bits(actual, [t[:rows] for t in expected])
