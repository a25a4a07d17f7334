"""bfloat16 and float16: stored values are rounded once, all arithmetic is float32.

Errors against nn.RNN's are in test_parity.py, bitwise promises in test_reproducibility.py.
"""

import pytest
import torch
from support import (
    ISA_LEVELS,
    PLANS,
    assert_same_bits,
    leaves,
    outcome,
    same_bits,
    twins,
    using_threads,
)

import rnn_ext
from rnn_ext.functional import rnn

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def every_value(dtype):
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


def relu_of_sums(rows):
    """relu of the sum of each row of ``(N, I)``, added up in order."""
    ones, zero = torch.ones(1, rows.size(1), dtype=rows.dtype), torch.zeros_like(rows[:1, :1])
    output, _ = rnn(rows.unsqueeze(0), None, [ones, zero], nonlinearity="relu", bias=False)
    return output.view(-1)


def as_multiplied(x, isa):
    """The value of x in a product: AVX512-BF16 treats subnormal numbers as zeros."""
    if isa == "avx512_bf16" and x.dtype == torch.bfloat16:
        return torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x)
    return x


def assert_same_numbers(actual, expected):
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(-1), expected.nan_to_num(-1))


@HALVES
def test_every_value_passes_unchanged(dtype, isa):
    x = every_value(dtype)
    assert_same_numbers(relu_of_sums(x.unsqueeze(1)), as_multiplied(x, isa).relu())


