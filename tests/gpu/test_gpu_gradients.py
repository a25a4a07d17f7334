"""Training on a GPU: higher derivatives, autocast, torch.compile, reproducible bits."""

import pytest
import torch
from support import assert_same_bits, leaves
from support.gpu import (
    DEVICE,
    DTYPES,
    NEEDS_GPU,
    REGIMES,
    assert_parity,
    draw,
    in_fp64,
    layer,
    results,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext

pytestmark = NEEDS_GPU


@REGIMES
def test_twenty_runs_give_the_same_bits(hidden_size):
    rnn, x = layer(hidden_size, num_layers=2), draw(50, 33, 17)
    first = results(rnn, x)
    for _ in range(20):
        assert_same_bits(results(rnn, x), first)


@pytest.fixture
def deterministic_algorithms(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's products require it
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic_algorithms")
@REGIMES
def test_trains_under_deterministic_algorithms(hidden_size):
    rnn, x = layer(hidden_size), draw(9, 4, 17)
    assert_same_bits(results(rnn, x), results(rnn, x))


@REGIMES
def test_backward_works_in_eval_mode(hidden_size):
    rnn, x = layer(hidden_size), draw(9, 4, 17)
    assert_same_bits(results(rnn.eval(), x), results(rnn.train(), x))


@REGIMES
def test_without_gradients_the_bits_are_the_same(hidden_size):
    rnn, x = layer(hidden_size), draw(9, 4, 17)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            without = rnn(x)
        assert_same_bits(without, rnn(x))


def test_double_backward_is_right():
    rnn = layer(5, torch.float64, input_size=3, bidirectional=True)
    (x,) = leaves(draw(4, 2, 3, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], x)


@pytest.mark.parametrize("lengths", [None, [9, 7, 7, 1]], ids=["padded", "packed"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@REGIMES
def test_a_gradient_penalty_has_nn_rnns_gradients(hidden_size, nonlinearity, lengths):
    """A double backward: its gradients are those of a norm of gradients."""
    rnn = layer(hidden_size, nonlinearity=nonlinearity, bidirectional=True)
    x, hx = draw(9, 4, 17), draw(2, 4, hidden_size)

    def penalty(rnn, x, hx):
        x, hx = leaves(x, hx)
        output, h_n = rnn(x if lengths is None else pack_padded_sequence(x, lengths), hx)
        data = output if lengths is None else output.data
        loss = data.square().sum() + h_n.square().sum()
        first = torch.autograd.grad(loss, [x, hx], create_graph=True)
        norm = sum(g.square().sum() for g in first)
        return [norm.detach(), *torch.autograd.grad(norm, [x, hx, *rnn.parameters()])]

    exact = penalty(in_fp64(rnn), x.double().cpu(), hx.double().cpu())
    assert_parity(penalty(rnn, x, hx), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@REGIMES
def test_forward_mode_gives_nn_rnns_tangents(hidden_size, nonlinearity, dtype):
    rnn = layer(hidden_size, dtype, nonlinearity=nonlinearity, bidirectional=True)
    x, hx = draw(9, 4, 17, dtype=dtype), draw(2, 4, hidden_size, dtype=dtype)
    changes = torch.randn_like(x), torch.randn_like(hx)

    def tangents(rnn, *tensors):
        return torch.func.jvp(rnn, tensors[:2], tensors[2:])[1]

    exact = tangents(in_fp64(rnn), *(t.double().cpu() for t in (x, hx, *changes)))
    assert_parity(tangents(rnn, x, hx, *changes), exact)


def test_double_backward_of_the_cell_is_right():
    cell = rnn_ext.RNNCell(3, 5, device=DEVICE, dtype=torch.float64)
    x, hx = leaves(draw(2, 3, dtype=torch.float64), draw(2, 5, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(cell, (x, hx))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@REGIMES
def test_autocast_gives_nn_rnns_dtypes_and_is_as_exact(hidden_size, dtype):
    rnn, x = layer(hidden_size), draw(5, 3, 17)
    theirs = nn.RNN(17, hidden_size, device=DEVICE)
    theirs.load_state_dict(rnn.state_dict())
    with torch.autocast(DEVICE, dtype):
        of_ours, of_theirs = results(rnn, x), results(theirs, x)
    for ours, other, exact in zip(
        of_ours, of_theirs, results(in_fp64(rnn), x.double().cpu()), strict=True
    ):
        assert ours.dtype == other.dtype
        # Their error, and 16 roundings of intermediate values to the dtype.
        bound = (other.cpu() - exact).abs().max() + 16 * torch.finfo(dtype).eps * exact.abs().max()
        assert (ours.cpu() - exact).abs().max() <= bound


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter replays CUDA graphs
@REGIMES
def test_torch_compile_traces_a_training_step_without_graph_break(hidden_size, mode):
    rnn, hx = layer(hidden_size, num_layers=2), draw(2, 4, hidden_size)
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=True, mode=mode)
    for _ in range(3):  # to warm up, to record, to replay
        x = draw(9, 4, 17)
        assert_parity(results(compiled, x, hx), results(rnn, x, hx))
