"""Tests of RNNs from PyTorch's own test/test_nn.py that no other file here covers.

The other tests there whose names contain "rnn", "gru" or "lstm" have a stricter one elsewhere:
the checks of arguments and of hidden sizes (test_errors.py), the initial hidden state
(test_reproducibility.py), nonlinearity by name and by position, and changed dropout
(test_module.py, test_dropout.py), cells, their empty states and refused broadcasting (test_cell.py,
test_errors.py), first and second gradients (test_module_db.py), an empty batch and retained graphs
(test_autograd.py). Those of cuDNN and of projections, which go to torch's op, have no meaning here.
"""

import pickle

import pytest
import torch
from support import KINDS, assert_close_fp64, flat, twins
from torch import nn

import rnn_ext

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0, 0.276, 0.731, 1])
def test_dropout_zeroes_or_scales_values_between_layers(p, training, kind):
    """All weights are equal, so that a unit of layer 2 tells how many of layer 1 it was given."""
    options = {"bias": False, "dtype": torch.float64}
    ours = getattr(rnn_ext, kind)(10, 1000, 2, dropout=p, **options).train(training)
    unit = getattr(nn, kind)(1, 1, **options)  # one of layer 2
    for parameter in (*ours.parameters(), *unit.parameters()):
        nn.init.constant_(parameter, 1e-3)
    output, states = ours(torch.ones(1, 1, 10).double())
    first, second = (states[0] if kind == "LSTM" else states).squeeze(1)
    assert first.unique().numel() == second.unique().numel() == 1
    assert torch.equal(output[0, 0], second)
    scale = 1 / (1 - p) if training and p < 1 else 1
    given = scale * first[0].detach() * torch.arange(1001, dtype=torch.float64)
    kept = int((unit(given.view(1, -1, 1))[0].flatten() - second[0]).abs().argmin())
    expected, _ = unit(given[kept].view(1, 1, 1))
    assert_close_fp64([second[:1]], [expected.flatten()])
    if not training:
        assert kept == 1000
    else:
        # 1000 draws have a standard deviation of at most 16; five of them.
        assert abs(kept - 1000 * (1 - p)) <= (80 if 0 < p < 1 else 0)


@pytest.mark.parametrize("p", [0, 0.1234])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_anew_in_every_call_and_after_unpickling(p, training, kind):
    rnn = getattr(rnn_ext, kind)(100, 100, 2, bias=False, dropout=p).train(training)
    x = torch.rand(1, 1, 100)
    first, second = rnn(x)[0], rnn(x)[0]
    third = pickle.loads(pickle.dumps(rnn))(x)[0]
    draws = p > 0 and training
    assert torch.equal(first, second) != draws
    assert torch.equal(first, third) != draws
    assert torch.equal(second, third) != draws


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norm_changes_nothing_until_its_parameters_change(kind):
    rnn = getattr(rnn_ext, kind)(32, 32, num_layers=2)
    x = torch.randn(3, 2, 32)
    expected = rnn(x)[0]
    names = [name for name, _ in rnn.named_parameters()]
    for name in names:
        nn.utils.weight_norm(rnn, name)
    assert len(list(rnn.parameters())) == 2 * len(names)
    # g · v / |v| rounds the weights once more.
    torch.testing.assert_close(rnn(x)[0], expected, rtol=0, atol=1e-5)
    rnn.weight_hh_l0_g.data.fill_(0.1)
    rnn.weight_ih_l1_g.data.fill_(0.1)
    changed = rnn(x)[0]
    assert (changed - expected).abs().max() > 0.01
    for name in names:
        nn.utils.remove_weight_norm(rnn, name)
    assert {name for name, _ in rnn.named_parameters()} == set(names)
    torch.testing.assert_close(rnn(x)[0], changed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", ["", "Cell"])
def test_each_result_alone_has_torchs_gradients(form, frozen, kind):
    """The output or one final state; also if only the input requires a gradient."""
    pair = twins(2, 3, kind=kind + form, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    found = []
    for module in pair:
        module.requires_grad_(not frozen)
        wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
        results = flat(module(x))
        found.append([torch.autograd.grad(r.sum(), wanted, retain_graph=True) for r in results])
    for theirs, ours in zip(*found, strict=True):
        assert_close_fp64(ours, theirs)