@HALVES
@pytest.mark.parametrize("width", [1, 16, 67])
def test_weights_and_biases_of_every_value_pass_unchanged(dtype, width, isa):
    """Columns of a vector and of its tail, in weights of either memory layout."""
    x = every_value(dtype)
    x = x[~x.isnan() & ~x.isinf()][: 1 << 15]
    rows = torch.cat([x, x.new_zeros(-len(x) % width)]).view(-1, width)
    one, none = torch.ones(1, 1, 1, dtype=dtype), torch.zeros(width, width, dtype=dtype)
    for row in rows[:: max(1, len(rows) // 300)]:
        for w_ih in (row.view(width, 1), row.repeat(2, 1).t()[:, :1]):
            output, _ = rnn(one, None, [w_ih, none], nonlinearity="relu", bias=False)
            assert torch.equal(output.view(-1), as_multiplied(row, isa).relu())
        weights = [torch.zeros(width, 1, dtype=dtype), none, row, torch.zeros_like(row)]
        assert torch.equal(rnn(one, None, weights, nonlinearity="relu")[0].view(-1), row.relu())


@HALVES
def test_results_are_rounded_to_nearest_even(dtype, isa):
    """Sums of a value and parts of its last place: below, at and above every sort of tie."""
    values = every_value(dtype)
    values = values[(values >= 0) & values.isfinite()]
    unit = torch.nextafter(values, torch.tensor(torch.inf, dtype=dtype)) - values
    rows = torch.cat([torch.stack([values, (unit * part).to(dtype)], 1) for part in FRACTIONS])
    # Two numbers this close add up without rounding.
    exact = as_multiplied(rows, isa).float().sum(1)
    assert_same_numbers(relu_of_sums(rows), exact.to(dtype))


FRACTIONS = (0.25, 0.5, 0.75, 1.5)


def test_float16_overflows_to_infinity_and_underflows_gradually(isa):
    rows = torch.tensor([[65504, 15], [65504, 16], [65504, 65504], [2**-24, 2**-24], [2**-14, 0]])
    expected = torch.tensor([65504, torch.inf, torch.inf, 2**-23, 2**-14])
    assert torch.equal(relu_of_sums(rows.half()), expected.half())


@HALVES
def test_the_state_between_steps_is_float32(dtype, isa):
    """Steps of 2^-10, which would change no state above 8 or 2 in the storage types."""
    steps = 16 << 10
    x = torch.full((steps, 1, 1), 2.0**-10, dtype=dtype)
    one = torch.ones(1, 1, dtype=dtype)
    output, h_n = rnn(x, None, [one, one], nonlinearity="relu", bias=False)
    exact = torch.arange(1, steps + 1) * 2.0**-10
    assert torch.equal(output.view(-1), exact.to(dtype))
    assert h_n.item() == 16


@HALVES
@pytest.mark.parametrize("split", PLANS)
def test_gradients_are_summed_in_float32(dtype, split, isa):
    """Sums of some thousand ones, where a sum kept in 16 bits would stop at 256 or 2048."""
    steps, batch = 300, 11
    x, w_ih, w_hh, b_ih, b_hh = leaves(
        torch.ones(steps, batch, 3, dtype=dtype),
        torch.ones(33, 3, dtype=dtype),
        torch.zeros(33, 33, dtype=dtype),
        torch.zeros(33, dtype=dtype),
        torch.zeros(33, dtype=dtype),
    )
    with using_threads(2, split):
        output, _ = rnn(x, None, [w_ih, w_hh, b_ih, b_hh], nonlinearity="relu")
        gradient = torch.ones_like(output)
        grads = torch.autograd.grad(output, [x, w_ih, w_hh, b_ih, b_hh], gradient)
    d_x, d_w_ih, d_w_hh, d_b_ih, d_b_hh = grads
    assert torch.equal(d_x, torch.full_like(x, 33))
    for grad in (d_w_ih, d_b_ih, d_b_hh):
        assert torch.equal(grad, torch.full_like(grad, steps * batch))
    assert torch.equal(d_w_hh, torch.full_like(w_hh, 3 * (steps - 1) * batch))


@HALVES
def test_a_bidirectional_layer_adds_its_input_gradients(dtype, isa):
    _, module = twins(5, 33, bidirectional=True, nonlinearity="relu", bias=False, dtype=dtype)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randint(-1, 2, parameter.shape))
    module.weight_hh_l0.data.zero_()
    module.weight_hh_l0_reverse.data.zero_()
    (x,) = leaves(torch.randint(-2, 3, (40, 7, 5)).to(dtype))
    output, _ = module(x)
    (grad,) = torch.autograd.grad(output.sum(), x)
    weights = torch.cat([module.weight_ih_l0, module.weight_ih_l0_reverse])
    assert torch.equal(grad, (output > 0).to(dtype) @ weights)


@HALVES
def test_a_cell_is_one_step_of_a_layer(dtype, isa):
    cell, layer = rnn_ext.RNNCell(5, 33, dtype=dtype), rnn_ext.RNN(5, 33, dtype=dtype)
    layer.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    x, hx = torch.randn(7, 5, dtype=dtype), torch.randn(7, 33, dtype=dtype)
    assert same_bits(cell(x, hx), layer(x.unsqueeze(0), hx.unsqueeze(0))[0][0])


@HALVES
def test_no_gradient_mode_gives_the_same_bits(dtype):
    module = rnn_ext.RNN(5, 33, 2, bidirectional=True, dtype=dtype)
    x, hx = torch.randn(9, 4, 5, dtype=dtype), torch.randn(4, 4, 33, dtype=dtype)
    expected = module(x, hx)
    with torch.inference_mode():
        assert_same_bits(module(x, hx), expected)


@HALVES
def test_explain_names_the_dtype_and_the_kernels(dtype):
    line = rnn_ext.explain(rnn_ext.RNN(5, 6, dtype=dtype), torch.randn(9, 3, 5, dtype=dtype))
    assert str(dtype).removeprefix("torch.") in line
    assert any(level in line for level in ISA_LEVELS)


@HALVES
def test_float32_states_and_weights_are_refused_like_in_nn_rnn(dtype):
    theirs, ours = twins(5, 6, dtype=dtype)
    x = torch.randn(9, 3, 5, dtype=dtype)
    expected, actual = (outcome(lambda m=m: m(x, torch.zeros(1, 3, 6))) for m in (theirs, ours))
    assert expected.error is not None
    assert actual == expected
