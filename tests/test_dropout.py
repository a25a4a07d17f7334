"""Dropout between layers: the draws of nn.RNN, in training only."""

import pytest
import torch
from support import assert_close_fp64, assert_same_bits, leaves, twins
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_ext


def padded():
    return torch.randn(9, 4, 5, dtype=torch.float64)


def unbatched():
    return torch.randn(9, 5, dtype=torch.float64)


def packed():
    return pack_sequence([torch.randn(n, 5, dtype=torch.float64) for n in (9, 6, 6, 1)])


def packed_unsorted():
    xs = [torch.randn(n, 5, dtype=torch.float64) for n in (2, 9, 6)]
    return pack_sequence(xs, enforce_sorted=False)


@pytest.mark.parametrize("make", [padded, unbatched, packed, packed_unsorted])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_same_seed_drops_what_nn_rnn_drops(make, batch_first, bidirectional, p):
    theirs, ours = twins(
        5,
        6,
        3,
        dropout=p,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=torch.float64,
    )
    argument = make()
    results, states = [], []
    for module in (theirs, ours):
        torch.manual_seed(5)
        output, h_n = module(argument)
        output = output.data if isinstance(output, PackedSequence) else output
        states.append(torch.get_rng_state())
        grads = torch.autograd.grad(output.sum() + h_n.sum(), list(module.parameters()))
        results.append((output, h_n, *grads))
    assert torch.equal(*states), "another number of draws"
    assert_close_fp64(results[1], results[0])


def test_eval_mode_drops_nothing_and_draws_nothing():
    module = rnn_ext.RNN(5, 6, 3, dropout=0.5)
    plain = rnn_ext.RNN(5, 6, 3)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(9, 4, 5)
    state = torch.get_rng_state()
    assert_same_bits(module.eval()(x), plain(x))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(module.train()(x)[0], plain(x)[0])


def test_the_last_layer_is_not_dropped():
    module = rnn_ext.RNN(5, 200, 2, dropout=0.9)
    output, h_n = module(torch.randn(9, 4, 5))
    assert (output == 0).sum() == 0
    assert (h_n == 0).sum() == 0


def test_two_calls_draw_twice():
    module = rnn_ext.RNN(5, 6, 2, dropout=0.5)
    x = torch.randn(9, 4, 5)
    assert not torch.equal(module(x)[0], module(x)[0])


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
def test_dropout_with_one_layer_does_nothing():
    theirs, ours = twins(5, 6, dropout=0.9, dtype=torch.float64)
    x = padded()
    state = torch.get_rng_state()
    actual = ours(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close_fp64(actual, theirs(x))


def test_retained_graph_reuses_the_mask():
    module = rnn_ext.RNN(5, 6, 2, dropout=0.5)
    (x,) = leaves(torch.randn(9, 4, 5))
    loss = module(x)[0].sum()
    first = torch.autograd.grad(loss, [x], retain_graph=True)
    torch.manual_seed(99)
    assert_same_bits(torch.autograd.grad(loss, [x]), first)


def test_attribute_may_be_changed_after_construction():
    theirs, ours = twins(5, 6, 2, dropout=0.1, dtype=torch.float64)
    x = padded()
    results = []
    for module in (theirs, ours):
        module.dropout = 0.7
        torch.manual_seed(5)
        results.append(module(x))
    assert_close_fp64(results[1], results[0])
