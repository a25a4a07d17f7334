"""What PyTorch's own test/test_nn.py asks of its RNNs, where no other file here asks more.

Of the tests there whose names contain "rnn", these have a stricter one elsewhere: the checks of
arguments and of hidden sizes (test_errors.py), the initial hidden state (test_reproducibility.py),
nonlinearity by name and by position, and changed dropout (test_module.py, test_dropout.py), cells,
their empty states and refused broadcasting (test_cell.py, test_errors.py), an empty batch and
retained graphs (test_autograd.py). Those of cuDNN have no meaning here.
"""

import pickle

import pytest
import torch
from torch import nn

import rnn_ext


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0, 0.276, 0.731, 1])
def test_dropout_zeroes_or_scales_what_goes_between_layers(p, training):
    """Weights of ones and relu count: layer 1 gives 10, layer 2 adds up what is left of 1000."""
    rnn = rnn_ext.RNN(10, 1000, 2, bias=False, dropout=p, nonlinearity="relu").train(training)
    for parameter in rnn.parameters():
        nn.init.ones_(parameter)
    output, h_n = rnn(torch.ones(1, 1, 10), torch.zeros(2, 1, 1000))
    assert output.unique().numel() == 1
    value = output[0, 0, 0].item()
    if p == 0 or not training:
        assert value == 10_000
    elif p == 1:
        assert value == 0
    else:
        kept = value * (1 - p) / 10
        assert kept == pytest.approx(round(kept), abs=1e-2)
        # 1000 draws have a standard deviation of at most 16; five of them.
        assert abs(kept - 1000 * (1 - p)) < 80
    assert (h_n[0] == 10).all()
    assert (h_n[1] == output[0]).all()


@pytest.mark.parametrize("p", [0, 0.1234])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_anew_in_every_call_and_after_unpickling(p, training):
    rnn = rnn_ext.RNN(100, 100, 2, bias=False, dropout=p, nonlinearity="relu").train(training)
    x, hx = torch.rand(1, 1, 100), torch.rand(2, 1, 100)
    first, second = rnn(x, hx)[0], rnn(x, hx)[0]
    third = pickle.loads(pickle.dumps(rnn))(x, hx)[0]
    draws = p > 0 and training
    assert torch.equal(first, second) != draws
    assert torch.equal(first, third) != draws
    assert torch.equal(second, third) != draws


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm_changes_nothing_until_its_parameters_change():
    rnn = rnn_ext.RNN(32, 32, num_layers=2)
    x = torch.randn(3, 2, 32)
    expected = rnn(x)[0]
    names = [name for name, _ in rnn.named_parameters()]
    for name in names:
        nn.utils.weight_norm(rnn, name)
    assert len(list(rnn.parameters())) == 2 * len(names)
    # g · v / |v| rounds the weights anew.
    torch.testing.assert_close(rnn(x)[0], expected, rtol=0, atol=1e-5)
    rnn.weight_hh_l0_g.data.fill_(0.1)
    rnn.weight_ih_l1_g.data.fill_(0.1)
    changed = rnn(x)[0]
    assert (changed - expected).abs().max() > 0.01
    for name in names:
        nn.utils.remove_weight_norm(rnn, name)
    assert {name for name, _ in rnn.named_parameters()} == set(names)
    torch.testing.assert_close(rnn(x)[0], changed, rtol=0, atol=1e-5)
