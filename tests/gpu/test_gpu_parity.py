"""Results and gradients on a GPU, against nn.RNN in fp64 on the CPU."""

from dataclasses import replace

import pytest
import torch
from support import leaves
from support.cases import covering_design
from support.gpu import (
    DEVICE,
    DTYPES,
    NEEDS_GPU,
    REGIMES,
    assert_parity,
    draw,
    in_fp64,
    keep_from_kink,
    layer,
    results,
)
from support.parity import assert_as_exact_as_nn_rnn, errors_of, expected
from torch import nn

import rnn_ext

pytestmark = NEEDS_GPU

# How CPU threads share a call is irrelevant here. GRU and LSTM are torch's own on a GPU.
GRID = tuple(
    {replace(case, threads="1"): None for case in covering_design(seed=0) if case.kind == "RNN"}
)

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@ALL_DTYPES
@pytest.mark.parametrize("hidden_size", [64, 128, 256, 515])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("rows", ["few", "some", "many"])
def test_every_kernel(rows, nonlinearity, hidden_size, dtype):
    """Each shape of the kernels, which follows from units and rows, with each type and φ.

    Short, for the sanitizers, under which these run too.
    """
    rnn = layer(hidden_size, dtype, bidirectional=True, nonlinearity=nonlinearity)
    # Enough for several tiles on every multiprocessor.
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    batch = {"few": 3, "some": 16, "many": 4 * multiprocessors + 1}[rows]
    lengths = [3, *(1 + i % 3 for i in range(batch - 1))] if rows == "some" else None
    x, hx = draw(3, batch, 17, dtype=dtype), draw(2, batch, hidden_size, dtype=dtype)
    exact = results(in_fp64(rnn), x.double().cpu(), hx.double().cpu(), lengths)
    assert_parity(results(rnn, x, hx, lengths), exact)


@ALL_DTYPES
@pytest.mark.parametrize("hidden_size", [1, 33, 65, 200, 257])
@pytest.mark.parametrize("packed", [False, True])
def test_sizes_next_to_those_of_the_kernels(packed, hidden_size, dtype):
    rnn = layer(hidden_size, dtype, bidirectional=True)
    x, hx = draw(11, 200, 17, dtype=dtype), draw(2, 200, hidden_size, dtype=dtype)
    lengths = [1 + i % 11 for i in range(199)] + [11] if packed else None
    exact = results(in_fp64(rnn), x.double().cpu(), hx.double().cpu(), lengths)
    assert_parity(results(rnn, x, hx, lengths), exact)


@pytest.mark.parametrize("case", GRID, ids=str)
def test_options_and_layouts(case):
    """Layers, directions, biases, forms, batch_first, strides, initial states, gradients given."""
    problem, exact, theirs = expected(case)
    ours = problem.to(DEVICE).run(case.module(rnn_ext).to(DEVICE))
    errors = errors_of({name: t.cpu() for name, t in ours.items()}, theirs, exact)
    assert_as_exact_as_nn_rnn(case, errors, "GPU")


@ALL_DTYPES
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@REGIMES
def test_cell(hidden_size, nonlinearity, dtype):
    cell = rnn_ext.RNNCell(17, hidden_size, nonlinearity=nonlinearity, device=DEVICE, dtype=dtype)
    if nonlinearity == "relu":
        keep_from_kink(cell)
    exact = nn.RNNCell(17, hidden_size, nonlinearity=nonlinearity).double()
    exact.load_state_dict({k: v.double().cpu() for k, v in cell.state_dict().items()})
    x, hx = draw(5, 17, dtype=dtype), draw(5, hidden_size, dtype=dtype)

    def run(module, x, hx):
        x, hx = leaves(x, hx)
        h = module(x, hx)
        return [h, *torch.autograd.grad(h.sum(), [x, hx, *module.parameters()])]

    assert_parity(run(cell, x, hx), run(exact, x.double().cpu(), hx.double().cpu()))


@REGIMES
def test_a_batch_of_4096(hidden_size):
    rnn, x = layer(hidden_size), draw(3, 4096, 17)
    assert_parity(results(rnn, x), results(in_fp64(rnn), x.double().cpu()))


@REGIMES
def test_an_empty_batch_has_empty_results_and_gradients_of_zero(hidden_size):
    rnn = layer(hidden_size)
    output, h_n, grad_x, *grads = results(rnn, draw(3, 0, 17))
    assert output.shape == (3, 0, hidden_size)
    assert h_n.shape == (1, 0, hidden_size)
    assert grad_x.shape == (3, 0, 17)
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("hidden_size", [16, 257], ids=["persistent", "step"])
def test_70000_steps(hidden_size):
    """More than cuDNN supports; compared with our kernels on the CPU, since nn.RNN takes long."""
    rnn, x = layer(hidden_size, input_size=3), draw(70_000, 1, 3)
    exact = in_fp64(rnn, kind=rnn_ext.RNN)
    assert_parity(results(rnn, x), results(exact, x.double().cpu()))


def test_more_than_2_to_the_31_values():
    rows = 2**31 // (512 * 64) + 64
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("this takes 16 GiB of the device's memory")
    rnn = layer(64, torch.bfloat16, input_size=1)
    x = draw(512, rows, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        output, h_n = rnn(x)
        last, last_h_n = rnn(x[:, -64:])
    assert_parity([output[:, -64:], h_n[:, -64:]], [last, last_h_n])
